# SPDX-License-Identifier: Apache-2.0
"""The command: what it lists, exit statuses, and errors in one line."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from trl import ScriptArguments

from trl_maxmin import __version__
from trl_maxmin.cli import main
from trl_maxmin.cli.io import read_dataset


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("demo", "reward", "ppo"):
        assert f"\n  {command} " in text


def test_no_command_is_a_wrong_call(capsys):
    assert main([]) == 2
    assert "usage: trl-maxmin" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "status"), [(["--help"], 141), (["estimate", "--help"], 0)])
def test_a_reader_who_has_gone_is_no_error(argv, status):
    """`trl-maxmin --help | head -1`; argparse, which prints the other help, forgives a closed pipe itself."""
    reader, writer = os.pipe()
    os.close(reader)
    code = f"from trl_maxmin.cli.main import main; raise SystemExit(main({argv!r}))"
    ended = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (status, "")


def test_version(capsys):
    assert main(["--version"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"trl-maxmin {__version__} (torch {torch.__version__}, transformers ") and "trl 1." in said


def test_env_says_versions_and_devices_and_names_nobody(capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.of.somebody")
    assert main(["env"]) == 0
    said = capsys.readouterr().out
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in said.splitlines())
    assert facts["torch"] == torch.__version__ and facts["python"] == platform.python_version()
    assert facts["vllm"] == "not installed" and facts["devices"].startswith("CPU, 1 threads")
    assert "HF_ENDPOINT" in facts["variables that are set"]
    for private in ("somebody", str(Path.home()), str(Path.cwd()), platform.node(), sys.prefix):
        assert private not in said
    assert main(["env", "--all"]) == 2
    assert "env takes no options, got '--all'. Usage: trl-maxmin env" in capsys.readouterr().err


def test_unknown_command(capsys):
    assert main(["trian"]) == 2
    assert "unknown command 'trian'. Commands: demo, convert, diagnose, reward" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "reward", "ppo"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main([command, "--help"])
    assert exit_status.value.code == 0
    assert "--output_dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demo", "--minority_share", "1.5"], "minority_share must lie in [0, 1), got 1.5"),
        (["demo", "--welfare", "minmax"], "'minmax'"),
        (["reward", "--output_dir", "x"], "--model_name_or_path is required"),
        (["reward", "--output_dir", "x", "--model_name_or_path", "y"], "--dataset_name is required"),
        (["reward", "--output_dir", "x", "--model_name_or_path", "y", "--em", "hard", "--n_init", "-1"], "n_init"),
        (["ppo", "--output_dir", "x"], "--model_name_or_path and --reward_model required"),
        (["ppo", "--output_dir", "x", "--welfare", "minmax"], "'minmax'"),
    ],
)
def test_wrong_calls_are_one_line_and_status_two(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="minority_share"):
        main(["demo", "--minority_share", "2", "--debug"])


class TestReadDataset:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "annotator_id": "x"}]

    def test_a_file_of_each_type(self, tmp_path):
        data = Dataset.from_list(self.rows)
        data.to_json(tmp_path / "d.jsonl")
        data.to_csv(tmp_path / "d.csv")
        data.to_parquet(tmp_path / "d.parquet")
        (tmp_path / "d.json").write_text(json.dumps(self.rows))
        for name in ("d.jsonl", "d.json", "d.csv", "d.parquet"):
            train, test = read_dataset(ScriptArguments(dataset_name=str(tmp_path / name)))
            assert train.to_list() == self.rows and test is None

    def test_saved_data_with_and_without_splits(self, tmp_path):
        data = Dataset.from_list(self.rows)
        data.save_to_disk(tmp_path / "one")
        DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
        assert read_dataset(ScriptArguments(dataset_name=str(tmp_path / "one")))[1] is None
        assert read_dataset(ScriptArguments(dataset_name=str(tmp_path / "two")))[1].to_list() == self.rows

    def test_a_missing_split_is_named(self, tmp_path):
        data = Dataset.from_list(self.rows)
        DatasetDict({"training": data}).save_to_disk(tmp_path / "d")
        with pytest.raises(ValueError, match="no split 'train'; it has training"):
            read_dataset(ScriptArguments(dataset_name=str(tmp_path / "d")))

    def test_an_unknown_type_is_refused(self, tmp_path):
        (tmp_path / "d.pickle").write_text("")
        with pytest.raises(ValueError, match=r"type .pickle. Allowed: .json"):
            read_dataset(ScriptArguments(dataset_name=str(tmp_path / "d.pickle")))
