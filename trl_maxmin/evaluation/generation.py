# SPDX-License-Identifier: Apache-2.0
"""Replies of a policy to a set of prompts: sampled in batches over all ranks, or read from a file; KL and diversity.

Prompts are worked on in chunks of `batch_size`. Every chunk has a random stream of its own, so that one process and
several give the same replies, and policies that share a stream are compared on equal luck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.texts import text_of
from ..data.tokenization import Prompt, encode_prompt, plain_messages
from ..distributed import gather_objects
from ..models.base import context_length
from ..trainer.common.generation_backends import check_backend, sample_replies
from ..trainer.common.sampling import pad, resolve_stop_tokens, sampling_config, seeded
from ..trainer.ppo.policy import PolicyWithCritic, check_head


@dataclass
class Replies:
    """N replies of one policy, in the order of the prompts (all replies to the first prompt come first).

    Args:
        prompts (`list` of N texts or messages): the prompt of each reply.
        completions (`list[str]`): text without special tokens.
        finished (`list[bool]`): whether each reply ended by itself.
        prompt_ids, completion_ids (`list[list[int]]`, *optional*): in the policy's vocabulary, without padding; a
            finished reply ends with its stop token. Unknown for replies that were read from a file.
    """

    prompts: list[Prompt]
    completions: list[str]
    finished: list[bool]
    prompt_ids: list[list[int]] | None = None
    completion_ids: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.completions)

    def lengths(self) -> np.ndarray:
        """Length of each reply `(N,)`: tokens with the stop token, or words where the ids are unknown."""
        source = self.completion_ids or [text.split() for text in self.completions]
        return np.array([len(reply) for reply in source], dtype=np.float64)


@dataclass
class Sampling:
    """How replies are sampled.

    Args:
        max_new_tokens (`int`): length limit.
        temperature (`float`): 0 is greedy.
        num_completions (`int`): replies a prompt.
        batch_size (`int`): prompts generated for together.
        seed (`int`): of the random streams.
        max_prompt_length (`int`, *optional*): longer prompts are cut, see [`encode_prompt`].
        chat_template_kwargs (`dict`, *optional*): what chat templates are given, as in the policies' training.
        generation_backend (`str`): `"generate"`, `"continuous_batching"` or `"auto"`, see [`sample_replies`].
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    num_completions: int = 1
    batch_size: int = 32
    seed: int = 0
    max_prompt_length: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    generation_backend: str = "generate"

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_completions", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}; 0 is greedy.")
        check_backend(self.generation_backend)


def generate_replies(
    model: PreTrainedModel | nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    accelerator: Accelerator,
    stream: str = "policy",
    progress: Callable[[int], None] | None = None,
) -> Replies:
    """Sample replies to all prompts; every rank gets all of them.

    Args:
        model: a causal language model, on this rank's device.
        tokenizer: its tokenizer.
        prompts (`Sequence` of P texts or messages): prompts.
        sampling ([`Sampling`]): how.
        accelerator ([`~accelerate.Accelerator`]): ranks share the chunks of prompts among them.
        stream (`str`, *optional*): name of the random stream.
        progress (`Callable[[int], None]`, *optional*): called with the number of replies just done on this rank.

    Returns:
        [`Replies`]: P x `num_completions` of them.

    Raises:
        ValueError: a prompt that is empty, or too long for the model.
    """
    prompt_ids = encode_prompts(model, tokenizer, prompts, sampling)
    greedy = {"do_sample": False} if sampling.temperature == 0 else None
    config = sampling_config(sampling.temperature or 1.0, sampling.max_new_tokens, greedy)
    stop = resolve_stop_tokens(None, None, model, tokenizer, not isinstance(prompts[0], str))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stop or [0])[0]
    chunks = [
        (row, sample)
        for sample in range(sampling.num_completions)
        for row in range(0, len(prompts), sampling.batch_size)
    ]
    done: list[tuple[int, int, list[tuple[list[int], bool]]]] = []
    for row, sample in chunks[accelerator.process_index :: accelerator.num_processes]:
        ids = prompt_ids[row : row + sampling.batch_size]
        with seeded(accelerator.device, sampling.seed, "evaluate", stream, row, sample):
            backend, size = sampling.generation_backend, len(ids)
            done.append((row, sample, sample_replies(model, ids, config, padding, stop, size, backend)))
        if progress is not None:
            progress(len(ids))
    found = {
        (row + i, sample): reply
        for row, sample, replies in gather_objects(accelerator, done)
        for i, reply in enumerate(replies)
    }
    rows = [(row, sample) for row in range(len(prompts)) for sample in range(sampling.num_completions)]
    completion_ids = [found[key][0] for key in rows]
    return Replies(
        prompts=[prompts[row] for row, _ in rows],
        completions=tokenizer.batch_decode(completion_ids, skip_special_tokens=True),
        finished=[found[key][1] for key in rows],
        prompt_ids=[prompt_ids[row] for row, _ in rows],
        completion_ids=completion_ids,
    )


def encode_prompts(
    model: PreTrainedModel | nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> list[list[int]]:
    """Ids of the prompts as the policy reads them, each of which leaves room for a reply.

    Args:
        model, tokenizer, prompts, sampling: as in [`generate_replies`].

    Raises:
        ValueError: a prompt that is empty, or too long for the model.
    """
    options, limit = sampling.chat_template_kwargs, sampling.max_prompt_length
    prompt_ids = [encode_prompt(tokenizer, prompt, options, limit) for prompt in prompts]
    _require_room(model, prompt_ids, sampling.max_new_tokens)
    return prompt_ids


def _require_room(model: nn.Module, prompt_ids: list[list[int]], max_new_tokens: int) -> None:
    limit = context_length(model)
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise ValueError(f"Prompt {row} is empty; start it with at least one token, such as BOS.")
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"Prompt {row} has {len(ids)} tokens, which with max_new_tokens={max_new_tokens} exceeds the model's "
                f"context of {limit}. Lower max_new_tokens, or set max_prompt_length to at most "
                f"{max(0, limit - max_new_tokens)}."
            )


@torch.no_grad()
def reply_logprobs(
    model: PreTrainedModel | nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    temperature: float = 1.0,
    batch_size: int = 32,
) -> np.ndarray:
    """Log-probability of whole replies.

    Args:
        model: a causal language model.
        prompt_ids, completion_ids (`list[list[int]]`, N each): in its vocabulary, without padding.
        temperature (`float`, *optional*, defaults to 1.0): of the distribution, above 0.
        batch_size (`int`, *optional*, defaults to 32): replies a forward.

    Returns:
        `np.ndarray` of shape `(N,)`, nats.

    Raises:
        ValueError: a model that is no decoder, or of a family whose head is not known.
    """
    check_head(model)
    # As the trainers: only real tokens of replies meet the vocabulary, and only some of them at the same time.
    policy, device = PolicyWithCritic(model, num_channels=0), next(model.parameters()).device
    lengths = [len(prompt) + len(reply) for prompt, reply in zip(prompt_ids, completion_ids, strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    result = np.zeros(len(lengths))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        left, left_mask = pad([prompt_ids[i] for i in rows], 0, device, left=True)
        right, right_mask = pad([completion_ids[i] for i in rows], 0, device, left=False)
        whole, mask = torch.cat([left, right], dim=1), torch.cat([left_mask, right_mask], dim=1)
        logprobs = policy(whole, mask, right_mask, right, temperature)[0]
        result[rows] = logprobs.sum(dim=1).cpu().numpy()
    return result


def diversity_of_replies(texts: Sequence[str]) -> dict[str, float]:
    """How varied replies are among each other.

    Args:
        texts (`Sequence[str]`): replies; words are split at white space.

    Returns:
        `dict`: `distinct_1` and `distinct_2`, different words and pairs of neighbouring words over all of them (Li et
        al., arXiv 1510.03055), and `unique`, different replies over all replies. Without words `distinct_n` is 0.

    Example:

    >>> diversity_of_replies(["a good film", "a good plot"])
    {'distinct_1': 0.667, 'distinct_2': 0.75, 'unique': 1.0}
    """
    words = [text.split() for text in texts]
    result = {}
    for n in (1, 2):
        grams = [tuple(reply[i : i + n]) for reply in words for i in range(len(reply) - n + 1)]
        result[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else 0.0
    return result | {"unique": len(set(texts)) / len(texts) if texts else 0.0}


def read_completions(dataset: Dataset) -> dict[str, Replies]:
    """Cached generations of several policies.

    Args:
        dataset (`Dataset`): one row a reply with the columns `policy`, `prompt` and `completion`, and optionally
            `finished` (default: all did). Every policy must have the same prompts equally often; its rows may come in
            any order.

    Returns:
        `dict` from policy to [`Replies`], all with the same prompts in the same order.

    Raises:
        ValueError: a missing column, no rows, or policies with different prompts.
    """
    missing = [name for name in ("policy", "prompt", "completion") if name not in dataset.column_names]
    if missing or not len(dataset):
        raise ValueError(
            f"Cached generations need rows with the columns policy, prompt and completion; {len(dataset)} rows have "
            f"{', '.join(dataset.column_names)}."
        )
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in dataset:
        rows.setdefault(str(row["policy"]), {}).setdefault(repr(plain_messages(row["prompt"])), []).append(row)
    first, *others = rows
    counts = {prompt: len(found) for prompt, found in rows[first].items()}
    for name in others:
        own = {prompt: len(found) for prompt, found in rows[name].items()}
        if own != counts:
            apart = sorted(set(own.items()) ^ set(counts.items()))[0][0]
            raise ValueError(
                f"The policies {first!r} and {name!r} have other prompts or another number of replies, such as to "
                f"{apart}; comparisons are paired, so give every policy the same prompts."
            )
    result = {}
    for name, by_prompt in rows.items():
        ordered = [row for prompt in counts for row in by_prompt[prompt]]
        result[name] = Replies(
            prompts=[row["prompt"] for row in ordered],
            completions=[text_of(row["completion"]) for row in ordered],
            finished=[row.get("finished") is not False for row in ordered],
        )
    return result


def write_completions(replies: dict[str, Replies]) -> Dataset:
    """The rows that [`read_completions`] reads."""
    return Dataset.from_list(
        [
            {"policy": name, "prompt": prompt, "completion": completion, "finished": finished}
            for name, own in replies.items()
            for prompt, completion, finished in zip(own.prompts, own.completions, own.finished, strict=True)
        ]
    )
