# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a policy by what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations.deepspeed import deepspeed_init, is_deepspeed_zero3_enabled
from transformers.trainer_utils import EvalLoopOutput, has_length

from ...distributed import sum_over_ranks
from ...models.base import place
from .prompts import rows_from_batch


class ReplyEvaluationMixin:
    """`evaluate()` of [`PPOTrainer`]: one sampled reply to each prompt, scored through the trainer's own seam."""

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Sample one reply to each prompt and score it. Weights, random state and KL coefficient stay as they are.

        Args:
            dataloader: batches of rows.
            description (`str`): unused.
            prediction_loss_only, ignore_keys: unused.
            metric_key_prefix (`str`): of the metrics' names.

        Returns:
            [`~transformers.trainer_utils.EvalLoopOutput`]: with metrics only.
        """
        with self._ready_policy():
            return self._reply_evaluation(dataloader, metric_key_prefix)

    def _reply_evaluation(self, dataloader: Any, metric_key_prefix: str) -> EvalLoopOutput:
        self.model.eval()
        num_rows = len(dataloader.dataset) if has_length(dataloader.dataset) else None
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        kept: list[tuple] = []
        kl, length = 0.0, 0
        for number, rows in enumerate(map(rows_from_batch, dataloader)):
            # The same stream at every evaluation: two of them differ by the policy, not by the draw.
            rollout = self._sample(rows, "evaluation", number)
            self._forward_rollout(rollout)
            first = (number * world + rank) * self.args.eval_batch_size
            # The last batches are filled up with rows from the beginning, so that all ranks make the same calls.
            real = len(rows) if num_rows is None else min(max(num_rows - first, 0), len(rows))
            kl += rollout.kl[:real].sum().item()
            length += rollout.completion_mask[:real].sum().item()
            columns = (rollout.inputs, rollout.prompts, rollout.completions, rollout.completion_ids)
            kept.extend(zip(*(column[:real] for column in columns), strict=True))
        metrics, num_samples = self._evaluation_metrics(kept, kl, length, metric_key_prefix)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_samples)

    @contextmanager
    def _ready_policy(self) -> Iterator[None]:
        """The policy ready to compute. Before training it may still be on the CPU, and in shards (DeepSpeed ZeRO-3) it
        has no engine that gathers them layer by layer; the one it gets here cannot train, so it goes again."""
        if not is_deepspeed_zero3_enabled() or self.deepspeed is not None:
            if not self.state.max_steps:
                place(self.model, self.accelerator.device)
            yield
            return
        deepspeed_init(self, num_training_steps=0, inference=True)
        self.deepspeed = self.model_wrapped = self.accelerator.prepare(self.model)
        try:
            yield
        finally:
            self.deepspeed.destroy()
            self.deepspeed, self.model_wrapped = None, self.model
            self.accelerator.free_memory()

    def _evaluation_metrics(self, kept: list[tuple], kl: float, length: int, prefix: str) -> tuple[dict, int]:
        inputs, prompts, completions, completion_ids = map(list, zip(*kept, strict=True)) if kept else ([],) * 4
        weights = self.reward_weights
        rewards = self._calculate_rewards(inputs, prompts, completions, completion_ids)
        unfinished = sum(not row["finished"] for row in inputs)
        sums = torch.tensor([kl, length, unfinished], dtype=torch.float64, device=self.accelerator.device)
        kl, length, unfinished = sum_over_ranks(self.accelerator, sums).tolist()
        count = len(rewards)
        means = rewards.nanmean(0).tolist() if self._host_logs_component_rewards else []
        penalty = (self.args.missing_eos_penalty or 0.0) * unfinished / max(count, 1) * weights.sum().item()
        scored = rewards[:, (weights != 0).to(rewards.device)].nanmean(0) @ weights[weights != 0].to(rewards)
        metrics = {
            "objective/scores": scored.item() - penalty,
            "objective/kl": kl / max(count, 1),
            "completions/mean_length": length / max(count, 1),
            "completions/clipped_ratio": unfinished / max(count, 1),
            **{f"rewards/{name}/mean": mean for name, mean in zip(self.reward_func_names, means, strict=False)},
        }
        # What the seam measured belongs to this evaluation set.
        metrics |= {name: sum(values) / len(values) for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        return {f"{prefix}_{name}": value for name, value in metrics.items()}, count
