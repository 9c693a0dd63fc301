# SPDX-License-Identifier: Apache-2.0
"""What all commands have in common: help, exit statuses, errors, quiet mode, launching, completion."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trl_maxmin.cli import main
from trl_maxmin.cli.completion import options_of, script
from trl_maxmin.cli.launch import launch, resolve_config, split_launch_options
from trl_maxmin.cli.main import COMMANDS, commands
from trl_maxmin.cli.parser import UsageError


@pytest.fixture(params=commands())
def help_of(request, capsys):
    with pytest.raises(SystemExit) as status:
        main([request.param, "--help"])
    assert status.value.code == 0
    return request.param, capsys.readouterr().out


def test_every_help_is_narrow_and_starts_with_what_it_does(help_of):
    command, text = help_of
    assert max(map(len, text.splitlines())) < 100
    assert text.startswith(f"usage: trl-maxmin {command}")
    assert len(text.splitlines()[2]) > 20


def test_help_is_in_groups_with_the_training_arguments_last(capsys):
    with pytest.raises(SystemExit):
        main(["ppo", "--help"])
    text = capsys.readouterr().out
    places = [
        text.index(title) for title in ("this command:", "data (trl", "algorithm:", "model (trl", "training (tr")
    ]
    assert places == sorted(places) and text.index("--reward_model") < text.index("--kl_coef") < text.index("--seed")
    assert "--fsdp" not in text and "more options of transformers.TrainingArguments" in text
    with pytest.raises(SystemExit):
        main(["ppo", "--help_all"])
    everything = capsys.readouterr().out
    assert "--fsdp" in everything and max(map(len, everything.splitlines())) < 100


def test_usage_lists_what_is_installed(capsys):
    assert main(["help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) < 100 and "exit status: 0 = done" in text
    assert set(commands()) <= set(COMMANDS)
    for command in commands():
        assert f"\n  {command} " in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evalute"], "Did you mean 'evaluate'?"),
        (["diagnose", "--dataset_nam", "x"], "unknown option --dataset_nam. Did you mean --dataset_name?"),
        (["diagnose", "--seed", "one"], "invalid int value: 'one'"),
        (["grpo", "--nonsense"], "unknown option --nonsense"),
        (["space", "--nonsense"], "unrecognized arguments: --nonsense. `trl-maxmin space --help`"),
        (["push"], "Usage: trl-maxmin push OUTPUT_DIR --repo_id"),
        (["pull", "me/x"], "Usage: trl-maxmin pull namespace/name --output_dir"),
        (["diagnose", "--config"], "--config needs the path of a YAML file"),
        (["completion"], "name one shell: bash, zsh, fish"),
        (["completion", "tcsh"], "completion is for bash, zsh, fish, got 'tcsh'"),
    ],
)
def test_a_wrong_call_is_status_two_and_one_line(argv, message, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["diagnose", "evaluate", "reward", "grpo", "push"])
@pytest.mark.parametrize(
    ("recipe", "status", "message"),
    [
        (None, 1, "--config r.yaml: there is no such file."),
        (
            "a: [1,\nb: }",
            1,
            "--config r.yaml is not YAML: expected the node content, but found '}' (line 2, column 4).",
        ),
        ("- 1\n", 1, "--config r.yaml must hold `option: value` lines, got a list."),
        ("sedd: 3\n", 2, "unknown option --sedd."),
    ],
)
def test_a_bad_recipe_is_one_line(command, recipe, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if recipe is not None:
        (tmp_path / "r.yaml").write_text(recipe)
    assert main([command, "--config", "r.yaml"]) == status
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("value", ["hello", "2.5", "[1, 2]", "true"])
def test_a_recipes_values_have_the_options_type(value, capsys, tmp_path):
    (tmp_path / "r.yaml").write_text(f"seed: {value}\n")
    assert main(["diagnose", "--config", str(tmp_path / "r.yaml")]) == 2
    assert "seed" in (error := capsys.readouterr().err) and len(error.strip().splitlines()) == 1
    (tmp_path / "r.yaml").write_text("beta: 1\nheldout_fraction: 1e-1\nmax_groups: 2\n")
    assert main(["diagnose", "--config", str(tmp_path / "r.yaml")]) == 2
    assert "--dataset_name is required" in capsys.readouterr().err


def test_an_unexpected_error_is_named_and_debug_shows_it(monkeypatch, capsys):
    def run(argv):
        raise KeyError("shape")

    monkeypatch.setattr("trl_maxmin.cli.diagnose.run", run)
    assert main(["diagnose"]) == 1
    assert capsys.readouterr().err == "trl-maxmin diagnose: KeyError: 'shape' (--debug shows where)\n"
    with pytest.raises(KeyError):
        main(["diagnose", "--debug"])


def test_interrupted_is_130(monkeypatch, capsys):
    def run(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_maxmin.cli.diagnose.run", run)
    assert main(["diagnose"]) == 130 and "interrupted" in capsys.readouterr().err


def test_quiet_prints_nothing_but_errors_and_leaves_no_trace(monkeypatch, capsys):
    seen = {}

    def run(argv):
        seen.update(os.environ)
        print("noise")
        raise ValueError("what went wrong")

    monkeypatch.setattr("trl_maxmin.cli.diagnose.run", run)
    assert main(["diagnose", "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "trl-maxmin diagnose: what went wrong\n"
    assert seen["TRL_MAXMIN_QUIET"] == "1" and "TRL_MAXMIN_QUIET" not in os.environ


WHERE = """
from accelerate import PartialState

def where(completions=(), **kwargs):
    state = PartialState()
    text = f"{state.process_index} of {state.num_processes} {state.distributed_type.value}"
    open(f"rank-{state.process_index}.txt", "w").write(text)
    return [-float(len(text)) for text in completions]

if __name__ == "__main__":
    from accelerate import Accelerator

    Accelerator()
    where()
"""


def ranks(folder):
    files = sorted(folder.glob("rank-*.txt"))
    found = [file.read_text() for file in files]
    for file in files:
        file.unlink()
    return found


class TestLaunch:
    def test_options_from_the_command_line_and_the_recipe(self, tmp_path):
        (tmp_path / "r.yaml").write_text("num_processes: 4\naccelerate_config: zero2\nmax_steps: 3\n")
        recipe = ["--config", str(tmp_path / "r.yaml")]
        options, rest = split_launch_options([*recipe, "--num_processes=2", "--seed", "1"])
        assert options == {"num_processes": "2", "accelerate_config": "zero2"} and rest == [*recipe, "--seed", "1"]

    def test_a_name_of_trls_or_a_file(self, tmp_path):
        assert resolve_config("zero3").name == "zero3.yaml" and resolve_config("zero3").is_file()
        (tmp_path / "mine.yaml").write_text("")
        assert resolve_config(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"

    def test_what_is_started(self, monkeypatch):
        started = []
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        monkeypatch.setattr(
            subprocess, "run", lambda words, check, env: started.append(words) or subprocess.CompletedProcess(words, 3)
        )
        argv = ["ppo", "--accelerate_config", "fsdp2", "--num_processes", "2", "--seed", "1", "--quiet"]
        assert main(argv) == 3
        assert started[0][1:4] == ["-m", "accelerate.commands.launch", "--config_file"]
        assert started[0][5:] == ["--num_processes", "2", "-m", "trl_maxmin.cli", "ppo", "--seed", "1", "--quiet"]

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["ppo", "--accelerate_config", "zero9"], "none of fsdp1"),
            (["ppo", "--accelerate_config"], "--accelerate_config needs a value"),
            (["demo", "--accelerate_config", "zero2"], "`demo` runs on one process"),
        ],
    )
    def test_mistakes(self, argv, message, capsys, monkeypatch):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        assert main(argv) == 2 and message in capsys.readouterr().err

    @pytest.mark.slow
    @pytest.mark.parametrize(("words", "status"), [("--num_components 0", 2), ("--dataset_name no.jsonl", 1)])
    def test_the_exit_status_of_processes(self, words, status, capfd, monkeypatch, tmp_path):
        """Launchers exit with 1 behind tracebacks of their own; the command's status and line come through."""
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        monkeypatch.setenv("PYTHONPATH", os.getcwd())
        monkeypatch.chdir(tmp_path)
        argv = "reward --num_processes 2 --use_cpu true --model_name_or_path m --dataset_name d.jsonl --output_dir o"
        assert main([*argv.split(), *words.split()]) == status
        last = capfd.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("trl-maxmin reward: ") and words.split()[-1] in last

    @pytest.mark.slow
    def test_how_accelerate_starts_processes_on_cpus(self, tmp_path, monkeypatch):
        """`docs/commands.md`: accelerate's own type for CPUs starts one process, whatever it is told."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "where.py").write_text(WHERE)
        (tmp_path / "cpu.yaml").write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
        launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        for options, cpu, found in (
            (["--config_file", "cpu.yaml"], {}, ["0 of 1 NO"]),
            (["--cpu", "--num_processes", "2"], {}, ["0 of 1 NO"]),
            (
                ["--multi_gpu", "--num_processes", "2"],
                {"ACCELERATE_USE_CPU": "true"},
                ["0 of 2 MULTI_CPU", "1 of 2 MULTI_CPU"],
            ),
        ):
            subprocess.run([*launcher, *options, "where.py"], env=os.environ | cpu, check=True, capture_output=True)
            assert ranks(tmp_path) == found

    def test_cpus_are_asked_for_so_that_accelerate_starts_all(self, tmp_path, monkeypatch):
        started = []
        run = lambda words, check, env: started.append((words, env)) or subprocess.CompletedProcess(words, -2)  # noqa: E731
        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        (tmp_path / "cpu.yaml").write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
        for options, argv in (
            ({"accelerate_config": str(tmp_path / "cpu.yaml")}, []),
            ({"num_processes": "2"}, ["--use_cpu", "true"]),
        ):
            assert launch("ppo", options, argv) == 130, "a launcher that was interrupted"
            words, environment = started.pop()
            assert "--multi_gpu" in words and environment["ACCELERATE_USE_CPU"] == "true"
        launch("ppo", {"accelerate_config": "zero2"}, ["--use_cpu", "true"])
        assert "--multi_gpu" not in started[0][0] and "ACCELERATE_USE_CPU" not in started[0][1]

    @pytest.mark.slow
    def test_two_processes_agree(self, tmp_path, monkeypatch):
        from datasets import Dataset

        from tests.cli.test_diagnose_and_evaluate import save_policy
        from trl_maxmin.data.world import FilmReviewWorld

        world = FilmReviewWorld(seed=0)
        for seed, name in enumerate(("base", "one")):
            save_policy(world, tmp_path / name, seed)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), *os.environ.get("PYTHONPATH", "").split(":")]))
        Dataset.from_dict({"prompt": world.sample_prompts(10)}).to_json(tmp_path / "prompts.jsonl")
        (tmp_path / "two.yaml").write_text(
            "distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\nnum_machines: 1\nmachine_rank: 0\n"
        )
        (tmp_path / "where.py").write_text(WHERE)
        argv = ["--policies", "one", "--reference", "base", "--dataset_name", "prompts.jsonl", "--batch_size", "3"]
        argv += ["--gold", "world:positive", "where.py:where", "--max_new_tokens", "8", "--num_resamples", "200"]
        assert main(["evaluate", *argv, "--output_dir", "alone"]) == 0
        assert ranks(tmp_path) == ["0 of 1 NO"]
        assert launch("evaluate", {"accelerate_config": "two.yaml"}, [*argv, "--output_dir", "both"]) == 0
        assert ranks(tmp_path) == ["0 of 2 MULTI_CPU", "1 of 2 MULTI_CPU"]
        assert (tmp_path / "both/evaluation.json").read_text() == (tmp_path / "alone/evaluation.json").read_text()


class TestCompletion:
    def test_options_are_those_of_the_help(self):
        assert {"--dataset_name", "--max_groups", "--config", "--debug"} <= set(options_of("diagnose"))

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_scripts_are_valid_and_complete(self, shell):
        text = script(shell, {"diagnose": ["--beta", "--seed"]})
        assert "diagnose" in text and "beta" in text
        if shutil.which(shell):
            assert subprocess.run([shell, "-n"], input=text, text=True, capture_output=True).returncode == 0

    def test_bash_completes(self):
        if not shutil.which("bash"):
            pytest.skip("no bash")
        lines = [
            script("bash", {"diagnose": ["--beta", "--seed"], "demo": ["--oracle"]}),
            'COMP_WORDS=(trl-maxmin d); COMP_CWORD=1; _trl_maxmin; echo "${COMPREPLY[*]}"',
            'COMP_WORDS=(trl-maxmin diagnose --b); COMP_CWORD=2; _trl_maxmin; echo "${COMPREPLY[*]}"',
        ]
        done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
        assert done.stdout.split("\n")[:2] == ["diagnose demo", "--beta"]

    def test_an_unknown_shell(self):
        with pytest.raises(UsageError, match="completion is for"):
            script("tcsh", {})


@pytest.mark.parametrize("name", ["diagnose", "evaluate"])
def test_recipes_name_options_that_exist(name, capsys, tmp_path, monkeypatch):
    recipe = Path(__file__).parents[2] / "examples" / "recipes" / "film_reviews" / f"{name}.yaml"
    monkeypatch.chdir(tmp_path)
    # Everything is read and understood; only the file named here is missing.
    assert main([name, "--config", str(recipe), "--dataset_name", "missing.jsonl"]) == 1
    assert "no file missing.jsonl" in capsys.readouterr().err
