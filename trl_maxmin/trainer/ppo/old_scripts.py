# SPDX-License-Identifier: Apache-2.0
"""What scripts for TRL below 0.12 and for its PPOv2 call things, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


#: Where the migration guide has the whole table.
GUIDE = 'docs/migrating_from_trl_ppo.md, "Scripts for TRL below 0.12"'

_HEAD = "a plain AutoModelForCausalLM as `model`; the critic is a head that the trainer adds (`value_model=None`)"
_COPY = "`ref_model=None`: the reference is then the policy as it is now"
_LOOP = (
    "`trainer.train()`: it samples the replies, scores them with `reward_model=` (a model or a function) and trains"
)
_LOGS = "`report_to=` and callbacks, as in every trainer of transformers"
_SCORE = "a reward function: it may scale, clip or normalise what it returns"
_LAUNCH = "the launcher's settings (`accelerate launch`, an accelerate configuration)"

#: Names that scripts import.
IMPORTS = {
    "AutoModelForCausalLMWithValueHead": _HEAD,
    "AutoModelForSeq2SeqLMWithValueHead": f"{_HEAD}; encoder-decoders are not trained here",
    "PreTrainedModelWrapper": _HEAD,
    "create_reference_model": _COPY,
    "PPOv2Trainer": "`PPOTrainer`",
    "PPOv2Config": "`PPOConfig`",
    "LengthSampler": "`response_length` of PPOConfig, the limit of every reply",
    "respond_to_batch": _LOOP,
    "get_reward": "`reward_model=` of PPOTrainer: a model, a pair `(model, tokenizer)` or a function",
    "AdaptiveKLController": "`adaptive_kl=True` of PPOConfig",
    "FixedKLController": "`kl_coef` of PPOConfig",
}

#: Keywords of the trainer's constructor.
ARGUMENTS = {
    "config": "`args=`",
    "tokenizer": "`processing_class=`",
    "policy": "`model=`",
    "ref_policy": "`ref_model=`",
    "dataset": "`train_dataset=`, with prompts as text, messages or `input_ids`",
    "optimizer": "`optimizers=(optimizer, scheduler)`",
    "lr_scheduler": "`optimizers=(optimizer, scheduler)`",
    "num_shared_layers": "an adapter (`peft_config`), or a reference of its own as `ref_model`",
    "training_data_collator": "`data_collator=`",
    "reward_funcs": "`reward_model=`: functions as well as models, or a list of them",
    "reward_function": "`reward_model=`: functions as well as models, or a list of them",
    "reward_processing_classes": "a pair `(model, tokenizer)` as `reward_model`",
    "max_length": "`response_length` and `max_prompt_length` of PPOConfig",
}

#: Fields of the configuration.
FIELDS = {
    "ppo_epochs": "`num_ppo_epochs`",
    "init_kl_coef": "`kl_coef`",
    "adap_kl_ctrl": "`adaptive_kl`",
    "target": "`kl_target`, the KL that `adaptive_kl=True` holds",
    "horizon": "`kl_horizon`",
    "kl_penalty": "`kl_estimator` (`'k1'` is the old `'kl'`)",
    "early_stopping": "`target_kl` alone: where it is set, a rollout stops early",
    "steps": "`total_episodes` (replies) or `max_steps` (rollouts)",
    "forward_batch_size": "`local_rollout_forward_batch_size`",
    "backward_batch_size": "`per_device_train_batch_size` and `gradient_accumulation_steps`",
    "global_batch_size": "`per_device_train_batch_size` and `gradient_accumulation_steps`",
    "global_backward_batch_size": "`per_device_train_batch_size` and `gradient_accumulation_steps`",
    "model_name": "`model=` of PPOTrainer, which takes a name as well",
    "query_dataset": "`train_dataset=` of PPOTrainer",
    "reward_model": "`reward_model=` of PPOTrainer",
    "log_with": "`report_to`",
    "tracker_project_name": _LOGS,
    "tracker_kwargs": _LOGS,
    "exp_name": "`run_name`",
    "task_name": "`run_name`",
    "accelerator_kwargs": _LAUNCH,
    "project_kwargs": _LAUNCH,
    "optimize_cuda_cache": "nothing: memory is kept in bounds without it",
    "optimize_device_cache": "nothing: memory is kept in bounds without it",
    "use_score_scaling": _SCORE,
    "use_score_norm": _SCORE,
    "score_clip": _SCORE,
    "is_peft_model": "nothing: a `PeftModel` is recognised",
    "is_encoder_decoder": "nothing: only decoders are trained",
    "compare_steps": "nothing: each step takes the replies of its own rollout",
    "ratio_threshold": "`cliprange`, or `target_kl` to stop a rollout early",
    "non_eos_penalty": "`missing_eos_penalty`",
    "penalty_reward_value": "`missing_eos_penalty`",
    "truncate_token": "`stop_token`",
    "truncate_token_id": "`stop_token_id`",
    "base_model": "`model=` of PPOTrainer, which takes a name as well",
    "rloo_k": "`RLOOTrainer` of TRL, or `MaxMinRLOOTrainer`",
    "num_updates": "`max_steps`, or `total_episodes`",
    "update_epochs": "`num_ppo_epochs`",
    "nminibatches": "`num_mini_batches`",
    "max_new_tokens": "`response_length`",
    "generate_kwargs": "`generation_kwargs`",
    "max_length": "`response_length` and `max_prompt_length`",
}

#: Methods of the trainer.
METHODS = {
    "step": _LOOP,
    "generate": "`trainer.policy_model.generate(...)` after training; in it, `trainer.train()` samples the replies",
    "log_stats": _LOGS,
    "compute_rewards": "`_aggregate`, to override",
    "compute_advantages": "`_advantages`, to override",
    "batched_forward_pass": "`_forward_rollout`, to override",
    "prepare_dataloader": "`train_dataset=`; `trainer.train()` reads it",
    "dataloader": "`trainer.train()`, or `trainer.get_train_dataloader()`",
    "gather_stats": _LOGS,
    "compute_reward_model_score": "`reward_model=` of PPOTrainer",
    "add_and_load_reward_modeling_adapter": "`reward_model=`: a mixture of adapters on the policy's base",
}


def remedy(kind: str, name: str, owner: str, table: dict[str, str]) -> str:
    """What to say of an old name."""
    return f"{owner} has no {kind} {name!r} (of an older TRL). Use {table[name]}. See {GUIDE}."


def knows_old_names(
    keywords: dict[str, str], attributes: dict[str, str], kind: str = "argument"
) -> Callable[[type], type]:
    """A class decorator: users of old names are told the new ones, before the constructor is called and where an
    attribute is asked for. Subclasses do the same.

    Args:
        keywords (`dict`): of the constructor.
        attributes (`dict`): methods, or fields to read.
        kind (`str`): what a keyword is called.
    """

    def decorate(decorated: type) -> type:
        def new(cls: type, *args: Any, **kwargs: Any) -> Any:
            for name in kwargs:
                if name in keywords:
                    raise TypeError(remedy(kind, name, cls.__name__, keywords))
            return super(decorated, cls).__new__(cls)

        def get(self: Any, name: str) -> Any:
            if name in attributes:
                raise AttributeError(remedy("attribute", name, type(self).__name__, attributes))
            # Once more, so that what failed inside a property is what is reported.
            return object.__getattribute__(self, name)

        decorated.__new__, decorated.__getattr__ = new, get
        return decorated

    return decorate
