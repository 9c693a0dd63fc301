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

from huggingface_hub import RepoCard

from ..run_record import RUN_RECORD_NAME, RunRecord
from . import facts
from .card_keeping import CARD, is_edited
from .cards import CardContext, card_files, read_record, space_card
from .files import DATASET_FILES, is_hub_id, matches, model_files
from .push import RepoPlan, adapter_config


logger = logging.getLogger(__name__)

FIGURE = "comparison.png"
_SPACE_FILES = ("*.py", "*.txt", "*.md", "*.css", "*.yaml", "*.yml", "*.png", "*.svg", "*.json", "*.whl", "*.html")
BASE_FOLDER = "base"
_MADE = (CARD, RUN_RECORD_NAME, "results.jsonl")


@dataclass(frozen=True)
class PushOptions:
    """What is the same for all repositories of one push.

    Args:
        private (`bool`, *optional*): visibility of new repositories and of the collection; `None`: the Hub's default.
        license (`str`, *optional*): for the cards; left out unless given.
        base_model (`str`, *optional*): Hub id of the base model, where the folders only know a path.
        space_sdk (`str`), space_hardware (`str`): of a new Space.
        language (`str` or `list[str]`, *optional*): for the cards.
        datasets (`tuple[str, ...]`): Hub ids of the training data, where the record does not name them.
    """

    private: bool | None = None
    license: str | None = None
    base_model: str | None = None
    space_sdk: str = "gradio"
    space_hardware: str | None = None
    language: str | list[str] | None = None
    datasets: tuple[str, ...] = ()

    def context(self, repo_id: str, files: Mapping[str, Path | bytes], **links: Any) -> CardContext:
        """What a card says besides the record: as given here, and what lies beside it."""
        return CardContext(
            repo_id,
            license=self.license,
            language=self.language,
            datasets=list(self.datasets),
            base_model=self.base_model,
            tokenizer=any(name.startswith("tokenizer") for name in files),
            chat="chat_template.jinja" in files,
            **links,
        )


def _published_base(
    files: dict[str, Path | bytes], base_model: str | None, what: str, fallback: str | None = None
) -> str | None:
    """The base that the files refer to, as an id on the Hub; a path of this machine is replaced or refused."""
    base = None
    for name in ("adapter_config.json", "config.json"):
        if name not in files:
            continue
        content = files[name]
        config = json.loads(content if isinstance(content, bytes) else content.read_text(encoding="utf-8"))
        if not config.get("base_model_name_or_path"):
            continue
        base = base_model or config["base_model_name_or_path"]
        base = base if is_hub_id(base) or not fallback else fallback
        if not is_hub_id(base):
            raise ValueError(
                f"{what} is an adapter of {base!r}, which is not on the Hub: nobody could load it. Push the base "
                "first and give its id as base_model (--base_model)."
            )
        if base != config["base_model_name_or_path"]:
            text = json.dumps(config | {"base_model_name_or_path": base}, indent=2, sort_keys=True)
            files[name] = (text + "\n").encode()
    return base


def _earlier(folder: str | os.PathLike[str] | None) -> str | None:
    """The README in a folder."""
    path = Path(folder, CARD) if folder is not None else None
    if path is None or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if is_edited(text):
        logger.warning(
            f"{path} was changed between its marks, where it is made from the run record: that change is not "
            "published, and the file stays as it is. Write above or below the marks."
        )
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
    files: dict[str, Path | bytes] = dict(model_files(folder))
    peft = adapter_config(folder) is not None
    base = _published_base(files, options.base_model, f"The component {name!r}")
    context = options.context(repo_id, files, file_base=base)
    record = _record("component", folder, record)
    files |= card_files("component", name, record, context, peft=peft, earlier=_earlier(folder))
    return RepoPlan(repo_id, "component", name, files, private=options.private)


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
    files: dict[str, Path | bytes] = dict(model_files(folder))
    base = _published_base(files, options.base_model, "The mixture")
    if (Path(folder) / BASE_FOLDER).is_dir():  # of adapters whose base has no name to load it by
        inside = model_files(Path(folder) / BASE_FOLDER)
        files |= {f"{BASE_FOLDER}/{name}": path for name, path in inside.items()}
    record = _described(_record("mixture", folder, record), folder)
    context = options.context(repo_id, files, file_base=base, components=dict(components or {}), tags=list(tags))
    files |= card_files("mixture", "", record, context, earlier=_earlier(folder))
    return RepoPlan(repo_id, "mixture", "", files, private=options.private)


def _described(record: RunRecord, folder: str | os.PathLike[str]) -> RunRecord:
    """The record with what the mixture's own configuration knows, where the record does not say it."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
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
        ValueError: no weights in safetensors, or an adapter whose base is not on the Hub.
    """
    files: dict[str, Path | bytes] = dict(model_files(folder))
    peft = adapter_config(folder) is not None
    base = _published_base(files, options.base_model, f"The policy {name!r}", fallback_base)
    record = _record("policy", folder, record, name).update("policy", name=name)
    figure = figure or figure_in(folder, record)
    # Unless the record says that the policy was trained on the mixture beside it, nothing is said of that.
    on_it = Path(str(record.policy.get("reward_model", ""))).name == "mixture"
    context = options.context(
        repo_id,
        files,
        file_base=base,
        mixture=mixture if on_it else None,
        dataset=dataset,
        figure=figure is not None,
        tags=list(tags),
    )
    if not context.base(record.policy.get("base_model"), record):
        context.base_model = fallback_base
    files |= card_files("policy", name, record, context, peft=peft, earlier=_earlier(folder))
    if figure is not None:
        files[FIGURE] = figure
    return RepoPlan(repo_id, kind, name, files, private=options.private)


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
    files: dict[str, Path | bytes] = {"results.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}
    configs = {"results": "results.jsonl"}
    for path in sorted(Path(folder).iterdir()) if folder is not None and Path(folder).is_dir() else ():
        if path.is_file() and matches(path.name, DATASET_FILES) and path.name not in _MADE:
            _refuse_annotators(path)
            files[path.name] = path
            if path.suffix in (".jsonl", ".parquet", ".csv"):
                configs[path.stem] = path.name
    context = options.context(repo_id, files, mixture=mixture)
    files |= card_files("dataset", "", record, context, configs=configs, earlier=_earlier(folder))
    return RepoPlan(repo_id, "dataset", "evaluation", files, private=options.private)


def _refuse_annotators(path: Path) -> None:
    """Who annotated stays on this machine, whatever file it is in."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import read_schema

        columns = ", ".join(read_schema(path).names)
    else:
        with open(path, encoding="utf-8", errors="replace") as file:
            columns = file.read(2**16)
    if "annotator" in columns:
        raise ValueError(
            f"{path} mentions annotators in its columns or first rows. Annotator ids are not published: remove them "
            "from the file, or move it out of the evaluation folder."
        )


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
    """An app's folder as a Space.

    Raises:
        ValueError: there is no `app.py` (of a static Space: no `index.html`).
    """
    folder = Path(folder)
    main = "index.html" if options.space_sdk == "static" else "app.py"
    if not (folder / main).is_file():
        raise ValueError(f"{folder} has no {main}, so it is not an app. Give the folder of the Space with --space.")
    files: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith((".", "__")) for part in name.parts)
        if path.is_file() and not hidden and matches(path.name, _SPACE_FILES):
            files[name.as_posix()] = path
    readme = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else ""
    card = space_card(
        CardContext(repo_id, license=options.license),
        models=models,
        datasets=datasets,
        front_matter=RepoCard(readme, ignore_metadata_errors=True).data.to_dict() if readme else {},
        sdk=options.space_sdk,
        groups=groups,
    )
    files["README.md"] = str(card).encode()
    hosting = {"space_sdk": card.data.to_dict()["sdk"], "space_hardware": options.space_hardware}
    return RepoPlan(repo_id, "space", "", files, private=options.private, **hosting)


def figure_in(folder: str | os.PathLike[str], record: RunRecord) -> Path | None:
    """The comparison figure of a run, where the run was evaluated."""
    path = Path(folder) / FIGURE
    return path if path.is_file() and record.evaluation.get("win_rate") else None
