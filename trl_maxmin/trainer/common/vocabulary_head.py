# SPDX-License-Identifier: Apache-2.0
"""The language-model head on a CPU, one block of the vocabulary at a time: in place of the model's own, where nothing
but a matrix stands between hidden states and logits.

Letters: B rows, S positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor, PreTrainedModel

from ...functional.head_logprobs import block_size, vocabulary_blocks
from .drawing import BLOCK, Drawn, first_above


#: Below this the logits are small beside the trunk.
MIN_VOCABULARY = 8192
#: What families add behind their head.
_BEHIND = ("logit_scale", "logits_scaling", "final_logit_softcapping")


def plain_head_weight(model: PreTrainedModel) -> torch.Tensor | None:
    """The weight `(V, H)` of a head that is one whole float32 matrix on a CPU and nothing else, or `None`.

    Args:
        model ([`~transformers.PreTrainedModel`]): a causal language model, without its adapter wrapper.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or "forward" in vars(head):
        return None
    weight, config = head.weight, model.config.get_text_config()
    if any(getattr(config, name, None) is not None for name in _BEHIND):
        return None
    hooked = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or weight._backward_hooks
    # Shards are of another type, or are known by what DeepSpeed keeps on them.
    whole = type(weight) is nn.Parameter and not hasattr(weight, "ds_id") and len(weight) >= MIN_VOCABULARY
    plain = whole and weight.device.type == "cpu" and weight.dtype == torch.float32 and not hooked
    return weight if plain and not torch.is_autocast_enabled("cpu") else None


def head_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits as the model itself computes them from its last hidden states.

    Args:
        model ([`~transformers.PreTrainedModel`]): a causal language model.
        hidden (`torch.Tensor` of shape `(n, H)`): outputs of its trunk.

    Returns:
        `torch.Tensor` of shape `(n, V)`: after the scaling (Cohere, Granite) and soft-capping (Gemma 2) that a family
        adds behind its head.
    """
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden)
    scale, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    if scale is not None:
        logits = logits * scale
    if divisor is not None:
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@contextmanager
def sparse_embedding(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Let an embedding that is tied to the head return the gradient of the rows that were read, for one forward.

    Args:
        model ([`~transformers.PreTrainedModel`]): a causal language model.
        wanted (`bool`): whether to do so.
    """
    embedding = model.get_input_embeddings()
    tied = wanted and isinstance(embedding, nn.Embedding) and embedding.weight is model.get_output_embeddings().weight
    before = getattr(embedding, "sparse", None)
    if tied:
        embedding.sparse = True
    try:
        yield
    finally:
        if tied:
            embedding.sparse = before


class DrawingHead:
    """Draws the next token from hidden states, in place of the logits of all tokens.

    As [`draw_tokens`] of these logits: one uniform number a row. It stands in for the head's forward while sampling;
    the "logits" that `generate` then sees are the ids drawn, `(B, 1, 1)`, and [`TakeDrawn`] hands them on.

    Args:
        weight (`torch.Tensor` of shape `(V, H)`): see [`plain_head_weight`].
        temperature (`float`): above 0.
    """

    def __init__(self, weight: torch.Tensor, temperature: float) -> None:
        self.weight, self.temperature = weight, temperature
        self.tokens: torch.Tensor | None = None
        self._logits = self._tops = self._masses = weight.new_empty(0)

    @torch.no_grad()
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Ids `(B, 1, 1)` as float32 for hidden states `(B, S, H)`, of which the last position counts."""
        states = hidden[:, -1] / self.temperature
        places = torch.rand((len(states), 1), dtype=torch.float64)
        self.tokens = self.draw(states, places)
        return self.tokens.to(torch.float32).view(-1, 1, 1)

    def draw(self, states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Ids `(B,)` at uniform places `(B, 1)` in [0, 1), from states `(B, H)` over the temperature."""
        self._make_room(len(states))
        for first, block in vocabulary_blocks(self.weight, len(states)):
            whole = -(-len(block) // BLOCK)
            logits = self._logits[:, : whole * BLOCK]
            torch.mm(states, block.T, out=logits[:, : len(block)])
            if len(block) < whole * BLOCK:
                logits[:, len(block) :] = -torch.inf
            parts = logits.unflatten(1, (whole, BLOCK))
            span = slice(first // BLOCK, first // BLOCK + whole)
            top = self._tops[:, span]
            torch.amax(parts, -1, out=top)
            torch.sum(parts.sub_(top.unsqueeze(-1)).exp_(), -1, out=self._masses[:, span])
        highest = self._tops.amax(-1, keepdim=True)
        # Running sums in double precision: many small terms would lose the rare tokens.
        cdf = (self._masses.double() * (self._tops - highest).double().exp()).cumsum(-1)
        places = places * cdf[:, -1:]
        chosen, before = first_above(cdf, places)
        return self._inside(states, chosen[:, 0], places - before, highest)

    def _inside(
        self, states: torch.Tensor, chosen: torch.Tensor, places: torch.Tensor, highest: torch.Tensor
    ) -> torch.Tensor:
        """The token within each row's block of [`BLOCK`], whose logits are computed once more."""
        logits = states.new_full((len(states), BLOCK), -torch.inf)
        for row, block in enumerate(chosen.tolist()):
            rows = self.weight[block * BLOCK : (block + 1) * BLOCK]
            torch.mv(rows, states[row], out=logits[row, : len(rows)])
        cdf = (logits - highest).double().exp().cumsum(-1)
        # The two sums of a block differ in their last bits; a place beyond the end belongs to its last token.
        places = torch.minimum(places, cdf[:, -1:].nextafter(cdf.new_zeros(())))
        return chosen * BLOCK + first_above(cdf, places)[0][:, 0]

    def _make_room(self, rows: int) -> None:
        if len(self._tops) != rows:
            count = -(-len(self.weight) // BLOCK)
            widest = min(block_size(rows, self.weight.shape[1]), len(self.weight))
            self._logits = self.weight.new_empty((rows, -(-widest // BLOCK) * BLOCK))
            self._tops, self._masses = (self.weight.new_empty((rows, count)) for _ in range(2))


class TakeDrawn(LogitsProcessor):
    """Hands the tokens of a [`DrawingHead`] to `generate` as those of the largest score.

    Args:
        head ([`DrawingHead`]): what stands in for the model's head.

    Raises:
        `RuntimeError`: the model changes what its head returns, so that the head's tokens are not those it would draw.
    """

    def __init__(self, head: DrawingHead) -> None:
        self.head = head

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores `(B, 1)` whose largest is known to be the token drawn."""
        tokens = self.head.tokens
        if tokens is None or scores.shape != (len(tokens), 1) or not torch.equal(scores[:, 0], tokens.float()):
            raise HeadIsNotLastError("The model changes its logits behind the language-model head.")
        drawn: Any = scores.as_subclass(Drawn)
        drawn.tokens = tokens
        return drawn


class HeadIsNotLastError(RuntimeError):
    """A model does more behind its head than [`plain_head_weight`] knows."""


@contextmanager
def replaced_forward(model: PreTrainedModel, head: DrawingHead) -> Iterator[None]:
    """Let a model's head answer by another function, and by its own afterwards."""
    own = model.get_output_embeddings()
    own.forward = head
    try:
        yield
    finally:
        del own.forward
