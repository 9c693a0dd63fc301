# SPDX-License-Identifier: Apache-2.0
"""What went wrong, in one line that names the file and the next step."""

from __future__ import annotations

import errno
from collections.abc import Sequence


class UsageError(ValueError):
    """The command was called wrongly: options it does not have or take, values they cannot have: exit status 2."""


USER_ERRORS = (ValueError, OSError, TypeError)
"""What a user's mistake raises, with a message of its own; anything else is shown with the name of its class."""

#: The disk's own words, and how safetensors (an error of its own) and torch (a `RuntimeError`) say it.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_DISK_WORDS = (
    "No space left",
    "os error 28",
    "os error 27",
    "os error 30",
    "PytorchStreamWriter failed",
    "unexpected pos",
)
#: What the Hub answers 402 to is a new Space; how each command asks for another.
_FREE_SPACE = "(free for two Spaces; the app then needs a @spaces.GPU function)"
_FOR_402 = {
    "push": f"Use --space_hardware zero-a10g {_FREE_SPACE}, --space_sdk static, or a PRO account.",
    "space": f"Use --hardware zero-a10g {_FREE_SPACE}, or a PRO account.",
}
_RESUMED = ("reward", "ppo", "grpo", "rloo", "dpo")


def told(command: str, argv: Sequence[str], error: BaseException) -> str:
    """One line on an error.

    Args:
        command (`str`), argv (`Sequence[str]`): what was called.
        error (`BaseException`): what it raised.

    Example:

    >>> told("diagnose", ["--output_dir", "d"], OSError(errno.ENOSPC, "No space left on device", "d/x.json"))
    'd/x.json: No space left on device. Make room or give another folder, and run it again.'
    """
    from ..hub.faults import SPACE_402, HubError

    if isinstance(error, HubError):  # has its own next step, and lines
        if getattr(error, "status", None) == 402 and SPACE_402 in str(error) and command in _FOR_402:
            error = error.placed(error.done, error.open, error.command, {402: _FOR_402[command]})
        return str(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in (*_DISK, errno.EACCES, errno.EPERM) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    elif getattr(error, "errno", None) not in _DISK and not any(words in text for words in _DISK_WORDS):
        return text if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {text} (--debug shows where)"
    else:
        text = f"{_option(argv, 'output_dir') or _option(argv, 'output_file') or 'the output'} was not written: {text}"
    remedy = "Make room or give another folder, and run it again."
    if command in _RESUMED:
        remedy = (
            "Checkpoints that are complete are safe, and half of one is never taken for one: make room and go on with "
            "--resume_from_checkpoint true."
        )
    return f"{text.rstrip('.')}. {remedy}"


def _option(argv: Sequence[str], name: str) -> str | None:
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    place = words.index(f"--{name}") if f"--{name}" in words else len(words)
    return words[place + 1] if place + 1 < len(words) else None
