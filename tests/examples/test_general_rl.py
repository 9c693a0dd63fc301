# SPDX-License-Identifier: Apache-2.0
"""The gridworld's exact optima against brute force, and training in small where the example's packages are there."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest


FOLDER = Path(__file__).parents[2] / "examples" / "general_rl"
pytest.importorskip("gymnasium", reason="pip install -r examples/general_rl/requirements.txt")


@pytest.fixture
def gridworld(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gridworld

    yield gridworld
    sys.modules.pop("gridworld")


def test_dynamic_programming_is_brute_force_on_a_short_horizon(gridworld, monkeypatch):
    monkeypatch.setattr(gridworld, "HORIZON", 6)
    returns = []
    for actions in itertools.product(range(4), repeat=6):
        cell, collected, total = gridworld.START, 0, np.zeros(2)
        for action in actions:
            cell, collected, reward = gridworld.move(cell, collected, action)
            total = total + reward
        returns.append(total)
    for weights in (np.array([4.0, 1.0]), np.array([0.5, 0.5]), np.array([0.1, 0.9])):
        value, groups = gridworld.best_weighted_return(weights)
        assert value == pytest.approx((np.array(returns) @ weights).max()) == groups @ weights
    # By duality the optimum over mixtures of policies: no mixture of two paths gives the worst group more.
    best = gridworld.best_worst_group_return()
    pairs = {tuple(np.round(r, 6)) for r in returns}
    mixtures = (p * np.array(a) + (1 - p) * np.array(b) for a in pairs for b in pairs for p in np.linspace(0, 1, 41))
    assert best == pytest.approx(max(mixture.min() for mixture in mixtures), abs=0.01)


def test_the_sum_over_users_leaves_the_minority_with_nothing(gridworld):
    assert gridworld.best_weighted_return(gridworld.USERS)[1] == pytest.approx([1.0, 0.0])
    assert gridworld.best_worst_group_return() == pytest.approx(2 / 3, abs=1e-6)


def test_the_environment_follows_gymnasiums_contract(gridworld):
    from gymnasium.utils.env_checker import check_env

    check_env(gridworld.TwoGroupGrid(), skip_render_check=True)


@pytest.mark.slow
def test_training_in_small(gridworld, monkeypatch, tmp_path):
    pytest.importorskip("stable_baselines3", reason="pip install -r examples/general_rl/requirements.txt")
    import train_general_rl

    argv = ["x", "--seeds", "1", "--steps", "2048", "--output_dir", str(tmp_path), "--welfare", "sum", "mirror"]
    monkeypatch.setattr(sys, "argv", argv)
    train_general_rl.main()
    assert (tmp_path / "gridworld.png").stat().st_size > 5000 and (tmp_path / "gridworld.json").is_file()
    sys.modules.pop("train_general_rl")
