# SPDX-License-Identifier: Apache-2.0
"""`--load_in_4bit` from rewards to a policy: the mixture's base is the one its adapters were fitted on."""

import json
from functools import partial

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tests.rounding import METHOD, RoundingConfig, is_rounded, rounded
from trl_maxmin import MixtureRewardModel
from trl_maxmin.cli import evaluate, loading, main, policy


STEP = 0.05
COMMON = ["--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none"]
COMMON += ["--save_strategy", "no", "--disable_tqdm", "true"]


@pytest.fixture
def folder(tmp_path, word_tokenizer, monkeypatch):
    """Preferences, prompts and a base; 4 bits are replaced by rounding, which needs no library. The working folder."""
    torch.manual_seed(0)
    size = len(word_tokenizer)
    config = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    pair = {"prompt": "review :", "chosen": "the film is great", "rejected": "the plot is dull"}
    rows = [pair | {"annotator_id": h} for h in range(4) for _ in range(4)]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p in ["review :", "film"] * 4)
    )
    monkeypatch.setattr(
        loading, "get_quantization_config", lambda model: RoundingConfig(STEP) if model.load_in_4bit else None
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _noted(load, seen, *arguments):
    seen.append(load(*arguments))
    return seen[-1]


@pytest.fixture
def given(monkeypatch):
    """The reward models that the commands load."""
    seen = []
    for module in (policy, evaluate):
        monkeypatch.setattr(module, "load_reward_models", partial(_noted, module.load_reward_models, seen))
    return seen


def train_rewards(*options):
    argv = ["reward", "--dataset_name", "preferences.jsonl", "--model_name_or_path", "base", "--output_dir", "mixture"]
    argv += ["--component_type", "lora", "--max_steps", "1", "--per_device_train_batch_size", "4", *options]
    assert main([*argv, *COMMON]) == 0


def matrices(model):
    """The layers' own matrices, without adapters, by their plain names."""
    return {
        name.replace(".base_layer", "").rpartition("h.0.")[2]: parameter.detach()
        for name, parameter in model.named_parameters()
        if is_rounded(name) and "lora_" not in name
    }


def assert_base_is(mixture, quantised):
    plain = matrices(GPT2LMHeadModel.from_pretrained("base").transformer)
    found = matrices(mixture.trunk)
    assert found.keys() == plain.keys() and found
    for name, weight in found.items():
        torch.testing.assert_close(weight, rounded(plain[name], STEP) if quantised else plain[name])


POLICIES = {
    "ppo": ["--response_length", "6"],
    "grpo": ["--num_generations", "2", "--max_completion_length", "6"],
    "rloo": ["--num_generations", "2", "--max_completion_length", "6"],
}


@pytest.mark.parametrize("command", POLICIES)
@pytest.mark.parametrize("quantised", [True, False])
def test_the_mixture_is_loaded_as_it_was_trained(folder, given, command, quantised):
    train_rewards("--load_in_4bit", str(quantised))
    saved = json.loads((folder / "mixture" / "config.json").read_text())["base_quantization"]
    assert saved == ({"quant_method": METHOD, "step": STEP} if quantised else None)
    argv = [command, "--dataset_name", "prompts.jsonl", "--model_name_or_path", "base", "--reward_model", "mixture"]
    argv += ["--output_dir", "policy", "--max_steps", "1", "--per_device_train_batch_size", "4"]
    argv += ["--num_reference_completions", "4", "--load_in_4bit", "true", "--use_peft", "true", *POLICIES[command]]
    assert main([*argv, *COMMON]) == 0
    assert_base_is(given[0], quantised)
    assert (folder / "policy" / "adapter_config.json").is_file()


def test_evaluation_scores_on_the_quantised_base(folder, given):
    train_rewards("--load_in_4bit", "true")
    argv = ["evaluate", "--policies", "base", "--reference", "base", "--reward_model", "mixture"]
    argv += ["--dataset_name", "prompts.jsonl", "--max_new_tokens", "4", "--output_dir", "evaluation"]
    assert main(argv) == 0
    assert_base_is(given[0], True)


def test_a_quantised_mixture_is_not_moved(folder):
    """Weights in 4 bits refuse: what holds them stays where it was loaded, also inside a mixture."""
    from trl_maxmin.trainer.scoring.sources import build_reward_source

    train_rewards("--load_in_4bit", "true")
    mixture = MixtureRewardModel.from_pretrained("mixture")
    mixture.to = None  # a call fails
    build_reward_source(mixture, policy_tokenizer=AutoTokenizer.from_pretrained("base")).to("cpu")
