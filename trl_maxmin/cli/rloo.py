# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin rloo`: one policy for the worst-off group with TRL's RLOO, from the user's own prompts and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..trainer.maxmin.maxmin_rloo_config import MaxMinRLOOConfig
from ..trainer.maxmin.maxmin_rloo_trainer import MaxMinRLOOTrainer
from .policy import run_policy


def run(argv: Sequence[str]) -> None:
    """Train and save a policy.

    Args:
        argv (`Sequence[str]`): `--dataset_name` (with a `prompt` column), `--model_name_or_path`, `--reward_model`,
            and the fields of [`MaxMinRLOOConfig`].
    """
    run_policy(argv, "rloo", MaxMinRLOOConfig, _trainer)


def _trainer(reward_model: Any, **kwargs: Any) -> MaxMinRLOOTrainer:
    return MaxMinRLOOTrainer(reward_funcs=reward_model, **kwargs)
