# SPDX-License-Identifier: Apache-2.0
"""What TRL's GRPO and RLOO do to a policy and should not: weights are cast for generation, padding moves positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from ...models.base import base_model
from ...models.scoring import position_ids_from_mask


@contextmanager
def kept_policy(model: nn.Module) -> Iterator[None]:
    """A policy that is the same after its generation: weights, buffers, mode, attention and generation configuration.

    With `use_transformers_continuous_batching` TRL casts the policy to the dtype of `bf16`/`fp16` (and with
    `cast_lm_head_to_fp32` its head back) and leaves it so, in training mode, and what was rounded away is gone: the
    tensors themselves are kept here. Inside, the generation configuration is empty: transformers and TRL fill what the
    trainer leaves open from the checkpoint's (`no_repeat_ngram_size`, `suppress_tokens`, ...), and replies would come
    from another distribution than the one whose probabilities the loss weighs.

    Args:
        model (`nn.Module`): the policy, not wrapped for data parallelism.
    """
    inner = base_model(model)
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    modes = [(module, module.training) for module in model.modules()]
    own_config, attention = inner.generation_config, inner.config._attn_implementation
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own_config
        if inner.config._attn_implementation != attention:
            inner.set_attn_implementation(attention)
        for parameter, data in weights:
            # Sharded weights are gathered and let go by their engine; only a cast changes the dtype.
            if parameter.dtype != data.dtype:
                parameter.data = data
        for module, name, buffer in buffers:
            if name in module._buffers and buffer is not None and module._buffers[name].dtype != buffer.dtype:
                module._buffers[name] = buffer
        for module, mode in modes:
            module.training = mode


def count_real_positions(model: nn.Module) -> None:
    """Let a policy count positions by its mask wherever it is given none.

    TRL pads prompts on the left and passes no `position_ids`. Models with learned absolute positions (GPT-2, GPT-Neo,
    GPTBigCode, ...) then read each row as if it began later than it does. The hook sits on the trunk, which every way
    through a causal model calls: adapters and TRL's fused head go past the model's own `forward`.

    Args:
        model (`nn.Module`): the policy or its reference; changed in place, once. One whose trunk takes no positions,
            or that has several modalities and makes its own, is left alone.
    """
    inner = base_model(model)
    trunk = getattr(inner, inner.base_model_prefix, None)
    takes = trunk is not None and "position_ids" in inspect.signature(trunk.forward).parameters
    if not takes or inner.config.get_text_config() is not inner.config:
        return
    if not any(hook is _with_positions for hook in trunk._forward_pre_hooks.values()):
        trunk.register_forward_pre_hook(_with_positions, with_kwargs=True)


def _with_positions(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    mask, ids = kwargs.get("attention_mask"), args[0] if args else kwargs.get("input_ids")
    if not torch.is_tensor(mask) or mask.dim() != 2 or kwargs.get("position_ids") is not None:
        return None
    read = kwargs.get("inputs_embeds") if ids is None else ids
    # With a cache the mask covers what was read before, and its last columns are the tokens that are read now.
    if len(args) > 1 or read is None or mask.shape[1] < read.shape[1]:
        return None
    return args, kwargs | {"position_ids": position_ids_from_mask(mask)[:, -read.shape[1] :]}
