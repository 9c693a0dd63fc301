# SPDX-License-Identifier: Apache-2.0
"""Rewards of texts and people that were held out, against fits of another library without them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from trl_maxmin.functional.feature_pairs import FeaturePairs
from trl_maxmin.functional.feature_rankings import FeatureRankings
from trl_maxmin.functional.heldout import annotator_folds, heldout_differences, heldout_rankings, text_folds
from trl_maxmin.functional.ranking import RankedChoices


def votes(people=30, texts=40, each=20, seed=0):
    """Everybody judges some of the same texts."""
    rng = np.random.default_rng(seed)
    sides = np.array([rng.choice(texts, 2, replace=False) for _ in range(people * each)])
    features = rng.normal(size=(texts, 4)).astype(np.float32)
    wanted = features @ np.array([1.0, -1.0, 0.5, 0.0]) + rng.normal(size=texts) * 0.5
    swap = wanted[sides[:, 0]] < wanted[sides[:, 1]]
    sides[swap] = sides[swap][:, ::-1]
    who = np.repeat(np.arange(people), each)
    return FeaturePairs(torch.tensor(features), *(torch.tensor(side) for side in sides.T), torch.tensor(who))


@pytest.mark.parametrize("what", ["texts", "people"])
def test_another_library_fits_the_same_without_them(what):
    pairs, generator = votes(), torch.Generator().manual_seed(0)
    if what == "texts":
        folds = text_folds(pairs, 3, generator)
    else:
        folds = annotator_folds(pairs.annotator_index, 3, generator)
    responsibilities = torch.rand(len(pairs), 2, generator=generator)
    found = heldout_differences(pairs, responsibilities, folds, prior_scale=2.0)
    x = (pairs.features[pairs.chosen] - pairs.features[pairs.rejected]).double().numpy()
    # The prior: log-odds of a pair have this standard deviation, so the ridge is the trace of the moment over 4.
    ridge = (x**2).sum() / len(x) / 4.0
    scored = 0
    for fold in range(3):
        out, rest = (folds == fold).all(1).numpy(), (folds != fold).all(1).numpy()
        scored += out.sum()
        for k in range(2):
            both, label = np.concatenate([x[rest], -x[rest]]), np.repeat([1, 0], rest.sum())
            weight = np.tile(responsibilities[rest, k].double().numpy() / 2, 2)
            fit = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=1000)
            fit.fit(both, label, sample_weight=weight)
            assert found[out, k].numpy() == pytest.approx(x[out] @ fit.coef_[0], abs=0.01)
    assert int(found.isfinite().all(1).sum()) == scored
    assert scored == len(pairs) if what == "people" else 0.2 * len(pairs) < scored < len(pairs)


def test_no_text_is_in_two_folds_and_nobody_is():
    pairs = votes()
    folds = text_folds(pairs, 4, torch.Generator().manual_seed(1))
    of = {}
    for sides, parts in zip(torch.stack([pairs.chosen, pairs.rejected], 1).tolist(), folds.tolist(), strict=True):
        for text, part in zip(sides, parts, strict=True):
            assert of.setdefault(text, part) == part
    assert set(of.values()) == set(range(4))
    people = annotator_folds(pairs.annotator_index, 4, torch.Generator().manual_seed(1))
    assert all(len(people[pairs.annotator_index == h].unique()) == 1 for h in range(30))


def test_pairs_of_their_own_texts_are_all_held_out():
    pairs = FeaturePairs(torch.randn(40, 3), torch.arange(20), torch.arange(20, 40), torch.arange(20) // 4)
    folds = text_folds(pairs, 5, torch.Generator().manual_seed(0))
    assert (folds[:, 0] == folds[:, 1]).all() and sorted(torch.bincount(folds[:, 0]).tolist()) == [4] * 5


def test_rankings_are_scored_by_what_has_not_seen_them():
    """Of two replies as the pairs; of four, whatever the choice of one fold says, its own rewards stay."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator)
    sides = torch.arange(40).view(20, 2)
    people, responsibilities = torch.arange(20) % 5, torch.rand(20, 2, generator=generator)
    pairs = FeaturePairs(features, sides[:, 0], sides[:, 1], people)
    rankings = FeatureRankings(features, RankedChoices.from_pairs(sides[:, 0], sides[:, 1], people))
    folds = text_folds(pairs, 3, torch.Generator().manual_seed(1))
    rewards, choices, inside = heldout_rankings(rankings, responsibilities, folds, 2.0)
    by_row = rewards.view(-1, 2, 2)
    expected = heldout_differences(pairs, responsibilities, folds, 2.0)
    assert inside.all() and choices.responses.tolist() == sides.tolist()
    torch.testing.assert_close(by_row[:, 0] - by_row[:, 1], expected)

    # Choices, for in which unit the prior is told depends on who stands behind whom, in full rankings.
    fours, ranks = torch.arange(40).view(10, 4), torch.eye(4).long()[torch.arange(10) % 4]
    changed = ranks.clone()
    changed[0] = ranks[0].roll(1)
    people, responsibilities = torch.arange(10) % 5, torch.ones(10, 1)
    found = []
    for own in (ranks, changed):
        rankings = FeatureRankings(features, RankedChoices(fours, own, people))
        folds = text_folds(rankings, 3, torch.Generator().manual_seed(1))
        assert folds.shape == (10, 4)
        found.append(heldout_rankings(rankings, responsibilities, folds, 2.0)[0].view(10, 4))
    same = folds[:, 0] == folds[0, 0]
    torch.testing.assert_close(found[0][same], found[1][same])
    assert (found[0][~same] - found[1][~same]).abs().max() > 1e-3
