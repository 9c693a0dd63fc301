# SPDX-License-Identifier: Apache-2.0
"""Training arguments of [`PPOTrainer`]."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments

from ..._compat import _BaseConfig
from ...functional.ppo import KL_ESTIMATORS
from ..common.config_help import help_from_docstring
from ..common.generation_backends import GENERATION_BACKENDS
from ..common.host_defaults import settle_host_defaults
from .old_scripts import FIELDS, knows_old_names


# Sizes that follow from others.
_FILLED_IN = ("micro_batch_size", "local_batch_size", "batch_size", "local_mini_batch_size", "mini_batch_size")


@help_from_docstring
@knows_old_names(FIELDS, FIELDS, "field")
@dataclass
class PPOConfig(_BaseConfig):
    r"""
    Configuration of [`PPOTrainer`]: all fields of TRL 1.12's `trl.experimental.ppo.PPOConfig`, and some more. For what
    is not listed see [`~transformers.TrainingArguments`]. One step (`max_steps`, `save_steps`, `logging_steps`,
    the learning rate's schedule) is one rollout, that is `per_device_train_batch_size * gradient_accumulation_steps *
    world_size` replies and `num_ppo_epochs * num_mini_batches` optimizer steps.

    Parameters:
        > Parameters that control the length of the run

        total_episodes (`int`, *optional*):
            Replies to train on; rounded up to whole rollouts. Default: `num_train_epochs` passes over the prompts.
            `max_steps` goes before both.

        > Parameters that control the rollout

        response_length (`int`, *optional*, defaults to `53`):
            Length limit of a reply, in tokens. The limit is terminal: nothing is bootstrapped behind it.
        max_prompt_length (`int`, *optional*):
            Longer prompts are cut: text keeps BOS and its last tokens, a conversation loses its oldest turns.
            Default: a prompt that does not fit is an error.
        chat_template_kwargs (`dict`, *optional*):
            What the chat template is given beside the messages, such as `{"enable_thinking": False}`; a
            `chat_template_kwargs` column of the data wins.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature, above 0. The log-probabilities of PPO are those at this temperature.
        generation_kwargs (`dict`, *optional*):
            More settings of [`~transformers.GenerationConfig`]. One that filters or penalises tokens (`top_p`,
            `repetition_penalty`) samples from another distribution than the one PPO weighs.
        generation_backend (`str`, *optional*, defaults to `"generate"`):
            Who samples replies, in rollouts, calibration and evaluation: `"generate"`; `"continuous_batching"` of
            transformers, which fills the places of replies that have ended (faster where many prompts get long
            replies of uneven length); `"auto"`, which chooses by device, sizes and the length of the replies before;
            `"vllm"`, for rollouts and evaluations (needs `trl-maxmin[vllm]`; a run that is resumed draws other
            replies).
        vllm_kwargs (`dict`, *optional*):
            Settings of TRL's `VLLMGeneration`, such as `mode` (`"colocate"`, the default, or `"server"`),
            `server_base_url`, `gpu_memory_utilization`, `tensor_parallel_size`, `enable_sleep_mode`.
        sampling_ratio_cap (`float`, *optional*):
            Truncated importance weighting: the policy's loss of a token counts by the ratio of the trainer's to the
            sampler's probability of it, and at most so often. For samplers that compute otherwise than the trainer
            (`sampling/ratio_mean` is not 1) and tell their probabilities, as `"continuous_batching"` does. Default:
            every token counts once.
        stop_token (`str`, *optional*):
            `"eos"`: the tokenizer's EOS ends a reply. Default: what the policy's `generation_config` says, else the
            tokenizer's EOS. Excludes `stop_token_id`.
        stop_token_id (`int`, *optional*):
            This token ends a reply.
        local_rollout_forward_batch_size (`int`, *optional*, defaults to `64`):
            Replies per process that are generated, and passed without gradient, together.
        num_sample_generations (`int`, *optional*, defaults to `10`):
            How often in the run `generate_completions` prints likeliest replies to a batch of evaluation prompts; 0
            is never. For metrics set `eval_strategy`.
        log_completions (`bool`, *optional*, defaults to `False`):
            Whether each log shows a table of sampled replies with their scores.
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            DeepSpeed ZeRO-3: gather the policy's weights to generate. Faster; needs the memory for them.

        > Parameters that control the reward

        reward_weights (`list[float]`, *optional*):
            What each reward component counts. Default: 1 each.
        missing_eos_penalty (`float`, *optional*):
            Taken off the score of a reply that no stop token ended, under every component. Not negative.
        mask_truncated_completions (`bool`, *optional*, defaults to `False`):
            Whether truncated replies are left out of the loss.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Whether rewards are scaled to variance 1 over all tokens of the rollout, on all processes.
        kl_coef (`float`, *optional*, defaults to `0.05`):
            What a nat of KL to the reference costs; where it starts with `adaptive_kl`.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            `"k1"` (unbiased) or `"k3"` (unbiased, lower variance, never negative).
        adaptive_kl (`bool`, *optional*, defaults to `False`):
            Whether the coefficient is adapted to hold `kl_target` (arXiv 1909.08593).
        kl_target (`float`, *optional*, defaults to `6.0`):
            KL of a whole reply to hold, in nats.
        kl_horizon (`float`, *optional*, defaults to `10000.0`):
            Episodes in which the coefficient moves by about 20 % while the KL is off by 20 % or more.

        > Parameters that control the optimisation

        num_ppo_epochs (`int`, *optional*, defaults to `4`):
            Passes over a rollout.
        num_mini_batches (`int`, *optional*, defaults to `1`):
            Optimizer steps in a pass. The batch of each process has to be divisible by it.
        max_tokens_per_micro_batch (`int`, *optional*):
            Most tokens of a micro-batch of an update, padding included, in place of `per_device_train_batch_size`
            rows: short replies go through together, long ones apart. A longer row is alone. The loss is the same.
            Not under FSDP or DeepSpeed, whose processes have to take equally many.
        cliprange (`float`, *optional*, defaults to `0.2`):
            Clip range of the ratio.
        target_kl (`float`, *optional*):
            Early stop: the minibatch on which the policy is further than this (in nats per token, `0.5 * E[d^2]`) from
            the one that sampled is the last of the rollout. Default: never.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per token.
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of GAE.
        logits_chunk_size (`int`, *optional*, defaults to `4096`):
            Tokens whose logits over the vocabulary exist at the same time.

        > Parameters that control the critic

        critic (`str`, *optional*, defaults to `"vector"`):
            `"vector"`: one output for each reward component and one for the KL penalty, so that the weights may change
            at every rollout. `"scalar"`: one output for the weighted sum. A `value_model` with one label is scalar.
        critic_detach (`bool`, *optional*, defaults to `False`):
            Whether the critic's gradient stops before the policy's trunk (with `value_model=None`).
        critic_adapter (`bool`, *optional*, defaults to `False`):
            With a policy that has an adapter: whether the critic gets one of its own, on the same base and of the same
            shape. Neither loss then moves the other's adapter; a forward takes two passes through the trunk.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss, which is the mean over the critic's outputs.
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            Clip range of the values.

        > Parameters that control models and data

        model_init_kwargs (`dict`, *optional*):
            For `from_pretrained` where `model` is a name. The default data type is float32.
        model_adapter_name, ref_adapter_name (`str`, *optional*):
            Adapters of a `PeftModel` that are trained and that serve as the reference.
        save_critic (`bool`, *optional*, defaults to `True`):
            Whether `save_model`, and with it a push to the Hub, has the critic beside the policy. Checkpoints always
            have it.
        dataset_num_proc (`int`, *optional*):
            Accepted for scripts of TRL 1.12; prompts are tokenised as they are drawn.
        sft_model_path, reward_model_path (`str`, *optional*):
            For scripts; the trainer does not read them.

        > Filled in by the trainer

        world_size, num_total_batches, micro_batch_size, local_batch_size, batch_size, local_mini_batch_size,
        mini_batch_size (`int`, *optional*):
            Filled in: processes, rollouts, and sizes per micro-batch, rollout and optimizer step, on all processes or
            (`local`) one.

    > [!NOTE]
    > Defaults that differ from [`~transformers.TrainingArguments`]: `learning_rate` 3e-6, `logging_steps` 10,
    > `gradient_checkpointing` on, `bf16` on where the accelerator supports it (TRL would raise on a CPU),
    > `remove_unused_columns` off, because the other columns go to the reward functions.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "The initial learning rate for AdamW."})
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Ignored: all columns of the data are passed to the reward functions."}
    )

    total_episodes: int | None = None

    response_length: int = 53
    max_prompt_length: int | None = None
    chat_template_kwargs: dict[str, Any] | str | None = None
    temperature: float = 0.7
    generation_kwargs: dict[str, Any] | str | None = None
    generation_backend: str = "generate"
    vllm_kwargs: dict[str, Any] | str | None = None
    sampling_ratio_cap: float | None = None
    stop_token: Literal["eos"] | None = None
    stop_token_id: int | None = None
    local_rollout_forward_batch_size: int = 64
    num_sample_generations: int = 10
    log_completions: bool = False
    ds3_gather_for_generation: bool = True

    reward_weights: list[float] | None = None
    missing_eos_penalty: float | None = None
    mask_truncated_completions: bool = False
    whiten_rewards: bool = False
    kl_coef: float = 0.05
    kl_estimator: Literal["k1", "k3"] = "k1"
    adaptive_kl: bool = False
    kl_target: float = 6.0
    kl_horizon: float = 10000.0

    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    max_tokens_per_micro_batch: int | None = None
    cliprange: float = 0.2
    target_kl: float | None = None
    gamma: float = 1.0
    lam: float = 0.95
    logits_chunk_size: int = 4096

    critic: Literal["vector", "scalar"] = "vector"
    critic_detach: bool = False
    critic_adapter: bool = False
    vf_coef: float = 0.1
    cliprange_value: float = 0.2

    model_init_kwargs: dict[str, Any] | str | None = None
    model_adapter_name: str | None = None
    ref_adapter_name: str | None = None
    save_critic: bool = True
    dataset_num_proc: int | None = None
    sft_model_path: str = "EleutherAI/pythia-160m"
    reward_model_path: str = "EleutherAI/pythia-160m"

    world_size: int | None = None
    num_total_batches: int | None = None
    micro_batch_size: int | None = None
    local_batch_size: int | None = None
    batch_size: int | None = None
    local_mini_batch_size: int | None = None
    mini_batch_size: int | None = None

    # JSON on the command line.
    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "generation_kwargs",
        "model_init_kwargs",
        "vllm_kwargs",
        "chat_template_kwargs",
    ]

    def __post_init__(self) -> None:
        settle_host_defaults(self)
        super().__post_init__()
        self.remove_unused_columns = False
        # `None` means "do not clip", as 0 does; the loop of transformers 5.23 compares it with a number.
        self.max_grad_norm = self.max_grad_norm or 0.0
        self._check_choices()
        self._check_ranges()

    def fill_sizes(self) -> None:
        """Compute the sizes that follow from the batch size, the accumulation and the number of processes.

        Raises:
            `ValueError`: a batch that `num_mini_batches` does not divide.
        """
        given = {name: getattr(self, name) for name in _FILLED_IN}
        self.micro_batch_size = self.per_device_train_batch_size * self.world_size
        self.local_batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps
        self.batch_size = self.local_batch_size * self.world_size
        if self.local_batch_size % self.num_mini_batches:
            raise ValueError(
                f"A rollout has batch_size={self.batch_size} replies, {self.local_batch_size} on each process "
                f"(per_device_train_batch_size {self.per_device_train_batch_size} x gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}), which num_mini_batches={self.num_mini_batches} does not divide."
            )
        self.local_mini_batch_size = self.local_batch_size // self.num_mini_batches
        self.mini_batch_size = self.batch_size // self.num_mini_batches
        for name, value in given.items():
            if value not in (None, getattr(self, name)):
                warnings.warn(
                    f"{name}={value} was given, but it is {getattr(self, name)}: it follows from "
                    f"per_device_train_batch_size={self.per_device_train_batch_size}, gradient_accumulation_steps="
                    f"{self.gradient_accumulation_steps}, {self.world_size} processes and num_mini_batches="
                    f"{self.num_mini_batches}. Set those.",
                    stacklevel=4,
                )

    def _check_choices(self) -> None:
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ValueError(
                f"Set stop_token ({self.stop_token!r}) or stop_token_id ({self.stop_token_id}), not both."
            )
        allowed = {
            "stop_token": (None, "eos"),
            # k2 is biased: it may be measured, not optimised.
            "kl_estimator": tuple(name for name in KL_ESTIMATORS if name != "k2"),
            "critic": ("vector", "scalar"),
            "generation_backend": (*GENERATION_BACKENDS, "vllm"),
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {choices}.")

    def _check_ranges(self) -> None:
        positive = ("temperature", "response_length", "num_ppo_epochs", "num_mini_batches", "logits_chunk_size")
        positive += ("local_rollout_forward_batch_size", "kl_target", "kl_horizon", "max_prompt_length", "target_kl")
        positive += ("total_episodes", "sampling_ratio_cap", "max_tokens_per_micro_batch")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        for name in ("missing_eos_penalty", "kl_coef"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")


def _number_of_processes(self: PPOConfig) -> int:
    return TrainingArguments.world_size.fget(self)


# TRL 1.12 has `world_size` as a field, `TrainingArguments` as a property that the loop reads: the launcher decides.
PPOConfig.world_size = property(_number_of_processes, lambda self, value: None)
