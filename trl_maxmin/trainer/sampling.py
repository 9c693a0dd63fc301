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
        probabilities = (scores / self.temperature).softmax(-1)
        # In double precision, or the sum of many small terms loses the rare tokens.
        cdf = probabilities.cumsum(-1, dtype=torch.float64)
        places = torch.rand((len(scores), 1), dtype=torch.float64, device=scores.device) * cdf[:, -1:]
        # The first token whose cumulative probability exceeds the place: never one of probability 0.
        tokens = torch.searchsorted(cdf, places, right=True).clamp_(max=scores.shape[-1] - 1)
        return scores.scatter(-1, tokens, float("inf"))


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
