# SPDX-License-Identifier: Apache-2.0
"""The README's commands start on a CPU as they are printed, but for the model's name and the number of steps."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.cli.test_assign import rows
from tests.conftest import build_word_tokenizer
from trl_maxmin.cli import main


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^trl-maxmin ((?:reward|ppo|grpo|dpo) .*)$", README, flags=re.MULTILINE)


@pytest.mark.slow
def test_reward_then_policies(tmp_path, monkeypatch):
    assert [line.split()[0] for line in COMMANDS] == ["reward", "ppo", "grpo", "dpo"]
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96}
    GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=2, bos_token_id=1)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    preferences = [{**row, "annotator_id": row["worker"]} for row in rows(8, "train")]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preferences))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "review :"}\n{"prompt": "film"}\n' * 16)
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        words = [word.replace("Qwen/Qwen3-0.6B", "base") for word in shlex.split(line)]
        assert main([*words, "--max_steps", "1"]) == 0, line
