# SPDX-License-Identifier: Apache-2.0
"""How well components that EM learned agree with groups that were planted or labelled.

Components come in no particular order, so every measure here is the same whichever way they are numbered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np

from ..data.texts import number_values


MAX_LABELS = 8


def _contingency(
    predicted: Sequence[Hashable], planted: Sequence[Hashable]
) -> tuple[np.ndarray, list[Hashable], list[Hashable]]:
    """Counts (components, groups) and the labels of both sides, in order of appearance."""
    predicted, planted = (
        [item.item() if hasattr(item, "item") else item for item in side] for side in (predicted, planted)
    )
    if len(predicted) != len(planted) or not predicted:
        raise ValueError(f"needs one prediction and one group per annotator, got {len(predicted)} and {len(planted)}")
    components, groups = list(dict.fromkeys(predicted)), list(dict.fromkeys(planted))
    counts = np.zeros((len(components), len(groups)), dtype=np.int64)
    np.add.at(counts, (number_values(predicted), number_values(planted)), 1)
    return counts, components, groups


def _best_matching(counts: np.ndarray) -> list[tuple[int, int]]:
    size = max(counts.shape)
    if size > MAX_LABELS:
        raise ValueError(f"matching tries every order and takes at most {MAX_LABELS} components or groups, got {size}")
    square = np.zeros((size, size), dtype=np.int64)
    square[: counts.shape[0], : counts.shape[1]] = counts
    orders = np.array(list(itertools.permutations(range(size))))
    best = orders[square[np.arange(size), orders].sum(axis=1).argmax()]
    return [(row, int(best[row])) for row in range(counts.shape[0]) if best[row] < counts.shape[1]]


def match_components(predicted: Sequence[Hashable], planted: Sequence[Hashable]) -> dict[Hashable, Hashable]:
    """Which group each component stands for: the one-to-one matching that puts most annotators in their own group.

    Args:
        predicted (`Sequence` of length H): component of each annotator (index or name).
        planted (`Sequence` of length H): group of each annotator.

    Returns:
        `dict` component -> group. With more components than groups some components are left out; with more groups than
        components some groups are. A component without annotators does not occur.

    Raises:
        ValueError: lengths that differ, no annotators, or more than 8 components or groups.

    Example:

    >>> match_components([1, 1, 0, 1], ["concise", "concise", "positive", "positive"])
    {1: 'concise', 0: 'positive'}
    """
    counts, components, groups = _contingency(predicted, planted)
    return {components[row]: groups[column] for row, column in _best_matching(counts)}


def assignment_accuracy(predicted: Sequence[Hashable], planted: Sequence[Hashable]) -> float:
    """Share of annotators whose component stands for their group, under the best one-to-one matching.

    Args:
        predicted (`Sequence` of length H): component of each annotator (index or name).
        planted (`Sequence` of length H): group of each annotator.

    Returns:
        `float` in (0, 1]. Chance is not 0: putting everybody in one component gives the share of the largest group,
        which is why [`adjusted_rand_index`] stands beside it.

    Raises:
        ValueError: lengths that differ, no annotators, or more than 8 components or groups.

    Example:

    >>> assignment_accuracy([1, 1, 0, 1], ["concise", "concise", "positive", "positive"])
    0.75
    """
    counts, _, _ = _contingency(predicted, planted)
    return float(sum(counts[cell] for cell in _best_matching(counts)) / counts.sum())


def adjusted_rand_index(predicted: Sequence[Hashable], planted: Sequence[Hashable]) -> float:
    """Agreement of two partitions of the annotators, corrected for chance (Hubert and Arabie, 1985).

    Args:
        predicted (`Sequence` of length H): component of each annotator.
        planted (`Sequence` of length H): group of each annotator.

    Returns:
        `float` in [-0.5, 1]: 1 for the same partition, also a trivial one; about 0 for an unrelated one.

    Raises:
        ValueError: lengths that differ or no annotators.

    Example:

    >>> adjusted_rand_index([0, 0, 1, 1], ["b", "b", "a", "a"])
    1.0
    """
    counts, _, _ = _contingency(predicted, planted)

    def pairs(numbers: np.ndarray) -> int:
        return sum(math.comb(int(number), 2) for number in numbers.ravel())

    together, of_rows, of_columns = pairs(counts), pairs(counts.sum(axis=1)), pairs(counts.sum(axis=0))
    everyone = math.comb(int(counts.sum()), 2)
    if of_rows == of_columns and of_rows in (0, everyone):
        return 1.0
    expected = of_rows * of_columns / everyone
    return (together - expected) / ((of_rows + of_columns) / 2 - expected)
