# SPDX-License-Identifier: Apache-2.0
"""What is scored, and what scores it: replies as text, as ids, or as both, and anything that gives them K rewards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ...data.tokenization import ChatOptions, Prompt, as_trained, chat_options, stop_token


@dataclass
class RewardBatch:
    """Replies to be scored, as text, as ids, or as both; every list has one entry per reply.

    Args:
        prompts (`list[str]` or `list[list[dict]]`, *optional*):
            Prompts as text or messages; `None` where only the ids are known.
        completions (`list[str]` or `list[list[dict]]`, *optional*):
            Replies as text or messages, without special tokens.
        prompt_ids (`list[list[int]]`, *optional*):
            Prompts in the policy's vocabulary, without padding.
        completion_ids (`list[list[int]]`, *optional*):
            Replies in the policy's vocabulary, without padding; they end with the stop token iff the reply finished.
        finished (`list[bool]`, *optional*):
            Whether each reply ended by itself. Default: read from the ids where there are some, else True.
        columns (`dict[str, list]`, *optional*):
            Other columns of the data set, handed to reward functions. `tools` and `chat_template_kwargs` are for the
            chat template, should a reward model of another vocabulary read the prompts.
        chat_template_kwargs (`dict`, *optional*):
            What the policy's prompts were all given; a row's own win.

    Raises:
        `ValueError`: Neither text nor ids of the replies, or lists of different lengths.

    Example:

    ```python
    >>> batch = RewardBatch(prompts=["Hi", "Hi"], completions=[" there", " you"], columns={"group": ["a", "b"]})
    >>> len(batch)
    2

    ```
    """

    prompts: list[Prompt | None] | None = None
    completions: list[Prompt] | None = None
    prompt_ids: list[list[int]] | None = None
    completion_ids: list[list[int]] | None = None
    finished: list[bool] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    chat_template_kwargs: ChatOptions | None = None

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

    def options(self) -> list[dict[str, Any]]:
        """What the chat template was given for each prompt, see [`chat_options`][trl_maxmin.data.tokenization]."""
        names = [name for name in ("tools", "chat_template_kwargs") if isinstance(self.columns.get(name), list)]
        rows = [{name: self.columns[name][row] for name in names} for row in range(len(self))]
        return [chat_options(row, self.chat_template_kwargs) for row in rows]

    def as_text(self, tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[Prompt], list[Prompt], list[bool]]:
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
        return prompts, completions, self._finished(tokenizer)

    def _finished(self, tokenizer: PreTrainedTokenizerBase | None) -> list[bool]:
        if self.finished is not None:
            return list(self.finished)
        if self.completion_ids is None or tokenizer is None:
            return [True] * len(self)
        ends = {stop_token(tokenizer, conversational) for conversational in (False, True)} - {None}
        return [bool(ids) and ids[-1] in ends for ids in self.completion_ids]

    @property
    def has_ids(self) -> bool:
        """Whether prompts and replies are known in the policy's vocabulary."""
        return self.prompt_ids is not None and self.completion_ids is not None

    def completions_as_trained(self, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
        """Ids of the replies with the stop token that the reward model knows, see [`as_trained`].

        Args:
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                The reward model's, or the policy's where they are one.

        Returns:
            `list[list[int]]`: N replies without padding.
        """
        prompts = self.prompts or [None] * len(self)
        rows = zip(prompts, self.completion_ids or [], self._finished(tokenizer), self.options(), strict=True)
        return [as_trained(tokenizer, *row) for row in rows]

    @staticmethod
    def _decoded(
        name: str,
        text: list[Prompt | None] | None,
        ids: list[list[int]] | None,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> list[Prompt]:
        missing = [row for row, entry in enumerate(text or ids or []) if text is None or entry is None]
        if not missing and text is not None:
            return list(text)
        if ids is None or tokenizer is None:
            raise ValueError(
                f"This reward reads text, but `{name}` is None and cannot be decoded: "
                f"{'there are no ids' if ids is None else 'the tokenizer of the policy is unknown'}. Give the text, "
                "or ids and `policy_tokenizer`."
            )
        decoded = tokenizer.batch_decode(
            [ids[row] for row in missing], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        found = dict(zip(missing, decoded, strict=True))
        return [found[row] if row in found else text[row] for row in range(len(ids))]


class RewardSource(ABC):
    """Anything that scores a [`RewardBatch`].

    Attributes:
        names (`list[str]`): K unique names, in the order of the columns.
        mixing_weights (`torch.Tensor` of shape `(K,)` or `None`): share of annotators behind each column, where known.
        num_annotators, num_pairs (`list[int]` of length K, or `None`): on how many people, and training pairs of
            theirs, each column stands, where known.
        counts_missing (`bool`): whether the rewards come from a mixture that does not say.
    """

    names: list[str]
    mixing_weights: torch.Tensor | None = None
    num_annotators: list[int] | None = None
    num_pairs: list[int] | None = None
    counts_missing: bool = False

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


def refuse_infinite(rewards: torch.Tensor, names: Sequence[str]) -> None:
    """Raise where a reward is infinite: one such reply makes every advantage of its rollout, and with them every
    weight of the policy, NaN.

    Args:
        rewards (`torch.Tensor` of shape `(N, K)`): of all ranks. NaN is "not scored" and stays.
        names (`Sequence[str]`): K names of functions or models.

    Raises:
        `ValueError`: which names gave infinite rewards, and to how many replies.
    """
    counts = torch.isinf(rewards).sum(0).tolist()
    found = [
        f"{name!r} for {count} of {len(rewards)} replies" for name, count in zip(names, counts, strict=True) if count
    ]
    if found:
        raise ValueError(
            f"Infinite rewards (in float32) came from {', '.join(found)}. Clip what the function or model returns, or "
            "return None (NaN) for a reply that it cannot score."
        )
