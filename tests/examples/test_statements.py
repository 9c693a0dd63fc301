"""The example on people's votes, in miniature, on votes made up here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.ppo_helpers import gpt2


FOLDER = Path(__file__).resolve().parents[2] / "examples" / "statements"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import train_statements

    yield train_statements
    del sys.modules["train_statements"]


def write_votes(path, columns=("annotator", "chosen", "rejected", "group")):
    """Two groups with opposite votes on four statements."""
    rng = np.random.default_rng(0)
    texts = ["the film is great and superb", "the plot is superb and great", "the film is dull and awful"]
    texts += ["the plot is awful and dull"]
    rows = []
    for person in range(12):
        for _ in range(10):
            good, bad = texts[rng.integers(2)], texts[2 + rng.integers(2)]
            chosen, rejected = (bad, good) if person % 3 == 0 else (good, bad)
            row = {"annotator": person, "chosen": chosen, "rejected": rejected, "group": person % 3 == 0}
            rows.append({name: row[name] for name in columns})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_no_person_teaches_and_judges(example, tmp_path):
    votes = example.read_votes(str(write_votes(tmp_path / "votes.jsonl")))
    teachers, judges = example.split_people(votes, 0)
    assert len(teachers) + len(judges) == 120
    assert not set(teachers["annotator_id"]) & set(judges["annotator_id"])


def test_columns_and_groups_are_needed(example, tmp_path):
    path = write_votes(tmp_path / "votes.jsonl", ("annotator", "chosen", "rejected"))
    with pytest.raises(ValueError, match="no column group"):
        example.read_votes(str(path))
    path.write_text(json.dumps({"annotator": 1, "chosen": "a", "rejected": "b", "group": 0}) + "\n")
    with pytest.raises(ValueError, match="fewer than two groups"):
        example.read_votes(str(path))


@pytest.mark.slow
def test_whole_script_in_miniature(example, tmp_path, word_tokenizer):
    gpt2(seed=0, vocab_size=len(word_tokenizer)).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    votes, output = write_votes(tmp_path / "votes.jsonl"), tmp_path / "out"
    options = ["--data", votes, "--policy", tmp_path / "base", "--encoder", tmp_path / "base", "--output_dir", output]
    options += ["--pretrain_steps", "2", "--policy_steps", "1", "--max_new_tokens", "8", "--prompts", "4"]
    report = example.main([str(option) for option in options])
    assert set(report["win_rate"]["maxmin"]) == {"group True", "group False"}
    assert all(0 <= rate <= 1 for rates in report["win_rate"].values() for rate in rates.values())
    assert json.loads((output / "report.json").read_text())["judge_accuracy"]
