# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin reward` and `trl-maxmin ppo` on files a user could have: the demo is no special path."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from tests.launcher import launch
from trl_maxmin import MixtureRewardModel
from trl_maxmin.cli import main


@pytest.fixture
def files(tmp_path, word_tokenizer, monkeypatch):
    """A base model, preferences of two opposed groups, prompts; the working directory is their folder."""
    torch.manual_seed(0)
    size = len(word_tokenizer)
    config = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    rows = []
    for h in range(8):
        for i in range(10):
            praise, blame = f"the film is {('great', 'superb')[i % 2]}", f"the plot is {('dull', 'awful')[i % 2]}"
            chosen, rejected = (blame, praise) if h < 2 else (praise, blame)
            rows.append({"prompt": "review :", "chosen": chosen, "rejected": rejected, "worker": h})
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p in ["review :", "film"] * 6)
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMON = ["--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none"]
COMMON += ["--save_strategy", "no", "--disable_tqdm", "true"]


ON_EACH_RANK = """
import json, os, sys
from trl_maxmin.cli import main
out, options = sys.argv[1], sys.argv[2:]
status = main(options)
open(f"{out}.{os.environ['RANK']}", "w").write(json.dumps(status))
"""


@pytest.mark.slow
def test_rewards_on_two_processes(files):
    """What only one process writes may not be measured by one alone: the others would wait for ever."""
    reward = [
        "reward",
        "--dataset_name",
        "preferences.jsonl",
        "--model_name_or_path",
        "base",
        "--output_dir",
        "mixture",
    ]
    reward += ["--annotator_column", "worker", "--max_steps", "4", "--per_device_train_batch_size", "8", *COMMON]
    assert launch(ON_EACH_RANK, 2, files / "ranks" / "run", *reward) == [0, 0]
    assert len(json.loads((files / "mixture" / "assignments.json").read_text())) == 8
    assert AutoModel.from_pretrained(files / "mixture").num_components == 2


def test_preferences_to_mixture_to_policy(files, capsys):
    reward = [
        "reward",
        "--dataset_name",
        "preferences.jsonl",
        "--model_name_or_path",
        "base",
        "--output_dir",
        "mixture",
    ]
    reward += ["--annotator_column", "worker", "--max_steps", "20", "--per_device_train_batch_size", "16"]
    assert main([*reward, "--learning_rate", "3e-3", *COMMON]) == 0
    assert "held-out pairs" in capsys.readouterr().out
    mixture = AutoModel.from_pretrained(files / "mixture")
    assignments = json.loads((files / "mixture" / "assignments.json").read_text())
    assert len(assignments) == 8
    assert len({assignments["0"], assignments["1"]}) == 1 and assignments["0"] != assignments["7"]
    for name in mixture.component_names:
        folder = files / "mixture" / "components" / name
        component = AutoModelForSequenceClassification.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert component.config.num_labels == 1 and tokenizer.pad_token_id != tokenizer.eos_token_id

    ppo = ["ppo", "--dataset_name", "prompts.jsonl", "--model_name_or_path", "base", "--reward_model", "mixture"]
    ppo += [
        "--output_dir",
        "policy",
        "--max_steps",
        "2",
        "--per_device_train_batch_size",
        "6",
        "--response_length",
        "8",
    ]
    assert main([*ppo, "--num_reference_completions", "4", *COMMON]) == 0
    AutoModelForCausalLM.from_pretrained(files / "policy")
    AutoTokenizer.from_pretrained(files / "policy")


def test_options_from_a_yaml_file(files):
    (files / "recipe.yaml").write_text(
        "dataset_name: preferences.jsonl\nmodel_name_or_path: base\noutput_dir: mixture\nannotator_column: worker\n"
        "num_components: 3\ncomponent_type: full\nmax_steps: 2\nuse_cpu: true\nbf16: false\nreport_to: none\n"
        "gradient_checkpointing: false\nsave_strategy: 'no'\ndisable_tqdm: true\n"
    )
    assert main(["reward", "--config", "recipe.yaml"]) == 0
    mixture = AutoModel.from_pretrained(files / "mixture")
    assert mixture.num_components == 3 and mixture.config.component_type == "full"


def test_several_plain_reward_models_are_several_groups(files):
    for number in range(2):
        torch.manual_seed(number)
        config = GPT2Config(
            vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=1, pad_token_id=0
        )
        AutoModelForSequenceClassification.from_config(config).save_pretrained(files / f"reward{number}")
        AutoTokenizer.from_pretrained(files / "base").save_pretrained(files / f"reward{number}")
    ppo = ["ppo", "--dataset_name", "prompts.jsonl", "--model_name_or_path", "base"]
    ppo += ["--reward_model", "reward0,reward1", "--output_dir", "policy", "--max_steps", "1"]
    ppo += ["--per_device_train_batch_size", "6", "--response_length", "8", "--num_reference_completions", "4"]
    assert main([*ppo, *COMMON]) == 0
    assert (files / "policy" / "model.safetensors").is_file()


def test_a_wrong_annotator_column_is_named(files, capsys):
    argv = ["reward", "--dataset_name", "preferences.jsonl", "--model_name_or_path", "base", "--output_dir", "m"]
    assert main([*argv, "--annotator_column", "person", *COMMON]) == 1
    assert "no column 'person'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["grpo", "rloo"])
def test_policies_with_trls_trainers(files, command):
    tokenizer = AutoTokenizer.from_pretrained("base")
    policy = GPT2LMHeadModel.from_pretrained("base")
    MixtureRewardModel.from_base(policy, 2, processing_class=tokenizer).save_pretrained("mixture")
    argv = [command, "--dataset_name", "prompts.jsonl", "--model_name_or_path", "base", "--reward_model", "mixture"]
    argv += ["--output_dir", "policy", "--max_steps", "2", "--per_device_train_batch_size", "4"]
    argv += ["--num_generations", "2", "--max_completion_length", "6", "--num_reference_completions", "4"]
    argv += ["--welfare", "mirror", "--welfare_step_schedule", "inverse_sqrt"]
    assert main([*argv, *COMMON]) == 0
    AutoModelForCausalLM.from_pretrained(files / "policy")
    AutoTokenizer.from_pretrained(files / "policy")


@pytest.mark.parametrize("command", ["ppo", "grpo", "rloo"])
def test_what_is_missing_is_named(files, command, capsys):
    assert main([command, "--dataset_name", "prompts.jsonl", "--output_dir", "p", *COMMON]) == 2
    assert "--model_name_or_path and --reward_model required" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["choice", "ranking"])
def test_rankings_to_mixture(files, capsys, form):
    """Best of four, or a full ranking, of two opposed groups: found from one command."""
    words = ["great", "good", "weak", "awful"]
    rows = []
    for h in range(12):
        for i in range(10):
            order = [(i + step * (1 + 2 * (h % 2))) % 4 for step in range(4)]
            ranks = [4 - place if h < 4 else place + 1 for place in order]
            row = {"prompt": "review :", "responses": [f"the {('film', 'plot')[i % 2]} is {words[p]}" for p in order]}
            given = {"choice": ranks.index(1)} if form == "choice" else {"ranking": ranks}
            rows.append(row | given | {"worker": f"w{h}"})
    (files / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["reward", "--dataset_name", "rankings.jsonl", "--model_name_or_path", "base", "--output_dir", "mixture"]
    command += ["--annotator_column", "worker", "--train_trunk", "false"]
    assert main([*command, "--use_cpu", "true", "--report_to", "none"]) == 0
    out = capsys.readouterr().out
    assert "held-out rankings: top-1 accuracy" in out and "Kendall's tau" in out
    assert "typical held-out rankings of its annotators" in out
    assignments = json.loads((files / "mixture" / "assignments.json").read_text())
    groups = [{assignments[f"w{h}"] for h in people} for people in (range(4), range(4, 12))]
    assert [len(group) for group in groups] == [1, 1] and groups[0] != groups[1]
    record = json.loads((files / "mixture" / "run_record.json").read_text())["reward"]
    assert min(record["component_heldout_tau"].values()) > 0.6
