# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from trl_maxmin.functional.welfare import (
    WELFARE_RULES,
    apply_weight_floor,
    maxmin_weights,
    mirror_weights,
    mixing_weights_rule,
    nash_weights,
    project_to_simplex,
    sample_min,
    softmin_weights,
    utilitarian_weights,
    welfare_weights,
)


NAN, INF = float("nan"), float("inf")
UTILITIES = torch.tensor([0.4, -0.3, 0.9, -0.1])
MIXING = torch.tensor([0.4, 0.3, 0.2, 0.1])


BEST = torch.tensor([1.0, 0.2, 1.1, 2.0])


def all_rules(utilities, **overrides):
    given = {"mixing_weights": MIXING, "best": BEST, **overrides}
    return {rule: welfare_weights(rule, utilities, **given) for rule in WELFARE_RULES}


def test_every_rule_returns_a_point_of_the_simplex():
    for seed in range(5):
        utilities = 10 * torch.randn(4, generator=torch.Generator().manual_seed(seed))
        for rule, weights in all_rules(utilities).items():
            assert (weights >= 0).all(), rule
            assert weights.sum().item() == pytest.approx(1.0), rule
            assert weights.dtype == utilities.dtype


def test_relabelling_components_permutes_the_weights():
    order = torch.tensor([3, 1, 0, 2])
    for (rule, weights), permuted in zip(
        all_rules(UTILITIES).items(),
        all_rules(UTILITIES[order], mixing_weights=MIXING[order], best=BEST[order]).values(),
        strict=True,
    ):
        torch.testing.assert_close(permuted, weights[order], msg=rule)


@pytest.mark.parametrize("rule", ["maxmin", "softmin", "mirror", "nash", "pmean", "gini", "leximin"])
def test_a_lower_utility_never_gets_less_weight(rule):
    weights = welfare_weights(rule, UTILITIES)
    order = UTILITIES.argsort()
    assert (weights[order].diff() <= 1e-7).all()


def test_maxmin_is_one_hot_on_the_worst_and_on_the_first_of_a_tie():
    assert maxmin_weights(UTILITIES).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert maxmin_weights(torch.tensor([1.0, 0.5, 0.5])).tolist() == [0.0, 1.0, 0.0]


def test_softmin_by_hand():
    # exp(-u) = 1, 1/2, 1/4 -> 4 : 2 : 1.
    weights = softmin_weights(torch.tensor([0.0, math.log(2), math.log(4)]), tau=1.0)
    torch.testing.assert_close(weights, torch.tensor([4.0, 2.0, 1.0]) / 7)


def test_softmin_tends_to_maxmin_and_to_utilitarian():
    torch.testing.assert_close(softmin_weights(UTILITIES, tau=1e-6), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(softmin_weights(UTILITIES, tau=1e6), torch.full((4,), 0.25))


def test_nash_by_hand_and_clamped():
    # Gains 1, 2, 4 over the disagreement point -> 4 : 2 : 1.
    weights = nash_weights(torch.tensor([2.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(weights, torch.tensor([4.0, 2.0, 1.0]) / 7)
    below = nash_weights(torch.tensor([-5.0, 1.0]), torch.zeros(2), eps=0.01)
    torch.testing.assert_close(below, torch.tensor([100.0, 1.0]) / 101)


def test_nash_weights_are_the_gradient_of_the_log_of_the_product():
    gains = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64, requires_grad=True)
    gains.prod().log().backward()
    torch.testing.assert_close(nash_weights(gains.detach(), torch.zeros(3)), gains.grad / gains.grad.sum())


def test_mixing_and_utilitarian():
    torch.testing.assert_close(mixing_weights_rule(UTILITIES, MIXING), MIXING)
    assert utilitarian_weights(UTILITIES).tolist() == [0.25] * 4


def test_unscored_component_gets_nothing_and_the_others_share_the_one():
    utilities = torch.tensor([0.4, NAN, 0.9, -0.1])
    for rule, weights in all_rules(utilities).items():
        assert weights[1].item() == 0.0, rule
        assert weights.sum().item() == pytest.approx(1.0), rule
    assert maxmin_weights(utilities).tolist() == [0.0, 0.0, 0.0, 1.0]
    torch.testing.assert_close(mixing_weights_rule(utilities, MIXING), torch.tensor([4.0, 0.0, 2.0, 1.0]) / 7)
    floored = welfare_weights("maxmin", utilities, floor=0.1)
    torch.testing.assert_close(floored, torch.tensor([0.1, 0.0, 0.1, 0.8]))


def test_mirror_by_hand():
    # Start 1 : 3, factors exp(-u) = 1/2 and 1/6: 1/2 : 1/2.
    weights = mirror_weights(torch.tensor([math.log(2), math.log(6)]), torch.tensor([0.25, 0.75]), eta=1.0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5]))


def test_mirror_starts_uniform_and_recovers_from_a_zero():
    torch.testing.assert_close(welfare_weights("mirror", torch.zeros(2)), torch.tensor([0.5, 0.5]))
    weights = torch.tensor([1.0, 0.0])
    for _ in range(80):
        weights = mirror_weights(torch.tensor([10.0, 0.0]), weights, eta=1.0)
    assert weights[1] > 0.99


def test_mirror_averaged_iterate_reaches_the_saddle_point_where_switching_oscillates():
    # Rows are the policy's actions, columns the groups; the policy maximises the worst column's mean.
    game = np.array([[1.0, -0.5], [-1.0, 2.0], [0.0, 0.1]])
    # The value by linear programming: max v with p @ game >= v, p on the simplex.
    solved = linprog(
        [0, 0, 0, -1.0],
        A_ub=np.hstack([-game.T, np.ones((2, 1))]),
        b_ub=[0, 0],
        A_eq=[[1, 1, 1, 0]],
        b_eq=[1],
        bounds=[(0, 1)] * 3 + [(None, None)],
    )
    value, steps = -solved.fun, 4000
    weights, mean_weights, mean_play, switches = torch.tensor([0.5, 0.5], dtype=torch.float64), 0, 0, 0
    last_action = None
    for _ in range(steps):
        action = int((torch.tensor(game) @ weights).argmax())  # best reply of the policy to the weights
        switches += last_action is not None and action != last_action
        last_action = action
        mean_play = mean_play + np.eye(3)[action] / steps
        mean_weights = mean_weights + weights.numpy() / steps
        weights = mirror_weights(torch.tensor(game[action]), weights, eta=0.03)
    assert (mean_play @ game).min() == pytest.approx(value, abs=0.03)
    assert (game @ mean_weights).max() == pytest.approx(value, abs=0.03)
    assert switches > 10  # the policy's single steps keep moving; only the averages settle


def test_projection_leaves_the_simplex_alone_and_handles_one_entry():
    torch.testing.assert_close(project_to_simplex(MIXING), MIXING)
    assert project_to_simplex(torch.tensor([-7.0])).tolist() == [1.0]


@pytest.mark.parametrize("seed", range(5))
def test_projection_agrees_with_scipy(seed):
    point = np.random.default_rng(seed).normal(size=5)
    nearest = minimize(
        lambda w: ((w - point) ** 2).sum(),
        np.full(5, 0.2),
        jac=lambda w: 2 * (w - point),
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(5)},
        method="SLSQP",
        options={"ftol": 1e-14},
    ).x
    np.testing.assert_allclose(project_to_simplex(torch.tensor(point)).numpy(), nearest, atol=1e-6)


def test_projection_is_nearer_than_any_other_point_and_ignores_a_shift():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        point = 3 * torch.randn(4, generator=generator, dtype=torch.float64)
        projected = project_to_simplex(point)
        others = torch.distributions.Dirichlet(torch.ones(4, dtype=torch.float64)).sample((50,))
        assert ((others - point).norm(dim=1) >= (projected - point).norm() - 1e-12).all()
        torch.testing.assert_close(project_to_simplex(point + 1e6), projected, atol=1e-8, rtol=0)


def test_floor_by_hand():
    torch.testing.assert_close(apply_weight_floor(torch.tensor([1.0, 0.0]), 0.1), torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(apply_weight_floor(MIXING, 0.25), torch.full((4,), 0.25))


def test_custom_function_is_projected_on_the_scored_components():
    torch.testing.assert_close(
        welfare_weights(lambda u: torch.tensor([5.0, 5.0]), torch.tensor([0.1, 0.2])), torch.tensor([0.5, 0.5])
    )
    weights = welfare_weights(lambda u: -u, torch.tensor([0.0, NAN, 0.5]))
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.0, 0.25]))
    assert welfare_weights(lambda u: [0.2, 0.8], torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.2, 0.8])


def test_sample_min_is_not_maxmin():
    # Policy A always gives a compromise worth 0.2 to both; policy B serves each group half of the time.
    compromise = torch.tensor([[0.2, 0.2], [0.2, 0.2]])
    taking_turns = torch.tensor([[2.0, -1.0], [-1.0, 2.0]])
    # min_k E[u_k]: 0.2 against 0.5. MaxMin prefers taking turns.
    assert compromise.mean(0).min().item() == pytest.approx(0.2)
    assert taking_turns.mean(0).min().item() == pytest.approx(0.5)
    # E[min_k u_k]: 0.2 against -1. The per-sample minimum prefers the compromise.
    assert sample_min(compromise).mean().item() == pytest.approx(0.2)
    assert sample_min(taking_turns).mean().item() == pytest.approx(-1.0)


def test_sample_min_never_exceeds_maxmin_and_keeps_nan():
    utilities = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    assert sample_min(utilities).mean() <= utilities.mean(0).min()
    assert sample_min(torch.tensor([[1.0, NAN], [2.0, 1.0]])).isnan().tolist() == [True, False]


TWO = torch.tensor([0.1, 0.2])


def test_unknown_rule_names_the_rules_and_sample_min():
    with pytest.raises(ValueError, match="'max-min'") as error:
        welfare_weights("max-min", TWO)
    assert all(repr(rule) in str(error.value) for rule in WELFARE_RULES)
    assert "'sample_min' is a reward" in str(error.value)


@pytest.mark.parametrize("rule", WELFARE_RULES)
def test_all_nan_is_refused_by_every_rule(rule):
    with pytest.raises(ValueError, match="nothing was scored"):
        welfare_weights(
            rule, torch.tensor([NAN, NAN]), mixing_weights=torch.tensor([0.5, 0.5]), best=torch.tensor([0.5, 0.5])
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maxmin_weights(torch.zeros(2, 2)), "`utilities` has shape"),
        (lambda: maxmin_weights(torch.tensor([NAN, NAN])), "nothing was scored"),
        (lambda: maxmin_weights(torch.tensor([INF, 0.0])), "must be finite or NaN"),
        (lambda: softmin_weights(TWO, tau=0.0), "`tau` is 0.0"),
        (lambda: softmin_weights(torch.tensor([NAN]), tau=1.0), "nothing was scored"),
        (lambda: mirror_weights(TWO, torch.tensor([0.5, 0.4]), 0.1), "`previous` is"),
        (lambda: mirror_weights(TWO, torch.ones(3) / 3, 0.1), "`previous` has shape"),
        (lambda: mirror_weights(TWO, torch.tensor([0.5, 0.5]), -0.1), "`eta` is -0.1"),
        (lambda: utilitarian_weights(torch.tensor([NAN])), "nothing was scored"),
        (lambda: mixing_weights_rule(TWO, torch.tensor([2.0, -1.0])), "`mixing_weights` is"),
        (lambda: mixing_weights_rule(torch.tensor([NAN, 1.0]), torch.tensor([1.0, 0.0])), "leaves nothing"),
        (lambda: nash_weights(TWO, torch.zeros(3)), "`disagreement` has shape"),
        (lambda: nash_weights(TWO, torch.tensor([NAN, 0.0])), "`disagreement` is"),
        (lambda: nash_weights(TWO, torch.zeros(2), eps=0.0), "`eps` is 0.0"),
        (lambda: welfare_weights("mixing", TWO), "needs `mixing_weights`"),
        (lambda: welfare_weights("maxmin", TWO, floor=0.6), r"`floor` is 0.6, but must be in \[0, 1 / K\]"),
        (lambda: welfare_weights("maxmin", TWO, floor=-0.1), "`floor` is -0.1"),
        (lambda: welfare_weights(lambda u: torch.zeros(3), TWO), "welfare function's result` has shape"),
        (lambda: welfare_weights(lambda u: u * NAN, TWO), "must return finite"),
        (lambda: project_to_simplex(torch.zeros(2, 2)), "`values` has shape"),
        (lambda: project_to_simplex(torch.tensor([])), "at least one entry"),
        (lambda: project_to_simplex(torch.tensor([NAN, 1.0])), "finite entries"),
        (lambda: apply_weight_floor(torch.tensor([0.5, 0.1]), 0.1), "`weights` is"),
        (lambda: apply_weight_floor(torch.tensor([0.5, 0.5]), 0.7), "`floor` is 0.7"),
        (lambda: sample_min(torch.zeros(3)), "`utilities` has shape"),
        (lambda: sample_min(torch.zeros(3, 0)), "0 components"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
