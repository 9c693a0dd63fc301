# SPDX-License-Identifier: Apache-2.0
"""Votes on their way to a Hub of our own, through the real client."""

import json
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from datasets import load_dataset

from tests.hub_server import HubServer, client_of
from trl_maxmin.data.columns import prepare_preferences
from trl_maxmin.hub import HubError
from trl_maxmin.space.scoring import Answer
from trl_maxmin.space.uplink import Uplink, VoteScheduler
from trl_maxmin.space.votes import Ballot, VoteStore


ANSWERS = [Answer("reference", "dull", True), Answer("maxmin", "superb", True)]


@pytest.fixture
def hub(tmp_path):
    with HubServer(xet=False) as server, client_of(server, tmp_path / "cache"):
        yield server


@pytest.fixture
def open_ballot():
    """Ballots whose schedulers come too seldom to interfere: a test sends when it wants to."""
    made = []

    def make(folder, **settings):
        made.append(Ballot(folder, "me/votes", minutes=60, **settings))
        return made[-1]

    yield make
    for ballot in made:
        ballot.uplink.stop()


def cast(ballot, prompt, group=None):
    assert ballot.cast(prompt, ANSWERS, 1, "visitor-1", group) == 1


def send(ballot):
    """What the scheduler does every few minutes, now."""
    return ballot.uplink.scheduler.trigger().result()


def prompts_on(hub):
    """Prompts of the votes in the dataset, in the order of files and lines."""
    files = hub.store.repos["dataset", "me/votes"].commit("main").files
    lines = [line for name in sorted(files) if name.startswith("data/") for line in files[name].data.splitlines()]
    return [json.loads(line)["prompt"] for line in lines]


def test_votes_reach_the_dataset_once(hub, open_ballot, tmp_path):
    ballot = open_ballot(tmp_path)
    cast(ballot, "one")
    assert ballot.uplink.connect()
    send(ballot)
    assert prompts_on(hub) == ["one"] and hub.store.repos["dataset", "me/votes"].private
    commits = len(hub.store.repos["dataset", "me/votes"].branches["main"])
    assert send(ballot) is None
    cast(ballot, "two")
    send(ballot)
    assert prompts_on(hub) == ["one", "two"] and ballot.uplink.problem is None
    assert len(hub.store.repos["dataset", "me/votes"].branches["main"]) == commits + 1
    # Nothing but votes: neither the name of the file nor what else lies beside it.
    assert [n for n in hub.store.repos["dataset", "me/votes"].commit("main").files if not n.startswith(".git")] == [
        ballot.uplink.place
    ]


def test_a_public_dataset_is_asked_for(hub, open_ballot, tmp_path):
    ballot = open_ballot(tmp_path, public=True)
    assert ballot.uplink.connect()
    assert not hub.store.repos["dataset", "me/votes"].private


def test_a_restart_writes_no_vote_twice(hub, open_ballot, tmp_path):
    for prompt in ("one", "two", "three"):
        ballot = open_ballot(tmp_path)
        cast(ballot, prompt)
        assert ballot.uplink.connect()
        send(ballot)
        ballot.uplink.stop()
    assert prompts_on(hub) == ["one", "two", "three"]


def test_an_empty_disk_replaces_nobodys_votes(hub, open_ballot, tmp_path):
    for prompt in ("one", "two"):
        ballot = open_ballot(tmp_path / prompt)
        cast(ballot, prompt)
        assert ballot.uplink.connect()
        send(ballot)
    (tmp_path / "one" / "votes.jsonl").unlink()
    ballot = open_ballot(tmp_path / "one")
    cast(ballot, "three")
    assert ballot.uplink.connect()
    send(ballot)
    assert sorted(prompts_on(hub)) == ["one", "three", "two"]


@pytest.mark.parametrize("kind", [500, 503, 429, 401, "drop", "garbage", "cut", "lost"])
def test_a_hub_that_is_away_loses_no_vote(hub, open_ballot, tmp_path, kind):
    ballot = open_ballot(tmp_path)
    hub.inject(kind, lasting=True)
    assert not ballot.uplink.connect() and "me/votes" in ballot.uplink.problem
    cast(ballot, "one")
    hub.heal()
    assert ballot.uplink.connect() and ballot.uplink.problem is None
    send(ballot)
    assert prompts_on(hub) == ["one"]
    cast(ballot, "two")
    hub.inject(kind, lasting=True)
    with pytest.raises(HubError, match="Sending votes to me/votes"):
        send(ballot)
    assert ballot.uplink.problem
    cast(ballot, "three")
    hub.heal()
    send(ballot)
    assert prompts_on(hub) == ["one", "two", "three"] and ballot.uplink.problem is None
    assert len(ballot.store) == 3


def test_the_uplink_starts_by_itself_and_tries_again(hub, tmp_path, monkeypatch):
    hub.inject(503, path="/api/repos/create", lasting=True)
    store = VoteStore(tmp_path)
    store.append([{"prompt": "one"}])
    uplink = Uplink(store, "me/votes", minutes=0.05 / 60)
    attempts = 0
    connect = uplink.connect

    def counted():
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            hub.heal()
        return connect()

    arrived = threading.Event()
    push = VoteScheduler.push_to_hub

    def pushed(self):
        if push(self) is not None:
            arrived.set()

    monkeypatch.setattr(VoteScheduler, "push_to_hub", pushed)
    uplink.connect = counted
    uplink.start()
    try:
        assert arrived.wait(60) and attempts == 3
        assert prompts_on(hub) == ["one"]
    finally:
        uplink.stop()


def test_the_page_says_that_the_hub_is_away(tmp_path):
    pytest.importorskip("gradio", reason="Gradio is not installed (pip install trl-maxmin[space])")
    from types import SimpleNamespace

    from tests.space.fakes import studio
    from trl_maxmin.space.wiring import Handlers

    ballot = Ballot(tmp_path, "me/votes")
    ballot.uplink._problem = "503"
    handlers = Handlers(studio(votes_dir=str(tmp_path)), ballot)
    seen = handlers.visits.show("s", "p", ANSWERS, hidden=False)
    message = handlers.vote(f"{seen.id}:0", None, SimpleNamespace(session_hash="s"))[2]
    assert "your vote is stored. The Hub cannot be reached at the moment" in message
    assert len(ballot.store) == 1


PAGE = """
import sys, threading
from trl_maxmin.space.scoring import Answer
from trl_maxmin.space.startup import end_in_order
from trl_maxmin.space.votes import Ballot

ballot = Ballot(sys.argv[1], "me/votes", minutes=60)
assert ballot.uplink.connect()
ballot.uplink.scheduler.trigger().result()
end_in_order()
ballot.cast("one", [Answer("a", "x", True), Answer("b", "y", True)], 0, "v")
print("stored", flush=True)
threading.Event().wait()
"""


@pytest.mark.slow
def test_a_polite_stop_sends_the_last_votes(hub, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PAGE), str(tmp_path / "votes")]
    child = subprocess.Popen(command, env=hub.environment(tmp_path / "home"), stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "stored\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0
    assert prompts_on(hub) == ["one"]


@pytest.mark.slow
def test_the_dataset_is_a_preference_set(hub, open_ballot, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for part, group in (("a", None), ("b", "long")):
        ballot = open_ballot(tmp_path / part)
        cast(ballot, part, group)
        assert ballot.uplink.connect()
        send(ballot)
    data = load_dataset("me/votes", split="train", cache_dir=str(tmp_path / "datasets"))
    assert sorted(prepare_preferences(data)["prompt"]) == ["a", "b"]
    assert sorted(data["group"]) == ["", "long"]
