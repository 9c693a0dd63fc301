# SPDX-License-Identifier: Apache-2.0
"""Pushing a mixture that is in memory: it is written to a temporary folder first, as it would be to disk."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..run_record import RUN_RECORD_NAME, RunRecord
from .cards import CARD
from .faults import ask
from .files import check_repo_id, slug
from .plan import PushOptions, plan_component, plan_mixture
from .push import Published, publish


def push_mixture(
    mixture: Any,
    repo_id: str,
    record: RunRecord | None,
    options: dict[str, Any],
    where: dict[str, Any],
    max_shard_size: int | str | None,
) -> Published:
    """See `MixtureRewardModel.push_to_hub`."""
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        mixture.save_pretrained(folder, **sharding)
        if (card := _beside(mixture, CARD, where["token"])) is not None:
            shutil.copyfile(card, Path(folder, CARD))  # what it says beyond the record is kept
        record = record or _record_of(mixture, where["token"])
        plan = plan_mixture(folder, repo_id, record, PushOptions(**options))
        return publish([plan], **where)[0]


def push_components(
    mixture: Any, repo_id: str, record: RunRecord | None, options: dict[str, Any], where: dict[str, Any]
) -> list[Published]:
    """See `MixtureRewardModel.push_components_to_hub`."""
    names = mixture.component_names
    if "{name}" not in repo_id:
        raise ValueError(
            f"repo_id={repo_id!r} has no {{name}}, but there are {len(names)} components. Write it as in "
            "'me/film-reward-{name}'."
        )
    ids = {name: check_repo_id(repo_id.replace("{name}", slug(name))) for name in names}
    record = record or _record_of(mixture, where["token"])
    # Of a mixture without a record, the names are still known.
    record = RunRecord.from_dict(record.to_dict())
    record.update("reward", num_components=len(names), component_names=record.reward.get("component_names", names))
    with tempfile.TemporaryDirectory() as parent:
        plans = []
        for name in names:
            folder = Path(parent) / slug(name)
            mixture.save_component(name, folder)
            plans.append(plan_component(folder, ids[name], name, record, PushOptions(**options)))
        return publish(plans, **where)


def _record_of(mixture: Any, token: str | bool | None) -> RunRecord:
    """The record beside the files that the mixture was loaded from, an empty one where there is none."""
    path = _beside(mixture, RUN_RECORD_NAME, token)
    return RunRecord.load(path) if path is not None else RunRecord()


def _beside(mixture: Any, name: str, token: str | bool | None) -> Path | None:
    """A file beside those that the mixture was loaded from, in a folder or on the Hub, of the same commit."""
    place = dict(mixture._origin)
    source = place.pop("name", None)
    if source is None:
        return None
    if Path(source).is_dir():
        path = Path(source, place.get("subfolder", ""), name)
        return path if path.is_file() else None

    def find() -> Path | None:
        try:
            return Path(hf_hub_download(source, name, token=token, **place))
        except LocalEntryNotFoundError:  # not to be asked for
            raise
        except EntryNotFoundError:
            return None

    return ask(f"Downloading {name} of {source}", find)
