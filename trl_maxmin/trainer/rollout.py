# SPDX-License-Identifier: Apache-2.0
"""Sampling replies, and the buffer of one rollout.

Letters: B replies of this rank, P prompt tokens, T reply tokens, K reward components, C channels of the critic. Masks
are bool with `True` on real tokens; they travel with the ids, so nothing is ever inferred from the value of a token.
Prompts are left padded, replies right padded.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .policy import base_model
from .prompts import Row, as_list
from .sampling import sample_by_cdf, sampling_config


__all__ = [
    "Rollout",
    "cut_at_stop",
    "pad",
    "resolve_stop_tokens",
    "sample_completions",
    "sampling_config",
    "seeded",
    "stream_seed",
]


# --------------------------------------------------------------------------------------------------------- sampling
def resolve_stop_tokens(
    stop_token: str | None, stop_token_id: int | None, policy: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Tokens that end a reply.

    Args:
        stop_token (`str`, *optional*): `"eos"` for the tokenizer's.
        stop_token_id (`int`, *optional*): this token.
        policy (`nn.Module`): whose `generation_config` decides by default.
        tokenizer: whose EOS decides where the policy's configuration names none.

    Returns:
        `list[int]`: maybe empty; every reply then runs to its full length.

    Raises:
        `ValueError`: `stop_token="eos"`, and a tokenizer without EOS.
    """
    if stop_token_id is not None:
        return [stop_token_id]
    if stop_token is None:
        own = getattr(base_model(policy).generation_config, "eos_token_id", None)
        if own is not None:
            return as_list(own) if not isinstance(own, int) else [own]
    elif tokenizer.eos_token_id is None:
        raise ValueError("stop_token='eos' needs a tokenizer with an EOS token; set `stop_token_id` instead.")
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


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
    with _ready_to_generate(model) as (generate, policy):
        device = policy.device
        processors = sample_by_cdf(config, policy.config.get_text_config().vocab_size, device)
        config.eos_token_id, config.pad_token_id = list(stop_token_ids) or None, pad_token_id
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, mask = pad([prompt_ids[i] for i in rows], pad_token_id, device, left=True)
            sequences = generate(
                input_ids=ids,
                attention_mask=mask.long(),
                generation_config=config,
                logits_processor=processors,
            )
            for i, tokens in zip(rows, sequences[:, ids.shape[1] :].tolist(), strict=True):
                replies[i] = cut_at_stop(tokens, stop_token_ids)
    return replies


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
    for position, token in enumerate(tokens):
        if token in stop_token_ids:
            return tokens[: position + 1], True
    return tokens, False


@contextmanager
def _ready_to_generate(model: nn.Module) -> Iterator[tuple[Callable, PreTrainedModel]]:
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
    devices = [device] if device.type in ("cuda", "xpu") else []
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(stream_seed(*parts))
        yield


def stream_seed(*parts: int | str) -> int:
    """A seed from names, so that neighbouring seeds, steps and ranks have unrelated streams.

    Args:
        parts: integers or strings.

    Returns:
        `int`: 63 bits.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


# ----------------------------------------------------------------------------------------------------------- buffer
@dataclass
class Rollout:
    """What one rank sampled in one rollout, and what became known of it.

    Args:
        inputs (`list[dict]`): the rows of the data, each with `prompt_ids` and `finished` added.
        prompts, completions: text, or messages where the data are conversational.
        prompt_ids, completion_ids (`list[list[int]]`): without padding; a reply ends with its stop token if it
            finished.
        finished (`torch.Tensor` of shape `(B,)`): bool; a stop token ended the reply.
        input_ids (`torch.Tensor` of shape `(B, P + T)`): prompts left padded, replies right padded.
        attention_mask (`torch.Tensor` of shape `(B, P + T)`): bool.
        completion_mask (`torch.Tensor` of shape `(B, T)`): bool.
        loss_mask (`torch.Tensor` of shape `(B, T)`): bool; `True` on tokens that are learned from.
        logprobs, ref_logprobs, entropy (`torch.Tensor` of shape `(B, T)`): nats, of the policy that sampled and of the
            reference.
        values (`torch.Tensor` of shape `(B, T, C)`): of the state before each token.
        scores (`torch.Tensor` of shape `(B, K)`): what the reply earned under each component, penalties included.
        kl (`torch.Tensor` of shape `(B, T)`): nats.
        advantages (`torch.Tensor` of shape `(B, T)`), returns (`torch.Tensor` of shape `(B, T, C)`).
    """

    inputs: list[Row]
    prompts: list[Any]
    completions: list[Any]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    finished: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_mask: torch.Tensor
    loss_mask: torch.Tensor
    logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    values: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    @classmethod
    def build(
        cls,
        rows: list[Row],
        prompt_ids: list[list[int]],
        replies: list[tuple[list[int], bool]],
        tokenizer: PreTrainedTokenizerBase,
        pad_token_id: int,
        device: torch.device,
    ) -> Rollout:
        """Pad, decode and carry the data's own columns along.

        Args:
            rows (`list[dict]`): of the data.
            prompt_ids (`list[list[int]]`): see [`PromptReader`].
            replies (`list[tuple[list[int], bool]]`): see [`sample_completions`].
            tokenizer: the policy's.
            pad_token_id (`int`): any id.
            device (`torch.device`): of the tensors.

        Returns:
            [`Rollout`].
        """
        completion_ids = [ids for ids, _ in replies]
        left, left_mask = pad(prompt_ids, pad_token_id, device, left=True)
        right, right_mask = pad(completion_ids, pad_token_id, device, left=False)
        given = [row.get("prompt") for row in rows]
        missing = [i for i, prompt in enumerate(given) if prompt is None]
        decoded = tokenizer.batch_decode([prompt_ids[i] for i in missing], skip_special_tokens=True) if missing else []
        for i, text in zip(missing, decoded, strict=True):
            given[i] = text
        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True) if completion_ids else []
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(given, texts, strict=True)
        ]
        inputs = [
            {**row, "prompt_ids": ids, "finished": finished}
            for row, ids, (_, finished) in zip(rows, prompt_ids, replies, strict=True)
        ]
        return cls(
            inputs=inputs,
            prompts=given,
            completions=completions,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            finished=torch.tensor([finished for _, finished in replies], dtype=torch.bool, device=device),
            input_ids=torch.cat([left, right], dim=1),
            attention_mask=torch.cat([left_mask, right_mask], dim=1),
            completion_mask=right_mask,
            loss_mask=right_mask.clone(),
        )

    def __len__(self) -> int:
        return len(self.completion_ids)

    def by_length(self, rows: Sequence[int] | None = None) -> list[int]:
        """Rows in the order of their real length, so that neighbours share a tight micro-batch.

        Args:
            rows (`list[int]`, *optional*): which; all by default.

        Returns:
            `list[int]`.
        """
        rows = range(len(self)) if rows is None else rows
        return sorted(rows, key=lambda i: (len(self.prompt_ids[i]) + len(self.completion_ids[i]), i))

    def micro_batch(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Tensors of some rows, trimmed to their longest prompt and their longest reply.

        Args:
            rows (`list[int]`): which.

        Returns:
            `dict[str, torch.Tensor]`: every tensor that is known so far, and `completion_ids` `(B, T)`.
        """
        prompt = max((len(self.prompt_ids[i]) for i in rows), default=1)
        reply = max((len(self.completion_ids[i]) for i in rows), default=0)
        start = self.input_ids.shape[1] - self.completion_mask.shape[1]
        index = torch.as_tensor(rows, dtype=torch.long, device=self.input_ids.device)
        batch = {}
        for item in fields(self):
            tensor = getattr(self, item.name)
            if not torch.is_tensor(tensor):
                continue
            if item.name in ("input_ids", "attention_mask"):
                batch[item.name] = tensor[index, start - prompt : start + reply]
            elif item.name in ("finished", "scores"):
                batch[item.name] = tensor[index]
            else:
                batch[item.name] = tensor[index, :reply]
        batch["completion_ids"] = batch["input_ids"][:, prompt:]
        return batch

    def map_rows(
        self, function: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor | None, ...]], batch_size: int
    ) -> list[torch.Tensor | None]:
        """Apply a function to all rows in tight micro-batches, and put the results in the order of the rows.

        Args:
            function: from a micro-batch to tensors `(b, t, ...)`, or `None`.
            batch_size (`int`): rows of a micro-batch.

        Returns:
            `list`: one tensor `(B, T, ...)` per result, 0 on padding.
        """
        results: list[torch.Tensor | None] = []
        order = self.by_length()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            outputs = function(self.micro_batch(rows))
            if not results:
                shape = self.completion_mask.shape
                results = [None if out is None else out.new_zeros((*shape, *out.shape[2:])) for out in outputs]
            for whole, out in zip(results, outputs, strict=True):
                if whole is not None:
                    whole[torch.as_tensor(rows, device=whole.device), : out.shape[1]] = out
        return results


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
