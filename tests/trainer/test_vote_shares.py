# SPDX-License-Identifier: Apache-2.0
"""Shares of votes without names: two weighted votes in everything, and what is fitted to them."""

import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from tests.trainer.test_mixture_reward_trainer import BAD, FILLER, GOOD, config, tiny_model
from trl_maxmin.data.columns import VOTE_SHARE
from trl_maxmin.functional.em_features import _fitter, fit_feature_mixture, fit_rewards
from trl_maxmin.functional.feature_pairs import FeaturePairs
from trl_maxmin.functional.preference import fit_temperature, preference_log_likelihood
from trl_maxmin.trainer import MixtureRewardTrainer
from trl_maxmin.trainer.reward.scored_rows import ScoredPairs


SHARES = (0.5, 0.6, 0.8, 1.0)


def shared(rows=96, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def pick(words):
        return words[int(torch.randint(len(words), (1,), generator=generator))]

    return Dataset.from_list([
        {"prompt": "review :", "chosen": f"{pick(FILLER)} {pick(FILLER)} is {pick(GOOD)}",
         "rejected": f"{pick(FILLER)} {pick(FILLER)} is {pick(BAD)}", VOTE_SHARE: SHARES[n % 4]}
        for n in range(rows)
    ])  # fmt: skip


def drawn(seed=0, count=400, width=4):
    """Pairs of texts with shares of votes near those of a linear reward."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(40, width, generator=generator)
    chosen = torch.randint(40, (count,), generator=generator)
    rejected = (chosen + torch.randint(1, 40, (count,), generator=generator)) % 40
    weight = torch.randn(width, generator=generator)
    probability = torch.sigmoid((features[chosen] - features[rejected]) @ weight)
    swap = probability < 0.5
    chosen, rejected = torch.where(swap, rejected, chosen), torch.where(swap, chosen, rejected)
    return FeaturePairs(features, chosen, rejected, torch.arange(count), share=(probability - 0.5).abs() + 0.5), weight


def as_votes(pairs):
    """Both votes of each pair, and what they weigh."""
    return FeaturePairs(
        pairs.features,
        torch.cat([pairs.chosen, pairs.rejected]),
        torch.cat([pairs.rejected, pairs.chosen]),
        pairs.annotator_index.repeat(2),
    ), torch.cat([pairs.share, 1 - pairs.share])


def test_the_likelihood_is_that_of_two_weighted_votes():
    d = torch.linspace(-30, 30, 13, dtype=torch.float64).unsqueeze(1).requires_grad_()
    share = torch.linspace(0.5, 1, 13, dtype=torch.float64)
    got = preference_log_likelihood(d, torch.zeros_like(d), None, share)
    hand = [[s * -math.log1p(math.exp(-x)) + (1 - s) * -math.log1p(math.exp(x))]
            for x, s in zip(d.flatten().tolist(), share.tolist(), strict=True)]  # fmt: skip
    assert torch.allclose(got, torch.tensor(hand, dtype=torch.float64), atol=1e-12)
    assert torch.autograd.gradcheck(lambda r: preference_log_likelihood(r, torch.zeros_like(r), None, share), (d,))
    sure = preference_log_likelihood(d, torch.zeros_like(d), None, torch.ones(13))
    assert torch.equal(sure, preference_log_likelihood(d, torch.zeros_like(d)))
    with pytest.raises(ValueError, match="`share` has shape"):
        preference_log_likelihood(d, torch.zeros_like(d), None, torch.ones(2))


def test_the_temperature_is_that_of_two_weighted_votes():
    generator = torch.Generator().manual_seed(0)
    d = 3 * torch.randn(300, generator=generator, dtype=torch.float64)
    share = torch.sigmoid(d / 2.5)
    found = fit_temperature(d, share=share)
    assert found == pytest.approx(2.5, rel=1e-9), "shares that are the odds at 2.5"
    assert found == pytest.approx(fit_temperature(torch.cat([d, -d]), torch.cat([share, 1 - share])), rel=1e-9)
    with pytest.raises(ValueError, match="`share` has shape"):
        fit_temperature(d, share=share[:2])


def test_rewards_on_features_are_those_of_two_weighted_votes():
    pairs, weight = drawn()
    votes, each = as_votes(pairs)
    one = fit_rewards(pairs, torch.ones(len(pairs), 1), 2.0, num_steps=400)
    # The prior counts pairs, and there are twice as many.
    two = fit_rewards(votes, each.unsqueeze(1), 2.0, num_steps=400)
    assert torch.allclose(one, two, atol=1e-3)
    assert torch.nn.functional.cosine_similarity(one[0], weight.double(), dim=0) > 0.99
    likelihood = votes.log_likelihood(one)[:, 0] * each
    assert torch.allclose(pairs.log_likelihood(one)[:, 0], likelihood.view(2, -1).sum(0), atol=1e-6)
    rows = torch.tensor([3, 1])
    assert torch.equal(pairs.select(rows).share, pairs.share[rows])


def test_what_a_pair_would_change_of_a_reward():
    pairs, _ = drawn(count=30)
    fitter, directions = _fitter(pairs)
    weights = torch.randn(2, directions.shape[1], generator=torch.Generator().manual_seed(0))
    own = torch.arange(30) % 2
    found, variance = fitter.annotator_gradients(weights, torch.zeros(30, 1), own, 30)
    rewards = (fitter.texts @ weights.T)[:, own]
    d = rewards[fitter.pairs.chosen, torch.arange(30)] - rewards[fitter.pairs.rejected, torch.arange(30)]
    slope = pairs.share - torch.sigmoid(d)
    features = fitter.texts[fitter.pairs.chosen] - fitter.texts[fitter.pairs.rejected]
    assert torch.allclose(found, slope.unsqueeze(1) * features, atol=1e-5)
    assert variance == pytest.approx((torch.sigmoid(d) * torch.sigmoid(-d)).mean().item(), rel=1e-5)


def test_em_takes_them():
    pairs, weight = drawn()
    options = {"num_init": 2, "num_steps": 9, "num_final_steps": 4, "num_final_folds": 3}
    one, two = (
        fit_feature_mixture(pairs, len(pairs), k, generator=torch.Generator().manual_seed(0), **options)
        for k in (1, 2)
    )
    assert torch.nn.functional.cosine_similarity(one.weight[0], weight.double(), dim=0) > 0.98
    assert two.scores.isfinite().all() and two.scores.shape == (len(pairs), 2)
    sure = fit_feature_mixture(
        FeaturePairs(pairs.features, pairs.chosen, pairs.rejected, pairs.annotator_index), len(pairs), 1,
        generator=torch.Generator().manual_seed(0), prior_scale=8.0, **options,
    )  # fmt: skip
    assert sure.weight.norm() > 1.5 * one.weight.norm(), "certain choices are surer"


@pytest.mark.parametrize("train_trunk", [False, True])
def test_training_on_shares(word_tokenizer, tmp_path, train_trunk):
    data = shared(96 if train_trunk else 400)
    trainer = MixtureRewardTrainer(
        tiny_model(word_tokenizer),
        config(tmp_path, heldout_fraction=0.0, num_components=1, train_trunk=train_trunk, max_steps=30),
        train_dataset=data, processing_class=word_tokenizer, eval_dataset=shared(seed=1),
    )  # fmt: skip
    trainer.train()
    difference = trainer.reward_differences(trainer.eval_dataset).mean().item()
    # Texts say nothing of how many agreed, so the best reward gives all pairs the odds of the mean share.
    assert difference == pytest.approx(math.log(0.725 / 0.275), abs=0.3)
    scored = trainer.scored(trainer.eval_dataset)
    assert scored.accuracy.mean() > 0.95 and scored.log_likelihood().mean() == pytest.approx(-0.588, abs=0.02)
    right, _ = scored.of_mixture(torch.zeros(96, 1).double(), scored.log_likelihood())
    assert right.mean() > 0.95
    if not train_trunk:
        return
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    assert batch[VOTE_SHARE].tolist() == pytest.approx(SHARES)
    trainer.mixture.eval()
    chosen, rejected = trainer.mixture(batch["input_ids"], batch["attention_mask"]).rewards.chunk(2)
    d, share = (chosen - rejected).flatten(), torch.tensor(SHARES)
    expected = -(share * F.logsigmoid(d) + (1 - share) * F.logsigmoid(-d)).mean()
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected, atol=1e-5, rtol=1e-5)
    assert trainer.evaluate()["eval_accuracy"] > 0.95
    evidence = trainer.mixture.preference_log_likelihood(trainer.eval_dataset)
    torch.testing.assert_close(evidence.double(), scored.log_likelihood(), atol=1e-4, rtol=1e-4)
    posterior = trainer.mixture.assign(data)
    assert len(posterior.annotator_ids) == 96 and posterior.num_pairs.tolist() == [1] * 96


def test_the_mixture_is_right_where_it_is_with_most_of_the_votes():
    scored = ScoredPairs(torch.tensor([[9.0], [0.1], [-0.1]]), None, torch.tensor([0.6, 0.6, 0.6]))
    right, _ = scored.of_mixture(torch.zeros(3, 1).double(), scored.log_likelihood())
    assert right.tolist() == [1, 1, 0], "also where it is far surer than the votes"
    assert scored.select(torch.tensor([2])).share.tolist() == pytest.approx([0.6])
