# SPDX-License-Identifier: Apache-2.0
"""Votes on their way to a Hub dataset: sent again and again until they are there, and never twice."""

from __future__ import annotations

import logging
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitScheduler

from ..hub.faults import HubError, ask


if TYPE_CHECKING:
    from .votes import VoteStore

logger = logging.getLogger(__name__)


class VoteScheduler(CommitScheduler):
    """Sends the vote file to one place of a dataset whenever it has grown.

    Args:
        store ([`VoteStore`]): the votes.
        place (`str`): file in the dataset.
        dataset (`str`): Hub id; created if missing.
        minutes (`float`): how often.
        public (`bool`): visibility of a new dataset.

    Raises:
        HubError: the dataset could not be reached or created.
    """

    def __init__(self, store: VoteStore, place: str, dataset: str, minutes: float, public: bool) -> None:
        # All that `push_to_hub` needs comes first: the base class starts a thread that calls it.
        self.store = store
        self.problem: str | None = None
        self._place = place
        self._sent = 0
        self._sending = threading.Lock()

        def begin() -> None:
            CommitScheduler.__init__(
                self,
                repo_id=dataset,
                repo_type="dataset",
                folder_path=store.path.parent,
                every=minutes,
                private=None if public else True,
            )

        ask(f"Opening the dataset {dataset}", begin)

    def push_to_hub(self) -> Any:
        """Send the file as it is now, whole lines only; `None` where nothing was added since the last time.

        One file at one place, which only grows: an upload whose answer was lost is simply done again.

        Raises:
            HubError: it did not arrive; the votes are still here.
        """
        with self._sending:
            content = self.store.content()
            if len(content) == self._sent:
                return None
            operation = CommitOperationAdd(self._place, content)
            try:
                commit = ask(
                    f"Sending votes to {self.repo_id}",
                    lambda: self.api.create_commit(
                        self.repo_id, [operation], repo_type="dataset", commit_message="Votes"
                    ),
                )
            except HubError as error:
                self.problem = str(error)
                raise
            self._sent, self.problem = len(content), None
            return commit


class Uplink:
    """Brings votes to a Hub dataset in the background; while the Hub is away it tries again, and nothing waits for it.

    Args:
        store ([`VoteStore`]): the votes.
        dataset (`str`): Hub id.
        minutes (`float`): time between two attempts.
        public (`bool`): visibility of a new dataset.
    """

    def __init__(self, store: VoteStore, dataset: str, minutes: float, public: bool = False) -> None:
        self.store, self.dataset, self.minutes, self.public = store, dataset, minutes, public
        # Now, while a new file is still seen to be new.
        self.place = f"data/votes-{store_id(store)}.jsonl"
        self.scheduler: VoteScheduler | None = None
        self._problem: str | None = None
        self._stopped = threading.Event()

    @property
    def problem(self) -> str | None:
        """Why votes do not arrive at the moment, for the log and the owner; `None` while all is well."""
        return self.scheduler.problem if self.scheduler is not None else self._problem

    def connect(self) -> bool:
        """One attempt to open the dataset; from then on the scheduler sends by itself."""
        try:
            self.scheduler = VoteScheduler(self.store, self.place, self.dataset, self.minutes, self.public)
        except (HubError, OSError, ValueError) as error:
            self._problem = str(error)
            logger.warning("Votes are stored here only, for now. %s", error)
            return False
        self._problem = None
        return True

    def start(self) -> None:
        """Connect in a thread of its own, and again every few minutes until it works."""

        def run() -> None:
            while not self.connect() and not self._stopped.wait(self.minutes * 60):
                pass

        threading.Thread(target=run, name="votes-to-the-hub", daemon=True).start()

    def stop(self) -> None:
        """No further attempts."""
        self._stopped.set()
        if self.scheduler is not None:
            self.scheduler.stop()


def store_id(store: VoteStore) -> str:
    """A random name of a vote file, kept beside it.

    A Space starts with an empty disk, so a new file has a new name and replaces nobody's votes; a file that is still
    there after a restart goes to its old place instead of a second one.
    """
    path = Path(store.path).with_suffix(".id")
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if len(known) == 12 and known.isalnum() and len(store):
        return known
    new = uuid.uuid4().hex[:12]
    path.write_text(new + "\n", encoding="utf-8")
    return new
