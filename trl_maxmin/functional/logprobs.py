# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of given tokens, with few passes over the vocabulary and one array of its size kept.

Letters: n tokens, V vocabulary. The last step of a language model's forward and the first of its backward are the
largest of a small one: n x V numbers, against n x H of a layer.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .preference import require_shape


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, with_entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the tokens under a softmax over the vocabulary.

    Differentiable once in `logits`. The backward pass turns the one array that the forward keeps into the gradient in
    place, so it can run once: a second one (`retain_graph=True`) raises autograd's error about a modified variable.

    Args:
        logits (`torch.Tensor` of shape `(n, V)`): any floating type.
        tokens (`torch.Tensor` of shape `(n,)`): ids, `torch.long`.
        with_entropy (`bool`): whether to compute the entropy as well, without gradient.

    Returns:
        `tuple`: log-probabilities `(n,)` and entropies `(n,)` or `None`; nats, float32 (float64 for such logits).

    Raises:
        ValueError: not one token per row of logits.

    Example: a fair coin has ln 2 nats.

    >>> logprobs, entropy = token_logprobs(torch.zeros(1, 2), torch.tensor([1]), with_entropy=True)
    >>> round(logprobs.item(), 4), round(entropy.item(), 4)
    (-0.6931, 0.6931)
    """
    require_shape("tokens", tokens, tuple(logits.shape[:1]), "one per row of logits")
    logprobs, entropy = _TokenLogprobs.apply(logits, tokens, with_entropy)
    return logprobs, entropy if with_entropy else None


class _TokenLogprobs(torch.autograd.Function):
    """Keeps one `(n, V)` array between forward and backward, and makes the gradient of it in place."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, with_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities `(n,)` and entropies, `(n,)` or empty where they are not asked for."""
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_all = torch.log_softmax(logits, dim=-1, dtype=dtype)
        logprobs = log_all.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        entropy = logprobs.new_zeros(0)
        if with_entropy:
            # A masked token is -inf, and counts 0 times a finite number. (`torch.special.entr` takes twice as long.)
            log_all.clamp_(min=torch.finfo(dtype).min)
            entropy = -log_all.exp().mul_(log_all).sum(-1)
        ctx.save_for_backward(log_all, tokens)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
        """Gradient `(n, V)` of the logits: each row's `onehot(token) - softmax`, times that of its log-probability."""
        log_all, tokens = ctx.saved_tensors
        gradient = log_all.exp_().mul_(-grad.unsqueeze(-1))
        gradient.scatter_add_(-1, tokens.unsqueeze(-1), grad.unsqueeze(-1).to(gradient))
        return gradient.to(ctx.dtype), None, None
