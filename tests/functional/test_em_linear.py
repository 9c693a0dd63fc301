# SPDX-License-Identifier: Apache-2.0
"""Linear mixtures: Newton against scikit-learn, planted groups found, out-of-fold scores not fooled by memorising."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score

from trl_maxmin.functional.em_features import fit_feature_mixture, fit_rewards


def test_weighted_logistic_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(200, 2, generator=generator, dtype=torch.float64)
    ridge = 0.7
    ours = fit_weighted_logistic(
        x, weights, torch.zeros(200).double(), ridge, torch.zeros(2, 3).double(), num_steps=50
    )
    for k in range(2):
        # A pair is one example of class 1 at x and one of class 0 at -x: scikit-learn then has both classes, twice
        # over.
        both = torch.cat([x, -x]).numpy()
        labels = [1] * 200 + [0] * 200
        w = torch.cat([weights[:, k], weights[:, k]]).numpy() / 2
        reference = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=1000)
        reference.fit(both, labels, sample_weight=w)
        torch.testing.assert_close(ours[k], torch.tensor(reference.coef_[0]), atol=1e-5, rtol=1e-4)


def test_margin_moves_the_fit():
    """One feature that is always 1: the reward difference w satisfies mean sigmoid(w - m) + ridge w = 1."""
    x, weights = torch.ones(50, 1).double(), torch.ones(50, 1).double()
    start = torch.zeros(1, 1).double()
    plain = fit_weighted_logistic(x, weights, torch.zeros(50).double(), 1e-3, start, 100)
    shifted = fit_weighted_logistic(x, weights, torch.full((50,), 2.0).double(), 1e-3, start, 100)
    assert shifted.item() > plain.item() + 1


def test_linear_rewards_are_where_the_gradient_vanishes():
    """The likelihood pulls as hard as the prior, whose precision is 1 once the mean square of the features is 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 3.0])
    weights, margin = torch.rand(300, 2, generator=generator), torch.rand(300, generator=generator)
    found = fit_linear_rewards(x, weights, margin)
    x = x.double()
    miss = weights.double() * torch.sigmoid(margin.double().unsqueeze(1) - x @ found.T)
    precision = x.square().mean(0).mean()
    torch.testing.assert_close(miss.T @ x, precision * found, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_found(seed):
    x, annotator, group, directions = planted(seed=seed)
    found = fit_linear_mixture(x, annotator, 40, 2, generator=torch.Generator().manual_seed(seed))
    possible = agreement_of_the_true_posterior(x, annotator, group, directions)
    # One annotator of 40 on the wrong side costs about 0.1.
    assert adjusted_rand_score(group, found.log_responsibilities.argmax(-1)) > possible - 0.11
    torch.testing.assert_close(found.log_responsibilities.exp().sum(-1), torch.ones(40).double())
    assert sorted(found.mixing_weights.tolist())[0] == pytest.approx(0.25, abs=0.05)
    cosine = torch.nn.functional.cosine_similarity(found.weight.unsqueeze(1), directions.unsqueeze(0), dim=-1)
    assert cosine.max(-1).values.min() > 0.85


def test_relabelling_annotators_changes_only_their_order():
    x, annotator, _, _ = planted(seed=1)
    generator = torch.Generator().manual_seed(0)
    first = fit_linear_mixture(x, annotator, 40, 2, generator=generator)
    mirrored = fit_linear_mixture(x, 39 - annotator, 40, 2, generator=torch.Generator().manual_seed(0))
    assert adjusted_rand_score(
        first.log_responsibilities.argmax(-1), mirrored.log_responsibilities.argmax(-1).flip(0)
    ) == pytest.approx(1.0)


def test_more_features_than_pairs_do_not_fool_the_assignment():
    """With 100 noise features a component can memorise its own pairs; out-of-fold scores must not reward that."""
    x, annotator, group, directions = planted(pairs=40, dimension=100, seed=0, scale=4.0)
    found = fit_linear_mixture(x, annotator, 40, 2, generator=torch.Generator().manual_seed(0), num_init=8)
    possible = agreement_of_the_true_posterior(x, annotator, group, directions)
    assert adjusted_rand_score(group, found.log_responsibilities.argmax(-1)) > possible - 0.11


def test_equal_features_are_refused():
    with pytest.raises(ValueError, match="same features"):
        fit_linear_mixture(torch.zeros(4, 2), torch.zeros(4).long(), 1, 1, generator=torch.Generator())
