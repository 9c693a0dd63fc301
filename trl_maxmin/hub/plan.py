# SPDX-License-Identifier: Apache-2.0
"""From folders on disk to repositories: which files, under which id, with which card."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..reading import JSON_LIMIT, read_json_object
from ..run_record import RunRecord
from . import facts
from .card_keeping import is_edited, what_is_lost
from .cards import CardContext, card_files, read_record
from .contents import CARD, CONFIGS, FIGURE, TOKENIZER, critic_files, mixture_files, model_files, plain_file
from .evaluation_files import RESULTS_LINES, checked_picture, columns_of, evaluation_files
from .files import is_hub_id
from .integrity import require_whole
from .local_paths import for_publication
from .push import RepoPlan


logger = logging.getLogger(__name__)

_CLEANED = (*CONFIGS, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class PushOptions:
    """What is the same for all repositories of one push.

    Args:
        private (`bool`, *optional*): visibility of new repositories and of the collection; `None`: the Hub's default.
        license (`str`, *optional*): for the cards; left out unless given.
        base_model (`str`, *optional*): Hub id of the base model, where the folders only know a path.
        value_head (`bool`): PPO's critic is published beside the policies, which nobody needs to use them.
        space_sdk (`str`), space_hardware (`str`): of a new Space.
        space_files (`tuple[str, ...]`): files of the Space's folder beyond `plan_app.APP_FILES`.
        language (`str` or `list[str]`, *optional*): for the cards.
        datasets (`tuple[str, ...]`): Hub ids of the training data, where the record does not name them.
    """

    private: bool | None = None
    license: str | None = None
    base_model: str | None = None
    value_head: bool = False
    space_sdk: str = "gradio"
    space_hardware: str | None = None
    space_files: tuple[str, ...] = ()
    language: str | list[str] | None = None
    datasets: tuple[str, ...] = ()

    def context(self, repo_id: str, model: ModelContents, **links: Any) -> CardContext:
        """What a model's card says besides the record: as given here, and as its files are."""
        return CardContext(
            repo_id,
            license=self.license,
            language=self.language,
            datasets=list(self.datasets),
            base_model=self.base_model,
            file_base=model.base,
            tokenizer=any(name in model.files for name in TOKENIZER),
            chat=any(name.endswith(("chat_template.jinja", "chat_template.json")) for name in model.files),
            **links,
        )


@dataclass(frozen=True)
class ModelContents:
    """A model's files as they are published, checked.

    Args:
        files (`dict`): name in the repository -> file, or its content without paths of this machine.
        base (`str`, *optional*): Hub id of the base that the files refer to.
        peft (`bool`): whether they are an adapter.
    """

    files: dict[str, Path | bytes]
    base: str | None
    peft: bool


def model_contents(
    folder: str | os.PathLike[str],
    what: str,
    base_model: str | None = None,
    fallback: str | None = None,
    *,
    mixture: bool = False,
    value_head: bool = False,
) -> ModelContents:
    """The door by which every model leaves: for repositories of its own, and for a Space that carries it.

    Args:
        folder (`str` or `os.PathLike`): of the model.
        what (`str`): for messages, such as "The policy 'maxmin'".
        base_model (`str`, *optional*): Hub id of an adapter's base, where the files only know a path.
        fallback (`str`, *optional*): the same where neither names one.
        mixture (`bool`): a base beside the adapters goes along.
        value_head (`bool`): PPO's critic goes along.

    Raises:
        ValueError: files that are missing, damaged or links, or an adapter whose base is not on the Hub.
    """
    files: dict[str, Path | bytes] = dict(mixture_files(folder) if mixture else model_files(folder))
    if value_head:
        files |= critic_files(folder)
    base = None
    for name in [name for name in files if name.split("/")[-1] in _CLEANED or name.endswith(".index.json")]:
        own = _base_named_in(files[name], name, base_model, fallback, what)
        base = base or own
        files[name] = for_publication(files[name], name, **({"base_model_name_or_path": own} if own else {}))
    require_whole(files, what)
    return ModelContents(files, base, "adapter_config.json" in files)


def _base_named_in(
    content: Path | bytes, name: str, base_model: str | None, fallback: str | None, what: str
) -> str | None:
    """The base that a configuration refers to, as an id on the Hub; a path of this machine is replaced or refused."""
    if name.split("/")[-1] not in ("adapter_config.json", "config.json"):
        return None
    named = read_json_object(content, JSON_LIMIT, name).get("base_model_name_or_path")
    if not named:
        return None
    base = base_model or str(named)
    base = base if is_hub_id(base) or not fallback else fallback
    if not is_hub_id(base):
        raise ValueError(
            f"{what} is an adapter of {base!r}, which is not on the Hub: nobody could load it. Push the base first "
            "and give its id as base_model (`trl-maxmin push --base_model`)."
        )
    return base


def _earlier(folder: str | os.PathLike[str] | None) -> str | None:
    """The README in a folder."""
    path = plain_file(Path(folder), CARD) if folder is not None else None
    if path is None:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if is_edited(text):
        logger.warning(f"{path}: {what_is_lost(text)} The file stays as it is.")
    return text


def _record(kind: str, folder: str | os.PathLike[str] | None, run: RunRecord, name: str = "") -> RunRecord:
    """What is known of the model in a folder: from the record of the run, and from its own beside its files.

    The run's record tells of the reward stage and of the last evaluation, where it has them; a policy's own record
    tells how it was trained.
    """
    own, run = (read_record(folder) if folder is not None else None) or RunRecord(), run.part("run")
    own_kind, own = own.kind, own.part("run")
    found = RunRecord(own.seed if own.seed is not None else run.seed, own.versions or run.versions)
    found.links = own.links if own_kind == kind else run.links
    found.reward = run.reward or own.reward
    found.policy = own.policy or (run.policy if run.policy.get("name", name) == name else {})
    named = facts.policies_of(run.evaluation)
    of_run = kind != "policy" or not named or name in (*named, "reference", run.policy.get("name"))
    found.evaluation = run.evaluation if run.evaluation and of_run else own.evaluation
    return found


def plan_component(
    folder: str | os.PathLike[str], repo_id: str, name: str, record: RunRecord, options: PushOptions
) -> RepoPlan:
    """A component's folder (a sequence classifier or a PEFT adapter) as a repository.

    Raises:
        ValueError: no weights in safetensors, or an adapter whose base is not on the Hub.
    """
    model = model_contents(folder, f"The component {name!r}", options.base_model)
    context, record = options.context(repo_id, model), _record("component", folder, record)
    made = card_files("component", name, record, context, peft=model.peft, earlier=_earlier(folder))
    return RepoPlan(repo_id, "component", name, model.files | made, private=options.private)


def plan_mixture(
    folder: str | os.PathLike[str],
    repo_id: str,
    record: RunRecord,
    options: PushOptions,
    components: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
) -> RepoPlan:
    """A mixture's folder as a repository.

    Raises:
        ValueError: no weights in safetensors, or adapters whose base is not on the Hub.
    """
    model = model_contents(folder, "The mixture", options.base_model, mixture=True)
    record = _described(_record("mixture", folder, record), model.files["config.json"])
    context = options.context(repo_id, model, components=dict(components or {}), tags=list(tags))
    made = card_files("mixture", "", record, context, earlier=_earlier(folder))
    return RepoPlan(repo_id, "mixture", "", model.files | made, private=options.private)


def _described(record: RunRecord, content: Path | bytes) -> RunRecord:
    """The record with what the mixture's own configuration knows, where the record does not say it."""
    config = read_json_object(content)
    known = {
        "component_kind": config.get("component_type"),
        "num_components": config.get("num_components"),
        "component_names": config.get("component_names"),
        "mixing_weights": config.get("mixing_weights"),
    }
    return record.update("reward", **{k: v for k, v in known.items() if k not in record.reward})


def plan_policy(
    folder: str | os.PathLike[str],
    repo_id: str,
    name: str,
    record: RunRecord,
    options: PushOptions,
    *,
    mixture: str | None = None,
    dataset: str | None = None,
    figure: Path | None = None,
    kind: str = "policy",
    fallback_base: str | None = None,
    tags: Sequence[str] = (),
) -> RepoPlan:
    """A policy's folder (a language model or a LoRA adapter) as a repository.

    Args:
        folder: what a trainer saved; its own `run_record.json` tells how it was trained.
        repo_id (`str`), name (`str`): of the repository, of the policy.
        record ([`RunRecord`]): of the whole run: what was evaluated.
        options ([`PushOptions`])
        mixture (`str`, *optional*), dataset (`str`, *optional*): repositories that are published before.
        figure (`Path`, *optional*): the comparison figure of the run; default: the one in the folder. It is shown
            where the record has win rates.
        kind (`str`): `"base"` for the reference policy that others start from.
        fallback_base (`str`, *optional*): the base where neither the files nor the record name one on the Hub.

    Raises:
        ValueError: no weights in safetensors, an adapter whose base is not on the Hub, or no critic where it was asked
            for.
    """
    value_head = options.value_head and kind == "policy"
    model = model_contents(folder, f"The policy {name!r}", options.base_model, fallback_base, value_head=value_head)
    record = _record("policy", folder, record, name).update("policy", name=name)
    figure = figure or plain_file(Path(folder), FIGURE)
    figure = figure if record.evaluation.get("win_rate") else None
    # Unless the record says that the policy was trained on the mixture beside it, nothing is said of that.
    on_it = Path(str(record.policy.get("reward_model", ""))).name == "mixture"
    context = options.context(
        repo_id,
        model,
        mixture=mixture if on_it else None,
        dataset=dataset,
        figure=figure is not None,
        tags=list(tags),
        value_head=value_head,
    )
    if not facts.hub_id(context.base_model, context.file_base, record.policy.get("base_model")):
        context.base_model = fallback_base  # rather than what an earlier push, maybe under another name, called so
    made = card_files("policy", name, record, context, peft=model.peft, earlier=_earlier(folder))
    if figure is not None:
        made[FIGURE] = checked_picture(figure)
    return RepoPlan(repo_id, kind, name, model.files | made, private=options.private)


def plan_dataset(
    folder: str | os.PathLike[str] | None, repo_id: str, record: RunRecord, options: PushOptions, mixture: str | None
) -> RepoPlan:
    """The evaluation set as a repository: the files of a folder, and the per-group results of the record.

    Raises:
        ValueError: the record holds no results.
    """
    record = _record("dataset", folder, record)
    rows = result_rows(record)
    if not rows:
        raise ValueError(
            "The run record holds no results by group, so there is no evaluation set to push. Evaluate first, or "
            "leave the data set out."
        )
    files: dict[str, Path | bytes] = {RESULTS_LINES: "".join(json.dumps(row) + "\n" for row in rows).encode()}
    if folder is not None and Path(folder).is_dir():
        files |= evaluation_files(folder)
    configs = {Path(name).stem: name for name in files if name.endswith((".jsonl", ".parquet"))}
    context = CardContext(repo_id, license=options.license, language=options.language, mixture=mixture)
    columns = {name: columns_of(files[path]) for name, path in configs.items()}
    files |= card_files("dataset", "", record, context, configs=configs, columns=columns, earlier=_earlier(folder))
    return RepoPlan(repo_id, "dataset", "evaluation", files, private=options.private)


def result_rows(record: RunRecord) -> list[dict[str, Any]]:
    """One row per policy and group: win rate with its interval, and mean utility, as far as recorded."""
    rates, utility = record.evaluation.get("win_rate") or {}, record.evaluation.get("gold_utility") or {}
    rows = []
    for policy in facts.policies_of(record.evaluation):
        for group in dict.fromkeys([*rates.get(policy, {}), *utility.get(policy, {})]):
            rate = rates.get(policy, {}).get(group) or {}
            # Every row has every column: readers take the columns from the first rows.
            row = {"policy": policy, "group": group, "win_rate": rate.get("mean")}
            row |= {"win_rate_low": rate.get("low"), "win_rate_high": rate.get("high")}
            rows.append(row | {"utility": utility.get(policy, {}).get(group)})
    return rows
