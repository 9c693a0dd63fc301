# SPDX-License-Identifier: Apache-2.0
"""How the subcommands look at what they will load, and what they load it with."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, get_quantization_config

from ..models.loading import load_config, load_tokenizer
from .parser import UsageError


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


def init_options(model: ModelConfig, more: dict[str, Any] | str | None = None) -> dict[str, Any]:
    """What `from_pretrained` takes for `--model_revision`, `--dtype` and `--attn_implementation`.

    Args:
        model ([`~trl.ModelConfig`]): the options.
        more (`dict`, *optional*): `--model_init_kwargs`; what it says of the same options goes before.

    Raises:
        UsageError: `--model_init_kwargs` that is no JSON object.
    """
    if isinstance(more, str):
        raise UsageError(
            f"--model_init_kwargs must be a JSON object such as '{{\"use_cache\": false}}', got {more!r}."
        )
    options = {"revision": model.model_revision, "dtype": model.dtype}
    if model.attn_implementation is not None:
        options["attn_implementation"] = model.attn_implementation
    return options | (more or {})


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
