# SPDX-License-Identifier: Apache-2.0
"""A nonlinear map between a frozen trunk and linear heads."""

from __future__ import annotations

import math

import torch
from torch import nn


#: Texts from which the bandwidth is taken: the median of their distances does not need more.
_MAX_TEXTS = 1000


class RandomFourierFeatures(nn.Module):
    r"""
    Features whose inner product approximates a Gaussian kernel, so that a linear head on them is a nonlinear reward.

    A reward that is linear in the vector of a frozen encoder can say little of single texts; with the kernel, texts
    that mean nearly the same share a reward and others do not, and fitting the heads stays a convex problem. The
    frequencies are random and hold nothing of the texts but their mean and typical distance.

    Source: Rahimi and Recht, [Random Features for Large-Scale Kernel Machines](
    https://papers.nips.cc/paper/3182-random-features-for-large-scale-kernel-machines), NeurIPS 2007.

    Args:
        in_features (`int`): D, width of the pooled vectors.
        out_features (`int`): F, number of features, even.

    Example:

    >>> map = RandomFourierFeatures(8, 2048).fit(torch.randn(50, 8))
    >>> features = map(torch.randn(3, 8))
    >>> features.shape, [round(n, 3) for n in features.square().sum(-1).tolist()]
    (torch.Size([3, 2048]), [1.0, 1.0, 1.0])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        self.register_buffer("center", torch.zeros(in_features))
        # Until `fit`: as for vectors of unit variance.
        self.register_buffer("frequencies", torch.randn(in_features, out_features // 2) / math.sqrt(in_features))

    @torch.no_grad()
    def fit(self, vectors: torch.Tensor, generator: torch.Generator | None = None) -> RandomFourierFeatures:
        """Choose centre and bandwidth for some texts: the kernel of two of them is `exp(-|x - y|^2 / m)`, with `m` the
        median of the squared distances.

        Args:
            vectors (`Tensor` of shape `(M, D)`): pooled vectors of distinct texts.
            generator (`torch.Generator`, *optional*): of the frequencies, on the CPU.

        Returns:
            [`RandomFourierFeatures`]: itself.

        Raises:
            ValueError: fewer than two texts, or texts whose vectors are all the same.
        """
        vectors = vectors.float().cpu()
        part = vectors[torch.randperm(len(vectors), generator=generator)[:_MAX_TEXTS]]
        distances = torch.pdist(part).square()
        distances = distances[distances > 0]
        if not len(distances):
            raise ValueError(
                f"The features of all {len(vectors)} texts are the same, so a kernel between them says nothing. Check "
                "that the texts differ after tokenisation, or set kernel_features=0."
            )
        frequencies = torch.randn(self.frequencies.shape, generator=generator) * (2 / distances.median()).sqrt()
        self.center.copy_(vectors.mean(0))
        self.frequencies.copy_(frequencies)
        return self

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """`(..., D)` pooled vectors to `(..., F)` features of length 1, in float32 under autocast too."""
        with torch.autocast(vectors.device.type, enabled=False):
            angles = (vectors.float() - self.center.float()) @ self.frequencies.float()
        return torch.cat([angles.cos(), angles.sin()], dim=-1) * math.sqrt(2 / self.out_features)
