# SPDX-License-Identifier: Apache-2.0
"""Entry point of `trl-maxmin`: picks the subcommand, and turns user errors into one line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence


#: Subcommand -> what it does. Each is a module of this package with a `run(argv)`.
COMMANDS = {
    "demo": "the whole method on an embedded world, from one command",
    "reward": "learn a mixture of reward models from preferences with annotator ids",
    "assign": "say which component describes annotators who were not in the training data",
    "estimate": "say what fits into memory, before training",
    "ppo": "train one policy for the worst-off group by MaxMin-PPO",
    "grpo": "the same by MaxMin-GRPO, on TRL's trainer",
    "rloo": "the same by MaxMin-RLOO, on TRL's trainer",
    "push": "put mixture, components and policies on the Hub, with cards and a collection",
    "pull": "get back what a push published",
}


def usage() -> str:
    """Help of the command itself."""
    lines = ["usage: trl-maxmin COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<8} {text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        "`trl-maxmin COMMAND --help` lists the options of a command; `--config FILE.yaml` reads them from a file.",
        "`--debug` shows the traceback of an error.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv (`Sequence[str]`, *optional*): arguments without the program's name; defaults to `sys.argv[1:]`.

    Returns:
        `int`: exit status: 0 = done, 1 = the command failed, 2 = it was called wrongly.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    command, *rest = argv
    if command == "--version":
        from .. import __version__

        print(__version__)
        return 0
    if command not in COMMANDS:
        print(f"trl-maxmin: unknown command {command!r}. Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        importlib.import_module(f".{command}", __package__).run(rest)
    except (ValueError, OSError, TypeError) as error:
        if debug:
            raise
        print(f"trl-maxmin {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ntrl-maxmin {command}: interrupted; what was finished is in the output folder.", file=sys.stderr)
        return 130
    return 0
