# SPDX-License-Identifier: Apache-2.0
"""How the subcommands load a base that is to be quantised."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from trl import ModelConfig, get_quantization_config


def quantization_options(model: ModelConfig) -> dict[str, Any]:
    """What `from_pretrained` takes for `--load_in_4bit` and `--load_in_8bit`; nothing without them.

    Args:
        model ([`~trl.ModelConfig`]): the options.

    Returns:
        `dict`: `quantization_config`, and a `device_map` to this process's device, which quantised weights cannot be
        moved to later.
    """
    quantization = get_quantization_config(model)
    return {"quantization_config": quantization, "device_map": {"": PartialState().device}} if quantization else {}
