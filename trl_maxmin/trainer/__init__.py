# SPDX-License-Identifier: Apache-2.0
"""Trainers and their configurations."""

from .maxmin_grpo_config import MaxMinGRPOConfig
from .maxmin_grpo_trainer import MaxMinGRPOTrainer
from .maxmin_ppo_config import MaxMinPPOConfig
from .maxmin_ppo_trainer import MaxMinPPOTrainer
from .maxmin_rloo_config import MaxMinRLOOConfig
from .maxmin_rloo_trainer import MaxMinRLOOTrainer
from .mixture_reward_config import MixtureRewardConfig
from .mixture_reward_trainer import MixtureRewardTrainer
from .ppo_config import PPOConfig
from .ppo_trainer import PPOTrainer


__all__ = [
    "MaxMinGRPOConfig",
    "MaxMinGRPOTrainer",
    "MaxMinPPOConfig",
    "MaxMinPPOTrainer",
    "MaxMinRLOOConfig",
    "MaxMinRLOOTrainer",
    "MixtureRewardConfig",
    "MixtureRewardTrainer",
    "PPOConfig",
    "PPOTrainer",
]
