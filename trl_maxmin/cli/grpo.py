# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin grpo`: one policy for the worst-off group with TRL's GRPO, from the user's own prompts and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..trainer.maxmin.maxmin_grpo_config import MaxMinGRPOConfig
from ..trainer.maxmin.maxmin_grpo_trainer import MaxMinGRPOTrainer
from .policy import run_policy


def run(argv: Sequence[str]) -> None:
    """Train and save a policy.

    Args:
        argv (`Sequence[str]`): `--dataset_name` (with a `prompt` column), `--model_name_or_path`, `--reward_model`,
            and the fields of [`MaxMinGRPOConfig`].
    """
    run_policy(argv, "grpo", MaxMinGRPOConfig, _trainer)


def _trainer(reward_model: Any, **kwargs: Any) -> MaxMinGRPOTrainer:
    return MaxMinGRPOTrainer(reward_funcs=reward_model, **kwargs)
