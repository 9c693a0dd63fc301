# SPDX-License-Identifier: Apache-2.0
"""Rows of a file as they stand: no types are guessed, and rows need not have the same columns."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def type_of_file(path: Path) -> str:
    """What a file's name says that it holds.

    Example:

    >>> type_of_file(Path("votes.jsonl.gz"))
    '.jsonl'
    """
    return next((suffix for suffix in reversed(path.suffixes) if suffix != ".gz"), "")


def rows_of_file(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file, one after the other, as they stand.

    Args:
        path (`Path`): JSON lines, a JSON list, CSV (every cell is text) or Parquet; `.gz` of all but the last.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another type, or a file that is not of its type.
    """
    if type_of_file(path) not in FILES:
        raise ValueError(f"Cannot read {path}: type {type_of_file(path) or 'unknown'}. Allowed: {', '.join(FILES)}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Give an existing file or a Hub id.")
    return FILES[type_of_file(path)](path)


def _opened(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"Line {number} of {path} is no JSON: {error}.") from error


def _json_list(path: Path) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        try:
            rows = json.load(file)
        except ValueError as error:
            raise ValueError(
                f"{path} is no JSON ({error}). A file with a row a line is to be named .jsonl."
            ) from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {type(rows).__name__}; a list of rows is needed.")
    yield from rows


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with _opened(path) as file:
        for number, row in enumerate(csv.DictReader(file)):
            if None in row:
                raise ValueError(f"Row {number} of {path} has more cells than the header has columns.")
            yield row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"Cannot read {path} as parquet: {error}") from error


#: What a name ends with -> how the file is read.
FILES: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
