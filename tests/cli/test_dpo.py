# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin dpo` from files as a user has them, and what takes its run afterwards."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from tests.trainer.dpo_helpers import preferences
from tests.trainer.ppo_helpers import gpt2
from tests.trainer.trl_helpers import mixture_of
from trl_maxmin.cli import main


RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
TRAIN = "--use_cpu true --gradient_checkpointing false --report_to none --save_strategy no --disable_tqdm true".split()
TRAIN += "--max_steps 2 --per_device_train_batch_size 4 --logging_steps 1".split()
DPO = ["dpo", *"--dataset_name prefs.jsonl --model_name_or_path base --output_dir policy".split(), *TRAIN]


@pytest.fixture
def lab(tmp_path, word_tokenizer, monkeypatch):
    """A policy, a mixture, preferences and rankings; the working directory is their folder."""
    gpt2(vocab_size=len(word_tokenizer)).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    mixture_of(word_tokenizer).save_pretrained(tmp_path / "mixture")
    rows = list(preferences())
    (tmp_path / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(folder):
    return json.loads((folder / "policy" / "run_record.json").read_text())["policy"]


def test_known_groups(lab, capsys):
    assert main([*DPO, "--group_column", "group", "--welfare", "gini"]) == 0
    assert "saved to policy" in capsys.readouterr().out
    AutoModelForCausalLM.from_pretrained(lab / "policy")
    facts = record(lab)
    assert facts["algorithm"] == "MaxMin-DPO" and facts["welfare"]["rule"] == "gini"
    assert facts["dataset"]["num_rows"] == 24 and "reward_model" not in facts
    assert "group-robust" not in (lab / "policy" / "README.md").read_text()


def test_groups_of_a_mixture_and_of_a_file_of_assign(lab):
    assert main([*DPO, "--assignments", "mixture"]) == 0
    assert record(lab)["reward_model"].endswith("mixture")
    card = (lab / "policy" / "README.md").read_text()
    assert "over 2 groups, from their preferences alone" in card and "with the groups of" in card
    command = "assign --dataset_name prefs.jsonl --reward_model mixture --output_file annotators.json"
    assert main(command.split()) == 0
    assert main([*DPO, "--assignments", "annotators.json", "--overwrite_output_dir", "true"]) == 0
    assert "reward_model" not in record(lab)
    for path in (lab / "policy").rglob("*"):
        if path.is_file():
            assert b"-person-" not in path.read_bytes(), path


@pytest.mark.slow
def test_evaluate_push_and_space_take_the_run(lab, capsys):
    assert main([*DPO, "--group_column", "group"]) == 0
    (lab / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("plot", "the film")))
    command = "evaluate --policies dpo=policy --reference base --reward_model mixture --dataset_name prompts.jsonl"
    command += " --max_new_tokens 4 --num_completions 2 --output_dir evaluation"
    assert main(command.split()) == 0
    assert json.loads((lab / "evaluation" / "evaluation.json").read_text())["policies"].keys() >= {"dpo"}
    capsys.readouterr()
    assert main("push policy --repo_id me/film --dry_run --exact --base_model me/base".split()) == 0
    sent = capsys.readouterr().out
    assert "model.safetensors" in sent and "welfare_state" not in sent and "annotator" not in sent


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "Either --group_column COLUMN (known groups) or --assignments"),
        (["--group_column", "group", "--assignments", "mixture"], 2, "both were given"),
        (["--group_column", "team"], 1, "no column 'team'"),
        (["--assignments", "nobody.json"], 1, "--assignments nobody.json: there is no such file"),
        (["--assignments", "nowhere"], 1, "--assignments"),
        (["--assignments", "base"], 1, "`assignments`"),
        (["--group_column", "group", "--loss_type", "aot"], 2, "compares sorted batches"),
        (["--group_column", "group", "--use_liger_kernel", "true"], 2, "`use_liger_kernel` is set"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(lab, capsys, words, status, message):
    assert main([*DPO, *words]) == status
    error = capsys.readouterr().err
    assert message in error and not (lab / "policy" / "run_record.json").exists()


def test_a_policy_is_named(capsys):
    assert main(["dpo", "--dataset_name", "prefs.jsonl", "--output_dir", "o", "--group_column", "g"]) == 2
    assert "--model_name_or_path is required" in capsys.readouterr().err


def test_the_recipe_is_taken(lab):
    recipe = yaml.safe_load((RECIPES / "film_reviews" / "dpo.yaml").read_text())
    recipe |= {"model_name_or_path": "base", "assignments": "mixture", "max_steps": 1, "use_cpu": True}
    (lab / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["dpo", "--config", "recipe.yaml", "--dataset_name", "prefs.jsonl", "--report_to", "none"]) == 0
    assert (lab / "policy-dpo" / "model.safetensors").is_file()
