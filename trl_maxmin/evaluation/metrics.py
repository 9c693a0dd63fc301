# SPDX-License-Identifier: Apache-2.0
"""Win rates per group with intervals, and what the worst-off group gets.

The names `by_group`, `group_min`, `difference` and `ratio` mean what they mean in fairlearn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.texts import number_values
from .bootstrap import Interval


Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class GroupWinRate(Interval):
    """How often a group prefers the policy's reply to the reference's, ties counting half.

    Args:
        mean (`float`): win rate in [0, 1].
        low, high (`float`): ends of the 95 % interval.
    """


def _utilities(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must have shape (P,) with P >= 1, got {array.shape}")
    if np.isnan(array).any():
        raise ValueError(
            f"{name} has {int(np.isnan(array).sum())} NaN of {len(array)}; score or leave out these prompts"
        )
    return array


def win_rate(
    policy_utility: Sequence[float], reference_utility: Sequence[float], clusters: Sequence[object] | None = None
) -> GroupWinRate:
    """Win rate of a policy against the reference on the same prompts, with a 95 % interval.

    Each prompt counts 1 for a win, 0.5 for a tie and 0 for a loss. The interval is Wilson's score interval (1927),
    which stays inside [0, 1] and has a width even when every prompt is won. Where the same prompt was drawn several
    times, its outcomes are not independent: `clusters` says which rows belong together, and the sample size is divided
    by the design effect (the clustered variance over the variance of independent outcomes), if that is above 1. Where
    all rows are won, or all lost, no variance can be estimated and only distinct prompts count.

    Args:
        policy_utility (`Sequence[float]` of shape (P,)): utility of the policy's reply to each prompt, in any unit;
            higher is better.
        reference_utility (`Sequence[float]` of shape (P,)): utility of the reference's reply to the same prompts.
        clusters (`Sequence` of P hashable values, *optional*): the prompt of each row. `None`: every row is a prompt
            of its own.

    Raises:
        ValueError: shapes that differ, no prompts, or NaN utilities.

    Example:

    >>> win_rate([3.0, 1.0, 2.0, 2.0], [1.0, 1.0, 1.0, 5.0])
    GroupWinRate(mean=0.625, low=0.219, high=0.908)
    """
    policy = _utilities(policy_utility, "policy_utility")
    reference = _utilities(reference_utility, "reference_utility")
    if len(policy) != len(reference):
        raise ValueError(f"policy_utility has {len(policy)} prompts, reference_utility {len(reference)}")
    outcome = (policy > reference) + 0.5 * (policy == reference)
    mean = float(outcome.mean())
    size = _effective_size(outcome, clusters)
    # Wilson: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    centre = (mean + Z_95**2 / (2 * size)) / (1 + Z_95**2 / size)
    half = Z_95 * math.sqrt(mean * (1 - mean) / size + (Z_95 / (2 * size)) ** 2) / (1 + Z_95**2 / size)
    # Rounding may carry the ends an ulp past 0, 1 or the mean itself.
    return GroupWinRate(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)))


def _effective_size(outcome: np.ndarray, clusters: Sequence[object] | None) -> float:
    size = float(len(outcome))
    if clusters is None:
        return size
    if len(clusters) != len(outcome):
        raise ValueError(f"clusters has {len(clusters)} values for {len(outcome)} prompts")
    mean = outcome.mean()
    sums = np.bincount(number_values(clusters), outcome - mean)
    independent = float(mean * (1 - mean)) / size
    if independent == 0 or len(sums) < 2:
        # All won or all lost, or one prompt only: nothing to estimate from, so only different prompts count.
        return float(len(sums))
    clustered = len(sums) / (len(sums) - 1) * float((sums**2).sum()) / size**2
    return size / max(1.0, clustered / independent)


def by_group(
    policy_utility: Mapping[str, Sequence[float]],
    reference_utility: Mapping[str, Sequence[float]],
    clusters: Sequence[object] | None = None,
) -> dict[str, GroupWinRate]:
    """[`win_rate`] for every group.

    Args:
        policy_utility (`Mapping[str, Sequence[float]]`): for each group, what it thinks of the policy's reply to each
            prompt, shape (P,).
        reference_utility (`Mapping[str, Sequence[float]]`): the same for the reference's replies.
        clusters (`Sequence` of P hashable values, *optional*): the prompt of each row.

    Returns:
        `dict[str, GroupWinRate]` in the order of `policy_utility`.

    Raises:
        ValueError: the two name different groups, or a group's utilities are refused by [`win_rate`].

    Example:

    >>> rates = by_group({"concise": [1, 1], "positive": [0, 1]}, {"concise": [0, 0], "positive": [1, 1]})
    >>> {group: rate.mean for group, rate in rates.items()}
    {'concise': 1.0, 'positive': 0.25}
    """
    if set(policy_utility) != set(reference_utility):
        raise ValueError(f"groups differ: policy {sorted(policy_utility)}, reference {sorted(reference_utility)}")
    return {group: win_rate(policy_utility[group], reference_utility[group], clusters) for group in policy_utility}


def _values(by_group: Mapping[str, float | GroupWinRate]) -> list[float]:
    if not by_group:
        raise ValueError("no groups given")
    values = {
        group: value.mean if isinstance(value, GroupWinRate) else float(value) for group, value in by_group.items()
    }
    # A minimum over NaN depends on the order, so a group of which nothing is known could pass unseen.
    if unknown := [group for group, value in values.items() if math.isnan(value)]:
        raise ValueError(f"the groups {unknown} have NaN; score them or leave them out")
    return list(values.values())


def group_min(by_group: Mapping[str, float | GroupWinRate]) -> float:
    """What the worst-off group gets; of a [`GroupWinRate`], its mean.

    Raises:
        ValueError: no groups, or a NaN.

    Example:

    >>> group_min({"concise": 0.96, "positive": 0.79})
    0.79
    """
    return min(_values(by_group))


def difference(by_group: Mapping[str, float | GroupWinRate]) -> float:
    """Best-off group minus worst-off group: 0 when all get the same.

    Raises:
        ValueError: no groups, or a NaN.

    Example:

    >>> difference({"concise": 0.75, "positive": 0.5})
    0.25
    """
    values = _values(by_group)
    return max(values) - min(values)


def ratio(by_group: Mapping[str, float | GroupWinRate]) -> float:
    """Worst-off group over best-off group, in [0, 1]; 1 when all get the same, also when all get 0.

    Raises:
        ValueError: no groups, a NaN, or a negative value (a ratio of utilities that may be negative says nothing).

    Example:

    >>> ratio({"concise": 0.8, "positive": 0.6})
    0.75
    """
    values = _values(by_group)
    if min(values) < 0:
        raise ValueError(
            f"ratio needs values that are not negative, such as win rates, got {min(values)}; use difference"
        )
    return min(values) / max(values) if max(values) > 0 else 1.0
