# SPDX-License-Identifier: Apache-2.0
"""Trainers and their configurations, in six rooms, each of which imports only from those before it.

| room | holds |
|---|---|
| `common` | sampling, checkpoints, pushes, what goes into the run record |
| `scoring` | text or ids to rewards, and rewards to utilities |
| `reward` | the EM trainer |
| `ppo` | the PPO trainer |
| `maxmin` | welfare, calibration, and the trainers that serve the worst-off group |
| `dpo` | the trainer that does so from preferences alone |

Names are imported when they are first used: scoring alone needs no TRL.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` imports them
    from .dpo.maxmin_dpo_config import MaxMinDPOConfig as MaxMinDPOConfig
    from .dpo.maxmin_dpo_trainer import MaxMinDPOTrainer as MaxMinDPOTrainer
    from .maxmin.maxmin_grpo_config import MaxMinGRPOConfig as MaxMinGRPOConfig
    from .maxmin.maxmin_grpo_trainer import MaxMinGRPOTrainer as MaxMinGRPOTrainer
    from .maxmin.maxmin_ppo_config import MaxMinPPOConfig as MaxMinPPOConfig
    from .maxmin.maxmin_ppo_trainer import MaxMinPPOTrainer as MaxMinPPOTrainer
    from .maxmin.maxmin_rloo_config import MaxMinRLOOConfig as MaxMinRLOOConfig
    from .maxmin.maxmin_rloo_trainer import MaxMinRLOOTrainer as MaxMinRLOOTrainer
    from .ppo.ppo_config import PPOConfig as PPOConfig
    from .ppo.ppo_trainer import PPOTrainer as PPOTrainer
    from .reward.mixture_reward_config import MixtureRewardConfig as MixtureRewardConfig
    from .reward.mixture_reward_trainer import MixtureRewardTrainer as MixtureRewardTrainer

_MODULE_OF = {
    "MaxMinDPOConfig": "dpo.maxmin_dpo_config",
    "MaxMinDPOTrainer": "dpo.maxmin_dpo_trainer",
    "MaxMinGRPOConfig": "maxmin.maxmin_grpo_config",
    "MaxMinGRPOTrainer": "maxmin.maxmin_grpo_trainer",
    "MaxMinPPOConfig": "maxmin.maxmin_ppo_config",
    "MaxMinPPOTrainer": "maxmin.maxmin_ppo_trainer",
    "MaxMinRLOOConfig": "maxmin.maxmin_rloo_config",
    "MaxMinRLOOTrainer": "maxmin.maxmin_rloo_trainer",
    "MixtureRewardConfig": "reward.mixture_reward_config",
    "MixtureRewardTrainer": "reward.mixture_reward_trainer",
    "PPOConfig": "ppo.ppo_config",
    "PPOTrainer": "ppo.ppo_trainer",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
