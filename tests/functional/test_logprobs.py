# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of tokens against torch's own cross entropy, finite differences and scipy-free arithmetic."""

import math

import pytest
import torch
import torch.nn.functional as F

from trl_maxmin.functional import token_logprobs


def example(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(5, 7, generator=generator)).to(dtype)
    return logits, torch.tensor([0, 6, 3, 3, 1])


def test_values_and_gradients_are_those_of_cross_entropy():
    logits, tokens = example(torch.float32)
    weights = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    logprobs, entropy = token_logprobs(ours, tokens)
    expected = -F.cross_entropy(theirs, tokens, reduction="none")
    assert entropy is None
    torch.testing.assert_close(logprobs, expected)
    (logprobs * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_gradient_agrees_with_finite_differences():
    logits, tokens = example()
    step = 1e-6

    def total(changed):
        return token_logprobs(changed, tokens)[0].square().sum().item()

    numeric = torch.zeros_like(logits)
    for place in range(logits.numel()):
        change = torch.zeros(logits.numel(), dtype=logits.dtype)
        change[place] = step
        change = change.view_as(logits)
        numeric.view(-1)[place] = (total(logits + change) - total(logits - change)) / (2 * step)
    logits.requires_grad_()
    token_logprobs(logits, tokens)[0].square().sum().backward()
    torch.testing.assert_close(logits.grad, numeric, atol=1e-6, rtol=1e-6)


def test_the_gradient_flows_through_what_made_the_logits_and_keeps_the_logits():
    _, tokens = example()
    hidden = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    head = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = []
    for function in (lambda x: token_logprobs(x, tokens, True)[0], lambda x: -F.cross_entropy(x, tokens)):
        leaves = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        function(torch.tanh(leaves[0] @ leaves[1].T / 2) * 2).mean().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(gradients[0], gradients[1])
    logits = (hidden @ head.T).requires_grad_()
    before = logits.detach().clone()
    token_logprobs(logits, tokens)[0].sum().backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_entropy_of_a_coin_and_of_a_masked_vocabulary(p):
    coin = torch.tensor([[math.log(p), math.log(1 - p), -math.inf]], requires_grad=True)
    logprobs, entropy = token_logprobs(coin, torch.tensor([1]), with_entropy=True)
    assert logprobs.item() == pytest.approx(math.log(1 - p))
    assert entropy.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert not entropy.requires_grad
    logprobs.sum().backward()
    assert coin.grad[0].tolist() == pytest.approx([-p, p, 0.0])


def test_a_masked_token_has_no_probability():
    logits = torch.tensor([[0.0, -math.inf]])
    assert token_logprobs(logits, torch.tensor([1]), with_entropy=True)[0].item() == -math.inf


def test_half_precision_is_summed_in_single_precision_and_gets_its_gradient_in_kind():
    logits, tokens = example(torch.bfloat16)
    logits.requires_grad_()
    logprobs, _ = token_logprobs(logits, tokens)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, -F.cross_entropy(logits.detach().float(), tokens, reduction="none"))
    logprobs.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_a_second_backward_is_an_error_not_a_wrong_number():
    logits, tokens = example()
    loss = token_logprobs(logits.requires_grad_(), tokens)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_one_token_per_row():
    with pytest.raises(ValueError, match="tokens.*one per row of logits"):
        token_logprobs(torch.zeros(2, 3), torch.tensor([1]))
