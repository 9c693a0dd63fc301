# SPDX-License-Identifier: Apache-2.0
"""The quantities of the impossibility result: by hand, by their definitions, and on the embedded world."""

import math

import numpy as np
import pytest
import torch

from trl_maxmin.data.world import FilmReviewWorld
from trl_maxmin.evaluation.diversity import (
    alignment_gap,
    diversity_margin,
    diversity_matrix,
    feature_curvature,
    gap_bound,
    mismatch_bound,
    optimal_policy,
    preference_probability,
    total_variation,
)
from trl_maxmin.functional.em_linear import fit_weighted_logistic


def fit_reward(difference, probability, ridge):
    """Linear reward of greatest likelihood where the first reply is preferred with these probabilities: the limit of
    endless data."""
    both = torch.tensor(np.concatenate([difference, -difference]))
    weights = torch.tensor(np.concatenate([probability, 1 - probability]))[:, None]
    start = torch.zeros(1, both.shape[1], dtype=torch.float64)
    return fit_weighted_logistic(both, weights, torch.zeros(len(both)), ridge, start, num_steps=25)[0].numpy()


def test_total_variation_is_half_the_l1_distance_of_the_two_outcomes():
    first, second = np.array([0.9, 0.2, 0.5]), np.array([0.4, 0.7, 0.5])
    by_definition = (np.abs(first - second) + np.abs((1 - first) - (1 - second))) / 2
    assert total_variation(first, second) == pytest.approx(by_definition)


def test_diversity_matrix_by_hand():
    found = diversity_matrix(np.array([[1.0, 0.0, 0.5], [0.5, 0.5, 0.5]]))
    assert found.tolist() == [[0, 0.5, 0.25], [0.5, 0, 0.25], [0.25, 0.25, 0]]
    assert diversity_margin(found) == 0.25
    assert diversity_margin(np.zeros((1, 1))) == 0.0


def test_the_gap_is_the_difference_of_the_regularised_objectives():
    """Against the definition F(pi_u) - F(pi_single), with F = E[r] - beta KL(pi || uniform)."""
    generator, beta = np.random.default_rng(0), 0.7
    own, single = generator.normal(size=(2, 5, 4))

    def objective(policy, rewards):
        return policy @ rewards - beta * (policy * np.log(policy * len(policy))).sum()

    for rewards, other, gap in zip(own, single, alignment_gap(own, single, beta), strict=True):
        best = objective(optimal_policy(rewards, beta), rewards)
        assert gap == pytest.approx(best - objective(optimal_policy(other, beta), rewards))
        rival = generator.dirichlet(np.ones(4), size=200)
        assert all(objective(policy, rewards) <= best + 1e-12 for policy in rival)


def test_a_shift_per_prompt_changes_no_gap():
    own, single = np.random.default_rng(0).normal(size=(2, 3, 4))
    assert alignment_gap(own + 5, single - 3) == pytest.approx(alignment_gap(own, single))


def test_huge_rewards_do_not_overflow():
    assert np.isfinite(alignment_gap([[1e4, 0.0]], [[0.0, 1e4]])).all()
    assert preference_probability(np.array([1e5]), np.array([-1e5])).tolist() == [1.0]


def test_fit_reward_recovers_known_parameters():
    generator = np.random.default_rng(0)
    difference, truth = generator.normal(size=(400, 3)), np.array([1.0, -2.0, 0.5])
    probability = 1 / (1 + np.exp(-difference @ truth))
    assert fit_reward(difference, probability, ridge=1e-9) == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: total_variation(np.zeros(2), np.zeros(3)), "one probability a pair"),
        (lambda: total_variation(np.array([1.5]), np.array([0.0])), r"lie in \[0, 1\]"),
        (lambda: diversity_matrix(np.zeros((0, 2))), r"\(N, K\) with N >= 1"),
        (lambda: mismatch_bound(0.5, 1.5, 1.0), "epsilon and share in"),
        (lambda: mismatch_bound(0.5, 0.5, 0.0), "positive feature bound"),
        (lambda: gap_bound(0.5, 0.5, 1.0, 0.0, 1.0), "positive beta"),
        (lambda: gap_bound(0.5, 0.5, 1.0, 1.0, -1.0), "curvature"),
        (lambda: optimal_policy([], 1.0), "M >= 1"),
        (lambda: optimal_policy([1.0], 0.0), "positive beta"),
        (lambda: alignment_gap([[1.0, 2.0]], [[1.0]]), "2 rewards of the group and 1 single"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class TestTheoryOnTheWorld:
    """Groups whose rewards are known linear functions of gold utilities; the single reward is the limit of endless
    data of the mixed population. Diversity is turned by the angle between two groups, the share by the mixture."""

    @pytest.fixture(scope="class")
    def features(self):
        world = FilmReviewWorld(seed=0)
        prompts = world.sample_prompts(120, split="eval")
        replies = [world.sample_reviews(prompts, seed=i) for i in range(4)]
        raw = np.array(
            [[world.gold_utility(group, own) for group in ("concise", "positive", "acting")] for own in replies]
        )
        raw = raw.transpose(2, 0, 1)  # prompts, replies, features
        return (raw - raw.mean((0, 1))) / raw.std((0, 1))

    def measure(self, features, angle, share, strength=2.0, beta=1.0):
        """Group u turned away from the others by an angle: its numbers, and the bounds on them."""
        others = strength * np.array([1.0, 0.0, 0.0])
        own = strength * np.array([math.cos(angle), math.sin(angle), 0.0])
        pairs = [(i, j) for i in range(4) for j in range(i)]
        difference = np.concatenate([features[:, i] - features[:, j] for i, j in pairs])
        p_own, p_others = (preference_probability(difference @ phi, 0.0) for phi in (own, others))
        single = fit_reward(difference, share * p_own + (1 - share) * p_others, ridge=1e-9)
        epsilon = diversity_margin(diversity_matrix(np.stack([p_own, p_others], axis=1)))
        bound = np.linalg.norm(features, axis=-1).max()
        curvature = feature_curvature(list(features), own, single, beta)
        return {
            "epsilon": epsilon,
            "gap": alignment_gap(features @ own, features @ single, beta).mean(),
            "gap_bound": gap_bound(epsilon, share, bound, beta, curvature),
            "distance": np.linalg.norm(own - single),
            "distance_bound": mismatch_bound(epsilon, share, bound),
        }

    def test_the_gap_grows_with_diversity(self, features):
        found = [self.measure(features, angle, share=0.2) for angle in (0.0, 0.4, 0.8, 1.2, 1.6, 2.4)]
        assert found[0]["gap"] == pytest.approx(0, abs=1e-9)
        for key in ("epsilon", "gap", "distance"):
            values = [entry[key] for entry in found]
            assert all(later > earlier for earlier, later in zip(values, values[1:], strict=False)), key

    def test_the_gap_grows_as_the_share_falls(self, features):
        gaps = [self.measure(features, 1.5, share)["gap"] for share in (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.02)]
        assert gaps[0] == pytest.approx(0, abs=1e-9)
        assert all(later > earlier for earlier, later in zip(gaps, gaps[1:], strict=False))

    @pytest.mark.parametrize("angle", [0.3, 1.0, 1.6, 3.0])
    @pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
    def test_lemma_1_and_the_bound_of_the_gap_hold(self, features, angle, share):
        found = self.measure(features, angle, share)
        assert 0 < found["distance_bound"] <= found["distance"]
        assert 0 < found["gap_bound"] <= found["gap"]
