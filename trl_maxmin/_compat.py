# SPDX-License-Identifier: Apache-2.0
"""The private names of TRL and transformers that the package relies on.

Of `GRPOTrainer` and `RLOOTrainer`, beside what they document: `_calculate_rewards` is overridden; `_tokenize_prompts`,
`_generate_and_score_completions`, `_metrics`, `_logs`, `_pending_metrics` and `_pending_extra_logs` are used to
calibrate; `reward_weights`, `reward_func_names`, `ref_model` and `_tokenizer` are read or set. `tests/test_seam.py`
checks them on the oldest and on the newest supported TRL.

Of transformers: what `models/shards.py` reads. It is there because models are loaded where TRL is not installed, too.
"""

from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.base_config import _BaseConfig
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import disable_dropout_in_model, use_adapter


__all__ = [
    "DataCollatorForPreference",
    "_BaseConfig",
    "_BaseTrainer",
    "disable_dropout_in_model",
    "prepare_deepspeed",
    "unwrap_model_for_generation",
    "use_adapter",
]
