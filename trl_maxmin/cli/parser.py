# SPDX-License-Identifier: Apache-2.0
"""TRL's parser with help that can be read: options in groups, the trainer's own few first, under 100 columns."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import shutil
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments
from trl import ModelConfig, ScriptArguments, TrlParser

from .faults import UsageError
from .launch import OPTIONS as LAUNCH_OPTIONS
from .launch import read_recipe
from .options import never_taken, refusal


QUIET_VARIABLE = "TRL_MAXMIN_QUIET"
_WIDTH = 96
_NO_REMOTE_CODE = (
    "--trust_remote_code is refused: this package never runs code out of a model's repository. Leave it out and use a "
    "model that transformers has a class for."
)
_COMMON = (
    "output_dir per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_train_epochs "
    "max_steps learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm bf16 gradient_checkpointing "
    "use_cpu seed logging_steps report_to run_name eval_strategy eval_steps save_strategy save_steps "
    "save_total_limit resume_from_checkpoint push_to_hub hub_model_id hub_private_repo disable_tqdm"
).split()


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
        super().__init__(prog, max_help_position=32, width=max(width, 60))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        long = [name for name in action.option_strings if "-" not in name[2:]] or action.option_strings
        names = [name for name in action.option_strings if len(name) == 2] + long[:1]
        if action.nargs == 0:
            return ", ".join(names)
        if action.choices is not None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
            value = value if len(value) <= 40 else "NAME"
        elif isinstance(action.type, type):
            value = {int: "INT", float: "FLOAT", str: "TEXT"}.get(action.type, action.type.__name__.upper())
        else:
            value = "BOOL" if "bool" in getattr(action.type, "__name__", "") else "VALUE"
        return f"{', '.join(names)} {value}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = " ".join((action.help or "").split())
        if action.choices is not None and len(str(action.choices)) > 40:
            text += f" One of: {', '.join(map(str, action.choices))}."
        unset = action.default in (None, argparse.SUPPRESS, "", [], {}) or action.nargs == 0
        return text if unset or "default" in text.lower() else f"{text} (default: {_plain(action.default)})"


def _plain(default: Any) -> str:
    text = str(getattr(default, "value", default))
    return (text if len(text) <= 60 else text[:57] + "...").replace("%", "%%")


class CommandParser(TrlParser):
    """Parser of a subcommand.

    Args:
        dataclass_types (dataclass or several): whose fields are the options. Fields are shown in groups by the class
            that introduced them; of `transformers.TrainingArguments` only the usual ones, unless `--help_all` asks.
        prog (`str`): name of the command, such as `trl-maxmin ppo`.
        description (`str`, *optional*): what the command does, in a sentence or two.
        epilog (`str`, *optional*): examples; lines are kept.
        command (`str`, *optional*): whose table of refused options holds (`trl_maxmin.cli.options`); the last word of
            `prog` by default.
    """

    def __init__(
        self,
        dataclass_types: Any = None,
        prog: str = "trl-maxmin",
        description: str | None = None,
        epilog: str | None = None,
        command: str | None = None,
    ) -> None:
        types = list(dataclass_types) if isinstance(dataclass_types, Iterable) else [dataclass_types]
        super().__init__(types, prog=prog, description=description, formatter_class=_Formatter, allow_abbrev=False)
        self.examples = epilog
        self.command = command or prog.split()[-1]
        self._unlisted = never_taken(self.command)
        self._titles = {name: _title(kind, name) for kind in types for name in kind.__dataclass_fields__}

    def format_usage(self) -> str:
        """One line: three hundred options in a usage help nobody."""
        return f"usage: {self.prog} [--config RECIPE.yaml] [options]\n"

    def format_help(self, everything: bool = False) -> str:
        """Groups of options; those of `TrainingArguments` in full only if asked for."""
        formatter = self._get_formatter()
        groups: dict[str, list[argparse.Action]] = {}
        hidden = 0
        for action in self._actions:
            title = self._titles.get(action.dest, "")
            if not title or action.option_strings[0].startswith("--no_") or action.dest in self._unlisted:
                continue
            if title == _TRAINING and action.dest not in _COMMON and not everything:
                hidden += 1
                continue
            groups.setdefault(title, []).append(action)
        order = sorted(groups, key=lambda title: _ORDER.index(title) if title in _ORDER else -1)
        for title in order:
            actions = groups[title]
            if title == _TRAINING:
                actions.sort(key=lambda action: _COMMON.index(action.dest) if action.dest in _COMMON else 999)
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        lines = [
            self.format_usage(),
            "\n",
            f"{self.description}\n\n" if self.description else "",
            formatter.format_help(),
        ]
        lines.append("\noptions of every command:\n")
        for option, text in _EVERYWHERE:
            lines.append(f"  {option:<29} {text}\n")
        if hidden:
            lines.append(f"  {'--help_all':<29} {hidden} more options of transformers.TrainingArguments\n")
        if self.examples:
            lines.append(f"\nexamples:\n{self.examples.rstrip()}\n")
        # A word without a break, such as an address, is cut: argparse lets it run over.
        text = "".join(lines).split("\n")
        return "\n".join(
            line if len(line) <= _WIDTH else f"{line[:_WIDTH]}\n{' ' * 32}{line[_WIDTH:]}" for line in text
        )

    def error(self, message: str) -> None:  # type: ignore[override]
        """Wrong options, in one line instead of a page of usage.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message}. `{self.prog} --help` lists the options.")

    def parse_args_and_config(self, args: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """See [`~trl.TrlParser.parse_args_and_config`].

        Raises:
            UsageError: an option that does not exist (the message names the closest one that does) or that the command
                does not take (why, and what to do), or a value that an option cannot have.
        """
        args = list(args or [])
        if "--help_all" in args:
            print(self.format_help(everything=True))
            raise SystemExit(0)
        if "--config" in args and args.index("--config") + 1 == len(args):
            raise UsageError("--config needs the path of a YAML file.")
        # First of all: building the options may fail for another reason (no GPU), which would hide the misspelt word.
        words, recipe = _without_recipe(args)
        known = {action.dest for action in self._actions} | {*LAUNCH_OPTIONS, "env"}
        in_recipe = list(read_recipe(recipe) if recipe else {})
        self._refuse([f"--{name}" for name in in_recipe if name not in known] + self.parse_known_args(words)[1])
        try:
            parsed = super().parse_args_and_config(args, return_remaining_strings=True, **kwargs)
        except (ValueError, TypeError) as error:
            # What dataclasses, ours and the hosts', say of values.
            raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
        self._refuse(parsed[-1])
        values = {
            field.name: getattr(arguments, field.name) for arguments in parsed[:-1] for field in fields(arguments)
        }
        if values.get("trust_remote_code"):
            raise UsageError(_NO_REMOTE_CODE)
        if problem := refusal(self.command, [*in_recipe, *map(_name_of, words)], values):
            raise UsageError(problem)
        if os.environ.get(QUIET_VARIABLE):
            for arguments in parsed[:-1]:
                if hasattr(arguments, "disable_tqdm"):
                    arguments.disable_tqdm = True
        return parsed[:-1]

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """A recipe may also say how to launch; the command has read that part already.

        Raises:
            UsageError: a value of another type than the option's.
        """
        for action in self._actions:
            if action.dest in kwargs and not _fits(kwargs[action.dest], action):
                value, kind = kwargs[action.dest], getattr(action.type, "__name__", "text")
                raise UsageError(f"the recipe sets {action.dest} to {value!r}, which is no {kind}.")
        return super().set_defaults_with_config(
            **{name: value for name, value in kwargs.items() if name not in LAUNCH_OPTIONS}
        )

    def _refuse(self, remaining: list[str]) -> None:
        unknown = [word for word in remaining if word.startswith("-")] or remaining
        if not unknown:
            return
        if unknown[0].split("=")[0] == "--trust_remote_code":
            raise UsageError(_NO_REMOTE_CODE)
        known = [option for action in self._actions for option in action.option_strings if "-" not in option[2:]]
        close = difflib.get_close_matches(
            unknown[0].split("=")[0].replace("-", "_").replace("__", "--", 1), known, n=1
        )
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"unknown option {unknown[0]}.{hint} `{self.prog} --help` lists the options.")


def _name_of(word: str) -> str:
    return word.split("=")[0].lstrip("-").replace("-", "_").removeprefix("no_") if word.startswith("--") else ""


def _without_recipe(words: list[str]) -> tuple[list[str], str | None]:
    if "--config" not in words:
        return words, None
    place = words.index("--config")
    return words[:place] + words[place + 2 :], words[place + 1]


def _fits(value: Any, action: argparse.Action) -> bool:
    """argparse converts texts only: whatever else a recipe holds would be taken as it is."""
    if isinstance(value, str) or value is None or action.nargs in ("+", "*") or action.type not in (int, float):
        return True
    return not isinstance(value, bool) and isinstance(value, int if action.type is int else int | float)


_TRAINING = "training (transformers.TrainingArguments)"
_MODEL = "model (trl.ModelConfig)"
_DATA = "data (trl.ScriptArguments)"
_ORDER = ("this command", _DATA, "algorithm", _MODEL, _TRAINING)
_EVERYWHERE = (
    ("-h, --help", "show this and exit"),
    ("--config RECIPE.yaml", "read options from a file; the command line overrides it"),
    ("--accelerate_config NAME|FILE", "run under `accelerate launch` (training and evaluate)"),
    ("--quiet", "print nothing but errors; no progress bars"),
    ("--debug", "show the traceback of an error"),
)


def _title(kind: type, name: str) -> str:
    """Group of a field, by the most basic class that has it."""
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base) and name in getattr(base, "__annotations__", {}):
            if base is TrainingArguments:
                return _TRAINING
            if base is ModelConfig:
                return _MODEL
            if base is ScriptArguments:
                return _DATA
            break
    return "algorithm" if issubclass(kind, TrainingArguments) else "this command"
