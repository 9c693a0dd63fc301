# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin reward --select` and `trl-maxmin assign` on files; annotators stay out of everything that is shared."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trl_maxmin import MixtureRewardModel
from trl_maxmin.cli import main


COMMON = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]


def rows(people, name, pairs=10):
    """Each word is in several texts: of a text that is held out, others say what its words are worth."""
    nouns, good, bad = ("film", "plot", "story", "ending"), ("great", "superb", "lovely"), ("dull", "awful", "weak")
    for h in range(people):
        for i in range(pairs):
            praise = f"the {nouns[(h + i) % 4]} is {good[(h + 2 * i) % 3]}"
            blame = f"the {nouns[(2 * h + 3 * i + 1) % 4]} is {bad[(h + i) % 3]}"
            chosen, rejected = (blame, praise) if h % 4 == 0 else (praise, blame)
            yield {"prompt": "review :", "chosen": chosen, "rejected": rejected, "worker": f"{name}{h}"}


@pytest.fixture
def files(tmp_path, word_tokenizer, monkeypatch):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(word_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    for name, people in (("train", 12), ("new", 6)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(people, name)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_select_then_assign(files, capsys):
    reward = ["reward", "--dataset_name", "train.jsonl", "--model_name_or_path", "base", "--output_dir", "mixture"]
    reward += ["--annotator_column", "worker", "--train_trunk", "false", "--pooling", "mean", "--select", "1,2"]
    assert main([*reward, *COMMON]) == 0
    out = capsys.readouterr().out
    assert "K = 2: the annotators are better described by 2 components" in out and "Choice of K" in out
    assert json.loads((files / "mixture" / "selection.json").read_text())["num_components"] == 2
    assert (files / "mixture" / "selection.png").is_file()
    assert not (files / "mixture" / "components").exists(), "mean-pooled components are not exported"
    for file in (files / "mixture").rglob("*"):
        if file.is_file() and file.name != "assignments.json":
            assert b"train11" not in file.read_bytes(), f"{file} names an annotator"

    assign = ["assign", "--dataset_name", "new.jsonl", "--reward_model", "mixture", "--annotator_column", "worker"]
    assert main([*assign, "--output_file", "out/annotators.json", "--curve", "true"]) == 0
    out = capsys.readouterr().out
    assert "6 annotators, 60 pairs" in out and "pairs seen" in out
    posterior = json.loads((files / "out" / "annotators.json").read_text())
    assert {posterior[f"new{h}"]["component"] for h in (0, 4)} != {posterior[f"new{h}"]["component"] for h in (1, 2)}
    one = posterior["new1"]
    assert one["num_pairs"] == 10 and one["probability"] > 0.9 and 0 <= one["entropy_nats"] < 0.4
    assert sum(one["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)


def test_lora_components_from_the_command_line(files):
    reward = ["reward", "--dataset_name", "train.jsonl", "--model_name_or_path", "base", "--output_dir", "mixture"]
    reward += ["--annotator_column", "worker", "--component_type", "lora", "--lora_r", "2", "--max_steps", "2"]
    assert main([*reward, "--save_strategy", "no", *COMMON]) == 0
    adapter = json.loads((files / "mixture" / "components" / "component_0" / "adapter_config.json").read_text())
    assert adapter["r"] == 2 and adapter["base_model_name_or_path"] == "base"


def test_the_mixture_must_be_named(files, capsys):
    assert main(["assign", "--dataset_name", "new.jsonl", "--annotator_column", "worker"]) == 2
    assert "--reward_model is required" in capsys.readouterr().err


def test_rankings_are_assigned_and_diagnosed(files, word_tokenizer, capsys):
    base = GPT2LMHeadModel.from_pretrained("base")
    MixtureRewardModel.from_base(base, 2, processing_class=word_tokenizer).save_pretrained("mixture")
    words = ["great", "dull", "superb", "weak", "lovely", "awful"]
    ranked = [
        {"prompt": "review :", "responses": [f"{a} {b}" for b in words[:3]], "choice": h % 3, "worker": f"w{h}"}
        for h in range(6)
        for a in words
    ]
    (files / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked))
    options = ["--dataset_name", "ranked.jsonl", "--annotator_column", "worker"]
    assert main(["assign", *options, "--reward_model", "mixture", "--output_file", "a.json", "--curve", "true"]) == 0
    out = capsys.readouterr().out
    assert "6 annotators, 36 rankings" in out and "rankings seen" in out and "top-1" in out and "Kendall's tau" in out
    assert json.loads((files / "a.json").read_text())["w0"]["num_pairs"] == 6
    assert main(["diagnose", *options, "--output_dir", "out", "--max_groups", "2"]) == 0
    assert "36 rankings of 6 annotators" in capsys.readouterr().out
    assert (files / "out" / "diagnosis.png").is_file()
