# SPDX-License-Identifier: Apache-2.0
"""What the constructor of [`PPOTrainer`] puts together: the plan of the run, the policy, its critic, its reference."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.integrations.deepspeed import deepspeed_init, is_deepspeed_zero3_enabled
from transformers.trainer_utils import has_length

from ..._compat import prepare_deepspeed
from ...models.base import base_model, place
from ...models.loading import load_pretrained
from ...models.lora import freeze_reward_adapters
from ..common.sampling import resolve_stop_tokens, seeded
from ..common.trained import check_trained
from . import roles
from .policy import PolicyWithCritic, check_head
from .policy_adapters import add_reference_adapter
from .ppo_config import PPOConfig


def plan_steps(args: PPOConfig, train_dataset: Any) -> None:
    """Fill sizes and the number of rollouts in `args`, from the length of the data where it has one.

    As in TRL 1.12: `num_train_epochs` passes over the data are so many replies, rounded up to whole rollouts.

    Raises:
        `ValueError`: a batch that does not divide, or fewer prompts than one rollout takes.
    """
    args.fill_sizes()
    if args.n_gpu > 1:
        warnings.warn(
            f"{args.n_gpu} GPUs are visible to one process, only the first is used. Start with `accelerate launch`.",
            stacklevel=3,
        )
        args._n_gpu = 1
    # Ranks have random states of their own; the order of the prompts is one.
    args.data_seed = args.seed if args.data_seed is None else args.data_seed
    # The root uses all its parameters in every forward; searching for unused ones costs a pass over the graph.
    args.ddp_find_unused_parameters = bool(args.ddp_find_unused_parameters)
    if args.max_steps == getattr(args, "planned_steps", None):
        # Of the trainer that had these arguments before; its data may have been others.
        args.max_steps = -1
    if args.max_steps < 0:
        episodes = args.total_episodes
        if episodes is None and has_length(train_dataset):
            episodes = int(args.num_train_epochs * len(train_dataset))
        if episodes is not None:
            args.max_steps = args.planned_steps = math.ceil(episodes / args.batch_size)
    args.num_total_batches = args.max_steps if args.max_steps > 0 else None
    if not has_length(train_dataset):
        # Each process reads the stream itself: what one process hands out to the others has to be tensors.
        if args.accelerator_config.dispatch_batches is None:
            args.accelerator_config.dispatch_batches = False
        return
    if len(train_dataset) < args.batch_size:
        raise ValueError(
            f"The training set has {len(train_dataset)} prompts, but one rollout takes {args.batch_size} "
            f"(per_device_train_batch_size {args.per_device_train_batch_size} x gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps} x {args.world_size} processes). Give more prompts or lower these."
        )


def padding_token(candidates: list[int | None], policy: PreTrainedModel | PeftModel) -> int:
    """The first of the candidate ids that the policy can embed, else 0.

    Masks travel with the ids, so any will do: scripts of TRL 1.12 add a pad token to the tokenizer without resizing
    the model.
    """
    size = base_model(policy).get_input_embeddings().num_embeddings
    return next(token for token in [*candidates, 0] if token is not None and token < size)


def initial_weights(given: list[float] | None, names: list[str]) -> torch.Tensor:
    """What each of the K rewards counts `(K,)`: what is given, or 1 each.

    Raises:
        `ValueError`: another number of weights than of names.
    """
    weights = [1.0] * len(names) if given is None else given
    if len(weights) != len(names):
        raise ValueError(f"reward_weights has {len(weights)} entries, but there are {len(names)} rewards: {names}.")
    return torch.tensor(weights, dtype=torch.float32)


def stop_tokens_of(
    args: PPOConfig, policy: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, conversational: bool
) -> list[int]:
    """Tokens that end a reply; the saved policy's generation configuration gets them where a conversation adds one, so
    that it ends in use where it ended in training.

    Args:
        args ([`PPOConfig`]): `stop_token` and `stop_token_id` are read.
        policy (`torch.nn.Module`): its `generation_config` may be changed.
        tokenizer: the policy's.
        conversational (`bool`): whether prompts are messages.
    """
    given = (args.stop_token, args.stop_token_id, policy, tokenizer)
    alone, found = resolve_stop_tokens(*given), resolve_stop_tokens(*given, conversational)
    if found != alone:
        base_model(policy).generation_config.eos_token_id = list(found)
    return found


def load_policy(
    model: str | PreTrainedModel | PeftModel, args: PPOConfig, peft_config: PeftConfig | None
) -> PreTrainedModel | PeftModel:
    """The policy to train, a model or the name of one, with a new adapter where `peft_config` asks for it.

    Raises:
        `ValueError`: an adapter on top of another; a model that is not there as a whole (see [`load_pretrained`]).
    """
    if isinstance(model, str):
        options = {"dtype": "float32", **(args.model_init_kwargs or {})}
        model = load_pretrained(AutoModelForCausalLM, model, argument="`model`", **options)
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ValueError(
                "`model` has an adapter already; merge it (`merge_and_unload`), or leave out `peft_config`."
            )
        with seeded(torch.device("cpu"), args.seed, "adapter"):
            model = get_peft_model(model, peft_config)
    if isinstance(model, PeftModel) and args.model_adapter_name is not None:
        model.set_adapter(args.model_adapter_name)
    return model


def adapt_critic(
    value_model: PreTrainedModel | PeftModel | None, peft_config: PeftConfig | None, seed: int
) -> PreTrainedModel | PeftModel | None:
    """The critic, with an adapter where the policy gets one: trained in full it would outweigh what that saves.

    It stays as it is where it has an adapter already, and (with a warning) where that of `peft_config` does not
    fit it.
    """
    if value_model is None or peft_config is None or isinstance(value_model, PeftModel):
        return value_model
    config = copy.deepcopy(peft_config)
    config.task_type, config.base_model_name_or_path = TaskType.SEQ_CLS, None
    try:
        with seeded(torch.device("cpu"), seed, "critic adapter"):
            return get_peft_model(value_model, config)
    except ValueError as error:
        warnings.warn(
            f"The adapter of `peft_config` does not fit the value model ({error}), which is trained in full. Leave "
            "`value_model=None` for a head on the policy's trunk, or pass a `PeftModel`.",
            stacklevel=4,
        )
        return value_model


def build_root(
    policy: PreTrainedModel | PeftModel, value_model: Any, args: PPOConfig, num_rewards: int
) -> tuple[PolicyWithCritic, bool]:
    """The policy with its critic, and whether that predicts the weighted sum of the K rewards (or each channel apart).

    Raises:
        `ValueError`: a policy or critic that does not fit.
    """
    if args.critic_adapter and value_model is not None:
        raise ValueError("critic_adapter=True puts the critic on the policy's base; leave `value_model=None`.")
    scalar = args.critic == "scalar" or (value_model is not None and base_model(value_model).config.num_labels == 1)
    root = PolicyWithCritic(
        policy,
        1 if scalar else num_rewards + 1,
        value_model,
        args.critic_detach,
        args.logits_chunk_size,
        args.critic_adapter,
    )
    freeze_reward_adapters(root)
    if not is_deepspeed_zero3_enabled():
        check_head(policy)
    return root, scalar


def build_reference(
    root: PolicyWithCritic, ref_model: PreTrainedModel | None, peft_config: PeftConfig | None, args: PPOConfig
) -> tuple[PolicyWithCritic | None, str | None]:
    """The reference of the KL penalty: a module of its own, or `None` and the adapter (`None`: none) that turns the
    policy into its reference.

    With `peft_config` the policy's adapter is new, so that switching it off is enough; one that was trained before is
    copied into the root.

    Raises:
        `ValueError`: no `ref_model`, and a policy in shards (DeepSpeed ZeRO-3), which cannot be copied.
    """
    if ref_model is None and isinstance(root.policy, PeftModel):
        if args.ref_adapter_name is not None or peft_config is not None:
            return None, args.ref_adapter_name
        return None, add_reference_adapter(root.policy)
    if ref_model is None and any(hasattr(parameter, "ds_id") for parameter in root.policy.parameters()):
        raise ValueError(
            "Under DeepSpeed ZeRO-3 the policy is loaded in shards, and a copy of shards is not a model. Load the "
            "reference as well, `ref_model=AutoModelForCausalLM.from_pretrained(...)`, or train an adapter "
            "(`peft_config`), whose reference is the policy without it."
        )
    reference = copy.deepcopy(root.policy) if ref_model is None else ref_model
    if ref_model is not None and not is_deepspeed_zero3_enabled():
        check_head(ref_model)
    reference = PolicyWithCritic(reference, 0, logits_chunk_size=args.logits_chunk_size)
    return reference.eval().requires_grad_(False), None


def check_roles(
    root: PolicyWithCritic, ref_model: torch.nn.Module | None, rewards: list, known_tokens: int, args: PPOConfig
) -> None:
    """Raise or warn where the roles do not go together; to call before the reference is frozen.

    Args:
        root ([`PolicyWithCritic`]): policy and critic, with their adapters.
        ref_model (`torch.nn.Module`, *optional*): the reference that was given.
        rewards (`list[torch.nn.Module]`): models that give rewards.
        known_tokens (`int`): ids of the policy's tokenizer.
        args ([`PPOConfig`]): the learning rate is read.

    Raises:
        `ValueError`: as [`roles.check_vocabularies`] and [`check_trained`].
    """
    roles.check_vocabularies(root.policy, ref_model, root.value_model, known_tokens)
    check_trained(args, root.policy, ref_model, root.value_model, rewards)


def refuse_engine_scheduler(accelerator: Accelerator) -> None:
    """A scheduler of DeepSpeed's own steps with its optimizer, several times a rollout; the schedule of the run counts
    rollouts, and would be over after a fraction of it.

    Args:
        accelerator ([`~accelerate.Accelerator`]): the trainer's.

    Raises:
        `ValueError`: DeepSpeed's configuration has a `scheduler`.
    """
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    block = None if plugin is None else plugin.deepspeed_config.get("scheduler")
    if block is not None:
        raise ValueError(
            f"DeepSpeed's configuration has `scheduler: {block}`, which would step at every minibatch and epoch of a "
            "rollout. Take it out: the schedule is that of `lr_scheduler_type`, `warmup_steps` and `learning_rate`, "
            "which counts rollouts and runs under DeepSpeed too."
        )


def refuse_uneven_micro_batches(args: PPOConfig, accelerator: Accelerator) -> None:
    """Processes that gather weights in each forward have to make equally many of them.

    Args:
        args ([`PPOConfig`]): `max_tokens_per_micro_batch` is read.
        accelerator ([`~accelerate.Accelerator`]): the trainer's.

    Raises:
        `ValueError`: micro-batches by tokens under FSDP or DeepSpeed.
    """
    kind = accelerator.distributed_type
    if args.max_tokens_per_micro_batch is not None and kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"max_tokens_per_micro_batch={args.max_tokens_per_micro_batch} gives processes different numbers of "
            f"micro-batches, which {kind.value} cannot run. Leave it out; per_device_train_batch_size counts rows."
        )


def match_shards(root: PolicyWithCritic) -> None:
    """Give the weights that were made beside a policy in shards (DeepSpeed ZeRO-3), those of adapters and of the
    critic's head, its dtype: ZeRO-3 keeps what it trains in one buffer, with a float32 copy for the optimizer."""
    shard = next((parameter for parameter in root.policy.parameters() if hasattr(parameter, "ds_id")), None)
    if shard is None:
        return
    for parameter in root.parameters():
        if not hasattr(parameter, "ds_id") and parameter.is_floating_point():
            parameter.data = parameter.data.to(shard.device, shard.dtype)


def place_reference(reference: PolicyWithCritic, accelerator: Accelerator) -> torch.nn.Module:
    """The reference where it computes, in the dtype of the policy under DeepSpeed: in shards like the policy under
    ZeRO-3, whole on each rank otherwise."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return prepare_deepspeed(reference, accelerator)
    return reference.to(accelerator.device)


@contextmanager
def ready_policy(trainer: Trainer) -> Iterator[None]:
    """The policy of a trainer ready to compute. Before training it may still be on the CPU, and in shards (DeepSpeed
    ZeRO-3) it has no engine that gathers them layer by layer; the one it gets here cannot train, so it goes again."""
    if not is_deepspeed_zero3_enabled() or trainer.deepspeed is not None:
        if not trainer.state.max_steps:
            place(trainer.model, trainer.accelerator.device)
        yield
        return
    deepspeed_init(trainer, num_training_steps=0, inference=True)
    trainer.deepspeed = trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    try:
        yield
    finally:
        trainer.deepspeed.destroy()
        trainer.deepspeed, trainer.model_wrapped = None, trainer.model
        trainer.accelerator.free_memory()
