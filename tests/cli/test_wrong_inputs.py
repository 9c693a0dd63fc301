# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs as people give them: each is one clear line, and none is found after a model was trained."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, Trainer

import trl_maxmin
from tests.cli.test_assign import rows
from tests.conftest import build_word_tokenizer
from trl_maxmin.cli import main
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.trainer.reward.mixture_reward_trainer import MixtureRewardTrainer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 48}
    special = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    for name, model in (
        ("base", GPT2LMHeadModel(GPT2Config(**sizes, **special))),
        ("reward", GPT2ForSequenceClassification(GPT2Config(**sizes, **special, num_labels=1))),
    ):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    MixtureRewardModel.from_base(root / "base", 2).save_pretrained(root / "mixture")
    shutil.copytree(root / "base", root / "torn")
    (root / "torn" / "model.safetensors").write_bytes((root / "base" / "model.safetensors").read_bytes()[:2000])
    shutil.copytree(root / "base", root / "run")  # looks like what a run left
    (root / "run" / "notes.txt").write_text("mine")
    (root / "run" / "checkpoint-4").mkdir()
    (root / "run" / "checkpoint-4" / "trainer_state.json").write_text("{}")
    (root / "run" / "checkpoint-8").mkdir()  # killed before its end
    (root / "empty").mkdir()
    (root / "file").write_text("")
    write(root / "prefs.jsonl", rows(8, "train"))
    write(root / "prompts.jsonl", [{"prompt": "review :"}] * 8)
    write(root / "long.jsonl", [{"prompt": "film " * 44}] * 8)
    write(root / "text.jsonl", [{"text": "film"}] * 8)
    write(root / "one.jsonl", [{**row, "worker": "ann"} for row in rows(8, "train")])
    write(root / "nobody.jsonl", [{**row, "worker": None} for row in rows(8, "train")])
    write(
        root / "cached.jsonl",
        [{"policy": p, "prompt": q, "completion": "a", "finished": True} for p in "ab" for q in "xy"],
    )
    (root / "broken.jsonl").write_text('{"prompt": "a"}\n{"prom')
    (root / "empty.jsonl").write_text("")
    (root / "recipe.yaml").write_text("learning_rate: fast\n")
    (root / "list.yaml").write_text("- 1\n")
    (root / "gold.py").write_text("height = 3\n")
    return root


def write(path, data):
    path.write_text("".join(json.dumps(row) + "\n" for row in data))


TINY = "--use_cpu true --bf16 false --report_to none --disable_tqdm true --max_steps 1".split()
PREFS = "--dataset_name prefs.jsonl --annotator_column worker".split()
R = ["reward", *PREFS, *"--model_name_or_path base --output_dir out".split(), *TINY]
P = "ppo --dataset_name prompts.jsonl --model_name_or_path base --reward_model mixture --output_dir out".split() + TINY
P += ["--per_device_train_batch_size", "8", "--response_length", "8"]
G = (
    "grpo --dataset_name prompts.jsonl --model_name_or_path base --reward_model mixture --output_dir out".split()
    + TINY
)
G += ["--max_completion_length", "8"]
L = ["rloo", *G[1:]]
E = "evaluate --policies one=base --reference base --reward_model mixture --dataset_name prompts.jsonl".split()
C = "evaluate --completions cached.jsonl --reference a --gold world:positive".split()
A = ["assign", *PREFS, "--reward_model", "mixture", "--output_file", "out/a.json"]
D = ["diagnose", *PREFS, "--output_dir", "out"]

#: (words, exit status, what the line says). A later word overrides an earlier one.
WRONG = [
    # Options and their values.
    ([*R, "--num_component", "3"], 2, ["--num_component", "Did you mean --num_components?"]),
    ([*R, "--num_components", "two"], 2, ["'two'", "whole number"]),
    ([*R, "--num_components", "0"], 2, ["num_components", "0"]),
    ([*R, "--heldout_fraction", "1.2"], 2, ["heldout_fraction", "[0, 1)", "1.2"]),
    ([*R, "--em", "medium"], 2, ["medium", "soft"]),
    ([*R, "--component_type", "heads"], 2, ["heads", "lora"]),
    ([*R, "--learning_rate", "fast"], 2, ["learning_rate", "fast"]),
    ([*R, "--select", "1;2"], 2, ["select", "1;2"]),
    ([*R, "--annealing_start", "0"], 2, ["annealing_start", "(0, 1]"]),
    ([*R, "--lr_scheduler_type", "zigzag"], 2, ["zigzag", "linear"]),
    ([*R, "--kernel_features", "64"], 2, ["kernel_features", "train_trunk"]),
    ([*R, "--group_column", "worker"], 2, ["group_column", "worker"]),
    ([*R, "--trust_remote_code", "true"], 2, ["--trust_remote_code is refused"]),
    ([*R, "--config", "recipe.yaml"], 2, ["learning_rate", "fast"]),
    ([*R, "--config", "list.yaml"], 1, ["list.yaml", "option: value"]),
    ([*R, "--config", "no.yaml"], 1, ["no.yaml", "no such file"]),
    ([*P, "--welfare", "minmax"], 2, ["minmax", "maxmin"]),
    ([*P, "--utility", "rank"], 2, ["rank", "zscore"]),
    ([*P, "--temperature", "0"], 2, ["temperature", "above 0"]),
    ([*P, "--kl_coef", "-1"], 2, ["kl_coef", "-1"]),
    ([*P, "--stop_token", "eos", "--stop_token_id", "2"], 2, ["stop_token", "not both"]),
    ([*P, "--critic", "matrix"], 2, ["matrix", "vector"]),
    ([*P, "--model_init_kwargs", "[1]"], 2, ["--model_init_kwargs", "[1]"]),
    ([*P, "--model_init_kwargs", '{"foo": 1}'], 1, ["base", "foo"]),
    ([*P, "--attn_implementation", "bogus"], 1, ["bogus", "eager"]),
    ([*P, "--load_in_4bit"], 2, ["--load_in_4bit", "--use_peft"]),
    ([*P, "--sft_model_path", "x"], 2, ["--sft_model_path x", "--model_name_or_path"]),
    ([*G, "--num_generations", "1"], 2, ["1", "generation"]),
    ([*G, "--multi_objective_aggregation", "normalize_then_sum"], 2, ["normalize_then_sum", "sum_then_normalize"]),
    ([*G, "--reward_weights", "1", "2"], 2, ["reward_weights", "welfare"]),
    ([*L, "--welfare_floor", "2"], 2, ["welfare_floor", "[0, 1 / K]"]),
    ([*L, "--num_reference_completions", "2"], 2, ["num_reference_completions", "at least 4"]),
    (["demo", "--trainer", "dpo"], 2, ["dpo", "ppo, grpo, rloo"]),
    (["demo", "--minority_share", "1"], 2, ["minority_share", "[0, 1)"]),
    (["estimate", "--model", "base", "--dtype", "int3"], 2, ["int3", "bfloat16"]),
    (["estimate", "--model", "base", "--lora_r", "-1"], 2, ["--lora_r", "-1"]),
    (["push", "run", "--repo_id", "me/x", "--space_sdk", "shiny"], 2, ["shiny", "gradio"]),
    (["ppo", "--accelerate_config", "zero7"], 2, ["zero7", "zero2"]),
    (["demo", "--num_processes", "2"], 2, ["`demo` runs on one process"]),
    # What they name is not there, or is something else.
    ([*R, "--dataset_name", "no.jsonl"], 1, ["no file no.jsonl"]),
    ([*R, "--dataset_name", "empty.jsonl"], 1, ["empty.jsonl is empty"]),
    ([*R, "--dataset_name", "broken.jsonl"], 1, ["broken.jsonl", "json"]),
    ([*R, "--dataset_name", "text.jsonl"], 1, ["column", "chosen"]),
    ([*R, "--dataset_config", "de"], 1, ["--dataset_config de", "prefs.jsonl"]),
    ([*R, "--dataset_train_split", "dev"], 1, ["'dev'", "train"]),
    ([*R, "--dataset_test_split", "dev"], 1, ["'dev'", "--dataset_test_split"]),
    ([*R, "--annotator_column", "who"], 1, ["'who'"]),
    ([*R, "--dataset_name", "one.jsonl"], 1, ["annotator", "2"]),
    ([*R, "--dataset_name", "nobody.jsonl"], 1, ["worker"]),
    ([*R, "--num_components", "9"], 1, ["9", "8"]),
    ([*R, "--model_name_or_path", "torn"], 1, ["torn/model.safetensors", "cut off"]),
    ([*R, "--model_name_or_path", "empty"], 1, ["--model_name_or_path", "empty", "no model"]),
    ([*R, "--max_length", "1"], 1, ["max_length=1"]),
    ([*P, "--dataset_name", "text.jsonl"], 1, ["text.jsonl", "'prompt'", "text"]),
    ([*P, "--dataset_name", "long.jsonl"], 1, ["44", "48"]),
    ([*G, "--dataset_name", "long.jsonl"], 1, ["44", "48", "--max_completion_length"]),
    ([*P, "--reward_model", "base"], 1, ["--reward_model", "score.weight"]),
    ([*P, "--reward_model", "reward,empty"], 1, ["--reward_model", "empty"]),
    ([*P, "--model_name_or_path", "reward"], 1, ["--model_name_or_path", "score.weight"]),
    ([*P, "--per_device_train_batch_size", "16"], 1, ["8 prompts", "16"]),
    ([*P, "--num_mini_batches", "3"], 1, ["num_mini_batches=3"]),
    ([*G, "--reward_model", "torn"], 1, ["torn"]),
    ([*E, "--policies", "one=base", "two=torn"], 1, ["torn/model.safetensors", "cut off"]),
    ([*E, "--policies", "one=base", "two=empty"], 1, ["empty", "no model"]),
    ([*E, "--dataset_name", "text.jsonl"], 1, ["'prompt'"]),
    ([*E, "--gold", "gold.py:height"], 1, ["gold.py", "height"]),
    ([*E, "--chat_template_kwargs", "[1]"], 2, ["--chat_template_kwargs", "JSON object"]),
    ([*C, "--gold", "world:tall"], 2, ["tall", "positive"]),
    ([*C, "--reference", "z"], 1, ["z", "['a', 'b']"]),
    ([*C, "--majority", "tall", "--minority", "positive"], 1, ["'tall'", "positive"]),
    ([*A, "--reward_model", "base"], 1, ["--reward_model"]),
    ([*A, "--annotator_column", "who"], 1, ["'who'"]),
    ([*D, "--max_groups", "0"], 1, ["max_groups", "0"]),
    ([*D, "--heldout_fraction", "1"], 1, ["heldout_fraction"]),
    ([*D, "--model_name_or_path", "empty"], 1, ["empty"]),
    (["estimate", "--model", "empty"], 1, ["empty"]),
    (["push", "empty", "--repo_id", "me/x", "--dry_run"], 1, ["empty", "nothing to push"]),
    (["push", "no", "--repo_id", "me/x", "--dry_run"], 1, ["no folder no"]),
    (["push", "mixture", "--repo_id", "x y", "--dry_run"], 1, ["x y"]),
    (["pull", "x y", "--output_dir", "out"], 1, ["x y"]),
    (["space", "--run", "no"], 1, ["no"]),
    # Folders.
    ([*R, "--output_dir", "run"], 2, ["--output_dir run", "checkpoint-4", "--resume_from_checkpoint", "--overwrite"]),
    ([*P, "--output_dir", "run"], 2, ["--output_dir run", "holds another run"]),
    ([*G, "--output_dir", "run"], 2, ["--output_dir run", "holds another run"]),
    ([*L, "--output_dir", "run"], 2, ["--output_dir run", "holds another run"]),
    (["demo", "--output_dir", "run"], 2, ["--output_dir run", "holds another run"]),
    ([*R, "--output_dir", "file"], 1, ["--output_dir file", "it is a file"]),
    ([*P, "--output_dir", "file/below"], 1, ["--output_dir file/below"]),
    ([*E, "--output_dir", "file"], 1, ["--output_dir file"]),
    ([*D, "--output_dir", "file"], 1, ["--output_dir file"]),
    ([*A, "--output_file", "empty"], 1, ["--output_file empty", "folder"]),
    ([*A, "--output_file", "file/a.json"], 1, ["--output_file", "file"]),
    ([*R, "--resume_from_checkpoint", "/nowhere/checkpoint-9"], 1, ["/nowhere/checkpoint-9", "no such folder"]),
    ([*P, "--resume_from_checkpoint", "base"], 1, ["base", "holds no checkpoint"]),
    ([*G, "--resume_from_checkpoint", "true"], 1, ["No complete checkpoint", "out"]),
    ([*L, "--output_dir", "run", "--resume_from_checkpoint", "run/checkpoint-8"], 1, ["run/checkpoint-8"]),
    ([*P, "--output_dir", "run", "--resume_from_checkpoint", "true"], 1, ["run/checkpoint-4", "another trainer"]),
    (
        [*G, "--output_dir", "run", "--resume_from_checkpoint", "true", "--overwrite_output_dir", "true"],
        2,
        ["--overwrite_output_dir", "exclude each other"],
    ),
]  # fmt: skip


@pytest.fixture
def untrained(world, monkeypatch, tmp_path):
    """The world's files in a folder of the test's own; whoever begins to train fails the test."""

    def train(self, *args, **kwargs):
        pytest.fail("a model was trained before the mistake was found")

    monkeypatch.setattr(Trainer, "_inner_training_loop", train)
    monkeypatch.setattr(MixtureRewardTrainer, "_inner_training_loop", train)
    monkeypatch.setattr("trl_maxmin.data.world.FilmReviewWorld.pretrain", train)
    for entry in world.iterdir():
        os.symlink(entry, tmp_path / entry.name)
    (tmp_path / "run").unlink()
    shutil.copytree(world / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("argv", "status", "says"), WRONG, ids=[" ".join([w[0][0], *w[0][-2:]]) for w in WRONG])
def test_a_wrong_input_is_one_clear_line(argv, status, says, untrained, capsys):
    before = sorted(path for path in (untrained / "run").rglob("*"))
    got = main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    error = next(line for line in lines if line.startswith(f"trl-maxmin {argv[0]}: "))
    assert lines[-1] == error and "Traceback" not in error and "(--debug shows where)" not in error, lines
    assert got == status, error
    for words in says:
        assert words in error
    assert sorted(path for path in (untrained / "run").rglob("*")) == before, "what was there is there"


def test_there_are_sixty():
    assert len(WRONG) >= 60


TRAINERS = [
    ("MaxMinPPOTrainer", {"model": None}, "model"),
    ("MaxMinPPOTrainer", {"reward_model": None}, "reward_model"),
    ("MaxMinPPOTrainer", {"train_dataset": None}, "train_dataset"),
    ("MaxMinPPOTrainer", {"model": "empty"}, "empty"),
    ("MaxMinGRPOTrainer", {"reward_funcs": []}, "reward_funcs"),
    ("MaxMinGRPOTrainer", {"args": "PPO"}, "MaxMinGRPOConfig"),
    ("MaxMinRLOOTrainer", {"reward_funcs": None}, "reward_funcs"),
    ("MixtureRewardTrainer", {"train_dataset": None}, "train_dataset"),
    ("MixtureRewardTrainer", {"model": "empty"}, "empty"),
    ("MixtureRewardTrainer", {"pad_token": "<pad>"}, "pad_token"),
]


@pytest.mark.parametrize(("name", "change", "says"), TRAINERS)
def test_a_constructor_names_what_is_wrong(name, change, says, untrained):
    from datasets import Dataset

    config = {"output_dir": "out", "use_cpu": True, "report_to": "none"}
    change = dict(change)
    if "pad_token" in change:
        config["pad_token"] = change.pop("pad_token")
    args = getattr(trl_maxmin, name.replace("Trainer", "Config"))(**config)
    if change.get("args") == "PPO":
        change["args"] = trl_maxmin.MaxMinPPOConfig(**config)
    reward = {"MixtureRewardTrainer": {}, "MaxMinPPOTrainer": {"reward_model": len}}.get(name, {"reward_funcs": [len]})
    data = Dataset.from_list([{**row, "annotator_id": row["worker"]} for row in rows(8, "train")])
    with pytest.raises((ValueError, TypeError), match=says):
        getattr(trl_maxmin, name)(**{"model": "base", "args": args, "train_dataset": data, **reward, **change})


def test_resuming_from_nowhere_in_python(untrained):
    from trl_maxmin.trainer.common.atomic_checkpoint import checkpoint_to_resume

    assert checkpoint_to_resume(None, "run") is None and checkpoint_to_resume("false", "run") is None
    assert checkpoint_to_resume("true", "run") == checkpoint_to_resume(True, "run") == str(Path("run/checkpoint-4"))
    with pytest.raises(ValueError, match="/nowhere.*no such folder"):
        checkpoint_to_resume("/nowhere", "run")
