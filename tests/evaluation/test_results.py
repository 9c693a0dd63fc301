# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from scipy.stats import rankdata, t

from trl_maxmin.evaluation import GroupScores, results_to_markdown, summarise, win_rate
from trl_maxmin.run_record import RunRecord


GROUPS = {"component_0": "component", "component_1": "component", "concise": "gold", "style": "judge"}


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(60, 4))
    noise[:, 3] = np.nan
    utilities = {"reference": noise, "single": noise + [1, -1, 1, 0], "maxmin": noise + [0.5, 0.4, 0.3, 0]}
    found = GroupScores(
        GROUPS,
        utilities,
        [i // 2 for i in range(60)],
        "reference",
        weights={"component_0": 0.75, "component_1": 0.25},
        replies={"single": {"length": np.arange(60.0), "distinct_1": 0.25}},
    )
    found.outcomes["single"][:, 3] = generator.choice([0, 0.5, 1], size=60)
    return found


@pytest.fixture
def results(scores):
    return summarise(scores, num_resamples=200)


def test_means_by_hand(results):
    single = results["policies"]["single"]
    assert single["by_group"]["component_0"]["win_rate"]["mean"] == 1.0
    assert single["by_group"]["component_1"]["win_rate"]["mean"] == 0.0
    wins = single["aggregates"]["component"]["win_rate"]
    assert {name: number["mean"] for name, number in wins.items()} == pytest.approx(
        {"group_min": 0, "difference": 1, "mean": 0.5, "weighted_mean": 0.75}
    )
    assert single["worst_group"]["component"] == {"utility": "component_1", "win_rate": "component_1"}
    assert single["replies"]["distinct_1"] == 0.25
    # 30 prompts of two neighbouring replies each: Student's interval of the 30 means.
    half = t.ppf(0.975, 29) * np.arange(0.5, 60, 2).std(ddof=1) / 30**0.5
    length = single["replies"]["length"]
    assert length["mean"] == 29.5 and length["high"] - 29.5 == pytest.approx(half, rel=0.12)


def test_a_group_below_the_floor_is_measured_and_never_the_worst(scores, results):
    scores.below_floor = ["component_1"]
    found = summarise(scores, num_resamples=200)
    single, before = (result["policies"]["single"] for result in (found, results))
    assert single["by_group"] == before["by_group"]
    wins = single["aggregates"]["component"]["win_rate"]
    assert {name: number["mean"] for name, number in wins.items()} == pytest.approx(
        {"group_min": 1, "difference": 0, "ratio": 1, "mean": 0.5, "weighted_mean": 0.75}
    )
    assert single["worst_group"]["component"] == {"utility": "component_0", "win_rate": "component_0"}
    # Of what they give component_0: 0.5 and 1 more than the reference.
    pairs = {(entry["policy"], entry["baseline"]): entry["aggregates"]["component"] for entry in found["differences"]}
    least = pairs["maxmin", "single"]["utility"]
    assert least["group_min"]["mean"] == pytest.approx(-0.5) and least["mean"]["mean"] == pytest.approx(0.45)
    assert found["below_evidence_floor"] == ["component_1"] and "below_evidence_floor" not in results
    assert "not counted as such: component_1." in results_to_markdown(found)
    RunRecord().update("evaluation", results=found)


def test_where_no_group_has_evidence_all_count(scores, results):
    scores.below_floor = ["component_0", "component_1"]
    found = summarise(scores, num_resamples=200)
    assert found["policies"]["single"]["aggregates"] == results["policies"]["single"]["aggregates"]


def test_paired_differences_by_hand(results):
    pairs = {(entry["policy"], entry["baseline"]): entry for entry in results["differences"]}
    assert set(pairs) == {("single", "reference"), ("maxmin", "reference"), ("maxmin", "single")}
    against = pairs["maxmin", "single"]["by_group"]
    assert against["component_1"]["utility"]["mean"] == pytest.approx(1.4)
    assert against["component_0"]["utility"]["mean"] == pytest.approx(-0.5)
    assert "win_rate" not in pairs["single", "reference"]["by_group"]["concise"]


def test_a_win_rate_of_one_still_has_a_width(results, scores):
    rate = results["policies"]["single"]["by_group"]["component_0"]["win_rate"]
    expected = win_rate(np.ones(60), np.zeros(60), scores.prompts)
    assert (rate["low"], rate["high"]) == pytest.approx((expected.low, expected.high)) and rate["low"] < 0.95
    worst = results["policies"]["maxmin"]["aggregates"]["component"]["win_rate"]["group_min"]
    assert worst["mean"] == worst["high"] == 1.0 and worst["low"] == pytest.approx(expected.low)


def test_judged_criteria_have_wins_only(results):
    entry = results["policies"]["single"]["by_group"]["style"]
    assert set(entry) == {"win_rate"}
    assert "judge" in results["policies"]["single"]["aggregates"]
    assert results["policies"]["maxmin"]["by_group"]["style"] == {}


def test_ranks_are_scipys(scores, results):
    table = np.stack([scores.utilities[name][:, 0] for name in scores.utilities])
    table[0, 0] = table[1, 0]
    scores.utilities["reference"][0, 0] = scores.utilities["single"][0, 0]
    expected = rankdata(-table, axis=0).mean(axis=1)
    again = summarise(scores, num_resamples=100)
    found = [again["policies"][name]["by_group"]["component_0"]["rank"]["mean"] for name in scores.utilities]
    assert found == pytest.approx(expected.tolist())


def test_two_policies_have_no_ranks(scores):
    del scores.utilities["single"], scores.outcomes["single"]
    found = summarise(scores, num_resamples=100)
    assert "rank" not in found["policies"]["maxmin"]["by_group"]["concise"]


def test_json_and_the_run_record_hold_it(results):
    record = RunRecord().update("evaluation", results=json.loads(json.dumps(results)))
    assert record.validate().evaluation["results"]["reference"] == "reference"
    with pytest.raises(ValueError, match=r"evaluation.results.policies.x lacks \['by_group', 'aggregates'\]"):
        RunRecord().update("evaluation", results={"format_version": 1, "groups": {}, "policies": {"x": {}}})


def test_markdown_has_every_number_once(results):
    text = results_to_markdown(results)
    for title in ("Learned components: win rate", "Known groups: utility", "Judged criteria", "Paired differences"):
        assert title in text
    assert "| `single` | 1.000 [0.88" in text and "-0.000" not in text
    widths = {line.count("|") for line in text.split("## Replies")[1].split("##")[0].splitlines() if line}
    assert len(widths) == 1


def test_without_a_reference_there_are_utilities_only():
    found = summarise(GroupScores({"a": "gold"}, {"x": np.arange(6.0)[:, None]}, range(6)), num_resamples=100)
    assert set(found["policies"]["x"]["by_group"]["a"]) == {"utility"} and "reference" not in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {}}, "at least one group and one policy"),
        ({"groups": {"a": "guess"}}, r"Unknown kinds of groups \['guess'\]"),
        ({"reference": "nobody"}, r"'nobody' is none of the policies \['x'\]"),
        ({"utilities": {"x": np.zeros((3, 2))}}, r"scores of 'x' have shape \(3, 2\), but \(6, 1\)"),
    ],
)
def test_bad_scores_are_named(change, message):
    given = {"groups": {"a": "gold"}, "utilities": {"x": np.zeros((6, 1))}, "prompts": range(6)} | change
    with pytest.raises(ValueError, match=message):
        GroupScores(**given)


def test_an_unknown_comparison_is_named(scores):
    with pytest.raises(ValueError, match=r"unknown policies \['nobody'\]"):
        summarise(scores, compare=[("nobody", "single")])


@pytest.mark.parametrize(
    "rates",
    [
        {"a": 0.8, "b": 0.5, "c": 0.5},
        {"only": 0.6},
        {"a": 0.0, "b": 0.7},
        {"a": 1.0, "b": 1.0},
    ],
)
def test_fairlearn_agrees(rates):
    fairlearn = pytest.importorskip("fairlearn.metrics", reason="fairlearn is not installed")
    from trl_maxmin.evaluation import difference, group_min, ratio

    generator = np.random.default_rng(0)
    groups = generator.choice(list(rates), size=300)
    wins = (generator.random(300) < [rates[group] for group in groups]).astype(int)
    frame = fairlearn.MetricFrame(
        metrics=lambda y_true, y_pred: float(np.mean(y_pred)), y_true=wins, y_pred=wins, sensitive_features=groups
    )
    means = {group: float(wins[groups == group].mean()) for group in rates}
    assert group_min(means) == pytest.approx(frame.group_min())
    assert difference(means) == pytest.approx(frame.difference())
    assert ratio(means) == pytest.approx(frame.ratio())
