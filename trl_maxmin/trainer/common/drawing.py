# SPDX-License-Identifier: Apache-2.0
"""Drawing the next token by inverting the cumulative distribution, one uniform number a row.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor


# Tokens summed together before one of them is looked for.
BLOCK = 256
# Probabilities that exist at the same time on a CPU: they stay in its cache, and are not written to new memory.
CACHED_PROBABILITIES = 1 << 18


def draw_tokens(logits: torch.Tensor, places: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Tokens by inverting the cumulative distribution: one uniform number a row decides, whatever the device.

    Args:
        logits (`torch.Tensor` of shape `(B, V)`): any floating type; a filtered token has minus infinity.
        places (`torch.Tensor` of shape `(B, 1)`): uniform in [0, 1).
        temperature (`float`): above 0; the logits are divided by it.

    Returns:
        `torch.Tensor` of shape `(B, 1)`: ids, on the device of the logits; never one of probability 0.

    Example:

    >>> draw_tokens(torch.tensor([[0.0, 0.0, float("-inf"), 0.0]]), torch.tensor([[0.7]]))
    tensor([[3]])
    """
    size = len(logits)
    if logits.device.type == "cpu":
        size = max(CACHED_PROBABILITIES // logits.shape[-1], 1)
    places = places.to(logits.device, torch.float32 if logits.device.type == "mps" else torch.float64)
    parts = zip(logits.split(size), places.split(size), strict=True)
    return torch.cat([_draw_rows(*part, temperature) for part in parts])


def _draw_rows(logits: torch.Tensor, places: torch.Tensor, temperature: float) -> torch.Tensor:
    weights = logits.float() - logits.amax(-1, keepdim=True)
    if temperature != 1.0:
        weights.div_(temperature)
    weights.exp_()
    # Block first, token within it second: one pass over the vocabulary instead of a running sum of all of it. The
    # running sums are in double precision, or many small terms would lose the rare tokens.
    whole = weights.shape[-1] // BLOCK * BLOCK
    masses = weights[:, :whole].unflatten(1, (whole // BLOCK, BLOCK)).sum(-1)
    if whole < weights.shape[-1]:
        masses = torch.cat([masses, weights[:, whole:].sum(-1, keepdim=True)], dim=1)
    cdf = masses.to(places).cumsum(-1)
    places = places * cdf[:, -1:]
    block, before = first_above(cdf, places)
    ids = block * BLOCK + torch.arange(BLOCK, device=logits.device)
    inside = weights.gather(-1, ids.clamp(max=weights.shape[-1] - 1)).to(places)
    inside.masked_fill_(ids >= weights.shape[-1], 0.0)
    cdf = inside.cumsum(-1)
    # The two sums of a block differ in their last bits; a place beyond the end belongs to its last token.
    place = torch.minimum(places - before, cdf[:, -1:].nextafter(cdf.new_zeros(())))
    token, _ = first_above(cdf, place)
    return ids.gather(-1, token)


def first_above(cdf: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index `(B, 1)` of the first entry above the place, which is never one of probability 0, and what precedes it."""
    index = torch.searchsorted(cdf, places, right=True).clamp_(max=cdf.shape[-1] - 1)
    return index, torch.nn.functional.pad(cdf, (1, 0)).gather(-1, index)


class SampleByCdf(LogitsProcessor):
    """Draws the next token itself and lifts its score to infinity, so that greedy decoding takes it.

    `torch.multinomial` draws an exponential number for every token of the vocabulary, on a CPU one after the other:
    with 50,257 tokens that takes longer than a small model's forward. [`draw_tokens`] needs one uniform number a row.
    The distribution is the same, the stream of random numbers is not.

    Args:
        temperature (`float`): the scores are divided by it.

    Example:

    >>> draw = SampleByCdf(1.0)
    >>> draw(None, torch.tensor([[0.0, float("-inf"), float("-inf")]])).argmax(-1).item()
    0
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores `(B, V)`, changed in place: infinity at the token drawn for each row."""
        places = torch.rand((len(scores), 1), dtype=torch.float64, device=scores.device)
        tokens = draw_tokens(scores, places, self.temperature)
        drawn = scores.scatter_(-1, tokens, float("inf")).as_subclass(Drawn)
        drawn.tokens = tokens[:, 0]
        return drawn


class Drawn(torch.Tensor):
    """Scores whose largest is known: looking for it again takes as long as drawing it."""

    tokens: torch.Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in (torch.argmax, torch.Tensor.argmax) and (args[1:] or tuple((kwargs or {}).values())) == (-1,):
            return args[0].tokens
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))
