# SPDX-License-Identifier: Apache-2.0
"""The demo: in miniature for its form, whole (slow) for what it claims."""

import json
import os
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from trl_maxmin.cli.demo import Demo, DemoArguments
from trl_maxmin.cli.demo_stages import DemoSettings
from trl_maxmin.run_record import RunRecord
from trl_maxmin.space.config import SpaceConfig
from trl_maxmin.space.run_data import RunData


EXHAUSTIVE = bool(os.environ.get("TRL_MAXMIN_EXHAUSTIVE"))
SMALL = DemoSettings(
    pretrain_steps=20,
    num_annotators=10,
    pairs_to_learn=8,
    pairs_held_out=4,
    num_preference_prompts=40,
    replies_per_prompt=2,
    reward_steps=5,
    num_rollouts=2,
    replies_per_rollout=12,
    num_policy_prompts=12,
    num_eval_prompts=20,
)


class KeepsRewards(Demo):
    """The demo, whose reference and rewards may go into policies of another trainer."""

    def fit_rewards(self, reference):
        fitted = super().fit_rewards(reference)
        self.kept = deepcopy([reference, *(trainer.mixture for trainer in fitted)])
        return fitted


class TakesRewards(Demo):
    """The demo from there: its first two stages are those of another run."""

    def __init__(self, first, *arguments):
        super().__init__(*arguments)
        self.reference, *self.rewards = deepcopy(first.kept)
        self.world.pretrain = lambda **kwargs: self.reference
        self.report["em"], self.record.reward = first.report["em"], first.record.reward

    def fit_rewards(self, reference):
        return [SimpleNamespace(mixture=rewards) for rewards in self.rewards]


def run(folder, settings=SMALL, demo=Demo, **arguments):
    console = Console(file=open(folder.with_suffix(".log"), "w"), width=120)  # noqa: SIM115
    report = demo(DemoArguments(output_dir=str(folder), **arguments), console, settings).run()
    console.file.close()
    return report


def shares(value):
    """Numbers of a nested dict."""
    return [x for v in value.values() for x in shares(v)] if isinstance(value, dict) else [value]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run(folder, oracle=True)


def test_recorded_answers_tell_which_were_cut(small):
    folder, _ = small
    rows = [json.loads(line) for line in (folder / "evaluation" / "completions.jsonl").read_text().splitlines()]
    cut = [row for row in rows if not row["finished"]]
    # In this world an answer that was cut has conciseness 0, and one that ended has more.
    assert 0 < len(cut) < len(rows) and all((row["utility_concise"] == 0) != row["finished"] for row in rows)
    data, problems = RunData.load(SpaceConfig(record=str(folder)))
    shown = {(prompt, *reply) for prompt, replies in data.replies.items() for reply in replies}
    known = {(row["prompt"], row["policy"], row["completion"], row["finished"]) for row in rows}
    assert problems == [] and shown <= known and {finished for *_, finished in shown} == {True, False}


def test_report_has_the_promised_keys(small):
    folder, report = small
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["seed"] == 0 and report["groups"] == ["concise", "positive"] and report["minority"] == "positive"
    assert {"assignment_accuracy", "mixing_weights", "heldout_accuracy"} <= report["em"].keys()
    assert report["em"]["heldout_accuracy"].keys() == {"mixture", "single"}
    assert report["gold_utility"].keys() == {"reference", "single", "maxmin", "oracle"}
    assert report["win_rate"].keys() == {"single", "maxmin", "oracle"}
    for by_group in report["win_rate"].values():
        for rate in by_group.values():
            assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
    assert {"total", "pretrain", "reward", "single", "maxmin"} <= report["seconds"].keys()
    assert 0 < report["peak_rss_mb"] < 4000


def test_everything_it_names_can_be_loaded(small):
    folder, report = small
    mixture = AutoModel.from_pretrained(folder / "mixture")
    assert sorted(p.name for p in (folder / "components").iterdir()) == sorted(mixture.component_names)
    for name in mixture.component_names:
        assert AutoModelForSequenceClassification.from_pretrained(folder / "components" / name).config.num_labels == 1
    for name in report["gold_utility"]:
        AutoModelForCausalLM.from_pretrained(folder / "policies" / name)
        AutoTokenizer.from_pretrained(folder / "policies" / name)
    assert (folder / "comparison.png").stat().st_size > 10_000
    record = RunRecord.load(folder)
    assert record.to_dict()["evaluation"]["minority"] == "positive"


def test_it_prints_one_table_and_answers_side_by_side(small):
    text = small[0].with_suffix(".log").read_text()
    assert text.count("Gold utility and win rate by group") == 1
    for policy in ("reference", "single", "maxmin", "oracle"):
        assert f"│ {policy}" in text
    assert "step" in text and "5/5" in text


def test_same_seed_same_report(small, tmp_path):
    again = run(tmp_path / "again", oracle=True)
    for report in (again, dict(small[1])):
        del report["seconds"], report["peak_rss_mb"]
    assert again == {k: v for k, v in small[1].items() if k not in ("seconds", "peak_rss_mb")}


def test_another_seed_is_another_run(small, tmp_path):
    assert run(tmp_path / "other", seed=1)["gold_utility"] != small[1]["gold_utility"]


@pytest.fixture(scope="module")
def seed_0(tmp_path_factory):
    """The demo of seed 0 in full."""
    kept = []

    def demo(*arguments):
        kept.append(KeepsRewards(*arguments))
        return kept[0]

    run(tmp_path_factory.mktemp("seed_0") / "out", DemoSettings(), demo, oracle=EXHAUSTIVE)
    return kept[0]


@pytest.mark.slow
def test_the_claim(seed_0):
    """Groups found, single-reward RLHF fails the minority, MaxMin serves both."""
    report = seed_0.report
    em, rate = report["em"], {p: {g: r["mean"] for g, r in v.items()} for p, v in report["win_rate"].items()}
    assert em["assignment_accuracy"] >= 0.96
    assert em["heldout_accuracy"]["mixture"]["positive"] >= 0.80
    assert em["heldout_accuracy"]["single"]["positive"] <= 0.70
    assert rate["maxmin"]["positive"] - rate["single"]["positive"] >= 0.25
    assert rate["single"]["concise"] - rate["maxmin"]["concise"] <= 0.06
    assert sum(rate["maxmin"].values()) / 2 - sum(rate["single"].values()) / 2 >= 0.10
    if EXHAUSTIVE:
        lift = {policy: rate[policy]["positive"] - rate["single"]["positive"] for policy in ("maxmin", "oracle")}
        assert lift["maxmin"] >= 0.85 * lift["oracle"]
    assert report["peak_rss_mb"] <= 2048


@pytest.mark.slow
def test_without_groups_one_component_suffices(tmp_path):
    report = run(tmp_path / "out", DemoSettings(num_rollouts=20), minority_share=0.0)
    assert report["em"]["num_components"] == 1
    assert "one component suffices" in (tmp_path / "out.log").read_text()
    for group in report["groups"]:
        assert report["win_rate"]["maxmin"][group]["mean"] >= report["win_rate"]["single"][group]["mean"] - 0.03


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_the_other_trainers_in_miniature(tmp_path, trainer):
    report = run(tmp_path / "out", trainer=trainer)
    assert report["trainer"] == trainer and report["win_rate"].keys() == {"single", "maxmin"}
    assert f"4/5 MaxMin-{trainer.upper()}" in (tmp_path / "out.log").read_text()
    for name in ("reference", "single", "maxmin"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "policies" / name)
    assert RunRecord.load(tmp_path / "out" / "policies" / "maxmin").to_dict()["policy"]["algorithm"] == trainer.upper()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_the_claim_with_the_other_trainers(tmp_path, seed_0, trainer):
    report = run(tmp_path / "out", DemoSettings(), partial(TakesRewards, seed_0), trainer=trainer)
    rate = {p: {g: r["mean"] for g, r in v.items()} for p, v in report["win_rate"].items()}
    assert rate["maxmin"]["positive"] - rate["single"]["positive"] >= 0.20
    assert rate["single"]["concise"] - rate["maxmin"]["concise"] <= 0.06


def test_an_unknown_trainer():
    with pytest.raises(ValueError, match="trainer must be one of ppo, grpo, rloo, got 'dpo'"):
        DemoArguments(trainer="dpo")
