# SPDX-License-Identifier: Apache-2.0
import pytest

from trl_maxmin.space.config import SpaceConfig, parse_policies


def a_run(folder):
    for name in ("maxmin", "mine", "reference", "single"):
        (folder / "policies" / name).mkdir(parents=True)
        (folder / "policies" / name / "config.json").write_text("{}")
    (folder / "mixture").mkdir()
    (folder / "mixture" / "config.json").write_text("{}")
    return folder


def test_a_run_folder_says_what_to_show(tmp_path):
    config = SpaceConfig(run=str(a_run(tmp_path))).check()
    assert list(config.policies) == ["reference", "single", "maxmin", "mine"]
    assert config.mixture == str(tmp_path / "mixture") and config.record == str(tmp_path)


def test_policies_of_ones_own_stand_beside_those_of_the_run(tmp_path):
    run = str(a_run(tmp_path))
    environ = {"TRL_MAXMIN_SPACE_RUN": run, "TRL_MAXMIN_SPACE_MORE_POLICIES": "ours=me/ours"}
    assert list(SpaceConfig.load(None, environ).policies) == ["reference", "single", "maxmin", "mine", "ours"]
    file = tmp_path / "space.yaml"
    file.write_text("run: .\nmore_policies: {copy: policies/maxmin}\n")
    assert SpaceConfig.load(file, {}).policies["copy"] == str(tmp_path / "policies" / "maxmin")
    with pytest.raises(ValueError, match=r"more_policies names \['maxmin'\] again"):
        SpaceConfig(run=run, more_policies={"maxmin": "me/maxmin"})


def test_an_adapter_is_a_policy(tmp_path):
    (tmp_path / "policies" / "lora").mkdir(parents=True)
    (tmp_path / "policies" / "lora" / "adapter_config.json").write_text("{}")
    assert list(SpaceConfig(run=str(tmp_path)).policies) == ["lora"]


def test_file_then_environment_then_arguments(tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "space.yaml"
    file.write_text("policies: {reference: a, maxmin: me/maxmin}\nqueue_size: 5\ntitle: one\n")
    environ = {
        "TRL_MAXMIN_SPACE_QUEUE_SIZE": "6",
        "TRL_MAXMIN_SPACE_TITLE": "two",
        "TRL_MAXMIN_SPACE_CONFIG": str(file),
    }
    config = SpaceConfig.load(None, environ, title="three", mixture=None)
    assert (config.queue_size, config.title, config.mixture) == (6, "three", None)
    # A folder beside the file is found from anywhere; what is none stays a Hub id.
    assert config.policies == {"reference": str(tmp_path / "a"), "maxmin": "me/maxmin"}
    environ = {"TRL_MAXMIN_SPACE_POLICIES": "reference=x, me/maxmin", "TRL_MAXMIN_SPACE_VOTES_PUBLIC": "yes"}
    config = SpaceConfig.load(None, environ)
    assert config.policies == {"reference": "x", "maxmin": "me/maxmin"} and config.votes_public


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour: red", r"unknown fields \['colour'\]; known fields: run"),
        ("queue_size: many", "queue_size must be of the kind int, got 'many'"),
        ("policies: 3", "policies must be of the kind"),
        ("prompts: hello", "prompts must be of the kind"),
        ("- a", "must hold `field: value` lines, got list"),
        ("a: [", "is not YAML"),
    ],
)
def test_files_that_are_no_settings(tmp_path, text, said):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        SpaceConfig.load(file, {})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"run": "/nowhere"}, "There is no folder '/nowhere'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"votes_minutes": 0}, "votes_minutes must be above 0"),
        ({"votes_dataset": "votes"}, "must be a full id such as me/votes, got 'votes'"),
    ],
)
def test_values_that_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        SpaceConfig(**values)


def test_nothing_to_show_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="has no policies/<name>/config.json. Make a run with `trl-maxmin demo`"):
        SpaceConfig(run=str(tmp_path)).check()
    with pytest.raises(ValueError, match="'TRL_MAXMIN_SPACE_QUEUE_SIZE='|QUEUE_SIZE='x' is no int"):
        SpaceConfig.load(None, {"TRL_MAXMIN_SPACE_QUEUE_SIZE": "x"})


@pytest.mark.parametrize("words", [["=a"], ["a="], ["x=1", "x=2"]])
def test_policies_need_names_of_their_own(words):
    with pytest.raises(ValueError, match="needs a name of its own and a source"):
        parse_policies(words)
