# SPDX-License-Identifier: Apache-2.0
"""Trainers and their configurations."""

from .mixture_reward_config import MixtureRewardConfig
from .mixture_reward_trainer import MixtureRewardTrainer

__all__ = ["MixtureRewardConfig", "MixtureRewardTrainer"]
