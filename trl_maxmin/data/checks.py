# SPDX-License-Identifier: Apache-2.0
"""What may stand in a cell: prompts, replies, annotators, margins. Messages name the row and the column."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any


# What pandas, a CSV file or `str` leave where nobody was named, in lower case. A person of such a name needs a prefix:
# one renamed person costs less than many unnamed ones who are taken for one.
NOBODY = ("", "nan", "none", "null", "<na>", "nat")


def is_whole_number(value: Any) -> bool:
    """Whether a value is a whole number; True and False are none, 2.0 is one.

    Example:

    >>> [is_whole_number(value) for value in (2, 2.0, 2.5, True, "2", float("nan"))]
    [True, True, False, False, False, False]
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and value % 1 == 0


def names_somebody(annotator: Any) -> bool:
    """Whether an annotator id names a person: text that is not blank or a word for nobody, or a whole number.

    Example:

    >>> [names_somebody(value) for value in ("ann", 7, " ", "NaN", None, True, 0.5)]
    [True, True, False, False, False, False, False]
    """
    if isinstance(annotator, str):
        return annotator.strip().lower() not in NOBODY
    # True and False are answers of somebody, and a fraction is a measurement.
    return is_whole_number(annotator)


def check_annotator(annotator: Any, column: str, row: int) -> None:
    """Refuse an id that names nobody.

    Raises:
        ValueError: see [`names_somebody`].
    """
    if not names_somebody(annotator):
        raise ValueError(
            f"Row {row} has no annotator ({column} is {annotator!r}). An id is text or a whole number; empty ones and "
            f"{', '.join(map(repr, NOBODY[1:]))} stand for nobody, in capitals too. Name one (with a prefix, where "
            "that is a person's name), or remove the row: an unnamed annotator would pool the preferences of "
            "different people."
        )


def check_prompt(prompt: Any, row: int) -> None:
    """Refuse a prompt that is neither text nor messages of which the user or a tool spoke last.

    Raises:
        ValueError: see above.
    """
    if fault := fault_of_text(prompt, ("user", "tool")):
        raise ValueError(f"Row {row} has prompt {prompt!r}: {fault}. Without a prompt, give '' or no such column.")


def check_reply(reply: Any, name: str, prompt: Any, row: int) -> None:
    """Refuse a reply that is neither text nor messages of which the assistant spoke last, or that does not go with the
    form of its prompt.

    Raises:
        ValueError: see above.
    """
    if fault := fault_of_text(reply, ("assistant",)):
        detail = f": {fault}" if isinstance(reply, list) else ""
        raise ValueError(f"Row {row} has {name} {reply!r}; a reply must be text or a list of messages{detail}.")
    if isinstance(reply, list) and isinstance(prompt, str) and prompt:
        raise ValueError(
            f"Row {row} has a prompt that is text, {prompt!r}, and {name} in messages, to which it cannot be joined. "
            'Give the prompt as [{"role": "user", "content": ...}].'
        )


def fault_of_text(text: Any, last_roles: tuple[str, ...]) -> str | None:
    """What is wrong with a text or a list of messages; None where it can be read.

    Args:
        text: what is read.
        last_roles (`tuple[str, ...]`): who may speak last.

    Example:

    >>> fault_of_text([{"role": "user", "content": "Hi"}], ("assistant",))
    "the last message is of 'user', but must be of 'assistant'"
    """
    if isinstance(text, str):
        return None
    if not isinstance(text, list):
        return "it must be text or a list of messages"
    if not text:
        return "the list has no message"
    for message in text:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"].strip():
            return f'{message!r} has no role; a message is {{"role": ..., "content": ...}}'
        content = message.get("content")
        # Parts of a multimodal message are a list; a call of a tool needs no words.
        if not isinstance(content, str | list | None):
            return f"the message of {message['role']!r} has content {content!r}, which is neither text nor a list"
        empty = not (content.strip() if isinstance(content, str) else content)
        if empty and not message.get("tool_calls"):
            return f"the message of {message['role']!r} has no content ({content!r})"
    if text[-1]["role"] not in last_roles:
        return f"the last message is of {text[-1]['role']!r}, but must be of {' or '.join(map(repr, last_roles))}"
    return None


def check_margin(cells: Mapping[str, Any], row: int, only_pairs: bool = False) -> None:
    """Refuse a margin that is no finite number, or that stands beside more than two replies.

    Args:
        cells (`Mapping`): the row.
        row (`int`): its number.
        only_pairs (`bool`): whether the row has more than two replies.

    Raises:
        ValueError: see above.
    """
    if "margin" not in cells:
        return
    margin = cells["margin"]
    if not isinstance(margin, numbers.Real) or not math.isfinite(margin):
        raise ValueError(
            f"Row {row} has margin {margin!r}; a margin must be a finite number of Bradley-Terry log-odds. Use 0.0 "
            "where none is known, or drop the column."
        )
    if only_pairs and margin:
        raise ValueError(
            f"Row {row} has margin {margin!r} and more than two replies; a margin is how far the better of two should "
            "lead. Use 0.0, or drop the column."
        )


def check_probability(probability: Any, row: int) -> None:
    """Refuse a share of votes for the chosen reply that is none.

    Raises:
        ValueError: no number, or one outside [0.5, 1].
    """
    number = isinstance(probability, numbers.Real) and not isinstance(probability, bool)
    if not number or not 0.5 <= probability <= 1:
        raise ValueError(
            f"Row {row} has chosen_probability {probability!r}; it is the share of votes for `chosen`, from 0.5 to 1. "
            "Below 0.5 the other reply is the chosen one: swap the two."
        )
