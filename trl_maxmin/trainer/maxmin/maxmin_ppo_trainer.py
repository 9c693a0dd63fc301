# SPDX-License-Identifier: Apache-2.0
"""PPO for the worst-off group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..ppo.ppo_trainer import PPOTrainer
from ..ppo.rollout import Rollout, Row
from ..scoring.reference_statistics import ReferenceStatistics, prompt_key
from .maxmin_mixin import MaxMinMixin


class MaxMinPPOTrainer(MaxMinMixin, PPOTrainer):
    r"""
    Trains one policy for the worst-off group: `max_pi min_k E[u_k] - beta KL(pi || pi_ref)`.

    At every rollout the group utilities `U_k` are the means of the utilities over the replies of all ranks, the
    welfare rule turns them into weights, and PPO takes its steps on `sum_k w_k u_k`. The critic predicts each
    component apart, so a change of the worst group does not invalidate it.

    Before its first step the trainer samples replies of the reference policy to the training prompts and measures
    every component on them, so that utilities can be compared (`args.utility`): a minimum over raw rewards means
    nothing.

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
        source = self.reward_source
        self._init_maxmin(source.mixing_weights, welfare_function, reference_statistics, source)

    # -- calibration --------------------------------------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        resume = kwargs.get("resume_from_checkpoint")
        if resume:
            self._load_statistics(Path(resume))
        self.calibrate()
        return super()._inner_training_loop(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`; calibrates first where nothing was trained yet."""
        self.calibrate()
        return super().evaluate(*args, **kwargs)

    def _row_key(self, row: Row) -> str:
        # By what the policy reads: prompts that are cut to the same tokens are one.
        return prompt_key(row["prompt_ids"] if "prompt_ids" in row else self._read_prompt(row))

    @torch.no_grad()
    def _sample_reference(self, rows: list[Row]) -> Rollout:
        if self.reference is not None:
            return self._sample_from(self.reference, rows, "calibration")
        # Before training the policy may be in shards, or not yet where it computes.
        with self._ready_policy(), self._root.reference_mode(self._reference_adapter):
            return self._sample(rows, "calibration")

    def _score_reference(self, replies: Rollout) -> torch.Tensor:
        return self.reward_source(self._reward_batch(replies.inputs, replies.completions, replies.completion_ids))

    def _reference_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        module = self._root.policy if self.reference is None else self.reference.policy
        named = list(module.named_parameters())
        if self.reference is not None:
            return named
        # With adapters, the reference is the base model or the adapter that was set aside for it.
        keep = self._reference_adapter
        return [(name, p) for name, p in named if "lora_" not in name or (keep and f".{keep}." in name)]
