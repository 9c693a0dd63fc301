# SPDX-License-Identifier: Apache-2.0
"""How the next token is drawn."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList


def sampling_config(
    temperature: float, max_new_tokens: int, overrides: dict[str, Any] | None = None
) -> GenerationConfig:
    """Sampling from the policy itself: no filter or penalty stands between its distribution and the replies.

    Args:
        temperature (`float`): above 0.
        max_new_tokens (`int`): length limit of a reply.
        overrides (`dict`, *optional*): the user's `generation_kwargs`. What changes the distribution (`top_p`, ...)
            biases PPO, which weighs replies by the unfiltered probabilities.

    Returns:
        [`~transformers.GenerationConfig`].
    """
    settings = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings |= {"max_new_tokens": max_new_tokens, "use_cache": True} | (overrides or {})
    if not settings["do_sample"]:
        settings = {name: value for name, value in settings.items() if name not in ("temperature", "top_k", "top_p")}
    return GenerationConfig(**settings)


# Below this the overhead of a step is larger than its random numbers.
MIN_VOCABULARY = 1024
# Tokens summed together before one of them is looked for.
BLOCK = 256


class SampleByCdf(LogitsProcessor):
    """Draws the next token itself and lifts its score to infinity, so that greedy decoding takes it.

    `torch.multinomial` draws an exponential number for every token of the vocabulary, on a CPU one after the other:
    with 50,257 tokens that takes longer than a small model's forward. Inverting the cumulative distribution needs one
    uniform number a row. The distribution is the same, the stream of random numbers is not.

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
        """The scores `(B, V)`, with infinity at the token drawn for each row."""
        if self.temperature != 1.0:
            scores = scores / self.temperature
        probabilities = scores.softmax(-1)
        # Block first, token within it second: one pass over the vocabulary instead of a running sum of all of it. Sums
        # are in double precision, or many small terms would lose the rare tokens.
        blocks = probabilities.split(BLOCK, dim=-1)
        whole = probabilities.shape[-1] // BLOCK
        masses = [probabilities[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).sum(-1, dtype=torch.float64)]
        masses += [block.sum(-1, keepdim=True, dtype=torch.float64) for block in blocks[whole:]]
        cdf = torch.cat(masses, dim=1).cumsum(-1)
        places = torch.rand((len(scores), 1), dtype=torch.float64, device=scores.device) * cdf[:, -1:]
        block, before = _first_above(cdf, places)
        ids = block * BLOCK + torch.arange(BLOCK, device=scores.device)
        inside = probabilities.gather(-1, ids.clamp(max=probabilities.shape[-1] - 1)).double()
        inside.masked_fill_(ids >= probabilities.shape[-1], 0.0)
        cdf = inside.cumsum(-1)
        # The two sums of a block differ in their last bits; a place beyond the end belongs to its last token.
        place = torch.minimum(places - before, cdf[:, -1:].nextafter(cdf.new_zeros(())))
        token, _ = _first_above(cdf, place)
        return scores.scatter(-1, ids.gather(-1, token), float("inf"))


def _first_above(cdf: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index `(B, 1)` of the first entry above the place, which is never one of probability 0, and what precedes it."""
    index = torch.searchsorted(cdf, places, right=True).clamp_(max=cdf.shape[-1] - 1)
    return index, torch.nn.functional.pad(cdf, (1, 0)).gather(-1, index)


def sample_by_cdf(config: GenerationConfig, vocabulary: int, device: torch.device) -> LogitsProcessorList | None:
    """Let [`SampleByCdf`] draw, where that is worth it and the model's own distribution is asked for.

    Args:
        config ([`~transformers.GenerationConfig`]): as [`sampling_config`] makes it; set to greedy decoding where the
            processor draws. With overrides (top-p, a penalty, beams, greedy decoding) transformers draws.
        vocabulary (`int`): number of tokens.
        device (`torch.device`): of the scores.

    Returns:
        [`~transformers.LogitsProcessorList`] or `None`.
    """
    if device.type != "cpu" or vocabulary < MIN_VOCABULARY or not config.do_sample:
        return None
    if config.to_dict() != sampling_config(config.temperature, config.max_new_tokens).to_dict():
        return None
    processor = SampleByCdf(config.temperature)
    config.do_sample, config.temperature, config.top_k, config.top_p = False, None, None, None
    return LogitsProcessorList([processor])
