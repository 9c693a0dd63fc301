# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are there as a whole or not at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from tests.launcher import PYTHONPATH
from tests.trainer.ppo_helpers import assert_same, build_ppo_trainer, differ, prompts, weights
from trl_maxmin.trainer import MaxMinPPOConfig, MaxMinPPOTrainer
from trl_maxmin.trainer.common.atomic_checkpoint import (
    STAGING_FOLDER,
    is_complete_checkpoint,
    last_complete_checkpoint,
)
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer


pytestmark = pytest.mark.seam


EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}


def folders(output_dir):
    return sorted(path.name for path in Path(output_dir).iterdir() if path.is_dir())


@pytest.fixture
def checkpoint(make):
    trainer = make(max_steps=1, **EVERY_STEP)
    trainer.train()
    return Path(trainer.args.output_dir) / "checkpoint-1"


class TestWhatIsComplete:
    def test_a_whole_one(self, checkpoint):
        assert is_complete_checkpoint(checkpoint)
        assert folders(checkpoint.parent) == ["checkpoint-1"], "nothing is left aside"

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "value_head.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"]
    )
    def test_one_whose_file_is_cut_off(self, checkpoint, name):
        file = checkpoint / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert not is_complete_checkpoint(checkpoint)

    def test_one_without_its_state(self, checkpoint):
        (checkpoint / "trainer_state.json").unlink()
        assert not is_complete_checkpoint(checkpoint)

    def test_incomplete_ones_are_skipped(self, make, checkpoint):
        """What another tool, or a copy that was cut off, left behind; transformers itself would take it."""
        broken = checkpoint.with_name("checkpoint-10")
        shutil.copytree(checkpoint, broken)
        (broken / "trainer_state.json").unlink()
        checkpoint.with_name("checkpoint-final").mkdir()
        assert get_last_checkpoint(checkpoint.parent) == str(broken)
        with pytest.warns(UserWarning, match="checkpoint-10 is incomplete"):
            assert last_complete_checkpoint(checkpoint.parent) == str(checkpoint)
        trainer = make(max_steps=2)
        with pytest.warns(UserWarning, match="checkpoint-10 is incomplete"):
            trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 2

    def test_none_at_all(self, make):
        with pytest.raises(ValueError, match="No complete checkpoint found.*run"):
            make().train(resume_from_checkpoint=True)


class TestInterruptedSaves:
    stages = ("_save_run_state", "_save", "_save_optimizer_and_scheduler", "_save_rng_state", "_name_best_checkpoint")

    @pytest.mark.parametrize("stage", stages)
    @pytest.mark.parametrize("before", [True, False])
    def test_leave_only_what_was_complete(self, make, tmp_path, stage, before):
        """Interrupted before and after every stage of the second save, the run goes on from the first."""
        whole = make(output_dir=tmp_path / "whole", max_steps=3)
        whole.train()

        class Interrupted(PPOTrainer):
            pass

        def interrupt(self, *args, **kwargs):
            if self.state.global_step == 2 and before:
                raise KeyboardInterrupt
            getattr(super(Interrupted, self), stage)(*args, **kwargs)
            if self.state.global_step == 2:
                raise KeyboardInterrupt

        setattr(Interrupted, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(Interrupted, max_steps=3, **EVERY_STEP).train()
        output_dir = tmp_path / "run"
        assert folders(output_dir) == [STAGING_FOLDER, "checkpoint-1"]
        assert get_last_checkpoint(output_dir) == str(output_dir / "checkpoint-1")
        resumed = make(max_steps=3, **EVERY_STEP)
        resumed.train(resume_from_checkpoint=True)
        assert not differ(weights(whole), weights(resumed))
        assert folders(output_dir) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_checkpoint_of_the_same_name_gives_way(make, checkpoint):
    (checkpoint / "old").touch()
    make(max_steps=1, **EVERY_STEP).train()
    assert is_complete_checkpoint(checkpoint) and not (checkpoint / "old").exists()
    assert folders(checkpoint.parent) == ["checkpoint-1"]


def test_only_so_many_are_kept(make):
    trainer = make(max_steps=4, save_total_limit=2, **EVERY_STEP)
    trainer.train()
    assert folders(trainer.args.output_dir) == ["checkpoint-3", "checkpoint-4"]


def test_the_best_one_is_known_by_its_final_name(make):
    class SecondIsBest(PPOTrainer):
        def evaluation_loop(self, *args, **kwargs):
            output = super().evaluation_loop(*args, **kwargs)
            output.metrics["eval_objective/scores"] = [1.0, 3.0, 2.0][self.state.global_step - 1]
            return output

    settings = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "objective/scores"}
    trainer = make(
        SecondIsBest, max_steps=3, eval_dataset=prompts(4), greater_is_better=True, **settings, **EVERY_STEP
    )
    trainer.train()
    run = Path(trainer.args.output_dir)
    assert trainer.state.best_model_checkpoint == str(run / "checkpoint-2")
    for step, best in ((1, 1), (2, 2), (3, 2)):
        record = json.loads((run / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert record["best_model_checkpoint"] == str(run / f"checkpoint-{best}")


def test_a_push_takes_the_renamed_folder(make, monkeypatch):
    pushed = []

    def push(self, folder):
        pushed.append((Path(folder).name, is_complete_checkpoint(folder), folders(self.args.output_dir)))

    monkeypatch.setattr("trl_maxmin.trainer.common.hub_push.HubPushMixin._push_from_checkpoint", push)
    trainer = make(max_steps=2, **EVERY_STEP)
    trainer.args.push_to_hub = True
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.train()
    assert pushed == [
        ("checkpoint-1", True, ["checkpoint-1"]),
        ("checkpoint-2", True, ["checkpoint-1", "checkpoint-2"]),
    ]


KILLED = """
import os, random, signal, sys, time, traceback
from transformers.trainer_utils import get_last_checkpoint
from tests.trainer.test_atomic_checkpoint import killable
import torch

torch.set_num_threads(1)
output_dir, kind, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(0)

def last():
    return get_last_checkpoint(output_dir) if os.path.isdir(output_dir) else None

for turn in range(kills + 1):
    # Everything is imported by now, so a child starts at once.
    before, child = last(), os.fork()
    if child == 0:
        try:
            killable(output_dir, kind)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if turn < kills:
        # While starting, one time in five; else some moment after the first new checkpoint.
        while turn % 5 and last() == before and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != (-signal.SIGKILL if turn < kills else 0):
        sys.exit(f"turn {turn} ended with {status}")
"""


def killable(output_dir, kind, steps=60):
    """A run that goes on from what is there, and writes its weights at the end."""
    from tests.conftest import build_word_tokenizer

    settings = {"max_steps": steps, "save_total_limit": 2, "logging_steps": 50, **EVERY_STEP}
    settings |= {"per_device_train_batch_size": 2, "num_ppo_epochs": 1, "response_length": 3}
    if kind == "maxmin":
        settings |= {"trainer_class": MaxMinPPOTrainer, "config_class": MaxMinPPOConfig, "welfare": "mirror"}
    trainer = build_ppo_trainer(output_dir, build_word_tokenizer(), **settings)
    resume = os.path.isdir(output_dir) and get_last_checkpoint(output_dir) is not None
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output_dir) if resume else None)
    torch.save(weights(trainer), f"{output_dir}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "maxmin"])
def test_c19_killed_at_ten_random_moments_is_the_uninterrupted_run(tmp_path, kind):
    """Resumed by transformers' own choice of the last checkpoint, which takes any folder of that name."""
    killable(str(tmp_path / "whole"), kind)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "killed"), kind, "10"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr[-3000:] + outcome.stdout[-1000:]
    assert_same(torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "killed.pt"), atol=0, rtol=0)
    assert not (tmp_path / "killed" / STAGING_FOLDER).exists()
