# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin ppo`: one policy for the worst-off group, from the user's own prompts and reward models."""

from __future__ import annotations

from collections.abc import Sequence

from ..trainer import MaxMinPPOConfig, MaxMinPPOTrainer
from .policy import run_policy


def run(argv: Sequence[str]) -> None:
    """Train and save a policy.

    Args:
        argv (`Sequence[str]`): `--dataset_name` (with a `prompt` column), `--model_name_or_path`, `--reward_model`,
            and the fields of [`MaxMinPPOConfig`].
    """
    run_policy(argv, "ppo", MaxMinPPOConfig, MaxMinPPOTrainer, takes_reference=True)
