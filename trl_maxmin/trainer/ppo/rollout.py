# SPDX-License-Identifier: Apache-2.0
"""The buffer of one rollout.

Letters: B replies of this rank, P prompt tokens, T reply tokens, K reward components, C channels of the critic. Masks
are bool with `True` on real tokens; they travel with the ids, so nothing is ever inferred from the value of a token.
Prompts are left padded, replies right padded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..common.sampling import pad, stream_seed
from .ppo_config import PPOConfig
from .prompts import Row


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
        sampler_logprobs (`torch.Tensor` of shape `(B, T)`): nats, as whoever sampled computed them; `None`: not told.
        logprobs, ref_logprobs, entropy (`torch.Tensor` of shape `(B, T)`): nats, of the policy that sampled and of the
            reference.
        values (`torch.Tensor` of shape `(B, T, C)`): of the state before each token.
        scores (`torch.Tensor` of shape `(B, K)`): what the reply earned under each component, penalties included.
        kl (`torch.Tensor` of shape `(B, T)`): nats.
        advantages (`torch.Tensor` of shape `(B, T)`), returns (`torch.Tensor` of shape `(B, T, C)`).
        outputs (`tuple`): of the policy's forward with its graph, rows by length, where one micro-batch has them all.
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
    sampler_logprobs: torch.Tensor | None = None
    logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    values: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    outputs: tuple[torch.Tensor | None, ...] | None = None

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
        """Pad prompts of [`PromptReader`] and replies of [`sample_completions`] with any id, decode them, and carry
        the columns of the data along."""
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

    def note_sampler(self, logprobs: list[list[float]] | None) -> None:
        """Log-probabilities of each reply's tokens by whoever sampled them (nats); `None`: it did not tell."""
        if logprobs is None:
            return
        table = torch.zeros(self.completion_mask.shape)
        for row, own in enumerate(logprobs):
            table[row, : len(own)] = torch.tensor(own)
        self.sampler_logprobs = table.to(self.completion_mask.device)

    @property
    def replies(self) -> tuple[list[Row], list[Any], list[Any], list[list[int]]]:
        """What `_calculate_rewards` takes."""
        return self.inputs, self.prompts, self.completions, self.completion_ids

    def __len__(self) -> int:
        return len(self.completion_ids)

    def settle_scores(self, weights: torch.Tensor, missing_eos_penalty: float | None, mask_truncated: bool) -> None:
        """Take penalties off the scores, and rows that a component of weight could not score out of the loss.

        Args:
            weights (`torch.Tensor` of shape `(K,)`): what each component counts.
            missing_eos_penalty (`float`, *optional*): of a truncated reply, under every component.
            mask_truncated (`bool`): whether truncated replies are left out of the loss.
        """
        unscored = self.scores[:, weights != 0].isnan().any(1)
        if unscored.any():
            warnings.warn(
                f"{int(unscored.sum())} of {len(self)} replies have no score (NaN) and are left out of the loss.",
                stacklevel=2,
            )
        self.loss_mask &= ~unscored.unsqueeze(1)
        self.scores = self.scores.nan_to_num(nan=0.0)
        if missing_eos_penalty is not None:
            self.scores = self.scores - missing_eos_penalty * (~self.finished).unsqueeze(1)
        if mask_truncated:
            self.loss_mask &= self.finished.unsqueeze(1)

    def by_length(self, rows: Sequence[int] | None = None) -> list[int]:
        """Rows (all by default) in the order of their real length, so that neighbours share a tight micro-batch."""
        rows = range(len(self)) if rows is None else rows
        return sorted(rows, key=lambda i: (len(self.prompt_ids[i]) + len(self.completion_ids[i]), i))

    def micro_batches(self, rows: Sequence[int], size: int, max_tokens: int | None = None) -> list[list[int]]:
        """Rows in micro-batches, the shortest first.

        Args:
            rows (`list[int]`): which.
            size (`int`): rows of a micro-batch; without meaning where `max_tokens` is given.
            max_tokens (`int`, *optional*): most tokens of a micro-batch, padding included. A longer row is alone.

        Returns:
            `list[list[int]]`: every row once.
        """
        rows = self.by_length(rows)
        if max_tokens is None:
            return [rows[start : start + size] for start in range(0, len(rows), size)]
        parts: list[list[int]] = []
        prompt = reply = 0
        for row in rows:
            prompt = max(prompt, len(self.prompt_ids[row]))
            reply = max(reply, len(self.completion_ids[row]))
            if not parts or (len(parts[-1]) + 1) * (prompt + reply) > max_tokens:
                parts.append([])
                prompt, reply = len(self.prompt_ids[row]), len(self.completion_ids[row])
            parts[-1].append(row)
        return parts

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

    def take_outputs(self, rows: Sequence[int]) -> tuple[torch.Tensor | None, ...] | None:
        """`outputs`, once (a graph can be gone through one time), where they are those of a micro-batch's rows."""
        outputs, self.outputs = self.outputs, None
        return outputs if list(rows) == self.by_length() else None

    def map_rows(
        self,
        function: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor | None, ...]],
        batch_size: int,
        keep: bool = False,
    ) -> list[torch.Tensor | None]:
        """Apply a function to all rows in tight micro-batches, and put the results in the order of the rows.

        Args:
            function: from a micro-batch to tensors `(b, t, ...)`, or `None`.
            batch_size (`int`): rows of a micro-batch.
            keep (`bool`): whether `outputs` gets what the function returned, with its graph.

        Returns:
            `list`: one tensor `(B, T, ...)` per result, 0 on padding.
        """
        results: list[torch.Tensor | None] = []
        order = self.by_length()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            outputs = function(self.micro_batch(rows))
            if keep:
                self.outputs = outputs
                outputs = tuple(None if out is None else out.detach() for out in outputs)
            if not results:
                shape = self.completion_mask.shape
                results = [None if out is None else out.new_zeros((*shape, *out.shape[2:])) for out in outputs]
            for whole, out in zip(results, outputs, strict=True):
                if whole is not None:
                    whole[torch.as_tensor(rows, device=whole.device), : out.shape[1]] = out
        return results


def plan_minibatches(num_rows: int, args: PPOConfig, step: int, rank: int) -> list[list[int]]:
    """Rows of each optimizer step on a rollout of `num_rows`: a new permutation for every epoch."""
    plan = []
    for epoch in range(args.num_ppo_epochs):
        seed = stream_seed(args.seed, "minibatches", step, epoch, rank)
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
        plan.extend(rows.tolist() for rows in order.tensor_split(args.num_mini_batches))
    return plan
