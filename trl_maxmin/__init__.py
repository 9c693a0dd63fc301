# SPDX-License-Identifier: Apache-2.0
"""MaxMin-RLHF for TRL: mixtures of reward models learned by EM, and one policy for the worst-off group.

Names are imported when they are first used, so that `import trl_maxmin` costs nothing and registers nothing but the
model classes that are asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any


try:
    __version__ = importlib.metadata.version("trl-maxmin")
except importlib.metadata.PackageNotFoundError:  # a checkout that nobody has installed
    __version__ = "0+unknown"

_MODULE_OF = {
    "MixtureRewardModel": "models",
    "MixtureRewardModelConfig": "models",
    "MixtureRewardConfig": "trainer",
    "MixtureRewardTrainer": "trainer",
    "PPOConfig": "trainer",
    "PPOTrainer": "trainer",
    "MaxMinPPOConfig": "trainer",
    "MaxMinPPOTrainer": "trainer",
    "MaxMinGRPOConfig": "trainer",
    "MaxMinGRPOTrainer": "trainer",
    "MaxMinRLOOConfig": "trainer",
    "MaxMinRLOOTrainer": "trainer",
    "MaxMinDPOConfig": "trainer",
    "MaxMinDPOTrainer": "trainer",
}

__all__ = ["__version__", *_MODULE_OF]

if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` imports them
    from .models import MixtureRewardModel as MixtureRewardModel
    from .models import MixtureRewardModelConfig as MixtureRewardModelConfig
    from .trainer import MaxMinDPOConfig as MaxMinDPOConfig
    from .trainer import MaxMinDPOTrainer as MaxMinDPOTrainer
    from .trainer import MaxMinGRPOConfig as MaxMinGRPOConfig
    from .trainer import MaxMinGRPOTrainer as MaxMinGRPOTrainer
    from .trainer import MaxMinPPOConfig as MaxMinPPOConfig
    from .trainer import MaxMinPPOTrainer as MaxMinPPOTrainer
    from .trainer import MaxMinRLOOConfig as MaxMinRLOOConfig
    from .trainer import MaxMinRLOOTrainer as MaxMinRLOOTrainer
    from .trainer import MixtureRewardConfig as MixtureRewardConfig
    from .trainer import MixtureRewardTrainer as MixtureRewardTrainer
    from .trainer import PPOConfig as PPOConfig
    from .trainer import PPOTrainer as PPOTrainer


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    old_scripts = importlib.import_module(".trainer.ppo.old_scripts", __name__)
    if name in old_scripts.IMPORTS:
        raise ImportError(
            f"{name} is not part of trl_maxmin. Use {old_scripts.IMPORTS[name]}. See {old_scripts.GUIDE}."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
