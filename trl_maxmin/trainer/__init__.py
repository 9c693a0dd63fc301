# SPDX-License-Identifier: Apache-2.0
"""Trainers and their configurations.

Those that build on TRL's GRPO and RLOO are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .maxmin_ppo_config import MaxMinPPOConfig
from .maxmin_ppo_trainer import MaxMinPPOTrainer
from .mixture_reward_config import MixtureRewardConfig
from .mixture_reward_trainer import MixtureRewardTrainer
from .ppo_config import PPOConfig
from .ppo_trainer import PPOTrainer


if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` imports them
    from .maxmin_grpo_config import MaxMinGRPOConfig as MaxMinGRPOConfig
    from .maxmin_grpo_trainer import MaxMinGRPOTrainer as MaxMinGRPOTrainer
    from .maxmin_rloo_config import MaxMinRLOOConfig as MaxMinRLOOConfig
    from .maxmin_rloo_trainer import MaxMinRLOOTrainer as MaxMinRLOOTrainer

_MODULE_OF = {
    "MaxMinGRPOConfig": "maxmin_grpo_config",
    "MaxMinGRPOTrainer": "maxmin_grpo_trainer",
    "MaxMinRLOOConfig": "maxmin_rloo_config",
    "MaxMinRLOOTrainer": "maxmin_rloo_trainer",
}

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


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
