# SPDX-License-Identifier: Apache-2.0
"""Best-of-n against linear programs of scipy and against all choices that there are."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from trl_maxmin.functional.best_of import best_of_kl, best_of_n, choose_replies


NAN = float("nan")


def replies(prompts, count, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(groups, generator=generator, dtype=torch.float64)
    return torch.randn(prompts, count, groups, generator=generator, dtype=torch.float64) + offset


def program(utilities, floor=0.0):
    """Best worst utility with lots, weights with a floor: max t + floor * sum(U - t) s.t. U_k >= t."""
    prompts, count, groups = utilities.shape
    flat = utilities.reshape(prompts * count, groups).numpy() / prompts
    objective = np.append(-floor * flat.sum(axis=1), -(1 - groups * floor))
    one_each = np.kron(np.eye(prompts), np.append(np.ones(count), [])[None])
    return -linprog(
        objective,
        A_ub=np.hstack([-flat.T, np.ones((groups, 1))]),
        b_ub=np.zeros(groups),
        A_eq=np.hstack([one_each, np.zeros((prompts, 1))]),
        b_eq=np.ones(prompts),
        bounds=[(0, None)] * (prompts * count) + [(None, None)],
    ).fun


@pytest.mark.parametrize(("prompts", "count", "groups"), [(1, 3, 2), (6, 4, 3), (25, 8, 5), (120, 16, 8), (40, 5, 1)])
def test_the_bound_is_the_linear_programs(prompts, count, groups):
    utilities = replies(prompts, count, groups)
    found = best_of_n(utilities)
    assert found.bound == pytest.approx(program(utilities), abs=1e-9)
    # Strong duality: the weights certify it.
    assert (utilities @ found.weights).amax(dim=1).mean().item() == pytest.approx(found.bound, abs=1e-9)
    assert found.weights.sum().item() == pytest.approx(1.0) and (found.weights >= 0).all()
    best = (utilities @ found.weights).amax(dim=1)
    chosen = utilities[torch.arange(prompts), found.choice]
    torch.testing.assert_close(chosen @ found.weights, best, rtol=0, atol=1e-7)
    torch.testing.assert_close(chosen.mean(dim=0), found.utilities)
    # About K - 1 prompts stand between two replies; the rest is the program's own choice.
    span = (utilities.amax() - utilities.amin()).item()
    assert found.bound - found.utilities.min().item() <= (groups - 1) * span / prompts + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_no_choice_at_all_is_better_than_the_bound(seed):
    utilities = replies(4, 4, 3, seed)
    worst = max(
        utilities[torch.arange(4), torch.tensor(choice)].mean(dim=0).min().item()
        for choice in itertools.product(range(4), repeat=4)
    )
    found = best_of_n(utilities)
    assert worst <= found.bound + 1e-9 and found.utilities.min().item() <= worst + 1e-9


def test_a_floor_is_that_of_the_linear_program():
    utilities = replies(30, 6, 4)
    found = best_of_n(utilities, floor=0.1)
    assert (found.weights >= 0.1 - 1e-12).all() and found.bound is None
    value = (utilities @ found.weights).amax(dim=1).mean().item()
    assert value == pytest.approx(program(utilities, floor=0.1), abs=1e-9)


def test_two_prompts_serve_two_groups_where_a_minimum_per_reply_pleases_nobody():
    either = torch.tensor([[3.0, -1.0], [-1.0, 3.0], [0.5, 0.5]]).repeat(2, 1, 1)
    found, each = best_of_n(either), best_of_n(either, "sample_min")
    assert found.utilities.tolist() == [1.0, 1.0] and sorted(found.choice.tolist()) == [0, 1]
    assert each.choice.tolist() == [2, 2] and each.utilities.tolist() == [0.5, 0.5]
    assert each.weights is None and each.bound is None


def test_mean_and_custom_weights_take_the_reply_they_rank_first():
    utilities = replies(20, 5, 3)
    by_mean = utilities.mean(dim=2).argmax(dim=1)
    assert torch.equal(best_of_n(utilities, "utilitarian").choice, by_mean)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expected = (utilities * weights).sum(dim=2).argmax(dim=1)
    assert torch.equal(best_of_n(utilities, "mixing", mixing_weights=weights).choice, expected)
    assert torch.equal(best_of_n(utilities, lambda group: weights).choice, expected)
    assert torch.equal(choose_replies(utilities, weights), expected)


def test_softmin_reaches_its_own_optimum():
    utilities = replies(200, 6, 3)
    tau = 0.5

    def welfare(group):
        return -tau * torch.logsumexp(-group / tau, dim=0)

    # An oracle of its own: gradient ascent on softmax lots.
    logits = torch.zeros(200, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        (-welfare((logits.softmax(dim=1).unsqueeze(2) * utilities).sum(dim=1).mean(dim=0))).backward()
        optimizer.step()
    best = welfare((logits.softmax(dim=1).unsqueeze(2) * utilities).sum(dim=1).mean(dim=0)).item()
    found = best_of_n(utilities, "softmin", tau=tau)
    assert welfare(found.utilities).item() == pytest.approx(best, abs=0.02)
    assert welfare(best_of_n(utilities, "utilitarian").utilities).item() < best - 0.02, "the case tells them apart"


def test_a_small_temperature_comes_to_maxmin():
    utilities = replies(300, 8, 4)
    found, soft = best_of_n(utilities), best_of_n(utilities, "softmin", tau=0.01)
    assert soft.utilities.min().item() == pytest.approx(found.bound, abs=0.08)
    assert best_of_n(utilities, "utilitarian").utilities.min().item() < found.bound - 0.2


def test_regret_asks_what_each_group_could_have_had():
    # The first group cannot have more than 1 by any reply, the second 5: max-min favours the first alone.
    utilities = torch.tensor([[[1.0, 0.0], [0.0, 5.0]]], dtype=torch.float64).repeat(10, 1, 1)
    maxmin, regret = best_of_n(utilities), best_of_n(utilities, "regret")
    # Lots q on the first reply: min(q, 5 (1 - q)) is best at q = 5/6; regrets 1 - q and 5 q are equal at q = 1/6.
    assert maxmin.bound == pytest.approx(5 / 6) and regret.bound == pytest.approx(-5 / 6)
    # In tenths: 8 leave (0.8, 1), and 9 (0.9, 0.5); one leaves regrets of 0.9 and 0.5, and two 0.8 and 1.
    assert maxmin.choice.eq(0).sum() == 8 and regret.choice.eq(0).sum() == 1


def test_regret_against_what_is_given_and_by_another_rule():
    utilities, best = replies(40, 5, 3), torch.tensor([2.0, 0.5, 1.0])
    found = best_of_n(utilities, "regret", best=best)
    assert found.bound == pytest.approx(program(utilities - best), abs=1e-9)
    torch.testing.assert_close(found.utilities, utilities[torch.arange(40), found.choice].mean(dim=0))
    mean = best_of_n(utilities, "regret", best=best, regret_rule="utilitarian")
    assert torch.equal(mean.choice, best_of_n(utilities, "utilitarian").choice), "a shift changes no mean"
    with pytest.raises(ValueError, match="`best` has shape"):
        best_of_n(utilities, "regret", best=best[:2])


def test_ties_go_to_the_first():
    utilities = torch.zeros(3, 4, 2)
    for rule in ("maxmin", "utilitarian", "sample_min", "softmin"):
        assert best_of_n(utilities, rule).choice.tolist() == [0, 0, 0]
    repeated = replies(5, 3, 2).repeat(1, 2, 1)
    assert (best_of_n(repeated).choice < 3).all() and (best_of_n(repeated, "utilitarian").choice < 3).all()


def test_masks_and_missing_scores():
    utilities = replies(6, 4, 3)
    best = best_of_n(utilities)
    wider = torch.cat([utilities, torch.full((6, 2, 3), 100.0, dtype=torch.float64)], dim=1)
    mask = torch.tensor([[True] * 4 + [False] * 2]).repeat(6, 1)
    found = best_of_n(wider, mask=mask)
    assert torch.equal(found.choice, best.choice) and found.kl == pytest.approx(best_of_kl(4))
    # What one component did not score cannot be chosen; a component that scored nothing plays no part.
    wider[:, 4:, 1] = NAN
    assert torch.equal(best_of_n(wider).choice, best.choice)
    more = torch.cat([utilities, torch.full((6, 4, 1), NAN, dtype=torch.float64)], dim=2)
    found = best_of_n(more)
    assert torch.equal(found.choice, best.choice) and found.weights[3] == 0 and found.utilities[3].isnan()
    # A group that may not count has no weight, whatever its utility.
    low = torch.cat([utilities, torch.full((6, 4, 1), -9.0, dtype=torch.float64)], dim=2)
    found = best_of_n(low, among=torch.tensor([True, True, True, False]))
    assert torch.equal(found.choice, best.choice) and found.weights[3] == 0
    found = best_of_n(low, "softmin", among=torch.tensor([True, True, True, False]))
    assert found.weights[3] == 0


def test_kl_by_hand_and_by_counting():
    assert best_of_kl(1) == 0.0 and best_of_kl(2) == pytest.approx(math.log(2) - 0.5)
    assert best_of_kl(16) == pytest.approx(2.7726 - 0.9375, abs=1e-4)
    # Many equally likely replies without ties: best-of-n takes the i-th worst with probability (i^n - (i-1)^n) / m^n.
    size, count = 20_000, 4
    places = np.arange(size + 1, dtype=np.float64) / size
    chances = np.diff(places**count)
    assert (chances * np.log(chances * size)).sum() == pytest.approx(best_of_kl(count), abs=1e-3)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    assert best_of_n(replies(2, 4, 2), mask=mask).kl == pytest.approx((best_of_kl(4) + best_of_kl(2)) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda u: best_of_n(u[0]), "`utilities` has shape"),
        (lambda u: best_of_n(u, mask=torch.ones(3, 3)), "`mask` has shape"),
        (lambda u: best_of_n(u, mask=torch.tensor([[True] * 4, [False] * 4, [True] * 4])), r"prompts \[1\] of 3"),
        (lambda u: best_of_n(u[:0]), "None of the 2 components counts"),
        (lambda u: best_of_n(u / 0.0), "infinite"),
        (lambda u: best_of_n(u * NAN), "None of the 2 components counts"),
        (lambda u: best_of_n(u, among=torch.tensor([False, False])), "None of the 2 components counts"),
        (lambda u: best_of_n(u, "nicest"), "Unknown welfare rule 'nicest'"),
        (lambda u: best_of_n(u, floor=0.6), "`floor` is 0.6"),
        (lambda u: choose_replies(u, torch.ones(3) / 3), "`weights` has shape"),
        (lambda u: best_of_kl(0), "at least 1 reply"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change(replies(3, 4, 2))
