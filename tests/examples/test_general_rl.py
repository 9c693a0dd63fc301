# SPDX-License-Identifier: Apache-2.0
"""The gridworld's exact optima against brute force, and training in small where the example's packages are there."""

import itertools
import json
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
    for name in ("gridworld", "train_general_rl"):
        sys.modules.pop(name, None)


@pytest.fixture
def returns(gridworld):
    """What the groups get from every sequence of moves (4^7), played in the environment itself."""
    environment, found = gridworld.TwoGroupGrid(), set()
    for actions in itertools.product(range(4), repeat=gridworld.HORIZON):
        environment.reset()
        steps = [environment.step(action) for action in actions]
        assert [step[2] for step in steps] == [False] * (gridworld.HORIZON - 1) + [True]
        found.add(tuple(np.round(sum(step[4]["vector_reward"] for step in steps), 9)))
    return np.array(sorted(found))


def test_dynamic_programming_is_brute_force(gridworld, returns):
    from scipy.optimize import linprog

    for weights in (np.array([4.0, 1.0]), np.array([0.5, 0.5]), np.array([0.4, 0.6]), np.array([0.1, 0.9])):
        value, groups = gridworld.best_weighted_return(weights)
        assert value == pytest.approx((returns @ weights).max()) == groups @ weights
    # The best mixture of plays for the worst-off group, by linear programming over them: maximise t with t <= p . V_k.
    plays = len(returns)
    best = linprog(
        np.r_[np.zeros(plays), -1.0],
        A_ub=np.c_[-returns.T, np.ones(2)],
        b_ub=np.zeros(2),
        A_eq=[np.r_[np.ones(plays), 0.0]],
        b_eq=[1.0],
    )
    assert gridworld.best_worst_group_return() == pytest.approx(-best.fun, abs=1e-4) == 2 / 3


def test_the_trade_off_is_real(gridworld, returns):
    assert gridworld.best_weighted_return(gridworld.USERS)[1] == pytest.approx([1.5, 0.0]), "the sum over users"
    assert gridworld.best_weighted_return(np.ones(2))[1] == pytest.approx([1.5, 0.0]), "the mean of the groups"
    # A coin between serving the one group and serving the other: min(1.5 p, 1 - p) is largest at p = 0.4.
    assert returns[:, 1].max() == pytest.approx(1.0) and 0.6 < 0.95 * 2 / 3


def test_the_fruit_trees_optimum_takes_chance(gridworld):
    pytest.importorskip("mo_gymnasium", reason="pip install -r examples/general_rl/requirements.txt")
    pytest.importorskip("stable_baselines3", reason="pip install -r examples/general_rl/requirements.txt")
    import train_general_rl

    table = train_general_rl.fruit_tree_returns()
    assert table.shape == (64, 6) and table.min(axis=1).max() == pytest.approx(0.222, abs=1e-3)
    # Independent of the linear program: the weights that hurt most, by multiplicative weights against best responses.
    weights, total, played = np.ones(6) / 6, np.zeros(6), np.zeros(64)
    for _ in range(20_000):
        best = (table @ weights).argmax()
        played[best] += 1
        weights = weights * np.exp(-0.02 * table[best])
        weights, total = weights / weights.sum(), total + weights / weights.sum()
    low, high = (played @ table / played.sum()).min(), (table @ (total / total.sum())).max()
    assert low <= train_general_rl.fruit_tree_optimum() + 1e-9 <= high + 2e-9 and high - low < 0.01


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
    assert (tmp_path / "gridworld.png").stat().st_size > 5000
    report = json.loads((tmp_path / "gridworld.json").read_text())
    assert [run["rule"] for run in report["runs"]] == ["sum", "mirror"]
    for run in report["runs"]:
        assert run["worst"] == {name: min(groups.values()) for name, groups in run["returns"].items()}


@pytest.mark.slow
def test_max_min_reaches_the_optimum_and_the_sum_does_not(gridworld):
    pytest.importorskip("stable_baselines3", reason="pip install -r examples/general_rl/requirements.txt")
    import train_general_rl

    optimum = gridworld.best_worst_group_return()
    found = train_general_rl.train("gridworld", "mirror", seed=5)
    assert found["worst"]["last"] >= 0.95 * optimum and max(found["worst"].values()) < 1.02 * optimum
    assert train_general_rl.train("gridworld", "sum", seed=5)["worst"]["last"] < 0.1 * optimum


def test_the_readmes_numbers_are_those_of_the_results(gridworld):
    """Every share in the README's tables is computed anew from the runs in `results/`."""
    text = (FOLDER / "README.md").read_text()
    seconds = [run["cpu_seconds"] for run in json.loads((FOLDER / "results" / "gridworld.json").read_text())["runs"]]
    assert f"A run takes {min(seconds)} to {max(seconds)} seconds" in text
    for path in sorted((FOLDER / "results").glob("*.json")):
        report = json.loads(path.read_text())
        for rule, name in itertools.product(dict.fromkeys(run["rule"] for run in report["runs"]), ("last", "average")):
            worst = [min(run["returns"][name].values()) for run in report["runs"] if run["rule"] == rule]
            share, lowest = np.mean(worst) / report["optimum"], min(worst)
            row = f"| `{rule}` | {name} | {np.mean(worst):.3f} ({share:.1%}) | {lowest:.3f} "
            assert row in text, (path.name, row)
