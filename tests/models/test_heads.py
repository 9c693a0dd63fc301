# SPDX-License-Identifier: Apache-2.0
"""Heads compute in float32 whatever their weights, their input and autocast are."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from trl_maxmin.models.heads import Float32Linear, compute_in_float32


def parts(weights, inputs):
    """A head and what it reads, and their product in float64."""
    generator = torch.Generator().manual_seed(0)
    head, read = Float32Linear(64, 3), torch.randn(5, 64, generator=generator).to(inputs)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    head.to(weights)
    return head, read, read.double() @ head.weight.double().T + head.bias.double()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("inputs", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_halves_are_not_rounded_again(weights, inputs, autocast):
    head, read, expected = parts(weights, inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = head(read)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, atol=1e-4, rtol=1e-5)
    result.sum().backward()
    assert head.weight.grad.dtype == weights and torch.isfinite(head.weight.grad).all()


def test_wider_weights_stay_wide():
    head, read, expected = parts(torch.float64, torch.float32)
    torch.testing.assert_close(head(read), expected, atol=1e-12, rtol=1e-12)


def test_without_a_bias():
    head = Float32Linear(4, 2, bias=False, dtype=torch.bfloat16)
    assert torch.equal(head(torch.ones(1, 4)), head.weight.float().sum(1).unsqueeze(0))


def test_a_head_keeps_weights_and_names_inside_the_wrapper_of_an_adapter():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=9, n_layer=1, n_head=1, n_embd=8, n_positions=8, num_labels=3, pad_token_id=0)
    model = get_peft_model(GPT2ForSequenceClassification(config), LoraConfig(task_type="SEQ_CLS", r=2))
    score, before = model.get_base_model().score, model.state_dict()
    compute_in_float32(score)
    assert {type(layer) for layer in score.modules() if isinstance(layer, nn.Linear)} == {Float32Linear}
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    with torch.autocast("cpu", torch.bfloat16):
        assert score(torch.ones(1, 8)).dtype == torch.float32
