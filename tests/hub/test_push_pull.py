# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin push` and `trl-maxmin pull` against our own Hub."""

import pytest

from tests.hub.artefacts import TOKENIZER, make_adapter, make_app, make_output
from trl_maxmin.cli import main
from trl_maxmin.cli.push import PushArguments, bytes_in_words
from trl_maxmin.run_record import RunRecord


def test_dry_run_sends_nothing(hub, tmp_path, capsys):
    folder = make_output(tmp_path / "out")
    assert main(["push", str(folder), "--repo_id", "me/film", "--dataset", "--private", "--dry_run"]) == 0
    out = capsys.readouterr().out
    for word in (
        "me/film-reward-concise",
        "private",
        "model.safetensors",
        f"{len(TOKENIZER)} B",
        "stays here: assignments.json",
    ):
        assert word in out
    assert "Nothing was sent" in out and "collection me/film (private), last" in out and hub.log == []


def test_push_twice_and_pull(hub, tmp_path, capsys):
    folder = make_output(tmp_path / "out")
    RunRecord.update_file(folder, "reward", base_model="org/gone")
    command = ["push", str(folder), "--repo_id", "me/film", "--dataset", "--private"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count("  created  ") == 7 and "Done." in out and "without org/gone" in out
    assert {repo.private for repo in hub.store.repos.values()} == {True}
    assert [c["private"] for c in hub.store.collections.values()] == [True]
    hub.log.clear()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count("unchanged  ") == 7 and "Nothing has changed." in out
    assert {method for method, path, _ in hub.log if "/items" not in path} == {"GET"}
    assert main(["pull", "me/film", "--output_dir", str(tmp_path / "in")]) == 0
    assert "me/film-mixture -> " in capsys.readouterr().out
    assert (tmp_path / "in" / "mixture" / "model.safetensors").exists()


def test_nothing_has_changed_is_true(hub, tmp_path, capsys):
    """A collection that was filled is a change, whatever the repositories say."""
    command = ["push", str(make_output(tmp_path / "out")), "--repo_id", "me/film"]
    assert main([*command, "--collection", "false"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "created  collection" in out and "Nothing has changed." not in out and out.endswith("Done.\n")
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("Nothing has changed.\n")


def test_a_failure_names_the_command_that_continues(hub, tmp_path, capsys):
    folder = make_output(tmp_path / "a folder")
    hub.inject(503, path="me/film-mixture/commit")
    assert main(["push", str(folder), "--repo_id", "me/film"]) == 1
    err = capsys.readouterr().err
    assert "503" in err and f"To continue: trl-maxmin push '{folder}' --repo_id me/film" in err
    assert "Complete on the Hub: me/film-policy-reference, me/film-reward-concise, me/film-reward-positive." in err
    hub.heal()
    hub.inject(403, path="/api/collections")
    assert main(["push", str(folder), "--repo_id", "me/film"]) == 1
    err = capsys.readouterr().err
    assert "Filling the collection 'film': 403" in err and "Not yet, or as before: collection me/film." in err
    hub.heal()
    assert main(["push", str(folder), "--repo_id", "me/film"]) == 0


def test_a_free_account_and_a_space(hub, tmp_path, capsys):
    folder, app = make_output(tmp_path / "out"), make_app(tmp_path / "app")
    command = ["push", str(folder), "--repo_id", "me/film", "--space", str(app)]
    assert main(command) == 1
    assert "free accounts cannot create a Gradio" in capsys.readouterr().err
    assert main([*command, "--space_hardware", "zero-a10g"]) == 0
    assert {item["type"] for c in hub.store.collections.values() for item in c["items"]} == {"model", "space"}


def test_exactly_one_model(hub, tmp_path):
    folder = make_adapter(tmp_path / "policy", base="org/base")
    assert main(["push", str(folder), "--repo_id", "me/exactly", "--exact", "true"]) == 0
    assert list(hub.store.repos) == [("model", "me/exactly")] and not hub.store.collections


def test_pull_continues(hub, tmp_path, capsys):
    make_output(tmp_path / "out")
    main(["push", str(tmp_path / "out"), "--repo_id", "me/film"])
    hub.inject("drop", path="resolve", lasting=True)
    assert main(["pull", "me/film", "--output_dir", str(tmp_path / "in")]) == 1
    assert "To continue: trl-maxmin pull me/film --output_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["push"], 2, "Usage: trl-maxmin push OUTPUT_DIR --repo_id"),
        (["push", "somewhere"], 2, "Usage: trl-maxmin push OUTPUT_DIR --repo_id"),
        (["push", "nowhere", "--repo_id", "me/x"], 1, "There is no folder nowhere"),
        (["pull", "me/x"], 2, "Usage: trl-maxmin pull"),
        (["push", "x", "--repo_id", "me/x", "--space_sdk", "cobol"], 2, "space_sdk must be gradio, docker or static"),
    ],
)
def test_called_wrongly(argv, code, message, capsys):
    assert main(argv) == code
    assert message in capsys.readouterr().err


def test_words():
    assert bytes_in_words(0) == "0 B" and bytes_in_words(2_500) == "2.5 kB" and bytes_in_words(3e12) == "3000.0 GB"
    assert PushArguments().collection is True
