# SPDX-License-Identifier: Apache-2.0
"""What an evaluation adds up: one sampled reply to each prompt, on this rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from ...distributed import sum_over_ranks
from .prompts import Row
from .rollout import Rollout


@dataclass
class EvaluationSums:
    """Replies of this rank, to be scored together, and sums over them.

    Args:
        inputs, prompts, completions, completion_ids (`list`): as in [`Rollout`].
        kl (`float`): nats.
        tokens (`int`): of the replies.
    """

    inputs: list[Row] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    completions: list[Any] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    kl: float = 0.0
    tokens: int = 0

    def add(self, rollout: Rollout, count: int) -> None:
        """Take a batch in.

        Args:
            rollout ([`Rollout`]): with `kl`.
            count (`int`): its first so many rows; what fills up a last batch does not count.
        """
        for name in ("inputs", "prompts", "completions", "completion_ids"):
            getattr(self, name).extend(getattr(rollout, name)[:count])
        self.kl += rollout.kl[:count].sum().item()
        self.tokens += rollout.completion_mask[:count].sum().item()

    def metrics(
        self, accelerator: Accelerator, rewards: torch.Tensor, weights: torch.Tensor, missing_eos_penalty: float
    ) -> dict[str, float]:
        """Means over the replies of all ranks.

        Args:
            accelerator ([`~accelerate.Accelerator`]): the trainer's.
            rewards (`torch.Tensor` of shape `(N, K)`): of all ranks; NaN: not scored.
            weights (`torch.Tensor` of shape `(K,)`): what each counts.
            missing_eos_penalty (`float`): taken off the score of a truncated reply, under every component.

        Returns:
            `dict[str, float]`.
        """
        unfinished = sum(not row["finished"] for row in self.inputs)
        sums = torch.tensor([self.kl, self.tokens, unfinished], dtype=torch.float64, device=accelerator.device)
        kl, tokens, unfinished = (sum_over_ranks(accelerator, sums) / max(len(rewards), 1)).tolist()
        scored = rewards[:, (weights != 0).to(rewards.device)].nanmean(0) @ weights[weights != 0].to(rewards)
        return {
            "objective/scores": scored.item() - missing_eos_penalty * unfinished * weights.sum().item(),
            "objective/kl": kl,
            "completions/mean_length": tokens,
            "completions/clipped_ratio": unfinished,
        }
