# SPDX-License-Identifier: Apache-2.0
"""Who plays which part in PPO: policy, reference, critic and rewards are what they have to be, and nobody else."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ...models.base import base_model
from ...models.lora import carries_adapters
from ...models.modeling_mixture_reward import MixtureRewardModel
from .old_scripts import GUIDE


DECODER = "Load it with AutoModelForCausalLM"
CRITIC = (
    "Load a decoder with AutoModelForSequenceClassification, or leave `value_model=None` for a critic on the policy's "
    "trunk"
)


def check_kinds(
    processing_class: Any, model: Any, ref_model: Any, value_model: Any, reward_model: Any, train_dataset: Any
) -> None:
    """Raise where an argument is missing or cannot play its part, before anything is loaded or made.

    Raises:
        `ValueError`: an argument that is required and `None`; the policy as its own reference; a mixture, an
            encoder-decoder, a sequence classifier or no model at all as policy or reference; a model that gives no
            value to every token as critic; a model as tokenizer.
    """
    if isinstance(processing_class, nn.Module):
        raise ValueError(
            f"`processing_class` is a {type(processing_class).__name__}, but it has to be the policy's tokenizer. "
            f"The order of the arguments is (args, processing_class, model, ref_model, ...); see {GUIDE}."
        )
    for name, value in {"model": model, "reward_model": reward_model, "train_dataset": train_dataset}.items():
        if value is None:
            raise ValueError(f"`{name}` is required.")
    if ref_model is model:
        raise ValueError("`ref_model` is `model` itself; pass a copy, or `None` for the policy as it is now.")
    if not isinstance(model, str):
        require_language_model(model, "`model` (the policy)", DECODER)
    if ref_model is not None:
        require_language_model(
            ref_model, "`ref_model` (the reference)", f"{DECODER}, or leave `ref_model=None` for the policy as it is"
        )
    if value_model is not None:
        require_critic(value_model)


def require_language_model(model: Any, role: str = "The policy", remedy: str = DECODER) -> None:
    """Raise where a model is not a decoder that PPO can train or compare with.

    Args:
        model: a model of transformers, with or without adapters.
        role (`str`), remedy (`str`): what it is for and what to do instead, for the message.

    Raises:
        `ValueError`: another kind of model, or adapters that are virtual tokens.
    """
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{role}: {model.active_peft_config.peft_type} puts virtual tokens before the prompt, which PPO's "
            "positions do not know. Use an adapter made of layers, such as LoRA."
        )
    inner = base_model(model) if isinstance(model, nn.Module) else model
    if (
        not isinstance(inner, PreTrainedModel)
        or isinstance(inner, MixtureRewardModel)
        or inner.config.is_encoder_decoder
        or inner.get_output_embeddings() is None
    ):
        raise ValueError(
            f"{role} must be a decoder-only language model of transformers, got {type(inner).__name__}. {remedy}."
        )


def require_critic(model: Any) -> None:
    """Raise where a model gives no value to every token.

    Args:
        model: a model of transformers, with or without adapters.

    Raises:
        `ValueError`: a mixture, an encoder-decoder, or a model without a `score` layer.
    """
    inner = base_model(model) if isinstance(model, nn.Module) else model
    if isinstance(inner, MixtureRewardModel):
        raise ValueError(
            f"`value_model` (the critic) is a {type(inner).__name__}, which scores whole replies; a critic values "
            f"every token. Pass the mixture as `reward_model`. {CRITIC}."
        )
    if not isinstance(inner, PreTrainedModel) or not hasattr(inner, "score") or inner.config.is_encoder_decoder:
        raise ValueError(
            "`value_model` (the critic) must be a decoder's sequence-classification model with a `score` layer, got "
            f"{type(inner).__name__}. {CRITIC}."
        )


def check_sharing(policy: nn.Module, reference: nn.Module | None, critic: nn.Module | None, rewards: list) -> None:
    """Raise where one role's training would move another, which nobody sees in the log.

    Adapters of several roles on one base are fine: nobody trains the base, and each role switches the others'
    adapters off.

    Args:
        policy, reference, critic (`nn.Module`, *optional*): as they will be used, adapters included; what is to be
            trained has `requires_grad`.
        rewards (`list[nn.Module]`): the models that give rewards.

    Raises:
        `ValueError`: two roles that share a parameter which one of them trains, or a whole model.
    """
    roles = {"`model` (the policy)": policy, "`ref_model` (the reference)": reference}
    roles["`value_model` (the critic)"] = critic
    named = [(role, module) for role, module in roles.items() if module is not None]
    count = len(named)
    named += [(f"`reward_model` ({type(module).__name__})", module) for module in rewards]
    trained = {_storage(p) for module in (policy, critic) if module is not None for p in _trainable(module)}
    # Rewards among themselves may share what they like: nobody trains them.
    for (first, one), (second, other) in (pair for pair in combinations(named, 2) if pair[0] in named[:count]):
        shared = _shared(one, other, policy, trained)
        if shared is not None:
            raise ValueError(
                f"{first} and {second} share the parameter {shared!r}, so that training one changes the other, or "
                f"freezing one stops the other. {_remedy(first, second)}"
            )


def _remedy(first: str, second: str) -> str:
    if "reference" in second:
        return (
            "Leave `ref_model=None`: the reference is then the policy as it is now, and of an adapter the model "
            "without it. Or load the reference a second time."
        )
    if "policy" in first and "critic" in second:
        return (
            "Leave `value_model=None` for a critic on the policy's trunk (with an adapter of its own: "
            "`critic_adapter=True`), or load the value model a second time."
        )
    return (
        f"Load {second.partition(' ')[0]} a second time (`from_pretrained`) or copy it (`copy.deepcopy`). To keep one "
        "base for all, give the policy an adapter and make a mixture of `component_type='lora'` on that base."
    )


def _shared(one: nn.Module, other: nn.Module, policy: nn.Module, trained: set[int]) -> str | None:
    """Name of a parameter that both have and that must not be shared, or `None`."""
    own = {_storage(parameter) for _, parameter in _used(one, policy)}
    common = [(name, _storage(parameter)) for name, parameter in _used(other, policy) if _storage(parameter) in own]
    if not common:
        return None
    # A frozen base with adapters, or one without that a role with adapters stands on.
    if carries_adapters(one) or carries_adapters(other):
        common = [(name, key) for name, key in common if key in trained]
    return common[0][0] if common else None


def _used(module: nn.Module, policy: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Parameters that a role computes with: a mixture of adapters switches those of the policy off."""
    named = module.named_parameters()
    if isinstance(module, MixtureRewardModel) and module.config.component_type == "lora":
        adapters = tuple(f".{name}." for name in getattr(policy, "peft_config", ()))
        return [(name, p) for name, p in named if not any(part in f".{name}." for part in adapters)]
    return list(named)


def _storage(parameter: nn.Parameter) -> int:
    # In shards (DeepSpeed ZeRO-3) and on the meta device there is nothing to point at.
    return parameter.data_ptr() if parameter.numel() and parameter.data_ptr() else id(parameter)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def check_trainable(policy: nn.Module, value_model: nn.Module | None) -> None:
    """Raise or warn where a role that has to learn cannot. To call when everything that is frozen is frozen.

    Args:
        policy (`nn.Module`): the policy.
        value_model (`nn.Module`, *optional*): a critic of its own (a head on the policy's trunk is always trained).

    Raises:
        `ValueError`: nothing of the policy is trainable.
    """
    if not _trainable(policy):
        remedy = "Give a `peft_config`, or set `requires_grad_(True)` on what should learn"
        if isinstance(policy, PeftModel):
            remedy = "Load the adapter with `is_trainable=True`"
        raise ValueError(
            f"No parameter of the policy is trainable. {remedy}. (A mixture of adapters freezes the base it is put "
            "on.)"
        )
    if value_model is not None and not _trainable(value_model):
        warnings.warn(
            "No parameter of `value_model` is trainable: the critic will stay as it is, and advantages rest on its "
            "guesses. Set `requires_grad_(True)` on it, or leave `value_model=None`.",
            stacklevel=5,
        )


def warn_below_resolution(model: nn.Module, learning_rate: float) -> None:
    """Warn where an optimizer step is too small to change half-precision weights at all.

    Adam's step is about the learning rate; a weight of bfloat16 has 8 significant bits, so one of 0.02 only knows
    steps of 0.0001, and less than half of that is rounded away.

    Args:
        model (`nn.Module`): its trainable parameters are looked at.
        learning_rate (`float`): the largest of the run.
    """
    half = [p.detach() for p in _trainable(model) if p.dtype in (torch.bfloat16, torch.float16) and p.numel()]
    if not half or learning_rate <= 0:
        return
    sample = torch.cat([p.flatten()[:4096].float().abs().cpu() for p in half])
    sample = sample[sample > 0]
    if not len(sample):
        return
    typical = sample.median().item()
    dtype = half[0].dtype
    # Half the distance to the next number: `eps` is that distance at 1.
    needed = 2.0 ** torch.tensor(typical).log2().floor().item() * torch.finfo(dtype).eps / 2
    if learning_rate < needed:
        warnings.warn(
            f"The weights are {str(dtype).removeprefix('torch.')} and learning_rate is {learning_rate:g}: a typical "
            f"weight ({typical:.2g}) only changes by steps of {needed:.1g} or more, so that most updates are rounded "
            "away. Load the model in float32 (`dtype='float32'`) and set `bf16=True`, which still computes in "
            "bfloat16, or train an adapter.",
            stacklevel=5,
        )


def check_vocabularies(policy: nn.Module, reference: nn.Module | None, critic: nn.Module | None, known: int) -> None:
    """Raise where a role cannot read the policy's tokens.

    Args:
        policy, reference, critic (`nn.Module`): reference and critic may be `None`.
        known (`int`): ids of the policy's tokenizer.

    Raises:
        `ValueError`: embeddings for fewer tokens than the policy can write.
    """
    needed = min(known, base_model(policy).get_input_embeddings().num_embeddings)
    for role, model in (("`ref_model` (the reference)", reference), ("`value_model` (the critic)", critic)):
        if model is None:
            continue
        embeddings = base_model(model).get_input_embeddings()
        if embeddings.num_embeddings < needed:
            raise ValueError(
                f"{role} knows {embeddings.num_embeddings} tokens, but the policy writes {needed}: it reads the "
                "policy's ids, so it has to have the policy's tokenizer. Only rewards may have another one."
            )
