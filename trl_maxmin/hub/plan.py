# SPDX-License-Identifier: Apache-2.0
"""From folders on disk to repositories: which files, under which id, with which card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import RepoCard

from ..run_record import RUN_RECORD_NAME, RunRecord
from . import facts
from .cards import CardContext, component_card, dataset_card, mixture_card, policy_card, read_record, space_card
from .contents import CARD, CONFIGS, FIGURE, critic_files, mixture_files, model_files, plain_file
from .evaluation_files import RESULTS_LINES, checked_picture, evaluation_files
from .files import is_hub_id
from .integrity import require_whole
from .local_paths import for_publication, read_config
from .push import RepoPlan


#: Of an app whose folder is given; other files of it are named one by one.
APP_FILES = (
    *"app.py index.html style.css script.js requirements.txt pre-requirements.txt packages.txt Dockerfile".split(),
)
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
        space_files (`tuple[str, ...]`): files of the Space's folder beyond `APP_FILES`.
    """

    private: bool | None = None
    license: str | None = None
    base_model: str | None = None
    value_head: bool = False
    space_sdk: str = "gradio"
    space_hardware: str | None = None
    space_files: tuple[str, ...] = ()


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
        files[name] = for_publication(files[name], **({"base_model_name_or_path": own} if own else {}))
    require_whole(files, what)
    return ModelContents(files, base, "adapter_config.json" in files)


def _base_named_in(
    content: Path | bytes, name: str, base_model: str | None, fallback: str | None, what: str
) -> str | None:
    """The base that a configuration refers to, as an id on the Hub; a path of this machine is replaced or refused."""
    if name.split("/")[-1] not in ("adapter_config.json", "config.json"):
        return None
    named = read_config(content, name).get("base_model_name_or_path")
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


def _with_record(files: dict[str, Path | bytes], record: RunRecord, card: Any) -> dict[str, Path | bytes]:
    """The files with card and record; the record without what is private."""
    text = json.dumps(facts.public_record(record).validate().to_dict(), indent=2) + "\n"
    return {**files, RUN_RECORD_NAME: text.encode(), CARD: str(card).encode()}


def plan_component(
    folder: str | os.PathLike[str], repo_id: str, name: str, record: RunRecord, options: PushOptions
) -> RepoPlan:
    """A component's folder (a sequence classifier or a PEFT adapter) as a repository.

    Raises:
        ValueError: no weights in safetensors, or an adapter whose base is not on the Hub.
    """
    model = model_contents(folder, f"The component {name!r}", options.base_model)
    context = CardContext(repo_id, license=options.license, base_model=model.base or options.base_model)
    card = component_card(record, name, context, peft=model.peft)
    return RepoPlan(repo_id, "component", name, {**model.files, CARD: str(card).encode()}, private=options.private)


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
    record = _described(record, model.files["config.json"])
    context = CardContext(
        repo_id,
        license=options.license,
        base_model=model.base or options.base_model,
        components=dict(components or {}),
        tags=list(tags),
    )
    files = _with_record(model.files, record, mixture_card(record, context))
    return RepoPlan(repo_id, "mixture", "", files, private=options.private)


def _described(record: RunRecord, content: Path | bytes) -> RunRecord:
    """The record with what the mixture's own configuration knows, where the record does not say it."""
    config = read_config(content)
    known = {
        "component_kind": config.get("component_type"),
        "num_components": config.get("num_components"),
        "component_names": config.get("component_names"),
        "mixing_weights": config.get("mixing_weights"),
    }
    record = RunRecord.from_dict(record.to_dict())
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
        figure (`Path`, *optional*): the comparison figure.
        kind (`str`): `"base"` for the reference policy that others start from.
        fallback_base (`str`, *optional*): the base where neither the files nor the record name one on the Hub.

    Raises:
        ValueError: no weights in safetensors, an adapter whose base is not on the Hub, or no critic where it was asked
            for.
    """
    value_head = options.value_head and kind == "policy"
    model = model_contents(folder, f"The policy {name!r}", options.base_model, fallback_base, value_head=value_head)
    files, base = model.files, model.base or options.base_model
    own = read_record(folder)
    facts_of_run = RunRecord.from_dict(record.to_dict())
    if own is not None:
        facts_of_run.policy = own.policy
        facts_of_run.versions = facts_of_run.versions or own.versions
    elif facts_of_run.policy.get("name", name) != name:
        facts_of_run.policy = {}  # of another policy
    facts_of_run.update("policy", name=name)
    if base is None and not is_hub_id(facts_of_run.policy.get("base_model")):
        base = fallback_base
    # Unless the record says that the policy was trained on the mixture beside it, nothing is said of that.
    on_it = Path(str(facts_of_run.policy.get("reward_model", ""))).name == "mixture"
    context = CardContext(
        repo_id,
        license=options.license,
        base_model=base,
        mixture=mixture if on_it else None,
        dataset=dataset,
        figure=figure is not None,
        tags=list(tags),
        value_head=value_head,
    )
    card = policy_card(facts_of_run, context, peft=model.peft)
    if figure is not None:
        files[FIGURE] = checked_picture(figure)
    return RepoPlan(repo_id, kind, name, _with_record(files, facts_of_run, card), private=options.private)


def plan_dataset(
    folder: str | os.PathLike[str] | None, repo_id: str, record: RunRecord, options: PushOptions, mixture: str | None
) -> RepoPlan:
    """The evaluation set as a repository: the files of a folder, and the per-group results of the record.

    Raises:
        ValueError: the record holds no results.
    """
    rows = result_rows(facts.public_record(record))
    if not rows:
        raise ValueError(
            "The run record holds no results by group, so there is no evaluation set to push. Evaluate first, or "
            "leave the data set out."
        )
    files: dict[str, Path | bytes] = {RESULTS_LINES: "".join(json.dumps(row) + "\n" for row in rows).encode()}
    if folder is not None and Path(folder).is_dir():
        files |= evaluation_files(folder)
    configs = {Path(name).stem: name for name in files if name.endswith((".jsonl", ".parquet"))}
    context = CardContext(repo_id, license=options.license, mixture=mixture)
    files[CARD] = str(dataset_card(record, context, configs)).encode()
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


def plan_space(
    folder: str | os.PathLike[str],
    repo_id: str,
    options: PushOptions,
    *,
    models: list[str],
    datasets: list[str] | None = None,
    groups: list[str] | None = None,
) -> RepoPlan:
    """An app's folder as a Space: the files of `APP_FILES`, and those that `options.space_files` names.

    Raises:
        ValueError: there is no `app.py` (of a static Space: no `index.html`), a named file is not there, or one is a
            link.
    """
    folder = Path(folder)
    main = "index.html" if options.space_sdk == "static" else "app.py"
    if not (folder / main).is_file():
        raise ValueError(f"{folder} has no {main}, so it is not an app. Give the folder of the Space with --space.")
    files: dict[str, Path | bytes] = {}
    for name in (*APP_FILES, *options.space_files):
        path = None if PurePosixPath(name).is_absolute() or ".." in name.split("/") else plain_file(folder, name)
        if path is not None:
            files[name] = path
        elif name not in APP_FILES:
            raise ValueError(f"There is no file {name!r} below {folder}. Name files by their paths in that folder.")
    readme = own.read_text(encoding="utf-8") if (own := plain_file(folder, CARD)) is not None else ""
    card = space_card(
        CardContext(repo_id, license=options.license),
        models=models,
        datasets=datasets,
        front_matter=RepoCard(readme, ignore_metadata_errors=True).data.to_dict() if readme else {},
        sdk=options.space_sdk,
        groups=groups,
    )
    files[CARD] = str(card).encode()
    hosting = {"space_sdk": card.data.to_dict()["sdk"], "space_hardware": options.space_hardware}
    return RepoPlan(repo_id, "space", "", files, private=options.private, **hosting)


def figure_in(folder: str | os.PathLike[str], record: RunRecord) -> Path | None:
    """The comparison figure of a run, where the run was evaluated."""
    return plain_file(Path(folder), FIGURE) if record.evaluation.get("win_rate") else None
