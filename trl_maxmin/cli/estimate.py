# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin estimate`: what fits into memory, before anything is downloaded or trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ..models.families import get_family, lora_targets
from ..models.loading import load_config
from ..models.lora import PAPER_LORA
from .io import print_table
from .parser import CommandParser, UsageError


BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.55}


@dataclass
class EstimateArguments:
    """Options of `trl-maxmin estimate`.

    Args:
        model (`str`): Hub id or folder; only its configuration is read.
        num_components (`int`): K.
        dtype (`str`): of the frozen or trained base.
        lora_r (`int`): rank of each adapter.
        batch_size, sequence_length (`int`): sequences per forward, tokens each.
        memory_gb (`float`): of one device.
        gradient_checkpointing (`bool`): layers are recomputed in the backward pass.
    """

    model: str | None = field(default=None, metadata={"help": "Hub id or folder; only the configuration is read."})
    num_components: int = field(default=2, metadata={"help": "K."})
    dtype: str = field(default="bfloat16", metadata={"help": "Of the base.", "choices": list(BYTES)})
    lora_r: int = field(default=PAPER_LORA["r"], metadata={"help": "Rank of each adapter."})
    batch_size: int = field(default=4, metadata={"help": "Sequences per forward."})
    sequence_length: int = field(default=512, metadata={"help": "Tokens per sequence."})
    memory_gb: float = field(default=80.0, metadata={"help": "Memory of one device, in GB of 10^9 bytes."})
    gradient_checkpointing: bool = field(default=True, metadata={"help": "Recompute layers in the backward pass."})


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device at the peak of a stage.

    Args:
        name (`str`): the stage and how the components are kept.
        weights (`float`): weights of all models.
        states (`float`): gradients and Adam's two moments of what is trained.
        activations (`float`): kept for the backward pass, or of the widest layer of a forward.
    """

    name: str
    weights: float
    states: float
    activations: float

    @property
    def total(self) -> float:
        """Sum of the three."""
        return self.weights + self.states + self.activations


def count_parameters(config: Any) -> tuple[int, int]:
    """Weights of the language model of a configuration, and what rank 1 of an adapter on its default layers adds."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    targets = lora_targets(config)
    per_rank = sum(
        sum(module.weight.shape) for name, module in model.named_modules() if name.rpartition(".")[2] in targets
    )
    return sum(parameter.numel() for parameter in model.parameters()), per_rank


def estimate_memory(arguments: EstimateArguments, config: Any) -> list[MemoryEstimate]:
    """Peaks of reward training, of scoring and of a MaxMin-PPO step, for each way to keep K components.

    Trained weights count with a float32 gradient and two float32 moments (12 bytes). Activations are those of a
    transformer with fused attention: about 34 bytes a hidden unit and token in half precision (Korthikanti et al.,
    2022, arXiv 2205.05198, without its quadratic term), or the layer inputs alone plus one layer when layers are
    recomputed; a policy adds its logits in the compute precision and once more in float32.

    Args:
        arguments ([`EstimateArguments`]): sizes.
        config (`PreTrainedConfig`): of the base.

    Returns:
        `list[MemoryEstimate]`
    """
    text = config.get_text_config()
    parameters, per_rank = count_parameters(config)
    k, width, layers = arguments.num_components, text.hidden_size, text.num_hidden_layers
    base = parameters * BYTES[arguments.dtype]
    adapter = (per_rank * arguments.lora_r + width) * 4.0
    tokens = arguments.batch_size * arguments.sequence_length
    wide = 2.0 if BYTES[arguments.dtype] <= 2 else 4.0
    layer = 17 * wide * tokens * width
    kept = layers * wide * tokens * width + layer if arguments.gradient_checkpointing else layers * layer
    logits = tokens * text.vocab_size * (wide + 4.0)
    head_only = k * width * 4.0
    return [
        MemoryEstimate("scoring: one base, K adapters or heads", base + k * adapter, 0.0, layer),
        MemoryEstimate("scoring: K models", k * base, 0.0, layer),
        MemoryEstimate("rewards, head, frozen trunk", base + head_only, 0.0, layer),
        MemoryEstimate("rewards, lora", base + k * adapter, 3 * k * adapter, k * kept),
        MemoryEstimate("rewards, head, trained trunk", base + head_only, 12.0 * parameters, 2 * kept),
        MemoryEstimate("rewards, full", k * base, 12.0 * k * parameters, 2 * k * kept),
        MemoryEstimate("MaxMin-PPO, one base for all", base + (k + 1) * adapter, 3 * adapter, kept + logits),
        MemoryEstimate(
            "MaxMin-PPO, a base for policy and reference, one for K adapters",
            2 * base + (k + 1) * adapter,
            3 * adapter,
            kept + logits,
        ),
        MemoryEstimate("MaxMin-PPO, policy + reference + K models", (2 + k) * base, 12.0 * parameters, kept + logits),
    ]


def run(argv: Sequence[str]) -> None:
    """Print what fits.

    Args:
        argv (`Sequence[str]`): options of [`EstimateArguments`].

    Raises:
        UsageError: no model named, or sizes below 1.
        ValueError: a model that is not there, or of an unsupported family.
    """
    (arguments,) = CommandParser(
        (EstimateArguments,),
        prog="trl-maxmin estimate",
        description="Say what fits into the memory of one device, from the configuration of the base alone.",
    ).parse_args_and_config(list(argv))
    if not arguments.model:
        raise UsageError("--model is required: a Hub id or folder; only its configuration is read.")
    for name in ("num_components", "lora_r", "batch_size", "sequence_length", "memory_gb"):
        if getattr(arguments, name) <= 0:
            raise UsageError(f"--{name} must be positive, got {getattr(arguments, name)}.")
    config = load_config(arguments.model, "--model", weights=False)
    get_family(config)
    rows = []
    for item in estimate_memory(arguments, config):
        fits = "yes" if item.total < 0.9 * arguments.memory_gb * 1e9 else "no"
        sizes = (item.weights, item.states, item.activations, item.total)
        rows.append([item.name, *(f"{size / 1e9:.1f}" for size in sizes), fits])
    print_table(
        f"{arguments.model}: K = {arguments.num_components}, {arguments.batch_size} sequences of "
        f"{arguments.sequence_length} tokens, base in {arguments.dtype} [GB]",
        ["", "weights", "training states", "activations", "sum", f"fits {arguments.memory_gb:.0f} GB"],
        rows,
    )
    print("An estimate: a tenth of the memory is left to the allocator. Measure with one step before a long run.")
