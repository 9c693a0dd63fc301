# SPDX-License-Identifier: Apache-2.0
"""Who samples the replies: one function behind rollouts, calibration and evaluation, whatever the backend.

A backend leaves weights, their type, modes, attention, generation configuration and random states as it found them;
all give the same greedy replies, and sampled ones from the same distribution.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from ...models.base import forked_rng
from .sampling import cut_at_stop, ready_to_generate, sample_completions


logger = logging.getLogger(__name__)

GENERATION_BACKENDS = ("generate", "continuous_batching", "auto")
#: What continuous batching reads of a generation configuration.
_KNOWN = ("do_sample", "temperature", "top_k", "top_p", "max_new_tokens")
#: Fields that say how, not what, is generated.
_NEUTRAL = ("use_cache", "transformers_version", "pad_token_id", "eos_token_id", "bos_token_id")
#: Continuous batching fills the places of replies that have ended; measured on a CPU (docs/performance.md), that pays
#: where the limit is so many times the mean length, from so many prompts on; and where the length is not known, from
#: so many prompts on for replies that may be so long.
AUTO_SPREAD, AUTO_FEWEST = 2.0, 8
AUTO_PROMPTS, AUTO_TOKENS = 64, 128
#: Tokens of a page of the cache, on a CPU and elsewhere (flash attention wants a multiple of 256), and of a forward.
_PAGE, _FLASH_PAGE, _BATCH_TOKENS = 32, 256, 512


class SampledReplies(list[tuple[list[int], bool]]):
    """Replies as of [`sample_completions`].

    Args:
        replies: tokens of each, and whether it ended by itself.
        logprobs (`list[list[float]]`, *optional*): nats of each token by the sampler's own computation, at the
            temperature; `None` where it does not tell.
    """

    def __init__(
        self, replies: Iterable[tuple[list[int], bool]] = (), logprobs: list[list[float]] | None = None
    ) -> None:
        super().__init__(replies)
        self.logprobs = logprobs


def check_backend(backend: str) -> None:
    """Refuse a backend that does not exist.

    Raises:
        `ValueError`: it is none of [`GENERATION_BACKENDS`].
    """
    if backend not in GENERATION_BACKENDS:
        raise ValueError(f"generation_backend={backend!r} is unknown; choose one of {GENERATION_BACKENDS}.")


def choose_backend(
    backend: str, num_prompts: int, max_new_tokens: int, device: torch.device, mean_length: float | None = None
) -> str:
    """The backend that `"auto"` stands for; any other is itself.

    Args:
        backend (`str`): one of [`GENERATION_BACKENDS`].
        num_prompts (`int`): prompts that are answered together.
        max_new_tokens (`int`): length limit of a reply.
        device (`torch.device`): of the policy.
        mean_length (`float`, *optional*): tokens of a reply, as of those before; `None`: not known.

    Returns:
        `str`: `"generate"` or `"continuous_batching"`. On an accelerator `"generate"`: nothing was measured there.

    Example:

    >>> choose_backend("auto", 128, 256, torch.device("cpu")), choose_backend("auto", 8, 24, torch.device("cpu"))
    ('continuous_batching', 'generate')
    """
    check_backend(backend)
    if backend != "auto":
        return backend
    if mean_length is None:
        pays = num_prompts >= AUTO_PROMPTS and max_new_tokens >= AUTO_TOKENS
    else:
        pays = num_prompts >= AUTO_FEWEST and max_new_tokens >= AUTO_SPREAD * mean_length
    return "continuous_batching" if pays and device.type == "cpu" else "generate"


def sample_replies(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    generation_config: GenerationConfig,
    pad_token_id: int,
    stop_token_ids: Sequence[int],
    batch_size: int,
    backend: str = "generate",
    mean_length: float | None = None,
) -> SampledReplies:
    """Sample one reply to each prompt, by any backend.

    Args:
        model, prompt_ids, generation_config, pad_token_id, stop_token_ids: as in [`sample_completions`].
        batch_size (`int`): prompts generated for together; with continuous batching a place is filled again as soon as
            its reply has ended.
        backend (`str`, *optional*, defaults to `"generate"`): one of [`GENERATION_BACKENDS`].
        mean_length (`float`, *optional*): tokens of a reply of the same policy before, for `"auto"`.

    Returns:
        [`SampledReplies`]: in the order of the prompts.

    Raises:
        `ValueError`: an unknown backend; with continuous batching a model in shards, one whose attention cannot read a
            paged cache, or settings that it does not know, such as `repetition_penalty`.
        `RuntimeError`: continuous batching lost a reply.
    """
    check_backend(backend)
    with ready_to_generate(model) as (_, inner):
        device = inner.device
    limit = generation_config.max_new_tokens or 0
    chosen = choose_backend(backend, len(prompt_ids), limit, device, mean_length if stop_token_ids else limit)
    if backend == "auto" and chosen != "generate" and problem(model, generation_config):
        chosen = "generate"
    if backend == "auto":
        logger.info(f"{len(prompt_ids)} prompts, {generation_config.max_new_tokens} tokens at most: {chosen}.")
    if chosen == "generate":
        return SampledReplies(
            sample_completions(model, prompt_ids, generation_config, pad_token_id, stop_token_ids, batch_size)
        )
    if reason := problem(model, generation_config):
        raise ValueError(f"generation_backend='continuous_batching' cannot be used: {reason}. Use 'generate'.")
    return _sample_continuously(model, prompt_ids, generation_config, pad_token_id, stop_token_ids, batch_size)


def problem(model: nn.Module, config: GenerationConfig) -> str | None:
    """Why continuous batching cannot sample from a model, or `None`.

    Args:
        model (`nn.Module`): as in [`sample_completions`].
        config ([`~transformers.GenerationConfig`]): the settings.
    """
    with ready_to_generate(model) as (_, inner):
        if is_deepspeed_zero3_enabled() or is_fsdp_managed_module(inner) or is_fsdp_managed_module(model):
            return "the policy is in shards, which its own thread cannot gather"
        if not hasattr(inner, "generate_batch") or not (inner._supports_sdpa or inner._supports_attention_backend):
            return f"{type(inner).__name__} does not read a paged cache"
    plain = GenerationConfig(**{name: getattr(config, name) for name in _KNOWN}).to_dict()
    neutral = {"repetition_penalty": 1.0, "num_beams": 1, "num_return_sequences": 1}
    others = {
        name: value
        for name, value in config.to_dict().items()
        if name not in _NEUTRAL and value != plain.get(name) and value != neutral.get(name, plain.get(name))
    }
    return f"it does not know {others}" if others else None


@torch.no_grad()
def _sample_continuously(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    config: GenerationConfig,
    pad_token_id: int,
    stop_token_ids: Sequence[int],
    batch_size: int,
) -> SampledReplies:
    if not prompt_ids:
        return SampledReplies()
    settings = {name: getattr(config, name) for name in _KNOWN if getattr(config, name) is not None}
    # -1 is no token: replies then run to their full length.
    settings |= {"eos_token_id": list(stop_token_ids) or -1, "pad_token_id": pad_token_id}
    rows = min(batch_size, len(prompt_ids))
    longest = max(map(len, prompt_ids)) + config.max_new_tokens
    with ready_to_generate(model) as (_, inner):
        page = _PAGE if inner.device.type == "cpu" else _FLASH_PAGE
        batching = ContinuousBatchingConfig(
            page_size=page,
            num_blocks=rows * (math.ceil(longest / page) + 1),
            max_batch_tokens=max(_BATCH_TOKENS, rows),
            max_requests_per_batch=rows,
            # The weights move between two rollouts, and the attention stays the one that weighs the replies.
            use_cuda_graph=False,
            auto_switch_to_flash=False,
            return_logprobs=True,
            seed=int(torch.randint(2**31 - 1, ())),
        )
        attention = inner.config._attn_implementation
        try:
            with forked_rng(inner.device, batching.seed), _quick_collection():
                found = inner.generate_batch(
                    [list(ids) for ids in prompt_ids],
                    generation_config=GenerationConfig(**settings),
                    continuous_batching_config=batching,
                    progress_bar=False,
                    warmup=False,
                )
        finally:
            if inner.config._attn_implementation != attention:
                inner.set_attn_implementation(attention)
    results = list(found.values())
    failed = [result.error for result in results if result.error is not None]
    if failed or len(results) != len(prompt_ids):
        raise RuntimeError(
            f"Continuous batching returned {len(results) - len(failed)} of {len(prompt_ids)} replies"
            f"{': ' + str(failed[0]) if failed else ''}. Use generation_backend='generate'."
        )
    replies = [cut_at_stop(list(result.generated_tokens), stop_token_ids) for result in results]
    logprobs = [result.logprobs[: len(ids)] for result, (ids, _) in zip(results, replies, strict=True)]
    return SampledReplies(replies, logprobs)


@contextmanager
def _quick_collection() -> Iterator[None]:
    """Objects that are there stay out of what transformers collects when its manager goes, twice: looking through all
    of them takes longer than a short rollout."""
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
