# SPDX-License-Identifier: Apache-2.0
"""PPO for the worst-off group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger

from ..distributed import gather_objects, gather_rows
from .calibration import RECORD_FILE, ReferenceStatistics, UtilityReward, batch_prompt_keys, prompt_key
from .maxmin_config import resolve_utility
from .maxmin_mixin import MaxMinMixin
from .ppo_trainer import PPOTrainer
from .rollout import Rollout, Row, sample_completions, seeded


logger = get_logger(__name__)

CALIBRATION_FOLDER = "calibration"


class MaxMinPPOTrainer(MaxMinMixin, PPOTrainer):
    r"""
    Trains one policy for the worst-off group: `max_pi min_k E[u_k] - beta KL(pi || pi_ref)`.

    At every rollout the group utilities `U_k` are the means of the utilities over the replies of all ranks, the
    welfare rule turns them into weights, and PPO takes its steps on `sum_k w_k u_k`. The critic predicts each
    component apart, so a change of the worst group does not invalidate it.

    Before its first step the trainer samples replies of the reference policy to the training prompts and measures
    every
    component on them, so that utilities can be compared (`args.utility`): a minimum over raw rewards means nothing.

    Source: Algorithm 1 of [MaxMin-RLHF](https://arxiv.org/abs/2402.08925). Departs from the paper: utilities are
    standardised per component (`utility="raw"` is the paper's), and other welfare rules are offered beside its hard
    minimum. The per-sample minimum of the paper's released code is `welfare="sample_min"`.

    Args:
        args ([`MaxMinPPOConfig`]): training arguments.
        reward_model: a [`MixtureRewardModel`], or a list of reward functions or one-label reward models, one a group.
        One
            reward is K = 1: conventional RLHF.
        welfare_function (`Callable`, *optional*): a rule of your own, utilities `(K,)` to weights `(K,)`, in place of
            `args.welfare`; its result is projected on the simplex.
        reference_statistics ([`ReferenceStatistics`], *optional*): of an earlier run on this reference policy and
            these prompts; the trainer then does not sample its own, and warns if they do not match.
        **kwargs: as [`PPOTrainer`].

    Attributes:
        reference_statistics ([`ReferenceStatistics`] or `None`): what utilities are measured against; `None` for
        `"raw"`.
        welfare_state ([`WelfareState`]): weights and averages, saved in every checkpoint.

    Raises:
        ValueError: as [`PPOTrainer`]; a floor above 1 / K; `welfare="mixing"` without mixing weights.

    Example:

    ```python
    trainer = MaxMinPPOTrainer(
        args=MaxMinPPOConfig(output_dir="policy"),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=MixtureRewardModel.from_pretrained("mixture"),
        train_dataset=prompts,
    )
    trainer.train()
    ```
    """

    _tag_names = [*PPOTrainer._tag_names, "maxmin-rlhf"]
    _name = "MaxMin-PPO"
    _paper = {"title": "MaxMin-RLHF: Alignment with Diverse Human Preferences", "id": "2402.08925"}

    def __init__(
        self,
        *args: Any,
        welfare_function: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reference_statistics: ReferenceStatistics | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.utility = resolve_utility(self.args.utility, len(self.reward_func_names))
        self.reference_statistics = reference_statistics
        self._init_welfare(self.reward_func_names, self.reward_source.mixing_weights, welfare_function)

    # -- calibration --------------------------------------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        resume = kwargs.get("resume_from_checkpoint")
        folder = Path(resume) / CALIBRATION_FOLDER if resume else None
        if folder is not None and (folder / RECORD_FILE).is_file():
            self.reference_statistics = ReferenceStatistics.load(folder)
            self._use_statistics()
        else:
            self.calibrate()
        return super()._inner_training_loop(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`; calibrates first where nothing was trained yet."""
        self.calibrate()
        return super().evaluate(*args, **kwargs)

    def calibrate(self) -> None:
        """Measure the components on the reference policy's replies to the training prompts, once.

        Does nothing for `utility="raw"` and when it was done. Ranks share the prompts.
        """
        if self.utility == "raw" or isinstance(self.reward_source, UtilityReward):
            return
        if self.reference_statistics is None:
            self.reference_statistics = self._measure_reference()
        else:
            keys = list(self._distinct_prompts())
            self.reference_statistics.check_compatible(
                self.reward_func_names, self._policy_fingerprint(), _digest("".join(sorted(keys)))
            )
        self._use_statistics()

    def _use_statistics(self) -> None:
        source = self.reward_source.source if isinstance(self.reward_source, UtilityReward) else self.reward_source
        self.reward_source = UtilityReward(source, self.reference_statistics, self.utility)

    def _distinct_prompts(self) -> dict[str, Row]:
        """First rows of the distinct prompts by their key, training before evaluation.

        At most `args.max_calibration_prompts`; the others are measured against the mean over all prompts, except by
        `"win_rate"`, which needs replies to the very prompt.
        """
        evaluation = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        rows: dict[str, Row] = {}
        for dataset in (self.train_dataset, *evaluation.values()):
            for row in () if dataset is None else dataset:
                key = prompt_key(self._read_prompt(row))
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

    def _measure_reference(self) -> ReferenceStatistics:
        distinct = self._distinct_prompts()
        count = self.args.num_reference_completions
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        rows = [row for row in list(distinct.values())[rank::world] for _ in range(count)]
        rollout = self._sample_reference(rows)
        batch = self._reward_batch(rollout.inputs, rollout.prompts, rollout.completions, rollout.completion_ids)
        rewards = self.reward_source(batch).to(self.accelerator.device, torch.float32)
        rewards = self._without_truncated(rewards, rollout.finished.to(rewards.device))
        statistics = ReferenceStatistics.from_rewards(
            self.reward_func_names,
            gather_objects(self.accelerator, batch_prompt_keys(batch)),
            gather_rows(self.accelerator, rewards),
            completions=gather_objects(self.accelerator, rollout.completion_ids),
            policy_fingerprint=self._policy_fingerprint(),
            prompts_fingerprint=_digest("".join(sorted(distinct))),
        )
        spread = dict(zip(statistics.component_names, statistics.scale.tolist(), strict=True))
        logger.info(f"Calibrated on {len(distinct)} prompts with {count} reference replies each; spread {spread}.")
        return statistics

    def _without_truncated(self, rewards: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
        """NaN for truncated replies, where most replies finish.

        Reward training sees finished replies only, so the level of a truncated one is arbitrary, and a single one of
        them can make up most of the variance.
        """
        share = gather_rows(self.accelerator, finished).float().mean()
        return torch.where(finished.unsqueeze(1), rewards, torch.nan) if share > 0.5 else rewards

    @torch.no_grad()
    def _sample_reference(self, rows: list[Row]) -> Rollout:
        prompt_ids = [self._read_prompt(row) for row in rows]
        shared = self.reference is None
        with (
            self._root.reference_mode(self._reference_adapter) if shared else nullcontext(),
            seeded(self.accelerator.device, self.args.seed, "calibration", self.accelerator.process_index),
            self.accelerator.autocast(),
        ):
            replies = sample_completions(
                self._root if shared else self.reference,
                prompt_ids,
                self.generation_config,
                self.pad_token_id,
                self.stop_token_ids,
                self.args.local_rollout_forward_batch_size,
            )
        return Rollout.build(
            rows, prompt_ids, replies, self._tokenizer, self.pad_token_id, device=self.accelerator.device
        )

    def _policy_fingerprint(self) -> str:
        """Digest of the reference policy's weights: of their sums, which any change of a weight changes."""
        module = self._root.policy if self.reference is None else self.reference.policy
        sums = [
            (name, tuple(p.shape), round(p.detach().double().sum().item(), 6)) for name, p in module.named_parameters()
        ]
        if self.reference is None:
            # With adapters, the reference is the base model or the adapter that was set aside for it.
            keep = self._reference_adapter
            sums = [entry for entry in sums if "lora_" not in entry[0] or (keep and f".{keep}." in entry[0])]
        return _digest(repr(sums))

    # -- rewards ------------------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: list[Row], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        if not inputs and isinstance(self.reward_source, UtilityReward):
            # A rank without replies still takes part in gathering the raw rewards.
            self.reward_source.last_raw_rewards = torch.zeros(0, len(self.reward_func_names))
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    # -- metrics ------------------------------------------------------------------------------------------------------

    def _component_rewards(self, utilities: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.reward_source, UtilityReward) or self.reward_source.last_raw_rewards is None:
            return utilities
        raw = self.reward_source.last_raw_rewards.to(self.accelerator.device, torch.float32)
        return gather_rows(self.accelerator, raw)

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save_run_state(self, folder: Path) -> None:
        super()._save_run_state(folder)
        if self.reference_statistics is not None:
            self.reference_statistics.save(folder / CALIBRATION_FOLDER)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
