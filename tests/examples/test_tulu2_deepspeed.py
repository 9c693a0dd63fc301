# SPDX-License-Identifier: Apache-2.0
"""The Tulu2 recipe for ZeRO-3 by its own line, with a tiny Llama, on two processes without a GPU."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.launcher import PYTHONPATH
from trl_maxmin import MixtureRewardModel


pytestmark = [
    pytest.mark.slow,
    pytest.mark.deepspeed,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed (make deepspeed)"),
]

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "examples" / "recipes" / "tulu2" / "ppo_zero3.yaml"


@pytest.fixture
def folder(tmp_path, word_tokenizer, monkeypatch):
    """The current folder: a base, a LoRA mixture on it, prompts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(word_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=word_tokenizer.eos_token_id,
        pad_token_id=word_tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    MixtureRewardModel.from_base(str(tmp_path / "base"), 2, "lora").save_pretrained(tmp_path / "mixture")
    rows = [{"prompt": f"<|user|>\nreview {i % 10} :\n<|assistant|>\n"} for i in range(16)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_words():
    """The command of the recipe's first lines, without `accelerate`, on two processes."""
    lines = [line.lstrip("# ").rstrip("\\ ") for line in RECIPE.read_text(encoding="utf-8").splitlines()[1:3]]
    words = " ".join(lines).split()
    assert words[:2] == ["accelerate", "launch"] and words[words.index("--num_processes") + 1] == "4"
    words[words.index("--num_processes") + 1] = "2"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        words.insert(2, f"--main_process_port={probe.getsockname()[1]}")
    return [str(ROOT / word) if word.startswith("examples/") else word for word in words[1:]]


def test_the_recipe_trains_all_weights_in_bfloat16_shards(folder):
    """With checkpointing, as the recipe says; the loaded policy is whole again."""
    small = ["--model_name_or_path", "base", "--use_cpu", "true", "--max_steps", "2", "--response_length", "6"]
    small += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--learning_rate", "1e-2"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *recipe_words(), *small]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    curves = json.loads((folder / "maxmin" / "run_record.json").read_text())["policy"]["curves"]
    kl = [value for _, value in curves["objective/kl"]]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] != 0, "the reference is the policy as it was"
    policy = AutoModelForCausalLM.from_pretrained(folder / "maxmin", dtype=torch.float32).state_dict()
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).state_dict()
    changes = [(policy[name] - tensor).abs().max().item() for name, tensor in base.items()]
    assert 1e-3 < max(changes) < 0.5
    head = load_file(folder / "maxmin" / "value_head.safetensors")
    assert head["weight"].shape == (3, 16) and head["weight"].dtype == torch.bfloat16
