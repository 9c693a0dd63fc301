# SPDX-License-Identifier: Apache-2.0
"""Rankings in the EM engine: pairs are those of two, steps reach the optimum, planted groups are found."""

import pytest
import torch

from trl_maxmin.functional.em_features import _fitter, directions_of_pairs, fit_feature_mixture, fit_rewards
from trl_maxmin.functional.feature_pairs import FeaturePairs, deal_folds, own_folds
from trl_maxmin.functional.feature_rankings import FeatureRankings
from trl_maxmin.functional.num_components import choose_components
from trl_maxmin.functional.ranking import RankedChoices


def drawn(seed=0, people=40, groups=2, choices=3, size=4, texts=60, width=5, spread=2.0):
    """Full rankings by Luce's rule from groups with rewards of their own, no text twice for a person."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(texts, width, generator=generator)
    weight = spread / width**0.5 * torch.randn(groups, width, generator=generator)
    group, owner = torch.arange(people) % groups, torch.arange(people).repeat_interleave(choices)
    shown = [torch.randperm(texts, generator=generator)[: choices * size] for _ in range(people)]
    rows = torch.stack(shown).view(-1, size)
    noise = -torch.rand(rows.shape, generator=generator).log().neg().log()
    order = ((features @ weight.T)[rows, group[owner].unsqueeze(1)] + noise).argsort(1, descending=True)
    ranks = torch.arange(1, size + 1).expand_as(rows)
    return FeatureRankings(features, RankedChoices(rows.gather(1, order), ranks, owner)), group


def as_pairs(rankings):
    chosen, rejected = rankings.choices.responses.T
    return FeaturePairs(rankings.features, chosen, rejected, rankings.annotator_index)


def test_two_replies_are_pairs_in_everything():
    rankings, _ = drawn(size=2, choices=6)
    pairs = as_pairs(rankings)
    features = pairs.features - pairs.features.mean(0)
    assert torch.allclose(rankings.moment(features), pairs.moment(features), atol=1e-5)
    assert rankings.pairs_per_row == 1.0
    for one, other in zip(directions_of_pairs(rankings), directions_of_pairs(pairs), strict=True):
        assert torch.allclose(one.abs(), other.abs(), atol=1e-4)
    generator = torch.Generator().manual_seed
    assert torch.equal(deal_folds(rankings, 3, generator(0)), deal_folds(pairs, 3, generator(0)))
    options = {"num_init": 2, "num_steps": 9, "num_final_steps": 4, "num_final_folds": 3}
    one, other = (fit_feature_mixture(data, 40, 2, generator=generator(0), **options) for data in (rankings, pairs))
    assert torch.equal(one.log_responsibilities, other.log_responsibilities) and torch.equal(one.weight, other.weight)
    tie = RankedChoices(torch.tensor([[0, 1]]), torch.tensor([[1, 1]]), torch.tensor([0]))
    assert FeaturePairs.from_rankings(FeatureRankings(pairs.features, tie)) is None


def test_how_many_pairs_a_ranking_is_worth():
    features, rows = torch.eye(4), torch.arange(4).expand(3, 4)
    for ranks, worth in (([1, 0, 0, 0], 3), ([1, 2, 3, 4], 6), ([1, 1, 2, 0], 7)):
        choices = RankedChoices(rows, torch.tensor([ranks] * 3), torch.zeros(3).long())
        assert FeatureRankings(features, choices).pairs_per_row == worth


@pytest.mark.parametrize("ranks", [(1, 0, 0, 0), (1, 2, 3, 4), (1, 1, 2, 0)])
def test_steps_reach_the_optimum(ranks):
    rankings, _ = drawn(groups=1)
    choices = rankings.choices
    choices = RankedChoices(choices.responses, torch.tensor(ranks).expand_as(choices.ranks), choices.annotator_index)
    rankings = FeatureRankings(rankings.features, choices)
    fitter, directions = _fitter(rankings)
    found = fit_rewards(rankings, torch.ones(len(rankings), 1), prior_scale=1.0, num_steps=400)
    ridge = fitter.ridge(torch.tensor(1.0)).double()
    weight = torch.zeros(1, directions.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    texts = fitter.texts.double()

    def objective():
        optimizer.zero_grad()
        loss = -choices.log_likelihood(texts @ weight.T).sum() + ridge / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    assert torch.allclose(found, weight.detach() @ directions.T.double(), atol=2e-3)


def test_the_bound_of_the_curvature_is_one():
    rankings, _ = drawn(groups=1, choices=2, people=6, texts=60)
    hessian = torch.autograd.functional.hessian(
        lambda w: -rankings.choices.log_likelihood(rankings.features.double() @ w.unsqueeze(1)).sum(),
        torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    )
    features = rankings.features - rankings.features.mean(0)
    bound = 0.25 * rankings.pairs_per_row * len(rankings) * rankings.moment(features)
    assert torch.linalg.eigvalsh(bound.double() - hessian).min() > -1e-6


def test_folds_of_rankings_keep_a_persons_texts_apart():
    responses = torch.tensor([[0, 1, 2], [2, 3, -1], [7, 8, 9], [0, 1, 2]])
    ranks = torch.tensor([[1, 2, 3], [1, 2, 0], [1, 2, 3], [1, 2, 3]])
    rankings = FeatureRankings(torch.eye(10), RankedChoices(responses, ranks, torch.tensor([0, 0, 0, 1])))
    folds = deal_folds(rankings, 2, torch.Generator().manual_seed(0))
    assert folds.shape == (4, 3) and (folds[2] == folds[2, 0]).all() and (folds[3] == folds[3, 0]).all()
    assert folds[0, 2] == folds[1, 0], "one text of one person is in one fold"
    own = own_folds(responses, folds)
    flipped = own_folds(responses.flip(1), folds.flip(1))
    assert torch.equal(own, flipped), "whoever was preferred"


@pytest.mark.parametrize("best_only", [False, True])
def test_planted_groups_are_found(best_only):
    rankings, group = drawn(seed=1, people=60, choices=10, spread=4.0)
    if best_only:
        ranks = (rankings.choices.ranks == 1).long()
        choices = RankedChoices(rankings.choices.responses, ranks, rankings.annotator_index)
        rankings = FeatureRankings(rankings.features, choices)
    options = {"num_init": 4, "num_steps": 24, "num_final_steps": 8, "num_final_folds": 4}
    fitted = fit_feature_mixture(rankings, 60, 2, generator=torch.Generator().manual_seed(0), **options)
    same = (fitted.log_responsibilities.argmax(1) == group).double().mean().item()
    assert max(same, 1 - same) >= 0.95
    scores = rankings.log_likelihood(fitted.weight)
    assert scores.shape == (600, 2) and fitted.scores.shape == (600, 2)


@pytest.mark.slow
def test_the_number_of_components_of_rankings():
    rankings, _ = drawn(seed=1, people=60, choices=5, spread=4.0)
    options = {"num_init": 4, "num_steps": 18, "num_final_steps": 6, "num_final_folds": 3}
    choice = choose_components(rankings, 60, (1, 2), seed=0, **options)
    assert choice.verdict_kind == "groups" and choice.num_components == 2
    assert choice.gain[2] > 0.2 and choice.accuracy[2] > 0.6
    order = torch.rand(rankings.choices.ranks.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
    tossed = RankedChoices(rankings.choices.responses, order + 1, rankings.annotator_index)
    choice = choose_components(FeatureRankings(rankings.features, tossed), 60, (1, 2), seed=0, **options)
    assert choice.verdict_kind == "cannot_tell" and choice.num_components == 1
