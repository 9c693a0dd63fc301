# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin diagnose` and `trl-maxmin evaluate` on files a user could have."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from tests.evaluation.test_diagnosis import preferences
from trl_maxmin.cli import main
from trl_maxmin.data.world import FilmReviewWorld
from trl_maxmin.run_record import RunRecord


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_diagnose_answers_in_words_numbers_and_a_figure(folder, capsys):
    preferences(annotators=12, pairs=30).to_json(folder / "p.jsonl")
    assert main(["diagnose", "--dataset_name", "p.jsonl", "--output_dir", "d", "--max_groups", "2"]) == 0
    text = capsys.readouterr().out
    assert "Yes: the data hold 2 groups of annotators" in text and "Rewards are linear in the features" in text
    found = json.loads((folder / "d" / "diagnosis.json").read_text())
    assert found["num_groups"] == 2 and (folder / "d" / "diagnosis.png").stat().st_size > 10_000
    assert (folder / "d" / "diagnosis.md").read_text().startswith("# Do these data need more than one reward?")


def save_policy(world, folder, seed):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(world.tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=48,
        eos_token_id=world.tokenizer.eos_token_id,
        bos_token_id=1,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    world.tokenizer.save_pretrained(folder)


def test_evaluate_policies_and_again_from_their_cached_replies(folder, capsys):
    world = FilmReviewWorld(seed=0)
    for seed, name in enumerate(("base", "one", "two")):
        save_policy(world, folder / name, seed)
    record = RunRecord()
    for step in range(3):
        record.add_point("policy", "maxmin/worst_utility", step, 0.1 * step)
    record.save(folder / "one")
    Dataset.from_dict({"prompt": world.sample_prompts(8)}).to_json(folder / "prompts.jsonl")
    (folder / "groups.py").write_text("def short(completions, **kwargs):\n    return [-len(c) for c in completions]\n")
    (folder / "recipe.yaml").write_text("max_new_tokens: 10\nnum_resamples: 200\nnum_completions: 4\nmax_prompts: 6\n")
    gold = ["--gold", "world:positive", "groups.py:short"]
    argv = ["evaluate", "--policies", "one", "second=two", "--reference", "base", "--dataset_name", "prompts.jsonl"]
    assert main([*argv, *gold, "--config", "recipe.yaml", "--output_dir", "out"]) == 0
    text = capsys.readouterr().out
    assert "Known groups: win rate against `reference`" in text and "wrote out/" in text
    out = folder / "out"
    results = json.loads((out / "evaluation.json").read_text())
    assert list(results["policies"]) == ["reference", "one", "second"] and results["num_replies"] == 24
    for name in ("win_rate.png", "utility.png", "pareto.png", "training.png", "evaluation.md", "completions.parquet"):
        assert (out / name).stat().st_size > 500
    assert RunRecord.load(out).evaluation["results"] == results

    cached = ["evaluate", "--completions", "out/completions.parquet", "--reference", "reference", *gold]
    assert main([*cached, "--output_dir", "again", "--num_resamples", "200", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    again = json.loads((folder / "again" / "evaluation.json").read_text())
    for name in ("one", "second"):
        assert again["policies"][name]["by_group"] == results["policies"][name]["by_group"]


CACHED = [{"policy": p, "prompt": q, "completion": "good", "finished": True} for p in "ab" for q in "xy"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--policies or --completions is required"),
        (["--policies", "x"], "--reference is required"),
        (["--policies", "x", "--reference", "y"], "Nobody to ask"),
        (["--policies", "x", "--reference", "y", "--judge_url", "http://h"], "together"),
        (["--policies", "x", "x", "--reference", "y", "--gold", "world:plain"], "has no name of its own"),
        (["--completions", "c.jsonl", "--reference", "z", "--gold", "world:plain"], "none of the policies ['a', 'b']"),
        (["--completions", "c.jsonl", "--reference", "a", "--gold", "world:tall"], "groups of the embedded world are"),
        (["--completions", "c.jsonl", "--reference", "a", "--gold", "no.py:f"], "with an existing file"),
        (["--completions", "c.jsonl", "--reference", "a", "--gold", "g.py:f"], "has no function 'f'"),
        (["--completions", "c.jsonl", "--reference", "a", "--gold", "world:plain", "--majority", "q"], "no group 'q'"),
        (["--policies", "x", "--reference", "y", "--gold", "world:plain", "--dataset_name", "c.jsonl",
          "--completions", "c.jsonl"], "cannot be mixed"),
        (["--policies", "x", "--reference", "y", "--gold", "world:plain",
          "--dataset_name", "n.jsonl"], "no column 'prompt'"),
        (["--policies", "x", "--reference", "y", "--gold", "world:plain", "--dataset_name", "c.jsonl",
          "--max_prompts", "1"], "--max_prompts must be at least 2"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line(folder, capsys, argv, message):
    Dataset.from_list(CACHED).to_json(folder / "c.jsonl")
    Dataset.from_dict({"text": ["a"]}).to_json(folder / "n.jsonl")
    (folder / "g.py").write_text("f = 3\n")
    assert main(["evaluate", *argv]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
