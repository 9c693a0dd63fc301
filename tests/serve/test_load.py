# SPDX-License-Identifier: Apache-2.0
"""The benchmark of docs/serve.md in small: many clients, bad and slow ones, a kill and a restart, no wrong answer."""

import pytest

from benchmarks.serve_load import main


@pytest.mark.slow
def test_nothing_is_answered_wrongly(tmp_path):
    small = ["--clients", "8", "--requests", "40", "--pool", "32", "--layers", "1", "--width", "64"]
    found = main([*small, "--speed_requests", "4", "--output", str(tmp_path / "found.json")])
    assert found["wrong_answers"] == 0
    assert found["speed"]["answers"] == {"right": 4} and found["speed"]["ratio_processor"] > 0
    trouble = found["trouble"]
    assert trouble["outcomes"]["right"] == 36 and trouble["outcomes"]["refused"] == 4
    assert trouble["outcomes"]["kills"] == 1 and trouble["healthy_afterwards"]
