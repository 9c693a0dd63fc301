# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from trl_maxmin.functional.preference import (
    fit_temperature,
    preference_accuracy,
    preference_log_likelihood,
    require_shape,
)


def test_log_likelihood_is_the_bradley_terry_probability():
    # Odds 3 : 1, even odds, odds 1 : 4, all written as log-odds by hand.
    chosen = torch.tensor([[math.log(3.0), 5.0, 0.0]])
    rejected = torch.tensor([[0.0, 5.0, math.log(4.0)]])
    probability = preference_log_likelihood(chosen, rejected).exp()
    torch.testing.assert_close(probability, torch.tensor([[0.75, 0.5, 0.2]]))


def test_margin_is_a_lead_that_the_chosen_reply_has_to_have():
    chosen, rejected = torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.zeros(2, 2)
    with_margin = preference_log_likelihood(chosen, rejected, margin=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(with_margin[1, 0].exp(), torch.tensor(0.5))
    torch.testing.assert_close(with_margin[1, 1], preference_log_likelihood(chosen, rejected)[0, 0])


def test_log_likelihood_of_extreme_rewards_is_finite_and_has_a_gradient():
    rejected = torch.tensor([[1000.0]], requires_grad=True)
    log_likelihood = preference_log_likelihood(torch.tensor([[-1000.0]]), rejected)
    assert log_likelihood.item() == pytest.approx(-2000.0)
    log_likelihood.sum().backward()
    assert rejected.grad.item() == pytest.approx(-1.0)


def test_both_orders_of_a_pair_share_probability_one():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(20, 3, generator=generator), torch.randn(20, 3, generator=generator)
    total = preference_log_likelihood(a, b).exp() + preference_log_likelihood(b, a).exp()
    torch.testing.assert_close(total, torch.ones(20, 3))


def test_nan_stays_in_its_own_entry():
    chosen = torch.tensor([[1.0, float("nan")]])
    assert preference_log_likelihood(chosen, torch.zeros(1, 2)).isnan().tolist() == [[False, True]]
    assert preference_accuracy(chosen, torch.zeros(1, 2)).isnan().tolist() == [[False, True]]


def test_accuracy_counts_a_tie_as_half():
    accuracy = preference_accuracy(torch.tensor([[2.0], [1.0], [1.0]]), torch.tensor([[1.0], [1.0], [2.0]]))
    assert accuracy.flatten().tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("function", [preference_log_likelihood, preference_accuracy])
def test_pair_shapes_are_checked(function):
    with pytest.raises(ValueError, match=r"`rejected_rewards` has shape \(3, 2\), but \(2, 2\)"):
        function(torch.zeros(2, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="`chosen_rewards` has shape"):
        function(torch.zeros(2), torch.zeros(2))


def test_margin_shape_is_checked():
    with pytest.raises(ValueError, match=r"`margin` has shape \(3,\), but \(2,\)"):
        preference_log_likelihood(torch.zeros(2, 2), torch.zeros(2, 2), margin=torch.zeros(3))


def test_require_shape_passes_the_right_shape():
    require_shape("x", torch.zeros(2, 3), (None, 3), "rows")


def temperature_by_scipy(difference, weights, margin):
    def loss(log_inverse):
        logits = np.exp(log_inverse) * difference - margin
        return float((weights * np.logaddexp(0.0, -logits)).sum())

    found = minimize_scalar(loss, bounds=(math.log(1e-2), math.log(1e2)), method="bounded", options={"xatol": 1e-10})
    return math.exp(-found.x)


@pytest.mark.parametrize("true_temperature", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_temperature_agrees_with_scipy(true_temperature, seed):
    rng = np.random.default_rng(seed)
    difference = rng.normal(size=300) * true_temperature
    # The pair's order in the data follows the true probability, so the difference of chosen - rejected flips at times.
    flip = rng.uniform(size=300) > 1.0 / (1.0 + np.exp(-difference / true_temperature))
    difference = np.where(flip, -difference, difference)
    weights, margin = rng.uniform(size=300), rng.uniform(0.0, 0.3, size=300)
    found = fit_temperature(torch.tensor(difference), torch.tensor(weights), torch.tensor(margin))
    assert found == pytest.approx(temperature_by_scipy(difference, weights, margin), rel=1e-4)


def test_temperature_undoes_a_scale():
    difference = torch.tensor([1.0, 0.5, -0.4, 2.0, -1.0, 0.3])
    assert fit_temperature(7.0 * difference) == pytest.approx(7.0 * fit_temperature(difference), rel=1e-6)


def test_weights_repeat_pairs():
    difference = torch.tensor([1.0, -1.0, 2.0])
    weighted = fit_temperature(difference, weights=torch.tensor([3.0, 1.0, 0.0]))
    assert weighted == pytest.approx(1.0 / math.log(3.0), rel=1e-6)


def test_temperature_stops_at_its_bounds():
    assert fit_temperature(torch.tensor([1.0, 2.0])) == pytest.approx(0.01)
    assert fit_temperature(torch.tensor([-1.0, -2.0])) == pytest.approx(100.0)
    assert fit_temperature(torch.tensor([1e6, -1.0])) == pytest.approx(
        temperature_by_scipy(np.array([1e6, -1.0]), np.ones(2), np.zeros(2)), rel=1e-3
    )


def test_temperature_of_a_constant_reward_is_one():
    assert fit_temperature(torch.zeros(4)) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward_difference": torch.zeros(2, 2)}, "`reward_difference` has shape"),
        ({"reward_difference": torch.zeros(0)}, "empty"),
        ({"reward_difference": torch.tensor([1.0, float("nan")])}, "1 NaN or infinite"),
        ({"reward_difference": torch.ones(2), "weights": torch.ones(3)}, "`weights` has shape"),
        ({"reward_difference": torch.ones(2), "weights": torch.tensor([1.0, -1.0])}, "non-negative"),
        ({"reward_difference": torch.ones(2), "weights": torch.zeros(2)}, "not all 0"),
        ({"reward_difference": torch.ones(2), "margin": torch.ones(1)}, "`margin` has shape"),
        ({"reward_difference": torch.ones(2), "margin": torch.tensor([0.0, float("inf")])}, "`margin` holds"),
        ({"reward_difference": torch.ones(2), "max_iter": 0}, "`max_iter` is 0"),
    ],
)
def test_temperature_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(**arguments)
