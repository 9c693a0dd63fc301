# SPDX-License-Identifier: Apache-2.0
"""What the constructor of [`PPOTrainer`] puts together: the plan of the run, the policy, its critic, its reference."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import has_length

from ..._compat import disable_dropout_in_model, prepare_deepspeed
from ...models.base import base_model
from ...models.lora import freeze_reward_adapters
from ..common.sampling import seeded
from .checkpoint import load_pretrained
from .policy import PolicyWithCritic, check_head
from .policy_adapters import add_reference_adapter
from .ppo_config import PPOConfig


def require(**arguments: Any) -> None:
    """Complain about what is missing.

    Args:
        arguments: by name; `None` is missing.

    Raises:
        `ValueError`: naming the first.
    """
    for name, value in arguments.items():
        if value is None:
            raise ValueError(f"`{name}` is required.")


def plan_steps(args: PPOConfig, train_dataset: Any) -> None:
    """Fill in sizes and the number of rollouts.

    Args:
        args ([`PPOConfig`]): changed in place.
        train_dataset: rows; its length is used where it has one.

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
    if args.total_episodes is not None and args.max_steps < 0:
        args.max_steps = math.ceil(args.total_episodes / args.batch_size)
    args.num_total_batches = args.max_steps if args.max_steps > 0 else None
    if not has_length(train_dataset):
        # Each process reads the stream itself: what one process hands out to the others has to be tensors.
        if args.accelerator_config.dispatch_batches is None:
            args.accelerator_config.dispatch_batches = False
        return
    rollouts_per_pass = len(train_dataset) // args.batch_size
    if rollouts_per_pass == 0:
        raise ValueError(
            f"The training set has {len(train_dataset)} prompts, but one rollout takes {args.batch_size} "
            f"(per_device_train_batch_size {args.per_device_train_batch_size} x gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps} x {args.world_size} processes). Give more prompts or lower these."
        )
    if args.max_steps <= 0:
        args.num_total_batches = math.ceil(args.num_train_epochs * rollouts_per_pass)


def load_tokenizer(
    processing_class: Any, model: str | PreTrainedModel | PeftModel, args: PPOConfig
) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, read before its weights are.

    Args:
        processing_class (`PreTrainedTokenizerBase` or processor, *optional*): the user's; by default the one saved
            with the model.
        model (`str`, [`~transformers.PreTrainedModel`] or `peft.PeftModel`): the policy.
        args ([`PPOConfig`]): `trust_remote_code` in its `model_init_kwargs` is read.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`] or a processor.

    Raises:
        `ValueError`: there is none where the model is.
    """
    if processing_class is not None:
        return processing_class
    name = model if isinstance(model, str) else base_model(model).config.name_or_path
    trust = (args.model_init_kwargs or {}).get("trust_remote_code", False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"`model` {name!r} has no tokenizer; pass `processing_class`. ({error})") from error
    # From a model's configuration alone transformers makes a tokenizer of the right class that knows no word.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"`model` {name!r} has no tokenizer with a vocabulary; pass `processing_class`.")
    return tokenizer


def padding_token(candidates: list[int | None], policy: PreTrainedModel | PeftModel) -> int:
    """An id to pad with. Masks travel with the ids, so any that the policy can embed will do: scripts of TRL 1.12 add
    a pad token to the tokenizer without resizing the model.

    Args:
        candidates (`list`): ids, the best first; `None`: there is none.
        policy ([`~transformers.PreTrainedModel`] or `peft.PeftModel`): its embedding is read.

    Returns:
        `int`.
    """
    size = base_model(policy).get_input_embeddings().num_embeddings
    return next(token for token in [*candidates, 0] if token is not None and token < size)


def initial_weights(given: list[float] | None, names: list[str]) -> torch.Tensor:
    """What each reward counts.

    Args:
        given (`list[float]`, *optional*): the user's; 1 each by default.
        names (`list[str]`): of the K rewards.

    Returns:
        `torch.Tensor` of shape `(K,)`: float32.

    Raises:
        `ValueError`: another number of weights.
    """
    weights = [1.0] * len(names) if given is None else given
    if len(weights) != len(names):
        raise ValueError(f"reward_weights has {len(weights)} entries, but there are {len(names)} rewards: {names}.")
    return torch.tensor(weights, dtype=torch.float32)


def load_policy(
    model: str | PreTrainedModel | PeftModel, args: PPOConfig, peft_config: PeftConfig | None
) -> PreTrainedModel | PeftModel:
    """The policy to train, with its adapter.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or `peft.PeftModel`): a model, or the name of one.
        args ([`PPOConfig`]): `model_init_kwargs`, `model_adapter_name` and `seed` are read.
        peft_config (`peft.PeftConfig`, *optional*): of a new adapter.

    Returns:
        [`~transformers.PreTrainedModel`] or `peft.PeftModel`.

    Raises:
        `ValueError`: an adapter on top of another; weights that are not there as a whole.
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

    Args:
        value_model ([`~transformers.PreTrainedModel`] or `peft.PeftModel`, *optional*): the critic.
        peft_config (`peft.PeftConfig`, *optional*): of the policy's new adapter.
        seed (`int`): of the adapter's random part.

    Returns:
        [`~transformers.PreTrainedModel`] or `peft.PeftModel`: as it was, where it has an adapter, where there is no
        `peft_config`, or (with a warning) where the adapter does not fit it.
    """
    if value_model is None or peft_config is None or isinstance(value_model, PeftModel):
        return value_model
    config = copy.deepcopy(peft_config)
    config.task_type = TaskType.SEQ_CLS
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
    """The policy with its critic.

    Args:
        policy ([`~transformers.PreTrainedModel`] or `peft.PeftModel`): to train.
        value_model ([`~transformers.PreTrainedModel`], *optional*): the critic; one label means a scalar critic.
        args ([`PPOConfig`]): `critic`, `critic_detach`, `critic_adapter` and `logits_chunk_size` are read.
        num_rewards (`int`): K.

    Returns:
        `tuple`: the root module, and whether its critic predicts the weighted sum (`True`) or each channel (`False`).

    Raises:
        `ValueError`: nothing to train, or a policy or critic that does not fit.
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
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError("No parameter of the policy is trainable. Load an adapter with `is_trainable=True`.")
    if not is_deepspeed_zero3_enabled():
        check_head(policy)
    return root, scalar


def build_reference(
    root: PolicyWithCritic, ref_model: PreTrainedModel | None, peft_config: PeftConfig | None, args: PPOConfig
) -> tuple[PolicyWithCritic | None, str | None]:
    """The reference of the KL penalty.

    Args:
        root ([`PolicyWithCritic`]): holds the policy; gets one more adapter where a trained one is the reference.
        ref_model ([`~transformers.PreTrainedModel`], *optional*): the reference, if it is not the policy as it is now.
        peft_config (`peft.PeftConfig`, *optional*): of an adapter that is new, so that switching it off is enough.
        args ([`PPOConfig`]): `ref_adapter_name` and `logits_chunk_size` are read.

    Returns:
        `tuple`: a module of its own, or `None` and the adapter (`None`: none) that turns the policy into its
        reference.

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
    reference = PolicyWithCritic(reference, 0, logits_chunk_size=args.logits_chunk_size)
    return reference.eval().requires_grad_(False), None


def match_shards(root: PolicyWithCritic) -> None:
    """Give the weights that were made beside a policy in shards (DeepSpeed ZeRO-3), those of adapters and of the
    critic's head, its dtype: ZeRO-3 keeps what it trains in one buffer, with a float32 copy for the optimizer.

    Args:
        root ([`PolicyWithCritic`]): changed in place; one that is whole stays as it is.
    """
    shard = next((parameter for parameter in root.policy.parameters() if hasattr(parameter, "ds_id")), None)
    if shard is None:
        return
    for parameter in root.parameters():
        if not hasattr(parameter, "ds_id") and parameter.is_floating_point():
            parameter.data = parameter.data.to(shard.device, shard.dtype)


def place_reference(reference: PolicyWithCritic, accelerator: Accelerator) -> torch.nn.Module:
    """The reference where it computes, in the dtype of the policy under DeepSpeed: in shards like the policy under
    ZeRO-3, whole on each rank otherwise.

    Args:
        reference ([`PolicyWithCritic`]): on the CPU, or in shards.
        accelerator ([`~accelerate.Accelerator`]): the trainer's.

    Returns:
        `nn.Module`: to call, and to sample from.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return prepare_deepspeed(reference, accelerator)
    return reference.to(accelerator.device)


def disable_dropout(module: torch.nn.Module) -> None:
    """Switch dropout off: the policy that samples has to be the policy that is weighed, or the first ratio is not 1.

    Args:
        module (`torch.nn.Module`): changed in place.
    """
    disable_dropout_in_model(module)
    for child in module.modules():
        # Llama and its kin hold the rate of attention dropout as a number.
        if isinstance(getattr(child, "attention_dropout", None), float):
            child.attention_dropout = 0.0
