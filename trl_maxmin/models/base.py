# SPDX-License-Identifier: Apache-2.0
"""What is asked of any model of transformers: what is inside its adapters, how much it reads, where it computes."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside an adapter wrapper, or the model itself.

    Args:
        model (`nn.Module`): a `PreTrainedModel` or a `PeftModel`.

    Returns:
        [`~transformers.PreTrainedModel`].
    """
    return model.get_base_model() if isinstance(model, PeftModel) else model


def context_length(model: nn.Module | PreTrainedConfig) -> int | None:
    """Most tokens that a model reads, or `None` where its configuration sets no limit.

    Args:
        model (`nn.Module` or `PreTrainedConfig`): a model, with or without adapters, or the configuration of one.

    Returns:
        `int` or `None`.
    """
    config = model if isinstance(model, PreTrainedConfig) else base_model(model).config
    text = config.get_text_config()
    for name in ("n_positions", "max_position_embeddings"):
        limit = getattr(text, name, None)
        if isinstance(limit, int) and limit > 0:
            # RoBERTa's table starts counting after its padding index.
            return limit - text.pad_token_id - 1 if text.model_type == "roberta" else limit
    return None


def place(module: nn.Module, device: torch.device | str) -> None:
    """Move a model to where it computes; one that is quantised or dispatched stays where it was loaded.

    `Trainer` leaves models that are for DeepSpeed, FSDP or `bf16_full_eval` on the CPU until training.

    Args:
        module (`nn.Module`): changed in place.
        device (`torch.device`): the trainer's.
    """
    parts = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    if not any(getattr(part, "is_quantized", False) or getattr(part, "hf_device_map", None) for part in parts):
        module.to(device)


def as_list(values: Any) -> list[int]:
    """Plain integers from a list, an array or a tensor.

    Args:
        values: integers.

    Returns:
        `list[int]`.
    """
    return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
