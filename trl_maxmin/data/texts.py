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
    return list(preferences["prompt"]) if "prompt" in preferences.column_names else [""] * len(preferences)


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
    texts = [(prompt, reply) for prompt, *replies in zip(prompts, *sides, strict=True) for reply in replies]
    numbers: dict[str, int] = {}
    # Messages are no keys of a dictionary; their text form is.
    rows = number_values((repr(plain_messages(text)) for text in texts), numbers)
    distinct: list[Any] = [None] * len(numbers)
    for row, text in zip(rows, texts, strict=True):
        distinct[row] = text
    return distinct, np.array(rows, dtype=np.int64).reshape(-1, len(sides))
