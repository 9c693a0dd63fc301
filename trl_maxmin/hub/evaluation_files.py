# SPDX-License-Identifier: Apache-2.0
"""What of a run's results is published: files that this package wrote, by their names and by what is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..reading import JSON_LIMIT, printable, read_json_object
from ..run_record import RUN_RECORD_NAME, RunRecord
from .contents import CARD, plain_file


RESULTS_LINES = "results.jsonl"
EVALUATION = "evaluation.json"
COMPLETIONS = ("completions.parquet", "completions.jsonl")
FIGURES = ("win_rate.png", "utility.png", "pareto.png", "training.png")
#: A data set of ours on the Hub; the lines of results are made from the record.
DATASET_NAMES = (CARD, RUN_RECORD_NAME, RESULTS_LINES, EVALUATION, *COMPLETIONS, *FIGURES)

_REQUIRED, _OPTIONAL = ("policy", "prompt", "completion"), ("finished",)
_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
_GROUP = {"annotators": int, "pairs": int, "pair_share": (int, float), "examples": list}
_EXAMPLE = ("prompt", "chosen", "rejected")
_REPORT = ("groups", "majority", "minority", "num_prompts", "win_rate", "gold_utility")


def evaluation_files(folder: str | os.PathLike[str]) -> dict[str, Path | bytes]:
    """Files of an evaluation's folder that are published; what has another name stays.

    Args:
        folder (`str` or `os.PathLike`): what `trl-maxmin evaluate` or `trl-maxmin demo` wrote.

    Returns:
        `dict`: name -> file, or its content without paths of this machine.

    Raises:
        ValueError: a file of such a name is not what this package writes, such as one with annotator ids, or a link.
    """
    folder, files = Path(folder), dict[str, Path | bytes]()
    for name in COMPLETIONS:
        if (path := plain_file(folder, name)) is not None:
            files[name] = checked_completions(path)
    if (path := plain_file(folder, EVALUATION)) is not None:
        files[EVALUATION] = public_evaluation(path)
    for name in FIGURES:
        if (path := plain_file(folder, name)) is not None:
            files[name] = checked_picture(path)
    return files


def is_stale_in_dataset(name: str) -> bool:
    """Whether a file of an earlier push that a later one no longer brings is removed by it."""
    return name in DATASET_NAMES and name not in (CARD, RUN_RECORD_NAME)


def _refuse(path: Path, problem: str) -> ValueError:
    problem = printable(problem).rstrip(".")
    return ValueError(
        f"{path} is not what this package writes under that name: {problem}. Annotator ids and what is known of "
        "single annotators are not published. Move the file elsewhere, or evaluate again."
    )


def checked_completions(path: Path) -> Path:
    """A file of replies: policy, prompt, completion, finished and one utility a group, in every row.

    Raises:
        ValueError: other columns, or values of another kind.
    """
    if path.suffix == ".parquet":
        _check_columns(path, columns_of(path))
    else:
        for row in _lines(path):
            _check_columns(path, row)
            _check_row(path, row)
    return path


def columns_of(content: Path | bytes) -> list[str]:
    """Columns of a file of rows: in its schema, or in its first line.

    Raises:
        ValueError: it is no such file.
    """
    if isinstance(content, bytes):
        return list(json.loads(content.split(b"\n", 1)[0]))
    if content.suffix != ".parquet":
        return list(next(_lines(content), {}))
    from pyarrow.parquet import read_schema

    try:
        return list(read_schema(content).names)
    except (OSError, ValueError) as error:
        raise _refuse(content, str(error)) from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _refuse(path, str(error)) from error
            if not isinstance(row, dict):
                raise _refuse(path, f"a line holds {type(row).__name__}, not an object")
            yield row


def _check_columns(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    if missing := [name for name in _REQUIRED if name not in names]:
        raise _refuse(path, f"it lacks {', '.join(missing)}")
    if other := [n for n in names if n not in (*_REQUIRED, *_OPTIONAL) and not n.startswith("utility_")]:
        raise _refuse(path, f"it has {', '.join(other)}")


def _check_row(path: Path, row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        if name in ("prompt", "completion") and isinstance(value, list):
            good = all(isinstance(message, dict) and set(message) <= set(_MESSAGE) for message in value)
        elif name.startswith("utility_"):
            good = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        else:
            good = isinstance(value, bool if name == "finished" else str)
        if not good:
            raise _refuse(path, f"{name} is {value!r:.80}")


def checked_picture(path: Path) -> Path:
    """A figure, if it is a PNG."""
    with open(path, "rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            raise _refuse(path, "it is no PNG")
    return path


def public_evaluation(path: Path) -> bytes:
    """`evaluation.json` by its schema, without paths of this machine."""
    record = _as_record(path, lambda found: {"results": found})
    return _text(record.part("dataset").evaluation["results"])


def public_report(path: Path) -> bytes:
    """Of the demo's `report.json` the results by group, which are what the page shows."""
    record = _as_record(path, lambda found: {name: found[name] for name in _REPORT if name in found})
    return _text(record.part("dataset").evaluation)


def public_groups(path: Path) -> bytes:
    """`groups.json`: of each group numbers and example pairs, and nothing else.

    Raises:
        ValueError: another field, or a value of another kind.
    """
    found = _object(path)
    for group, own in found.items():
        if not isinstance(own, dict):
            raise _refuse(path, f"{group} is {own!r:.80}")
        if other := sorted(set(own) - set(_GROUP)):
            raise _refuse(path, f"{group} has {', '.join(other)}")
        for name, value in own.items():
            if not isinstance(value, _GROUP[name]) or isinstance(value, bool):
                raise _refuse(path, f"{name} of {group} is {value!r:.80}")
        for example in own.get("examples", []):
            if not isinstance(example, dict) or sorted(example) != sorted(_EXAMPLE):
                raise _refuse(path, f"an example of {group} is {example!r:.80}")
            if not all(isinstance(text, str) for text in example.values()):
                raise _refuse(path, f"an example of {group} is {example!r:.80}")
    return _text(found)


def public_record_file(path: str | os.PathLike[str], kind: str = "run") -> bytes:
    """The run record of a folder or file, as it is published with a Space or (`kind`) with a repository."""
    return _text(RunRecord.load(path).part(kind).to_dict())


def _as_record(path: Path, fields: Any) -> RunRecord:
    found = _object(path)
    try:
        return RunRecord().update("evaluation", **fields(found))
    except (ValueError, RecursionError) as error:
        raise _refuse(path, str(error)) from error


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, JSON_LIMIT, "it")
    except ValueError as error:
        raise _refuse(path, str(error)) from error


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
