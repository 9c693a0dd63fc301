# SPDX-License-Identifier: Apache-2.0
"""Cards of mixtures, components, policies, data sets and Spaces, filled from the run record and from nothing else."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, DatasetCard, EvalResult, ModelCard, ModelCardData, SpaceCard

from ..run_record import RunRecord
from . import facts
from .files import is_hub_id


TEMPLATES = Path(__file__).parent / "templates"
LIBRARY = "trl-maxmin"


@dataclass
class CardContext:
    """What a card says besides the run record.

    Args:
        repo_id (`str`, *optional*): where the card will be.
        license (`str`, *optional*): of the model or data; left out unless given.
        base_model (`str`, *optional*): Hub id of the base model; what is not a Hub id is left out.
        mixture (`str`, *optional*), dataset (`str`, *optional*): repositories published before this one.
        components (`dict[str, str]`): component name -> its repository.
        tags (`list[str]`): more tags.
        figure (`bool`): whether `comparison.png` lies beside the card.
        value_head (`bool`): whether PPO's critic lies there too.
    """

    repo_id: str | None = None
    license: str | None = None
    base_model: str | None = None
    mixture: str | None = None
    dataset: str | None = None
    components: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    figure: bool = False
    value_head: bool = False

    @property
    def title(self) -> str:
        """Name of the repository without its namespace."""
        return (self.repo_id or "model").split("/")[-1]

    def base(self, *stages: Mapping[str, Any]) -> str | None:
        """Hub id of the base model: the given one, or the recorded one."""
        names = [self.base_model, *(stage.get("base_model") for stage in stages)]
        return next((name for name in names if is_hub_id(name)), None)


@functools.cache
def _environment() -> Any:
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    # Facts that are absent are falsy at any depth; texts from outside come through `code`, never raw.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.globals |= {"code": facts.code, "number": facts.number}
    return environment


def _render(
    template: str, metadata: Mapping[str, Any] | CardData, record: RunRecord | None = None, **values: Any
) -> str:
    if record is not None:
        values |= {"versions": record.versions, "seed": record.seed}
        values |= {"weakest": facts.least(record.reward, "component_heldout_accuracy")}
        values |= {"smallest": facts.least(record.reward, "component_pairs")}
    body = _environment().get_template(template).render(**values)
    while "\n\n\n" in body:
        body = body.replace("\n\n\n", "\n\n")
    data = metadata if isinstance(metadata, CardData) else CardData(**metadata)
    return f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n"


def _model_data(
    context: CardContext, base: str | None, tags: Sequence[str], peft: bool, results: list[EvalResult], **values: Any
) -> ModelCardData:
    values |= {"license": context.license, "base_model": base, "eval_results": results}
    values |= {"base_model_relation": ("adapter" if peft else "finetune") if base else None}
    values |= {"tags": ["trl", LIBRARY, *tags, *(["lora"] if peft else []), *context.tags]}
    values |= {"model_name": context.title if results else None}
    values = {name: value for name, value in values.items() if value not in (None, [], "")}
    return ModelCardData(ignore_metadata_errors=False, **values)


def _accuracy_results(name: str, accuracy: Mapping[str, float], datasets: Sequence[str]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=next(iter(datasets), "preferences"),
            dataset_name=f"held-out preferences of {group}",
            # Results are merged by configuration: without one of its own, a group would overwrite another.
            dataset_config=group,
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
    public = facts.public_record(record)
    reward = public.reward
    datasets = facts.hub_datasets(reward)
    by_group = (reward.get("heldout_accuracy") or {}).get("mixture") or reward.get("component_heldout_accuracy") or {}
    data = _model_data(
        context,
        context.base(reward),
        ["reward-model", "mixture-reward"],
        False,
        _accuracy_results("mixture", by_group, datasets),
        library_name=LIBRARY,
        pipeline_tag="text-classification",
        datasets=datasets,
    )
    body = _render(
        "mixture.md",
        data,
        public,
        context=context,
        reward=reward,
        components=facts.table(facts.COMPONENT_COLUMNS, facts.component_rows(reward, context.components)),
        group_accuracy=facts.table(*facts.group_accuracy_rows(reward)),
        diagnosis=facts.diagnosis(public.evaluation),
        **_reward_values(reward),
    )
    return ModelCard(body, ignore_metadata_errors=False)


def _reward_values(reward: Mapping[str, Any]) -> dict[str, Any]:
    columns = ["K", "held-out log-likelihood per pair (nats)", "difference to the best", "standard error", "taken"]
    return {
        "selection": facts.table(columns, facts.selection_rows(reward)),
        "em": facts.settings(reward.get("em")),
        "training": facts.settings(reward.get("training")),
        "bound": facts.last(reward.get("curves"), "em/lower_bound"),
        "data": reward.get("dataset") or {},
    }


def component_card(record: RunRecord, name: str, context: CardContext, *, peft: bool = False) -> ModelCard:
    """Card of one component, a plain one-label sequence classifier or a PEFT adapter of one.

    Args:
        record ([`RunRecord`]): its `reward` stage is shown as far as it concerns this component.
        name (`str`): of the component.
        context ([`CardContext`]): repository, licence, base model.
        peft (`bool`): whether the repository holds an adapter.
    """
    public = facts.public_record(record)
    reward = public.reward
    accuracy = facts.component_accuracy(reward, name)
    datasets = facts.hub_datasets(reward)
    base = context.base(reward)
    data = _model_data(
        context,
        base,
        ["reward-model", "reward-component"],
        peft,
        _accuracy_results(name, {name: accuracy} if accuracy is not None else {}, datasets),
        library_name="peft" if peft else "transformers",
        pipeline_tag="text-classification",
        datasets=datasets,
    )
    rows = {row[0]: row for row in facts.component_rows(reward, {})}
    body = _render(
        "component.md",
        data,
        public,
        context=context,
        name=name,
        peft=peft,
        base=base,
        reward=reward,
        row=facts.table(facts.COMPONENT_COLUMNS, [rows[facts.code(name)]] if facts.code(name) in rows else []),
        siblings=[code for code in rows if code != facts.code(name)],
        accuracy=accuracy,
        pairs=(reward.get("component_pairs") or {}).get(name),
        **_reward_values(reward),
    )
    return ModelCard(body, ignore_metadata_errors=False)


def policy_card(record: RunRecord, context: CardContext, *, peft: bool = False) -> ModelCard:
    """Card of a policy: what every group gets from it, and from the policies it was compared with.

    Args:
        record ([`RunRecord`]): `policy` (this policy) and `evaluation` are shown.
        context ([`CardContext`]): repository, licence, base model, mixture.
        peft (`bool`): whether the repository holds an adapter.
    """
    record = facts.public_record(record)
    policy, evaluation = record.policy, record.evaluation
    name = policy.get("name", "")
    base = context.base(policy)
    rates, utility = ((evaluation.get(part) or {}).get(name) or {} for part in ("win_rate", "gold_utility"))
    data = _model_data(
        context,
        base,
        _algorithm_tags(policy),
        peft,
        _policy_results(rates, utility, evaluation, context),
        library_name="peft" if peft else "transformers",
        pipeline_tag="text-generation",
        datasets=facts.hub_datasets(policy),
    )
    curves = policy.get("curves") or {}
    won, mean = facts.result_tables(evaluation, name)
    welfare = policy.get("welfare") or {}
    body = _render(
        "policy.md",
        data,
        record,
        context=context,
        name=name,
        peft=peft,
        base=base,
        policy=policy,
        evaluation=evaluation,
        groups=facts.groups_of(evaluation),
        won=won,
        mean=mean,
        summary=facts.table(
            ["policy", "worst-off group", "its win rate", "gap to the best-off group"], facts.summary_rows(evaluation)
        ),
        welfare=welfare,
        num_rewards=_num_rewards(policy),
        kl=facts.last(curves, "objective/kl", "kl"),
        # PPO sums over a reply, GRPO and RLOO average over tokens.
        kl_per="reply" if curves.get("objective/kl") else "token",
        worst=facts.table(
            ["step", "worst group utility (training)"], facts.curve_rows(curves, "maxmin/worst_utility")
        ),
        diagnosis=facts.diagnosis(evaluation),
        samples=facts.sample_blocks(evaluation),
        training=facts.settings(policy.get("training")),
        welfare_settings=facts.settings({k: v for k, v in welfare.items() if k != "rule"}),
    )
    return ModelCard(body, ignore_metadata_errors=False)


def _num_rewards(policy: Mapping[str, Any]) -> int:
    return sum(name.startswith("maxmin/utility/") for name in policy.get("curves") or {})


def _algorithm_tags(policy: Mapping[str, Any]) -> list[str]:
    algorithm = str(policy.get("algorithm", "")).lower()
    tags = [word for word in ("ppo", "grpo", "rloo") if word in algorithm]
    maxmin = (policy.get("welfare") or {}).get("rule") == "maxmin" and _num_rewards(policy) != 1
    return [*tags, *(["maxmin-rlhf"] if maxmin else [])]


def _policy_results(
    rates: Mapping[str, Any], utility: Mapping[str, Any], evaluation: Mapping[str, Any], context: CardContext
) -> list[EvalResult]:
    kind = evaluation.get("utility", "")
    results = []
    for group in dict.fromkeys([*rates, *utility]):
        where: dict[str, Any] = {
            "task_type": "text-generation",
            "dataset_type": context.dataset or "evaluation-prompts",
            "dataset_name": f"evaluation prompts, group {group}",
            "dataset_config": group,
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
                    metric_name=f"mean {kind} utility".replace("  ", " "),
                    metric_value=float(utility[group]),
                )
            )
    return results


def dataset_card(record: RunRecord, context: CardContext, configs: Mapping[str, str]) -> DatasetCard:
    """Card of the evaluation set: prompts, replies and per-group results.

    Args:
        record ([`RunRecord`]): its `evaluation` stage is shown.
        context ([`CardContext`]): repository, licence, mixture.
        configs (`dict[str, str]`): configuration -> file in the repository.
    """
    record = facts.public_record(record)
    evaluation = record.evaluation
    won, mean = facts.result_tables(evaluation, "")
    data: dict[str, Any] = {"license": context.license} if context.license else {}
    data |= {"tags": ["trl", LIBRARY, "evaluation", *context.tags]}
    data["configs"] = [
        {"config_name": name, "data_files": [{"split": "test", "path": path}]} for name, path in configs.items()
    ]
    body = _render(
        "dataset.md",
        data,
        versions=record.versions,
        context=context,
        evaluation=evaluation,
        configs=configs,
        won=won,
        mean=mean,
        groups=facts.groups_of(evaluation),
        policies=facts.policies_of(evaluation),
    )
    return DatasetCard(body, ignore_metadata_errors=False)


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
    data: dict[str, Any] = {
        "title": context.title,
        "emoji": "⚖️",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": sdk,
        **({"app_file": "app.py"} if sdk == "gradio" else {}),
        "short_description": "What each policy answers, group by group",
        **({"license": context.license} if context.license else {}),
    }
    data |= dict(front_matter or {})
    data |= {"models": models} if models else {}
    data |= {"datasets": datasets} if datasets else {}
    data["tags"] = list(dict.fromkeys([*(data.get("tags") or []), "trl", LIBRARY, *context.tags]))
    body = _render("space.md", data, context=context, models=models, groups=groups or [])
    return SpaceCard(body, ignore_metadata_errors=False)


def read_record(folder: str | os.PathLike[str]) -> RunRecord | None:
    """The run record in a folder, `None` where there is none."""
    return RunRecord.load(folder) if (Path(folder) / "run_record.json").is_file() else None
