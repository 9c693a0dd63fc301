# SPDX-License-Identifier: Apache-2.0
"""Tables of what a policy answers, for people to read while it trains."""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from ...data.texts import text_of
from ...distributed import gather_objects, gather_rows
from .ppo_config import PPOConfig
from .rollout import Rollout


# More rows than this are logged, but not printed.
PRINTED_ROWS = 5


def completion_columns(
    accelerator: Accelerator, rollout: Rollout, scores: torch.Tensor, weights: torch.Tensor, names: list[str]
) -> dict[str, list]:
    """Prompts, replies and scores of all ranks: columns `"query"`, `"model response"`, `"score"` (the sum weighted by
    `weights` `(K,)` of this rank's `scores` `(B, K)`), and one for each component where there are several."""
    scores = gather_rows(accelerator, scores.to(accelerator.device, torch.float32)).cpu()
    weights = weights.cpu()
    columns = {
        "query": gather_objects(accelerator, [text_of(prompt, True) for prompt in rollout.prompts]),
        "model response": gather_objects(accelerator, [text_of(reply, True) for reply in rollout.completions]),
        "score": (scores[:, weights != 0] @ weights[weights != 0]).tolist(),
    }
    return columns | (dict(zip(names, scores.T.tolist(), strict=True)) if len(names) > 1 else {})


def table_is_due(args: PPOConfig, step: int) -> bool:
    """Whether one of the `num_sample_generations` tables, spread over the run, is shown before a step."""
    wanted, rollouts = args.num_sample_generations, args.num_total_batches
    return wanted > 0 and bool(rollouts) and step % max(1, rollouts // wanted) == 0


def show_completions(table: dict[str, list], step: int, report_to: list[str]) -> None:
    """Print the first rows of a table, and log all of them where W&B is among the integrations and runs."""
    rows = list(zip(*table.values(), strict=True))
    shown = Table(*table, title=f"Step {step}", show_lines=True)
    for row in rows[:PRINTED_ROWS]:
        shown.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else cell.replace("[", "\\[") for cell in row))
    Console().print(shown)
    wandb = sys.modules.get("wandb")
    if "wandb" in report_to and wandb is not None and wandb.run is not None:
        wandb.log({"completions": wandb.Table(columns=list(table), data=[list(row) for row in rows])})
