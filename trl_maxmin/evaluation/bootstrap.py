# SPDX-License-Identifier: Apache-2.0
"""Paired bootstrap over prompts: intervals of means and of what the worst-off group gets, and p-values of differences.

What is resampled is the prompt, with all its replies, groups and policies at once: two policies that answer the same
prompts are compared on the same resamples, and several replies to one prompt do not count as independent evidence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..data.texts import number_values


AGGREGATES = ("group_min", "difference", "ratio", "mean", "weighted_mean")
_SMALLEST_SPREAD = 0.3
"""A resample's standard error counts as at least this share of the data's: sparse outcomes give resamples without any
spread, whose studentized value would be infinite."""


@dataclass(frozen=True)
class Interval:
    """A number with its interval.

    Args:
        mean (`float`): the estimate.
        low (`float`): lower end.
        high (`float`): upper end.
    """

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """`{"mean": ..., "low": ..., "high": ...}`, as reports and the run record hold it."""
        return asdict(self)


@dataclass(frozen=True)
class PairedDifference(Interval):
    """A difference between two policies on the same prompts.

    Args:
        p_value (`float`): two-sided, for the hypothesis that the difference is 0; never 0. Below `1 - level` exactly
            where the interval leaves 0 out (up to one resample).
    """

    p_value: float


class PromptBootstrap:
    """One set of resamples of the prompts, used for everything that is measured on them.

    Args:
        clusters (`Sequence` of N hashable values, or `int`): the prompt of each row; a number N says that every row is
            a prompt of its own.
        num_resamples (`int`, *optional*, defaults to 2000): resamples, at least 100.
        level (`float`, *optional*, defaults to 0.95): coverage of the intervals, in (0, 1).
        seed (`int`, *optional*, defaults to 0): of the resamples.

    Raises:
        ValueError: fewer than two prompts, fewer than 100 resamples, or a level outside (0, 1).

    Example:

    >>> bootstrap = PromptBootstrap(4, seed=0)
    >>> bootstrap.difference([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    PairedDifference(mean=0.0, low=0.0, high=0.0, p_value=1.0)
    """

    def __init__(
        self, clusters: Sequence[object] | int, num_resamples: int = 2000, level: float = 0.95, seed: int = 0
    ) -> None:
        if num_resamples < 100:
            raise ValueError(f"num_resamples must be at least 100, got {num_resamples}; 2000 is the default.")
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}; 0.95 is the default.")
        names = range(clusters) if isinstance(clusters, int) else clusters
        self.rows = np.array(number_values(names), dtype=np.int64)
        self.num_prompts = int(self.rows.max(initial=-1)) + 1
        if self.num_prompts < 2:
            raise ValueError(f"An interval needs at least 2 different prompts, got {self.num_prompts}; give more.")
        self.level, self.num_resamples = level, num_resamples
        generator = np.random.default_rng(seed)
        share = np.full(self.num_prompts, 1 / self.num_prompts)
        self._counts = generator.multinomial(self.num_prompts, share, size=num_resamples).astype(np.float64)

    def _sums(self, values: np.ndarray) -> np.ndarray:
        sums = np.zeros((self.num_prompts, *values.shape[1:]))
        np.add.at(sums, self.rows, values)
        return sums

    def _checked(self, values: Sequence[float] | np.ndarray, name: str, dimensions: int = 1) -> np.ndarray:
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != dimensions or len(array) != len(self.rows):
            shape = "(N,)" if dimensions == 1 else "(N, G)"
            raise ValueError(f"{name} must have shape {shape} with N = {len(self.rows)} rows, got {array.shape}.")
        if np.isnan(array).all(axis=0).any():
            raise ValueError(f"{name} has no number at all; score the replies first.")
        if np.isinf(array).any():
            raise ValueError(f"{name} has infinite values; scores must be finite or NaN (not scored).")
        return array

    def _influence(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means (G), and what each prompt adds to them (P, G): the mean of that is 0, its spread their error."""
        known = ~np.isnan(values)
        sums, sizes = self._sums(np.where(known, values, 0.0)), self._sums(known.astype(np.float64))
        # The mean is a ratio of sums over prompts; its error comes from each prompt's residual from that ratio.
        mean = sums.sum(axis=0) / sizes.sum(axis=0)
        return mean, (sums - mean * sizes) / sizes.mean(axis=0)

    def _studentized(self, influence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standard errors (S), and the studentized deviation of every resample (B, S).

        Source: P. Hall, Annals of Statistics 16, 1988 (bootstrap-t), with the standard error bounded from below.
        """
        errors = np.sqrt((influence**2).mean(axis=0) / self.num_prompts)
        shift = (self._counts @ influence) / self.num_prompts
        squares = (self._counts @ influence**2) / self.num_prompts - shift**2
        resampled = np.sqrt(np.maximum(squares, 0.0) / self.num_prompts)
        return errors, shift / np.maximum(np.maximum(resampled, _SMALLEST_SPREAD * errors), 1e-300)

    def mean(self, values: Sequence[float]) -> Interval:
        """Mean of the rows with a symmetric studentized interval.

        Args:
            values (`Sequence[float]` of shape `(N,)`): NaN: not scored, does not count.

        Raises:
            ValueError: a wrong shape, nothing but NaN, or infinite values.
        """
        own = self._symmetric(*self._influence(self._checked(values, "values")[:, None]))
        return Interval(own.mean, own.low, own.high)

    def difference(self, values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
        """Mean of `values - baseline`, row by row.

        Args:
            values (`Sequence[float]` of shape `(N,)`): of one policy.
            baseline (`Sequence[float]` of shape `(N,)`): of the other, for the same prompts. A row in which either is
                NaN does not count.

        Raises:
            ValueError: as [`~PromptBootstrap.mean`].
        """
        pairs = self._checked(values, "values") - self._checked(baseline, "baseline")
        return self._symmetric(*self._influence(self._checked(pairs, "values - baseline")[:, None]))

    def _symmetric(self, mean: np.ndarray, influence: np.ndarray) -> PairedDifference:
        """Of one number: the interval that is symmetric about it, and the level at which it just reaches 0."""
        value = float(mean.item())
        errors, t = self._studentized(influence)
        error = float(errors[0])
        if error <= 1e-12 * max(1.0, abs(value)):
            return PairedDifference(
                value, value, value, self._p_value(t[:, 0], 0.0 if abs(value) <= 1e-12 else np.inf)
            )
        half = float(np.quantile(np.abs(t[:, 0]), self.level, method="weibull")) * error
        return PairedDifference(value, value - half, value + half, self._p_value(t[:, 0], abs(value) / error))

    def _p_value(self, t: np.ndarray, critical: float) -> float:
        return (1 + int((np.abs(t) >= critical).sum())) / (self.num_resamples + 1)

    def aggregates(
        self,
        values: np.ndarray,
        weights: Sequence[float] | None = None,
        bounds: tuple[float, float] | None = None,
        counted: Sequence[int] | None = None,
    ) -> dict[str, Interval]:
        """What the groups get together: the worst-off, the gap, the mean.

        A minimum of noisy means lies too low where groups are close, and its plain bootstrap lies too low once more.
        So the interval of `group_min` is made of the groups' own: it ends where the lowest of theirs ends. The upper
        end takes the larger critical value that holds for all groups together, since each of them may be the one that
        ends too low. `difference` and `ratio` are a maximum and a minimum over pairs of groups, and treated alike.

        Args:
            values (`np.ndarray` of shape `(N, G)`): of one policy, one column a group, all in the same unit.
            weights (`Sequence[float]` of length G, *optional*): shares, for `weighted_mean`; they are normalised.
            bounds (`(float, float)`, *optional*): range of the unit, such as (0, 1) of win rates; `ratio` is given
                only where values cannot be negative.
            counted (`Sequence[int]`, *optional*): columns of the groups among which the worst and the best are looked
                for, at least one; means are of all. Default: all.

        Returns:
            `dict` from `"group_min"`, `"difference"` (best-off minus worst-off), `"ratio"` (worst-off over best-off),
            `"mean"` and `"weighted_mean"` to [`Interval`]; what cannot be given is absent.

        Raises:
            ValueError: as [`~PromptBootstrap.mean`], or weights that are not one non-negative number a group.

        Source: of intervals for a minimum, Chernozhukov, Lee and Rosen, Econometrica 81, 2013 (intersection bounds).

        Example:

        >>> values = np.random.default_rng(0).normal([1.0, 0.0], 1.0, size=(200, 2))
        >>> worst = PromptBootstrap(200).aggregates(values)["group_min"]
        >>> worst.low < 0 < worst.high
        True
        """
        shares = _shares(weights, np.asarray(values).shape[-1])
        every, all_influence = self._influence(self._checked(values, "values", 2))
        columns = list(range(len(every)) if counted is None else counted)
        mean, influence = every[columns], all_influence[:, columns]
        result = {"group_min": self._minimum(mean, influence, bounds)}
        # Ordered pairs of different groups; one group is its own pair.
        pairs = list(itertools.permutations(range(len(mean)), 2)) or [(0, 0)]
        first, second = (list(side) for side in zip(*pairs, strict=True))
        width = None if bounds is None else (bounds[0] - bounds[1], 0.0)
        gap = self._minimum(mean[first] - mean[second], influence[:, first] - influence[:, second], width)
        result["difference"] = Interval(0.0 - gap.mean, max(0.0, -gap.high), 0.0 - gap.low)
        if bounds is not None and bounds[0] >= 0 and mean.min() > 0:
            # In logarithms the two ratios of a pair mirror each other, and d log a = da / a.
            log, change = np.log(mean), influence / mean
            ratio = self._minimum(log[first] - log[second], change[:, first] - change[:, second], (-np.inf, 0.0))
            result["ratio"] = Interval(*(float(np.exp(end)) for end in (ratio.mean, ratio.low, ratio.high)))
        for name, share in (("mean", np.full(len(every), 1 / len(every))), ("weighted_mean", shares)):
            if share is not None:
                whole = self._symmetric(every @ share, (all_influence @ share)[:, None])
                low, high = _clip(whole.low, whole.high, bounds)
                result[name] = Interval(whole.mean, low, high)
        return result

    def _minimum(self, mean: np.ndarray, influence: np.ndarray, bounds: tuple[float, float] | None) -> Interval:
        errors, t = self._studentized(influence)
        own = np.quantile(np.abs(t), self.level, axis=0, method="weibull")
        together = float(np.quantile((-t).max(axis=1), self.level, method="weibull"))
        low, high = (mean - own * errors).min(), (mean + np.maximum(own, together) * errors).min()
        low, high = _clip(float(low), float(high), bounds)
        value = float(mean.min())
        return Interval(value, min(low, value), max(high, value))

    def aggregate_differences(
        self,
        values: np.ndarray,
        baseline: np.ndarray,
        weights: Sequence[float] | None = None,
        counted: Sequence[int] | None = None,
    ) -> dict[str, PairedDifference]:
        """How much more the worst-off group of one policy gets than that of another, and the same of means.

        The worst-off groups need not be the same: `group_min` is the least over groups of what a policy gives, less
        the least over groups of what the baseline gives.

        Args:
            values (`np.ndarray` of shape `(N, G)`): of one policy.
            baseline (`np.ndarray` of shape `(N, G)`): of the other, for the same prompts.
            weights (`Sequence[float]` of length G, *optional*): shares, for `weighted_mean`.
            counted (`Sequence[int]`, *optional*): as in [`~PromptBootstrap.aggregates`].

        Returns:
            `dict` from `"group_min"`, `"mean"` and `"weighted_mean"` to [`PairedDifference`].

        Raises:
            ValueError: as [`~PromptBootstrap.aggregates`].
        """
        shares = _shares(weights, np.asarray(values).shape[-1])
        every, all_influence = self._influence(self._checked(values, "values", 2))
        baselines, all_other_influence = self._influence(self._checked(baseline, "baseline", 2))
        columns = list(range(len(every)) if counted is None else counted)
        mean, influence, size = every[columns], all_influence[:, columns], len(columns)
        other, other_influence = baselines[columns], all_other_influence[:, columns]
        first, second = np.repeat(np.arange(size), size), np.tile(np.arange(size), size)
        pairs = (mean[first] - other[second]).reshape(size, size)
        errors, t = self._studentized(influence[:, first] - other_influence[:, second])
        own = np.quantile(np.abs(t), self.level, axis=0, method="weibull")

        def bound(critical: np.ndarray | float) -> float:
            # min_g a_g - min_h b_h = min over g of max over h of (a_g - b_h).
            return float((pairs + (critical * errors).reshape(size, size)).max(axis=1).min())

        value = bound(0.0)
        chosen = int(mean.argmin()) * size + int(other.argmin())
        critical = _root(lambda c: bound(-np.sign(value) * c) * np.sign(value)) if value else 0.0
        p_value = self._p_value(t[:, chosen], critical)
        result = {"group_min": PairedDifference(value, bound(-own), bound(own), p_value)}
        for name, share in (("mean", np.full(len(every), 1 / len(every))), ("weighted_mean", shares)):
            if share is not None:
                change = (all_influence - all_other_influence) @ share
                result[name] = self._symmetric((every - baselines) @ share, change[:, None])
        return result


def _root(function: Callable[[float], float]) -> float:
    """Where a falling function that is positive at 0 reaches 0; infinite beyond 100."""
    low, high = 0.0, 100.0
    if function(high) > 0:
        return np.inf
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return high


def _shares(weights: Sequence[float] | None, size: int) -> np.ndarray | None:
    if weights is None:
        return None
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (size,) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise ValueError(f"weights must be {size} non-negative numbers, not all 0, one a group; got {weights}.")
    return shares / shares.sum()


def _clip(low: float, high: float, bounds: tuple[float, float] | None) -> tuple[float, float]:
    return (low, high) if bounds is None else (max(low, bounds[0]), min(high, bounds[1]))
