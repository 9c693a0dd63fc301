# SPDX-License-Identifier: Apache-2.0
"""A mixture reads rankings as it reads pairs: each distinct reply once, the same numbers for two replies."""

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from trl_maxmin import MixtureRewardModel
from trl_maxmin.data.rankings import pairs_to_rankings, rankings_to_pairs


@pytest.fixture
def mixture(word_tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(word_tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    made = MixtureRewardModel.from_base(GPT2LMHeadModel(config), 3, processing_class=word_tokenizer)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


REPLIES = ["the film is great", "the plot is dull", "superb", "the film is awful"]


def rankings():
    rows = [
        {"prompt": "review :", "responses": REPLIES, "ranking": [1, None, None, None], "annotator_id": "a"},
        {"prompt": "review :", "responses": REPLIES[::-1], "ranking": [1, 2, 3, 4], "annotator_id": "a"},
        {"prompt": "review :", "responses": REPLIES[:3], "ranking": [2, 1, 2], "annotator_id": "b"},
    ]
    return Dataset.from_list(rows)


def test_rankings_are_luces_probability_of_the_rewards(mixture):
    rewards = mixture.score(["review :"] * 4, REPLIES).double()
    got = mixture.preference_log_likelihood(rankings()).double()
    a, b, c, d = rewards
    assert torch.allclose(got[0], a - torch.stack([a, b, c, d]).logsumexp(0), atol=1e-5)
    full = (d - torch.stack([a, b, c, d]).logsumexp(0)) + (c - torch.stack([a, b, c]).logsumexp(0))
    full = full + b - torch.stack([a, b]).logsumexp(0)
    assert torch.allclose(got[1], full, atol=1e-5)
    assert torch.allclose(got[2], b - torch.stack([a, b, c]).logsumexp(0), atol=1e-5)


def test_posteriors_of_rankings(mixture):
    posterior = mixture.assign(rankings())
    sums = torch.stack([mixture.preference_log_likelihood(rankings())[:2].sum(0)]).double()
    expected = torch.softmax(mixture.mixing_weights.log() + mixture.config.evidence_weight * sums[0], 0)
    assert posterior.annotator_ids == ("a", "b") and posterior.num_pairs.tolist() == [2, 1]
    assert torch.allclose(posterior.probabilities[0].double(), expected.double(), atol=1e-5)


def test_two_replies_are_a_pair(mixture):
    pairs = rankings_to_pairs(rankings())
    ranked = pairs_to_rankings(pairs)
    assert torch.allclose(
        mixture.preference_log_likelihood(pairs), mixture.preference_log_likelihood(ranked), atol=1e-6
    )
    assert torch.allclose(mixture.assign(pairs).probabilities, mixture.assign(ranked).probabilities, atol=1e-6)


def test_each_distinct_reply_is_scored_once(mixture, monkeypatch):
    counted = []
    forward = type(mixture).forward

    def count(self, input_ids=None, *args, **kwargs):
        counted.append(len(input_ids))
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(mixture), "forward", count)
    mixture.preference_log_likelihood(rankings())
    assert sum(counted) == len(REPLIES), "eleven replies stand in the three rankings"
