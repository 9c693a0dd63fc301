# SPDX-License-Identifier: Apache-2.0
"""Visitors' votes as a preference set that `trl-maxmin reward` trains on.

One line a pair, appended to a file: a vote among M answers gives the chosen one against each of the others. A vote is
acknowledged when its lines are on the disk.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .limits import Refused


if TYPE_CHECKING:  # scoring imports the models; a writer of votes needs none of them
    from .scoring import Answer
    from .uplink import Uplink

try:
    import fcntl
except ImportError:  # Windows: one process at a time there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


def new_annotator_id() -> str:
    """A random name for a session; it says nothing about who it is."""
    return f"visitor-{uuid.uuid4().hex}"


def vote_rows(
    prompt: str,
    answers: Sequence[Answer],
    choice: int,
    annotator_id: str,
    group: str | None = None,
    blind: bool = False,
    conversational: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """A vote in the column format of `trl_maxmin.data.columns`.

    Args:
        prompt (`str`): what was answered.
        answers (`Sequence[Answer]`): all that were shown.
        choice (`int`): which was preferred.
        annotator_id (`str`): of the session.
        group (`str`, *optional*): the group the visitor feels closest to; without one the column is an empty text and
            not null, as files of nulls only and files of texts cannot be loaded together.
        blind (`bool`): whether the policies were hidden.
        conversational (`bool`): write messages instead of text.
        chat_template_kwargs (`dict`, *optional*): what the policies' chat templates were given; a column of its own,
            so that reward training reads the prompts that were answered.

    Returns:
        `list[dict]`: the chosen answer against each other one. Equal texts are no preference and give no row. Answers
        that were cut at the length limit give none either: to those who train on it a reply is one that ended there.

    Example:

    >>> from trl_maxmin.space.scoring import Answer
    >>> answers = [Answer("reference", "dull", finished=True), Answer("maxmin", "superb", finished=True)]
    >>> (row,) = vote_rows("review :", answers, 1, "visitor-1")
    >>> row["chosen"], row["rejected"], row["chosen_policy"]
    ('superb', 'dull', 'maxmin')
    """

    def turn(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if conversational else text

    chosen = answers[choice]
    options = {"chat_template_kwargs": chat_template_kwargs} if chat_template_kwargs else {}
    return [
        {
            "prompt": turn("user", prompt),
            "chosen": turn("assistant", chosen.text),
            "rejected": turn("assistant", other.text),
            "annotator_id": annotator_id,
            "group": group or "",
            "chosen_policy": chosen.policy,
            "rejected_policy": other.policy,
            "blind": blind,
            **options,
        }
        for other in answers
        if other.text != chosen.text and other.finished and chosen.finished
    ]


class VoteStore:
    """Append-only file of votes, safe for threads, processes and a kill at any moment.

    A vote is one write of whole lines at the end of the file, under a lock, followed by fsync. A kill during the write
    can leave an unfinished last line, of a vote that nobody was told is stored; the next writer (or `repair`) cuts it
    off.

    Args:
        folder (`str` or path): created if missing; the file is `votes.jsonl` in it.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / "votes.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self.repair()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store the rows of one vote; when it returns they are on the disk.

        Raises:
            OSError: they could not be stored; none of them is.
        """
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        if not data:
            return
        with self._lock, open(self.path, "ab", buffering=0) as file:
            _lock(file)
            end = _cut_unfinished(self.path)
            try:
                written = 0
                while written < len(data):
                    written += os.write(file.fileno(), data[written:])
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, end)
                raise

    def repair(self) -> None:
        """Create the file, or cut off an unfinished last line."""
        with open(self.path, "ab") as file:
            _lock(file)
            _cut_unfinished(self.path)

    def content(self) -> bytes:
        """The stored lines, never a part of one."""
        with self._lock:
            data = self.path.read_bytes() if self.path.exists() else b""
        return data[: data.rfind(b"\n") + 1]

    def __len__(self) -> int:
        """Number of stored pairs."""
        return self.content().count(b"\n")


def _lock(file: Any) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)


def _cut_unfinished(path: Path) -> int:
    """Truncate after the last newline; returns the size."""
    if not (size := path.stat().st_size):
        return 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
        end = lines.rfind(b"\n") + 1
    if end != size:
        os.truncate(path, end)
    return end


class Ballot:
    """Takes votes: checks them, stores them here and, where configured, on the Hub.

    Args:
        folder (`str` or path): of the vote file.
        dataset (`str`, *optional*): Hub dataset to which the file is sent every `minutes`.
        minutes (`float`), public (`bool`): of that dataset.
        conversational (`bool`), chat_template_kwargs (`dict`, *optional*): see [`vote_rows`].

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        dataset: str | None = None,
        minutes: float = 5.0,
        public: bool = False,
        conversational: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._form = conversational, chat_template_kwargs
        self.store = VoteStore(folder)
        self.uplink: Uplink | None = None
        if dataset:
            from .uplink import Uplink

            self.uplink = Uplink(self.store, dataset, minutes, public)

    def start(self) -> None:
        """Begin to send votes to the dataset, where there is one; does not wait for the Hub."""
        if self.uplink is not None:
            self.uplink.start()

    def cast(
        self,
        prompt: str,
        answers: Sequence[Answer],
        choice: int,
        annotator_id: str,
        group: str | None = None,
        blind: bool = False,
    ) -> int:
        """Store a vote.

        Returns:
            `int`: stored pairs; 0 where nothing can be learned from the vote, see [`vote_rows`].

        Raises:
            Refused: no such answer, or the vote could not be stored.
        """
        if not 0 <= choice < len(answers):
            raise Refused("Please choose one of the answers.")
        rows = vote_rows(prompt, answers, choice, annotator_id, group, blind, *self._form)
        try:
            self.store.append(rows)
        except OSError as error:
            logger.exception("a vote could not be stored")
            raise Refused("Your vote could not be stored, sorry. Please try again later.") from error
        return len(rows)
