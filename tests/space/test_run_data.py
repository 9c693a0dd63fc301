# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from datasets import Dataset

from trl_maxmin.evaluation.results import GroupScores, summarise
from trl_maxmin.run_record import RunRecord
from trl_maxmin.space.config import SpaceConfig
from trl_maxmin.space.groups import describe_groups, read_group_facts
from trl_maxmin.space.run_data import RunData


CURVES = {"maxmin/utility/a": [[1, 0.0]], "maxmin/utility/b": [[1, 0.0]], "maxmin/worst_utility": [[1, 0.1], [2, 0.2]]}


def load(folder, **policies):
    return RunData.load(SpaceConfig(record=str(folder), policies=policies))


def test_a_record_of_the_demo(tmp_path):
    record = RunRecord().update("reward", shares={"a": 0.8, "b": 0.2}, heldout_accuracy={"mixture": {"a": 0.9}})
    record.update("policy", name="maxmin", curves=CURVES)
    record.update(
        "evaluation",
        groups=["a", "b"],
        majority="a",
        minority="b",
        gold_utility={"maxmin": {"a": 0.5, "b": 0.4}},
        win_rate={"maxmin": {"a": {"mean": 0.7, "low": 0.6, "high": 0.8}}},
        samples=[{"prompt": "p", "completions": {"maxmin": "x"}}],
        diagnostics={"verdict": "Yes.", "num_groups": 2, "by_group": {}, "assumptions": ["linear"]},
    )
    record.save(tmp_path)
    data, problems = load(tmp_path)
    assert problems == [] and data.groups == ["a", "b"] and (data.majority, data.minority) == ("a", "b")
    assert data.utility == {"maxmin": {"a": {"mean": 0.5}, "b": {"mean": 0.4}}} and data.utility_kind == "gold"
    assert data.win_rate["maxmin"]["a"]["low"] == 0.6 and data.prompts == ["p"]
    assert data.curves == {"maxmin": [[1, 0.1], [2, 0.2]]}
    assert data.diagnosis["verdict"] == "Yes." and data.diagnosis["assumptions"] == ["linear"]
    assert data.group_facts["a"] == {"share": 0.8, "accuracy": {"mixture": 0.9}}


def test_the_results_of_evaluate_with_known_groups_before_components(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, 4))
    scores = GroupScores(
        {"c0": "component", "c1": "component", "few": "gold", "many": "gold"},
        {"base": noise, "mine": noise + 1},
        list(range(20)),
        reference="base",
        weights={"few": 0.1, "many": 0.9},
    )
    (tmp_path / "evaluation.json").write_text(json.dumps(summarise(scores, num_resamples=100)))
    rows = [{"policy": "mine", "prompt": "p", "completion": "x", "finished": False}]
    Dataset.from_list(rows).to_parquet(tmp_path / "completions.parquet")
    data, problems = load(tmp_path)
    assert problems == [] and data.groups == ["many", "few"] and data.reference == "base"
    assert data.utility["mine"]["few"]["mean"] == pytest.approx(noise[:, 2].mean() + 1)
    assert data.win_rate["mine"]["many"]["mean"] == 1.0 and data.replies == {"p": [("mine", "x", False)]}


def test_a_report_alone(tmp_path):
    rate = {"m": {"a": {"mean": 1.0, "low": 0.9, "high": 1.0}}}
    (tmp_path / "report.json").write_text(json.dumps({"groups": ["a"], "minority": "a", "win_rate": rate}))
    data, problems = load(tmp_path)
    assert problems == [] and data.win_rate == rate and data.minority == "a"


def test_of_a_single_reward_the_worst_group_is_not_drawn(tmp_path):
    RunRecord().update("policy", curves={"maxmin/utility/a": [[1, 1.0]], "maxmin/worst_utility": [[1, 1.0]]}).save(
        tmp_path
    )
    (tmp_path / "README.md").write_text("a card")
    data, problems = load(tmp_path, single=str(tmp_path))
    assert problems == [] and data.curves == {} and data.cards == {"single": "a card"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run_record.json", "{"),
        ("evaluation.json", '{"groups": 3}'),
        ("report.json", "[]"),
        ("completions.parquet", "no parquet"),
        ("groups.json", '{"a": 1}'),
    ],
)
def test_a_damaged_file_is_a_sentence_on_the_page_and_not_the_end(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    data, problems = load(tmp_path)
    assert len(problems) == 1 and "could not be read, so it is not shown here" in problems[0]


@pytest.mark.parametrize(
    ("facts", "left"),
    [
        ({}, {}),
        ({"groups": ["a"]}, {}),
        ({"win_rate": {"m": {"a": {"mean": "<b>"}, "b": {"mean": 0.5}}}}, {"m": {"b": {"mean": 0.5}}}),
        ({"win_rate": {"m": {"a": {"mean": float("nan")}}}}, {"m": {}}),
        ({"win_rate": {"m": {"a": {"mean": 0.5, "low": None, "high": 1.0}}}}, {"m": {}}),
        ({"win_rate": {"m": {"a": 0.5}}, "groups": [1, "a"]}, {"m": {}}),
        ({"win_rate": {"m": {"a": {"mean": 1e300}, "b": {"mean": -1e300}}}, "groups": ["a", "b"]}, None),
    ],
)
def test_reports_without_optional_parts_or_with_odd_ones_leave_a_page(tmp_path, facts, left):
    from trl_maxmin.space import figures, html

    (tmp_path / "report.json").write_text(json.dumps(facts))
    data, problems = load(tmp_path)
    assert left is None or data.win_rate == left
    odd = left is not None and data.win_rate != facts.get("win_rate", {})
    assert len(problems) == int(odd) and all("no number" in problem for problem in problems)
    shown = figures.overview(data) + html.overview_table(data)
    assert "<b>" not in shown and "nan" not in shown


def test_groups_are_described_from_their_own_pairs_without_annotator_ids():
    from types import SimpleNamespace

    import torch

    from tests.space.fakes import FakeMixture

    mixture = FakeMixture(["long", "short"])
    rows = [{"prompt": f"p{i}", "chosen": "x" * (i + 2), "rejected": "x", "annotator_id": "ann"} for i in range(3)]
    rows += [{"prompt": "q", "chosen": "x", "rejected": "xx", "annotator_id": "bob"}]
    posterior = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    mixture.assign = lambda data, annotator_column: SimpleNamespace(
        annotator_ids=("ann", "bob"), probabilities=posterior
    )
    facts = describe_groups(mixture, Dataset.from_list(rows), num_examples=2)
    assert facts["long"]["annotators"] == 1 and facts["long"]["pairs"] == 3 and facts["long"]["pair_share"] == 0.75
    assert [example["prompt"] for example in facts["long"]["examples"]] == ["p2", "p1"]
    assert facts["short"]["examples"] == [{"prompt": "q", "chosen": "x", "rejected": "xx"}]
    assert "ann" not in json.dumps(facts).replace("annotators", "") and "bob" not in json.dumps(facts)


@pytest.mark.parametrize("prompt", ["", "Which rule?"])
def test_typical_pairs_of_one_question_show_other_replies(prompt):
    from types import SimpleNamespace

    import torch

    from tests.space.fakes import FakeMixture

    mixture = FakeMixture(["long", "short"])
    pairs = [("xxxxx", "x"), ("xxxxx", "xx"), ("yyyy", "y"), ("yyyy", "xx"), ("zzz", "z")]
    rows = [{"prompt": prompt, "chosen": a, "rejected": b, "annotator_id": "ann"} for a, b in pairs]
    posterior = SimpleNamespace(annotator_ids=("ann",), probabilities=torch.tensor([[1.0, 0.0]]))
    mixture.assign = lambda data, annotator_column: posterior
    examples = describe_groups(mixture, Dataset.from_list(rows))["long"]["examples"]
    # By what they gain: 4, 3, 3, 2, 2; the second and the fourth repeat a reply of the first or third.
    assert [(e["chosen"], e["rejected"]) for e in examples] == [pairs[0], pairs[2], pairs[4]]


def test_group_facts_of_another_kind_are_refused(tmp_path):
    (tmp_path / "groups.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold an object for each group"):
        read_group_facts(tmp_path / "groups.json")


def test_the_answers_that_the_demo_records(tmp_path):
    (tmp_path / "evaluation").mkdir()
    rows = [{"prompt": "p", "policy": "maxmin", "completion": text, "utility_a": 0.1} for text in ("x", "x", "y")]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "evaluation" / "completions.jsonl").write_text(lines)
    data, problems = load(tmp_path)
    assert problems == [] and data.replies == {"p": [("maxmin", "x", True), ("maxmin", "y", True)]}
