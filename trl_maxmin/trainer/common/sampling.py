# SPDX-License-Identifier: Apache-2.0
"""Sampling replies: which tokens end one, how the next token is drawn, and from which random stream.

Prompts are left padded; masks are bool with `True` on real tokens and travel with the ids.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ...data.tokenization import stop_tokens
from ...models.base import base_model, forked_rng
from .drawing import SampleByCdf
from .vocabulary_head import DrawingHead, HeadIsNotLastError, TakeDrawn, plain_head_weight, replaced_forward


def resolve_stop_tokens(
    stop_token: str | None,
    stop_token_id: int | None,
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversational: bool = False,
) -> list[int]:
    """Tokens that end a reply.

    Args:
        stop_token (`str`, *optional*): `"eos"` for the tokenizer's.
        stop_token_id (`int`, *optional*): this token.
        policy (`nn.Module`): whose `generation_config` decides by default.
        tokenizer: whose EOS decides where the policy's configuration names none.
        conversational (`bool`): whether prompts are messages; the token that closes a turn then ends a reply, too.

    Returns:
        `list[int]`: maybe empty; every reply then runs to its full length.

    Raises:
        `ValueError`: `stop_token="eos"`, and a tokenizer without EOS.
    """
    if stop_token_id is not None:
        return [stop_token_id]
    if stop_token is None:
        return stop_tokens(
            tokenizer, getattr(base_model(policy).generation_config, "eos_token_id", None), conversational
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("stop_token='eos' needs a tokenizer with an EOS token; set `stop_token_id` instead.")
    return [tokenizer.eos_token_id]


@torch.no_grad()
def sample_completions(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    generation_config: GenerationConfig,
    pad_token_id: int,
    stop_token_ids: Sequence[int],
    batch_size: int,
) -> list[tuple[list[int], bool]]:
    """Sample one reply to each prompt.

    Args:
        model (`nn.Module`): [`PolicyWithCritic`], `PreTrainedModel` or `PeftModel`. Its own `generation_config` plays
            no part and is the same afterwards, as is its training mode.
        prompt_ids (`list[list[int]]`): prompts without padding.
        generation_config ([`~transformers.GenerationConfig`]): see [`sampling_config`].
        pad_token_id (`int`): any id; masks say what is padding.
        stop_token_ids (`list[int]`): tokens that end a reply.
        batch_size (`int`): prompts generated for together.

    Returns:
        `list[tuple[list[int], bool]]`: tokens of the reply up to and including its stop token, and whether it has one
        (`False`: cut at the length limit).
    """
    config = copy.deepcopy(generation_config)
    replies: list[tuple[list[int], bool]] = [([], False)] * len(prompt_ids)
    # Prompts of like length together: less padding, fewer steps.
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    with ready_to_generate(model) as (generate, policy):
        device = policy.device
        processors = sample_by_cdf(config, policy.config.get_text_config().vocab_size, device)
        config.eos_token_id, config.pad_token_id = list(stop_token_ids) or None, pad_token_id
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, mask = pad([prompt_ids[i] for i in rows], pad_token_id, device, left=True)
            call = partial(generate, input_ids=ids, attention_mask=mask.long(), generation_config=config)
            sequences = _generate(call, policy, processors)
            for i, tokens in zip(rows, sequences[:, ids.shape[1] :].tolist(), strict=True):
                replies[i] = cut_at_stop(tokens, stop_token_ids)
    return replies


def _generate(call: Callable, policy: PreTrainedModel, processors: LogitsProcessorList | None) -> torch.Tensor:
    """Prompts and replies; where [`SampleByCdf`] may draw, the head draws itself if it is plain enough."""
    weight = None if processors is None else plain_head_weight(policy)
    if weight is not None:
        head = DrawingHead(weight, processors[0].temperature)
        try:
            with replaced_forward(policy, head):
                return call(logits_processor=LogitsProcessorList([TakeDrawn(head)]))
        except HeadIsNotLastError:
            pass
    return call(logits_processor=processors)


def cut_at_stop(tokens: list[int], stop_token_ids: Sequence[int]) -> tuple[list[int], bool]:
    """A reply up to and including its first stop token.

    Args:
        tokens (`list[int]`): what was generated.
        stop_token_ids (`list[int]`): tokens that end a reply.

    Returns:
        `tuple[list[int], bool]`: the reply, and whether a stop token ended it.

    Example:

    >>> cut_at_stop([5, 2, 0, 0], [2]), cut_at_stop([5, 6], [2])
    (([5, 2], True), ([5, 6], False))
    """
    stops = frozenset(stop_token_ids)
    for position, token in enumerate(tokens):
        if token in stops:
            return tokens[: position + 1], True
    return tokens, False


@contextmanager
def ready_to_generate(model: nn.Module) -> Iterator[tuple[Callable, PreTrainedModel]]:
    """In evaluation mode and with an empty `generation_config`: generation merges what a config leaves open from the
    model's own, and a `repetition_penalty` from there would sample from another distribution than PPO weighs."""
    # A sharded root has another class, so it is known by what it has.
    is_root = hasattr(model, "causal_lm")
    inner: PreTrainedModel = model.causal_lm if is_root else base_model(model)
    training, own_config = model.training, inner.generation_config
    model.eval()
    inner.generation_config = GenerationConfig()
    try:
        yield (model.generate if is_root else inner.generate), inner
    finally:
        inner.generation_config = own_config
        model.train(training)


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Draw from a random stream named by `parts`, and leave the global one as it was.

    What is sampled then depends on the weights, the prompts and the names alone: not on evaluations in between, on
    what a reward function draws, or on whether the run was resumed.

    Args:
        device (`torch.device`): where the drawing happens.
        parts: names of the stream, such as seed, step and rank.
    """
    with forked_rng(device, stream_seed(*parts)):
        yield


def stream_seed(*parts: int | str) -> int:
    """A seed from names, so that neighbouring seeds, steps and ranks have unrelated streams.

    Args:
        parts: integers or strings.

    Returns:
        `int`: 63 bits.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


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


def pad(
    sequences: Sequence[Sequence[int]], pad_token_id: int, device: torch.device, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of ids as one tensor with its mask, whatever side the tokenizer pads on.

    Args:
        sequences (`list[list[int]]`): ids.
        pad_token_id (`int`): the filler.
        device (`torch.device`): of the tensors.
        left (`bool`): the side of the padding.

    Returns:
        `tuple`: ids `(B, L)`, and a bool mask `(B, L)` that is `True` on real tokens.

    Example:

    >>> ids, mask = pad([[5], [6, 7]], 0, torch.device("cpu"), left=True)
    >>> ids.tolist(), mask.tolist()
    ([[0, 5], [6, 7]], [[False, True], [True, True]])
    """
    width = max((len(sequence) for sequence in sequences), default=0)
    gaps = [[pad_token_id] * (width - len(sequence)) for sequence in sequences]
    full = [gap + list(ids) if left else list(ids) + gap for gap, ids in zip(gaps, sequences, strict=True)]
    ids = torch.tensor(full, dtype=torch.long, device=device).reshape(len(sequences), width)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device).unsqueeze(1)
    places = torch.arange(width, device=device)
    return ids, (places >= width - lengths) if left else (places < lengths)
