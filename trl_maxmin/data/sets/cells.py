# SPDX-License-Identifier: Apache-2.0
"""One row of a published set, whose cells are read with errors that name the row and the column."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..checks import fault_of_text, names_somebody
from ..tokenization import plain_messages


Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


class Cells:
    """A row, or a part of it, of a published set.

    Args:
        row (`Mapping`): column -> cell.
        number (`int`): of the row, counted from 0.
        source (`str`): how messages call the set.
        path (`str`): where in the row this part is, such as `annotations[1].`.

    Raises:
        ValueError: something that is no mapping.

    Example:

    >>> Cells({"winner": "model_c"}, 3, "Arena").one_of("winner", ("model_a", "model_b"))
    Traceback (most recent call last):
    ...
    ValueError: Row 3 of Arena has winner 'model_c'; allowed: 'model_a', 'model_b'.
    """

    def __init__(self, row: Any, number: int, source: str, path: str = "") -> None:
        self.row, self.number, self.source, self.path = row, number, source, path
        if not isinstance(row, Mapping):
            place = path.rstrip(".") or "cells"
            raise ValueError(
                f"Row {number} of {source} has {place} {_short(row)}; it must be an object with named fields."
            )

    def fault(self, name: str, wanted: str) -> ValueError:
        """The error for a cell, to be raised."""
        return ValueError(
            f"Row {self.number} of {self.source} has {self.path}{name} {_short(self.row.get(name))}; {wanted}."
        )

    def get(self, name: str) -> Any:
        """A cell that has to be there, maybe empty.

        Raises:
            ValueError: no such column.
        """
        if name not in self.row:
            there = ", ".join(map(str, self.row)) or "none"
            raise ValueError(
                f"Row {self.number} of {self.source} has no {self.path}{name}; there are: {_short(there, 200)}. Give "
                "the set as it is published, or rename its columns."
            )
        return self.row[name]

    def is_empty(self, name: str) -> bool:
        """Whether a cell is missing, None, NaN or blank."""
        value = self.row.get(name)
        blank = isinstance(value, str) and not value.strip()
        return value is None or blank or (isinstance(value, float) and math.isnan(value))

    def text(self, name: str) -> str:
        """A text that is not blank.

        Raises:
            ValueError: another type, or blank.
        """
        value = self.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(name, "it must be a text that is not blank")
        return value

    def person(self, name: str) -> str:
        """An annotator's id, as text.

        Raises:
            ValueError: it names nobody.
        """
        value = self.get(name)
        if not names_somebody(value):
            raise self.fault(name, "it must name an annotator: a text or a whole number")
        return value.strip() if isinstance(value, str) else str(int(value))

    def number_of(self, name: str) -> float:
        """A finite number below 1e100, maybe as text: squares of larger ones are infinite.

        Raises:
            ValueError: no number.
        """
        value = self.get(name)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) < 1e100:
            raise self.fault(name, "it must be a finite number below 1e100")
        return number

    def whole(self, name: str, lowest: int, highest: int) -> int:
        """A whole number in a range, maybe as text.

        Raises:
            ValueError: no such number.
        """
        number = self.number_of(name)
        if number % 1 or not lowest <= number <= highest:
            raise self.fault(name, f"it must be a whole number from {lowest} to {highest}")
        return int(number)

    def truth(self, name: str) -> bool:
        """True or False, maybe as text.

        Raises:
            ValueError: something else.
        """
        value = str(self.get(name)).strip().lower()
        if value not in _TRUE + _FALSE:
            raise self.fault(name, "it must be true or false")
        return value in _TRUE

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        """One of some texts.

        Raises:
            ValueError: another value.
        """
        value = self.get(name)
        if not isinstance(value, str) or value not in allowed:
            raise self.fault(name, f"allowed: {', '.join(map(repr, allowed))}")
        return value

    def part(self, name: str) -> Cells:
        """A cell with fields of its own.

        Raises:
            ValueError: it has none.
        """
        return Cells(self.get(name), self.number, self.source, f"{self.path}{name}.")

    def parts(self, name: str, fewest: int = 0) -> list[Cells]:
        """A list of such cells.

        Raises:
            ValueError: no list, or one that is too short.
        """
        value = self.get(name)
        if not isinstance(value, list | tuple) or len(value) < fewest:
            raise self.fault(name, f"it must be a list{f' of at least {fewest}' if fewest else ''}")
        return [Cells(item, self.number, self.source, f"{self.path}{name}[{i}].") for i, item in enumerate(value)]

    def messages(self, name: str, *last_roles: str) -> Messages:
        """A conversation, maybe as JSON text, in which one of these roles speaks last.

        Raises:
            ValueError: no such conversation.
        """
        value = self.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise self.fault(name, "it must be a list of messages, or JSON text of one") from None
        value = list(value) if isinstance(value, tuple) else value
        fault = "it must be a list of messages" if isinstance(value, str) else fault_of_text(value, last_roles)
        if fault:
            raise self.fault(name, fault)
        return [{"role": turn["role"], "content": turn["content"]} for turn in plain_messages(value)]


def cells_of(rows: Iterable[Row], source: str) -> Iterator[Cells]:
    """The rows of a set, numbered."""
    for number, row in enumerate(rows):
        yield Cells(row, number, source)


def user(content: str) -> dict[str, str]:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def pair_of_conversations(one: Messages, other: Messages, cells: Cells, names: str) -> tuple[Messages, ...]:
    """What two conversations share as their prompt, and how each goes on.

    Raises:
        ValueError: they begin with different messages, or one has nothing beyond the other.
    """
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    while shared and one[shared - 1]["role"] not in ("user", "tool"):
        shared -= 1
    if not shared:
        raise ValueError(
            f"Row {cells.number} of {cells.source} has {names} that begin with different messages; two replies to one "
            "prompt are needed."
        )
    return one[:shared], one[shared:], other[shared:]


def _short(value: Any, limit: int = 80) -> str:
    text = value if isinstance(value, str) and limit > 80 else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
