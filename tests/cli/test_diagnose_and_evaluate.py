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


def test_diagnose_writes_into_the_record_of_a_run(folder):
    """What was there stays, except an older diagnosis: of three groups two would otherwise stay beside one."""
    old = {"verdict": "Yes.", "num_groups": 3, "assumptions": [], "by_group": {f"component_{k}": {} for k in range(3)}}
    record = RunRecord(seed=7).update("reward", num_components=2).update("evaluation", num_prompts=5, diagnostics=old)
    record.save(folder / "run")
    preferences(annotators=12, pairs=30, share=0.0).to_json(folder / "p.jsonl")
    assert main(["diagnose", "--dataset_name", "p.jsonl", "--output_dir", "run", "--max_groups", "2"]) == 0
    record = RunRecord.load(folder / "run")
    assert record.seed == 7 and record.reward == {"num_components": 2} and record.evaluation["num_prompts"] == 5
    found = record.evaluation["diagnostics"]
    assert found["num_groups"] == 1 and list(found["by_group"]) == ["component_0"]
    # 360 pairs are too few to say that one suffices.
    assert found["verdict_kind"] == "cannot_tell" and found["verdict"].startswith("These data cannot tell.")
    assert found["assumptions"]
    # The record names a file as a place on this machine, so that it is never taken for an id of the Hub.
    name = str((folder / "p.jsonl").resolve())
    assert found["dataset"] == {"name": name, "split": "train", "annotator_column": "annotator_id"}
    written = json.loads((folder / "run" / "diagnosis.json").read_text())
    known = {key: value for key, value in written.items() if value is not None}  # a record has no empty fields
    assert found == known | {"dataset": found["dataset"]}, "the record and the file say the same"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", "", "p.jsonl is empty. Give a file with rows."),
        ("p.csv", "prompt,chosen,rejected\n", "p.csv holds no rows, only a header."),
        ("p.jsonl", "hello\n{", "Cannot read p.jsonl as json: "),
        ("p.parquet", "hello", "Cannot read p.parquet as parquet: Parquet file size"),
        ("p.txt", "hello", "Cannot read p.txt: type .txt. Allowed: .json"),
        (
            "p.jsonl",
            '{"chosen": 1, "rejected": 2}\n',
            "Row 0 has chosen 1; a reply must be text or a list of messages.",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(folder, capsys, name, text, message):
    (folder / name).write_text(text)
    assert main(["diagnose", "--dataset_name", name]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("trl-maxmin diagnose: ") and message in error and "--debug" not in error


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
    curve = [[step, 0.1 * step] for step in range(3)]
    RunRecord().update("policy", curves={"maxmin/worst_utility": curve}).save(folder / "one")
    Dataset.from_dict({"prompt": world.sample_prompts(8)}).to_json(folder / "prompts.jsonl")
    # With a dataclass and postponed annotations, which look their module up by its name.
    (folder / "groups.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Weight:\n"
        "    value: float = 1.0\n\ndef short(completions, **kwargs):\n"
        "    return [-Weight().value * len(c) for c in completions]\n"
    )
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

    rows = Dataset.from_parquet(str(out / "completions.parquet"))
    rows.filter(lambda row: row["policy"] != "second").to_parquet(folder / "fewer.parquet")
    fewer = ["evaluate", "--completions", "fewer.parquet", "--reference", "reference", "--gold", "world:positive"]
    assert main([*fewer, "--output_dir", "out", "--num_resamples", "200", "--quiet"]) == 0
    facts = RunRecord.load(out).evaluation
    assert list(facts["results"]["policies"]) == ["reference", "one"] and list(facts["win_rate"]) == ["one"]
    assert facts["groups"] == ["positive"] and list(facts["results"]["groups"]) == ["positive"]


CACHED = [{"policy": p, "prompt": q, "completion": "good", "finished": True} for p in "ab" for q in "xy"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--policies or --completions is required"),
        (["--policies", "x"], "--reference is required"),
        (["--policies", "x", "--reference", "y"], "Nobody to ask"),
        (["--policies", "x", "--reference", "y", "--judge_url", "http://h"], "together"),
        (["--policies", "x", "x", "--reference", "y", "--gold", "world:plain"], "has no name of its own"),
        (["--policies", "reference=x", "--reference", "a/reference", "--gold", "world:plain"], "no name of its own"),
        (["--policies", "m=.", "--reference", "y", "--gold", "world:plain"], "policies: the folder . holds no model"),
        (["--policies", "x", "--reference", ".", "--gold", "world:plain"], "reference: the folder . holds no model"),
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
    named = ("no name of its own", "groups of the embedded world", "cannot be mixed", "at least 2", "together")
    is_wrong_call = "--reference" not in argv or "Nobody" in message or any(words in message for words in named)
    assert main(["evaluate", *argv]) == (2 if is_wrong_call else 1)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
