# SPDX-License-Identifier: Apache-2.0
"""Entry point of `trl-maxmin`: picks the subcommand, and turns errors into one line and an exit status."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence


#: Subcommand -> what it does. Each is a module of this package with a `run(argv)`; those whose module is not there
#: (an optional part, or a later release) are left out.
COMMANDS = {
    "demo": "the whole method on an embedded world, from one command",
    "convert": "bring a public set, or an export of an annotation tool, to the columns of preferences",
    "diagnose": "do my preferences need more than one reward? an answer before any training",
    "reward": "learn a mixture of reward models from preferences with annotator ids",
    "assign": "say which component describes annotators who were not in the training data",
    "estimate": "say what fits into memory, before training",
    "ppo": "train one policy for the worst-off group by MaxMin-PPO",
    "grpo": "the same by MaxMin-GRPO, on TRL's trainer",
    "rloo": "the same by MaxMin-RLOO, on TRL's trainer",
    "dpo": "the same from preferences alone, by group-robust DPO on TRL's trainer",
    "best-of": "of n sampled replies choose those that serve the worst-off group, without training",
    "evaluate": "measure policies for every group, with intervals",
    "push": "put mixture, components and policies on the Hub, with cards and a collection",
    "pull": "get back what a push published",
    "space": "show and publish the Gradio Space",
    "env": "print versions and devices, for a bug report",
    "serve": "give rewards over HTTP to trainers of other frameworks",
    "completion": "print a completion script for bash, zsh or fish",
}

_TRAINS = ("reward", "ppo", "grpo", "rloo", "dpo")


def commands() -> dict[str, str]:
    """The subcommands that this installation has."""
    found = importlib.util.find_spec
    return {name: text for name, text in COMMANDS.items() if found(f"{__package__}.{module_of(name)}")}


def module_of(command: str) -> str:
    """Name of a subcommand's module: `best-of` is in `best_of.py`."""
    return command.replace("-", "_")


def usage() -> str:
    """Help of the command itself."""
    lines = ["usage: trl-maxmin COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<11} {text}" for name, text in commands().items()]
    lines += [
        "",
        "options of every command:",
        "  --help                         the options of the command",
        "  --config FILE.yaml             read options from a file; the command line overrides it",
        "  --accelerate_config NAME|FILE  run under `accelerate launch` (training and evaluate)",
        "  --quiet                        print nothing but errors",
        "  --debug                        show the traceback of an error",
        "",
        "exit status: 0 = done, 1 = failed, 2 = called wrongly, 130 = interrupted",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv (`Sequence[str]`, *optional*): arguments without the program's name; defaults to `sys.argv[1:]`.

    Returns:
        `int`: exit status: 0 = done, 1 = the command failed, 2 = it was called wrongly, 130 = it was interrupted,
        141 = the reader of its output has gone.
    """
    try:
        try:
            return _dispatch(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _dispatch(argv: list[str]) -> int:
    debug, quiet = "--debug" in argv, "--quiet" in argv
    argv = [word for word in argv if word not in ("--debug", "--quiet")]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    command, *rest = argv
    if command == "--version":
        from .. import __version__
        from ..run_record import RunRecord

        hosts = RunRecord.installed_versions()
        of_hosts = ", ".join(f"{name} {hosts[name]}" for name in ("torch", "transformers", "trl") if name in hosts)
        print(f"trl-maxmin {__version__} ({of_hosts}, Python {hosts['python']})")
        return 0
    if command not in commands():
        later = " It is not part of this installation." if command in COMMANDS else ""
        close = difflib.get_close_matches(command, commands(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(commands())
        print(f"trl-maxmin: unknown command {command!r}. Commands: {known}.{later}{hint}", file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with _quiet() if quiet else contextlib.nullcontext():
        return _run(command, rest, debug)


def _leave_process_group() -> None:
    """A launched process leaves its group while Python is whole; at exit its threads now and then abort instead."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _run(command: str, argv: list[str], debug: bool) -> int:
    try:
        from .launch import launch, split_launch_options

        options, rest = split_launch_options(argv)
        # A process that was launched finds the recipe's launch options again, and must not launch itself.
        if options and "LOCAL_RANK" not in os.environ and not {"-h", "--help"} & set(rest):
            flags = ["--debug"] * debug + ["--quiet"] * bool(os.environ.get("TRL_MAXMIN_QUIET"))
            return launch(command, options, [*rest, *flags])
        importlib.import_module(f".{module_of(command)}", __package__).run(rest)
        _leave_process_group()
    except KeyboardInterrupt as stop:
        if str(stop):  # of a push or a pull, which knows where it stands
            print(f"\ntrl-maxmin {command}: {stop}", file=sys.stderr)
            return 130
        hint = " (--resume_from_checkpoint true goes on)" if command in _TRAINS else ""
        print(
            f"\ntrl-maxmin {command}: interrupted; what was finished is in the output folder{hint}.", file=sys.stderr
        )
        return 130
    except Exception as error:
        if debug or isinstance(error, BrokenPipeError):
            raise
        from .faults import UsageError, told
        from .launch import leave_outcome

        text, status = f"trl-maxmin {command}: {told(command, argv, error)}", 2 if isinstance(error, UsageError) else 1
        print(text, file=sys.stderr)
        leave_outcome(status, text)
        return status
    return 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on standard output, no progress bars, no warnings, of the log only errors, which standard error gets."""
    from datasets import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    before = os.environ.get("TRL_MAXMIN_QUIET")
    os.environ["TRL_MAXMIN_QUIET"] = "1"
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        os.environ.pop("TRL_MAXMIN_QUIET")
        if before is not None:
            os.environ["TRL_MAXMIN_QUIET"] = before
