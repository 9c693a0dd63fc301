# SPDX-License-Identifier: Apache-2.0
"""What a trainer needs to measure its components on the reference policy's replies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.logging import get_logger

from ...models.base import weight_hash
from ...models.shards import gathered
from ..scoring.reference_statistics import ReferenceStatistics


logger = get_logger(__name__)

CALIBRATION_FOLDER = "calibration"
#: Replies below which the zero of a utility is uncertain by more than a tenth of a standard deviation.
FEW_REPLIES = 100


@dataclass
class ReferenceReplies:
    """Replies of the reference policy that one rank sampled, B of them.

    Args:
        inputs (`list[dict]`): rows of the data.
        prompts, completions (`list`): text or messages.
        completion_ids (`list[list[int]]`): without padding; a reply ends with its stop token if it finished.
        finished (`torch.Tensor` of shape `(B,)`): bool.
        rewards (`torch.Tensor` of shape `(B, K)`, *optional*): where they were scored already.
    """

    inputs: list[dict[str, Any]]
    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    finished: torch.Tensor
    rewards: torch.Tensor | None = None


def distinct_prompts(
    datasets: Iterable[Any], key_of: Callable[[dict[str, Any]], str], limit: int, utility: str
) -> dict[str, dict[str, Any]]:
    """First rows of the distinct prompts by their key, in the order of the data sets.

    Args:
        datasets (`Iterable`): of rows; `None` is skipped.
        key_of (`Callable`): key of a row's prompt.
        limit (`int`): of their number. The others are measured against the mean over all prompts, except by
            `"win_rate"`, which needs replies to the very prompt.
        utility (`str`): what is measured.

    Returns:
        `dict[str, dict]`: key -> row.

    Raises:
        `ValueError`: more than `limit` prompts with `"win_rate"`.
    """
    rows: dict[str, dict[str, Any]] = {}
    for dataset in datasets:
        for row in () if dataset is None else dataset:
            key = key_of(row)
            if key not in rows and len(rows) == limit:
                if utility == "win_rate":
                    raise ValueError(
                        f"There are more than max_calibration_prompts={limit} distinct prompts, and "
                        "utility='win_rate' needs reference replies to each. Raise `max_calibration_prompts`, "
                        "give fewer prompts, or use 'zscore'."
                    )
                return rows
            rows.setdefault(key, row)
    return rows


def weights_digest(named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> str:
    """Digest of a policy's weights, the same on every device. All ranks call it.

    Args:
        named_parameters: names and weights, in shards or not.
    """
    hashes = []
    for name, parameter in named_parameters:
        with gathered(parameter):
            hashes.append((name, tuple(parameter.shape), weight_hash(parameter)))
    return digest(repr(hashes))


def digest(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def report(statistics: ReferenceStatistics, num_prompts: int, num_replies: int) -> None:
    """Say what was measured, and when it was too little.

    Args:
        statistics ([`ReferenceStatistics`]): of K components.
        num_prompts (`int`): distinct prompts.
        num_replies (`int`): reference replies to each.
    """
    spread = dict(zip(statistics.component_names, statistics.scale.tolist(), strict=True))
    logger.info(f"Calibrated on {num_prompts} prompts with {num_replies} reference replies each; spread {spread}.")
    count = num_prompts * num_replies
    if count < FEW_REPLIES and statistics.num_components > 1:
        logger.warning(
            f"Calibrated on {count} reference replies in all ({num_prompts} distinct prompts): the zero of each "
            f"utility is uncertain by {count**-0.5:.2f} standard deviations, and it decides who is worst off. Give "
            f"more distinct prompts, or raise num_reference_completions to {math.ceil(FEW_REPLIES / num_prompts)} at "
            "least."
        )
