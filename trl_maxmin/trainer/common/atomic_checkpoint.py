# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are there as a whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ...reading import read_json
from .hub_push import HubPushMixin


# Not named like a checkpoint, so that nothing takes it for one; with an underscore, so that no push uploads it.
STAGING_FOLDER = "_incomplete"
STATE_FILE = "trainer_state.json"


def is_complete_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint was written to its end: nothing in it is cut off, and the trainer's state, which comes
    last, is there.

    Args:
        folder (`str` or `os.PathLike`): a checkpoint of any trainer of transformers.

    Returns:
        `bool`
    """
    return _damage(Path(folder)) is None


def _damage(folder: Path) -> str | None:
    """The file below a checkpoint that is missing or cut off, and what is wrong with it."""
    file = folder / STATE_FILE
    try:
        read_json(file)
        for file in sorted(folder.rglob("*.safetensors")):
            with safe_open(file, "pt"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return f"{file.relative_to(folder)} ({error})"
    archives = (file for ending in ("pt", "pth", "bin") for file in folder.rglob(f"*.{ending}"))
    return next(
        (f"{file.relative_to(folder)} (no archive)" for file in archives if not zipfile.is_zipfile(file)), None
    )


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The latest checkpoint of a run that was written to its end; incomplete ones are skipped with a warning.

    Args:
        output_dir (`str` or `os.PathLike`): of the run.

    Returns:
        `str` or `None`: the folder, where there is one.
    """
    found = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
        if match and folder.is_dir():
            found[int(match[1])] = folder
    for step in sorted(found, reverse=True):
        if is_complete_checkpoint(found[step]):
            return str(found[step])
        warnings.warn(f"{found[step]} is incomplete and is skipped; delete it to save space.", stacklevel=2)
    return None


def checkpoint_to_resume(
    resume_from_checkpoint: str | os.PathLike | bool | None, output_dir: str | os.PathLike
) -> str | None:
    """The folder that a run goes on from.

    Args:
        resume_from_checkpoint (`str`, path or `bool`, *optional*): a checkpoint; `True` (or "true", as it is written
            on a command line) is the latest complete one of `output_dir`; `False` and `None` are none.
        output_dir (`str` or `os.PathLike`): of the run.

    Returns:
        `str` or `None`

    Raises:
        `ValueError`: no complete checkpoint below `output_dir`, a folder that is not there, or one that is no
            checkpoint or was not written to its end.
    """
    if isinstance(resume_from_checkpoint, str) and resume_from_checkpoint.lower() in ("true", "false"):
        resume_from_checkpoint = resume_from_checkpoint.lower() == "true"
    if not resume_from_checkpoint:
        return None
    if resume_from_checkpoint is True:
        found = last_complete_checkpoint(output_dir)
        if found is None:
            raise ValueError(
                f"No complete checkpoint found in output_dir={os.fspath(output_dir)!r}; leave "
                "`resume_from_checkpoint` out to start anew, or name the folder of one."
            )
        return found
    folder = Path(resume_from_checkpoint)
    if not folder.is_dir():
        problem = "there is no such folder"
    elif not (folder / STATE_FILE).is_file():
        problem = f"the folder holds no checkpoint ({STATE_FILE} is missing)"
    elif damage := _damage(folder):
        problem = f"the checkpoint was not written to its end, or is damaged: {damage}"
    else:
        return str(folder)
    raise ValueError(
        f"resume_from_checkpoint={os.fspath(resume_from_checkpoint)!r}: {problem}. Name a checkpoint-N folder of a "
        "run, say `true` for the latest complete one of output_dir, or leave it out to start anew."
    )


class AtomicCheckpointMixin(HubPushMixin):
    """Put before a trainer: its checkpoints are written into a folder aside and renamed when they are complete.

    A subclass writes what it keeps beside the model in `_save_run_state`. `train(resume_from_checkpoint=True)` takes
    the latest complete checkpoint, whoever wrote it.
    """

    _staging: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; `True` resumes from the latest complete checkpoint of `args.output_dir`.

        Raises:
            `ValueError`: as [`checkpoint_to_resume`].
        """
        resume_from_checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_run_state(self, folder: Path) -> None:
        """Write what belongs into a checkpoint beside the model; called where checkpoints are written."""

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The upload runs in the background, from a folder that must not be renamed under it.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging, final = run_dir / STAGING_FOLDER, run_dir / name
        if self.is_local_process_zero():
            shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            if self.args.should_save:
                (staging / name).mkdir(parents=True, exist_ok=True)
                self._save_run_state(staging / name)
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self._name_best_checkpoint(staging / name, final)
        self.accelerator.wait_for_everyone()
        # The main process first; then those of other nodes, where the disk is not shared.
        for turn in (self.is_world_process_zero(), self.is_local_process_zero()):
            if turn and (staging / name).is_dir():
                _publish(staging / name, final)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _name_best_checkpoint(self, staged: Path, final: Path) -> None:
        """The best checkpoint by the name it is about to get."""
        if self.state.best_model_checkpoint != str(staged):
            return
        self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            state = TrainerState.load_from_json(str(staged / STATE_FILE))
            state.best_model_checkpoint = str(final)
            state.save_to_json(str(staged / STATE_FILE))


def _publish(staged: Path, final: Path) -> None:
    """Rename, which happens at once or not at all; one of the same name gives way first."""
    replaced = staged.with_name(f"replaced-{final.name}")
    if final.exists():
        final.rename(replaced)
    staged.rename(final)
    shutil.rmtree(staged.parent, ignore_errors=True)
