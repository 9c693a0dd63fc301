# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin completion bash|zsh|fish`: a script that completes commands and their options."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Sequence

from .main import commands, module_of
from .parser import UsageError


SHELLS = ("bash", "zsh", "fish")
_OPTION = re.compile(r"^\s+(?:-\w, )?(--[a-z][\w]*)", re.MULTILINE)
_EVERYWHERE = ("--help", "--config", "--quiet", "--debug", "--accelerate_config")

_BASH = """# eval "$(trl-maxmin completion bash)"
_trl_maxmin() {
  local word="${COMP_WORDS[COMP_CWORD]}" options=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "@COMMANDS@ --help --version" -- "$word"))
    return
  fi
  case "${COMP_WORDS[1]}" in
@CASES@
  esac
  if [[ "$word" == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}
complete -o filenames -F _trl_maxmin trl-maxmin
"""


def options_of(command: str) -> list[str]:
    """Options that a command's help lists.

    Args:
        command (`str`): name of a subcommand.

    Returns:
        `list[str]`: sorted.
    """
    text = io.StringIO()
    module = importlib.import_module(f".{module_of(command)}", __package__)
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        module.run(["--help"])
    return sorted({*_OPTION.findall(text.getvalue()), *_EVERYWHERE})


def script(shell: str, options: dict[str, list[str]]) -> str:
    """Completion script of a shell.

    Args:
        shell (`str`): `"bash"`, `"zsh"` or `"fish"`.
        options (`dict[str, list[str]]`): command -> its options.

    Returns:
        `str`.

    Raises:
        UsageError: another shell.
    """
    if shell not in SHELLS:
        raise UsageError(f"completion is for {', '.join(SHELLS)}, got {shell!r}.")
    if shell == "fish":
        lines = ["# trl-maxmin completion fish | source"]
        for name in options:
            lines.append(f"complete -c trl-maxmin -n __fish_use_subcommand -f -a {name} -d '{commands()[name]}'")
        for name, words in options.items():
            where = f"-n '__fish_seen_subcommand_from {name}'"
            lines += [f"complete -c trl-maxmin {where} -l {word[2:]}" for word in words]
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'    {name}) options="{" ".join(words)}" ;;' for name, words in options.items())
    text = _BASH.replace("@COMMANDS@", " ".join(options)).replace("@CASES@", cases)
    if shell == "zsh":
        text = "autoload -U +X bashcompinit && bashcompinit\n" + text.replace("completion bash", "completion zsh")
    return text


def run(argv: Sequence[str]) -> None:
    """Print the script.

    Args:
        argv (`Sequence[str]`): the shell.

    Raises:
        UsageError: no or an unknown shell.
    """
    if "--help" in argv or "-h" in argv:
        print(
            "usage: trl-maxmin completion bash|zsh|fish\n\n"
            'Print a completion script: eval "$(trl-maxmin completion bash)"'
        )
        raise SystemExit(0)
    if len(argv) != 1:
        raise UsageError(f"name one shell: {', '.join(SHELLS)}.")
    if argv[0] not in SHELLS:
        script(argv[0], {})
    print(script(argv[0], {name: options_of(name) for name in commands() if name != "completion"}), end="")
