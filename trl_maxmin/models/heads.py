# SPDX-License-Identifier: Apache-2.0
"""Heads that read a scalar off hidden states: rewards and values, in float32 whatever the trunk computes in."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 at least.

    Autocast, FSDP2 and DeepSpeed turn what a layer reads, or its weights, into bfloat16. That has 8 significant bits:
    too few for rewards and values, whose differences are what is learned from.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(..., in_features)` to `(..., out_features)`.

        Args:
            input (`torch.Tensor`): of any precision.

        Returns:
            `torch.Tensor`: float32, or what is wider among the weights and `input`.
        """
        dtype = torch.promote_types(torch.promote_types(self.weight.dtype, input.dtype), torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)


def compute_in_float32(module: nn.Module) -> None:
    """Let the plain linear layers in a module compute as [`Float32Linear`]; their weights and names stay.

    Args:
        module (`nn.Module`): a head, alone or inside a wrapper of PEFT; changed in place.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Float32Linear
