# SPDX-License-Identifier: Apache-2.0
"""What is scored, and what scores it: replies as text, as ids, or as both, and anything that gives them K rewards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


Text = str | list[dict[str, Any]]


@dataclass
class RewardBatch:
    """Replies to be scored, as text, as ids, or as both; every list has one entry per reply.

    Args:
        prompts (`list[str]` or `list[list[dict]]`, *optional*):
            Prompts as text or messages.
        completions (`list[str]` or `list[list[dict]]`, *optional*):
            Replies as text or messages, without special tokens.
        prompt_ids (`list[list[int]]`, *optional*):
            Prompts in the policy's vocabulary, without padding.
        completion_ids (`list[list[int]]`, *optional*):
            Replies in the policy's vocabulary, without padding; they end with the stop token iff the reply finished.
        finished (`list[bool]`, *optional*):
            Whether each reply ended by itself. Default: read from the ids where there are some, else True.
        columns (`dict[str, list]`, *optional*):
            Other columns of the data set, handed to reward functions.

    Raises:
        `ValueError`: Neither text nor ids of the replies, or lists of different lengths.

    Example:

    ```python
    >>> batch = RewardBatch(prompts=["Hi", "Hi"], completions=[" there", " you"], columns={"group": ["a", "b"]})
    >>> len(batch)
    2

    ```
    """

    prompts: list[Text] | None = None
    completions: list[Text] | None = None
    prompt_ids: list[list[int]] | None = None
    completion_ids: list[list[int]] | None = None
    finished: list[bool] | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.completions is None and self.completion_ids is None:
            raise ValueError("A `RewardBatch` needs `completions` (text) or `completion_ids`; both are None.")
        own = ("prompts", "completions", "prompt_ids", "completion_ids", "finished")
        lengths = {name: len(getattr(self, name)) for name in own if getattr(self, name) is not None}
        lengths |= {f"columns[{name!r}]": len(v) for name, v in self.columns.items() if isinstance(v, list)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"A `RewardBatch` needs one entry per reply in every list; the lengths are {lengths}.")

    def __len__(self) -> int:
        return len(self.completions if self.completions is not None else self.completion_ids)

    def as_text(self, tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[Text], list[Text], list[bool]]:
        """Prompts, replies and whether each reply finished, decoded from the ids where there is no text.

        Args:
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                The policy's. Needed where text is missing.

        Returns:
            `tuple`: prompts, completions, finished; N each.

        Raises:
            `ValueError`: Text is missing and so is the tokenizer, or the prompts are missing in both forms.
        """
        prompts = self._decoded("prompts", self.prompts, self.prompt_ids, tokenizer)
        completions = self._decoded("completions", self.completions, self.completion_ids, tokenizer)
        finished = self.finished
        if finished is None and self.completion_ids is not None and tokenizer is not None:
            finished = [bool(ids) and ids[-1] == tokenizer.eos_token_id for ids in self.completion_ids]
        return prompts, completions, [True] * len(self) if finished is None else list(finished)

    @staticmethod
    def _decoded(
        name: str, text: list[Text] | None, ids: list[list[int]] | None, tokenizer: PreTrainedTokenizerBase | None
    ) -> list[Text]:
        if text is not None:
            return text
        if ids is None or tokenizer is None:
            raise ValueError(
                f"This reward reads text, but `{name}` is None and cannot be decoded: "
                f"{'there are no ids' if ids is None else 'the tokenizer of the policy is unknown'}. Give the text, "
                "or ids and `policy_tokenizer`."
            )
        return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class RewardSource(ABC):
    """Anything that scores a [`RewardBatch`].

    Attributes:
        names (`list[str]`): K unique names, in the order of the columns.
        mixing_weights (`torch.Tensor` of shape `(K,)` or `None`): share of annotators behind each column, where known.
    """

    names: list[str]
    mixing_weights: torch.Tensor | None = None

    @abstractmethod
    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        """Score the replies of this rank.

        Args:
            batch ([`RewardBatch`]): B replies.

        Returns:
            `torch.Tensor` of shape `(B, K)`, float32, without gradient; NaN = not scored.
        """

    @property
    def num_components(self) -> int:
        """K, the number of columns."""
        return len(self.names)

    def to(self, device: torch.device | str) -> RewardSource:
        """Move models to `device` and return rewards there from now on. Returns the source itself."""
        return self
