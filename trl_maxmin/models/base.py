# SPDX-License-Identifier: Apache-2.0
"""What is asked of any model of transformers: what is inside its adapters, how much it reads, where it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """Where a model computes that no trainer places.

    Args:
        device (`torch.device` or `str`, *optional*): this one. Default: the accelerator that torch can use (also on
            ZeroGPU, which lends one at call time), else the CPU.

    Returns:
        `torch.device`.

    Example:

    >>> pick_device("meta")
    device(type='meta')
    """
    if device is not None:
        return torch.device(device)
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
    return torch.device(next((name for name, module in kinds.items() if module.is_available()), "cpu"))


@contextmanager
def forked_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from a seed on the CPU and on one device, and leave their random states as they were.

    `torch.random.fork_rng` without devices opens a context on every GPU of the machine, `torch.manual_seed` seeds
    each of them and nobody sets them back.

    Args:
        device (`torch.device`): where the drawing happens.
        seed (`int`): of both.
    """
    generators = [_generator(kind) for kind in {"cpu": torch.device("cpu"), device.type: device}.values()]
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generator(device: torch.device) -> torch.Generator:
    """The one that operations on a device draw from."""
    if device.type in ("cpu", "meta"):
        return torch.default_generator
    module = torch.get_device_module(device)
    if device.type == "mps":
        return module._get_default_mps_generator()
    module.init()
    return module.default_generators[module.current_device() if device.index is None else device.index]


def weight_hash(weight: torch.Tensor) -> int:
    """Of all values of a weight, the same on every device and however many threads or ranks add up.

    Args:
        weight (`torch.Tensor`): of any type; sharded by FSDP2 as well, and then all ranks have to call it.

    Returns:
        `int`: the exclusive or of the values' bits, so that nothing is rounded and no copy of the weight is made.

    Example:

    >>> weight_hash(torch.tensor([1.5, 2.0])) == weight_hash(torch.tensor([2.0, 1.5])) != weight_hash(torch.ones(2))
    True
    """
    weight = weight.detach()
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    for device in (weight.device, torch.device("cpu")):
        try:
            return int(torch.hash_tensor(weight.to(device)).view(torch.int64))
        except (RuntimeError, NotImplementedError):  # not every device and type has it
            pass
    return int(torch.hash_tensor(weight.cpu().flatten().view(torch.uint8)).view(torch.int64))


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
