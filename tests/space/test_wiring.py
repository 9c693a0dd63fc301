# SPDX-License-Identifier: Apache-2.0
"""What a button does, step by step: no vote is taken about answers that the visitor does not see."""

from types import SimpleNamespace

import pytest

from tests.space.fakes import studio


gradio = pytest.importorskip("gradio", reason="Gradio is not installed (pip install trl-maxmin[space])")

REQUEST = SimpleNamespace(session_hash="s")
PANEL, LINE, MESSAGE, SEEN, CHOICE, VOTE = range(6)


@pytest.fixture
def made(tmp_path):
    return studio(votes_dir=str(tmp_path), requests_per_minute=100)


@pytest.fixture
def handlers(made, tmp_path):
    from trl_maxmin.space.votes import Ballot
    from trl_maxmin.space.wiring import Handlers

    return Handlers(made, Ballot(str(tmp_path)))


def compare(handlers, prompt="p", blind=False):
    return handlers.compare(prompt, ["reference", "single", "maxmin"], 1.0, 0, 5, blind, REQUEST)


def vote(handlers, seen, choice=0):
    return handlers.vote(seen, "visitor-1", choice, None, REQUEST)


@pytest.mark.parametrize("blind", [False, True])
def test_growing_answers_take_the_comparison_before_away(handlers, blind):
    *_, last = compare(handlers, "first", blind)
    assert last[SEEN].prompt == "first" and last[VOTE]["interactive"] and last[CHOICE]["interactive"]
    growing = next(compare(handlers, "second", blind))
    assert 'aria-busy="true"' in growing[PANEL]
    assert growing[SEEN] is None
    assert growing[VOTE]["interactive"] is False
    assert growing[CHOICE]["interactive"] is False and growing[CHOICE]["value"] is None
    assert "and wait until they are complete" in vote(handlers, growing[SEEN])[MESSAGE]
    assert len(handlers.ballot.store) == 0
    *_, last = compare(handlers, "second", blind)
    assert "your vote is stored" in vote(handlers, last[SEEN])[MESSAGE]


def test_answers_that_fail_on_the_way_are_not_busy_and_take_no_vote(handlers, made):
    def fails(prompt_ids, settings):
        yield SimpleNamespace(text="half", finished=False, done=False)
        raise RuntimeError("out of memory")

    made.policies["maxmin"].stream = fails
    growing, failed = compare(handlers)
    assert growing[SEEN] is None and growing[VOTE]["interactive"] is False
    assert "half" in failed[PANEL] and 'aria-busy="false"' in failed[PANEL]
    assert "Something went wrong on our side, sorry. Please try again." in failed[MESSAGE]
    assert all(failed[place] == gradio.skip() for place in (SEEN, CHOICE, VOTE))


def test_what_is_refused_leaves_the_comparison_before(handlers):
    (refused,) = compare(handlers, "")
    assert "Please write a prompt" in refused[MESSAGE]
    assert all(refused[place] == gradio.skip() for place in (PANEL, SEEN, CHOICE, VOTE))
