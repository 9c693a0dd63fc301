# SPDX-License-Identifier: Apache-2.0
"""One output folder holds one run: what is cleared, what stays; and a run that was cut off goes on as if nothing had
happened."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from tests.cli.test_assign import rows
from tests.conftest import build_word_tokenizer
from trl_maxmin.cli import main
from trl_maxmin.cli.faults import UsageError, told
from trl_maxmin.cli.output_folder import clear, prepare_output_folder, require_writable, run_in
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.run_record import RunRecord


ROOT = Path(__file__).parents[2]
OURS = (
    "config.json model.safetensors model-00001-of-00002.safetensors value_head.safetensors README.md "
    "run_record.json assignments.json components/component_2/config.json components/component_2/model.safetensors "
    "value_model/config.json checkpoint-20/trainer_state.json checkpoint-20/optimizer.pt _incomplete/checkpoint-30/x "
    "completions/completions_00005.parquet policies/oracle/model.safetensors evaluation.json"
).split()
THEIRS = (
    "notes.txt data.jsonl my-model.safetensors components/notes.txt checkpoint-best/config.txt checkpoints/x.json "
    "checkpoint-7/mine.txt model-1.safetensors runs/events"
).split()


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_clearing_takes_what_is_ours_by_name(tmp_path):
    fill(tmp_path, [*OURS, *THEIRS])
    assert run_in(tmp_path)
    clear(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(THEIRS) and not (tmp_path / "policies").exists()


def test_a_link_is_not_followed(tmp_path):
    fill(tmp_path, ["elsewhere/config.json", "run/config.json"])
    os.symlink(tmp_path / "elsewhere", tmp_path / "run" / "components")
    clear(tmp_path / "run")
    assert (tmp_path / "elsewhere" / "config.json").is_file() and not (tmp_path / "run" / "config.json").exists()


def test_what_is_no_run(tmp_path):
    """A diagnosis may come before the run that it is about; files of the user's own are none."""
    RunRecord().update("evaluation", num_prompts=5).save(tmp_path)
    fill(tmp_path, ["diagnosis.json", "notes.txt"])
    assert run_in(tmp_path) == [] and prepare_output_folder("reward", tmp_path) is None
    RunRecord().update("reward", num_components=2).save(tmp_path)
    with pytest.raises(UsageError, match=r"holds another run \(run_record.json\)"):
        prepare_output_folder("reward", tmp_path)


def test_whose_checkpoint_it_is(tmp_path):
    for name, mark in (("ppo", "ppo_state.json"), ("reward", "em_state.safetensors"), ("grpo", "welfare_state.json")):
        fill(tmp_path / name, ["checkpoint-1/trainer_state.json"])
        (tmp_path / name / "checkpoint-1" / mark).write_bytes(b"")
        if mark.endswith("safetensors"):
            save_file({"scores": torch.zeros(1)}, tmp_path / name / "checkpoint-1" / mark)
    RunRecord().update("policy", name="p", algorithm="MaxMin-GRPO").save(tmp_path / "grpo")
    for command in ("ppo", "reward", "grpo", "rloo"):
        for name in ("ppo", "reward", "grpo"):
            folder = tmp_path / name
            if command == name:
                assert prepare_output_folder(command, folder, resume="true") == str(folder / "checkpoint-1")
            else:
                with pytest.raises(ValueError, match=f"written by `trl-maxmin {name}`|written by another trainer"):
                    prepare_output_folder(command, folder, resume="true")
    with pytest.raises(UsageError, match="holds another run"):  # from elsewhere, into a folder with a run
        prepare_output_folder("ppo", tmp_path / "grpo", resume=str(tmp_path / "ppo" / "checkpoint-1"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(number, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match=f"--output_dir {tmp_path / 'x'} cannot be written: .*Give another folder"):
        require_writable(tmp_path / "x")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_says_where_and_what_is_safe(error):
    text = told("ppo", ["--max_steps", "3", "--output_dir=policy"], error)
    assert text.startswith("policy was not written: ") and len(text.splitlines()) == 1
    assert "complete are safe" in text and "--resume_from_checkpoint true" in text
    named = told("diagnose", [], OSError(errno.ENOSPC, "No space left on device", "d/diagnosis.json"))
    assert named.startswith("d/diagnosis.json: No space left on device. Make room")


# ------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=48, eos_token_id=2, bos_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    MixtureRewardModel.from_base(root / "base", 2).save_pretrained(root / "mixture")
    (root / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(8, "train")))
    (root / "prompts.jsonl").write_text('{"prompt": "review :"}\n{"prompt": "film"}\n' * 16)
    return root


TINY = "--use_cpu true --report_to none --per_device_train_batch_size 8 --save_steps 1 --learning_rate 1e-3".split()
POLICY = "--dataset_name prompts.jsonl --model_name_or_path base --reward_model mixture".split()
COMMANDS = {
    "reward": "--dataset_name prefs.jsonl --annotator_column worker --model_name_or_path base".split(),
    "ppo": [*POLICY, *"--response_length 6 --num_reference_completions 4".split()],
    "grpo": [*POLICY, *"--max_completion_length 6 --num_generations 4 --num_reference_completions 4".split()],
    "rloo": [*POLICY, *"--max_completion_length 6 --num_generations 4 --num_reference_completions 4".split()],
}


def call(command, folder, *more, code="from trl_maxmin.cli import main; raise SystemExit(main())"):
    words = [sys.executable, "-c", code, command, *COMMANDS[command], *TINY, "--output_dir", folder, *more]
    return words, os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# Dies as by `kill -9`, when the second checkpoint is half written.
KILLED = """
import os, signal
from trl_maxmin.trainer.common import atomic_checkpoint
publish, count = atomic_checkpoint._publish, []
def die(staged, final):
    count.append(final)
    if len(count) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(staged, final)
atomic_checkpoint._publish = die
from trl_maxmin.cli import main
raise SystemExit(main())
"""


OTHERS = [command for command in COMMANDS if command not in ("reward", "ppo")]


def weights(folder):
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        name = str(file.relative_to(folder))
        if not name.startswith(("checkpoint-", "_")):
            found |= {f"{name}:{key}": tensor for key, tensor in load_file(file).items()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["reward", "ppo", *(pytest.param(c, marks=pytest.mark.exhaustive) for c in OTHERS)]
)
def test_twice_killed_and_resumed(command, lab, monkeypatch):
    monkeypatch.chdir(lab)
    whole, cut = f"{command}-whole", f"{command}-cut"
    steps = ("--max_steps", "3")

    def run(folder, *more, **kwargs):
        words, environment = call(command, folder, *steps, *more, **kwargs)
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    assert run(whole, "--quiet") == (0, ""), "nothing is said where all is well"
    before = {path: path.stat().st_mtime_ns for path in (lab / whole).rglob("*")}
    status, text = run(whole)
    assert status == 2 and "holds another run" in text
    assert {path: path.stat().st_mtime_ns for path in (lab / whole).rglob("*")} == before, "nothing was touched"

    assert run(cut, code=KILLED)[0] == -signal.SIGKILL
    assert (lab / cut / "checkpoint-1").is_dir() and not (lab / cut / "checkpoint-2").exists()
    status, text = run(cut)
    assert status == 2 and "checkpoint-1" in text
    status, text = run(cut, "--resume_from_checkpoint", "true")
    assert status == 0, text[-2000:]
    one, two = weights(lab / whole), weights(lab / cut)
    assert one.keys() == two.keys() and one
    assert all(torch.equal(one[name], two[name]) for name in one), "bit-equal to the run that was not cut off"
    names = [sorted(str(p.relative_to(lab / f)) for p in (lab / f).rglob("*") if p.is_file()) for f in (whole, cut)]
    assert names[0] == names[1]

    (lab / cut / "notes.txt").write_text("mine")
    status, text = run(cut, "--overwrite_output_dir", "true", "--seed", "5")
    assert status == 0 and (lab / cut / "notes.txt").read_text() == "mine", text[-2000:]
    assert any(not torch.equal(one[name], tensor) for name, tensor in weights(lab / cut).items())


def test_fewer_components_leave_no_third_one(lab, monkeypatch, capsys):
    monkeypatch.chdir(lab)
    argv = ["reward", *COMMANDS["reward"], *TINY, "--save_strategy", "no", "--max_steps", "1", "--output_dir", "third"]
    assert main([*argv, "--num_components", "3"]) == 0
    assert main([*argv, "--num_components", "2"]) == 2
    assert main([*argv, "--num_components", "2", "--overwrite_output_dir", "true"]) == 0
    assert not (lab / "third" / "components" / "component_2").exists()
    capsys.readouterr()
    assert main(["push", "third", "--repo_id", "me/x", "--dry_run"]) == 0
    assert "component_2" not in capsys.readouterr().out


def test_grpo_after_ppo_has_no_critic_and_its_own_card(lab, monkeypatch, capsys):
    monkeypatch.chdir(lab)
    for command in ("ppo", "grpo"):
        argv = [command, *COMMANDS[command], *TINY, "--max_steps", "1", "--output_dir", "both"]
        assert main([*argv, "--overwrite_output_dir", "true"]) == 0
    assert not (lab / "both" / "value_head.safetensors").exists()
    assert "num ppo epochs" not in (lab / "both" / "README.md").read_text()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_quietly_and_without_warnings_of_what_is_to_go(command, lab, monkeypatch):
    """`--quiet` prints nothing where all is well; no FutureWarning has its cause in a line of ours."""
    monkeypatch.chdir(lab)
    code = (
        "import sys, traceback, warnings\n"
        "def show(message, category, *args):\n"
        "    frames = [f.filename for f in traceback.extract_stack()]\n"
        "    callers = [f for f in frames if '/transformers/' not in f and 'warnings.py' not in f and '<' not in f]\n"
        "    if issubclass(category, FutureWarning) and '/trl_maxmin/' in callers[-1]:\n"
        "        sys.exit(f'{message} {callers[-1]}')\n"
        "from trl_maxmin.cli import main\n"
        "warnings.simplefilter('always'); warnings.showwarning = show\n"
        "warnings.simplefilter = lambda *a, **k: None\n"
        "raise SystemExit(main())"
    )
    words, environment = call(command, f"{command}-quiet", "--max_steps", "1", "--quiet", code=code)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr[-2000:]


def test_interrupted_is_130_in_a_process_of_its_own(lab, monkeypatch):
    monkeypatch.chdir(lab)
    code = (
        # What a shell starts in the background ignores the signal.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import trl_maxmin.cli.ppo as ppo\nfrom trl_maxmin.cli import main\n"
        "ppo.run = lambda argv: signal.raise_signal(signal.SIGINT)\nraise SystemExit(main())"
    )
    words, environment = call("ppo", "interrupted", code=code)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130 and "--resume_from_checkpoint true" in done.stderr
