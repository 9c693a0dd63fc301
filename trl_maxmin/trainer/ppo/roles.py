# SPDX-License-Identifier: Apache-2.0
"""Who plays which part in PPO: policy, reference, critic and rewards are what they have to be, and nobody else."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ...models.base import base_model
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
