# SPDX-License-Identifier: Apache-2.0
"""Trainers and their configurations."""

from .maxmin_ppo_config import MaxMinPPOConfig
from .maxmin_ppo_trainer import MaxMinPPOTrainer
from .mixture_reward_config import MixtureRewardConfig
from .mixture_reward_trainer import MixtureRewardTrainer
from .ppo_config import PPOConfig
from .ppo_trainer import PPOTrainer


__all__ = [
    "MaxMinPPOConfig",
    "MaxMinPPOTrainer",
    "MixtureRewardConfig",
    "MixtureRewardTrainer",
    "PPOConfig",
    "PPOTrainer",
]
