# SPDX-License-Identifier: Apache-2.0
"""Weights on the probability simplex, and the checks that every welfare rule makes of its input."""

import torch

from .preference import require_shape


def project_to_simplex(values: torch.Tensor) -> torch.Tensor:
    """The point of the probability simplex nearest to `values` in Euclidean distance.

    Args:
        values (`torch.Tensor` of shape `(K,)`): any finite numbers.

    Returns:
        `torch.Tensor` of shape `(K,)`: non-negative, sums to 1.

    Raises:
        ValueError: a wrong shape, no entries, or a value that is not finite.

    Source: Duchi et al. (2008), "Efficient Projections onto the l1-Ball for Learning in High Dimensions", figure 1.

    Example:

    >>> project_to_simplex(torch.tensor([1.0, 0.5, -3.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    require_shape("values", values, (None,), "one entry per component, (K,)")
    if values.numel() == 0 or not values.isfinite().all():
        raise ValueError(f"`values` is {values.tolist()}, but needs at least one entry and finite entries only.")
    # The projection is the same after a shift of all entries; removing the largest keeps 1e9 + small exact enough.
    shifted = values.double() - values.double().max()
    descending = shifted.sort(descending=True).values
    excess = descending.cumsum(0) - 1.0
    rank = torch.arange(1, values.numel() + 1, device=values.device, dtype=torch.float64)
    support = int((descending > excess / rank).nonzero().max())
    return (shifted - excess[support] / (support + 1)).clamp_min(0.0).to(values.dtype)


def apply_weight_floor(weights: torch.Tensor, floor: float) -> torch.Tensor:
    """Mix weights with the uniform ones so that none is below `floor`: `floor + (1 - K floor) w`.

    Args:
        weights (`torch.Tensor` of shape `(K,)`): on the simplex.
        floor (`float`): smallest weight, in `[0, 1 / K]`; `1 / K` makes the weights uniform.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, weights not on the simplex, or a floor outside `[0, 1 / K]`.

    Example:

    >>> apply_weight_floor(torch.tensor([1.0, 0.0]), 0.2)
    tensor([0.8000, 0.2000])
    """
    require_on_simplex("weights", weights, weights)
    require_floor(floor, weights.numel())
    return floor + (1.0 - weights.numel() * floor) * weights


def scored_components(utilities: torch.Tensor) -> torch.Tensor:
    """Which components were scored, boolean `(K,)`.

    Raises:
        ValueError: a wrong shape, every utility NaN, or an infinite utility.
    """
    require_shape("utilities", utilities, (None,), "one group utility per component, (K,)")
    scored = ~utilities.isnan()
    if not scored.any():
        raise ValueError(
            f"`utilities` is {utilities.tolist()}: nothing was scored for any component; check that the reward "
            "functions return numbers for at least one reply."
        )
    if utilities.isinf().any():
        raise ValueError(
            f"`utilities` is {utilities.tolist()}, but must be finite or NaN; check the reward functions."
        )
    return scored


def require_on_simplex(name: str, weights: torch.Tensor, utilities: torch.Tensor) -> torch.Tensor:
    """The weights in the dtype of the utilities.

    Raises:
        ValueError: a wrong shape, or weights that are negative or do not sum to 1.
    """
    require_shape(name, weights, tuple(utilities.shape), "one entry per component, (K,)")
    on_simplex = weights.isfinite().all() and (weights >= 0).all() and abs(weights.double().sum().item() - 1.0) < 1e-3
    if not on_simplex:
        raise ValueError(
            f"`{name}` is {weights.tolist()}, but must be non-negative and sum to 1; see `project_to_simplex`."
        )
    return weights.to(utilities)


def require_floor(floor: float, num_components: int) -> None:
    """Raises:
    ValueError: a floor outside `[0, 1 / K]`.
    """
    if not 0.0 <= floor <= 1.0 / num_components:
        raise ValueError(
            f"`floor` is {floor}, but must be in [0, 1 / K] = [0, {1.0 / num_components:.4g}]; 0 is no floor."
        )
