# SPDX-License-Identifier: Apache-2.0
"""What waits is scored together, in order; what fails, fails alone; the queue has an end."""

import threading

import pytest
import torch

from trl_maxmin.serve.batching import Busy, ScoringQueue


class Gate:
    """Scores by length once it is open, and remembers what came together."""

    def __init__(self):
        self.open, self.entered, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, rows):
        self.entered.set()
        assert self.open.wait(30)
        self.batches.append([len(row) for row in rows])
        if any(len(row) == 13 for row in rows):
            raise ValueError("unlucky")
        return torch.tensor([[float(len(row)), -float(len(row))] for row in rows])


@pytest.fixture
def gate():
    return Gate()


def held(gate, **options):
    """A queue whose thread is busy with a first row."""
    queue = ScoringQueue(gate, **options)
    first = queue.submit([[0]])
    assert gate.entered.wait(30)
    return queue, first


def test_what_gathers_is_scored_together(gate):
    queue, first = held(gate, max_batch=4)
    futures = [queue.submit([[0] * n, [0] * (n + 1)]) for n in (2, 4, 6)]
    assert queue.waiting == 7
    gate.open.set()
    assert [future.result(30)[:, 0].tolist() for future in futures] == [[2, 3], [4, 5], [6, 7]]
    assert first.result().tolist() == [[1.0, -1.0]]
    queue.close()
    assert gate.batches == [[1], [2, 3, 4, 5], [6, 7]] and queue.waiting == 0 and not queue.alive


def test_a_request_larger_than_a_batch_is_scored_whole(gate):
    queue, _ = held(gate, max_batch=2)
    gate.open.set()
    assert queue.submit([[0]] * 5).result(30).shape == (5, 2)
    queue.close()


def test_who_sent_what_cannot_be_scored_is_answered_alone(gate):
    queue, _ = held(gate)
    good, bad, late = queue.submit([[0] * 2]), queue.submit([[0] * 13]), queue.submit([[0] * 3])
    gate.open.set()
    assert good.result(30)[0, 0] == 2 and late.result(30)[0, 0] == 3
    with pytest.raises(ValueError, match="unlucky"):
        bad.result(30)
    queue.close()


def test_who_has_gone_is_not_scored(gate):
    queue, _ = held(gate)
    gone, there = queue.submit([[0] * 5]), queue.submit([[0] * 6])
    assert gone.cancel()
    gate.open.set()
    assert there.result(30)[0, 0] == 6
    queue.close()
    assert gate.batches == [[1], [6]]


def test_no_more_than_so_many_wait(gate):
    queue, _ = held(gate, max_waiting=8)
    own = queue.submit([[0]] * 3, "a")
    with pytest.raises(Busy, match="3 replies of this client are waiting, its share is 4") as busy:
        queue.submit([[0]] * 2, "a")
    assert busy.value.alone and busy.value.retry_after >= 1
    queue.submit([[0]] * 4, "b")
    with pytest.raises(Busy, match="8 replies are waiting, the most is 8") as busy:
        queue.submit([[0]], "c")
    assert not busy.value.alone
    gate.open.set()
    own.result(30)
    queue.close()
    with pytest.raises(RuntimeError, match="has ended"):
        queue.submit([[0]])


def test_at_the_end_what_waits_fails(gate):
    queue, first = held(gate)
    waiting = queue.submit([[0] * 2])
    closer = threading.Thread(target=queue.close)
    closer.start()
    while not queue._closed:
        threading.Event().wait(0.001)
    gate.open.set()
    closer.join(30)
    assert first.result().shape == (1, 2)
    with pytest.raises(RuntimeError, match="shutting down"):
        waiting.result(30)
