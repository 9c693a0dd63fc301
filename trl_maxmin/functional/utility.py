# SPDX-License-Identifier: Apache-2.0
"""From rewards to utilities that can be compared between components.

A Bradley-Terry reward is fixed only up to a shift per prompt, and its scale depends on how long it was trained, so a
minimum across raw components means nothing. Both utilities measure a reply against replies of the reference policy to
the same prompt.

Letters: N replies, P prompts, M reference replies a prompt, K components.
"""

import torch

from .preference import require_shape


MIN_REFERENCE_COMPLETIONS = 4


def within_prompt_scale(rewards: torch.Tensor) -> torch.Tensor:
    """Spread of each component's reward WITHIN prompts: `s[k] = sqrt(mean over prompts of the unbiased variance)`.

    The spread between prompts is left out: Bradley-Terry training never fixes it.

    Args:
        rewards (`torch.Tensor` of shape `(P, M, K)`): rewards of M reference replies to each prompt, in Bradley-Terry
            log-odds. NaN marks a reply that a component did not score; a prompt with fewer than two scored replies
            does not count for that component.

    Returns:
        `torch.Tensor` of shape `(K,)`: positive scales in Bradley-Terry log-odds. A component that is constant within
        every prompt gets 1.0, so that its utility is 0 and not a division by zero.

    Raises:
        ValueError: a wrong shape, M below 4 (the variance of fewer is too noisy to divide by), or a component with no
            prompt of at least two scored replies.

    Example:

    >>> within_prompt_scale(torch.tensor([[[0.0], [2.0], [0.0], [2.0]], [[9.0], [9.0], [9.0], [9.0]]]))
    tensor([0.8165])
    """
    require_shape("rewards", rewards, (None, None, None), "prompts by reference replies by components, (P, M, K)")
    if rewards.shape[1] < MIN_REFERENCE_COMPLETIONS:
        raise ValueError(
            f"`rewards` has {rewards.shape[1]} reference replies a prompt, but at least {MIN_REFERENCE_COMPLETIONS} "
            "are needed to estimate a spread; sample more of them."
        )
    values = rewards.double()
    count = (~values.isnan()).sum(dim=1)
    squares = (values - values.nanmean(dim=1, keepdim=True)).square().nansum(dim=1)
    counts = count >= 2
    if not counts.any(dim=0).all():
        missing = (~counts.any(dim=0)).nonzero().flatten().tolist()
        raise ValueError(
            f"Components {missing} scored no prompt at least twice, so they have no spread; check that these reward "
            "functions return numbers for the reference replies."
        )
    variance = torch.where(counts, squares / (count - 1).clamp_min(1), torch.zeros_like(squares))
    scale = (variance.sum(dim=0) / counts.sum(dim=0)).sqrt()
    # Rewards are float32 at best: a spread below their rounding is no spread.
    rounding = 1e-6 * values.abs().nan_to_num().amax(dim=(0, 1))
    return torch.where(scale > rounding, scale, torch.ones_like(scale)).to(rewards.dtype)


def zscore_utility(rewards: torch.Tensor, baseline: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """How many within-prompt spreads a reply lies above the reference policy's mean: `(r - b) / s`.

    Args:
        rewards (`torch.Tensor` of shape `(N, K)`): rewards of the replies. NaN stays NaN.
        baseline (`torch.Tensor` of shape `(N, K)` or `(K,)`): mean reward of the reference policy's replies to the
            same prompt, or one mean for all prompts.
        scale (`torch.Tensor` of shape `(K,)`): positive, from `within_prompt_scale`.

    Returns:
        `torch.Tensor` of shape `(N, K)`; 0 is as good as the reference policy on average.

    Raises:
        ValueError: a wrong shape, or a scale that is not finite and positive.

    Example:

    >>> zscore_utility(torch.tensor([[3.0, 1.0]]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0]))
    tensor([[1., 0.]])
    """
    require_shape("rewards", rewards, (None, None), "replies by components, (N, K)")
    num_components = rewards.shape[1]
    if baseline.dim() == 1:
        require_shape("baseline", baseline, (num_components,), "one mean per component, (K,)")
    else:
        require_shape("baseline", baseline, tuple(rewards.shape), "that of `rewards`, (N, K), or (K,)")
    require_shape("scale", scale, (num_components,), "one spread per component, (K,)")
    if not (scale.isfinite() & (scale > 0)).all():
        raise ValueError(f"`scale` is {scale.tolist()}, but must be finite and positive; see `within_prompt_scale`.")
    return (rewards - baseline.to(rewards)) / scale.to(rewards)


def win_rate_utility(rewards: torch.Tensor, reference_rewards: torch.Tensor) -> torch.Tensor:
    """Probability that a component prefers the reply to a reference reply: `mean_m sigmoid(r - r_ref[m])`.

    Args:
        rewards (`torch.Tensor` of shape `(N, K)`): rewards of the replies in Bradley-Terry log-odds. NaN stays NaN.
        reference_rewards (`torch.Tensor` of shape `(N, M, K)`): rewards of reference replies to the same prompts. A
            NaN reference does not count for its component; prompts with fewer than M of them are filled with NaN.

    Returns:
        `torch.Tensor` of shape `(N, K)` in `[0, 1]`; NaN where no reference reply counts.

    Raises:
        ValueError: a wrong shape.

    Example:

    >>> win_rate_utility(torch.tensor([[0.0]]), torch.tensor([[[0.0], [100.0]]]))
    tensor([[0.2500]])
    """
    require_shape("rewards", rewards, (None, None), "replies by components, (N, K)")
    num_rows, num_components = rewards.shape
    require_shape("reference_rewards", reference_rewards, (num_rows, None, num_components), "(N, M, K)")
    counts = ~reference_rewards.isnan()
    wins = torch.sigmoid(rewards.unsqueeze(1) - torch.where(counts, reference_rewards, 0.0).to(rewards))
    number = counts.sum(dim=1)
    mean = torch.where(counts, wins, 0.0).sum(dim=1) / number.clamp_min(1)
    return torch.where((number > 0) & ~rewards.isnan(), mean, torch.nan)
