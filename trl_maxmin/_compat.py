# SPDX-License-Identifier: Apache-2.0
"""The private names of TRL and transformers that the package relies on."""

from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.base_config import _BaseConfig
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import disable_dropout_in_model


__all__ = [
    "DataCollatorForPreference",
    "_BaseConfig",
    "_BaseTrainer",
    "disable_dropout_in_model",
    "prepare_deepspeed",
    "unwrap_model_for_generation",
]
