# SPDX-License-Identifier: Apache-2.0
"""The quantities of the impossibility result: by hand, by their definitions, and on the embedded world."""

import math

import numpy as np
import pytest
import torch

from trl_maxmin.data.world import FilmReviewWorld
from trl_maxmin.evaluation.diversity import (
    alignment_gap,
    diversity_margins,
    diversity_matrix,
    feature_curvature,
    gap_bound,
    mismatch_bound,
    optimal_policy,
    preference_probability,
    total_variation,
)


def fit_reward(difference, probability, ridge):
    """Linear reward of greatest likelihood where the first reply is preferred with these probabilities: the limit of
    endless data."""
    both = torch.tensor(np.concatenate([difference, -difference]))
    weights = torch.tensor(np.concatenate([probability, 1 - probability]))[:, None]
    return newton(both, weights, ridge).numpy()


def newton(difference, weights, ridge):
    w = torch.zeros(difference.shape[1], dtype=torch.float64)
    for _ in range(25):
        p = torch.sigmoid(difference @ w)
        gradient = -difference.T @ (weights[:, 0] * (1 - p)) + ridge * w
        hessian = difference.T @ (difference * (weights[:, 0] * p * (1 - p)).unsqueeze(1))
        w = w - torch.linalg.solve(hessian + ridge * torch.eye(len(w), dtype=torch.float64), gradient)
    return w


def test_total_variation_is_half_the_l1_distance_of_the_two_outcomes():
    first, second = np.array([0.9, 0.2, 0.5]), np.array([0.4, 0.7, 0.5])
    by_definition = (np.abs(first - second) + np.abs((1 - first) - (1 - second))) / 2
    assert total_variation(first, second) == pytest.approx(by_definition)


def test_diversity_matrix_by_hand():
    found = diversity_matrix(np.array([[1.0, 0.0, 0.5], [0.5, 0.5, 0.5]]))
    assert found.tolist() == [[0, 0.5, 0.25], [0.5, 0, 0.25], [0.25, 0.25, 0]]
    assert diversity_margins(found).tolist() == [0.25, 0.25, 0.0]
    assert diversity_margins(np.zeros((1, 1))).tolist() == [0.0]
    assert diversity_margins(np.array([[0.0, 0.4], [0.4, 0.0]])).tolist() == [0.4, 0.4]


def test_margins_by_hand():
    """Four groups on a line at 0, 1, 2 and 9 tenths: 9 is farther from 0 than the rest are by 7, 0 from 9 by 1."""
    places = np.array([0.0, 0.1, 0.2, 0.9])
    found = diversity_margins(np.abs(places[:, None] - places))
    assert found == pytest.approx([0.1, 0.0, 0.0, 0.7])


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
        epsilon, _ = diversity_margins(diversity_matrix(np.stack([p_own, p_others], axis=1)))
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


class TestThreeGroupsOrMore:
    """The margin of the most diverse pair, applied to every group, is no bound: the middle of three groups may lie
    where the single reward does."""

    def test_the_group_in_the_middle(self):
        """Opposite wishes of two fifths each, and a fifth that is indifferent, as is the single reward of them all."""
        difference = np.linspace(-2, 2, 40)[:, None]
        parameters, shares = np.array([[1.0], [-1.0], [0.0]]), np.array([0.4, 0.4, 0.2])
        probability = preference_probability(difference @ parameters.T, 0.0)
        single = fit_reward(difference, probability @ shares, ridge=1e-9)
        matrix = diversity_matrix(probability)
        _, middle, high = sorted([matrix[0, 1], matrix[0, 2], matrix[1, 2]])
        assert np.linalg.norm(single - parameters[2]) == pytest.approx(0, abs=1e-9)
        assert mismatch_bound(high - middle, 0.2, 1.0) > 0.04, "what was claimed of every group"
        margins = diversity_margins(matrix)
        assert margins[2] == 0 < min(margins[:2])

    @pytest.fixture(scope="class")
    def problems(self):
        """5,000 random problems of 3 to 5 groups in 1 to 3 dimensions; in a half of them half of the people are in
        none of the two small groups. Everything but the bounds is computed here, all problems at once."""
        rng, count, most, pairs, dim = np.random.default_rng(1), 5000, 5, 30, 3
        size, width = rng.integers(3, most + 1, count), rng.integers(1, dim + 1, count)
        there, used = np.arange(most) < size[:, None], np.arange(dim) < width[:, None]
        sides = rng.normal(size=(2, count, pairs, dim)) * used[:, None]
        bound, x = np.linalg.norm(sides, axis=-1).max((0, 2)), sides[0] - sides[1]
        phi = rng.normal(size=(count, most, dim)) * rng.choice([0.5, 1, 3], count)[:, None, None] * used[:, None]
        middle = rng.random(count) < 0.5  # the last group lies between two others
        last = (phi[:, 0] + phi[:, 1]) / 2 + 0.05 * rng.normal(size=(count, dim)) * used
        phi[np.arange(count)[middle], size[middle] - 1] = last[middle]
        eta = rng.gamma(3.0, size=(count, most)) * there
        eta /= eta.sum(1, keepdims=True)
        half = rng.random(count) < 0.5
        small = rng.uniform(0.05, 0.45, count)
        eta[half] = np.stack([small, 0.5 - small, np.full(count, 0.5), *np.zeros((2, count))], axis=1)[half]
        there[half, 3:] = False
        odds = np.einsum("bnd,bkd->bnk", x, phi)
        p = 1 / (1 + np.exp(-odds))
        target, single = np.einsum("bnk,bk->bn", p, eta), np.zeros((count, dim))
        for _ in range(60):  # Newton's steps, damped, on the limit of endless data
            q = 1 / (1 + np.exp(-np.einsum("bnd,bd->bn", x, single)))
            slope = np.einsum("bn,bnd->bd", target - q, x)
            hessian = np.einsum("bn,bnd,bne->bde", q * (1 - q), x, x) + np.eye(dim) * np.where(used, 1e-12, 1)[:, None]
            step = np.linalg.solve(hessian, slope[..., None])[..., 0]
            single += step / np.maximum(1, np.linalg.norm(step, axis=1, keepdims=True))
        assert np.abs(slope).max() < 1e-6, "the single reward is the optimum"
        return {"p": p, "phi": phi, "single": single, "eta": eta, "there": there, "bound": bound, "x": x, "half": half}

    def test_no_bound_is_violated(self, problems):
        eta, single = problems["eta"], problems["single"]
        distance = np.linalg.norm(single[:, None] - problems["phi"], axis=-1)
        pooled = np.einsum("bnk,bk->bn", problems["p"], eta)
        apart = np.abs(problems["p"] - pooled[..., None]).mean(1)
        said, violated = 0, 0
        for i, there in enumerate(problems["there"]):
            own = np.flatnonzero(there)
            for k, margin in zip(own, diversity_margins(diversity_matrix(problems["p"][i][:, own])), strict=True):
                margin = min(margin, 1.0)
                assert apart[i, k] >= margin * (1 - eta[i, k]) - 1e-12
                violated += distance[i, k] < mismatch_bound(margin, eta[i, k], problems["bound"][i]) - 1e-9
                said += margin > 0
        assert violated == 0 and said > 5000 and 2000 < problems["half"].sum() < 3000

    def test_the_bound_of_the_gap_holds(self, problems):
        """Prompts with two candidates each: the gap by its definition, the curvature from p (1 - p) x x'."""
        violated = 0
        for i in range(400):
            own = np.flatnonzero(problems["there"][i])
            x, single, eta = problems["x"][i], problems["single"][i], problems["eta"][i]
            used = np.abs(x).sum(0) > 0
            margins = diversity_margins(diversity_matrix(problems["p"][i][:, own]))
            for k, margin in zip(own, margins, strict=True):
                phi, both = problems["phi"][i, k], []
                for at in (phi, single):
                    first = 1 / (1 + np.exp(-x @ at))
                    both.append(np.stack([first, 1 - first]).clip(1e-300))
                gap = (both[1] * np.log(both[1] / both[0])).sum(0).mean()
                curvature = np.inf
                for t in np.linspace(0, 1, 9):
                    first = 1 / (1 + np.exp(-x @ (t * single + (1 - t) * phi)))
                    seen = x[:, used]
                    moment = (seen * (first * (1 - first))[:, None]).T @ seen / len(x)
                    curvature = min(curvature, np.linalg.eigvalsh(moment)[0])
                least = gap_bound(min(margin, 1.0), eta[k], problems["bound"][i], 1.0, max(curvature, 0.0))
                violated += gap < least - 1e-12
        assert violated == 0
