# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin pull`: what a push published, back on disk."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..hub.faults import HubError, HubInterrupted
from ..hub.pull import pull
from ..reading import printable
from .parser import CommandParser, UsageError


@dataclass
class PullArguments:
    r"""
    Options of `trl-maxmin pull`.

    Args:
        repo_id (`str`): a repository, the base id of a push, or a collection.
        output_dir (`str`): folder for the files.
        revision (`str`): of a single repository.
    """

    repo_id: str | None = field(
        default=None, metadata={"help": "A repository, the base id of a push, or a collection (or as first word)."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the files."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a single repository."})


def run(argv: Sequence[str]) -> None:
    """Pull a repository or a whole push.

    Args:
        argv (`Sequence[str]`): the id, `--output_dir`, and the other options of [`PullArguments`].

    Raises:
        ValueError: no id or folder.
        HubError: the Hub refused or was not reached; the command that continues.
        HubInterrupted: on Ctrl-C, with the same.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--repo_id", *words]
    (arguments,) = CommandParser(
        PullArguments, prog="trl-maxmin pull", description="Get back what a push published."
    ).parse_args_and_config(words)
    if not arguments.repo_id or not arguments.output_dir:
        raise UsageError("Usage: trl-maxmin pull namespace/name --output_dir FOLDER. See --help.")
    command = "trl-maxmin pull " + shlex.join(argv)
    try:
        pulled = pull(arguments.repo_id, arguments.output_dir, revision=arguments.revision)
    except HubError as error:
        raise error.placed(error.done, error.open, command) from error.__cause__
    except HubInterrupted as stop:
        raise HubInterrupted(stop.done, stop.open, command, stop.where) from None
    except KeyboardInterrupt:
        raise HubInterrupted([], [arguments.repo_id], command, f"in {arguments.output_dir}") from None
    for entry in pulled:
        print(f"{entry.repo_id} -> {entry.folder}" if entry.commit else f"{entry.repo_id}: no longer on the Hub")
        for words, names in (
            ("not downloaded", entry.left_out),
            ("your own, kept as", entry.kept),
            ("removed, as on the Hub", entry.removed),
        ):
            if names:
                print(f"  {words}: {', '.join(map(printable, names))}")
