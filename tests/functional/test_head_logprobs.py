# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities by blocks of the vocabulary against torch's cross entropy of the whole logits."""

import pytest
import torch
import torch.nn.functional as F

from trl_maxmin.functional import head_logprobs as module
from trl_maxmin.functional.head_logprobs import head_logprobs, start_grad


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "ROWS", 3)


def example(rows=7, vocabulary=10):
    generator = torch.Generator().manual_seed(0)
    hidden = 2 * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, 5, generator=generator, dtype=torch.float64)
    return hidden, weight, torch.randint(vocabulary, (rows,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_values_and_gradients_are_those_of_cross_entropy(temperature, keep, in_place):
    hidden, weight, tokens = example()
    coefficients = torch.linspace(-2, 3, len(tokens), dtype=torch.float64)
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in (hidden, weight)] for _ in range(2))
    if in_place:
        start_grad(ours[1])
    logprobs, entropy = head_logprobs(*ours, tokens, temperature, True, keep, in_place)
    logits = theirs[0] @ theirs[1].T / temperature
    expected = -F.cross_entropy(logits, tokens, reduction="none")
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy())
    assert not entropy.requires_grad
    (logprobs * coefficients).sum().backward()
    (expected * coefficients).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_in_place_adds_to_what_is_there_and_a_frozen_head_gets_nothing():
    hidden, weight, tokens = example()
    weight.requires_grad_()
    for _ in range(2):
        start_grad(weight)
        head_logprobs(hidden, weight, tokens, add_to_grad=True)[0].sum().backward()
    twice, weight.grad = weight.grad, None
    head_logprobs(hidden, weight, tokens)[0].sum().backward()
    torch.testing.assert_close(twice, 2 * weight.grad)
    frozen, states = weight.detach(), hidden.requires_grad_()
    head_logprobs(states, frozen, tokens, add_to_grad=True)[0].sum().backward()
    assert frozen.grad is None and states.grad.abs().sum() > 0


def test_no_tokens_and_large_logits():
    hidden, weight, tokens = example()
    none, _ = head_logprobs(hidden[:0].requires_grad_(), weight.requires_grad_(), tokens[:0])
    none.sum().backward()
    assert none.shape == (0,) and weight.grad.abs().sum() == 0
    logprobs, entropy = head_logprobs(1e4 * hidden.detach(), weight.detach(), tokens, with_entropy=True)
    torch.testing.assert_close(logprobs, (1e4 * hidden @ weight.T).log_softmax(-1).gather(1, tokens[:, None])[:, 0])
    assert entropy.isfinite().all()


def test_a_second_backward_and_a_wrong_shape_are_errors():
    hidden, weight, tokens = example()
    loss = head_logprobs(hidden.requires_grad_(), weight, tokens)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward cannot run"):
        loss.backward()
    with pytest.raises(ValueError, match="one per row of hidden states"):
        head_logprobs(hidden, weight, tokens[:-1])
