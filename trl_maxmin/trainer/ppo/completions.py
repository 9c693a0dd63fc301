# SPDX-License-Identifier: Apache-2.0
"""Tables of what a policy answers, for people to read while it trains."""

from __future__ import annotations

import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ...distributed import gather_objects, gather_rows
from ..common.sampling import sampling_config
from .prompts import rows_from_batch
from .rollout import Rollout


# More rows than this are logged, but not printed.
PRINTED_ROWS = 5


class CompletionTableMixin:
    """Completion tables of [`PPOTrainer`]: of the rollouts (`log_completions`), and of the evaluation prompts
    (`num_sample_generations`, `generate_completions`)."""

    _completions: dict[str, list] | None = None

    @torch.no_grad()
    def generate_completions(self, sampling: bool = False) -> dict[str, list]:
        """The likeliest replies to the evaluation prompts and their scores: printed, and logged where W&B runs.

        Args:
            sampling (`bool`, defaults to `False`): whether one batch of prompts is enough.

        Returns:
            `dict[str, list]`: columns `"query"`, `"model response"`, `"score"` (the weighted sum), and one for each
            reward component where there are several. Empty without an evaluation set.
        """
        table: dict[str, list] = {}
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        settings = (self.args.temperature, self.args.response_length)
        overrides = (self.args.generation_kwargs or {}) | {"do_sample": False}
        sampled, self.generation_config = self.generation_config, sampling_config(*settings, overrides)
        try:
            with self._ready_policy():
                for dataset in datasets.values():
                    for rows in map(rows_from_batch, () if dataset is None else self.get_eval_dataloader(dataset)):
                        for name, values in self._completion_columns(self._sample(rows, "completions")).items():
                            table.setdefault(name, []).extend(values)
                        if sampling:
                            break
        finally:
            self.generation_config = sampled
        self._show_completions(table)
        return table

    def _completion_columns(self, rollout: Rollout) -> dict[str, list]:
        """Columns over the replies of all ranks; scores from the reward source, past the seam, which is told of
        rollouts and evaluations only."""
        scores = rollout.scores
        if scores is None:
            batch = self._reward_batch(rollout.inputs, rollout.prompts, rollout.completions, rollout.completion_ids)
            scores = self.reward_source(batch)
        scores = gather_rows(self.accelerator, scores.to(self.accelerator.device, torch.float32)).cpu()
        weights = self.reward_weights.cpu()
        columns = {
            "query": gather_objects(self.accelerator, [_text(prompt) for prompt in rollout.prompts]),
            "model response": gather_objects(self.accelerator, [_text(reply) for reply in rollout.completions]),
            "score": (scores[:, weights != 0] @ weights[weights != 0]).tolist(),
        }
        if len(self.reward_func_names) > 1:
            columns |= dict(zip(self.reward_func_names, scores.T.tolist(), strict=True))
        return columns

    def _sample_generation_is_due(self) -> bool:
        wanted, rollouts = self.args.num_sample_generations, self.args.num_total_batches
        if self.eval_dataset is None or wanted <= 0 or not rollouts:
            return False
        return self.state.global_step % max(1, rollouts // wanted) == 0

    def _show_completions(self, table: dict[str, list]) -> None:
        if not table or not self.is_world_process_zero():
            return
        rows = list(zip(*table.values(), strict=True))
        shown = Table(*table, title=f"Step {self.state.global_step}", show_lines=True)
        for row in rows[:PRINTED_ROWS]:
            shown.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else cell.replace("[", "\\[") for cell in row))
        Console().print(shown)
        wandb = sys.modules.get("wandb")
        if "wandb" in self.args.report_to and wandb is not None and wandb.run is not None:
            wandb.log({"completions": wandb.Table(columns=list(table), data=[list(row) for row in rows])})


def _text(message: Any) -> str:
    if isinstance(message, str):
        return message
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in message)
