# SPDX-License-Identifier: Apache-2.0
"""What a visitor may ask for: refusals are sentences for the page, not errors."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Refused(ValueError):
    """A request that the page turns down, with a sentence for the visitor."""


class RateLimit:
    """At most so many requests a minute from each session; memory is bounded.

    Args:
        per_minute (`int`): requests that a session may make at once, and that it gets back within a minute.
        clock (`Callable`, *optional*): seconds.
        sessions (`int`, *optional*): how many sessions are remembered; the longest silent ones are forgotten.

    Example:

    >>> limit = RateLimit(1, clock=lambda: 0.0)
    >>> limit.check("a"), limit.check("b")
    (None, None)
    >>> limit.check("a")
    Traceback (most recent call last):
        ...
    trl_maxmin.space.limits.Refused: You have asked often in a short time. Please try again in 60 s.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic, sessions: int = 10_000) -> None:
        self.per_minute = per_minute
        self.clock = clock
        self.sessions = sessions
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, session: str) -> None:
        """Count one request.

        Raises:
            Refused: the session has none left.
        """
        with self._lock:
            now = self.clock()
            left, since = self._left.pop(session, (float(self.per_minute), now))
            left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
            allowed = left >= 1
            self._left[session] = (left - 1 if allowed else left, now)
            while len(self._left) > self.sessions:
                self._left.popitem(last=False)
        if not allowed:
            wait = math.ceil((1 - left) * 60 / self.per_minute)
            raise Refused(f"You have asked often in a short time. Please try again in {wait} s.")

    def __len__(self) -> int:
        return len(self._left)


def check_request(prompt: str, settings: Any, characters: int, tokens: int) -> None:
    """Check what the visitor asked and set: `temperature`, `length` and `seed`, of whatever type they came as.

    Raises:
        Refused: a prompt that is empty, overlong or no text, or settings outside their range.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise Refused("Please write a prompt, or pick one.")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise Refused("This prompt holds a part of a character that is no text. Please type it again.")
    if len(prompt) > characters:
        raise Refused(f"This prompt has {len(prompt):,} characters; please shorten it to {characters:,}.")
    for name, least, most in (("temperature", 0, 2), ("length", 1, tokens), ("seed", 0, 2**31 - 1)):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise Refused(f"The {name} must be a number from {least} to {most}.")
