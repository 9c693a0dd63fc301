# SPDX-License-Identifier: Apache-2.0
"""How the subcommands look at what they will load, and load a base that is to be quantised."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, get_quantization_config

from ..models.loading import load_config, load_tokenizer


def require_model(name: str, argument: str, **place: Any) -> PreTrainedTokenizerBase:
    """Raise where a model or its tokenizer is not there, before the first model of a command is loaded.

    Args:
        name (`str`): folder or Hub id.
        argument (`str`): the option that names it.
        **place: `revision`.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: its tokenizer.

    Raises:
        ValueError, OSError: as [`load_config`] and [`load_tokenizer`].
    """
    load_config(name, argument, **place)
    return load_tokenizer(name, argument, **place)


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
