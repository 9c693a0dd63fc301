# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from datasets import Dataset

from trl_maxmin.data.columns import prepare_preferences
from trl_maxmin.space.limits import Refused
from trl_maxmin.space.scoring import Answer
from trl_maxmin.space.votes import Ballot, VoteStore, new_annotator_id, vote_rows


ANSWERS = [Answer("reference", "dull", True), Answer("single", "short", True), Answer("maxmin", "superb", True)]


def test_a_vote_is_the_chosen_answer_against_each_other_one(tmp_path):
    ballot = Ballot(tmp_path)
    assert ballot.cast("review :", ANSWERS, 2, "visitor-1", "positive", blind=True) == 2
    rows = [json.loads(line) for line in ballot.store.path.read_text().splitlines()]
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("superb", "dull"), ("superb", "short")]
    assert {row["group"] for row in rows} == {"positive"} and {row["annotator_id"] for row in rows} == {"visitor-1"}
    data = Dataset.from_json(str(ballot.store.path))
    assert len(prepare_preferences(data)) == 2


def test_equal_answers_are_no_preference(tmp_path):
    ballot = Ballot(tmp_path)
    assert ballot.cast("p", [Answer("a", "x", True), Answer("b", "x", True)], 0, "v") == 0
    assert len(ballot.store) == 0


def test_answers_that_were_cut_are_in_no_row():
    """A reward trainer ends every reply with EOS, which these have not said."""
    answers = [*ANSWERS[:2], Answer("maxmin", "superb and", False, True)]
    (row,) = vote_rows("p", answers, 0, "v")
    assert (row["chosen"], row["rejected"]) == ("dull", "short")
    assert vote_rows("p", answers, 2, "v") == []


def test_messages_where_the_models_chat():
    (row, _) = vote_rows("p", ANSWERS, 0, "v", conversational=True)
    assert row["prompt"] == [{"role": "user", "content": "p"}]
    assert row["chosen"] == [{"role": "assistant", "content": "dull"}]


def test_no_such_answer_and_a_full_disk_are_said_in_words(tmp_path, monkeypatch):
    ballot = Ballot(tmp_path)
    with pytest.raises(Refused, match="choose one of the answers"):
        ballot.cast("p", ANSWERS, 3, "v")
    ballot.cast("p", ANSWERS, 0, "v")

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trl_maxmin.space.votes.os.write", full)
    with pytest.raises(Refused, match="could not be stored"):
        ballot.cast("p", ANSWERS, 0, "v")
    assert len(ballot.store) == 2


def test_session_names_are_random():
    names = {new_annotator_id() for _ in range(100)}
    assert len(names) == 100 and all(name.startswith("visitor-") for name in names)


def test_an_unfinished_line_is_cut_off_before_the_next_vote(tmp_path):
    store = VoteStore(tmp_path)
    store.append([{"prompt": "é\n<b>"}])
    for rest in ('{"prompt": "half', "x" * 200_000):
        with open(store.path, "a") as file:
            file.write(rest)
        store.append([{"prompt": "next"}])
    assert [json.loads(line)["prompt"] for line in store.path.read_text().splitlines()] == ["é\n<b>", "next", "next"]
    store.path.write_text("no newline at all")
    assert len(VoteStore(tmp_path)) == 0 and store.path.read_bytes() == b""


def test_two_hundred_votes_at_once_are_two_hundred_lines(tmp_path):
    store = VoteStore(tmp_path)
    threads = [threading.Thread(target=store.append, args=([{"n": n, "text": "x" * 5000}],)) for n in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(json.loads(line)["n"] for line in store.path.read_text().splitlines()) == list(range(200))


# Only the part that writes: the child must be killed in the middle of it, not in the middle of an import.
WRITER = """
import sys, threading
from trl_maxmin.space.votes import VoteStore
store = VoteStore(sys.argv[1])
lock = threading.Lock()
def work(first):
    for n in range(first, 100_000, 8):
        store.append([{"n": n, "text": "y" * 3000}])
        with lock:
            print(n, flush=True)
for first in range(8):
    threading.Thread(target=work, args=(first,)).start()
"""


def test_a_kill_loses_no_acknowledged_vote_and_spoils_no_line(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    acknowledged = [int(child.stdout.readline()) for _ in range(200)]
    os.kill(child.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().splitlines() if line.strip()]
    child.wait()
    store = VoteStore(tmp_path)
    stored = [json.loads(line)["n"] for line in store.path.read_text().splitlines()]
    assert len(stored) == len(set(stored)) and set(acknowledged) <= set(stored)
    store.append([{"n": -1}])
    assert len(store) == len(stored) + 1
