# SPDX-License-Identifier: Apache-2.0
"""Drawing by the cumulative distribution against the distribution itself, and when it steps aside."""

import math
import warnings

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trl_maxmin.trainer.common.sampling import (
    MIN_VOCABULARY,
    SampleByCdf,
    sample_by_cdf,
    sample_completions,
    sampling_config,
    seeded,
)


CPU = torch.device("cpu")


def small_policy():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=MIN_VOCABULARY, n_layer=1, n_head=2, n_embd=8, n_positions=16)
    return GPT2LMHeadModel(config).eval()


def draw(logits, count, temperature=1.0):
    with seeded(CPU, 0):
        scores = SampleByCdf(temperature)(None, logits.repeat(count, 1))
    return torch.bincount(scores.argmax(-1), minlength=logits.shape[-1]) / count


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([[2.0, -1.0, 0.0, -math.inf, 1.0, -math.inf]])
    expected = (logits[0] / 0.7).softmax(-1)
    frequencies = draw(logits, 20_000, temperature=0.7)
    # Four standard errors of a binomial frequency; what has no probability is never drawn.
    assert ((frequencies - expected).abs() <= 4 * (expected * (1 - expected) / 20_000).sqrt()).all()
    assert frequencies[3] == 0 and frequencies[5] == 0


def test_rare_tokens_of_a_large_vocabulary_are_drawn_as_often_as_they_should():
    """One token has half of the probability, 50,256 share the rest: single precision would lose some of them."""
    logits = torch.zeros(1, 50_257)
    logits[0, 0] = math.log(50_256)
    frequencies = draw(logits, 2000)
    assert frequencies[0] == pytest.approx(0.5, abs=0.045)
    late = frequencies[25_129:].sum().item()
    assert late == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 600])
def test_every_token_can_be_drawn_whatever_the_blocks(vocabulary):
    """All probability on one token: it is drawn, be it the first or the last of a block."""
    for token in {0, min(255, vocabulary - 1), min(256, vocabulary - 1), vocabulary - 1}:
        logits = torch.full((1, vocabulary), -math.inf)
        logits[0, token] = 0.0
        assert draw(logits, 50)[token] == 1.0
    frequencies = draw(torch.zeros(1, vocabulary), 20_000)
    assert frequencies.sum() == pytest.approx(1.0)
    assert (frequencies - 1 / vocabulary).abs().max() <= 5 * (1 / vocabulary / 20_000) ** 0.5


@pytest.mark.parametrize(
    ("config", "vocabulary", "device"),
    [
        (sampling_config(1.0, 8), MIN_VOCABULARY - 1, CPU),
        (sampling_config(1.0, 8), MIN_VOCABULARY, torch.device("meta")),
        (sampling_config(1.0, 8, {"do_sample": False}), MIN_VOCABULARY, CPU),
        (sampling_config(1.0, 8, {"top_p": 0.9}), MIN_VOCABULARY, CPU),
        (sampling_config(1.0, 8, {"repetition_penalty": 1.2}), MIN_VOCABULARY, CPU),
        (sampling_config(1.0, 8, {"min_new_tokens": 2}), MIN_VOCABULARY, CPU),
    ],
)
def test_transformers_draws_where_anything_else_is_asked_for(config, vocabulary, device):
    before = config.to_dict()
    assert sample_by_cdf(config, vocabulary, device) is None
    assert config.to_dict() == before


def test_generation_draws_from_the_model_at_its_temperature():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=MIN_VOCABULARY, n_layer=1, n_head=2, n_embd=8, n_positions=16)
    ).eval()
    model.lm_head.weight.data.mul_(60)
    config = sampling_config(0.8, 2)
    with seeded(CPU, 0), warnings.catch_warnings():
        warnings.simplefilter("error")
        replies = sample_completions(model, [[5, 6]] * 6000, config, 0, [], 6000)
    assert config.do_sample and config.temperature == 0.8
    first = torch.tensor([ids[0] for ids, _ in replies])
    expected = (model(torch.tensor([[5, 6]])).logits[0, -1] / 0.8).softmax(-1)
    common = expected.topk(5).indices
    frequencies = torch.bincount(first, minlength=MIN_VOCABULARY) / 6000
    error = 4 * (expected * (1 - expected) / 6000).sqrt()
    assert ((frequencies - expected).abs() <= error)[common].all()
    assert all(len(ids) == 2 for ids, _ in replies)


def test_the_same_stream_draws_the_same_replies_and_another_does_not():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=MIN_VOCABULARY, n_layer=1, n_head=2, n_embd=8, n_positions=16)
    ).eval()
    drawn = []
    for name in ("a", "a", "b"):
        with seeded(CPU, 0, name):
            drawn.append(sample_completions(model, [[5]] * 8, sampling_config(1.0, 6), 0, [2], 4))
    assert drawn[0] == drawn[1] != drawn[2]
