# SPDX-License-Identifier: Apache-2.0
import pytest

from trl_maxmin.space.limits import RateLimit, Refused


def test_requests_come_back_with_time_and_sessions_do_not_share_them():
    now = [0.0]
    limit = RateLimit(2, clock=lambda: now[0])
    limit.check("a"), limit.check("a"), limit.check("b")
    with pytest.raises(Refused, match="try again in 30 s"):
        limit.check("a")
    now[0] = 30.0
    limit.check("a")


def test_silent_sessions_are_forgotten():
    limit = RateLimit(1, clock=lambda: 0.0, sessions=3)
    for session in "abcdef":
        limit.check(session)
    assert len(limit) == 3
