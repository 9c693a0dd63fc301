# SPDX-License-Identifier: Apache-2.0
"""Whose pair each row is: from a column of groups, or from what EM says of the annotators.

Annotators are named in the memory of this process only: what is handed to TRL has responsibilities in their place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset

from ...data.columns import ANNOTATOR_COLUMN, AnnotatorIndex, is_known_group, require_group_column
from ...models import AnnotatorPosterior, MixtureRewardModel
from ...models.base import pick_device, place
from ...reading import read_json_object
from .maxmin_dpo_config import MaxMinDPOConfig


logger = get_logger(__name__)

#: Column of a prepared row: `(K,)`, of which group it is.
RESPONSIBILITIES = "responsibilities"
#: Probability below which a pair is not trained on for one group.
LEAST = 0.01
#: What TRL's DPO reads of a row.
_READ = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", RESPONSIBILITIES)
_HOW = (
    "Name a column of known groups by `group_column`, or give `assignments`: a `MixtureRewardModel` or its folder, or "
    "what `trl-maxmin assign` or `trl-maxmin reward` wrote of the annotators."
)

Assignments = str | os.PathLike | Mapping[Any, Any] | MixtureRewardModel


@dataclass
class Groups:
    """K groups, and how the rows of a data set are told to belong to them.

    Args:
        names (`list[str]`): K names.
        column (`str`, *optional*): of known groups.
        posterior (`dict[str, list[float]]`): annotator -> probabilities `(K,)`, where no column tells.
        component (`str`, *optional*): the one group that is trained for.

    Example:

    >>> groups = Groups(["a", "b"], posterior={"ann": [0.75, 0.25]})
    >>> groups.of(Dataset.from_list([{"annotator_id": "ann"}])).tolist()
    [[0.75, 0.25]]
    """

    names: list[str]
    column: str | None = None
    posterior: dict[str, list[float]] = field(default_factory=dict, repr=False)
    component: str | None = None

    @property
    def served(self) -> list[str]:
        """Names of the groups that are trained for: all, or the one."""
        return self.names if self.component is None else [self.component]

    def of(self, pairs: Dataset, shares: Sequence[float] | None = None) -> torch.Tensor:
        """Responsibilities of pairs.

        Args:
            pairs (`Dataset`): of [`prepare_pairs`].
            shares (`Sequence[float]` of length K, *optional*): of an annotator of whom nothing is known, in an
                evaluation.

        Returns:
            `torch.Tensor` of shape `(N, K)`, each row on the simplex.

        Raises:
            ValueError: a row without a group, of a group that is not among the names, or of an annotator who is not
                assigned.
        """
        if self.column is not None:
            return self._of_column(pairs)
        people = [str(annotator) for annotator in pairs[ANNOTATOR_COLUMN][:]]
        unknown = {annotator for annotator in people if annotator not in self.posterior}
        if unknown and shares is None:
            raise ValueError(
                f"{len(unknown)} of {len(set(people))} annotators of the training data are not among the assigned "
                "ones. Assign them (`trl-maxmin assign --reward_model MIXTURE` on these data), or leave their pairs "
                "out."
            )
        if unknown:
            logger.warning(f"{len(unknown)} annotators of the evaluation are not assigned; shares of groups stand in.")
        return torch.tensor([self.posterior.get(annotator, shares) for annotator in people])

    def _of_column(self, pairs: Dataset) -> torch.Tensor:
        require_group_column(self.column, ANNOTATOR_COLUMN, pairs.column_names)
        number = {name: k for k, name in enumerate(self.names)}
        rows = torch.zeros(len(pairs), len(self.names))
        for row, group in enumerate(pairs[self.column][:]):
            if not is_known_group(group):
                raise ValueError(
                    f"Row {row} has no group in column {self.column!r}; leave such rows out, or give `assignments` "
                    "of the annotators instead of `group_column`."
                )
            if str(group) not in number:
                raise ValueError(
                    f"Row {row} has the group {str(group)!r} in column {self.column!r}, which the training data do "
                    f"not have; they have {self.names}."
                )
            rows[row, number[str(group)]] = 1.0
        return rows

    def rows(self, pairs: Dataset, shares: Sequence[float] | None = None) -> Dataset:
        """Pairs as TRL gets them: prompt, replies and responsibilities, nothing that names somebody.

        Where one group is trained for, its pairs with how probable they are its own.

        Raises:
            ValueError: as [`~Groups.of`]; no pair of that group.
        """
        told = self.of(pairs, shares)
        kept = pairs.select_columns([name for name in _READ if name in pairs.column_names])
        if self.component is not None:
            told = told[:, [self.names.index(self.component)]]
            own = (told[:, 0] >= LEAST).nonzero().flatten()
            if not len(own):
                raise ValueError(f"No pair is of component {self.component!r}; the groups are {self.names}.")
            told, kept = told[own], kept.select(own.tolist())
        return kept.add_column(RESPONSIBILITIES, told.tolist())

    def annotators(self, pairs: Dataset) -> list[int]:
        """How many people each group describes, by their most probable group."""
        index = AnnotatorIndex.from_values(pairs[ANNOTATOR_COLUMN][:])
        people = torch.tensor(index.encode(pairs[ANNOTATOR_COLUMN][:]))
        rows = self.of(pairs, [1 / len(self.names)] * len(self.names))
        sums = torch.zeros(len(index), len(self.names)).index_add(0, people, rows)
        return torch.bincount(sums.argmax(-1), minlength=len(self.names)).tolist()


def groups_of(pairs: Dataset, args: MaxMinDPOConfig, assignments: Assignments | None) -> Groups:
    """The groups of a run, from its training data.

    Args:
        pairs (`Dataset`): of [`prepare_pairs`].
        args ([`MaxMinDPOConfig`]): `group_column` and `component` are read.
        assignments (*optional*): a mixture or its folder, which assigns the annotators by these pairs; a JSON file of
            `trl-maxmin assign` or `reward`; or a dict from annotators to a component's name, or to probabilities by
            name.

    Raises:
        ValueError: neither or both of column and assignments, a column that is not there or names nobody,
            assignments that cannot be read, or a component that is none of the groups.
        OSError: a file or a mixture that is not there.
    """
    groups = _all_groups(pairs, args, assignments)
    if args.component is not None and args.component not in groups.names:
        raise ValueError(f"`component` is {args.component!r}, which is none of the groups {groups.names}.")
    groups.component = args.component
    return groups


def _all_groups(pairs: Dataset, args: MaxMinDPOConfig, assignments: Assignments | None) -> Groups:
    if (args.group_column is None) == (assignments is None):
        found = "neither `group_column` nor `assignments`" if assignments is None else "both"
        raise ValueError(f"Group-robust DPO has to know the groups, and got {found}. {_HOW}")
    if args.group_column is not None:
        require_group_column(args.group_column, ANNOTATOR_COLUMN, pairs.column_names)
        known = [str(group) for group in pairs[args.group_column][:] if is_known_group(group)]
        if not known:
            raise ValueError(f"Column {args.group_column!r} names no group in any of {len(pairs)} rows. {_HOW}")
        return Groups(list(dict.fromkeys(known)), column=args.group_column)
    if isinstance(assignments, MixtureRewardModel):
        found = assignments.assign(pairs)
        return Groups(list(assignments.component_names), posterior=_by_annotator(found))
    if isinstance(assignments, str | os.PathLike):
        if not Path(assignments).is_file():
            if str(assignments).endswith(".json"):
                raise FileNotFoundError(f"`assignments` is {os.fspath(assignments)!r}: there is no such file. {_HOW}")
            mixture = MixtureRewardModel.from_pretrained(assignments, argument="`assignments`")
            place(mixture, pick_device())
            return _all_groups(pairs, args, mixture)
        assignments = read_json_object(Path(assignments))
    return _from_table(assignments)


def _by_annotator(posterior: AnnotatorPosterior) -> dict[str, list[float]]:
    return {
        str(annotator): row
        for annotator, row in zip(posterior.annotator_ids, posterior.probabilities.tolist(), strict=True)
    }


def _from_table(table: Any) -> Groups:
    """Assignments by annotator: names, probabilities by name, or the entries of `trl-maxmin assign`."""
    if not isinstance(table, Mapping) or not table:
        raise ValueError(f"`assignments` is {type(table).__name__} without an entry for anybody. {_HOW}")
    told = {}
    for annotator, entry in table.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("probabilities"), Mapping):
            entry = entry["probabilities"]
        told[str(annotator)] = {entry: 1.0} if isinstance(entry, str) else entry
        if not _is_distribution(told[str(annotator)]):
            # Whom it is about is not for a log.
            raise ValueError(
                f"An entry of `assignments` is {entry!r}, but must be the name of a component, or probabilities by "
                "name that sum to 1, as `trl-maxmin assign` writes them."
            )
    names = sorted({name for entry in told.values() for name in entry})
    if any(isinstance(entry, Mapping) and len(entry) > 1 for entry in told.values()):
        names = list(dict.fromkeys(name for entry in told.values() for name in entry))
    posterior = {
        annotator: [entry.get(name, 0.0) / sum(entry.values()) for name in names] for annotator, entry in told.items()
    }
    return Groups(names, posterior=posterior)


def _is_distribution(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and all(isinstance(p, int | float) and 0 <= p <= 1 for p in entry.values())
        and abs(sum(entry.values()) - 1) < 1e-3
    )
