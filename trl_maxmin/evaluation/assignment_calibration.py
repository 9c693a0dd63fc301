# SPDX-License-Identifier: Apache-2.0
"""Whether the groups that [`diagnose`] found are people's own: how often two halves of a person's pairs agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..functional.feature_pairs import FeaturePairs
from ..functional.feature_rankings import FeatureRankings
from ..functional.group_floor import has_evidence
from ..trainer.reward.sureness import scores_of_new_people, weigh_evidence
from .results import table


def assignment_calibration(
    pairs: FeaturePairs | FeatureRankings, prior_scale: float, posterior: np.ndarray, seed: int
) -> dict[str, Any] | None:
    """The weight of an annotator's pairs, and the calibration of assignments under it.

    Args:
        pairs ([`FeaturePairs`] or [`FeatureRankings`]): that assigned the annotators.
        prior_scale (`float`): of the rewards.
        posterior (`np.ndarray` of shape `(H, K)`): of each annotator.
        seed (`int`): of folds and halves.

    Returns:
        `dict`: [`EvidenceWeight.to_dict`]; `None` for one group, or where too few annotators have pairs of texts
        apart.
    """
    if posterior.shape[1] < 2:
        return None
    of_annotator = torch.tensor(posterior)
    scores = scores_of_new_people(pairs, of_annotator[pairs.annotator_index], prior_scale, seed)
    found = weigh_evidence(scores, pairs.sides.unbind(1), pairs.annotator_index, of_annotator.mean(0), seed)
    return found.to_dict() if found else None


def calibration_lines(found: dict[str, Any], unit: str = "pair") -> list[str]:
    """Words and the table, in Markdown; rows of the data are pairs or rankings."""
    rows = [
        [f"{entry['expected']:.2f}", f"{entry['observed']:.2f}", f"{entry['standard_error']:.2f}"]
        + [str(entry["num_annotators"])]
        for entry in found["curve"]
    ]
    lines = [
        f"How sure assignments are: each {unit} of an annotator counts {found['weight']:.2f} (1: a plain product of "
        f"likelihoods). Two halves of a person's {unit}s, of other texts each, give the same group in "
        f"{100 * found['observed']:.1f} % of {found['num_annotators']} annotators; posteriors announce "
        f"{100 * found['expected']:.1f} % (counted whole: {100 * found['observed_unweighted']:.1f} % and "
        f"{100 * found['expected_unweighted']:.1f} %).",
        "",
    ]
    if found["says_nothing"]:
        lines += ["**That is no more than for halves of two strangers: these groups are not people's own.**", ""]
    return lines + table(["agreement expected", "observed", "standard error", "annotators"], rows)


def group_sizes(annotator: np.ndarray, memberships: np.ndarray) -> tuple[list[int], list[int], list[bool]]:
    """Of each group: annotators, pairs, and whether these are enough for it to be the worst-off group.

    Args:
        annotator (`np.ndarray` of shape `(N,)`): of each pair.
        memberships (`np.ndarray` of shape `(N, K)`): of each pair.
    """
    best, size = memberships.argmax(axis=1), memberships.shape[1]
    people = [len(np.unique(annotator[best == k])) for k in range(size)]
    pairs = np.bincount(best, minlength=size).tolist()
    return people, pairs, has_evidence(people, pairs).tolist()
