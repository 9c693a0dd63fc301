# SPDX-License-Identifier: Apache-2.0
"""The Bradley-Terry likelihood of a preference pair under K reward components, and its temperature.

Letters: N preference pairs, K components. Rewards are Bradley-Terry log-odds: a difference of 1 between two replies
means odds of e : 1 for the better one.
"""

import math

import torch
import torch.nn.functional as F


TEMPERATURE_BOUNDS = (1e-2, 1e2)


def preference_log_likelihood(
    chosen_rewards: torch.Tensor,
    rejected_rewards: torch.Tensor,
    margin: torch.Tensor | None = None,
    share: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probability that each component prefers the chosen reply: `logsigmoid(r_chosen - r_rejected - margin)`.

    Where only a share `s` of the votes for the chosen reply is known, the expected log-probability of one vote,
    `s logsigmoid(d) + (1 - s) logsigmoid(-d)`.

    Args:
        chosen_rewards (`torch.Tensor` of shape `(N, K)`): reward of the chosen reply under each component, in
            Bradley-Terry log-odds.
        rejected_rewards (`torch.Tensor` of shape `(N, K)`): reward of the rejected reply under each component, in
            Bradley-Terry log-odds.
        margin (`torch.Tensor` of shape `(N,)`, *optional*): how far the chosen reply has to lead before it counts as
            preferred, in Bradley-Terry log-odds.
        share (`torch.Tensor` of shape `(N,)`, *optional*): of the votes for the chosen reply, in [0, 1].

    Returns:
        `torch.Tensor` of shape `(N, K)`: log-likelihoods in nats, at most 0. A NaN reward gives NaN in its own entry
        only.

    Raises:
        ValueError: the two reward tensors differ in shape or are not of shape `(N, K)`, or `margin` or `share` is not
            `(N,)`.

    Source: Bradley and Terry (1952); the margin as in Touvron et al., "Llama 2" (arXiv 2307.09288), section 3.2.2.

    Example:

    >>> log_likelihood = preference_log_likelihood(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    >>> [round(p, 4) for p in log_likelihood.exp()[0].tolist()]
    [0.7311, 0.5]
    """
    _require_pair(chosen_rewards, rejected_rewards)
    difference = chosen_rewards - rejected_rewards
    if margin is not None:
        require_shape("margin", margin, (difference.shape[0],), "one margin per preference pair")
        difference = difference - margin.to(difference).unsqueeze(-1)
    # exp(r_w) / (exp(r_w) + exp(r_l)) overflows from |r| ~ 88 on in float32; logsigmoid of the difference does not.
    return vote_log_likelihood(difference, share)


def vote_log_likelihood(difference: torch.Tensor, share: torch.Tensor | None = None) -> torch.Tensor:
    """`s logsigmoid(d) + (1 - s) logsigmoid(-d)` of differences `(N, ...)` and shares of votes `(N,)`; without shares
    `logsigmoid(d)`.

    Example:

    >>> vote_log_likelihood(torch.tensor([[0.0], [0.0]]), torch.tensor([0.5, 1.0])).exp().flatten().tolist()
    [0.5, 0.5]
    """
    if share is None:
        return F.logsigmoid(difference)
    require_shape("share", share, (difference.shape[0],), "one share of votes per preference pair")
    against = (1 - share).to(difference).view(-1, *[1] * (difference.dim() - 1))
    # logsigmoid(-d) is logsigmoid(d) - d.
    return F.logsigmoid(difference) - against * difference


def preference_accuracy(chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor) -> torch.Tensor:
    """Whether each component ranks the chosen reply above the rejected one.

    Args:
        chosen_rewards (`torch.Tensor` of shape `(N, K)`): reward of the chosen reply under each component.
        rejected_rewards (`torch.Tensor` of shape `(N, K)`): reward of the rejected reply under each component.

    Returns:
        `torch.Tensor` of shape `(N, K)`: 1.0 where the chosen reply has the higher reward, 0.0 where the rejected one
        has it, 0.5 for a tie (a constant reward is right half the time), NaN where either reward is NaN.

    Raises:
        ValueError: the two reward tensors differ in shape or are not of shape `(N, K)`.

    Example:

    >>> preference_accuracy(torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.0, 1.0, 2.0]]))
    tensor([[1.0000, 0.0000, 0.5000]])
    """
    _require_pair(chosen_rewards, rejected_rewards)
    difference = chosen_rewards - rejected_rewards
    accuracy = 0.5 * (torch.sign(difference) + 1.0)
    # sign(NaN) is 0: an unscored pair would silently count as a tie.
    return torch.where(difference.isnan(), torch.nan, accuracy)


def fit_temperature(
    reward_difference: torch.Tensor,
    weights: torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
    max_iter: int = 50,
    share: torch.Tensor | None = None,
) -> float:
    """Temperature `T` that calibrates one component: its rewards divided by `T` fit held-out pairs best.

    Minimises `-sum_n w_n logsigmoid(d_n / T - margin_n)` over `T`. The problem is convex in `1 / T`; its root is found
    by Newton steps that fall back to bisection whenever they leave the bracket.

    Args:
        reward_difference (`torch.Tensor` of shape `(N,)`): `r(chosen) - r(rejected)` of held-out pairs, in
            Bradley-Terry log-odds.
        weights (`torch.Tensor` of shape `(N,)`, *optional*): non-negative weight of each pair, for example its
            annotator's responsibility for this component. Default: all 1.
        margin (`torch.Tensor` of shape `(N,)`, *optional*): margin of each pair in Bradley-Terry log-odds. It is not
            divided by `T`.
        max_iter (`int`, *optional*, defaults to 50): largest number of Newton or bisection steps.
        share (`torch.Tensor` of shape `(N,)`, *optional*): of the votes for the chosen reply, see
            [`preference_log_likelihood`].

    Returns:
        `float`: `T` in `[0.01, 100]`. `T > 1` means that the component was over-confident. A bound is returned where
        the minimum lies beyond it: 0.01 when every pair is ranked correctly, 100 when the ranking is no better than
        its inverse. 1.0 when every weighted difference is 0, since no temperature changes anything then.

    Raises:
        ValueError: an argument has the wrong shape, is empty, holds NaN or infinite values, the weights are negative
            or all 0, or `max_iter` is smaller than 1.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 4.2, with two classes.

    Example:

    >>> import math, torch
    >>> difference = torch.tensor([4.0, 4.0, 4.0, -4.0])  # sure of itself, right in 3 of 4 pairs
    >>> round(fit_temperature(difference), 4) == round(4.0 / math.log(3.0), 4)
    True
    """
    difference, weights, margin = _temperature_inputs(reward_difference, weights, margin)
    against = torch.zeros_like(difference) if share is None else 1 - share.detach().to(difference)
    require_shape("share", against, (len(difference),), "one share of votes per pair")
    if max_iter < 1:
        raise ValueError(f"`max_iter` is {max_iter}, but must be at least 1; leave it out for the default of 50.")
    if not (weights * difference).abs().any():
        return 1.0

    def slope_and_curvature(inverse: float) -> tuple[float, float]:
        wrong = torch.sigmoid(margin - inverse * difference)
        slope = -(weights * difference * (wrong - against)).sum()
        curvature = (weights * difference.square() * wrong * (1.0 - wrong)).sum()
        return slope.item(), curvature.item()

    low, high = 1.0 / TEMPERATURE_BOUNDS[1], 1.0 / TEMPERATURE_BOUNDS[0]
    if slope_and_curvature(low)[0] >= 0.0:
        return 1.0 / low
    if slope_and_curvature(high)[0] <= 0.0:
        return 1.0 / high
    inverse = 1.0
    for _ in range(max_iter):
        slope, curvature = slope_and_curvature(inverse)
        low, high = (inverse, high) if slope < 0.0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0.0 else math.inf
        # The geometric middle: the bracket spans four orders of magnitude.
        proposal = step if low < step < high else math.sqrt(low * high)
        if abs(proposal - inverse) <= 1e-12 * inverse:
            break
        inverse = proposal
    return 1.0 / inverse


def require_shape(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], meaning: str) -> None:
    """Raise `ValueError` unless `tensor` has `shape` (`None` allows any size), saying what the dimensions mean.

    Example:

    >>> require_shape("margin", torch.zeros(2), (3,), "one margin per pair")
    Traceback (most recent call last):
    ...
    ValueError: `margin` has shape (2,), but (3,) is needed: one margin per pair.
    """
    fits = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        wanted = f"({wanted},)" if len(shape) == 1 else f"({wanted})"
        raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}, but {wanted} is needed: {meaning}.")


def _require_pair(chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor) -> None:
    require_shape("chosen_rewards", chosen_rewards, (None, None), "pairs by components, (N, K)")
    require_shape(
        "rejected_rewards", rejected_rewards, tuple(chosen_rewards.shape), "that of `chosen_rewards`, (N, K)"
    )


def _temperature_inputs(
    reward_difference: torch.Tensor, weights: torch.Tensor | None, margin: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    require_shape("reward_difference", reward_difference, (None,), "one reward difference per pair, (N,)")
    num_pairs = reward_difference.shape[0]
    if num_pairs == 0:
        raise ValueError(
            "`reward_difference` is empty, but at least one held-out pair is needed; hold out more pairs."
        )
    difference = reward_difference.detach().double()
    weights = torch.ones_like(difference) if weights is None else weights.detach().to(difference)
    margin = torch.zeros_like(difference) if margin is None else margin.detach().to(difference)
    require_shape("weights", weights, (num_pairs,), "one weight per pair")
    require_shape("margin", margin, (num_pairs,), "one margin per pair")
    for name, values in (("reward_difference", difference), ("weights", weights), ("margin", margin)):
        if not values.isfinite().all():
            count = int((~values.isfinite()).sum())
            raise ValueError(
                f"`{name}` holds {count} NaN or infinite values, but must be finite; leave those pairs out."
            )
    if (weights < 0).any() or not weights.any():
        raise ValueError(
            f"`weights` range from {weights.min().item()} to {weights.max().item()}, but must be non-negative and not "
            "all 0; pass responsibilities, or None to weigh all pairs alike."
        )
    return difference, weights, margin
