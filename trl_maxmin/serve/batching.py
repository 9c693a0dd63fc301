# SPDX-License-Identifier: Apache-2.0
"""One thread scores, and what waits is scored together: while a forward runs, requests gather for the next one."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch


logger = logging.getLogger(__name__)

#: Weight of the latest forward in the estimate of the rate.
_FRESH = 0.2


class Busy(RuntimeError):
    """The queue takes no more.

    Args:
        message (`str`): for the client.
        retry_after (`int`): seconds after which there may be room.
        alone (`bool`): whether it is this client's share that is used up, and not the whole queue.
    """

    def __init__(self, message: str, retry_after: int, alone: bool) -> None:
        super().__init__(message)
        self.retry_after, self.alone = retry_after, alone


class ScoringQueue:
    """Scores sequences of ids for many threads, one batch after the other.

    Args:
        score (`Callable`): sequences (`list[list[int]]`, N) to rewards `(N, K)`; only ever called by one thread.
        max_batch (`int`): sequences that are scored together at most, unless one request has more.
        max_waiting (`int`): sequences that may wait, of all clients together; one client may hold half of it.
        clock (`Callable`, *optional*): seconds.

    Example:

    >>> queue = ScoringQueue(lambda rows: torch.tensor([[float(len(row))] for row in rows]))
    >>> queue.submit([[5], [6, 7]]).result()
    tensor([[1.],
            [2.]])
    >>> queue.close()
    """

    def __init__(
        self,
        score: Callable[[list[list[int]]], torch.Tensor],
        max_batch: int = 256,
        max_waiting: int = 16_384,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.score, self.max_batch, self.max_waiting, self.clock = score, max_batch, max_waiting, clock
        self._waiting: deque[tuple[list[list[int]], str, Future]] = deque()
        self._rows: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closed = False
        self._rate: float | None = None
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._thread.start()

    def submit(self, sequences: Sequence[Sequence[int]], client: str = "") -> Future:
        """Queue sequences; a future of their rewards `(N, K)`, on the CPU. Cancel it where nobody waits any more.

        Args:
            sequences (`Sequence[Sequence[int]]`): ids without padding.
            client (`str`): whose share of the queue they count for.

        Raises:
            Busy: there is no room; nothing was queued.
            RuntimeError: the queue is closed.
        """
        rows = [list(ids) for ids in sequences]
        with self._changed:
            if self._closed:
                raise RuntimeError("The scoring thread has ended.")
            waiting = self.waiting
            # What does not fit an empty queue at all is let in alone: the server has refused what is too large.
            if waiting and waiting + len(rows) > self.max_waiting:
                raise Busy(f"{waiting} replies are waiting, the most is {self.max_waiting}.", self._seconds(), False)
            own, share = self._rows[client], max(self.max_waiting // 2, 1)
            if own and own + len(rows) > share:
                raise Busy(f"{own} replies of this client are waiting, its share is {share}.", self._seconds(), True)
            future: Future = Future()
            self._waiting.append((rows, client, future))
            self._rows[client] += len(rows)
            self._changed.notify()
        return future

    @property
    def waiting(self) -> int:
        """Sequences that wait or are being scored."""
        return self._rows.total()

    @property
    def alive(self) -> bool:
        """Whether the scoring thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread; what waits fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _seconds(self) -> int:
        return max(1, round(self.waiting / self._rate)) if self._rate else 1

    def _take(self) -> list[tuple[list[list[int]], str, Future]]:
        """The next requests, in order, until a batch is full; waits for the first."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            taken, count = [], 0
            while self._waiting and (not taken or count + len(self._waiting[0][0]) <= self.max_batch):
                entry = self._waiting.popleft()
                if self._closed:
                    entry[2].set_exception(RuntimeError("The server is shutting down."))
                elif entry[2].set_running_or_notify_cancel():
                    taken.append(entry)
                    count += len(entry[0])
                    continue
                self._done(entry)
            return taken

    def _done(self, entry: tuple[list[list[int]], str, Future]) -> None:
        rows, client, _ = entry
        self._rows[client] -= len(rows)
        if self._rows[client] <= 0:
            del self._rows[client]

    def _run(self) -> None:
        while not self._closed or self._waiting:
            if taken := self._take():
                start = self.clock()
                self._answer(taken)
                seconds = max(self.clock() - start, 1e-6)
                rate = sum(len(rows) for rows, _, _ in taken) / seconds
                self._rate = rate if self._rate is None else self._rate + _FRESH * (rate - self._rate)
                with self._changed:
                    for entry in taken:
                        self._done(entry)

    def _answer(self, taken: list[tuple[list[list[int]], str, Future]]) -> None:
        try:
            rewards = self.score([row for rows, _, _ in taken for row in rows]).cpu()
        except Exception as error:
            if len(taken) == 1:
                logger.exception("scoring failed")
                taken[0][2].set_exception(error)
                return
            # Whoever sent what cannot be scored is answered alone.
            for entry in taken:
                self._answer([entry])
            return
        start = 0
        for rows, _, future in taken:
            future.set_result(rewards[start : start + len(rows)])
            start += len(rows)
