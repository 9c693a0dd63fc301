# SPDX-License-Identifier: Apache-2.0
"""Pushing a mixture that is in memory: it is written to a temporary folder first, as it would be to disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..run_record import RunRecord
from .cards import read_record
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
        plan = plan_mixture(folder, repo_id, record or _record_of(mixture), PushOptions(**options))
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
    record = record or _record_of(mixture)
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


def _record_of(mixture: Any) -> RunRecord:
    """The record beside the files that the mixture was loaded from, an empty one where there is none."""
    folder = Path(mixture.config.name_or_path or "")
    record = read_record(folder) if mixture.config.name_or_path and folder.is_dir() else None
    return record or RunRecord()
