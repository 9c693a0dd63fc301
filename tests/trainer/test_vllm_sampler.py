# SPDX-License-Identifier: Apache-2.0
"""vLLM as sampler, without vLLM: its `LLM` is a model of transformers that receives the weights it is sent."""

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.trainer.ppo_helpers import assert_same, build_ppo_trainer, gpt2, history, lora, weights
from trl_maxmin import MaxMinGRPOConfig, MixtureRewardModel, _compat
from trl_maxmin.trainer.common.vllm_sampler import VLLMSampler
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer


class FakeLLM:
    """Samples by transformers from what `load_weights` was given."""

    made: list = []

    def __init__(self, model, **settings):
        self.model, self.settings, self.seen = AutoModelForCausalLM.from_pretrained(model).eval(), settings, []
        with torch.no_grad():  # nothing of the folder may be used
            for parameter in self.model.parameters():
                parameter.zero_()
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load_weights))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        self.made.append(self)

    def load_weights(self, pairs):
        own = dict(self.model.named_parameters())
        for name, tensor in pairs:
            own[name].data.copy_(tensor)

    def reset_prefix_cache(self):
        self.seen.append({name: tensor.detach().clone() for name, tensor in self.model.named_parameters()})

    @torch.no_grad()
    def generate(self, prompts, sampling_params, use_tqdm):
        return [self.answer(row["prompt_token_ids"], sampling_params) for row in prompts]

    def answer(self, prompt, settings):
        assert settings.ignore_eos and settings.n == 1
        ids, entries = [], []
        while len(ids) < settings.max_tokens and not (ids and ids[-1] in settings.stop_token_ids):
            logits = self.model(torch.tensor([prompt + ids])).logits[0, -1].float()
            logprobs = (logits / (settings.temperature or 1.0)).log_softmax(-1)
            greedy = settings.temperature == 0
            token = int(logits.argmax()) if greedy else int(torch.multinomial(logprobs.exp(), 1))
            ids.append(token)
            entries.append({token: SimpleNamespace(logprob=logprobs[token].item(), rank=1)})
        output = SimpleNamespace(token_ids=ids, logprobs=entries)
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[output])


@pytest.fixture
def vllm(monkeypatch):
    module = _compat.vllm_generation()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # TRL sets them for vLLM; they are taken back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(module, "is_vllm_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(module, "LLM", FakeLLM, raising=False)
    monkeypatch.setattr(module, "SamplingParams", SimpleNamespace, raising=False)
    monkeypatch.setattr(FakeLLM, "made", [])
    return FakeLLM.made


def merged(policy):
    """Weights of the policy as one model, by adding up the adapter in double precision."""
    state = {}
    for name, tensor in policy.state_dict().items():
        name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora_" not in name:
            state[name] = tensor.detach().double()
    for name, module in policy.named_modules():
        if getattr(module, "lora_A", None) and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
            key = name.removeprefix("base_model.model.") + ".weight"
            state[key] = state[key] + (b @ a).T * module.scaling["default"]  # GPT-2's layers are transposed
    return state


class Watched(PPOTrainer):
    """Keeps what the policy was when it was asked to sample, and its frozen weights."""

    def _rollout(self, rows):
        before = weights(self)
        rollout = super()._rollout(rows)
        assert_same(before, weights(self), rtol=0, atol=0)
        self.__dict__.setdefault("policies", []).append(merged(self.policy_model))
        return rollout


@pytest.mark.seam
@pytest.mark.parametrize("kind", ["full", "adapter", "one base"])
def test_the_sampler_has_the_policys_weights_at_every_rollout(kind, vllm, tmp_path, word_tokenizer):
    options = {"max_steps": 3, "generation_backend": "vllm", "temperature": 0.8}
    if kind != "full":
        options["peft_config"] = lora()
    if kind == "one base":
        base = gpt2()
        mixture = MixtureRewardModel.from_base(base, 2, "lora", processing_class=word_tokenizer)
        options |= {"model": base, "reward_model": mixture}
    trainer = build_ppo_trainer(tmp_path / "run", word_tokenizer, Watched, **options)
    trainer.train()
    (llm,) = vllm
    assert len(llm.seen) == len(trainer.policies) == 3
    for seen, policy in zip(llm.seen, trainer.policies, strict=True):
        for name, tensor in seen.items():
            torch.testing.assert_close(tensor.double(), policy[name], rtol=0, atol=1e-6)
    assert any(not torch.equal(llm.seen[0][name], llm.seen[2][name]) for name in llm.seen[0]), "it learns"
    assert history(trainer, "sampling/ratio_mean") == pytest.approx([1.0] * 3, abs=1e-4)
    trainer.evaluate(trainer.train_dataset.select(range(4)))
    assert len(llm.seen) == 4


def test_greedy_replies_are_those_of_transformers(vllm, tmp_path, word_tokenizer):
    found = []
    for backend in ("generate", "vllm"):
        trainer = build_ppo_trainer(
            tmp_path / backend,
            word_tokenizer,
            generation_backend=backend,
            generation_kwargs={"do_sample": False},
            stop_token_id=7,
        )
        rows = [trainer.train_dataset[i] for i in range(6)]
        rollout = trainer._sample(rows, "rollout", 0)
        found.append((rollout.completion_ids, rollout.finished.tolist()))
    assert found[0] == found[1]


def test_a_policy_of_a_folder_is_loaded_from_there_and_others_are_saved_first(vllm, tmp_path, word_tokenizer):
    from accelerate import Accelerator

    from trl_maxmin.trainer.common.sampling import sampling_config

    gpt2().save_pretrained(tmp_path / "policy")
    for model in (AutoModelForCausalLM.from_pretrained(tmp_path / "policy"), gpt2()):
        name = model.name_or_path
        sampler = VLLMSampler(model, Accelerator(cpu=True), word_tokenizer, sampling_config(1.0, 4), [2])
        assert model.name_or_path == name
        replies = sampler.sample([[5, 6], [7]])
        assert all(len(ids) == len(own) <= 4 for (ids, _), own in zip(replies, replies.logprobs, strict=True))


class TestRefusals:
    def test_without_vllm_it_is_said_before_anything_loads(self, make):
        with pytest.raises(ValueError, match=r"pip install 'trl-maxmin\[vllm\]'"):
            make(generation_backend="vllm")

    def test_options_that_follow_from_others(self, make, vllm):
        with pytest.raises(ValueError, match=r"vllm_kwargs has \['temperature'\].*Set those"):
            make(generation_backend="vllm", vllm_kwargs={"temperature": 0.5})

    def test_trls_trainers_have_their_own_option(self, tmp_path):
        with warnings.catch_warnings(), pytest.raises(ValueError, match="generation_backend='vllm' is unknown"):
            MaxMinGRPOConfig(output_dir=str(tmp_path), generation_backend="vllm", use_cpu=True, report_to="none")


@pytest.mark.seam
def test_trls_engine_has_the_interface_that_is_used():
    engine = _compat.vllm_generation().VLLMGeneration
    for name, parameters in _compat.VLLM_GENERATION.items():
        known = inspect.signature(getattr(engine, name)).parameters
        assert set(parameters.split()) <= set(known), name
