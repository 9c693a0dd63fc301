# SPDX-License-Identifier: Apache-2.0
"""A quantisation without a library of its own: `from_pretrained` rounds the layers' weights to multiples of a step."""

import torch
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


METHOD = "test_rounding"


def rounded(weight, step):
    """The nearest multiples."""
    return (weight / step).round() * step


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:

    @register_quantization_config(METHOD)
    class RoundingConfig(QuantizationConfigMixin):
        def __init__(self, step=0.05, **kwargs):
            self.quant_method, self.step = METHOD, step

    @register_quantizer(METHOD)
    class RoundingQuantizer(HfQuantizer):
        requires_calibration = False
        is_trainable = True
        installed = True

        def validate_environment(self, *args, **kwargs):
            if not self.installed:
                raise ImportError("Rounding needs rounding-library: pip install rounding-library")

        def is_serializable(self):
            return False

        @torch.no_grad()
        def _process_model_after_weight_loading(self, model, **kwargs):
            for name, parameter in model.named_parameters():
                if is_rounded(name):
                    parameter.copy_(rounded(parameter, self.quantization_config.step))
            return model


def is_rounded(name):
    """Matrices of the layers are; embeddings, norms and heads are not."""
    return any(part in name for part in (".attn.", ".mlp.", ".self_attn.")) and name.endswith("weight")
