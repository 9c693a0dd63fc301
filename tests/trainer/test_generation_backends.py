# SPDX-License-Identifier: Apache-2.0
"""Backends give the same replies, and leave policy and random states as they were."""

import gc
import math
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trainer.ppo_helpers import SIZE, assert_same, brevity, gpt2, history, lora, sevens, weights
from trl_maxmin.evaluation.generation import Sampling, generate_replies
from trl_maxmin.trainer.common import generation_backends
from trl_maxmin.trainer.common.generation_backends import (
    GENERATION_BACKENDS,
    choose_backend,
    problem,
    sample_replies,
)
from trl_maxmin.trainer.common.sampling import sampling_config, seeded
from trl_maxmin.trainer.maxmin.maxmin_ppo_trainer import MaxMinPPOTrainer
from trl_maxmin.trainer.ppo.metrics import take_means
from trl_maxmin.trainer.ppo.policy import PolicyWithCritic
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer


CPU = torch.device("cpu")
PROMPTS = [[5 + i % 9] * (1 + i % 7) for i in range(21)]


def llama(**kwargs):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=SIZE, num_key_value_heads=1, max_position_embeddings=64, **sizes, **kwargs)
    return LlamaForCausalLM(config)


MODELS = {
    "gpt2": gpt2,
    "llama": llama,
    "eager": lambda: llama(attn_implementation="eager"),
    "adapter": lambda: get_peft_model(gpt2(), lora()),
    "root": lambda: PolicyWithCritic(gpt2(), 3),
    "bfloat16": lambda: llama().to(torch.bfloat16),
}


def attention(model):
    return getattr(model, "causal_lm", model).config._attn_implementation


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bfloat16"])
def test_greedy_replies_are_the_same(name):
    model, config = MODELS[name](), sampling_config(1.0, 12, {"do_sample": False})
    found = {backend: sample_replies(model, PROMPTS, config, 0, [2, 7], 8, backend) for backend in GENERATION_BACKENDS}
    assert found["generate"] == found["continuous_batching"] == found["auto"]
    assert {len(ids) for ids, _ in found["generate"]} != {12} or name != "gpt2", "some end by themselves"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_the_policy_is_the_same_afterwards(name, training):
    gc.unfreeze()  # as where nobody has frozen anything; the tests have
    model = MODELS[name]().train(training)
    own = model.causal_lm if name == "root" else model
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes, implementation, config = [m.training for m in model.modules()], attention(model), own.generation_config
    torch.manual_seed(3)
    state, frozen = torch.get_rng_state(), gc.get_freeze_count()
    with seeded(CPU, 1):
        replies = sample_replies(model, PROMPTS, sampling_config(0.8, 8), 0, [2], 8, "continuous_batching")
    with seeded(CPU, 1):
        assert replies == sample_replies(model, PROMPTS, sampling_config(0.8, 8), 0, [2], 8, "continuous_batching")
    assert torch.equal(state, torch.get_rng_state()) and gc.get_freeze_count() == frozen
    assert_same(before, model.state_dict(), rtol=0, atol=0)
    assert all(tensor.dtype == before[key].dtype for key, tensor in model.state_dict().items())
    assert modes == [m.training for m in model.modules()] and implementation == attention(model)
    assert own.generation_config is config
    with seeded(CPU, 2):
        assert replies != sample_replies(model, PROMPTS, sampling_config(0.8, 8), 0, [2], 8, "continuous_batching")
    # What was made in the sampler's thread can be trained on.
    inner = own.base_model.model if name == "adapter" else own
    inner(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    gc.freeze()


@pytest.mark.parametrize("backend", ["generate", "continuous_batching"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_replies_follow_the_policy(backend, temperature):
    """First and second tokens against the probabilities of a plain forward, by chi-square."""
    model = llama().eval()
    model.lm_head.weight.data.mul_(25)
    count = 1500
    with seeded(CPU, 0, backend):
        replies = sample_replies(model, [[5, 6]] * count, sampling_config(temperature, 2), 0, [2], 128, backend)
    with torch.no_grad():
        first = (model(torch.tensor([[5, 6]])).logits[0, -1].double() / temperature).softmax(-1)
        rows = torch.tensor([[5, 6, token] for token in range(SIZE)])
        second = (model(rows).logits[:, -1].double() / temperature).softmax(-1)
    joint = first[:, None] * second
    joint[2] = 0
    joint[2, 0] = first[2]  # ended: no second token
    seen = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for ids, finished in replies:
        assert finished == (2 in ids) and len(ids) == (1 if ids[0] == 2 else 2)
        seen[ids[0], ids[1] if len(ids) > 1 else 0] += 1
    common = joint * count >= 5
    observed = [*seen[common].tolist(), seen[~common].sum().item()]
    expected = [*(joint[common] * count).tolist(), joint[~common].sum().item() * count]
    assert chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sampler_tells_the_probabilities_of_its_tokens(temperature):
    model = llama().eval()
    config = sampling_config(temperature, 9)
    assert sample_replies(model, PROMPTS, config, 0, [2], 8).logprobs is None
    replies = sample_replies(model, PROMPTS, config, 0, [2], 8, "continuous_batching")
    for prompt, (ids, _), logprobs in zip(PROMPTS, replies, replies.logprobs, strict=True):
        with torch.no_grad():
            rows = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double() / temperature
        expected = rows.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        assert logprobs == pytest.approx(expected.tolist(), abs=1e-5)


class Biased(PPOTrainer):
    """Its sampler says that every token was half as likely as it is."""

    def _sample_from(self, model, rows, *stream):
        rollout = super()._sample_from(model, rows, *stream)
        rollout.sampler_logprobs = (rollout.sampler_logprobs - math.log(2)) * rollout.completion_mask
        return rollout


class TestSamplerAndTrainer:
    def test_they_agree_and_it_is_logged(self, make):
        trainer = make(generation_backend="continuous_batching", max_steps=2, temperature=0.7)
        trainer.train()
        for name in ("mean", "max"):
            assert history(trainer, f"sampling/ratio_{name}") == pytest.approx([1.0, 1.0], abs=1e-4)
        trainer = make(max_steps=1)
        trainer.train()
        assert not history(trainer, "sampling/ratio_mean"), "`generate` does not tell"

    def test_a_ratio_is_logged_and_counted_up_to_the_cap(self, make):
        losses = {}
        for cap in (None, 1.5, 5.0):
            trainer = make(
                Biased, generation_backend="continuous_batching", max_steps=1, num_ppo_epochs=1, sampling_ratio_cap=cap
            )
            trainer.train()
            assert history(trainer, "sampling/ratio_mean") == pytest.approx([2.0], abs=1e-4)
            losses[cap] = history(trainer, "loss/policy_avg")[0]
        # Advantages are whitened, so the mean loss is near 0; its scale is what changes.
        assert losses[1.5] == pytest.approx(1.5 * losses[None], rel=1e-3, abs=1e-6)
        assert losses[5.0] == pytest.approx(2.0 * losses[None], rel=1e-3, abs=1e-6)

    def test_the_largest_ratio_since_the_last_log_is_no_mean(self):
        assert take_means({"sampling/ratio_max": [1.0, 3.0], "sampling/ratio_mean": [1.0, 3.0]}) == {
            "sampling/ratio_max": 3.0,
            "sampling/ratio_mean": 2.0,
        }

    def test_a_cap_has_to_be_above_zero(self, make):
        with pytest.raises(ValueError, match=r"sampling_ratio_cap must be above 0, got 0\.0"):
            make(sampling_ratio_cap=0.0)


class TestRefusals:
    def test_an_unknown_backend(self, make):
        for call in (
            lambda: sample_replies(gpt2(), PROMPTS, sampling_config(1.0, 4), 0, [2], 8, "sglang"),
            lambda: make(generation_backend="sglang"),
            lambda: Sampling(generation_backend="sglang"),
            lambda: make(MaxMinPPOTrainer, config_class=maxmin_config(), generation_backend="sglang"),
        ):
            with pytest.raises(
                ValueError, match=r"generation_backend='sglang' is unknown; choose one of \('generate'"
            ):
                call()

    @pytest.mark.parametrize("extra", [{"repetition_penalty": 1.2}, {"min_new_tokens": 2}, {"num_beams": 2}])
    def test_settings_that_continuous_batching_would_drop(self, extra):
        config = sampling_config(1.0, 4, extra)
        with pytest.raises(ValueError, match=f"does not know .*{next(iter(extra))}.*Use 'generate'"):
            sample_replies(gpt2(), PROMPTS, config, 0, [2], 8, "continuous_batching")

    def test_a_model_in_shards(self, monkeypatch):
        monkeypatch.setattr(generation_backends, "is_deepspeed_zero3_enabled", lambda: True)
        with pytest.raises(ValueError, match="in shards"):
            sample_replies(gpt2(), PROMPTS, sampling_config(1.0, 4), 0, [2], 8, "continuous_batching")

    def test_attention_without_a_paged_cache(self):
        model = gpt2()
        with (
            mock.patch.object(type(model), "_supports_sdpa", False),
            mock.patch.object(type(model), "_supports_attention_backend", False),
        ):
            with pytest.raises(ValueError, match="GPT2LMHeadModel does not read a paged cache"):
                sample_replies(model, PROMPTS, sampling_config(1.0, 4), 0, [2], 8, "continuous_batching")

    def test_a_reply_that_is_lost(self):
        model = gpt2()
        with mock.patch.object(type(model), "generate_batch", return_value={}):
            with pytest.raises(RuntimeError, match=r"returned 0 of 21 replies.*generation_backend='generate'"):
                sample_replies(model, PROMPTS, sampling_config(1.0, 4), 0, [2], 8, "continuous_batching")


def maxmin_config():
    from trl_maxmin import MaxMinPPOConfig

    return MaxMinPPOConfig


def test_no_prompts_no_replies():
    assert sample_replies(gpt2(), [], sampling_config(1.0, 4), 0, [2], 8, "continuous_batching") == []


def test_auto_chooses_by_device_and_sizes_and_by_what_is_possible():
    many, long = generation_backends.AUTO_PROMPTS, generation_backends.AUTO_TOKENS
    assert choose_backend("auto", many, long, CPU) == "continuous_batching"
    for prompts, tokens, device in ((many - 1, long, CPU), (many, long - 1, CPU), (many, long, torch.device("meta"))):
        assert choose_backend("auto", prompts, tokens, device) == "generate"
    # Once replies were seen, by how far the limit is from their mean.
    for prompts, tokens, mean, device, chosen in (
        (8, 64, 32.0, CPU, "continuous_batching"),
        (8, 64, 33.0, CPU, "generate"),
        (7, 64, 20.0, CPU, "generate"),
        (many, long, float(long), CPU, "generate"),
        (many, long, 1.0, torch.device("meta"), "generate"),
    ):
        assert choose_backend("auto", prompts, tokens, device, mean) == chosen
    assert problem(gpt2(), sampling_config(1.0, long)) is None
    # What continuous batching does not know is no reason to fail where nobody asked for it.
    config = sampling_config(1.0, 4, {"repetition_penalty": 1.2})
    with (
        mock.patch.object(generation_backends, "AUTO_PROMPTS", 1),
        mock.patch.object(generation_backends, "AUTO_TOKENS", 1),
        mock.patch.object(generation_backends.logger, "info") as info,
    ):
        assert len(sample_replies(gpt2(), PROMPTS, config, 0, [2], 8, "auto")) == len(PROMPTS)
        assert "generate" in info.call_args[0][0]
        info.reset_mock()
        sample_replies(gpt2(), PROMPTS, sampling_config(1.0, 4), 0, [2], 8, "auto")
        assert "continuous_batching" in info.call_args[0][0]
        # Without a stop token the length is known.
        sample_replies(gpt2(), PROMPTS, sampling_config(1.0, 4), 0, [], 8, "auto")
        assert "generate" in info.call_args[0][0]


class TestTrainers:
    def test_a_run_that_goes_on_knows_how_long_replies_were(self, make, tmp_path):
        trainer = make(generation_backend="auto", max_steps=1)
        assert trainer._mean_length is None
        trainer.train()
        assert 0 < trainer._mean_length <= 6
        trainer.save_model(str(tmp_path / "saved"))
        other = make(generation_backend="auto", max_steps=1)
        other._load_from_checkpoint(str(tmp_path / "saved"))
        assert other._mean_length == trainer._mean_length

    @pytest.mark.parametrize("peft_config", [None, lora()], ids=["full", "adapter"])
    def test_ppo_samples_calibrates_and_evaluates(self, make, peft_config, monkeypatch):
        called, plain = [], generation_backends._sample_continuously

        def spy(*args):
            called.append(1)
            return plain(*args)

        monkeypatch.setattr(generation_backends, "_sample_continuously", spy)
        trainer = make(
            MaxMinPPOTrainer,
            config_class=maxmin_config(),
            generation_backend="continuous_batching",
            reward_model=[sevens, brevity],
            peft_config=peft_config,
            max_steps=2,
        )
        trainer.train()
        assert len(called) == 3, "the calibration and two rollouts"
        # The sampler's policy is the one that is weighed: the first ratio is 1.
        assert history(trainer, "val/ratio")[0] == pytest.approx(1.0, abs=0.05)
        before = weights(trainer)
        trainer.evaluate(trainer.train_dataset.select(range(4)))
        assert len(called) > 3
        assert_same(before, weights(trainer), rtol=0, atol=0)

    def test_grpo_and_rloo_calibrate(self, trl_make, monkeypatch):
        called, plain = [], generation_backends._sample_continuously
        monkeypatch.setattr(generation_backends, "_sample_continuously", lambda *a: called.append(1) or plain(*a))
        trainer = trl_make(generation_backend="continuous_batching")
        trainer.calibrate()
        assert called and trainer.reference_statistics is not None

    def test_evaluation(self, word_tokenizer):
        options = {"max_new_tokens": 6, "temperature": 0.0, "num_completions": 1}
        found = [
            generate_replies(
                gpt2(vocab_size=len(word_tokenizer)),
                word_tokenizer,
                ["the film", "a movie story is", "plot"],
                Sampling(**options, generation_backend=backend),
                Accelerator(cpu=True),
            ).completion_ids
            for backend in ("generate", "continuous_batching")
        ]
        assert found[0] == found[1]
