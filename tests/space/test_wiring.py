# SPDX-License-Identifier: Apache-2.0
"""What a button does, step by step: no vote is taken about answers that the visitor does not see."""

import concurrent.futures
import html
import json
import re
import threading
from types import SimpleNamespace

import pytest
from datasets import Dataset

from tests.space.fakes import studio
from trl_maxmin.data.columns import known_groups, prepare_preferences
from trl_maxmin.space.policies import Reply


gradio = pytest.importorskip("gradio", reason="Gradio is not installed (pip install trl-maxmin[space])")

PANEL, LINE, MESSAGE, CHOICE, VOTE = range(5)


@pytest.fixture
def made(tmp_path):
    return studio(votes_dir=str(tmp_path), requests_per_minute=100)


@pytest.fixture
def handlers(made, tmp_path):
    from trl_maxmin.space.votes import Ballot
    from trl_maxmin.space.wiring import Handlers

    return Handlers(made, Ballot(str(tmp_path)))


def of(session):
    return SimpleNamespace(session_hash=session)


def compare(handlers, prompt="p", blind=False, session="s"):
    return handlers.compare(prompt, ["reference", "single", "maxmin"], 1.0, 0, 5, blind, of(session))


def complete(handlers, *args, **kwargs):
    """The last state of a comparison."""
    *_, last = compare(handlers, *args, **kwargs)
    return last


def choices(shown):
    """What the form offers, in the order of the page."""
    return [value for _, value in shown[CHOICE]["choices"]]


def vote(handlers, choice, session="s", group=None):
    return handlers.vote(choice, group, of(session))


def stored(handlers):
    return [json.loads(line) for line in handlers.ballot.store.path.read_text().splitlines()]


@pytest.mark.parametrize("blind", [False, True])
def test_growing_answers_take_the_comparison_before_away(handlers, blind):
    last = complete(handlers, "first", blind)
    assert last[VOTE]["interactive"] and last[CHOICE]["interactive"]
    growing = next(compare(handlers, "second", blind))
    assert 'aria-busy="true"' in growing[PANEL]
    assert growing[VOTE]["interactive"] is False
    assert growing[CHOICE]["interactive"] is False and growing[CHOICE]["value"] is None
    assert "and wait until they are complete" in vote(handlers, choices(last)[0])[MESSAGE]
    assert len(handlers.ballot.store) == 0
    last = complete(handlers, "second", blind)
    assert "your vote is stored" in vote(handlers, choices(last)[0])[MESSAGE]


def test_a_choice_is_about_the_answers_that_it_was_made_from(handlers):
    first = complete(handlers, "first")
    # The second is complete on the server; the visitor's phone still shows the first.
    second = complete(handlers, "second")
    assert "Please choose among those on the page" in vote(handlers, choices(first)[2])[MESSAGE]
    assert len(handlers.ballot.store) == 0
    vote(handlers, choices(second)[2])
    assert {(row["prompt"], row["chosen"]) for row in stored(handlers)} == {("second", "answer 0 to second")}


@pytest.mark.parametrize("choice", [None, "", 0, "0", ":", "x:y", "x:-1", "x:" + "9" * 5000, ["x:0"]])
def test_no_choice_is_a_sentence(handlers, choice):
    assert "choose the one you prefer" in vote(handlers, choice)[MESSAGE]


def test_another_visitors_choice_is_none_of_ours(handlers):
    theirs = complete(handlers, session="theirs")
    complete(handlers)
    assert "Please choose among those on the page" in vote(handlers, choices(theirs)[0])[MESSAGE]
    other = choices(theirs)[0].replace(":0", ":7")
    assert "choose one of the answers" in vote(handlers, other, "theirs")[MESSAGE]
    assert "your vote is stored" in vote(handlers, choices(theirs)[0], "theirs")[MESSAGE]


def held(handlers, monkeypatch):
    """Votes wait before they are stored until the event is set; the semaphore counts those that wait."""
    gate, waiting, cast = threading.Event(), threading.Semaphore(0), handlers.ballot.cast

    def slow(*args):
        waiting.release()
        assert gate.wait(60)
        return cast(*args)

    monkeypatch.setattr(handlers.ballot, "cast", slow)
    return gate, waiting


def test_six_votes_at_once_are_one(handlers, monkeypatch):
    choice = choices(complete(handlers))[0]
    gate, _ = held(handlers, monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        votes = [pool.submit(vote, handlers, choice) for _ in range(6)]
        try:
            answered = concurrent.futures.as_completed(votes, timeout=20)
            refused = [next(answered).result() for _ in range(5)]
        finally:
            gate.set()
    assert all("You have voted on these answers" in result[MESSAGE] for result in refused)
    assert sum("your vote is stored" in done.result()[MESSAGE] for done in votes) == 1
    assert len(stored(handlers)) == 2


def test_a_vote_that_could_not_be_stored_may_be_cast_again(handlers, monkeypatch):
    choice = choices(complete(handlers))[0]

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("trl_maxmin.space.votes.os.write", full)
        assert "could not be stored" in vote(handlers, choice)[MESSAGE]
    assert "your vote is stored" in vote(handlers, choice)[MESSAGE]
    assert "You have voted on these answers" in vote(handlers, choice)[MESSAGE]
    assert len(stored(handlers)) == 2


def test_a_slow_vote_leaves_newer_answers_on_the_page(handlers, monkeypatch):
    choice = choices(complete(handlers, "first", blind=True))[0]
    gate, waiting = held(handlers, monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        voting = pool.submit(vote, handlers, choice)
        assert waiting.acquire(timeout=60)
        second = complete(handlers, "second")
        gate.set()
        panel, line, message = voting.result(60)
    assert panel == line == gradio.skip() and "your vote is stored" in message
    assert {row["prompt"] for row in stored(handlers)} == {"first"}
    assert "your vote is stored" in vote(handlers, choices(second)[0])[MESSAGE]


def test_a_visit_keeps_its_random_number_and_shares_it_with_nobody(handlers):
    for session in ("s", "t", "s", "s"):
        vote(handlers, choices(complete(handlers, session=session))[0], session)
    annotators = [row["annotator_id"] for row in stored(handlers)][::2]
    assert annotators[0] == annotators[2] == annotators[3] != annotators[1]


def test_the_longest_silent_visits_are_forgotten(handlers):
    handlers.visits.most = 2
    shown = {session: complete(handlers, session=session) for session in "abc"}
    assert len(handlers.visits) == 2
    assert "Please compare some answers first" in vote(handlers, choices(shown["a"])[0], "a")[MESSAGE]
    assert "your vote is stored" in vote(handlers, choices(shown["c"])[0], "c")[MESSAGE]


def test_blind_answers_are_shuffled_and_votes_are_about_what_was_shown(handlers, made):
    handlers.limit.per_minute = 1000
    texts = {"ok": "reference", "fine": "single"}
    seen = []
    for _ in range(60):
        shown = complete(handlers, blind=True)
        panel = vote(handlers, choices(shown)[0])[PANEL]
        assert "Answer A" not in panel
        seen.append(stored(handlers)[-1])
        first = shown[PANEL].split('<p class="mm-answer" dir="auto">')[1].split("<")[0]
        assert seen[-1]["chosen"] == first and seen[-1]["chosen_policy"] == texts.get(first, "maxmin")
    # That one of three never comes first in 60 shuffles has a probability of 8e-11.
    assert {row["chosen_policy"] for row in seen} == {"reference", "single", "maxmin"}


def test_answers_that_fail_on_the_way_are_not_busy_and_take_no_vote(handlers, made):
    def fails(prompt_ids, settings):
        yield Reply([], "half")
        raise RuntimeError("out of memory")

    made.policies["maxmin"].stream = fails
    growing, failed = compare(handlers)
    assert growing[VOTE]["interactive"] is False
    assert "half" in failed[PANEL] and 'aria-busy="false"' in failed[PANEL]
    assert "Something went wrong on our side, sorry. Please try again." in failed[MESSAGE]
    assert all(failed[place] == gradio.skip() for place in (CHOICE, VOTE))


def test_what_is_refused_leaves_the_comparison_before(handlers):
    choice = choices(complete(handlers))[0]
    (refused,) = compare(handlers, "")
    assert "Please write a prompt" in refused[MESSAGE]
    assert all(refused[place] == gradio.skip() for place in (PANEL, CHOICE, VOTE))
    assert "your vote is stored" in vote(handlers, choice)[MESSAGE]


@pytest.mark.parametrize("blind", [False, True])
def test_answers_stand_under_the_prompt_that_they_answer(handlers, made, blind):
    prompt = "<b>what</b> of\n{{this}}?"
    states = list(compare(handlers, prompt, blind))
    states.append(vote(handlers, choices(states[-1])[0]))
    for state in states:
        text = html.unescape(re.sub("<[^>]*>", "", state[PANEL]))
        assert text.startswith(f"Prompt {prompt}") and "<b>what" not in state[PANEL]

    def fails(prompt_ids, settings):
        yield Reply([], "half")
        raise RuntimeError("out of memory")

    made.policies["maxmin"].stream = fails
    *_, failed = compare(handlers, "another", blind)
    assert "another" in failed[PANEL] and "half" in failed[PANEL]


def test_hidden_answers_are_not_those_of_a_seed_that_anybody_knows(handlers):
    seeds = [re.search(r"answer (\d+) to p", complete(handlers, blind=True)[PANEL])[1] for _ in range(4)]
    # Four out of 2^31: that two are equal has a probability of 3e-9.
    assert len({"0", *seeds}) == 5
    assert "answer 0 to p" in complete(handlers)[PANEL]


def test_hidden_answers_that_were_seen_with_their_names_are_not_blind(handlers):
    def voted(prompt):
        shown = complete(handlers, prompt, blind=True)
        vote(handlers, choices(shown)[0])
        return "will not count as blind" in shown[MESSAGE], stored(handlers)[-1]["blind"]

    # Reference and single reward always answer the same here, as policies at temperature 0 do.
    assert voted("p") == (False, True)
    assert voted("p") == (True, False)  # the vote before showed the names
    complete(handlers, "q")
    assert voted("q") == (True, False)
    assert voted("r") == (False, True)


def test_an_annotator_has_one_group_and_unnamed_ones_are_unknown(handlers):
    named = [None, "long", "", "long", "short", None, "short", "nobody's", "long"]
    for group in named:
        vote(handlers, choices(complete(handlers))[0], group=group)
    rows = [(row["annotator_id"], row["group"]) for row in stored(handlers)][::2]
    assert [group for _, group in rows] == ["", "long", "", "long", "short", "", "short", "", "long"]
    people = [annotator for annotator, _ in rows]
    assert len(set(people[:4])) == len(set(people[4:8])) == 1 and len({people[0], people[4], people[8]}) == 3
    data = prepare_preferences(Dataset.from_json(str(handlers.ballot.store.path)))
    expected = {people[0]: "long", people[4]: "short", people[8]: "long"}
    assert known_groups(data, "group", num_components=2) == expected


@pytest.mark.parametrize(
    ("cut", "choice", "rows", "words"),
    [
        ([], 0, 2, "your vote is stored."),
        (["maxmin"], 0, 1, "your vote is stored, without the answers that were cut."),
        (["maxmin"], 2, 0, "there is nothing to store: the settings may allow longer ones"),
        (["single", "maxmin"], 0, 0, "there is nothing to store: the settings may allow longer ones"),
    ],
)
def test_what_was_cut_is_not_stored_and_that_is_said(handlers, made, cut, choice, rows, words):
    def cuts(prompt_ids, settings):
        yield Reply([], f"{len(prompt_ids)} and", finished=False, done=True)

    for name in cut:
        made.policies[name].stream = cuts
    assert words in vote(handlers, choices(complete(handlers))[choice])[MESSAGE]
    assert len(handlers.ballot.store) == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_utility_that_is_no_number_is_left_out_and_said(handlers, made, value):
    score = made.mixture.score

    def broken(prompts, completions, **options):
        rewards = score(prompts, completions)
        rewards[[text.startswith("answer") for text in completions], 0] = value
        return rewards

    made.mixture.score = broken
    shown = complete(handlers)
    panel = shown[PANEL]
    assert 'aria-busy="false"' in panel and not re.search(r"[+-](nan|inf)", panel + shown[LINE])
    third = panel.split("<article")[3]
    assert "No number came out for long." in third and "mm-worst" not in third and third.count("mm-track") == 1
    assert panel.count("No number") == 1 and panel.count("mm-worst-mark") == 2
    assert "is worse for <em><bdi>short</bdi></em> (-9.0)." in shown[LINE]
    assert "your vote is stored" in vote(handlers, choices(shown)[2])[MESSAGE]
    made.run.replies = {"p": [("maxmin", "answer", True), ("single", "fine", True), ("single", "good", True)]}
    assert list(made.extremes("long")) == ["single"] and list(made.extremes("short")) == ["single", "maxmin"]


def test_answers_that_cannot_be_drawn_are_not_busy_and_take_no_vote(handlers, monkeypatch):
    before = choices(complete(handlers))[0]

    def fails(*args):
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr("trl_maxmin.space.html.comparison_line", fails)
    failed = complete(handlers)
    assert 'aria-busy="false"' in failed[PANEL] and "answer 0 to p" in failed[PANEL]
    assert "Something went wrong on our side, sorry. Please try again." in failed[MESSAGE]
    assert "Please compare some answers first" in vote(handlers, before)[MESSAGE]
