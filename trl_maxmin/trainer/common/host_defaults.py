# SPDX-License-Identifier: Apache-2.0
"""Defaults of the hosts' training arguments that raise on a CPU or warn on their newest release."""

from __future__ import annotations

from typing import Any

from transformers.utils import is_torch_bf16_gpu_available


# transformers 5.23 calls them `activation_checkpointing` and warns of the old names, which go in v6. TRL 1.16 sets one
# of the old ones by default.
_RENAMED = ("gradient_checkpointing", "gradient_checkpointing_kwargs")


def settle_host_defaults(args: Any) -> None:
    """To call before the host's own `__post_init__`.

    `bf16` that was left open is off where the accelerator has none (TRL would ask for it, and transformers refuse to
    start); `True`, or a GPU that has it, stays as the host wants it. `gradient_checkpointing` is handed over under its
    new name, where the host has that: both are accepted, and both can be read afterwards.

    Args:
        args (`TrainingArguments`): being built.
    """
    if args.bf16 is None and (args.use_cpu or not is_torch_bf16_gpu_available()):
        args.bf16 = False
    for old in _RENAMED:
        new = old.replace("gradient", "activation")
        if new in type(args).__dataclass_fields__:
            if getattr(args, new) is None:
                setattr(args, new, getattr(args, old))
            setattr(args, old, None)  # the host copies the new one back
