# SPDX-License-Identifier: Apache-2.0
"""From the rows of the data to the token ids of their prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import is_tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import has_length

from ...data.tokenization import ChatOptions, chat_options, cut_ids, encode_prompt
from ...models.base import as_list
from ..scoring.sources import RewardBatch


Row = dict[str, Any]
# Columns that are the prompt itself; the others go to the reward functions.
PROMPT_COLUMNS = ("prompt", "input_ids", "attention_mask", "prompt_ids", "finished")


@dataclass
class PromptReader:
    """Token ids of the prompt in a row of the data.

    Args:
        tokenizer: the policy's.
        max_prompt_length (`int`, *optional*): longer prompts are cut, see [`encode_prompt`].
        response_length (`int`): tokens that have to fit behind the prompt.
        context_length (`int`, *optional*): positions that the policy has; `None` if it has no limit.
        chat_template_kwargs (`dict`, *optional*): what the chat template is given; a row's own win.
    """

    tokenizer: PreTrainedTokenizerBase
    max_prompt_length: int | None = None
    response_length: int = 0
    context_length: int | None = None
    chat_template_kwargs: ChatOptions | None = None

    def __call__(self, row: Mapping[str, Any], name: str = "A row") -> list[int]:
        """Read one row.

        Args:
            row (`dict`): with `input_ids` (and `attention_mask` where they are padded), or `prompt` (text or
                messages).
            name (`str`): how an error calls the row.

        Returns:
            `list[int]`: ids without padding.

        Raises:
            `ValueError`: the row has no prompt, an empty one, or one that leaves no room for the reply.
        """
        if row.get("input_ids") is not None:
            ids = as_list(row["input_ids"])
            if row.get("attention_mask") is not None:
                ids = [token for token, real in zip(ids, as_list(row["attention_mask"]), strict=True) if real]
        elif row.get("prompt") is not None:
            options = chat_options(row, self.chat_template_kwargs)
            try:
                ids = encode_prompt(self.tokenizer, row["prompt"], options, self.max_prompt_length)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        else:
            raise ValueError(
                f"{name} has the columns {sorted(row)}, but needs `prompt` (text or messages) or `input_ids` (tokens)."
            )
        # What came as ids is cut here.
        ids = cut_ids(self.tokenizer, ids, self.max_prompt_length)
        if not ids:
            raise ValueError(f"{name} has an empty prompt. Start it with at least one token, such as BOS.")
        room = None if self.context_length is None else self.context_length - self.response_length
        if room is not None and len(ids) > room:
            raise ValueError(
                f"{name} has a prompt of {len(ids)} tokens, which with response_length={self.response_length} exceeds "
                f"the policy's context of {self.context_length} tokens. Shorten the prompt, lower `response_length`, "
                f"or set `max_prompt_length` to at most {max(room, 0)} to cut prompts."
            )
        return ids

    def check(self, train_dataset: Any, eval_dataset: Any = None) -> None:
        """Read every row, so that a bad one raises before anything trains. Streams are read as they come.

        Args:
            train_dataset: rows.
            eval_dataset (*optional*): rows, or a dict of several sets.

        Raises:
            `ValueError`: as reading a row, with its number and its set.
        """
        named = {"training set": train_dataset}
        if isinstance(eval_dataset, dict):
            named |= {f"evaluation set {name!r}": dataset for name, dataset in eval_dataset.items()}
        else:
            named["evaluation set"] = eval_dataset
        for name, dataset in named.items():
            if dataset is not None and has_length(dataset) and not isinstance(dataset, IterableDataset):
                for number, row in enumerate(dataset):
                    self(row, f"Row {number} of the {name}")


def rows_from_batch(batch: list[Row] | Mapping[str, Any]) -> list[Row]:
    """Rows of a batch: the list that our collator leaves alone, or the columns that a user's collator made.

    Args:
        batch (`list[dict]` or `dict`): rows, or columns (tensors or lists) of equal length.

    Returns:
        `list[dict]`: rows.
    """
    if not isinstance(batch, Mapping):
        return list(batch)
    columns = {name: value.tolist() if is_tensor(value) else value for name, value in batch.items()}
    size = len(next(iter(columns.values())))
    return [{name: column[i] for name, column in columns.items()} for i in range(size)]


def has_messages(dataset: Any) -> bool:
    """Whether the prompts of a data set, or of a dict of several, are messages: as its first row."""
    first = next(iter(dataset), None)
    return isinstance(first, Mapping) and isinstance(first.get("prompt"), list)


def reward_batch(
    inputs: list[Row],
    completions: list,
    completion_ids_list: list[list[int]],
    chat_template_kwargs: ChatOptions | None = None,
) -> RewardBatch:
    """What a reward reads, from the arguments of `_calculate_rewards`; the data's other columns are passed on."""
    names = dict.fromkeys(name for row in inputs for name in row if name not in PROMPT_COLUMNS)
    return RewardBatch(
        # Not as decoded for people: of a prompt that came as ids nobody knows whether it was a conversation.
        prompts=[row.get("prompt") for row in inputs],
        completions=completions,
        prompt_ids=[row["prompt_ids"] for row in inputs],
        completion_ids=completion_ids_list,
        finished=[row["finished"] for row in inputs],
        columns={name: [row.get(name) for row in inputs] for name in names},
        chat_template_kwargs=chat_template_kwargs,
    )
