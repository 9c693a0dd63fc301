# SPDX-License-Identifier: Apache-2.0
"""How the base of LoRA components was loaded when they were fitted, and that it is loaded so again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig


#: Fields of a quantisation that leave the weights as they are.
_OF_COMPUTING = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "llm_int8_enable_fp32_cpu_offload")

_BITS = {"load_in_4bit": "in 4 bits", "load_in_8bit": "in 8 bits"}


def quantization_of(model: PreTrainedModel) -> dict[str, Any] | None:
    """The quantisation that a model was loaded with, as JSON holds it, or `None`."""
    return _as_dict(getattr(model.config, "quantization_config", None))


def load_as_fitted(
    load: Callable[..., PreTrainedModel], name: str, fitted: dict[str, Any] | None, options: dict[str, Any]
) -> PreTrainedModel:
    """Load a base as it was loaded when the adapters on it were fitted, unless the caller wants it otherwise.

    Args:
        load (`Callable`): `from_pretrained` with the place of the base bound.
        name (`str`): of the mixture, for warnings.
        fitted (`dict`, *optional*): of [`quantization_of`], when the adapters were fitted.
        options (`dict`): for `load`. Where it has a `quantization_config`, even `None`, that is used.

    Returns:
        `PreTrainedModel`: with a warning where its quantisation is another one, because the caller said so or because
        the library it needs is not installed.
    """
    why = "as `quantization_config` says"
    if fitted is None or "quantization_config" in options:
        model = load(**options)
    else:
        try:
            model = load(**options, quantization_config=AutoQuantizationConfig.from_dict(dict(fitted)))
        except ImportError as error:
            why = f"because a library is missing ({error})"
            model = load(**options)
    used = quantization_of(model)
    if _weights(used) != _weights(fitted):
        warnings.warn(
            f"The adapters of {name} were fitted on a base {_describe(fitted)}; it is loaded {_describe(used)}, {why}."
            " Their rewards are not quite those of the training. Leave `quantization_config` out and install what it "
            "needs to load the base as it was.",
            stacklevel=4,
        )
    return model


def _as_dict(quantization: Any) -> dict[str, Any] | None:
    if quantization is None:
        return None
    fields = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return {key: getattr(value, "value", value) for key, value in fields.items() if not key.startswith("_")}


def _weights(quantization: dict[str, Any] | None) -> dict[str, Any] | None:
    return quantization and {key: value for key, value in quantization.items() if key not in _OF_COMPUTING}


def _describe(quantization: dict[str, Any] | None) -> str:
    if quantization is None:
        return "without quantisation"
    bits = [word for key, word in _BITS.items() if quantization.get(key)]
    hidden = (*_BITS, *_OF_COMPUTING, "quant_method")
    rest = [f"{key}={value}" for key, value in quantization.items() if key not in hidden]
    fields = ", ".join([f"quant_method {quantization.get('quant_method')!r}", *rest])
    return " ".join([*bits, f"({fields})"])
