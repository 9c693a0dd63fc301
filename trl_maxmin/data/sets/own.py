# SPDX-License-Identifier: Apache-2.0
"""Rows that have this package's columns already: rankings, or pairs; to check them, cut them or hide who gave them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Row, cells_of


def read(rows: Iterable[Row]) -> Iterator[dict[str, Any] | None]:
    """The rows as they are.

    Args:
        rows: with `responses` and `ranking` or `choice`, or with `chosen` and `rejected`.

    Yields:
        `dict`: the row, without cells that hold nothing where another row has something.

    Raises:
        ValueError: a row that is an object of nothing.
    """
    for cells in cells_of(rows, "the file"):
        yield {name: value for name, value in cells.row.items() if value is not None}
