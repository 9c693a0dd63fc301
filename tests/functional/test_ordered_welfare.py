# SPDX-License-Identifier: Apache-2.0
"""Gini, leximin, power mean and regret, against linear programs, closed forms and orders worked by brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from trl_maxmin.functional import (
    gini_weights,
    leximin_weights,
    maxmin_weights,
    minus_regret,
    mirror_weights,
    nash_weights,
    pmean_weights,
    utilitarian_weights,
    welfare_weights,
)


NAN, INF = float("nan"), float("inf")
UTILITIES = torch.tensor([0.4, -0.3, 0.9, -0.1], dtype=torch.float64)


def smallest_by_lp(utilities, order_weights):
    """The weights, majorised by the order weights, under which the utilities are smallest: what Gini welfare is."""
    size = len(utilities)
    subsets = [s for n in range(1, size) for s in itertools.combinations(range(size), n)]
    places = np.array(order_weights) / np.sum(order_weights)
    solved = linprog(
        utilities,
        A_ub=[[float(k in s) for k in range(size)] for s in subsets],
        b_ub=[places[: len(s)].sum() for s in subsets],
        A_eq=[[1.0] * size],
        b_eq=[1.0],
        bounds=[(0, 1)] * size,
    )
    return solved.x, solved.fun


@pytest.mark.parametrize("seed", range(5))
def test_gini_weights_are_those_of_the_linear_program(seed):
    generator = np.random.default_rng(seed)
    utilities, places = generator.normal(size=4), np.sort(generator.random(4))[::-1].copy()
    weights, value = smallest_by_lp(utilities, places)
    found = gini_weights(torch.tensor(utilities), places.tolist()).numpy()
    np.testing.assert_allclose(found, weights, atol=1e-9)
    assert found @ utilities == pytest.approx(value)


def test_gini_welfare_is_the_mean_less_half_the_mean_difference():
    difference = (UTILITIES[:, None] - UTILITIES[None]).abs().mean()
    expected = UTILITIES.mean() - difference / 2
    torch.testing.assert_close(gini_weights(UTILITIES) @ UTILITIES, expected)


def test_gini_between_utilitarian_and_maxmin_and_with_ties():
    torch.testing.assert_close(gini_weights(UTILITIES, [1, 1, 1, 1]), utilitarian_weights(UTILITIES))
    torch.testing.assert_close(gini_weights(UTILITIES, [1, 0, 0, 0]), maxmin_weights(UTILITIES))
    tied = gini_weights(torch.tensor([1.0, 0.0, 1.0, 0.0]), [4, 3, 2, 1])
    torch.testing.assert_close(tied, torch.tensor([0.15, 0.35, 0.15, 0.35]))


def test_unscored_components_leave_the_first_places_to_the_others():
    utilities = torch.tensor([0.4, NAN, 0.1])
    torch.testing.assert_close(gini_weights(utilities, [2, 1, 1]), torch.tensor([1 / 3, 0.0, 2 / 3]))
    torch.testing.assert_close(gini_weights(utilities), torch.tensor([0.25, 0.0, 0.75]))
    torch.testing.assert_close(leximin_weights(utilities, 0.25), torch.tensor([0.2, 0.0, 0.8]))
    torch.testing.assert_close(pmean_weights(utilities, 0.0), torch.tensor([0.2, 0.0, 0.8]))
    regretted = welfare_weights("regret", utilities, best=torch.tensor([0.5, 0.0, 0.1]))
    assert regretted.tolist() == [1.0, 0.0, 0.0]


def test_leximin_weights_order_utilities_as_leximin_does():
    delta = 0.2
    values = [delta * step for step in range(6)]  # 0 to 1

    def welfare(utilities):
        utilities = torch.tensor(utilities, dtype=torch.float64)
        return (leximin_weights(utilities, delta) @ utilities).item()

    sorted_utilities = list(itertools.combinations_with_replacement(values, 3))  # each in ascending order
    by_welfare = sorted(sorted_utilities, key=welfare)
    assert by_welfare == sorted(sorted_utilities)
    # The mean and the minimum order them otherwise.
    assert sorted(sorted_utilities, key=sum) != sorted(sorted_utilities)
    assert len({min(u) for u in sorted_utilities}) < len(sorted_utilities)


#: Rows are the policy's replies. Nothing serves the first group, so that the minimum leaves all policies alike.
STUCK = np.array([[0.1, 0.9, 0.0], [0.1, 0.0, 0.8], [0.1, 0.2, 0.2]])


def leximin_by_lps(game):
    """Utilities of the leximin policy by one linear program a level: the largest minimum, then that of the others."""
    actions, groups = game.shape
    fixed = {}
    while len(fixed) < groups:
        free = [k for k in range(groups) if k not in fixed]
        rows = [[*(-game[:, k]), 1.0] for k in free] + [[*(-game[:, k]), 0.0] for k in fixed]
        bounds = [0.0] * len(free) + [1e-9 - value for value in fixed.values()]
        solved = linprog(
            [0.0] * actions + [-1.0],
            rows,
            bounds,
            [[1.0] * actions + [0.0]],
            [1.0],
            [(0, 1)] * actions + [(None,) * 2],
        )
        level = -solved.fun
        for k in free:  # who cannot have more than the level
            cost = [*(-game[:, k]), 0.0]
            most = linprog(
                cost,
                rows,
                [-level + 1e-9 if i < len(free) else b for i, b in enumerate(bounds)],
                [[1.0] * actions + [0.0]],
                [1.0],
                [(0, 1)] * actions + [(0, 0)],
            )
            if -most.fun < level + 1e-6:
                fixed[k] = level
    return np.array([fixed[k] for k in range(groups)])


def gini_policy_by_lp(game, places):
    """Utilities of the policy with the largest `sum_j places[j] U_(j)`, for places that do not increase."""
    actions, groups = game.shape
    # sum_j (a_j - a_{j+1}) L_j, where L_j = max_t j t - sum_k d_jk with d_jk >= t - U_k is the sum of the j smallest.
    size = actions + groups + groups * groups
    cost, rows = np.zeros(size), []
    for j in range(groups):
        fall = places[j] - (places[j + 1] if j + 1 < groups else 0.0)
        cost[actions + j] = -fall * (j + 1)
        for k in range(groups):
            slack = actions + groups + j * groups + k
            cost[slack] = fall
            row = np.zeros(size)
            row[:actions], row[actions + j], row[slack] = -game[:, k], 1.0, -1.0
            rows.append(row)
    total = np.r_[np.ones(actions), np.zeros(size - actions)]
    bounds = [(0, 1)] * actions + [(None, None)] * groups + [(0, None)] * groups**2
    solved = linprog(cost, rows, np.zeros(len(rows)), [total], [1.0], bounds)
    return solved.x[:actions] @ game


def test_leximin_serves_the_next_where_the_worst_off_cannot_be_helped():
    expected = leximin_by_lps(STUCK)
    assert expected == pytest.approx([0.1, 0.9 * 0.8 / 1.7, 0.9 * 0.8 / 1.7], abs=1e-6), "one reply in turn"
    places = leximin_weights(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), 0.05).numpy()
    assert gini_policy_by_lp(STUCK, places) == pytest.approx(expected, abs=1e-6)


def play(game, weigh, steps=4000):
    """Mean utilities of the policy that always gives its best reply to the weights so far."""
    weights = torch.full((game.shape[1],), 1 / game.shape[1], dtype=torch.float64)
    seen = []
    for _ in range(steps):
        seen.append(game[int((torch.tensor(game) @ weights).argmax())])
        weights = weigh(torch.tensor(seen[-1]), weights)
    return np.mean(seen, axis=0)


def test_regret_and_maxmin_differ_where_one_group_is_hard_to_please():
    # The second group never has more than 0.3; its own best and that of the first exclude each other.
    game = np.array([[1.0, 0.0], [0.0, 0.3]])
    best = torch.tensor(game.max(axis=0))

    def value(target):
        """Largest v with `p @ game + target >= v`."""
        solved = linprog(
            [0, 0, -1], np.c_[-game.T, np.ones(2)], target, [[1, 1, 0]], [1], [(0, 1)] * 2 + [(None,) * 2]
        )
        return -solved.fun, solved.x[:2] @ game

    smallest, at_maxmin = value(np.zeros(2))
    regret, at_regret = value(-best.numpy())
    # By hand: 1 p = 0.3 (1 - p) and 1 - p = 0.3 p.
    assert at_maxmin == pytest.approx([0.3 / 1.3, 0.3 / 1.3]) and smallest == pytest.approx(0.3 / 1.3)
    assert at_regret == pytest.approx([1 / 1.3, 0.3 * 0.3 / 1.3]) and regret == pytest.approx(-0.3 / 1.3)
    assert welfare_weights("maxmin", torch.tensor(at_regret)).tolist() == [0.0, 1.0]
    assert welfare_weights("regret", torch.tensor(at_maxmin), best=best).tolist() == [1.0, 0.0]

    mirror = play(game, lambda u, w: mirror_weights(u, w, 0.02))
    options = {"best": best, "regret_rule": "mirror", "eta": 0.02}
    regretting = play(game, lambda u, w: welfare_weights("regret", u, previous=w, **options))
    assert mirror == pytest.approx(at_maxmin, abs=0.03)
    assert regretting == pytest.approx(at_regret, abs=0.03)


def test_regret_ignores_where_the_zero_of_a_group_is_and_maxmin_does_not():
    shift = torch.tensor([0.0, 5.0, 0.0, 0.0], dtype=torch.float64)
    best = torch.tensor([1.0, 0.2, 1.1, 2.0], dtype=torch.float64)
    for rule in ("maxmin", "softmin", "mirror", "gini", "leximin"):
        own, moved = (
            welfare_weights("regret", UTILITIES + s, best=best + s, regret_rule=rule) for s in (torch.zeros(4), shift)
        )
        torch.testing.assert_close(own, moved, msg=rule)
    assert maxmin_weights(UTILITIES + shift).tolist() != maxmin_weights(UTILITIES).tolist()


@pytest.mark.parametrize("power", [-4.0, -1.0, 0.5])
def test_pmean_weights_are_the_gradient_of_the_power_mean(power):
    gains = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64, requires_grad=True)
    (gains**power).mean().pow(1 / power).backward()
    torch.testing.assert_close(pmean_weights(gains.detach(), power), gains.grad / gains.grad.sum())


def test_pmean_by_hand_and_its_neighbours():
    utilities, point = torch.tensor([2.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 0.0])
    # Gains 1, 2, 4 to the power of -2: 16 : 4 : 1.
    torch.testing.assert_close(pmean_weights(utilities, -1.0, point), torch.tensor([16.0, 4.0, 1.0]) / 21)
    torch.testing.assert_close(pmean_weights(utilities, 0.0, point), nash_weights(utilities, point))
    torch.testing.assert_close(pmean_weights(utilities, 1.0, point), torch.full((3,), 1 / 3))
    torch.testing.assert_close(pmean_weights(utilities, -1e4, point), torch.tensor([1.0, 0.0, 0.0]))
    below = pmean_weights(torch.tensor([-5.0, 1.0]), 0.0, eps=0.01)
    torch.testing.assert_close(below, torch.tensor([100.0, 1.0]) / 101)


@pytest.mark.parametrize(
    ("name", "welfare"),
    [
        ("gini", lambda u: gini_weights(u) @ u),
        ("leximin", lambda u: leximin_weights(u, 0.1) @ u),
        ("pmean", lambda u: (1 / u).mean().pow(-1)),
    ],
)
def test_a_transfer_to_the_worse_off_raises_welfare(name, welfare):
    """The Pigou-Dalton principle; and more for everybody is better."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        utilities = torch.rand(4, generator=generator, dtype=torch.float64).sort().values + 0.5
        moved = utilities.clone()
        step = (utilities[2] - utilities[1]) / 4
        moved[1], moved[2] = moved[1] + step, moved[2] - step
        assert welfare(moved) > welfare(utilities)
        assert welfare(utilities + 0.1) > welfare(utilities)
        torch.testing.assert_close(welfare(utilities[torch.tensor([2, 0, 3, 1])]), welfare(utilities), msg=name)


TWO = torch.tensor([0.1, 0.2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gini_weights(TWO, [1, 1, 1]), r"`order_weights` is \[1, 1, 1\], but needs 2 numbers"),
        (lambda: gini_weights(TWO, [1, 2]), "none above the one before it"),
        (lambda: gini_weights(TWO, [1, -1]), "none negative"),
        (lambda: gini_weights(TWO, [0, 0]), "the first positive"),
        (lambda: gini_weights(TWO, [INF, 1]), "needs 2 numbers"),
        (lambda: gini_weights(torch.tensor([NAN])), "nothing was scored"),
        (lambda: gini_weights(torch.tensor([INF, 0.0])), "must be finite or NaN"),
        (lambda: gini_weights(torch.zeros(2, 2)), "`utilities` has shape"),
        (lambda: leximin_weights(TWO, 0.0), r"`delta` is 0.0, but must be in \(0, 1\]"),
        (lambda: leximin_weights(TWO, 1.5), "`delta` is 1.5"),
        (lambda: leximin_weights(torch.tensor([NAN]), 0.1), "nothing was scored"),
        (lambda: pmean_weights(TWO, 1.5), "`power` is 1.5, but must be finite and at most 1"),
        (lambda: pmean_weights(TWO, -INF), "`power` is -inf"),
        (lambda: pmean_weights(TWO, NAN), "`power` is nan"),
        (lambda: pmean_weights(TWO, -1.0, torch.zeros(3)), "`disagreement` has shape"),
        (lambda: pmean_weights(TWO, -1.0, torch.tensor([NAN, 0.0])), "`disagreement` is"),
        (lambda: pmean_weights(TWO, -1.0, eps=0.0), "`eps` is 0.0"),
        (lambda: minus_regret(TWO, torch.zeros(3)), "`best` has shape"),
        (lambda: minus_regret(TWO, torch.tensor([NAN, 0.0])), "`best` is"),
        (lambda: welfare_weights("regret", TWO), "needs `best`"),
        (lambda: welfare_weights("regret", TWO, best=TWO, regret_rule="nash"), "`regret_rule` is 'nash'"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_leximin_places_sum_to_one_and_one_component_takes_all():
    for size in range(1, 6):
        utilities = torch.arange(size, dtype=torch.float64)
        weights = leximin_weights(utilities, 0.3)
        assert math.isclose(weights.sum().item(), 1.0) and (weights.diff() <= 0).all()
    assert leximin_weights(torch.tensor([3.0]), 0.3).tolist() == [1.0] == gini_weights(torch.tensor([3.0])).tolist()
