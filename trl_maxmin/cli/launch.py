# SPDX-License-Identifier: Apache-2.0
"""`--accelerate_config`: the same command on several processes, as `trl` does it."""

from __future__ import annotations

import importlib.resources
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .faults import UsageError


LAUNCHED = ("reward", "ppo", "grpo", "rloo", "dpo", "evaluate")
#: File in which a launched process leaves its exit status and its error.
OUTCOME_VARIABLE = "TRL_MAXMIN_OUTCOME"
OPTIONS = (
    "accelerate_config",
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "gpu_ids",
)


def split_launch_options(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options of `accelerate launch` on the command line or in its recipe, and the other words.

    Args:
        argv (`Sequence[str]`): words after the command.

    Returns:
        `tuple[dict[str, str], list[str]]`: name -> value, and the rest in order.

    Raises:
        UsageError: an option without its value.
        ValueError: as [`read_recipe`].
        FileNotFoundError: as [`read_recipe`].

    Example:

    >>> split_launch_options(["--accelerate_config", "zero2", "--max_steps", "3"])
    ({'accelerate_config': 'zero2'}, ['--max_steps', '3'])
    """
    options, rest, words = _from_recipe(argv), [], list(argv)
    while words:
        word = words.pop(0)
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in OPTIONS:
            rest.append(word)
            continue
        if not value and not words:
            raise UsageError(f"{word} needs a value.")
        options[name] = value or words.pop(0)
    return options, rest


def _from_recipe(argv: Sequence[str]) -> dict[str, str]:
    words = list(argv)
    if "--config" not in words or words.index("--config") + 1 >= len(words):
        return {}
    recipe = read_recipe(words[words.index("--config") + 1])
    return {name: str(recipe[name]) for name in OPTIONS if name in recipe}


def read_recipe(name: str, option: str = "--config") -> dict[str, Any]:
    """Options of a YAML recipe; an empty file has none.

    Args:
        name (`str`): the file.
        option (`str`): what named it, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or not a mapping.
    """
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{option} {name}: there is no such file.")
    try:
        recipe: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or "it is not text"
        raise ValueError(f"{option} {name} is not YAML: {problem}{where}.") from error
    if recipe is not None and not isinstance(recipe, dict):
        raise ValueError(f"{option} {name} must hold `option: value` lines, got a {type(recipe).__name__}.")
    return recipe or {}


def resolve_config(name: str) -> Path:
    """File of an accelerate configuration: a path, or one of those that TRL brings (`zero2`, `fsdp2`, ...).

    Raises:
        UsageError: neither; the message names those that exist.
    """
    if Path(name).is_file():
        return Path(name)
    folder = importlib.resources.files("trl") / "accelerate_configs"
    known = sorted(Path(str(entry)).stem for entry in folder.iterdir() if str(entry).endswith(".yaml"))
    if name not in known:
        raise UsageError(f"--accelerate_config {name}: no such file, and none of {', '.join(known)}.")
    return Path(str(folder / f"{name}.yaml"))


def launch(command: str, options: dict[str, str], argv: Sequence[str]) -> int:
    """Run a command under `accelerate launch`.

    Args:
        command (`str`): name of the subcommand.
        options (`dict[str, str]`): from [`split_launch_options`].
        argv (`Sequence[str]`): the other words.

    Returns:
        `int`: exit status of the command, whose error is the last line; the launcher's where it left none.

    Raises:
        UsageError: a command that runs on one process only, or an unknown configuration.
    """
    if command not in LAUNCHED:
        raise UsageError(f"`{command}` runs on one process; --accelerate_config is for {', '.join(LAUNCHED)}.")
    options = dict(options)
    words, config = [sys.executable, "-m", "accelerate.commands.launch"], {}
    if "accelerate_config" in options:
        file = resolve_config(options.pop("accelerate_config"))
        config = read_recipe(str(file), "--accelerate_config")
        words += ["--config_file", str(file)]
    count = int(options.get("num_processes", config.get("num_processes") or 1))
    cpus = count > 1 and _is_for_cpus(config, argv)
    for name, value in options.items():
        words += [f"--{name}", value]
    words += ["--multi_gpu"] * cpus
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder) / "outcome"
        environment = os.environ | {OUTCOME_VARIABLE: str(outcome)} | ({"ACCELERATE_USE_CPU": "true"} if cpus else {})
        done = subprocess.run([*words, "-m", "trl_maxmin.cli", command, *argv], check=False, env=environment)
        status, _, error = (outcome.read_text(encoding="utf-8") if outcome.is_file() else "").partition("\n")
    if done.returncode > 0 and status.isdigit():
        print(error, file=sys.stderr)
        return int(status)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def leave_outcome(status: int, error: str) -> None:
    """Tell [`launch`] how a process ended: launchers exit with 1 whatever it was, behind a traceback of theirs."""
    if name := os.environ.get(OUTCOME_VARIABLE):
        try:
            with open(name, "x", encoding="utf-8") as file:  # the first of the ranks
                file.write(f"{status}\n{error}")
        except OSError:
            pass


def _is_for_cpus(config: dict[str, Any], argv: Sequence[str]) -> bool:
    """Whether the processes are to be those of CPUs.

    `accelerate launch` (1.15) starts one process for a configuration of the type MULTI_CPU, and for `--cpu`, whatever
    `num_processes` says. It starts several for `--multi_gpu`, which are on CPUs where ACCELERATE_USE_CPU says so.
    """
    import torch

    if config.get("distributed_type", "NO") not in ("NO", "MULTI_CPU"):
        return False
    words = " ".join(argv).replace("=", " ").split()
    asked = "--use_cpu" in words and words[words.index("--use_cpu") + 1 :][:1] != ["false"]
    return bool(config.get("use_cpu")) or asked or not torch.accelerator.is_available()
