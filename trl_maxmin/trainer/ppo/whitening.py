# SPDX-License-Identifier: Apache-2.0
"""Whitening with the moments of all ranks."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from ...distributed import sum_over_ranks
from ...functional.ppo import combine_advantages, masked_moments, moments_to_mean_var, whiten


def global_mean_var(
    accelerator: Accelerator, values: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (scalars), over all ranks, of `values` `(B, T)` where `mask` `(B, T)` is `True`."""
    return moments_to_mean_var(sum_over_ranks(accelerator, masked_moments(values, mask)))


def whiten_channels(
    accelerator: Accelerator, rewards: torch.Tensor, channel_weights: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Scale the channels of `rewards` `(B, T, C)` by the deviation of their sum weighted by `channel_weights` `(C,)`,
    each around its own mean over the real tokens of all ranks: the weighted sum of the result is the whitened weighted
    sum, whatever the number of channels."""
    _, var = global_mean_var(accelerator, combine_advantages(rewards, channel_weights), mask)
    channels = rewards.unbind(-1)
    means = [global_mean_var(accelerator, channel, mask)[0] for channel in channels]
    return torch.stack(
        [whiten(c, mask, mean, var, shift_mean=False) for c, mean in zip(channels, means, strict=True)], dim=-1
    )
