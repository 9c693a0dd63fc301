# SPDX-License-Identifier: Apache-2.0
"""The output folder of a command: it can be written, and it holds no other run, before anything is loaded.

The check belongs to the commands. A trainer in Python may train twice into one folder, as transformers' may: a script
says itself what it wants to keep.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from accelerate import PartialState

from ..run_record import RUN_RECORD_NAME, RunRecord
from ..trainer.common.atomic_checkpoint import STAGING_FOLDER, STATE_FILE, checkpoint_to_resume
from ..trainer.common.hub_push import PUSH_FOLDER
from ..trainer.maxmin.calibration import CALIBRATION_FOLDER
from ..trainer.ppo.checkpoint import VALUE_HEAD_FILE, VALUE_MODEL_FOLDER
from ..trainer.ppo.ppo_trainer import STATE_FILE as PPO_STATE_FILE
from ..trainer.reward.em_state import EM_STATE_NAME
from .parser import UsageError


_SHARD = r"(?:adapter_)?model-\d{5}-of-\d{5}\.safetensors"
_CHECKPOINT = r"checkpoint-\d+"
_WEIGHTS = (
    "config.json adapter_config.json model.safetensors model.safetensors.index.json adapter_model.safetensors"
).split()
#: What `evaluate` writes.
EVALUATION_FILES = (
    "evaluation.json evaluation.md completions.parquet win_rate.png utility.png pareto.png training.png".split()
)
#: Names of files that the package writes into an output folder, and into the models below it.
FILES = (
    *_WEIGHTS,
    *EVALUATION_FILES,
    *"generation_config.json training_args.bin tokenizer.json tokenizer_config.json special_tokens_map.json".split(),
    *"added_tokens.json vocab.json vocab.txt merges.txt tokenizer.model spiece.model chat_template.jinja".split(),
    *"assignments.json selection.json selection.png groups.json report.json comparison.png".split(),
    *"diagnosis.json diagnosis.md diagnosis.png completions.jsonl best_of.json".split(),
    *("reference_statistics.safetensors", "reference_statistics.json", "welfare_state.json", "README.md"),
    *(VALUE_HEAD_FILE, PPO_STATE_FILE, EM_STATE_NAME, RUN_RECORD_NAME),
)
#: Folders that it writes: cleared by the same names, and removed where nothing else is in them.
FOLDERS = (
    *"components mixture policies single_reward evaluation logs base ref completions".split(),
    *(VALUE_MODEL_FOLDER, CALIBRATION_FOLDER),
)
#: What says that there is a run, beside a record of one.
_RUN = (*_WEIGHTS, VALUE_HEAD_FILE, "assignments.json", "report.json", "components", "mixture", "policies")
#: File of a checkpoint -> the command that writes it.
_KINDS = {EM_STATE_NAME: "reward", PPO_STATE_FILE: "ppo"}


OVERWRITE_HELP = (
    "Where output_dir holds an earlier run: remove what the package wrote there, by its names, and start anew."
)


def prepare_output_folder(
    command: str, output_dir: str | Path, overwrite: bool = False, resume: str | bool | None = None
) -> str | None:
    """Make sure that a run can be written to a folder, and will be the only one there.

    Args:
        command (`str`): name of the subcommand.
        output_dir (`str` or `Path`): `--output_dir`.
        overwrite (`bool`): `--overwrite_output_dir`: what the package wrote there is removed, by its names.
        resume (`str` or `bool`, *optional*): `--resume_from_checkpoint`.

    Returns:
        `str` or `None`: the checkpoint to go on from.

    Raises:
        UsageError: the folder holds another run, or options that exclude each other.
        ValueError: no such checkpoint, or one of another command.
        OSError: the folder cannot be written.
    """
    folder = Path(output_dir)
    checkpoint = checkpoint_to_resume(resume, folder)
    if checkpoint is not None:
        if overwrite:
            raise UsageError(
                f"--overwrite_output_dir true and --resume_from_checkpoint {resume} exclude each other: one removes "
                "the run that the other goes on with. Leave one of them out."
            )
        _require_kind(command, Path(checkpoint))
    require_writable(folder)
    state = PartialState()
    if state.is_local_main_process:
        found = run_in(folder)
        own = checkpoint is not None and Path(checkpoint).resolve().parent == folder.resolve()
        if found and overwrite:
            clear(folder)
        elif found and not own:
            raise UsageError(
                f"--output_dir {output_dir} holds another run ({', '.join(found)}). Give another folder; or go on "
                "with that run by --resume_from_checkpoint true; or remove what the package wrote there, and nothing "
                "else, by --overwrite_output_dir true."
            )
    # No rank may begin to write before all have looked.
    state.wait_for_everyone()
    return checkpoint


def require_writable(folder: str | Path, argument: str = "--output_dir") -> None:
    """Make a folder, and write to it.

    Raises:
        OSError: it cannot be made or written; the message names it.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        reason = "it is a file" if Path(folder).is_file() else (error.strerror or str(error)).lower()
        raise OSError(f"{argument} {folder} cannot be written: {reason}. Give another folder.") from error


def run_in(folder: Path) -> list[str]:
    """What there is of a run in a folder: names, at most five. A diagnosis or an evaluation alone is none."""
    found = [name for name in _RUN if (folder / name).exists()]
    found += [entry.name for entry in folder.iterdir() if re.fullmatch(_CHECKPOINT, entry.name) and entry.is_dir()]
    if not found and (folder / RUN_RECORD_NAME).is_file():
        record = _record(folder)
        found = [RUN_RECORD_NAME] if record is None or record.reward or record.policy else []
    return found[:5]


def clear(folder: Path) -> None:
    """Remove what the package writes, by its names; what else is in a folder stays, and the folder with it."""
    for entry in folder.iterdir():
        own_folder = entry.is_dir() and not entry.is_symlink()
        if own_folder and entry.name in (STAGING_FOLDER, PUSH_FOLDER):
            shutil.rmtree(entry)
        elif own_folder and re.fullmatch(_CHECKPOINT, entry.name) and (entry / STATE_FILE).exists():
            shutil.rmtree(entry)  # whole, as the rotation of checkpoints does
        elif own_folder and entry.name in FOLDERS:
            # Below these each folder is a model, a log or an adapter of a name of its own.
            for below in entry.iterdir():
                if below.is_dir() and not below.is_symlink():
                    _clear_model(below)
            _clear_model(entry)
        elif not own_folder and _is_ours(entry.name):
            entry.unlink()


def _clear_model(folder: Path) -> None:
    clear(folder)
    if not any(folder.iterdir()):
        folder.rmdir()


def _is_ours(name: str) -> bool:
    return name in FILES or bool(re.fullmatch(rf"{_SHARD}|completions_\d{{5}}\.parquet", name))


def _record(folder: Path) -> RunRecord | None:
    try:
        return RunRecord.load(folder)
    except (OSError, ValueError):
        return None


def _require_kind(command: str, checkpoint: Path) -> None:
    """A checkpoint of another trainer would be read in part, and the rest of it would stay."""
    kind = next((kind for file, kind in _KINDS.items() if (checkpoint / file).is_file()), None)
    record = _record(checkpoint.parent)
    if kind is None and record is not None:
        kind = str(record.policy.get("algorithm", "")).rpartition("-")[2].lower() or None
    if (kind or command) != command or (kind is None and command in _KINDS.values()):
        writer = f"`trl-maxmin {kind}`" if kind else "another trainer"
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} was written by {writer}, not by `trl-maxmin {command}`. Name "
            "a checkpoint of this command, or leave it out."
        )
