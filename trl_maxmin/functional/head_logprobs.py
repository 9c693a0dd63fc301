# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities straight from hidden states, over one block of the vocabulary at a time.

Letters: n tokens, H hidden size, V vocabulary, b tokens of a block. A CPU multiplies by a block that stays in its
cache in about 0.6 of the time of the whole matrix, and what follows finds the block's logits there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .preference import require_shape


#: Tokens of the vocabulary, and most tokens of the replies, that are multiplied together.
BLOCK, ROWS = 2048, 1024
#: Numbers of a block's logits, and of its weights, that stay in a CPU's caches: few rows take longer blocks.
CACHED_LOGITS, CACHED_WEIGHTS = 1 << 17, 1 << 20


def head_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    keep_logits: bool = True,
    add_to_grad: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the tokens under a softmax of `hidden @ weight.T / temperature`.

    As [`token_logprobs`] of these logits, which never exist in one piece. Differentiable once in `hidden` and
    `weight`; a second backward pass raises.

    Args:
        hidden (`torch.Tensor` of shape `(n, H)`): float32.
        weight (`torch.Tensor` of shape `(V, H)`): of the language-model head, float32.
        tokens (`torch.Tensor` of shape `(n,)`): ids, `torch.long`.
        temperature (`float`): above 0.
        with_entropy (`bool`): whether to compute the entropy as well, without gradient.
        keep_logits (`bool`): whether n x V numbers wait for the backward pass; else it computes them again, block by
            block, and memory does not grow with V.
        add_to_grad (`bool`): whether the backward pass adds the weight's gradient to `weight.grad` itself (there has
            to be one, see [`start_grad`]), so that no second array of the weight's size is made. Hooks on the weight
            do not see it: for one process, and a weight that is a leaf.

    Returns:
        `tuple`: log-probabilities `(n,)` and entropies `(n,)` or `None`; nats, float32.

    Raises:
        ValueError: not one token per row of hidden states.

    Example: a fair coin has ln 2 nats.

    >>> logprobs, entropy = head_logprobs(torch.ones(1, 3), torch.zeros(2, 3), torch.tensor([1]), with_entropy=True)
    >>> round(logprobs.item(), 4), round(entropy.item(), 4)
    (-0.6931, 0.6931)
    """
    require_shape("tokens", tokens, tuple(hidden.shape[:1]), "one per row of hidden states")
    keep = keep_logits and torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    logprobs, entropy = _HeadLogprobs.apply(hidden, weight, tokens, temperature, with_entropy, keep, add_to_grad)
    return logprobs, entropy if with_entropy else None


def start_grad(weight: torch.Tensor) -> None:
    """A gradient of zeros, where there is none yet, for what adds to it in place."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)


def block_size(rows: int, width: int) -> int:
    """Tokens b of a block, for so many rows of hidden states and so wide: some times [`BLOCK`]."""
    fits = min(CACHED_LOGITS // max(rows, 1), CACHED_WEIGHTS // width)
    return BLOCK * min(max(fits // BLOCK, 1), 8)


def vocabulary_blocks(weight: torch.Tensor, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
    """First id and rows `(b, H)` of each block of a head's weight `(V, H)`, for so many rows of hidden states."""
    size = block_size(rows, weight.shape[1])
    for start in range(0, len(weight), size):
        yield start, weight[start : start + size]


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        tokens: torch.Tensor,
        temperature: float,
        with_entropy: bool,
        keep: bool,
        add_to_grad: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities `(n,)` and entropies, `(n,)` or empty where they are not asked for."""
        states = hidden / temperature if temperature != 1.0 else hidden
        kept: list[list[torch.Tensor]] = []
        parts = [
            _rows(rows, weight, ids, with_entropy, keep, kept)
            for rows, ids in zip(states.split(ROWS), tokens.split(ROWS), strict=True)
        ]
        chosen, normaliser, entropy = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, tokens, normaliser)
        ctx.kept, ctx.temperature, ctx.add_to_grad, ctx.ran = kept if keep else None, temperature, add_to_grad, False
        ctx.mark_non_differentiable(entropy)
        return chosen - normaliser, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        """Each row's `onehot(token) - softmax`, times that of its log-probability, through the head."""
        if ctx.ran:
            raise RuntimeError("head_logprobs was turned into its gradient already: a second backward cannot run.")
        ctx.ran = True
        hidden, weight, tokens, normaliser = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        states = hidden / ctx.temperature if ctx.temperature != 1.0 else hidden
        grad_states = torch.zeros_like(states) if needs_hidden else None
        grad_weight = None
        if needs_weight:
            grad_weight = weight.grad if ctx.add_to_grad else torch.zeros_like(weight)
        for number, start in enumerate(range(0, len(states), ROWS)):
            part = slice(start, start + ROWS)
            for place, (first, block) in enumerate(vocabulary_blocks(weight, len(states[part]))):
                if ctx.kept is None:
                    logits = states[part] @ block.T
                else:
                    logits, ctx.kept[number][place] = ctx.kept[number][place], None
                slope = logits.sub_(normaliser[part, None]).exp_().mul_(-grad[part, None])
                inside, column = _inside(tokens[part], first, len(block))
                slope.scatter_add_(1, column.unsqueeze(1), (grad[part] * inside).unsqueeze(1))
                if grad_states is not None:
                    grad_states[part].addmm_(slope, block)
                if grad_weight is not None:
                    grad_weight[first : first + len(block)].addmm_(slope.T, states[part])
        if grad_states is not None and ctx.temperature != 1.0:
            grad_states /= ctx.temperature
        return grad_states, None if ctx.add_to_grad else grad_weight, None, None, None, None, None


def _rows(
    states: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, with_entropy: bool, keep: bool, kept: list
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the tokens, logarithms of the sums of all, and entropies, `(n,)` each, over all blocks."""
    top = states.new_full((len(states),), -torch.inf)
    total, weighted, chosen = (torch.zeros_like(top) for _ in range(3))
    blocks: list[torch.Tensor] = []
    longest = min(block_size(*states.shape), len(weight))
    buffer, terms = (states.new_empty(len(states) * longest) for _ in range(2))
    for first, block in vocabulary_blocks(weight, len(states)):
        shape = (len(states), len(block))
        room = states.new_empty(shape) if keep else buffer[: shape[0] * shape[1]].view(shape)
        logits = torch.mm(states, block.T, out=room)
        inside, column = _inside(ids, first, len(block))
        chosen = torch.where(inside, logits.gather(1, column.unsqueeze(1)).squeeze(1), chosen)
        higher = torch.maximum(top, logits.amax(1))
        shrink, top = (top - higher).exp(), higher
        masses = torch.sub(logits, top.unsqueeze(1), out=terms[: shape[0] * shape[1]].view(shape)).exp_()
        total = total * shrink + masses.sum(1)
        if with_entropy:
            weighted = weighted * shrink + masses.mul_(logits).sum(1)
        if keep:
            blocks.append(logits)
    kept.append(blocks)
    normaliser = top + total.log()
    return chosen, normaliser, normaliser - weighted / total if with_entropy else normaliser[:0]


def _inside(ids: torch.Tensor, first: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which ids `(n,)` are of a block, and their columns in it (any, where they are not)."""
    column = ids - first
    inside = (column >= 0) & (column < size)
    return inside, column.clamp(0, size - 1)
