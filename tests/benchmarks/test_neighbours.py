# SPDX-License-Identifier: Apache-2.0
"""The neighbours on two opposed groups, where each has to do what its paper says it does."""

import pytest
import torch

from benchmarks.neighbours import chosen_on_validation, hard_em, measured, pal, robust, shared
from trl_maxmin.functional.feature_pairs import FeaturePairs


@pytest.fixture(scope="module")
def opposed():
    """Eight people like the first feature and two hate it; all like the second a little."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 2, generator=generator)
    chosen, rejected = torch.randint(60, (2, 600), generator=generator)
    who = torch.arange(600) % 10
    sign = torch.where(who < 8, 3.0, -3.0)
    odds = (features[chosen] - features[rejected]) @ torch.tensor([[0.0], [1.0]])
    odds = odds[:, 0] + sign * (features[chosen, 0] - features[rejected, 0])
    first, second = torch.where(odds > 0, chosen, rejected), torch.where(odds > 0, rejected, chosen)
    return FeaturePairs(features, first, second, who), (who >= 8)[:10].long()


@pytest.mark.parametrize("method", [hard_em, shared, pal])
def test_who_disagrees_is_told_apart(opposed, method):
    pairs, groups = opposed
    best = [
        measured(method(pairs, 10, 2, 4.0, torch.Generator().manual_seed(seed))(pairs) > 0, pairs, groups, 10)["worst"]
        for seed in range(2)
    ]
    assert max(best) > 0.9


def test_one_robust_reward_gives_way_to_the_minority(opposed):
    pairs, groups = opposed
    everybody = robust(pairs, torch.zeros(10, dtype=torch.long), 4.0)(pairs) > 0
    by_group = robust(pairs, groups, 4.0)(pairs) > 0
    assert measured(everybody, pairs, groups, 10)["worst"] < 0.3
    assert measured(by_group, pairs, groups, 10)["worst"] > 0.45


def test_the_prior_that_predicts_is_chosen(opposed):
    pairs, _ = opposed
    tried = []

    def fit(part, prior):
        tried.append((len(part), prior))
        return lambda held: torch.full((len(held),), -abs(prior - 1.0))

    chosen_on_validation(fit, pairs, torch.Generator().manual_seed(0))
    assert tried[-1] == (600, 1.0) and [prior for _, prior in tried[:3]] == [0.25, 1.0, 4.0]
    assert all(size < 600 for size, _ in tried[:3])


def test_without_groups_the_worst_tenth_of_the_people_counts():
    who = torch.arange(20).repeat_interleave(10)
    pairs = FeaturePairs(torch.eye(2), torch.zeros(200).long(), torch.ones(200).long(), who)
    right = who >= 2  # of twenty people two are always wrong: the worst tenth
    assert measured(right, pairs, None, 20) == {"accuracy": 0.9, "worst": 0.0}
