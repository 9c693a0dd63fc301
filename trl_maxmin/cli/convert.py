# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin convert`: a public set, or an export of an annotation tool, as rows that the other commands read."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import itertools
import json
import os
import secrets
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import load_dataset

from ..data.checks import check_annotator, check_margin, check_probability, check_prompt, check_reply
from ..data.columns import ANNOTATOR_COLUMN
from ..data.rankings import CUTS, pairs_of_row, ranking_of_row
from ..data.sets import SETS, PublicSet
from ..data.tokenization import plain_messages
from .output_folder import require_writable
from .parser import CommandParser, UsageError
from .row_files import FILES, rows_of_file, type_of_file


_HELP = "\n".join(
    [
        "  trl-maxmin convert community_alignment --output prefs.jsonl --group_by annotator_country",
        "  trl-maxmin convert argilla --input x.json --question best --response_fields a,b --output p.jsonl",
        "",
        "sets:",
        *(f"  {name:<24} {entry.about}" for name, entry in SETS.items()),
    ]
)


@dataclass
class ConvertArguments:
    """Options of `trl-maxmin convert`.

    Args:
        set (`str`): which set, a name of `SETS`.
        output (`str`): the JSON-lines file to write.
        input (`str`): a file, or a Hub id other than the set's own.
        config_name, split, revision (`str`): of a set on the Hub.
        as_pairs (`str`): cut rankings into pairs: `"all"` or `"best"`.
        hash_annotators (`bool`): write keyed hashes in place of ids.
        salt_file (`str`): where the key is kept.
        max_rows (`int`): rows of the set to read.
        overwrite (`bool`): replace the output.
        question, group_by, prompt_field, response_fields, num_users, choices_per_user, seed, max_pairs: of some sets.
    """

    set: str | None = field(default=None, metadata={"help": f"Which set (or as first word): {', '.join(SETS)}."})
    output: str | None = field(default=None, metadata={"help": "File to write, .jsonl. Stays on this machine."})
    input: str | None = field(
        default=None,
        metadata={"help": "A .jsonl, .json, .csv or .parquet file, or another Hub id than the set's own."},
    )
    config_name: str | None = field(default=None, metadata={"help": "Configuration on the Hub, if not the usual one."})
    split: str | None = field(default=None, metadata={"help": "Split on the Hub, if not the usual one."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    as_pairs: str | None = field(
        default=None,
        metadata={"help": "Cut rankings into pairs: all that a ranking orders, or the best against each other."},
    )
    hash_annotators: bool = field(
        default=False, metadata={"help": "Write a keyed hash in place of each annotator's id."}
    )
    salt_file: str | None = field(
        default=None, metadata={"help": "Key of the hashes; made if it is not there. Default: the output with .salt."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "Read at most so many rows of the set."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output file where there is one."})
    question: str | None = field(default=None, metadata={"help": "Which judgement, where a set has several."})
    group_by: str | None = field(default=None, metadata={"help": "Column that becomes `group`."})
    prompt_field: str | None = field(default=None, metadata={"help": "Field of an export that holds the prompt."})
    response_fields: str | None = field(
        default=None, metadata={"help": "Fields of an export that hold the replies, joined by commas."}
    )
    num_users: int | None = field(default=None, metadata={"help": "Users to plant."})
    choices_per_user: int | None = field(default=None, metadata={"help": "Prompts that a planted user ranks."})
    seed: int | None = field(default=None, metadata={"help": "Of what is drawn."})
    max_pairs: int | None = field(default=None, metadata={"help": "Pairs of one person made of ratings, at most."})


def run(argv: Sequence[str]) -> None:
    """Convert a set and say what was written.

    Args:
        argv (`Sequence[str]`): the set, and the options of [`ConvertArguments`].

    Raises:
        UsageError: no or an unknown set, no output, an output that is there, options that the set does not take.
        ValueError: a row that is not of the set; the message names row and column.
        OSError: the input cannot be read or the output not written.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--set", *words]
    (arguments,) = CommandParser(
        ConvertArguments,
        prog="trl-maxmin convert",
        description="Bring a public set, or an export of an annotation tool, to the columns of preferences.",
        epilog=_HELP,
    ).parse_args_and_config(words)
    chosen, options = _checked(arguments)
    output = Path(arguments.output)
    require_writable(output.parent, "--output: the folder")
    salt = _salt(arguments, output) if arguments.hash_annotators else None
    counts = _Counts()
    rows = itertools.islice(_rows(arguments, chosen), arguments.max_rows)
    written = _written(chosen.read(counts.read(rows), **options), arguments.as_pairs, salt, counts)
    part = output.with_name(output.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for row in written:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not counts.kept:
            raise ValueError(
                f"No preference was found in {counts.rows} rows of {arguments.set} ({counts.left_out} judgements that "
                "are ties or express none)."
            )
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)
    print(counts.told(output))
    if salt is not None:
        print(f"the key of the annotators' hashes is in {_salt_path(arguments, output)}: keep it on this machine")


def _checked(arguments: ConvertArguments) -> tuple[PublicSet, dict[str, Any]]:
    """The set, and what its reader is told."""
    names = ", ".join(SETS)
    if arguments.set is None:
        raise UsageError(f"Name a set: trl-maxmin convert SET --output prefs.jsonl. Sets: {names}.")
    if arguments.set not in SETS:
        raise UsageError(f"There is no set {arguments.set!r}. Sets: {names}.")
    if not arguments.output or Path(arguments.output).suffix != ".jsonl":
        raise UsageError(f"--output {arguments.output or ''} must name a .jsonl file to write.")
    if Path(arguments.output).exists() and not arguments.overwrite:
        raise UsageError(f"--output {arguments.output} is there. Name another file, or add --overwrite true.")
    if arguments.as_pairs not in (None, *CUTS):
        raise UsageError(f"--as_pairs {arguments.as_pairs} is unknown; allowed: {', '.join(CUTS)}.")
    if arguments.max_rows is not None and arguments.max_rows < 1:
        raise UsageError(f"--max_rows {arguments.max_rows} must be at least 1.")
    chosen = SETS[arguments.set]
    if arguments.input is None and chosen.hub_id is None:
        raise UsageError(f"--input FILE is required: {arguments.set} is not on the Hub.")
    options: dict[str, Any] = {}
    for name, default in chosen.options.items():
        value = getattr(arguments, name)
        if name == "response_fields" and value is not None:
            value = [part.strip() for part in value.split(",")]
        if value is not None:
            options[name] = value
        elif default is inspect.Parameter.empty:
            raise UsageError(f"--{name} is required for {arguments.set}.")
    return chosen, options


def _rows(arguments: ConvertArguments, chosen: PublicSet) -> Iterator[dict[str, Any]]:
    name = arguments.input or chosen.hub_id
    path = Path(str(name))
    if path.is_file() or type_of_file(path) in FILES:
        for option in ("config_name", "split", "revision"):
            if getattr(arguments, option) is not None:
                raise UsageError(f"--{option} is for a set on the Hub, {name} is a file. Leave it out.")
        return rows_of_file(path)
    split = arguments.split or chosen.split
    place = {"split": split, "revision": arguments.revision or chosen.revision}
    try:
        return iter(load_dataset(name, arguments.config_name or chosen.config, **place))
    except ValueError as error:
        # Sets change on the Hub: splits more often than columns.
        if "split" not in str(error):
            raise
        raise ValueError(f"{name} has no split {split!r}: {error} Name one by --split.") from error


class _Counts:
    """What came in and what went out."""

    def __init__(self) -> None:
        self.rows = self.left_out = self.kept = 0
        self.people: Counter[str] = Counter()
        self.unit = "pairs"

    def read(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            self.rows += 1
            yield row

    def told(self, output: Path) -> str:
        lines = [f"wrote {output}: {self.kept} {self.unit} from {self.rows} rows"]
        if self.people:
            each = statistics.median(self.people.values())
            lines[0] += f", of {len(self.people)} annotators (half of them gave {each:g} or more)"
        if self.left_out:
            lines.append(f"left out {self.left_out} judgements that are ties or express no preference")
        return "\n".join(lines)


def _written(
    found: Iterable[dict[str, Any] | None], cut: str | None, salt: bytes | None, counts: _Counts
) -> Iterator[dict[str, Any]]:
    """Checked rows as they go into the file."""
    kind = None
    # Counted by what is found: a row of a set may hold many judgements.
    for number, row in enumerate(found):
        if row is None:
            counts.left_out += 1
            continue
        row = plain_messages(row)
        ranked = "responses" in row
        if ranked:
            ranks = ranking_of_row(row, number)
            if len(set(ranks)) < 2:
                counts.left_out += 1
                continue
            row = {name: value for name, value in row.items() if name != "choice"} | {"ranking": ranks}
        else:
            _check_pair(row, number)
        if ANNOTATOR_COLUMN in row:
            check_annotator(row[ANNOTATOR_COLUMN], ANNOTATOR_COLUMN, number)
            counts.people[str(row[ANNOTATOR_COLUMN])] += 1
            if salt is not None:
                row[ANNOTATOR_COLUMN] = _hashed(str(row[ANNOTATOR_COLUMN]), salt)
        if kind not in (None, ranked):
            raise ValueError(f"Row {number} is a {'ranking' if ranked else 'pair'}, unlike the rows before it.")
        kind = ranked
        _check_writable(row, number)
        counts.unit = "rankings" if ranked and cut is None else "pairs"
        for each in pairs_of_row(row, number, cut) if ranked and cut else [row]:
            counts.kept += 1
            yield each


def _check_pair(row: Mapping[str, Any], number: int) -> None:
    if missing := [name for name in ("chosen", "rejected") if name not in row]:
        raise ValueError(
            f"Row {number} has no {' and no '.join(missing)}; there are: {', '.join(map(str, row)) or 'none'}."
        )
    prompt = row.get("prompt", "")
    check_prompt(prompt, number)
    for name in ("chosen", "rejected"):
        check_reply(row[name], name, prompt, number)
    check_margin(row, number)
    if "chosen_probability" in row:
        check_probability(row["chosen_probability"], number)


def _check_writable(row: Mapping[str, Any], number: int) -> None:
    for name, cell in row.items():
        try:
            json.dumps({name: cell}, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Row {number} has {name} that cannot be written as JSON in UTF-8 ({error}). Correct it, or remove "
                "the row."
            ) from error


def _hashed(annotator: str, salt: bytes) -> str:
    return hmac.new(salt, annotator.encode(), hashlib.sha256).hexdigest()[:16]


def _salt_path(arguments: ConvertArguments, output: Path) -> Path:
    return Path(arguments.salt_file) if arguments.salt_file else output.with_suffix(".salt")


def _salt(arguments: ConvertArguments, output: Path) -> bytes:
    """The key of the hashes. The same key gives the same person the same hash in another set or at another time."""
    path = _salt_path(arguments, output)
    if not path.exists():
        require_writable(path.parent, "--salt_file: the folder")
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    try:
        salt = bytes.fromhex(path.read_text().strip())
    except ValueError:
        salt = b""
    if len(salt) < 16:
        raise ValueError(f"--salt_file {path} holds no key of at least 16 bytes in hexadecimal. Name another file.")
    return salt
