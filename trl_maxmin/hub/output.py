# SPDX-License-Identifier: Apache-2.0
"""What an output folder becomes on the Hub: which of its folders goes to which repository, and in which order."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..reading import read_json_object
from ..run_record import RUN_RECORD_NAME, RunRecord
from . import facts
from .cards import read_record
from .collection import BASE_NOTE
from .contents import (
    BASE_FOLDER,
    CARD,
    FIGURE,
    TEMPLATES_FOLDER,
    VALUE_HEAD,
    VALUE_MODEL_FOLDER,
    model_files,
    plain_file,
    plain_folder,
)
from .evaluation_files import evaluation_files
from .files import check_repo_id, is_hub_id, repo_id_of, slug
from .plan import (
    PushOptions,
    plan_component,
    plan_dataset,
    plan_mixture,
    plan_policy,
)
from .plan_app import APP_FILES, plan_space
from .push import RepoPlan, in_order


@dataclass
class OutputPlan:
    """Everything that an output folder becomes on the Hub.

    Args:
        repos (`list[RepoPlan]`): in order of publication.
        title (`str`): of the collection.
        namespace (`str`): owner of the collection.
        extra (`list`): (id, type, note) of what the collection shows besides, such as the base model.
        left_out (`list[str]`): what stays on this machine.
    """

    repos: list[RepoPlan]
    title: str
    namespace: str
    extra: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def plan_output_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    options: PushOptions | None = None,
    *,
    dataset: bool = False,
    space: str | os.PathLike[str] | None = None,
) -> OutputPlan:
    """Everything in an output folder of `trl-maxmin`, as repositories with their cards.

    Args:
        folder (`str` or `os.PathLike`): with any of `mixture/`, `components/<name>/`, `policies/<name>/`,
            `evaluation/`, `run_record.json`, `comparison.png`; or itself a mixture or a policy.
        repo_id (`str`): base id, `namespace/name`; the repositories are named after `hub.files.NAMES`.
        options ([`PushOptions`], *optional*)
        dataset (`bool`): also push the evaluation set and the results.
        space (`str` or `os.PathLike`, *optional*): folder of an app to push as a Space.

    Raises:
        ValueError: nothing to push, ids that collide, or as the `plan_...` functions.
    """
    folder, options = Path(folder), options or PushOptions()
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. Give the output folder of a training or of `trl-maxmin demo`.")
    check_repo_id(repo_id)
    record = read_record(folder) or RunRecord()

    layout = _Layout(folder)
    repos: list[RepoPlan] = []
    for path in layout.components:
        repos.append(plan_component(path, repo_id_of("component", repo_id, path.name), path.name, record, options))
    components = {plan.name: plan.repo_id for plan in repos}
    mixture = dataset_id = None
    if layout.mixture is not None:
        mixture = repo_id_of("mixture", repo_id)
        repos.append(plan_mixture(layout.mixture, mixture, record, options, components))
    if dataset:
        dataset_id = repo_id_of("dataset", repo_id)
        repos.append(plan_dataset(plain_folder(folder, "evaluation"), dataset_id, record, options, mixture))
    figure = plain_file(folder, FIGURE)
    base = None
    for path in layout.policies:
        name = path.name if path != folder else slug(record.policy.get("name", "") or "aligned")
        kind = "base" if name == "reference" else "policy"
        links = {"mixture": mixture, "dataset": dataset_id, "figure": figure} if kind == "policy" else {}
        # Policies of one folder start from its reference policy, unless they say otherwise.
        plan = plan_policy(
            path, repo_id_of(kind, repo_id, name), name, record, options, kind=kind, fallback_base=base, **links
        )
        base = plan.repo_id if kind == "base" else base
        repos.append(plan)
    if space is not None:
        shown = [plan.repo_id for plan in repos if plan.repo_type == "model"]
        sets = [dataset_id] if dataset_id else []
        groups = facts.groups_of(record.evaluation)
        repos.append(
            plan_space(space, repo_id_of("space", repo_id), options, models=shown, datasets=sets, groups=groups)
        )
    if not repos:
        raise ValueError(
            f"{folder} holds nothing to push: no mixture/, no components/, no policies/, and it is no model itself."
        )
    bases = [options.base_model, record.reward.get("base_model"), record.policy.get("base_model")]
    extra = [(name, "model", BASE_NOTE) for name in dict.fromkeys(bases) if is_hub_id(name)]
    namespace, title = repo_id.split("/")
    left_out = layout.left_out(dataset, options.value_head) + (_left_in_app(Path(space), options) if space else [])
    return OutputPlan(in_order(repos), title, namespace, extra, left_out)


def plan_single_model(folder: str | os.PathLike[str], repo_id: str, options: PushOptions | None = None) -> OutputPlan:
    """A folder that is one mixture or one policy, as one repository of exactly this id.

    Raises:
        ValueError: the folder is no model, or as [`plan_output_folder`].
    """
    folder, options = Path(folder), options or PushOptions()
    check_repo_id(repo_id)
    record, layout = (read_record(folder) if folder.is_dir() else None) or RunRecord(), _Layout(folder)
    if layout.mixture == folder:
        plan = plan_mixture(folder, repo_id, record, options)
    elif _kind(folder) == "policy":
        name = record.policy.get("name") or folder.resolve().name
        plan = plan_policy(folder, repo_id, name, record, options)
    else:
        raise ValueError(f"{folder} is neither a mixture nor a policy. Leave --exact out to push a whole run.")
    namespace, title = repo_id.split("/")
    return OutputPlan([plan], title, namespace, left_out=layout.left_out(False, options.value_head))


class _Layout:
    """What is where in an output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mixture = plain_folder(folder, "mixture")
        self.mixture = next((path for path in (mixture, folder) if path and _kind(path) == "mixture"), None)
        self.components = _models(folder, "components")
        policies = _models(folder, "policies")
        # The reference first: others name it as their base.
        self.policies = sorted(policies, key=lambda path: path.name != "reference")
        if _kind(folder) == "policy":
            self.policies.append(folder)

    def left_out(self, dataset: bool, value_head: bool) -> list[str]:
        """What stays, of the folder and of its evaluation."""
        taken = {"mixture", "components", "policies", FIGURE, RUN_RECORD_NAME, *(["evaluation"] if dataset else [])}
        if self.folder in (self.mixture, *self.policies):
            taken |= {CARD, TEMPLATES_FOLDER, *model_files(self.folder)}
            taken |= {BASE_FOLDER} if self.folder == self.mixture else set()
            taken |= {VALUE_HEAD, VALUE_MODEL_FOLDER} if value_head else set()
        stays = _names_in(self.folder, taken)
        if dataset and (evaluation := plain_folder(self.folder, "evaluation")) is not None:
            taken = {RUN_RECORD_NAME, *evaluation_files(evaluation)}
            stays += [f"evaluation/{name}" for name in _names_in(evaluation, taken)]
        return stays


def _names_in(folder: Path, taken: set[str]) -> list[str]:
    entries = (entry for entry in folder.iterdir() if entry.name not in taken and not entry.name.startswith("."))
    return sorted(entry.name + "/" * entry.is_dir() for entry in entries)


def _left_in_app(folder: Path, options: PushOptions) -> list[str]:
    """What of an app's folder stays, and may be missed there."""
    taken = {CARD, *APP_FILES, *(name.split("/")[0] for name in options.space_files)}
    names = [name for name in _names_in(folder, taken) if not name.startswith("__")]
    return [f"{folder.name}/{name}" for name in names]


def _models(folder: Path, name: str) -> list[Path]:
    below = plain_folder(folder, name)
    found = sorted(below.iterdir()) if below is not None else []
    return [path for path in found if path.is_dir() and plain_folder(folder, f"{name}/{path.name}") and _kind(path)]


def _kind(folder: Path) -> str | None:
    """`"mixture"`, `"policy"` (or any other model), `None` for what is no model."""
    if plain_file(folder, "adapter_config.json") is not None:
        return "policy"
    if (path := plain_file(folder, "config.json")) is None:
        return None
    return "mixture" if read_json_object(path).get("model_type") == "mixture_reward" else "policy"
