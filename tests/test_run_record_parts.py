# SPDX-License-Identifier: Apache-2.0
"""What of a run record leaves the machine: fields of a list, without paths, people and tokens."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hub.artefacts import make_record
from trl_maxmin.run_record import FIELDS, PARTS, RunRecord


SECRET = "secretword"
NAMES = {"concise": 1.0, "positive": 2.0}


def planted():
    """A record that holds a word of its own in every place that takes free text or free names of settings."""
    record = make_record()
    path, token = f"/home/{SECRET}/runs/model", "hf_" + SECRET * 2
    dataset = {"name": f"{path}/prefs.jsonl", "annotator_column": SECRET, "annotators_lost": [SECRET]}
    record.update(
        "reward",
        model=path,
        base_model=path,
        dataset=dataset,
        em={SECRET: 1, "note": SECRET, "kind": path},
        training={"output_dir": path, "hub_token": token, SECRET: {"deep": [SECRET]}},
        selection={"mean": {"1": 0.5}, "by_annotator": {SECRET: 0.5}, "path": path},
        curves={f"posterior/{SECRET}": [[1, 0.5]]},
        calibration={"reference_policy": path},
    )
    record.update(
        "policy",
        base_model=f"C:\\Users\\{SECRET}\\model",
        reward_model=f"~{SECRET}/a,{path}/b",
        dataset=dataset,
        welfare={"rule": "maxmin", "owner": SECRET},
        training={"run_name": SECRET, "logging_dir": path},
    )
    record.update(
        "evaluation",
        dataset=dataset,
        metrics={SECRET: SECRET},
        results={
            "format_version": 1,
            "groups": {"concise": "gold"},
            "interval": {"level": 0.95, "host": SECRET},
            "judges": {"kind": {"wins": 3, "url": f"http://{SECRET}.internal/v1"}},
            "policies": {"maxmin": {"by_group": {}, "aggregates": {}, "replies": {"owner": SECRET, "length": 3.0}}},
        },
        diagnostics={
            "dataset": dataset,
            "verdict": f"Yes, by {path}.",
            "num_groups": 1,
            "by_group": {"a": {"share": 1.0}},
            "features": f"the last state of '{path}'",
            "assumptions": [f"file://{SECRET}/x is read", f"{token} is a token"],
        },
    )
    record.versions = {"torch": "2.13.0", SECRET: "1", "trl": path}
    return record


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("again", [False, True])
def test_nothing_that_was_planted_is_in_a_part(kind, again):
    part = planted().part(kind, "concise")
    part = part.part(kind, "concise") if again else part
    text = json.dumps(part.to_dict())
    assert SECRET not in text and "/home" not in text and "prefs.jsonl" in text or kind == "x"
    assert part.validate() is part


def test_what_is_public_stays():
    part = planted().part("run")
    assert part.reward["base_model"] == "./model" and part.reward["dataset"] == {
        "name": "./prefs.jsonl", "num_rows": 300, "num_annotators": 50
    }  # fmt: skip
    assert part.reward["em"] == {"kind": "./model", "n_init": 4} and part.reward["training"] == {}
    assert part.reward["selection"]["mean"] == {"1": 0.5, "2": -0.24}
    assert part.policy["base_model"] == "./model" and part.policy["reward_model"] == "./a,./b"
    assert part.evaluation["results"]["judges"] == {"kind": {"wins": 3}}
    assert part.evaluation["results"]["policies"]["maxmin"]["replies"] == {"length": 3.0}
    assert part.evaluation["diagnostics"]["verdict"] == "Yes, by ./model."
    assert part.versions == {"torch": "2.13.0"}


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("gold utilities", "gold utilities"),
        ("/data/models/tiny", "./tiny"),
        ("out/run/mixture", "./mixture"),
        ("../tiny", "./tiny"),
        ("./tiny", "./tiny"),
        ("s3://bucket.internal/tiny", "./tiny"),
        ("\\\\host\\share\\tiny", "./tiny"),
        ("D:/x/tiny", "./tiny"),
        ("/home/ann", None),
        ("/home/ann/", None),
        ("C:\\Users\\ann", None),
        ("~", None),
        ("~ann", None),
        ("/root", None),
        ("/", None),
        ("here/now", "./now"),
        ("here/now,org/model", "./now,org/model"),
    ],
)
def test_places(name, public, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("here/now")
    part = RunRecord().update("policy", reward_model=name).part("policy")
    assert part.policy.get("reward_model") == public


def test_a_part_does_not_depend_on_the_machine(tmp_path, monkeypatch):
    """What was an id when it was published is one where a folder has the same name."""
    part = RunRecord().update("policy", base_model="org/model").part("policy")
    monkeypatch.chdir(tmp_path)
    os.makedirs("org/model")
    assert part.part("policy").policy["base_model"] == "org/model"


class TestKinds:
    def test_stages(self):
        record = make_record().update(
            "evaluation",
            diagnostics={"verdict": "v", "num_groups": 1, "by_group": {}, "assumptions": []},
        )
        stages = {
            kind: {stage: sorted(getattr(record.part(kind, "concise"), stage)) for stage in FIELDS} for kind in PARTS
        }
        assert stages["mixture"]["evaluation"] == ["diagnostics"] and not stages["mixture"]["policy"]
        assert not stages["component"]["evaluation"] and not stages["component"]["policy"]
        assert stages["policy"]["policy"] and "diagnostics" not in stages["policy"]["evaluation"]
        assert "win_rate" in stages["policy"]["evaluation"] and not stages["policy"]["reward"]
        assert not stages["dataset"]["policy"] and not stages["dataset"]["reward"] and stages["dataset"]["evaluation"]
        assert all(stages["run"].values())

    def test_a_component_s_part_is_its_own(self):
        part = make_record().part("component", "positive").reward
        assert part["component_pairs"] == {"positive": 60} and part["component_annotators"] == {"positive": 10}
        assert part["component_names"] == ["concise", "positive"] and part["num_components"] == 2
        assert "heldout_accuracy" not in part and list(part["curves"]) == ["em/lower_bound"]

    def test_unknown(self):
        with pytest.raises(ValueError, match="unknown part 'all' of the run record; parts: .*'component', 'mixture'"):
            RunRecord().part("all")

    def test_the_record_is_not_changed(self):
        record = make_record()
        before = json.dumps(record.to_dict())
        record.part("policy").policy["name"] = "other"
        assert json.dumps(record.to_dict()) == before


@pytest.mark.parametrize(
    "links", [{"mixture": "javascript:x"}, {"components": {"a": "a/b/c"}}, {"other": "me/x"}, {"dataset": "../x"}]
)
def test_links_are_ids(links):
    with pytest.raises(ValueError, match="run_record.links"):
        RunRecord.from_dict({"schema_version": 1, "links": links})


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(PARTS), st.text(max_size=40), st.text(max_size=40))
def test_a_part_of_a_part_is_the_same(kind, name, text):
    record = make_record().update("policy", base_model=name, reward_model=text, welfare={"rule": text})
    record.update("reward", base_model=text, em={"kind": text}, dataset={"name": name, "config": text})
    once = record.part(kind, "concise")
    assert once.part(kind, "concise") == once == RunRecord.from_dict(once.to_dict())
