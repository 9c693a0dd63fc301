# SPDX-License-Identifier: Apache-2.0
import json
import os

import numpy as np
import pytest
import torch

from trl_maxmin.run_record import FIELDS, RUN_RECORD_NAME, SCHEMA_VERSION, STAGES, RunRecord


@pytest.fixture
def full_record():
    interval = {"mean": 0.79, "low": 0.76, "high": 0.82}
    return (
        RunRecord(seed=3, versions={"torch": "2.13.0"})
        .update(
            "reward",
            dataset={"name": "films", "num_rows": 3000, "num_annotators": 50, "annotators_lost": []},
            component_names=["component_0", "component_1"],
            num_components=2,
            em={"assignment": "soft", "annealing_steps": 100},
            mixing_weights=[0.8, 0.2],
            shares={"component_0": 0.8, "component_1": 0.2},
            converged=True,
            heldout_accuracy={"mixture": {"concise": 0.86, "positive": 0.85}, "single": {"positive": 0.58}},
            calibration={"utility": "zscore", "scale": [1.5, 0.7], "num_prompts": 540},
        )
        .update("policy", algorithm="ppo", welfare={"rule": "maxmin"}, curves={"worst_utility": [[1, -0.1], [2, 0.4]]})
        .update(
            "evaluation",
            groups=["concise", "positive"],
            minority="positive",
            win_rate={"maxmin": {"positive": interval}},
            samples=[{"prompt": "war film with dogs and monks :", "completions": {"maxmin": "superb film"}}],
        )
    )


class TestFile:
    def test_round_trip(self, full_record, tmp_path):
        path = full_record.save(tmp_path / "run")
        assert path == tmp_path / "run" / RUN_RECORD_NAME
        assert RunRecord.load(path) == full_record
        assert RunRecord.load(tmp_path / "run") == full_record
        facts = json.loads(path.read_text())
        assert facts["schema_version"] == SCHEMA_VERSION == 1
        assert facts["reward"]["mixing_weights"] == [0.8, 0.2]

    def test_a_file_name_is_kept(self, full_record, tmp_path):
        assert full_record.save(tmp_path / "other.json") == tmp_path / "other.json"
        assert RunRecord.load(tmp_path / "other.json") == full_record

    def test_empty_stages_and_unknown_seed_are_absent(self, tmp_path):
        assert RunRecord().to_dict() == {"schema_version": 1}
        path = RunRecord().update("policy", algorithm="ppo").save(tmp_path)
        assert json.loads(path.read_text()) == {"schema_version": 1, "policy": {"algorithm": "ppo"}}

    def test_update_file_makes_and_extends(self, tmp_path):
        RunRecord.update_file(tmp_path, "reward", num_components=2)
        record = RunRecord.update_file(tmp_path, "policy", algorithm="ppo")
        assert RunRecord.load(tmp_path) == record
        assert record.reward == {"num_components": 2}
        assert record.versions["torch"] == torch.__version__

    def test_a_failed_write_leaves_the_old_file(self, full_record, tmp_path, monkeypatch):
        path = full_record.save(tmp_path)
        before = path.read_bytes()

        def fail(*args):
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            full_record.update("policy", algorithm="grpo").save(tmp_path)
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == [RUN_RECORD_NAME]

    def test_an_invalid_record_is_not_written(self, tmp_path):
        record = RunRecord(seed=0, reward={"num_components": "two"})
        with pytest.raises(ValueError, match="run_record.reward.num_components must be a whole number, got 'two'"):
            record.save(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            RunRecord.load(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not a valid run record"),
            ("[]", "must be an object, got list"),
            ('{"seed": 1}', "schema_version must be a whole number from 1 to 1, got None"),
            ('{"schema_version": true}', "schema_version"),
            ('{"schema_version": 2}', "newer than this package reads.*upgrade"),
            ('{"schema_version": 1, "cost": 3}', r"unknown fields \['cost'\]"),
            ('{"schema_version": 1, "seed": null}', "run_record.seed must be a whole number"),
            (
                '{"schema_version": 1, "reward": {"em": {"beta": null}}}',
                "em.beta is None: an unknown fact must be absent",
            ),
            ('{"schema_version": 1, "reward": {"mixing_weights": [NaN]}}', "NaN is not a JSON number"),
        ],
    )
    def test_bad_files(self, tmp_path, text, message):
        (tmp_path / RUN_RECORD_NAME).write_text(text)
        with pytest.raises(ValueError, match=message):
            RunRecord.load(tmp_path)


class TestUpdate:
    def test_objects_merge_and_values_replace(self):
        record = RunRecord().update("evaluation", gold_utility={"single": {"concise": 0.9}}, num_prompts=10)
        record.update(
            "evaluation", gold_utility={"maxmin": {"concise": 0.7}, "single": {"positive": 0.1}}, num_prompts=20
        )
        assert record.evaluation == {
            "gold_utility": {"single": {"concise": 0.9, "positive": 0.1}, "maxmin": {"concise": 0.7}},
            "num_prompts": 20,
        }

    def test_replace_leaves_nothing_of_the_old_value(self, tmp_path):
        record = RunRecord().update("evaluation", gold_utility={"old": {"concise": 0.9}}, minority="a", num_prompts=10)
        record.replace("evaluation", gold_utility={"new": {"concise": 0.7}}, minority=None)
        assert record.evaluation == {"gold_utility": {"new": {"concise": 0.7}}, "num_prompts": 10}
        with pytest.raises(ValueError, match="evaluation.num_prompts must be a whole number"):
            record.replace("evaluation", num_prompts="ten", gold_utility={})
        assert record.evaluation["gold_utility"] == {"new": {"concise": 0.7}}
        record.save(tmp_path)
        again = RunRecord.update_file(tmp_path, "evaluation", replace=True, gold_utility={})
        assert again.evaluation == {"gold_utility": {}, "num_prompts": 10} == RunRecord.load(tmp_path).evaluation

    def test_tensors_and_arrays_become_lists(self):
        record = RunRecord().update(
            "reward",
            mixing_weights=torch.tensor([0.75, 0.25]),
            num_components=np.int64(2),
            converged=np.bool_(True),
            shares={"a": torch.tensor(0.5)},
            component_names=("a", "b"),
        )
        assert record.reward == {
            "mixing_weights": [0.75, 0.25],
            "num_components": 2,
            "converged": True,
            "shares": {"a": 0.5},
            "component_names": ["a", "b"],
        }
        assert type(record.reward["num_components"]) is int

    def test_unknown_facts_stay_absent(self):
        record = RunRecord().update(
            "reward",
            model=None,
            assignment_accuracy=float("nan"),
            em={"n_init": 4, "seed": None},
            shares={"a": float("nan")},
        )
        assert record.reward == {"em": {"n_init": 4}, "shares": {}}

    @pytest.mark.parametrize(
        ("stage", "facts", "message"),
        [
            ("training", {}, r"unknown stage 'training'.*\['reward', 'policy', 'evaluation'\]"),
            ("reward", {"accuracy": 0.9}, r"unknown fields \['accuracy'\]; known fields: .*heldout_accuracy"),
            ("reward", {"num_components": 2.5}, "reward.num_components must be a whole number, got 2.5"),
            ("reward", {"num_components": True}, "reward.num_components must be a whole number, got True"),
            ("reward", {"converged": 1}, "reward.converged must be true or false, got 1"),
            ("reward", {"mixing_weights": 0.5}, "reward.mixing_weights must be a list, got 0.5"),
            ("reward", {"mixing_weights": [0.5, "b"]}, r"reward.mixing_weights\[1\] must be a number, got 'b'"),
            ("reward", {"mixing_weights": [0.5, float("nan")]}, "reward.mixing_weights holds None or NaN"),
            ("reward", {"shares": [1]}, r"reward.shares must be an object, got \[1\]"),
            ("reward", {"shares": {"a": float("inf")}}, "reward.shares.a is inf"),
            ("reward", {"dataset": {"rows": 3}}, r"reward.dataset has the unknown fields \['rows'\]"),
            ("reward", {"em": {"model": object()}}, "reward.em.model must be text, a number.*not object"),
            ("policy", {"curves": {"kl": [[1, 2, 3]]}}, r"policy.curves.kl\[0\] must be a pair \[step, value\]"),
            (
                "evaluation",
                {"win_rate": {"maxmin": {"a": {"mean": 0.5}}}},
                r"win_rate.maxmin.a lacks \['low', 'high'\]",
            ),
            ("evaluation", {"samples": [{"prompt": "p"}]}, r"samples\[0\] lacks \['completions'\]"),
            (
                "evaluation",
                {"diagnostics": {"verdict": "No"}},
                r"diagnostics lacks \['num_groups', 'by_group', 'assump",
            ),
            (
                "evaluation",
                {"diagnostics": {"verdict": "", "num_groups": 1, "assumptions": [], "by_group": {"a": {"gap": "x"}}}},
                "by_group.a.gap must be a number or a number with interval, got 'x'",
            ),
        ],
    )
    def test_errors_leave_the_record_unchanged(self, full_record, stage, facts, message):
        before = full_record.to_dict()
        with pytest.raises(ValueError, match=message):
            full_record.update(stage, **facts)
        assert full_record.to_dict() == before

    def test_validate_checks_stages_filled_by_hand(self, full_record):
        assert full_record.validate() is full_record
        full_record.policy["algorithm"] = 3
        with pytest.raises(ValueError, match="policy.algorithm must be text, got 3"):
            full_record.validate()


def test_every_stage_has_fields_and_installed_versions_hold_what_is_installed():
    assert set(FIELDS) == set(STAGES)
    versions = RunRecord.installed_versions()
    assert versions["torch"] == torch.__version__
    assert None not in versions.values()
