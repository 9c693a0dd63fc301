# SPDX-License-Identifier: Apache-2.0
"""The head by blocks, in sampling and in updates, against the model's own head."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trl_maxmin.functional import head_logprobs as blocks
from trl_maxmin.trainer.common import vocabulary_head
from trl_maxmin.trainer.common.drawing import draw_tokens
from trl_maxmin.trainer.common.sampling import sample_completions, sampling_config, seeded
from trl_maxmin.trainer.common.vocabulary_head import DrawingHead, plain_head_weight
from trl_maxmin.trainer.ppo.policy import PolicyWithCritic


VOCABULARY = 1100


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    monkeypatch.setattr(vocabulary_head, "MIN_VOCABULARY", VOCABULARY)
    monkeypatch.setattr(blocks, "BLOCK", 512)


def policy(tied=True, **settings):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_layer=1, n_head=2, n_embd=8, n_positions=32, tie_word_embeddings=tied, **settings
    )
    model = GPT2LMHeadModel(config).eval()
    model.lm_head.weight.data.mul_(40)
    return model


def test_tokens_are_those_of_the_cumulative_distribution_of_the_logits():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, 8, generator=generator)
    states = 3 * torch.randn(400, 8, generator=generator)
    places = torch.rand((400, 1), dtype=torch.float64, generator=generator)
    for temperature in (1.0, 0.7):
        expected = draw_tokens(states @ weight.T, places, temperature)[:, 0]
        assert (DrawingHead(weight, temperature).draw(states / temperature, places) == expected).float().mean() > 0.995
    # The last token of a vocabulary that no block divides.
    ends = torch.full((400, 1), 1 - 1e-16, dtype=torch.float64)
    assert DrawingHead(weight, 1.0).draw(0 * states, ends).eq(VOCABULARY - 1).all()


def test_replies_are_those_of_the_models_own_head(monkeypatch):
    model = policy()
    drawn = []
    for least in (VOCABULARY, VOCABULARY + 1):
        monkeypatch.setattr(vocabulary_head, "MIN_VOCABULARY", least)
        with seeded(torch.device("cpu"), 0):
            drawn.append(sample_completions(model, [[5, 6, 7], [8]] * 20, sampling_config(0.8, 4), 0, [3], 40))
        assert "forward" not in vars(model.lm_head)
    same = [a == b for a, b in zip(*drawn, strict=True)]
    assert sum(same) >= 38 and len({tuple(ids) for ids, _ in drawn[0]}) > 10


def test_a_model_that_does_more_behind_its_head_draws_by_itself():
    class Halved(GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits / 2
            return out

    model = Halved(policy().config).eval()
    with seeded(torch.device("cpu"), 0):
        replies = sample_completions(model, [[5]] * 8, sampling_config(1.0, 3), 0, [], 8)
    assert all(len(ids) == 3 for ids, _ in replies) and "forward" not in vars(model.lm_head)


def test_which_heads_are_plain():
    model = policy()
    assert plain_head_weight(model) is model.lm_head.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain_head_weight(model) is None
    model.config.final_logit_softcapping = 30.0
    assert plain_head_weight(model) is None
    assert plain_head_weight(policy().bfloat16()) is None
    biased = policy(tied=False)
    biased.lm_head = nn.Linear(8, VOCABULARY)
    assert plain_head_weight(biased) is None
    hooked = policy()
    hooked.lm_head.register_forward_hook(lambda *_: None)
    assert plain_head_weight(hooked) is None
    adapted = get_peft_model(policy(tied=False), LoraConfig(target_modules=["lm_head"], r=2))
    assert plain_head_weight(adapted.get_base_model()) is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [4096, 2])
def test_gradients_of_the_root_are_those_of_the_models_own_loss(tied, chunk):
    model = policy(tied)
    ours, theirs = PolicyWithCritic(model, 0, logits_chunk_size=chunk), copy.deepcopy(model)
    ours.add_gradients_in_place()
    ids = torch.tensor([[4, 9, 1, 1099, 700, 9]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    for _ in range(2):  # the second adds to the first
        logprobs, _, _ = ours(ids, mask, mask[:, 2:], ids[:, 2:])
        logprobs.sum().backward()
        logits = theirs(ids).logits[0, 1:-1].log_softmax(-1)
        logits.gather(-1, ids[0, 2:, None]).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        assert not parameter.grad.is_sparse
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-4, msg=name)
    assert model.get_input_embeddings().sparse is False


@pytest.mark.parametrize(("tokens", "chunk"), [(1024, 512), pytest.param(8192, 4096, marks=pytest.mark.slow)])
def test_a_head_of_152_064_tokens_needs_no_array_of_all_logits(tokens, chunk):
    """Logits of 1,024 tokens would be 594 MiB, of 8,192 4.6 GiB; the head's gradient is 5."""
    config = LlamaConfig(
        vocab_size=152_064, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    root = PolicyWithCritic(LlamaForCausalLM(config), 0, logits_chunk_size=chunk)
    root.add_gradients_in_place()
    ids = torch.arange(tokens + tokens // 512).view(tokens // 512, 513)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.profiler.profile(profile_memory=True) as profile:
        root(ids, mask, mask[:, 1:], ids[:, 1:])[0].sum().backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    print(f"{tokens} tokens: {peak / 2**20:.0f} MiB")
    assert 5 * 2**20 < peak < 100 * 2**20
