# SPDX-License-Identifier: Apache-2.0
"""Cards of mixtures, components, policies, data sets and Spaces, filled from the run record and from nothing else.

One template a kind, and the metadata. A card is a function of what is published beside it: the part of the record, the
links in it, and the names of the files.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, DatasetCard, EvalResult, ModelCard, ModelCardData, SpaceCard

from ..run_record import RUN_RECORD_NAME, RunRecord, welfare_settings
from . import facts
from .card_keeping import LIBRARY, PAPER_TAG, keep, marked
from .contents import CARD
from .markdown import clean, code, literal, number, plain, settings


TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class CardContext:
    """What a card says besides the run record.

    Args:
        repo_id (`str`, *optional*): where the card will be.
        license (`str`, *optional*), language (`str` or `list[str]`, *optional*): of the model or data; left out unless
            given.
        datasets (`list[str]`): Hub ids of the training data, where the record does not name them.
        base_model (`str`, *optional*): Hub id of the base model, as the user gives it.
        file_base (`str`, *optional*): the same, as the model's files or the run beside them say.
        mixture (`str`, *optional*), dataset (`str`, *optional*): repositories published before this one.
        components (`dict[str, str]`): component name -> its repository.
        tags (`list[str]`): more tags.
        figure (`bool`): whether `comparison.png` lies beside the card.
        value_head (`bool`): whether PPO's critic lies there too.
        tokenizer (`bool`), chat (`bool`): whether a tokenizer lies there, and whether it has a chat template.
    """

    repo_id: str | None = None
    license: str | None = None
    language: str | list[str] | None = None
    datasets: list[str] = field(default_factory=list)
    base_model: str | None = None
    file_base: str | None = None
    mixture: str | None = None
    dataset: str | None = None
    components: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    figure: bool = False
    value_head: bool = False
    tokenizer: bool = True
    chat: bool = False

    @property
    def title(self) -> str:
        """Name of the repository without its namespace."""
        return clean((self.repo_id or "model").split("/")[-1]) or "model"

    def with_links(self, record: RunRecord) -> CardContext:
        """Where nothing else is given, the repositories that an earlier push of this record named."""
        links = record.links
        return replace(
            self,
            mixture=self.mixture or links.get("mixture"),
            dataset=self.dataset or links.get("dataset"),
            components={**links.get("components", {}), **self.components},
        )

    def base(self, recorded: str | None, record: RunRecord) -> str | None:
        """Hub id of the base model: the given one, that of the files, the recorded one, that of an earlier push."""
        return facts.hub_id(self.base_model, self.file_base, recorded, record.links.get("base_model"))


@functools.cache
def _environment() -> Any:
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    # Facts that are absent are falsy at any depth; texts from outside come through `code` or `plain`, never raw.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.globals |= {"code": code, "number": number, "plain": plain, "literal": literal}
    return environment


def _body(template: str, made: Sequence[str] = (), **values: Any) -> str:
    body = _environment().get_template(template).render(**values)
    while "\n\n\n" in body:
        body = body.replace("\n\n\n", "\n\n")
    return marked(body, made)


def _data(kind: type[CardData], context: CardContext, tags: Sequence[str], **values: Any) -> CardData:
    values |= {"license": context.license, "language": context.language}
    values["tags"] = list(dict.fromkeys(["trl", LIBRARY, *tags, PAPER_TAG, *map(clean, context.tags)]))
    return kind(**{name: value for name, value in values.items() if value not in (None, [], "")})


def _model_card(
    template: str,
    record: RunRecord,
    context: CardContext,
    stage: Mapping[str, Any],
    tags: Sequence[str],
    results: list[EvalResult],
    *,
    pipeline_tag: str,
    library_name: str | None = None,
    peft: bool = False,
    **values: Any,
) -> ModelCard:
    """The card of any model: metadata, and the template's text."""
    base, datasets = context.base(stage.get("base_model"), record), facts.hub_datasets(stage)
    data = _data(
        ModelCardData,
        context,
        [*tags, *(["lora"] if peft else [])],
        library_name=library_name or ("peft" if peft else "transformers"),
        pipeline_tag=pipeline_tag,
        base_model=base,
        base_model_relation=("adapter" if peft else "finetune") if base else None,
        datasets=list(dict.fromkeys([*datasets, *context.datasets])),
        model_name=context.title if results else None,
        eval_results=results,
    )
    body = _body(
        template,
        (["base_model"] if facts.hub_id(context.file_base, stage.get("base_model")) else [])
        + (["datasets"] if datasets else []),
        context=context,
        repo=literal(context.repo_id or "path/to/model"),
        tokenizer=literal((context.repo_id or "path/to/model") if context.tokenizer or not base else base),
        base=base,
        local_base=None if base else facts.local_name(stage.get("base_model")),
        peft=peft,
        versions=record.versions,
        seed=record.seed,
        **values,
    )
    return ModelCard(keep(f"---\n{data.to_yaml()}\n---\n{body}", None), ignore_metadata_errors=False)


def _reward_values(reward: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "reward": reward,
        "selection": facts.selection_table(reward),
        "em": settings(reward.get("em")),
        "training": settings(reward.get("training")),
        "bound": facts.last(reward.get("curves"), "em/lower_bound"),
        "assignments": facts.assignment_calibration(reward.get("assignment_calibration")),
        "data": reward.get("dataset") or {},
        "data_id": facts.hub_id((reward.get("dataset") or {}).get("name")),
        "heldout": reward.get("component_heldout_accuracy"),
    }


def _accuracy_results(name: str, accuracy: Mapping[str, float], datasets: Sequence[str]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=next(iter(datasets), "preferences"),
            dataset_name=f"held-out preferences of {facts.as_data(group)}",
            # Results are merged by configuration: without one of its own, a group would overwrite another.
            dataset_config=facts.as_data(group),
            metric_type="accuracy",
            metric_name="held-out preference accuracy",
            metric_value=float(value),
        )
        for group, value in accuracy.items()
    ]


def mixture_card(record: RunRecord, context: CardContext) -> ModelCard:
    """Card of a mixture of reward models.

    Args:
        record ([`RunRecord`]): its `reward` stage is shown, and the diagnosis of the data.
        context ([`CardContext`]): repository, licence, links.

    Example:

    >>> record = RunRecord().update("reward", num_components=2, mixing_weights=[0.8, 0.2], component_names=["a", "b"])
    >>> card = mixture_card(record, CardContext("me/film-mixture", license="mit"))
    >>> card.data.library_name, "0.80" in card.text, "accuracy" in card.data.to_dict()
    ('trl-maxmin', True, False)
    """
    record = record.part("mixture")
    context, reward = context.with_links(record), record.reward
    by_group = (reward.get("heldout_accuracy") or {}).get("mixture") or reward.get("component_heldout_accuracy") or {}
    return _model_card(
        "mixture.md",
        record,
        context,
        reward,
        ["reward-model", "mixture-reward"],
        _accuracy_results("mixture", by_group, facts.hub_datasets(reward)),
        pipeline_tag="text-classification",
        library_name=LIBRARY,
        components=facts.component_tables(reward, facts.component_names(reward)),
        group_accuracy=facts.group_accuracy(reward),
        diagnosis=facts.diagnosis(record.evaluation),
        weakest=facts.least(reward, "component_heldout_accuracy"),
        smallest=facts.least(reward, "component_pairs"),
        **_reward_values(reward),
    )


def component_card(record: RunRecord, name: str, context: CardContext, *, peft: bool = False) -> ModelCard:
    """Card of one component, a plain one-label sequence classifier or a PEFT adapter of one.

    Args:
        record ([`RunRecord`]): its `reward` stage is shown as far as it concerns this component.
        name (`str`): of the component.
        context ([`CardContext`]): repository, licence, base model.
        peft (`bool`): whether the repository holds an adapter.
    """
    record = record.part("component", name)
    reward = record.reward
    accuracy = (reward.get("component_heldout_accuracy") or {}).get(name)
    results = _accuracy_results(name, {} if accuracy is None else {name: accuracy}, facts.hub_datasets(reward))
    return _model_card(
        "component.md",
        record,
        context.with_links(record),
        reward,
        ["reward-model", "reward-component"],
        results,
        pipeline_tag="text-classification",
        peft=peft,
        name=name,
        components=facts.component_tables(reward, [name]),
        siblings=facts.names_of(other for other in facts.component_names(reward) if other != name),
        accuracy=accuracy,
        pairs=(reward.get("component_pairs") or {}).get(name),
        **_reward_values(reward),
    )


def policy_card(record: RunRecord, context: CardContext, *, peft: bool = False) -> ModelCard:
    """Card of a policy: what every group gets from it, and from the policies it was compared with.

    Args:
        record ([`RunRecord`]): `policy` (this policy) and `evaluation` are shown.
        context ([`CardContext`]): repository, licence, base model, mixture.
        peft (`bool`): whether the repository holds an adapter.
    """
    record = record.part("policy")
    context, policy, evaluation = context.with_links(record), record.policy, record.evaluation
    name, curves, welfare = policy.get("name", ""), policy.get("curves") or {}, policy.get("welfare") or {}
    rates, utility = ((evaluation.get(part) or {}).get(name) or {} for part in ("win_rate", "gold_utility"))
    of_rule = welfare_settings(welfare.get("rule"), welfare.get("regret_rule"))
    return _model_card(
        "policy.md",
        record,
        context,
        policy,
        _algorithm_tags(policy),
        _policy_results(rates, utility, evaluation, context),
        pipeline_tag="text-generation",
        peft=peft,
        name=name,
        policy=policy,
        rewards_of=policy.get("reward_model", "").replace("./", ""),
        reward_id=context.mixture or facts.hub_id(policy.get("reward_model")),
        evaluation=evaluation,
        **facts.result_tables(evaluation, name),
        lowest=facts.lowest(evaluation),
        welfare=welfare,
        num_rewards=_num_rewards(policy),
        offline="dpo" in str(policy.get("algorithm", "")).lower(),
        kl=facts.last(curves, "objective/kl", "kl"),
        # PPO sums over a reply, GRPO and RLOO average over tokens.
        kl_per="reply" if curves.get("objective/kl") else "token",
        worst=facts.curve(curves, "maxmin/worst_utility", "worst group utility (training)"),
        samples=facts.samples(evaluation),
        training=settings(policy.get("training")),
        welfare_settings=settings({key: value for key, value in welfare.items() if key in of_rule}),
    )


def _num_rewards(policy: Mapping[str, Any]) -> int:
    return sum(name.startswith("maxmin/utility/") for name in policy.get("curves") or {})


def _algorithm_tags(policy: Mapping[str, Any]) -> list[str]:
    algorithm = str(policy.get("algorithm", "")).lower()
    tags = [word for word in ("ppo", "grpo", "rloo", "dpo") if word in algorithm]
    maxmin = (policy.get("welfare") or {}).get("rule") == "maxmin" and _num_rewards(policy) != 1
    return [*tags, *(["maxmin-rlhf"] if maxmin else [])]


def _policy_results(
    rates: Mapping[str, Any], utility: Mapping[str, Any], evaluation: Mapping[str, Any], context: CardContext
) -> list[EvalResult]:
    results = []
    for group in dict.fromkeys([*rates, *utility]):
        where: dict[str, Any] = {
            "task_type": "text-generation",
            "dataset_type": context.dataset or "evaluation-prompts",
            "dataset_name": f"evaluation prompts, group {facts.as_data(group)}",
            "dataset_config": facts.as_data(group),
        }
        if group in rates:
            rate = rates[group]
            results.append(
                EvalResult(
                    **where,
                    metric_type="win_rate",
                    metric_name="win rate against the reference policy",
                    metric_value=float(rate["mean"]),
                    metric_args={"interval_95": [float(rate["low"]), float(rate["high"])]},
                )
            )
        if group in utility:
            results.append(
                EvalResult(
                    **where,
                    metric_type="utility",
                    metric_name=clean(f"mean {evaluation.get('utility', '')} utility"),
                    metric_value=float(utility[group]),
                )
            )
    return results


def dataset_card(
    record: RunRecord,
    context: CardContext,
    configs: Mapping[str, str],
    columns: Mapping[str, Sequence[str]] | None = None,
) -> DatasetCard:
    """Card of the evaluation set: prompts, replies and per-group results.

    Args:
        record ([`RunRecord`]): its `evaluation` stage is shown.
        context ([`CardContext`]): repository, licence, mixture.
        configs (`dict[str, str]`): configuration -> file in the repository.
        columns (`dict[str, list[str]]`, *optional*): configuration -> columns of its file.
    """
    record = record.part("dataset")
    context, evaluation = context.with_links(record), record.evaluation
    body = _body(
        "dataset.md",
        context=context,
        repo=literal(context.repo_id or "path/to/dataset"),
        first=literal(next(iter(configs), "results")),
        versions=record.versions,
        seed=record.seed,
        evaluation=evaluation,
        configs=configs,
        columns={name: facts.names_of(own) for name, own in (columns or {}).items()},
        **facts.result_tables(evaluation, ""),
        groups=facts.names_of(facts.groups_of(evaluation)),
        policies=facts.names_of(facts.policies_of(evaluation)),
    )
    files = [{"config_name": name, "data_files": [{"split": "test", "path": path}]} for name, path in configs.items()]
    data = _data(CardData, context, ["evaluation"], configs=files)
    return DatasetCard(keep(f"---\n{data.to_yaml()}\n---\n{body}", None), ignore_metadata_errors=False)


def space_card(
    context: CardContext,
    *,
    models: list[str],
    datasets: list[str] | None = None,
    front_matter: Mapping[str, Any] | None = None,
    sdk: str = "gradio",
    groups: list[str] | None = None,
) -> SpaceCard:
    """Card of the Space in which people compare the policies, group by group.

    Args:
        context ([`CardContext`]): repository, licence.
        models (`list[str]`), datasets (`list[str]`): repositories that it shows.
        front_matter (`dict`, *optional*): of the app's own README (`sdk_version`, `emoji`, ...); wins over ours.
        sdk (`str`): `"gradio"`, `"docker"` or `"static"`.
        groups (`list[str]`, *optional*): names of the groups.
    """
    ours = {
        "title": context.title,
        "emoji": "⚖️",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": sdk,
        **({"app_file": "app.py"} if sdk == "gradio" else {}),
        "short_description": "What each policy answers, group by group",
    }
    data = _data(CardData, context, []).to_dict()
    given = dict(front_matter or {})
    data = ours | data | given | {"tags": list(dict.fromkeys([*(given.get("tags") or []), *data["tags"]]))}
    data |= {name: ids for name, ids in (("models", models), ("datasets", datasets)) if ids}
    body = _body("space.md", context=context, models=models, groups=facts.names_of(groups or []))
    return SpaceCard(f"---\n{CardData(**data).to_yaml()}\n---\n\n{body}\n", ignore_metadata_errors=False)


def read_record(folder: str | os.PathLike[str]) -> RunRecord | None:
    """The run record in a folder, `None` where there is none."""
    return RunRecord.load(folder) if (Path(folder) / RUN_RECORD_NAME).is_file() else None


def card_files(
    kind: str,
    name: str,
    record: RunRecord,
    context: CardContext,
    *,
    earlier: str | None = None,
    **options: Any,
) -> dict[str, bytes]:
    """Card and record of a repository: the same bytes again from what they say.

    Args:
        kind (`str`): `"component"`, `"mixture"`, `"policy"` or `"dataset"`.
        name (`str`): of the component.
        record ([`RunRecord`]): of the run, or the part of it that was published.
        context ([`CardContext`]): repository, licence, links.
        earlier (`str`, *optional*): the README that is there, see [`~trl_maxmin.hub.card_keeping.keep`].
        **options: `peft` of a model, `configs` and `columns` of a data set.

    Returns:
        `dict[str, bytes]`: `README.md` and `run_record.json`.
    """
    part = record.part(kind, name)
    context = context.with_links(part)
    stage = part.policy if kind == "policy" else part.reward
    links: dict[str, Any] = {"base_model": None if kind == "dataset" else context.base(stage.get("base_model"), part)}
    links |= {"mixture": context.mixture, "dataset": context.dataset} if kind in ("policy", "dataset") else {}
    links |= {"components": context.components} if kind == "mixture" else {}
    part.links = {key: value for key, value in links.items() if value}
    if kind == "component":
        card: Any = component_card(part, name, context, **options)
    else:
        make: Any = {"mixture": mixture_card, "policy": policy_card, "dataset": dataset_card}[kind]
        card = make(part, context, **options)
    text = json.dumps(part.validate().to_dict(), indent=2) + "\n"
    return {CARD: keep(str(card), earlier).encode(), RUN_RECORD_NAME: text.encode()}
