"""The benchmarks on the embedded world, in miniature; and that the docs say what their files say."""

import json
from pathlib import Path

import pytest

from benchmarks import ablations, imbalance, ways, world_report
from trl_maxmin.cli.demo_stages import DemoSettings


ROOT = Path(__file__).resolve().parents[2]
TINY = DemoSettings(
    pretrain_steps=3,
    num_annotators=10,
    pairs_to_learn=4,
    pairs_held_out=2,
    num_preference_prompts=40,
    replies_per_prompt=4,
    reward_steps=2,
    num_rollouts=2,
    replies_per_rollout=6,
    num_policy_prompts=8,
    num_eval_prompts=10,
)


LONG = [pytest.param("trunk", marks=pytest.mark.exhaustive)]


@pytest.mark.slow
@pytest.mark.parametrize("ablation", [*(name for name in ablations.ABLATIONS if name != "trunk"), *LONG])
def test_ablations_in_miniature(ablation, tmp_path):
    output = tmp_path / "out.json"
    options = [ablation, "--output", str(output), "--seeds", "0", "--work_dir", str(tmp_path)]
    ablations.main(options, TINY)
    rows = json.loads(output.read_text())["rows"]
    assert [row["variant"] for row in rows] == ablations.ABLATIONS[ablation][1]
    before = output.stat().st_mtime_ns
    ablations.main(options, TINY)
    assert output.stat().st_mtime_ns == before  # nothing is measured twice
    name = f"ablation_{ablation}"
    output.rename(tmp_path / f"{name}.json")
    assert world_report.blocks(tmp_path)[name].count("\n") == len(rows) + 1


def test_ablation_of_an_unknown_variant(tmp_path, capsys):
    with pytest.raises(SystemExit):
        ablations.main(["em", "--output", str(tmp_path / "x.json"), "--variants", "softer"])
    assert "softer" in capsys.readouterr().err


@pytest.mark.slow
def test_imbalance_in_miniature(tmp_path):
    output = tmp_path / "imbalance.json"
    options = ["--output", str(output), "--seeds", "0", "--ratios", "1:1", "--work_dir", str(tmp_path)]
    imbalance.main([*options, "--pretrain_steps", "3", "--prompts", "60"])
    (row,) = json.loads(output.read_text())["rows"]
    assert row["ratio"] == "1:1" and set(row["single"]) == {"concise", "positive"}
    assert world_report.blocks(tmp_path)["imbalance"].count("\n") == 2


@pytest.mark.slow
def test_ways_in_miniature(tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "DPO", ways.DPO | {"max_steps": 2, "per_device_train_batch_size": 4})
    output = tmp_path / "ways.json"
    options = ["--output", str(output), "--seeds", "0", "--work_dir", str(tmp_path)]
    ways.main([*options, "--ways", "reference", "dpo_all"], TINY)
    ways.main(options, TINY)
    rows = {row["way"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == list(ways.WAYS)[:1] + ["dpo_all", "single_ppo", "maxmin_ppo", "dpo_em", "dpo_known"]
    for row in rows.values():
        assert row["worst_margin"] == pytest.approx(min(row["win_rate"].values()) - 0.5)
    assert rows["dpo_em"]["reward_seconds"] > 0 == rows["dpo_known"]["reward_seconds"]


def test_ratios_are_exact():
    for ratio, (majority, minority) in imbalance.RATIOS.items():
        assert ratio == f"{majority / minority:.0f}:1" and majority % minority == 0


def test_interval_by_hand():
    # 0.3 and 0.5: standard error 0.1, t(0.975, 1) = 12.706.
    # Three values 0.3, 0.4, 0.5: standard error 0.1 / sqrt(3), t(0.975, 2) = 4.303 (a table).
    assert world_report.mean_interval([0.3, 0.4, 0.5]) == "0.400 [0.152, 0.648]"
    assert world_report.mean_interval([0.5, 0.3]) == "0.400 (0.300, 0.500)"
    assert world_report.mean_interval([0.3]) == "0.300"


def test_block_needs_its_comments():
    with pytest.raises(ValueError, match="x: begin"):
        world_report.replace_block("nothing", "x", "content")


def test_docs_say_what_the_files_say():
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    found = world_report.blocks()
    assert "imbalance" in found
    for name, content in found.items():
        assert text.split(f"<!-- {name}: begin -->\n")[1].split(f"\n<!-- {name}: end -->")[0] == content


def test_the_run_with_an_empty_component_that_the_docs_name():
    rows = json.loads((ROOT / "docs" / "results" / "ablation_components_empty_counted.json").read_text())["rows"]
    (row,) = [row for row in rows if row["seed"] == 3 and row["variant"] == "3"]
    assert len(rows) == 10 and min(row["component_sizes"]) == 0
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert f"{row['win_rate']['concise']:.3f} / {row['win_rate']['positive']:.3f}" in text
