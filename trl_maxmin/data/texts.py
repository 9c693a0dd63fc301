# SPDX-License-Identifier: Apache-2.0
"""Numbers for texts that stand in several pairs, so that each is tokenised, encoded and scored once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .tokenization import plain_messages


if TYPE_CHECKING:
    from datasets import Dataset


def number_values(values: Iterable[Hashable], numbers: dict[Any, int] | None = None) -> list[int]:
    """Equal numbers for equal values, in order of first appearance.

    Args:
        values (`Iterable`): what is numbered.
        numbers (`dict`, *optional*): numbers given before; new ones are added to it.

    Returns:
        `list[int]`, one per value.

    Example:

    >>> number_values(["b", "a", "b"])
    [0, 1, 0]
    """
    numbers = {} if numbers is None else numbers
    return [numbers.setdefault(value, len(numbers)) for value in values]


def text_of(value: str | Sequence[Mapping[str, Any]], with_roles: bool = False) -> str:
    """A text, or the contents of messages, a line each.

    Args:
        value (`str` or messages): what is read.
        with_roles (`bool`): whether each line begins with who speaks.

    Example:

    >>> text_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], with_roles=True)
    'user: a\\nassistant: b'
    """
    if isinstance(value, str):
        return value
    return "\n".join(f"{turn.get('role', '')}: " * with_roles + str(turn.get("content", "")) for turn in value)


def prompts_of(preferences: Dataset) -> list[Any]:
    """The prompt of each pair; an empty text where the data have no prompts."""
    return list(preferences["prompt"][:]) if "prompt" in preferences.column_names else [""] * len(preferences)


def distinct_texts(prompts: Sequence[Any], *sides: Sequence[Any]) -> tuple[list[tuple[Any, Any]], np.ndarray]:
    """Replies that stand in several pairs, once. The same words in reply to another prompt are another text.

    Args:
        prompts (`Sequence` of length N): text or messages: the prompt of each pair.
        sides (N replies each): for example the chosen and the rejected ones.

    Returns:
        The M distinct (prompt, reply) in order of first appearance, and the row of each reply among them, `(N, S)`.

    Example:

    >>> distinct, rows = distinct_texts(["p", "p"], ["a", "b"], ["b", "c"])
    >>> distinct, rows.tolist()
    ([('p', 'a'), ('p', 'b'), ('p', 'c')], [[0, 1], [1, 2]])
    """
    distinct, rows = distinct_replies(prompts, list(zip(*sides, strict=True)))
    return distinct, rows.reshape(-1, len(sides))


def distinct_replies(
    prompts: Sequence[Any], replies: Sequence[Sequence[Any]]
) -> tuple[list[tuple[Any, Any]], np.ndarray]:
    """[`distinct_texts`] where rows have different numbers of replies.

    Args:
        prompts (`Sequence` of length N): text or messages.
        replies (`Sequence` of length N): the replies of each row, at most n.

    Returns:
        The M distinct (prompt, reply) in order of first appearance, and the row of each reply among them, `(N, n)`; -1
        where a row has fewer.

    Example:

    >>> distinct_replies(["p", "p"], [["a", "b"], ["c", "a", "b"]])[1].tolist()
    [[0, 1, -1], [2, 0, 1]]
    """
    texts = [(prompt, reply) for prompt, own in zip(prompts, replies, strict=True) for reply in own]
    numbers: dict[str, int] = {}
    # Messages are no keys of a dictionary; their text form is.
    found = iter(number_values((repr(plain_messages(text)) for text in texts), numbers))
    width = max(map(len, replies), default=0)
    rows = np.full((len(replies), width), -1, dtype=np.int64)
    distinct: list[Any] = [None] * len(numbers)
    position = iter(texts)
    for row, own in enumerate(replies):
        for side in range(len(own)):
            rows[row, side] = next(found)
            distinct[rows[row, side]] = next(position)
    return distinct, rows
