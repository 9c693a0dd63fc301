# SPDX-License-Identifier: Apache-2.0
"""Reading data sets and printing tables for the subcommands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from rich.console import Console
from rich.table import Table
from trl import ScriptArguments

from .parser import UsageError


_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


# What stands for an empty cell, as in pandas.
_UNKNOWN = ("", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
# Columns that hold text, whatever it looks like.
_TEXT_COLUMNS = ("prompt", "chosen", "rejected", "completion", "policy", "annotator_id", "group")


def read_dataset(
    arguments: ScriptArguments, text_columns: Sequence[str | None] = ()
) -> tuple[Dataset, Dataset | None]:
    """Training and test rows of `--dataset_name`: a file, a folder written by `save_to_disk`, or a Hub id.

    Args:
        arguments ([`~trl.ScriptArguments`]): name, config and split names.
        text_columns (`Sequence[str]`): further columns of a CSV file, which has no types, that are text: the annotator
            `1e5` is not 100000, and the reply "None" is one.

    Returns:
        `tuple[Dataset, Dataset | None]`: the training split, and the test split where there is one.

    Raises:
        UsageError: no name.
        ValueError: a file that holds no rows or is of a type that is not read, or no such split.
        OSError: the file or the Hub cannot be reached.
    """
    name = arguments.dataset_name
    if not name:
        raise UsageError("--dataset_name is required: a .jsonl, .json, .csv or .parquet file, a folder, or a Hub id.")
    path = Path(name)
    # A compressed file keeps the type of what is in it.
    suffix = next((s for s in reversed(path.suffixes) if s not in (".gz", ".xz", ".bz2", ".zst")), "")
    if path.is_file():
        if suffix not in _READERS:
            raise ValueError(f"Cannot read {name}: type {suffix or 'unknown'}. Allowed: {', '.join(_READERS)}.")
        data = _read_file(path, _READERS[suffix], text_columns)
    elif path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        data = load_from_disk(str(path))
    elif suffix in _READERS:
        raise FileNotFoundError(f"There is no file {name}. Give an existing file or a Hub id.")
    else:
        data = load_dataset(name, arguments.dataset_config)
    if path.exists() and arguments.dataset_config is not None:
        raise ValueError(
            f"--dataset_config {arguments.dataset_config} is for a data set on the Hub, {name} is a file or folder. "
            "Leave it out."
        )
    if isinstance(data, Dataset):
        data = DatasetDict({"train": data})
    for option in ("dataset_train_split", "dataset_test_split"):
        split = getattr(arguments, option)
        # No test split is no error, unless one was asked for.
        wanted = option == "dataset_train_split" or split != ScriptArguments.dataset_test_split
        if wanted and split not in data:
            raise ValueError(f"{name} has no split {split!r}; it has {', '.join(data)}. Set --{option}.")
    return data[arguments.dataset_train_split], data.get(arguments.dataset_test_split)


def _read_file(path: Path, kind: str, text_columns: Sequence[str | None]) -> DatasetDict:
    # What is wrong with a file comes out of its reader as anything from StopIteration to an error of pyarrow.
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty. Give a file with rows.")
    try:
        options = _keeping_text(path, {*_TEXT_COLUMNS, *text_columns}) if kind == "csv" else {}
        return load_dataset(kind, data_files=str(path), **options)
    except (DatasetGenerationError, StopIteration, ValueError) as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"{path} holds no rows, only a header. Give a file with rows.") from error
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"Cannot read {path} as {kind}: {reason}") from error


def _keeping_text(path: Path, text_columns: set[str | None]) -> dict[str, Any]:
    """Options for pandas: some columns are read as they stand, the others with its guesses."""
    columns = pandas.read_csv(path, nrows=0).columns
    as_text = [name for name in columns if name in text_columns]
    unknown = {name: [*_UNKNOWN] for name in columns if name not in text_columns}
    return {"converters": dict.fromkeys(as_text, str), "keep_default_na": False, "na_values": unknown}


def print_table(title: str, columns: list[str], rows: list[list[str]], console: Console | None = None) -> None:
    """Print a table; the first column is left-aligned, the others right-aligned.

    Where the output goes into a file or a pipe there is no width to keep to, and a wrapped cell is hard to search for.
    """
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    if console is None:
        console = Console()
        console = console if console.is_terminal else Console(width=max(console.width, 160))
    console.print(table)
