# SPDX-License-Identifier: Apache-2.0
"""Every command that loads a model refuses a wrong or broken one in one line, before it trains or scores."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from tests.cli.test_assign import rows
from tests.conftest import build_word_tokenizer
from trl_maxmin.cli import main
from trl_maxmin.models import MixtureRewardModel


ROOT = Path(__file__).parents[2]
COMMON = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true", "--max_steps", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    config = GPT2Config(**sizes, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    reward = GPT2Config(**sizes, eos_token_id=2, bos_token_id=1, pad_token_id=0, num_labels=1)
    for name, model in (("policy", GPT2LMHeadModel(config)), ("reward", GPT2ForSequenceClassification(reward))):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for kind in ("head", "lora"):
        MixtureRewardModel.from_base(root / "policy", 2, kind).save_pretrained(root / kind)
    for name, source, edit in (
        ("headless", "reward", lambda t: t.pop("score.weight")),
        ("nan", "reward", lambda t: t["score.weight"].fill_(torch.nan)),
        ("mixture-nan", "head", lambda t: t["components.0.score.weight"].fill_(torch.nan)),
        ("partial", "lora", lambda t: t.pop(next(key for key in t if "reward_1" in key))),
        ("policy-partial", "policy", lambda t: t.pop("transformer.ln_f.weight")),
    ):
        tensors = load_file(shutil.copytree(root / source, root / name) / "model.safetensors")
        edit(tensors)
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
    for source in ("policy", "reward", "head"):
        folder = shutil.copytree(root / source, root / f"{source}-mute")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
    shutil.copytree(root / "policy", root / "cut")
    (root / "cut" / "model.safetensors").write_bytes((root / "policy" / "model.safetensors").read_bytes()[:3000])
    (root / "empty").mkdir()
    (root / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(8, "train")))
    (root / "prompts.jsonl").write_text('{"prompt": "review :"}\n' * 8)
    return root


PREFS = ["--dataset_name", "prefs.jsonl", "--annotator_column", "worker"]
PROMPTS = ["--dataset_name", "prompts.jsonl", "--output_dir", "out"]
TRAIN = [*PROMPTS, *COMMON, "--per_device_train_batch_size", "8"]
ASSIGN = ["assign", *PREFS, "--output_file", "out/a.json"]
EVALUATE = ["evaluate", *PROMPTS, "--max_new_tokens", "4"]
REWARD = ["reward", *PREFS, *COMMON, "--output_dir", "out"]

WRONG_REWARDS = [
    ("policy", ["GPT2", "score.weight"]),
    ("headless", ["missing: score.weight"]),
    ("nan", ["NaN or infinite: score.weight"]),
    ("mixture-nan", ["NaN or infinite"]),
    ("partial", ["missing", "reward_1"]),
    ("reward-mute", ["has no tokenizer"]),
    ("head-mute", ["has no tokenizer"]),
    ("empty", ["holds no model"]),
    ("/no/such/folder", ["there is no folder"]),
    ("no/folder", ["there is no folder no/folder, and on the Hub"]),
]
WRONG_POLICIES = [
    ("reward", ["not part of it: score.weight"]),
    ("head", ["MixtureRewardModelConfig"]),
    ("policy-partial", ["missing: ", "ln_f.weight"]),
    ("policy-mute", ["has no tokenizer"]),
    ("cut", ["cut off or damaged"]),
    ("/no/such/folder", ["there is no folder"]),
]
NO_MIXTURE = {"policy": ["GPT2LMHeadModel, not a mixture"], "headless": ["not a mixture"], "nan": ["not a mixture"]}

CASES = [
    *((ASSIGN, "--reward_model", name, NO_MIXTURE.get(name, words)) for name, words in WRONG_REWARDS),
    *(
        ([command, *TRAIN, "--model_name_or_path", "policy"], "--reward_model", name, words)
        for command in ("ppo", "grpo", "rloo")
        for name, words in WRONG_REWARDS
    ),
    *(
        ([command, *TRAIN, "--reward_model", "head"], "--model_name_or_path", name, words)
        for command in ("ppo", "grpo")
        for name, words in WRONG_POLICIES
    ),
    *(
        ([*EVALUATE, "--policies", "policy", "--reference", "policy"], "--reward_model", name, words)
        for name, words in WRONG_REWARDS
    ),
    *(([*EVALUATE, "--reference", "policy", "--reward_model", "head"], "--policies", n, w) for n, w in WRONG_POLICIES),
    *((REWARD, "--model_name_or_path", name, words) for name, words in WRONG_POLICIES[2:]),
    *((["diagnose", *PREFS, "--output_dir", "out"], "--model_name_or_path", n, w) for n, w in WRONG_POLICIES[2:]),
    (["estimate"], "--model", "/no/such/folder", ["there is no folder"]),
    (["estimate"], "--model", "empty", ["holds no model"]),
]


@pytest.mark.parametrize(
    ("command", "option", "name", "words"), CASES, ids=[f"{case[0][0]} {case[1]} {case[2]}" for case in CASES]
)
def test_refused_in_one_line(models, monkeypatch, capsys, tmp_path, command, option, name, words):
    for entry in models.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main([*command, option, name, "--quiet"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    message = next(line for line in lines if line.startswith(f"trl-maxmin {command[0]}: "))
    # What is found only when the weights are read names the argument of the function behind the command.
    assert option in message or f"`{option.removeprefix('--')}`" in message or "`model" in message
    assert name in message and not any("REPORT" in line for line in lines)
    for word in words:
        assert word in message
    assert not list(Path("out").rglob("*.safetensors")) and not list(Path("out").rglob("*.json"))


@pytest.mark.parametrize("command", ["reward", "ppo", "grpo", "rloo"])
def test_code_of_a_repository_is_refused(models, monkeypatch, capsys, command):
    monkeypatch.chdir(models)
    options = ["--model_name_or_path", "policy", "--dataset_name", "prompts.jsonl", "--output_dir", "out", *COMMON]
    assert main([command, *options, "--trust_remote_code", "true"]) == 2
    assert "--trust_remote_code is refused: this package never runs code" in capsys.readouterr().err


def test_every_auto_class_is_told_to_run_no_code():
    """Left out, transformers asks on the terminal whether to run what it found."""
    asking = []
    for folder in ("trl_maxmin", "examples", "spaces_demo", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                owner = getattr(node.func.value, "id", "")
                if node.func.attr != "from_pretrained" or not owner.startswith("Auto"):
                    continue
                options = {keyword.arg: keyword.value for keyword in node.keywords}
                value = options.get("trust_remote_code")
                given = {e.id for key, e in options.items() if key is None and isinstance(e, ast.Name)}
                told = isinstance(value, ast.Constant) and value.value is False
                if not told and not any(_holds_no_trust(path, name) for name in given):
                    asking.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not asking


def _holds_no_trust(path, name):
    """Whether a dictionary of that name says it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            if isinstance(node.value, ast.Dict):
                pairs = zip(node.value.keys, node.value.values, strict=True)
                return any(getattr(k, "value", 0) == "trust_remote_code" and v.value is False for k, v in pairs if k)
    return False
