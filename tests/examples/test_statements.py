"""The example on people's votes, in miniature, on votes made up here."""

import json
import sys
from argparse import Namespace
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


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import report_statements

    yield report_statements
    del sys.modules["report_statements"]


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


def test_statements_begin_behind_bos(example, tmp_path, word_tokenizer):
    word_tokenizer.bos_token = None
    word_tokenizer.save_pretrained(tmp_path / "base")
    votes = example.read_votes(str(write_votes(tmp_path / "votes.jsonl")))
    arguments = Namespace(policy=tmp_path / "base", reference=tmp_path / "reference", output_dir=tmp_path)
    with pytest.raises(ValueError, match="base has no BOS token"):
        example.load_reference(votes, arguments)


def test_what_was_written_is_counted_by_hand(example, tmp_path):
    votes = example.read_votes(str(write_votes(tmp_path / "votes.jsonl")))
    texts = ["the film is dull and awful", "the film is dull and awful", "the film", "a plot"]
    assert example._kinds(texts, votes) == {"distinct": 0.75, "voted_on": 0.5}


def a_report(seed, single, maxmin):
    groups = ("group 0", "group 1")
    return {
        "seed": seed,
        "ari_with_published_groups": 0.5,
        "judge_accuracy": dict.fromkeys(groups, 0.8),
        "components": {"component_0": {"annotators": 3, "published_groups": {"group 0": 2, "group 1": 1}}},
        "win_rate": {
            name: dict(zip(groups, rates, strict=True)) for name, rates in (("single", single), ("maxmin", maxmin))
        },
        "written": {
            name: {"distinct": 0.5, "voted_on": rates[0]}
            for name, rates in (("reference", (0.7,)), ("single", single))
        },
        "samples": [{"reference": "The AI `may` err.", "single": "It should.", "maxmin": "It\nmust."}],
    }


def test_table_by_hand(tables):
    reports = [a_report(seed, (0.9, rate), (0.8, rate + 0.2)) for seed, rate in enumerate((0.4, 0.5, 0.6))]
    lines = tables.markdown(reports).splitlines()
    # Student's 97.5 % quantile with two degrees of freedom is 4.303, times the standard error 0.1 / sqrt(3): 0.248.
    assert lines[2] == "| single | 3 | 0.900 [0.900, 0.900] | 0.500 [0.252, 0.748] | 0.500 [0.252, 0.748] |"
    assert (
        lines[4]
        == "| maxmin - single | 3 | -0.100 [-0.100, -0.100] | +0.200 [+0.200, +0.200] | +0.200 [+0.200, +0.200] |"
    )
    assert "- component_0: 3 people (2 of group 0, 1 of group 1)" in lines
    assert "| single | 0.500 [0.500, 0.500] | 0.900 [0.900, 0.900] |" in lines
    assert "- reference: `The AI 'may' err.`" in lines and "  - maxmin: `It must.`" in lines
    assert (
        tables.markdown([a_report(0, (0.9, 0.5), (0.8, 0.7))]).splitlines()[2]
        == "| single | 1 | 0.900 | 0.500 | 0.500 |"
    )


def test_no_reports_and_no_place_for_them(tables, tmp_path):
    with pytest.raises(ValueError, match="no report .*train_statements.py"):
        tables.read_reports(tmp_path)
    results, docs = tmp_path / "results", tmp_path / "docs.md"
    results.mkdir()
    (results / "seed0.json").write_text(json.dumps(a_report(0, (0.9, 0.5), (0.8, 0.7))))
    docs.write_text("nothing")
    with pytest.raises(ValueError, match="needs the lines"):
        tables.main(["--results", str(results), "--docs", str(docs)])
    docs.write_text(f"a\n{tables.BEGIN}\nold\n{tables.END}\nb")
    tables.main(["--results", str(results), "--docs", str(docs)])
    assert "old" not in docs.read_text() and "| maxmin | 1 | 0.800 | 0.700 | 0.700 |" in docs.read_text()


def test_docs_have_the_recorded_table(tables):
    content = tables.markdown(tables.read_reports(FOLDER / "results"))
    text = (FOLDER.parents[1] / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert f"{tables.BEGIN}\n{content}\n{tables.END}" in text


@pytest.mark.slow
def test_whole_script_in_miniature(example, tmp_path, word_tokenizer):
    gpt2(seed=0, vocab_size=len(word_tokenizer)).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    votes, output = write_votes(tmp_path / "votes.jsonl"), tmp_path / "out"
    options = ["--data", votes, "--policy", tmp_path / "base", "--encoder", tmp_path / "base", "--output_dir", output]
    options += ["--pretrain_steps", "2", "--policy_steps", "1", "--max_new_tokens", "8", "--statements", "4"]
    options += ["--reference", tmp_path / "reference"]
    report = example.main([str(option) for option in options])
    # Made once: a second run finds it.
    made = (tmp_path / "reference" / "model.safetensors").stat().st_mtime_ns
    again = example.main([str(option) for option in options])
    assert (tmp_path / "reference" / "model.safetensors").stat().st_mtime_ns == made
    assert again == report
    assert set(report["win_rate"]["maxmin"]) == {"group True", "group False"}
    assert all(0 <= rate <= 1 for rates in report["win_rate"].values() for rate in rates.values())
    assert json.loads((output / "report.json").read_text())["judge_accuracy"]
    # People's own words are in a file of their own.
    typical = json.loads((output / "typical_votes.json").read_text())
    assert set(typical) == set(report["components"]) and {"chosen", "rejected"} <= set(typical["component_0"][0])
    assert not any("examples" in facts for facts in report["components"].values())
    groups = [facts["published_groups"] for facts in report["components"].values()]
    assert sum(count for group in groups for count in group.values()) == 6  # the teachers, half of the twelve
