# SPDX-License-Identifier: Apache-2.0
"""Calibration for any MaxMin trainer: measure every component on the reference policy's replies, once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger

from ...distributed import gather_objects, gather_rows
from ...models.shards import gathered
from ..scoring.reference_statistics import RECORD_FILE, ReferenceStatistics
from .maxmin_config import resolve_utility
from .maxmin_mixin import MaxMinMixin


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


class CalibrationMixin(MaxMinMixin):
    """A [`MaxMinMixin`] that can measure its components on the reference policy's replies to the prompts.

    The trainer says how: `_sample_reference` samples, `_score_reference` scores, `_row_key` and `_reply_keys` name
    prompts, `_reference_parameters` are the reference's weights, `_use_statistics` starts measuring with the result.

    Attributes:
        utility (`str`): `"zscore"`, `"win_rate"` or `"raw"`.
        reference_statistics ([`ReferenceStatistics`] or `None`): what utilities are measured against; `None` for
            `"raw"` and before the first rollout.
    """

    def _init_calibration(self, reference_statistics: ReferenceStatistics | None) -> None:
        """Called by the constructor when `reward_func_names` is known."""
        self.utility = resolve_utility(self.args.utility, len(self.reward_func_names))
        self.reference_statistics = reference_statistics
        self._is_calibrated = False

    def calibrate(self, refresh: bool = False) -> None:
        """Measure the components on the reference policy's replies to the training and evaluation prompts, once.

        Does nothing for `utility="raw"` and when it was done; the replies are kept, and saved in every checkpoint.
        Statistics that were given to the constructor are compared with this policy and these prompts, and used. All
        ranks have to call it; they share the prompts.

        Args:
            refresh (`bool`, defaults to `False`): sample and measure again, for other prompts or another reference.

        Raises:
            ValueError: more distinct prompts than `args.max_calibration_prompts` with `utility="win_rate"`, which
                needs replies to each; given statistics of other components.
        """
        if self.utility == "raw" or (self._is_calibrated and not refresh):
            return
        if refresh or self.reference_statistics is None:
            self.reference_statistics = self._measure_reference()
        else:
            keys = list(self._distinct_prompts())
            self.reference_statistics.check_compatible(
                self.reward_func_names, self._policy_fingerprint(), _digest("".join(sorted(keys)))
            )
        self._is_calibrated = True
        self._use_statistics()

    def _measure_reference(self) -> ReferenceStatistics:
        distinct = self._distinct_prompts()
        count = self.args.num_reference_completions
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        # Every rank has the same number of prompts, or hosts that gather without padding would wait for each other.
        even = islice(cycle(distinct.values()), math.ceil(len(distinct) / world) * world)
        replies = self._sample_reference([row for row in list(even)[rank::world] for _ in range(count)])
        rewards = self._score_reference(replies).to(self.accelerator.device, torch.float32)
        rewards = self._without_truncated(rewards, replies.finished.to(rewards.device))
        statistics = ReferenceStatistics.from_rewards(
            self.reward_func_names,
            gather_objects(self.accelerator, self._reply_keys(replies.inputs, replies.prompts)),
            gather_rows(self.accelerator, rewards),
            completions=gather_objects(self.accelerator, replies.completion_ids),
            policy_fingerprint=self._policy_fingerprint(),
            prompts_fingerprint=_digest("".join(sorted(distinct))),
        )
        spread = dict(zip(statistics.component_names, statistics.scale.tolist(), strict=True))
        logger.info(f"Calibrated on {len(distinct)} prompts with {count} reference replies each; spread {spread}.")
        if len(distinct) * count < FEW_REPLIES and len(self.reward_func_names) > 1:
            logger.warning(
                f"Calibrated on {len(distinct) * count} reference replies in all ({len(distinct)} distinct prompts): "
                f"the zero of each utility is uncertain by {(len(distinct) * count) ** -0.5:.2f} standard deviations, "
                "and it decides who is worst off. Give more distinct prompts, or raise num_reference_completions to "
                f"{math.ceil(FEW_REPLIES / len(distinct))} at least."
            )
        return statistics

    def _without_truncated(self, rewards: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
        """NaN for truncated replies, where most replies finish.

        Reward training sees finished replies only, so the level of a truncated one is arbitrary, and a single one of
        them can make up most of the variance.
        """
        share = gather_rows(self.accelerator, finished).float().mean()
        return torch.where(finished.unsqueeze(1), rewards, torch.nan) if share > 0.5 else rewards

    def _distinct_prompts(self) -> dict[str, dict[str, Any]]:
        """First rows of the distinct prompts by their key, training before evaluation.

        At most `args.max_calibration_prompts`; the others are measured against the mean over all prompts, except by
        `"win_rate"`, which needs replies to the very prompt.
        """
        evaluation = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        rows: dict[str, dict[str, Any]] = {}
        for dataset in (self.train_dataset, *evaluation.values()):
            for row in () if dataset is None else dataset:
                key = self._row_key(row)
                if key not in rows and len(rows) == self.args.max_calibration_prompts:
                    if self.utility == "win_rate":
                        raise ValueError(
                            f"There are more than max_calibration_prompts={len(rows)} distinct prompts, and "
                            "utility='win_rate' needs reference replies to each. Raise `max_calibration_prompts`, "
                            "give fewer prompts, or use 'zscore'."
                        )
                    return rows
                rows.setdefault(key, row)
        return rows

    def _policy_fingerprint(self) -> str:
        """Digest of the reference policy's weights: of their sums, which any change of a weight changes."""
        sums = []
        for name, parameter in self._reference_parameters():
            with gathered(parameter):
                total = round(parameter.detach().double().sum().item(), 6)
                sums.append((name, tuple(parameter.shape), total))
        return _digest(repr(sums))

    # -- what the trainer says --------------------------------------------------------------------------------------

    def _sample_reference(self, rows: list[dict[str, Any]]) -> ReferenceReplies:
        """One reply of the reference policy to each row of this rank."""
        raise NotImplementedError

    def _score_reference(self, replies: ReferenceReplies) -> torch.Tensor:
        """Raw rewards `(B, K)` of this rank's replies."""
        raise NotImplementedError

    def _row_key(self, row: dict[str, Any]) -> str:
        """Key of a row's prompt."""
        raise NotImplementedError

    def _reply_keys(self, inputs: list[dict[str, Any]], prompts: list[Any]) -> Sequence[str]:
        """Keys of the prompts of replies."""
        return [self._row_key(row) for row in inputs]

    def _reference_parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Names and weights of the reference policy."""
        raise NotImplementedError

    def _use_statistics(self) -> None:
        """Called when `reference_statistics` has changed."""

    # -- saving -----------------------------------------------------------------------------------------------------

    def _save_run_state(self, folder: Path) -> None:
        super()._save_run_state(folder)
        if self.reference_statistics is not None:
            self.reference_statistics.save(folder / CALIBRATION_FOLDER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_statistics(Path(checkpoint))

    def _load_statistics(self, checkpoint: Path) -> None:
        folder = checkpoint / CALIBRATION_FOLDER
        if self.utility == "raw" or not (folder / RECORD_FILE).is_file():
            return
        self.reference_statistics = ReferenceStatistics.load(folder)
        self.reference_statistics.check_compatible(self.reward_func_names)
        self._is_calibrated = True
        self._use_statistics()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
