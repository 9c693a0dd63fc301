# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of PPO on vector rewards: masked statistics, KL estimates, advantages, clipped losses.

Letters: B replies, T tokens of a reply (right padded), K reward components, C reward channels (what the critic
predicts). Masks are bool with `True` for a real token, or for a token that counts. Log-probabilities and KL are in
nats.
"""

import torch

from .preference import require_shape


KL_ESTIMATORS = ("k1", "k2", "k3")


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the entries where the mask is `True`.

    Args:
        values (`torch.Tensor`): any shape.
        mask (`torch.Tensor`): bool, broadcastable to `values`; `True` counts. Where it is `False` even NaN is ignored.

    Returns:
        `torch.Tensor`: scalar, and 0 (not NaN) where no entry counts, so that a batch of empty replies stays finite.

    Example:

    >>> masked_mean(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False])).item()
    2.0
    """
    mask = mask.expand_as(values)
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def masked_var(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Unbiased variance of the entries where the mask is `True`; 0 where fewer than two count.

    Args:
        values (`torch.Tensor`): any shape.
        mask (`torch.Tensor`): bool, broadcastable to `values`; `True` counts.

    Returns:
        `torch.Tensor`: scalar.

    Example:

    >>> masked_var(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False])).item()
    2.0
    """
    mask = mask.expand_as(values)
    centred = (values - masked_mean(values, mask)).masked_fill(~mask, 0.0)
    return centred.square().sum() / (mask.sum() - 1).clamp(min=1)


def masked_moments(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Count, sum and sum of squares of the entries that count: what ranks add up to share a mean and a variance.

    Args:
        values (`torch.Tensor`): any shape.
        mask (`torch.Tensor`): bool, broadcastable to `values`; `True` counts.

    Returns:
        `torch.Tensor` of shape `(3,)`: in float64, because a variance from sums cancels in float32.

    Example:

    >>> masked_moments(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False])).tolist()
    [2.0, 4.0, 10.0]
    """
    mask = mask.expand_as(values)
    # MPS has no float64.
    kept = values.masked_fill(~mask, 0.0).to(torch.float32 if values.device.type == "mps" else torch.float64)
    return torch.stack([mask.sum().to(kept), kept.sum(), kept.square().sum()])


def moments_to_mean_var(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance from (the sum over ranks of) [`masked_moments`].

    Args:
        moments (`torch.Tensor` of shape `(3,)`): count, sum, sum of squares.

    Returns:
        `tuple` of two scalars: mean and variance, both 0 where nothing counts.

    Example:

    >>> mean, var = moments_to_mean_var(torch.tensor([2.0, 4.0, 10.0]))
    >>> mean.item(), var.item()
    (2.0, 2.0)
    """
    count, total, squares = moments.unbind()
    mean = total / count.clamp(min=1)
    return mean, ((squares - count * mean.square()) / (count - 1).clamp(min=1)).clamp(min=0)


def whiten(
    values: torch.Tensor,
    mask: torch.Tensor,
    mean: torch.Tensor | None = None,
    var: torch.Tensor | None = None,
    shift_mean: bool = True,
) -> torch.Tensor:
    """Scale to variance 1 and, if asked, shift to mean 0, over the entries that count.

    Args:
        values (`torch.Tensor` of shape `(B, T)`): what to whiten.
        mask (`torch.Tensor` of shape `(B, T)`): bool; `True` counts.
        mean, var (`torch.Tensor`, *optional*): statistics to use, such as those over all ranks; those of `values` by
            default.
        shift_mean (`bool`, defaults to `True`): `False` keeps the mean where it is.

    Returns:
        `torch.Tensor` of shape `(B, T)`: whitened, and 0 where the mask is `False`. Equal values become 0.

    Example:

    >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])).round(decimals=3).tolist()
    [[-0.707, 0.707, 0.0]]
    """
    mean = masked_mean(values, mask) if mean is None else mean.to(values)
    var = masked_var(values, mask) if var is None else var.to(values)
    whitened = (values - mean) * torch.rsqrt(var + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0.0)


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str = "k1") -> torch.Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    With `d = log p - log p_ref`: `k1 = d` (unbiased, may be negative), `k2 = d^2 / 2` (biased, low variance),
    `k3 = exp(-d) - 1 + d` (unbiased, never negative).

    Args:
        logprobs (`torch.Tensor` of shape `(B, T)`): of the sampled tokens under the policy, in nats.
        ref_logprobs (`torch.Tensor` of shape `(B, T)`): of the same tokens under the reference, in nats.
        estimator (`str`): `"k1"`, `"k2"` or `"k3"`.

    Returns:
        `torch.Tensor` of shape `(B, T)`: nats.

    Raises:
        ValueError: unknown estimator.

    Source: Schulman, "Approximating KL Divergence" (2020), http://joschu.net/blog/kl-approx.html.

    Example:

    >>> kl_estimate(torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), "k1").item()
    0.5
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"Unknown KL estimator {estimator!r}; choose one of {', '.join(KL_ESTIMATORS)}.")


def place_terminal_rewards(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put the score of a reply on its last real token.

    Args:
        scores (`torch.Tensor` of shape `(B, K)`): one score per reply and component.
        mask (`torch.Tensor` of shape `(B, T)`): bool; `True` on the real tokens, which come first (right padding).

    Returns:
        `torch.Tensor` of shape `(B, T, K)`: zero but on the last real token. An empty reply has none: its score is
        nowhere, since no decision of the policy led to it.

    Raises:
        ValueError: the shapes do not match.

    Example:

    >>> place_terminal_rewards(torch.tensor([[5.0]]), torch.tensor([[True, True, False]])).squeeze(-1).tolist()
    [[0.0, 5.0, 0.0]]
    """
    require_shape("mask", mask, (scores.shape[0], mask.shape[-1]), "one row per reply")
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1), value=False)
    last = mask & ~following
    return last.unsqueeze(-1) * scores.unsqueeze(1)


def generalized_advantage_estimate(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation per reward channel, with a finite horizon.

    `delta_t = r_t + gamma V_{t+1} - V_t` and `A_t = delta_t + gamma lam A_{t+1}`, where `V_{t+1}` and `A_{t+1}` are 0
    after the last real token: the length limit ends the episode as well, because the reward has scored the truncated
    reply, and a bootstrapped value would count it twice.

    Args:
        rewards (`torch.Tensor` of shape `(B, T, C)`): reward of each token.
        values (`torch.Tensor` of shape `(B, T, C)`): critic's value of the state before each token.
        mask (`torch.Tensor` of shape `(B, T)`): bool; `True` on the real tokens, which come first (right padding).
        gamma (`float`): discount per token.
        lam (`float`): 0 is one-step temporal difference, 1 Monte Carlo.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, T, C)`: advantages, and returns (`advantages + values`); both 0
        where the mask is `False`.

    Raises:
        ValueError: the shapes do not match.

    Source: Schulman et al., "High-Dimensional Continuous Control Using GAE" (arXiv 1506.02438), equations 11 to 16.

    Example: the value before the second token is 2, the reward 4 comes with it.

    >>> rewards, values = torch.tensor([[[0.0], [4.0]]]), torch.tensor([[[1.0], [2.0]]])
    >>> advantages, returns = generalized_advantage_estimate(rewards, values, torch.tensor([[True, True]]), 1.0, 0.5)
    >>> advantages.squeeze(-1).tolist(), returns.squeeze(-1).tolist()
    ([[2.0, 2.0]], [[3.0, 4.0]])
    """
    require_shape("values", values, tuple(rewards.shape), "one value per token and channel, as the rewards")
    require_shape("mask", mask, tuple(rewards.shape[:2]), "one entry per token")
    counts = mask.unsqueeze(-1)
    rewards, values = rewards.masked_fill(~counts, 0.0), values.masked_fill(~counts, 0.0)
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 0, 0, 1))
    deltas = (rewards + gamma * next_values - values).unbind(1)
    advantage = torch.zeros_like(rewards[:, 0]) if rewards.shape[1] else rewards.sum(1)
    backwards = []
    for delta in reversed(deltas):
        advantage = torch.add(delta, advantage, alpha=gamma * lam)
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1) if backwards else torch.zeros_like(rewards)
    return advantages.masked_fill(~counts, 0.0), (advantages + values).masked_fill(~counts, 0.0)


def combine_advantages(advantages: torch.Tensor, channel_weights: torch.Tensor) -> torch.Tensor:
    """Advantage of the weighted reward. Advantages are linear in the reward, so any weights will do after the fact.

    Args:
        advantages (`torch.Tensor` of shape `(B, T, C)`): one per channel.
        channel_weights (`torch.Tensor` of shape `(C,)`): what each channel counts.

    Returns:
        `torch.Tensor` of shape `(B, T)`.

    Raises:
        ValueError: the number of weights is not that of the channels.

    Example:

    >>> combine_advantages(torch.tensor([[[1.0, 2.0]]]), torch.tensor([0.5, 0.25])).item()
    1.0
    """
    require_shape("channel_weights", channel_weights, (advantages.shape[-1],), "one weight per channel")
    return advantages @ channel_weights.to(advantages)


def policy_loss_terms(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate, per token: `max(-A r, -A clip(r, 1 - c, 1 + c))` with `r = p_new / p_old`.

    Args:
        logprobs (`torch.Tensor` of shape `(B, T)`): of the sampled tokens under the policy in training, in nats.
        old_logprobs (`torch.Tensor` of shape `(B, T)`): under the policy that sampled them, in nats.
        advantages (`torch.Tensor` of shape `(B, T)`): what each token was worth.
        mask (`torch.Tensor` of shape `(B, T)`): bool; `True` counts.
        cliprange (`float`): c.

    Returns:
        `tuple`: losses `(B, T)`, 0 where the mask is `False`, and whether the clip was active `(B, T)` (bool).

    Source: Schulman et al., "Proximal Policy Optimization Algorithms" (arXiv 1707.06347), equation 7.

    Example: the ratio is 2 and the advantage positive, so the clip at 1.2 holds.

    >>> new, old = torch.tensor([[2.0]]).log(), torch.tensor([[1.0]]).log()
    >>> losses, clipped = policy_loss_terms(new, old, torch.tensor([[1.0]]), torch.tensor([[True]]), 0.2)
    >>> losses.item(), clipped.item()
    (-1.2, True)
    """
    # Masked before the exponential, so that whatever stands on padding gives neither inf nor a NaN gradient.
    ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.maximum(plain, clipped).masked_fill(~mask, 0.0), (clipped > plain) & mask


def value_loss_terms(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, cliprange_value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped value loss per token, the mean over channels of `max((V - R)^2, (V_clip - R)^2) / 2`.

    `V_clip` is the new value kept within `cliprange_value` of the old one.

    Args:
        values, old_values, returns (`torch.Tensor` of shape `(B, T, C)`): critic now, critic at the rollout, targets.
        mask (`torch.Tensor` of shape `(B, T)`): bool; `True` counts.
        cliprange_value (`float`): in the units of the reward.

    Returns:
        `tuple`: losses `(B, T)`, 0 where the mask is `False`, and whether the clip was active `(B, T, C)` (bool).

    Example: the new value 3 is held at 1.5, and the held one is the worse of the two.

    >>> new, old, target = torch.tensor([[[3.0]]]), torch.tensor([[[1.0]]]), torch.tensor([[[4.0]]])
    >>> losses, clipped = value_loss_terms(new, old, target, torch.tensor([[True]]), 0.5)
    >>> losses.item(), clipped.item()
    (3.125, True)
    """
    held = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    plain_loss, held_loss = (values - returns).square(), (held - returns).square()
    losses = 0.5 * torch.maximum(plain_loss, held_loss).mean(-1)
    return losses.masked_fill(~mask, 0.0), (held_loss > plain_loss) & mask.unsqueeze(-1)


def adaptive_kl_coef(coef: float, observed_kl: float, target_kl: float, horizon: float, num_episodes: int) -> float:
    """One step of the proportional controller of the KL coefficient.

    `coef * (1 + clip(observed / target - 1, -0.2, 0.2) * num_episodes / horizon)`.

    Args:
        coef (`float`): the coefficient now.
        observed_kl (`float`): mean KL of a whole reply, in nats.
        target_kl (`float`): the KL to hold, in nats per reply, above 0.
        horizon (`float`): episodes over which an error of 20 % or more changes the coefficient by about 20 %, above 0.
        num_episodes (`int`): episodes since the last step.

    Returns:
        `float`: the next coefficient.

    Raises:
        `ValueError`: `target_kl` or `horizon` is not above 0.

    Source: Ziegler et al., "Fine-Tuning Language Models from Human Preferences" (arXiv 1909.08593), section 2.2.

    Example:

    >>> adaptive_kl_coef(0.1, observed_kl=12.0, target_kl=6.0, horizon=1000, num_episodes=100)
    0.102
    """
    if target_kl <= 0 or horizon <= 0:
        raise ValueError(f"target_kl and horizon must be above 0, got {target_kl} and {horizon}.")
    error = min(max(observed_kl / target_kl - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * num_episodes / horizon)
