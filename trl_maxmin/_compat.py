# SPDX-License-Identifier: Apache-2.0
"""The private names of TRL and transformers that the package relies on.

What is overridden stands in [`OVERRIDES`]. Of `GRPOTrainer` and `RLOOTrainer`, beside that, `_tokenize_prompts`,
`_generate_and_score_completions`, `_metrics`, `_logs`, `_pending_metrics` and `_pending_extra_logs` are used to
calibrate; `reward_weights`, `reward_func_names`, `ref_model` and `_tokenizer` are read or set. `tests/test_seam.py`
checks them on the oldest and on the newest supported TRL.

`DPOTrainer` computes the loss of a batch; `trainer/dpo` asks it of each pair by `compute_loss`, for which it sets
`precompute_ref_logps` and for the while `accelerator`, `aux_loss_enabled`, `_metrics` and `_total_train_tokens`. It
reads `rewards/accuracies` and `rewards/margins` of `_metrics`, `loss_types` and `ref_model`, and multiplies the
gradient of `log_probs` or `logits`, whichever the outputs have.

Of transformers: what `models/shards.py` reads. It is there because models are loaded where TRL is not installed, too.
"""

from types import ModuleType

from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.base_config import _BaseConfig
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import use_adapter


#: What classes of the package override of a host, and by which parameters the host calls it (`None`: a value; `...`:
#: and more, which differ between releases and are passed on). Every
#: private one is here, and the public ones whose parameters the package repeats.
OVERRIDES: dict[str, dict[str, str | None]] = {
    "transformers.Trainer": {
        "_get_output_dir": "self trial",
        "_get_train_sampler": "self train_dataset",
        "_inner_training_loop": "self batch_size args resume_from_checkpoint trial ignore_keys_for_eval",
        "_load_best_model": "self",
        "_load_from_checkpoint": "self resume_from_checkpoint model",
        "_load_optimizer_and_scheduler": "self checkpoint",
        "_push_from_checkpoint": "self checkpoint_folder",
        "_save": "self output_dir state_dict",
        "_save_checkpoint": "self model trial",
        "_set_signature_columns_if_needed": "self",
        "compute_loss": "self model inputs return_outputs num_items_in_batch",
        "evaluate": "self eval_dataset ignore_keys metric_key_prefix",
        "evaluation_loop": "self dataloader description prediction_loss_only ignore_keys metric_key_prefix",
        "log": "self logs start_time",
        "train": "self resume_from_checkpoint trial ignore_keys_for_eval",
        "training_step": "self model inputs num_items_in_batch",
    },
    "trl.trainer.base_trainer._BaseTrainer": {
        "_name": None,
        "_paper": None,
        "_tag_names": None,
        "create_model_card": "self model_name dataset_name tags",
    },
    "trl.RewardTrainer": {
        "_prepare_dataset": "self dataset processing_class args dataset_name",
    },
    "trl.DPOTrainer": {
        "_prepare_dataset": "self dataset processing_class args dataset_name",
        "compute_ref_log_probs": "self model inputs",
    },
    "trl.GRPOTrainer": {
        "_calculate_rewards": "self inputs prompts completions completion_ids_list",
        "_generate_single_turn": "self prompt_ids images multimodal_fields ...",
        "_get_per_token_logps_and_entropies": "self model input_ids attention_mask logits_to_keep ...",
        "_tokenize_prompts": "self prompts",
    },
    "trl.RLOOTrainer": {
        "_calculate_rewards": "self inputs prompts completions completion_ids_list",
        "_generate_single_turn": "self prompt_ids images multimodal_fields ...",
        "_get_per_token_logps_and_entropies": "self model input_ids attention_mask logits_to_keep ...",
        "_tokenize_prompts": "self prompts",
    },
    "transformers.PreTrainedModel": {
        "_can_compile_fullgraph": None,
        "_keep_in_fp32_modules_strict": None,
        "_set_gradient_checkpointing": "self enable gradient_checkpointing_func every_n_layers",
        "_supports_attention_backend": None,
        "_supports_flash_attn": None,
        "_supports_sdpa": None,
    },
    "transformers.TrainingArguments": {"_VALID_DICT_FIELDS": None},
}

#: What [`VLLMSampler`] calls of `trl.generation.vllm_generation.VLLMGeneration`, and by which parameters.
VLLM_GENERATION: dict[str, str] = {
    "__init__": "self model accelerator processing_class temperature top_p top_k min_p repetition_penalty "
    "max_completion_length logprobs generation_kwargs",
    "sync_weights": "self",
    "generate": "self prompts images num_generations",
}


def vllm_generation() -> ModuleType:
    """TRL's module of the engine; late, because it imports vLLM where that is installed."""
    from trl.generation import vllm_generation as module

    return module


__all__ = [
    "VLLM_GENERATION",
    "vllm_generation",
    "OVERRIDES",
    "DataCollatorForPreference",
    "_BaseConfig",
    "_BaseTrainer",
    "prepare_deepspeed",
    "unwrap_model_for_generation",
    "use_adapter",
]
