# SPDX-License-Identifier: Apache-2.0
"""Batching, pooling and sharing of forwards for reward components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..data.tokenization import as_trained, encode_prompt, same_vocabulary, stop_token
from .base import context_length


if TYPE_CHECKING:
    from .modeling_mixture_reward import MixtureRewardModel


def position_ids_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions that count real tokens only, so that padding on the left changes nothing.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, T)`): 1 = real token.

    Returns:
        `torch.Tensor` of shape `(B, T)`, long; padding gets position 0 and is masked.

    Example:

    >>> position_ids_from_mask(torch.tensor([[0, 1, 1]])).tolist()
    [[0, 0, 1]]
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def pool_last_token(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Hidden state of the last attended token.

    Args:
        hidden (`torch.Tensor` of shape `(B, T, D)`): hidden states.
        attention_mask (`torch.Tensor` of shape `(B, T)`): 1 = real token. The mask alone decides: an EOS that equals
            the pad token is a real token.

    Returns:
        `torch.Tensor` of shape `(B, D)`.
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (positions * attention_mask.long()).argmax(-1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def pad_sequences(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad id lists.

    Returns:
        `input_ids` and `attention_mask`, `(B, T)` each; the mask is 1 on real tokens.

    Example:

    >>> [t.tolist() for t in pad_sequences([[5], [6, 7]], 0)]
    [[[5, 0], [6, 7]], [[1, 0], [1, 1]]]
    """
    width = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask


@torch.no_grad()
def score_sequences(
    model: nn.Module,
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    sequences: Sequence[Sequence[int]],
    num_columns: int = 1,
    batch_size: int = 64,
) -> torch.Tensor:
    """Rewards of id sequences, batched by length; the order of the input is kept.

    Args:
        model (`nn.Module`): the reward model, in evaluation mode meanwhile.
        forward (`Callable`): from `input_ids` and `attention_mask`, `(B, T)` each, to rewards `(B, K)`.
        sequences (`Sequence[Sequence[int]]`, N): ids without padding.
        num_columns (`int`): K.
        batch_size (`int`): sequences per forward.

    Returns:
        `torch.Tensor` of shape `(N, K)`, float32, on the model's device, without gradient.

    Raises:
        ValueError: a sequence that the model cannot read: empty, longer than its context, or with ids beyond its
            vocabulary.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    limit, vocabulary, pad_token_id = _reading(model)
    for row, ids in enumerate(sequences):
        if not ids or (limit is not None and len(ids) > limit):
            raise ValueError(
                f"Reply {row} has {len(ids)} tokens with its prompt, but {type(model).__name__} reads 1 to {limit}; "
                "shorten the prompts or the replies."
            )
        if vocabulary is not None and max(ids) >= vocabulary:
            raise ValueError(
                f"Reply {row} has the token id {max(ids)}, but {type(model).__name__} knows ids below {vocabulary}. "
                "If it has another tokenizer than the policy, pass the pair `(model, tokenizer)`."
            )
    rewards = torch.zeros(len(sequences), num_columns, dtype=torch.float32, device=device)
    # Module by module: a trunk that is shared with a policy in training must come back as it was.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        input_ids, attention_mask = pad_sequences([sequences[row] for row in rows], pad_token_id)
        rewards[torch.tensor(rows, device=device)] = forward(input_ids.to(device), attention_mask.to(device)).float()
    for module, training in modes:
        module.training = training
    return rewards


def _reading(model: nn.Module) -> tuple[int | None, int | None, int]:
    """Most tokens that a model reads, how many it knows (`None`: not known), and an id to fill up batches with."""
    config = getattr(model, "config", None)
    config = getattr(config, "base_config", config)
    limit = pad = vocabulary = None
    if isinstance(config, PreTrainedConfig):
        limit, pad = context_length(config), config.get_text_config().pad_token_id
    if hasattr(model, "get_input_embeddings"):
        vocabulary = model.get_input_embeddings().num_embeddings
    # The mask says what is padding, so any id that can be embedded serves.
    known = pad is not None and 0 <= pad and (vocabulary is None or pad < vocabulary)
    return limit, vocabulary, pad if known else 0


class SharedRewardFunctions:
    """K reward functions of one mixture; the first of them to be asked about a batch runs the forward for all.

    Args:
        model ([`MixtureRewardModel`]): the mixture; its `processing_class` must be set.
        policy_processing_class (`PreTrainedTokenizerBase`, *optional*): the policy's tokenizer. Where its vocabulary
            is another one, replies are scored as text, and finished if their ids end with its EOS.
    """

    def __init__(
        self, model: MixtureRewardModel, policy_processing_class: PreTrainedTokenizerBase | None = None
    ) -> None:
        self.model = model
        self.names = list(model.component_names)
        self.policy_processing_class = policy_processing_class
        self.num_forwards = 0
        self._key: tuple[Any, ...] | None = None
        self._rewards: torch.Tensor | None = None

    def rewards(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """`(N, K)` for a batch, from the last forward if it was of the same batch."""
        key = (list(prompts), list(completions), None if completion_ids is None else [list(c) for c in completion_ids])
        if self._rewards is None or key != self._key:
            self._rewards = self._score(*key, columns or {})
            self._key = key
            self.num_forwards += 1
        return self._rewards

    def _score(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]] | None,
        columns: dict[str, Any],
    ) -> torch.Tensor:
        tokenizer = self.model.processing_class
        policy = self.policy_processing_class or tokenizer
        if completion_ids is None:
            return self.model.score(prompts, completions)
        ends = [stop_token(policy, not isinstance(prompt, str)) for prompt in prompts]
        stops = [{end, policy.eos_token_id} - {None} for end in ends]
        finished = [bool(ids) and ids[-1] in stop for ids, stop in zip(completion_ids, stops, strict=True)]
        if not same_vocabulary(policy, tokenizer):
            return self.model.score(prompts, completions, finished=finished)
        replies = zip(prompts, completion_ids, finished, strict=True)
        return self.model.score(
            prompt_ids=[encode_prompt(tokenizer, prompt) for prompt in prompts],
            completion_ids=[as_trained(tokenizer, *reply) for reply in replies],
        )

    def callables(self) -> list[Callable[..., list[float]]]:
        """One callable per component, named after it."""

        def make(k: int, name: str) -> Callable[..., list[float]]:
            def reward(
                prompts: Sequence[Any],
                completions: Sequence[Any],
                completion_ids: Sequence[Sequence[int]] | None = None,
                **columns: Any,
            ) -> list[float]:
                return self.rewards(prompts, completions, completion_ids, columns)[:, k].tolist()

            reward.__name__ = name
            return reward

        return [make(k, name) for k, name in enumerate(self.names)]
