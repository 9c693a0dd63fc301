# SPDX-License-Identifier: Apache-2.0
"""Welfare rules that look at the order of the groups, at a power of their gains, or at what each could have had.

Each returns the gradient of its welfare function on the simplex, so that a policy that climbs `sum_k w[k] u[k]` climbs
the welfare. NaN utilities are as in [`trl_maxmin.functional.welfare`].
"""

from collections.abc import Sequence

import torch

from .preference import require_shape
from .simplex import scored_components


def gini_weights(utilities: torch.Tensor, order_weights: Sequence[float] | None = None) -> torch.Tensor:
    """Weights by place: the first of `order_weights` to the worst-off component, the last to the best-off.

    The gradient of the generalised Gini welfare `sum_j a[j] U_(j)`, with `U_(1) <= U_(2) <= ...`. Components that are
    equally well off share the weights of their places.

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities, higher is better. NaN: weight 0.
        order_weights (`Sequence[float]` of length K, *optional*): non-negative, not increasing, of any positive sum.
            Of fewer scored components the first ones hold. Default: `2 (K - j) + 1` for place j = 1..K, with which
            the welfare is the mean times one minus the Gini coefficient.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, every utility NaN, an infinite utility, or order weights that are of another length,
            negative, increasing, not finite, or 0 at the first place.

    Source: Weymark (1981), "Generalized Gini Inequality Indices"; Yager (1988), "On Ordered Weighted Averaging
    Aggregation Operators".

    Example:

    >>> gini_weights(torch.tensor([0.4, -0.3, 0.9]), [2, 1, 1])
    tensor([0.2500, 0.5000, 0.2500])
    """
    scored = scored_components(utilities)
    count = int(scored.sum())
    if order_weights is None:
        places = torch.arange(2 * count - 1, 0, -2, dtype=torch.float64)
    else:
        places = _require_order_weights(order_weights, utilities.numel())[:count]
    return _by_place(utilities, scored, places)


def leximin_weights(utilities: torch.Tensor, delta: float) -> torch.Tensor:
    """Nearly all weight on the worst-off component, nearly all of the rest on the next, and so on.

    Leximin compares the worst off first, and those who are next only where the worst off are equal; no smooth welfare
    does that. These order weights do, among utilities that are within 1 of each other and differ by at least `delta`.

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities, higher is better. NaN: weight 0.
        delta (`float`): positive; differences of utilities below this share of their spread count as none. Each place
            gets at most `delta` of what the one before it got: 0 would be `maxmin`.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, every utility NaN, an infinite utility, or `delta` outside (0, 1].

    Source: Yager (1997), "On the analytic representation of the Leximin ordering and its application to flexible
    constraint propagation"; Sen (1970), "Collective Choice and Social Welfare", for the ordering.

    Example:

    >>> leximin_weights(torch.tensor([0.4, -0.3, 0.9]), delta=0.1)
    tensor([0.0826, 0.9091, 0.0083])
    """
    scored = scored_components(utilities)
    if not 0.0 < delta <= 1.0:
        raise ValueError(f"`delta` is {delta}, but must be in (0, 1]; use 'maxmin' for its limit 0.")
    count = int(scored.sum())
    ratio = delta / (1.0 + delta)
    places = ratio ** torch.arange(count, dtype=torch.float64)
    places[:-1] /= 1.0 + delta
    return _by_place(utilities, scored, places)


def pmean_weights(
    utilities: torch.Tensor, power: float, disagreement: torch.Tensor | None = None, eps: float = 1e-3
) -> torch.Tensor:
    """Weights proportional to `(U - d) ** (p - 1)`: the gradient of the power mean of the gains, normalised.

    p = 1 is `utilitarian`, p = 0 `nash`, p towards minus infinity `maxmin`.

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities, higher is better. NaN: weight 0.
        power (`float`): finite, at most 1; the smaller, the more the worst off count.
        disagreement (`torch.Tensor` of shape `(K,)`, *optional*): utility that gains are counted from; zeros if not
            given.
        eps (`float`, *optional*, defaults to 1e-3): smallest gain; a power mean knows no losses.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, every utility NaN, an infinite utility, a power above 1 or not finite, a
            disagreement that is not finite, or `eps` not finite and positive.

    Source: Atkinson (1970), "On the Measurement of Inequality"; Moulin (2003), "Fair Division and Collective Welfare".

    Example:

    >>> pmean_weights(torch.tensor([1.0, 2.0]), power=-1.0)
    tensor([0.8000, 0.2000])
    """
    scored = scored_components(utilities)
    if not -float("inf") < power <= 1.0:
        raise ValueError(f"`power` is {power}, but must be finite and at most 1; use 'maxmin' for minus infinity.")
    gain = gains(utilities, torch.zeros_like(utilities) if disagreement is None else disagreement, eps)
    exponents = torch.where(scored, (power - 1.0) * gain.double().log(), -torch.inf)
    return torch.softmax(exponents, dim=0).to(utilities.dtype)


def gains(utilities: torch.Tensor, disagreement: torch.Tensor, eps: float) -> torch.Tensor:
    """`max(U - d, eps)`, NaN where the utility is.

    Raises:
        ValueError: a disagreement of another shape or not finite, or `eps` not finite and positive.
    """
    require_shape("disagreement", disagreement, tuple(utilities.shape), "one entry per component, (K,)")
    if not disagreement.isfinite().all():
        raise ValueError(f"`disagreement` is {disagreement.tolist()}, but must be finite.")
    if not 0.0 < eps < float("inf"):
        raise ValueError(f"`eps` is {eps}, but must be finite and positive.")
    return (utilities - disagreement.to(utilities)).clamp_min(eps)


def minus_regret(utilities: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """How far each component is from the best that a policy of its own would give it: `U - U*`, 0 at best.

    The largest regret is the smallest of these numbers, so a rule for the worst off serves the most deprived when it
    is given them. A utility alone favours the group that is hardest to please; a regret asks what the others cost it.

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities. NaN stays NaN.
        best (`torch.Tensor` of shape `(K,)`): utility of each component under its own best policy, on the same scale.

    Returns:
        `torch.Tensor` of shape `(K,)`.

    Raises:
        ValueError: a wrong shape, or a best utility that is not finite.

    Source: Savage (1951), "The Theory of Statistical Decision"; Agarwal and Zhang (2022), "Minimax Regret Optimization
    for Robust Machine Learning under Distribution Shift" (arXiv 2202.05436).

    Example: the first component is worse off, but nobody could do more for it.

    >>> minus_regret(torch.tensor([0.25, 0.5]), torch.tensor([0.25, 1.0]))
    tensor([ 0.0000, -0.5000])
    """
    require_shape("best", best, tuple(utilities.shape), "one best utility per component, (K,)")
    if not best.isfinite().all():
        raise ValueError(f"`best` is {best.tolist()}, but must be finite.")
    return utilities - best.to(utilities)


def _require_order_weights(order_weights: Sequence[float], size: int) -> torch.Tensor:
    places = torch.tensor([float(value) for value in order_weights], dtype=torch.float64)
    falls = places.isfinite().all() and (places >= 0).all() and (places.diff() <= 0).all()
    if len(places) != size or not falls or places[0] <= 0:
        raise ValueError(
            f"`order_weights` is {list(order_weights)}, but needs {size} numbers from the worst-off place to the "
            "best-off one, none negative, none above the one before it, the first positive: for example "
            f"{list(range(size, 0, -1))}."
        )
    return places


def _by_place(utilities: torch.Tensor, scored: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Places to components, worst first; equal utilities share the mean of theirs."""
    values = utilities[scored]
    order = values.argsort()
    places = places.to(values.device) / places.sum()
    _, tied = values[order].unique_consecutive(return_inverse=True)
    sums = torch.zeros(int(tied.max()) + 1, dtype=torch.float64, device=values.device)
    shared = (sums.index_add(0, tied, places) / torch.bincount(tied))[tied]
    found = torch.zeros_like(places)
    found[order] = shared
    weights = torch.zeros(utilities.shape, dtype=utilities.dtype, device=utilities.device)
    weights[scored] = found.to(utilities.dtype)
    return weights
