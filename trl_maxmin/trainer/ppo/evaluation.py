# SPDX-License-Identifier: Apache-2.0
"""What an evaluation adds up: one sampled reply to each prompt, on this rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from transformers.trainer_utils import has_length

from ...distributed import sum_over_ranks
from .prompts import Row, rows_from_batch
from .rollout import Rollout


def own_batches(dataloader: Any, accelerator: Accelerator, batch_size: int) -> Iterator[tuple[list[Row], int]]:
    """Batches of this rank, and how many of their first rows count: the last ones are filled up with rows from the
    beginning of the data, so that all ranks make the same calls."""
    num_rows = len(dataloader.dataset) if has_length(dataloader.dataset) else math.inf
    for number, rows in enumerate(map(rows_from_batch, dataloader)):
        first = (number * accelerator.num_processes + accelerator.process_index) * batch_size
        yield rows, min(max(num_rows - first, 0), len(rows))


@dataclass
class EvaluationSums:
    """Replies of this rank, to be scored together, and sums over them.

    Args:
        replies (`tuple` of four lists): inputs, prompts, completions and their ids: what `_calculate_rewards` takes.
        kl (`float`): nats.
        tokens (`int`): of the replies.
    """

    replies: tuple[list[Row], list[Any], list[Any], list[list[int]]] = field(default_factory=lambda: ([], [], [], []))
    kl: float = 0.0
    tokens: int = 0

    def add(self, rollout: Rollout, count: int) -> None:
        """Take in the first `count` rows of a rollout with `kl`."""
        for ours, new in zip(self.replies, rollout.replies, strict=True):
            ours.extend(new[:count])
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
        unfinished = sum(not row["finished"] for row in self.replies[0])
        sums = torch.tensor([self.kl, self.tokens, unfinished], dtype=torch.float64)
        kl, tokens, unfinished = (sum_over_ranks(accelerator, sums) / max(len(rewards), 1)).tolist()
        scored = rewards[:, (weights != 0).to(rewards.device)].nanmean(0) @ weights[weights != 0].to(rewards)
        return {
            "objective/scores": scored.item() - missing_eos_penalty * unfinished * weights.sum().item(),
            "objective/kl": kl,
            "completions/mean_length": tokens,
            "completions/clipped_ratio": unfinished,
        }
