# SPDX-License-Identifier: Apache-2.0
"""What the server remembers of each visit, so that a vote is about the answers that were shown and counts once."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .limits import Refused
from .scoring import Answer
from .votes import new_annotator_id


_NAMED = 200  # answers of a visit that are remembered as seen with the name of their policy


@dataclass(frozen=True)
class Comparison:
    """Answers as a visitor was shown them, in the order of the page.

    Args:
        id (`str`): random; a choice names it, so that a vote cannot be taken for one about other answers.
        prompt (`str`): what was answered.
        answers (`tuple[Answer, ...]`): complete.
        hidden (`bool`): whether the page hides who wrote what.
        blind (`bool`): whether the visitor, as far as this visit tells, does not know who wrote what.
    """

    id: str
    prompt: str
    answers: tuple[Answer, ...]
    hidden: bool = False
    blind: bool = False


@dataclass
class _Visit:
    annotator_id: str = field(default_factory=new_annotator_id)
    group: str | None = None
    comparison: Comparison | None = None
    voted: bool = False
    named: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)

    def name(self, comparison: Comparison) -> None:
        """The visitor sees who wrote these answers."""
        for answer in comparison.answers:
            self.named[comparison.prompt, answer.text] = None
            self.named.move_to_end((comparison.prompt, answer.text))
        while len(self.named) > _NAMED:
            self.named.popitem(last=False)


class Visits:
    """The visits of a page; every method may be called from several threads.

    Nothing here depends on how long a page has been open or whether its connection broke; of very many visits the
    longest silent ones are forgotten.

    Args:
        most (`int`, *optional*): how many are remembered.
    """

    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self._visits: OrderedDict[str, _Visit] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self, session: str) -> None:
        """From now on there is nothing to vote on."""
        with self._lock:
            self._visit(session).comparison = None

    def show(self, session: str, prompt: str, answers: Sequence[Answer], hidden: bool) -> Comparison:
        """From now on votes are about these answers.

        Hidden answers are not blind where the visitor has seen one of them with its policy, as at temperature 0.
        """
        with self._lock:
            visit = self._visit(session)
            blind = hidden and not any((prompt, answer.text) in visit.named for answer in answers)
            comparison = Comparison(secrets.token_hex(8), prompt, tuple(answers), hidden, blind)
            if not hidden:
                visit.name(comparison)
            visit.comparison, visit.voted = comparison, False
            return comparison

    def take(self, session: str, comparison_id: str, group: str | None = None) -> tuple[Comparison, str]:
        """Use up the one vote that a comparison has.

        A visitor who names another group than before goes on as another annotator: an annotator has one group.

        Args:
            session (`str`): the visit.
            comparison_id (`str`): what the choice was made from.
            group (`str`, *optional*): that the visitor feels closest to, if named.

        Returns:
            `(Comparison, str)`: what the vote is about, and the annotator's id.

        Raises:
            Refused: the visitor is shown something else, or has voted on it.
        """
        with self._lock:
            visit = self._visit(session)
            if visit.comparison is None:
                raise Refused("Please compare some answers first, and wait until they are complete.")
            if visit.comparison.id != comparison_id:
                raise Refused("The answers have changed since you chose. Please choose among those on the page.")
            if visit.voted:
                raise Refused("You have voted on these answers. Compare again to vote once more.")
            visit.voted = True
            if group and visit.group and group != visit.group:
                visit.annotator_id = new_annotator_id()
            visit.group = group or visit.group
            return visit.comparison, visit.annotator_id

    def reveal(self, session: str, comparison: Comparison) -> Comparison:
        """The comparison with the names of its policies, which the visitor is about to see."""
        with self._lock:
            self._visit(session).name(comparison)
        return replace(comparison, hidden=False)

    def give_back(self, session: str, comparison_id: str) -> None:
        """The vote that was taken could not be stored: it may be cast again."""
        with self._lock:
            visit = self._visit(session)
            if visit.comparison is not None and visit.comparison.id == comparison_id:
                visit.voted = False

    def shown(self, session: str) -> Comparison | None:
        """What is on the page now; `None` before the first answers, and while they grow."""
        with self._lock:
            return self._visit(session).comparison

    def __len__(self) -> int:
        return len(self._visits)

    def _visit(self, session: str) -> _Visit:
        visit = self._visits.setdefault(session, _Visit())
        self._visits.move_to_end(session)
        while len(self._visits) > self.most:
            self._visits.popitem(last=False)
        return visit
