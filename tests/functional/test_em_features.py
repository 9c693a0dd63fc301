# SPDX-License-Identifier: Apache-2.0
"""EM on a table of texts: against scikit-learn for one component, against the planted groups for several."""

import math
import time

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score

from trl_maxmin.functional import feature_pairs, num_components
from trl_maxmin.functional.em_features import (
    PRIOR_SCALES,
    directions_of_pairs,
    fit_feature_mixture,
    fit_feature_mixtures,
    fit_rewards,
)
from trl_maxmin.functional.feature_pairs import FeaturePairs, deal_folds
from trl_maxmin.functional.num_components import cross_validate, heldout_scores


def planted(num_annotators=40, pairs=20, dimension=6, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.zeros(2, dimension, dtype=torch.float64)
    directions[0, 0] = directions[1, 1] = scale
    group = (torch.arange(num_annotators) < num_annotators // 4).long()
    annotator = torch.arange(num_annotators).repeat_interleave(pairs)
    x = torch.randn(len(annotator), dimension, generator=generator, dtype=torch.float64)
    odds = (x * directions[group[annotator]]).sum(-1)
    sign = torch.where(torch.rand(len(x), generator=generator) < torch.sigmoid(odds), 1.0, -1.0)
    return x * sign.unsqueeze(1), annotator, group, directions


def agreement_of_the_true_posterior(x, annotator, group, directions):
    """What knowing the planted rewards would give: nothing can do much better on these pairs."""
    log_likelihood = torch.nn.functional.logsigmoid(x @ directions.T)
    sums = torch.stack([log_likelihood[annotator == h].sum(0) for h in range(int(annotator.max()) + 1)])
    share = torch.tensor([(group == k).double().mean() for k in range(2)])
    return adjusted_rand_score(group, (share.log() + sums).argmax(-1))


def table(x, annotator, margin=None):
    """Pairs whose differences are `x`, over two texts each."""
    n = len(x)
    return FeaturePairs(torch.cat([x, -x]) / 2, torch.arange(n), torch.arange(n) + n, annotator, margin)


def fit(pairs, people, k, seed=0, **kwargs):
    return fit_feature_mixture(pairs, people, k, generator=torch.Generator().manual_seed(seed), **kwargs)


def test_one_component_is_ridge_logistic_regression():
    x, annotator, _, _ = planted()
    pairs = table(x, annotator)
    scale = x.square().mean().item()
    ours = fit(pairs, 40, 1, prior_scale=1.5, num_final_steps=300).weight[0]
    # The prior makes a pair's log-odds, whose mean square is 6 scale |w|^2 / 6 on average over w, 1.5 wide.
    reference = LogisticRegression(C=1.5**2 / (6 * scale), fit_intercept=False, tol=1e-10, max_iter=1000)
    reference.fit(torch.cat([x, -x]).numpy(), [1] * len(x) + [0] * len(x), sample_weight=[0.5] * 2 * len(x))
    torch.testing.assert_close(ours, torch.tensor(reference.coef_[0]), atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_found_about_as_well_as_the_true_rewards_find_them(seed):
    x, annotator, group, directions = planted(seed=seed)
    fitted = fit(table(x, annotator), 40, 2, seed=seed)
    found = adjusted_rand_score(group, fitted.log_responsibilities.argmax(-1))
    assert found >= agreement_of_the_true_posterior(x, annotator, group, directions) - 0.12
    torch.testing.assert_close(fitted.log_responsibilities.exp().sum(-1), torch.ones(40).double())
    assert fitted.mixing_weights.min().item() == pytest.approx(0.25, abs=0.1)


def test_known_annotators_stay_where_they_are():
    x, annotator, group, _ = planted()
    known = torch.full((40,), -1)
    known[0], known[39] = 1, 1  # annotator 39 is of the other group in truth
    fitted = fit(table(x, annotator), 40, 2, known=known)
    assert fitted.log_responsibilities.exp()[[0, 39], 1].tolist() == [1.0, 1.0]


def test_a_margin_moves_the_fit():
    pairs = table(torch.ones(50, 1), torch.zeros(50).long())
    shifted = table(torch.ones(50, 1), torch.zeros(50).long(), torch.full((50,), 2.0))
    assert fit(shifted, 1, 1).weight.item() > fit(pairs, 1, 1).weight.item() + 0.5


def test_principal_directions_leave_the_differences_uncorrelated():
    x, annotator, _, _ = planted()
    x = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).double()
    directions, curvature = directions_of_pairs(table(x, annotator))
    moved = x.float() @ directions
    torch.testing.assert_close(moved.T @ moved / len(x), torch.diag(curvature), atol=1e-3, rtol=1e-3)
    assert curvature.mean().item() == pytest.approx(1.0)


def test_folds_deal_out_every_annotator_evenly():
    annotator = torch.tensor([0] * 10 + [1] * 7 + [2])
    folds = deal_folds(table(torch.ones(18, 1), annotator), 5, torch.Generator().manual_seed(0))
    assert (folds[:, 0] == folds[:, 1]).all()
    fold = folds[:, 0]
    assert torch.bincount(fold[:10]).tolist() == [2] * 5
    counts = torch.bincount(fold[10:17], minlength=5)
    assert counts.min() >= 1 and counts.max() <= 2


def votes(num_people, num_texts=40, agreed=5, disagreed=6, seed=0):
    """Each statement that a person agrees with against each that they disagree with, by tossed coins: no groups, and
    nothing to know about a person's other votes."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for person in range(num_people):
        texts = torch.randperm(num_texts, generator=generator)[: agreed + disagreed].tolist()
        rows += [(a, d, person) for a in texts[:agreed] for d in texts[agreed:]]
    chosen, rejected, annotator = (torch.tensor(column) for column in zip(*rows, strict=True))
    features = torch.randn(num_texts, 12, generator=generator)
    return FeaturePairs(features, chosen, rejected, annotator)


def test_what_scores_a_pair_knows_neither_of_its_texts_from_the_same_annotator():
    pairs = votes(20)
    folds = deal_folds(pairs, 5, torch.Generator().manual_seed(0))
    scored = 0
    for part in range(5):
        out, rest = (folds == part).all(1), (folds != part).all(1)
        for person in range(20):
            own = pairs.annotator_index == person
            held = {t for side in (pairs.chosen, pairs.rejected) for t in side[own & out].tolist()}
            seen = {t for side in (pairs.chosen, pairs.rejected) for t in side[own & rest].tolist()}
            assert not held & seen
        scored += int(out.sum())
    assert len(pairs) / 10 < scored < len(pairs) / 3  # a fifth in the mean


def test_pairs_that_hang_together_stay_together_where_they_are_few():
    # Ten rankings of three texts each: 30 pairs of one person, and one person whose pairs share nothing.
    first = torch.arange(0, 30, 3).repeat_interleave(3)
    chosen = torch.cat([first + torch.tensor([0, 0, 1] * 10), torch.arange(30, 40)])
    rejected = torch.cat([first + torch.tensor([1, 2, 2] * 10), torch.arange(40, 50)])
    pairs = FeaturePairs(torch.eye(50), chosen, rejected, torch.tensor([0] * 30 + [1] * 10))
    folds = deal_folds(pairs, 5, torch.Generator().manual_seed(0))
    assert (folds[:, 0] == folds[:, 1]).all()
    assert (folds[:30, 0].view(10, 3) == folds[:30:3, 0].view(10, 1)).all()
    assert torch.bincount(folds[:30:3, 0], minlength=5).tolist() == [2] * 5
    assert torch.bincount(folds[30:, 0], minlength=5).tolist() == [2] * 5


def test_coin_tosses_are_no_evidence_of_groups(monkeypatch):
    pairs, coin = votes(60), math.log(0.5)

    def likelihood():
        fits = cross_validate(pairs, 60, (1, 4), seed=0, num_init=3)
        scores = {k: heldout_scores(of, pairs.annotator_index) for k, of in fits.items()}
        kept = scores[1].isfinite()
        assert (kept == scores[4].isfinite()).all()
        return {k: value[kept].mean().item() for k, value in scores.items()}, kept.sum()

    dealt_by_text, kept = likelihood()
    assert dealt_by_text[4] < dealt_by_text[1] < coin
    assert len(pairs) / 10 < kept < len(pairs) / 3

    def by_pair(pairs, num_folds, generator):
        return torch.randint(num_folds, (len(pairs), 1), generator=generator).repeat(1, 2)

    # Why: what a person's own votes imply is remembered, the better the more components there are.
    monkeypatch.setattr(num_components, "deal_folds", by_pair)
    dealt_by_pair, _ = likelihood()
    assert dealt_by_pair[4] > dealt_by_pair[1] > coin


def test_a_pair_is_never_scored_by_what_has_seen_it():
    """A pair that contradicts all others scores the same whichever way it is turned, up to what the others say."""

    def scores_of(pairs):
        return heldout_scores(cross_validate(pairs, 12, (1,), seed=0, prior_scale=2.0)[1], pairs.annotator_index)

    x, annotator, _, _ = planted(num_annotators=12, pairs=10)
    scores = scores_of(table(x, annotator))
    odd = x.clone()
    odd[5] = -odd[5]
    turned = scores_of(table(odd, annotator))
    # sigma(d) and sigma(-d): the model that scores pair 5 is the same, so the two probabilities sum to 1.
    assert (scores[5].exp() + turned[5].exp()).item() == pytest.approx(1.0, abs=1e-4)


def test_errors():
    x, annotator, _, _ = planted()
    with pytest.raises(ValueError, match="same features"):
        fit(table(torch.zeros(4, 2), torch.zeros(4).long()), 1, 1)
    with pytest.raises(ValueError, match="at least 2 folds, got 800 pairs and 1"):
        fit(table(x, annotator), 40, 2, num_folds=1)


def test_hard_em_ends_where_everybody_is_likeliest_and_known_annotators_stay():
    x, annotator, *_ = planted(seed=0)
    pairs = table(x, annotator)
    people = int(annotator.max()) + 1
    known = torch.full((people,), -1)
    known[:2] = torch.tensor([1, 0])
    for fixed in (None, known):
        fitted = fit_feature_mixture(
            pairs, people, 2, generator=torch.Generator().manual_seed(0), num_init=2, em="hard", known=fixed
        )
        found = fitted.log_responsibilities.exp()
        assert set(found.flatten().tolist()) == {0.0, 1.0}
        sums = torch.zeros(people, 2, dtype=torch.float64).index_add(0, pairs.annotator_index, fitted.scores.double())
        free = torch.ones(people, dtype=torch.bool) if fixed is None else fixed < 0
        assert (found.argmax(1) == sums.argmax(1))[free].all()
        if fixed is not None:
            assert found[:2].argmax(1).tolist() == [1, 0]


def test_annotators_who_judge_texts_twice_are_found_in_no_time():
    """20,000 of them once took seven seconds."""
    people = 20_000
    chosen = torch.arange(2 * people) % 50
    chosen[1::2] = chosen[::2]
    owners = torch.arange(people).repeat_interleave(2)
    pairs = FeaturePairs(torch.zeros(60, 4), chosen, torch.arange(2 * people) % 10 + 50, owners)
    began = time.process_time()
    rows = feature_pairs._rows_that_share_texts(pairs)
    assert time.process_time() - began < 1
    assert [part.tolist() for part in rows[:2]] == [[0, 1], [2, 3]] and len(rows) == people
    # Who never judges a text twice is not among them, wherever their rows stand.
    mixed = FeaturePairs(
        torch.zeros(6, 1), torch.tensor([0, 2, 0, 4]), torch.tensor([1, 3, 5, 5]), torch.tensor([7, 2, 7, 3])
    )
    assert [part.tolist() for part in feature_pairs._rows_that_share_texts(mixed)] == [[0, 2]]


def test_weighted_rewards_equal_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(200, 2, generator=generator, dtype=torch.float64)
    ours = fit_rewards(table(x, torch.zeros(200).long()), weights, prior_scale=1.5)
    scale = x.square().sum(1).mean().item()
    for k in range(2):
        # A pair is one example of class 1 at x and one of class 0 at -x: scikit-learn then has both classes, twice
        # over.
        both, labels = torch.cat([x, -x]).numpy(), [1] * 200 + [0] * 200
        reference = LogisticRegression(C=1.5**2 / scale, fit_intercept=False, tol=1e-10, max_iter=1000)
        reference.fit(both, labels, sample_weight=torch.cat([weights[:, k], weights[:, k]]).numpy() / 2)
        torch.testing.assert_close(ours[k], torch.tensor(reference.coef_[0]), atol=2e-3, rtol=5e-3)


def test_linear_rewards_are_where_the_gradient_vanishes():
    """By default the likelihood pulls as hard as a prior of precision 1, once the mean square of the features is 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 3.0])
    weights, margin = torch.rand(300, 2, generator=generator), torch.rand(300, generator=generator)
    found = fit_rewards(table(x, torch.zeros(300).long(), margin), weights, num_steps=500)
    x = x.double()
    miss = weights.double() * torch.sigmoid(margin.double().unsqueeze(1) - x @ found.T)
    precision = x.square().mean(0).mean()
    torch.testing.assert_close(miss.T @ x, precision * found, atol=2e-2, rtol=2e-3)


def test_relabelling_annotators_changes_only_their_order():
    x, annotator, _, _ = planted(seed=1)
    first, mirrored = fit(table(x, annotator), 40, 2), fit(table(x, 39 - annotator), 40, 2)
    assert adjusted_rand_score(
        first.log_responsibilities.argmax(-1), mirrored.log_responsibilities.argmax(-1).flip(0)
    ) == pytest.approx(1.0)


def test_more_features_than_pairs_do_not_fool_the_assignment():
    """With 100 noise features a component can memorise its own pairs; out-of-fold scores must not reward that."""
    x, annotator, group, directions = planted(pairs=40, dimension=100, seed=0, scale=4.0)
    found = fit(table(x, annotator), 40, 2)
    possible = agreement_of_the_true_posterior(x, annotator, group, directions)
    assert adjusted_rand_score(group, found.log_responsibilities.argmax(-1)) > possible - 0.11


def test_the_prior_is_as_wide_as_the_votes_are_sure():
    """Chosen out of fold: of votes by tossed coins the narrowest, of votes that are all but certain a wide one."""
    x, annotator, _, _ = planted(dimension=30, scale=6.0)
    certain = fit(table(x, annotator), 40, 2)
    generator = torch.Generator().manual_seed(0)
    coins = torch.where(torch.rand(len(x), 1, generator=generator) < 0.5, 1.0, -1.0).double() * x
    tossed = fit(table(coins, annotator), 40, 1)
    assert tossed.prior_scale <= 0.125 < 2.0 <= certain.prior_scale
    assert {tossed.prior_scale, certain.prior_scale} <= set(PRIOR_SCALES)
    assert fit(table(x, annotator), 40, 2, prior_scale=3.0).prior_scale == 3.0


def test_what_is_found_for_one_k_does_not_depend_on_the_others():
    x, annotator, _, _ = planted(num_annotators=12, pairs=10)
    pairs = table(x, annotator)
    alone = fit(pairs, 12, 2)
    among = fit_feature_mixtures(pairs, 12, (1, 2, 3), generator=torch.Generator().manual_seed(0))[2]
    assert torch.equal(alone.weight, among.weight) and alone.score == among.score


@pytest.mark.parametrize("seed", range(5))
def test_six_annotators_of_two_minds_are_told_apart(seed):
    """Three and three, from any seed of the starts."""
    annotator, group = torch.arange(6).repeat_interleave(60), torch.tensor([0, 1, 0, 1, 1, 0])
    x = torch.where(group[annotator].bool(), -1.0, 1.0).unsqueeze(1) * planted_alike(6, 60)
    found = fit(table(x, annotator), 6, 2, seed=seed)
    assert adjusted_rand_score(group, found.log_responsibilities.argmax(-1)) == 1.0
    assert found.num_starts == 8 and 1 <= found.num_partitions <= 8


def planted_alike(people, pairs, dimension=20, scale=2.0):
    """Differences of pairs of annotators who all want the same."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(people * pairs, dimension, generator=generator, dtype=torch.float64)
    right = torch.rand(len(x), generator=generator) < torch.sigmoid(scale * x[:, 0])
    return torch.where(right, 1.0, -1.0).unsqueeze(1) * x


def test_a_minority_of_a_twentieth_is_found():
    group = torch.arange(100) < 5
    x = torch.where(group.repeat_interleave(40), -1.0, 1.0).unsqueeze(1) * planted_alike(100, 40)
    found = fit(table(x, torch.arange(100).repeat_interleave(40)), 100, 2)
    assert adjusted_rand_score(group, found.log_responsibilities.argmax(-1)) == 1.0
