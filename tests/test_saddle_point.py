# SPDX-License-Identifier: Apache-2.0
"""The planted game of benchmarks/saddle_point.py: three groups, a known saddle point, the real trainers."""

import runpy
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def game():
    return runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "saddle_point.py"))


def test_the_value_is_that_of_the_policy_that_makes_all_equal(game):
    # With heights 1, 0.8, 0.5 the groups are equal at shares 4 : 5 : 8, and each gets 4 / 17.
    assert game["max_min_value"](game["GAME"]) == pytest.approx(4 / 17)
    policy = np.zeros(len(game["WORDS"]))
    for word, share in (("first", 4), ("second", 5), ("third", 8)):
        policy[game["WORDS"].index(word)] = share / 17
    assert policy @ game["GAME"] == pytest.approx([4 / 17] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [pytest.param("rloo", marks=pytest.mark.exhaustive), "grpo"])
def test_the_averaged_policy_of_mirror_reaches_the_max_min_value(game, tmp_path, trainer):
    value = game["max_min_value"](game["GAME"])
    policies = game["play"](trainer, tmp_path, 600, 0.02, 0, 0.3, **game["RULES"]["mirror"])
    result = game["summary"](policies, value)
    assert result["averaged"] >= 0.98
    assert result["last"] >= 0.90
