# SPDX-License-Identifier: Apache-2.0
"""What happens when a visitor presses a button: from inputs to pieces of the page."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from . import html
from .limits import RateLimit, Refused
from .policies import Settings
from .scoring import Studio, label
from .visits import Comparison, Visits
from .votes import Ballot


logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPDATES = 0.1


def zero_gpu(function: Callable, seconds: int) -> Callable:
    """`spaces.GPU` where a Space lends GPUs by the call, the function itself elsewhere.

    There the function runs in another process: arguments and results are copied, of exceptions only `gr.Error` comes
    back, and what it stores in objects is lost.

    Args:
        function (`Callable`): needs a GPU.
        seconds (`int`): longest time that one call takes.
    """
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(duration=seconds)(function)


class Handlers:
    """The page's actions.

    Args:
        studio ([`Studio`]): models and results.
        ballot ([`Ballot`], *optional*): takes votes.
    """

    def __init__(self, studio: Studio, ballot: Ballot | None) -> None:
        self.studio = studio
        self.ballot = ballot
        self.limit = RateLimit(studio.config.requests_per_minute)
        self.scorings = RateLimit(1)  # of all recorded answers: the longest piece of work here
        self.visits = Visits()
        self._compare = zero_gpu(studio.compare, 60)
        self._score_recorded = zero_gpu(studio.score_recorded, 120)

    def compare(
        self,
        prompt: str,
        policies: Sequence[str],
        temperature: float,
        seed: float,
        length: float,
        blind: bool,
        request: gr.Request,
    ) -> Iterator[tuple]:
        """Answers as they grow, then utilities, the line in words and the form of the vote.

        While they grow there is nothing to vote on: the comparison before is no longer what the visitor sees.
        """
        shown, answers, session = 0.0, [], request.session_hash or ""
        try:
            self.limit.check(session)
            self.studio.check(prompt, list(policies or []), Settings(temperature, seed, length))
            # Answers that were seen with their names, here or by whoever knows the seed, would be known again.
            seed = random.SystemRandom().randrange(2**31) if blind else int(seed)
            settings = Settings(temperature, seed, int(length))
            order: list[int] | None = None
            for answers in self._compare(prompt, list(policies or []), settings):
                if order is None:
                    order = list(range(len(answers)))
                    if blind:
                        # Not from the visitor's seed: whoever knows it would know the order.
                        random.SystemRandom().shuffle(order)
                answers = [answers[i] for i in order]
                if time.monotonic() - shown > _SECONDS_BETWEEN_UPDATES:
                    rest: tuple = (gr.skip(),) * 4
                    if not shown:
                        self.visits.clear(session)
                        rest = ("", html.heard("The answers are being written."), *self._no_vote())
                    shown = time.monotonic()
                    yield html.answers_panel(answers, prompt, blind, streaming=True), *rest
            seen = self.visits.show(session, prompt, answers, hidden=bool(blind))
            last = (*self._shown(seen), self._choices(seen), gr.update(interactive=True))
        except Refused as refusal:
            yield gr.skip(), gr.skip(), html.notice(str(refusal), "warning"), gr.skip(), gr.skip()
            return
        except Exception as error:
            logger.exception("a comparison failed")
            panel = gr.skip()
            if shown:
                self.visits.clear(session)
                panel = html.answers_panel([replace(answer, utilities=None) for answer in answers], prompt, blind)
            yield panel, gr.skip(), html.notice(_said(error), "warning"), gr.skip(), gr.skip()
            return
        yield last

    def _shown(self, seen: Comparison, message: str = "") -> tuple[str, str, str]:
        panel = html.answers_panel(seen.answers, seen.prompt, seen.hidden)
        order, expected = list(self.studio.policies), bool(self.studio.groups)
        answers = sorted(seen.answers, key=lambda answer: order.index(answer.policy))
        line = "" if seen.hidden else html.comparison_line(answers, expected)
        done = "" if message else html.heard("The answers are complete.")
        if seen.hidden and not message:
            message = "The policies are hidden until you vote."
            if not seen.blind:
                message += " You have seen one of these answers with its policy, so the vote will not count as blind."
        return panel, line, done + html.notice(message)

    def _no_vote(self) -> tuple[Any, Any]:
        # Made anew for every use: Gradio takes pieces out of the updates that it is given.
        return gr.update(value=None, interactive=False), gr.update(interactive=False)

    def _choices(self, seen: Comparison) -> Any:
        names = [html.letter(i) if seen.hidden else label(answer.policy) for i, answer in enumerate(seen.answers)]
        choices = [(name, f"{seen.id}:{i}") for i, name in enumerate(names)]
        return gr.update(choices=choices, value=None, interactive=True)

    def vote(self, choice: str | None, group: str | None, request: gr.Request) -> tuple:
        """Store a vote and, in blind mode, show who wrote what.

        A choice is `<id of the comparison>:<place>`: it is about the answers that the visitor saw when choosing, even
        if others are on their way. A vote that is slow to store leaves newer answers on the page alone.
        """
        nothing, session = gr.skip(), request.session_hash or ""
        try:
            if self.ballot is None:
                raise Refused("This page takes no votes.")
            shown, _, place = choice.rpartition(":") if isinstance(choice, str) else ("", "", "")
            if not shown or not place.isdecimal() or len(place) > 2:
                raise Refused("Please compare some answers, and choose the one you prefer.")
            self.limit.check(session)
            known = group if group in self.studio.groups else None
            seen, annotator_id = self.visits.take(session, shown, known)
            try:
                stored = self.ballot.cast(seen.prompt, seen.answers, int(place), annotator_id, known, seen.blind)
            except Exception:
                self.visits.give_back(session, shown)
                raise
        except Refused as refusal:
            return nothing, nothing, html.notice(str(refusal), "warning")
        cut = not all(answer.finished for answer in seen.answers)
        if stored:
            thanks = "Thank you, your vote is stored" + (", without the answers that were cut." if cut else ".")
        elif cut:
            thanks = (
                "Thank you. Nobody knows how the answers go on that were cut at the length limit, so there is nothing "
                "to store: the settings may allow longer ones."
            )
        else:
            thanks = "All answers are the same, so there is nothing to store."
        if stored and self.ballot.uplink is not None and self.ballot.uplink.problem:
            thanks += " The Hub cannot be reached at the moment; it is sent there when it can."
        panel, line, message = self._shown(self.visits.reveal(session, seen), thanks)
        if self.visits.shown(session) != seen:
            return nothing, nothing, message
        # The button stays as it is: a keyboard's focus is on it.
        return panel, line, message

    def surprise(self, current: str) -> str:
        """A prompt of the evaluation."""
        return self.studio.random_prompt(current)

    def fill_groups(self, request: gr.Request) -> Any:
        """Best and worst answers for every group; computed once for everyone, on the first visit of the tab.

        Where that fails, a visit may ask again in a minute; until then its tab stays as it is.
        """
        try:
            if self.studio.recorded is None:
                self.scorings.check(request.session_hash or "")
                self.studio.recorded = self._score_recorded()
            pages = [html.extremes_page(group, self.studio.extremes(group)) for group in self.studio.groups]
        except Refused:
            pages = [gr.skip() for _ in self.studio.groups]
        except Exception as error:
            logger.exception("recorded answers could not be scored")
            text = f"The recorded answers could not be scored. {_said(error)}"
            pages = [html.notice(text, "warning")] * len(self.studio.groups)
        return pages if len(pages) > 1 else pages[0]


def _said(error: Exception) -> str:
    """A failure in words for the visitor.

    A Space that lends GPUs says in a `gr.Error`, for instance, that a visitor's share of today is used up.
    """
    said = error.message if isinstance(error, gr.Error) else "Something went wrong on our side, sorry."
    return f"{said} Please try again."
