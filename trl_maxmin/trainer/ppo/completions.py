# SPDX-License-Identifier: Apache-2.0
"""Tables of what a policy answers, for people to read while it trains."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from ...distributed import gather_objects, gather_rows
from .rollout import Rollout


# More rows than this are logged, but not printed.
PRINTED_ROWS = 5


def completion_columns(
    accelerator: Accelerator, rollout: Rollout, scores: torch.Tensor, weights: torch.Tensor, names: list[str]
) -> dict[str, list]:
    """Prompts, replies and scores of all ranks.

    Args:
        accelerator ([`~accelerate.Accelerator`]): the trainer's.
        rollout ([`Rollout`]): replies of this rank, B of them.
        scores (`torch.Tensor` of shape `(B, K)`): of the replies.
        weights (`torch.Tensor` of shape `(K,)`): what each component counts.
        names (`list[str]`): of the components.

    Returns:
        `dict[str, list]`: columns `"query"`, `"model response"`, `"score"` (the weighted sum), and one for each
        component where there are several.
    """
    scores = gather_rows(accelerator, scores.to(accelerator.device, torch.float32)).cpu()
    weights = weights.cpu()
    columns = {
        "query": gather_objects(accelerator, [_text(prompt) for prompt in rollout.prompts]),
        "model response": gather_objects(accelerator, [_text(reply) for reply in rollout.completions]),
        "score": (scores[:, weights != 0] @ weights[weights != 0]).tolist(),
    }
    return columns | (dict(zip(names, scores.T.tolist(), strict=True)) if len(names) > 1 else {})


def show_completions(table: dict[str, list], step: int, report_to: list[str]) -> None:
    """Print the first rows of a table, and log all of them where W&B runs.

    Args:
        table (`dict[str, list]`): columns of text and numbers.
        step (`int`): for the title.
        report_to (`list[str]`): the trainer's integrations.
    """
    rows = list(zip(*table.values(), strict=True))
    shown = Table(*table, title=f"Step {step}", show_lines=True)
    for row in rows[:PRINTED_ROWS]:
        shown.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else cell.replace("[", "\\[") for cell in row))
    Console().print(shown)
    wandb = sys.modules.get("wandb")
    if "wandb" in report_to and wandb is not None and wandb.run is not None:
        wandb.log({"completions": wandb.Table(columns=list(table), data=[list(row) for row in rows])})


def _text(message: Any) -> str:
    if isinstance(message, str):
        return message
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in message)
