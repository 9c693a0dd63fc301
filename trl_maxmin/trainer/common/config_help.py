# SPDX-License-Identifier: Apache-2.0
"""The help of an option on the command line is what the docstring of its configuration says of it."""

from __future__ import annotations

import inspect
import re
from types import MappingProxyType
from typing import TypeVar


_Config = TypeVar("_Config", bound=type)
_ENTRY = re.compile(r"^ {4}(\w[\w,\s]*?) \(`[^\n]*\):\n((?: {8,}\S.*\n?)+)", re.MULTILINE)
_LINK = re.compile(r"\[`~?(?:\w+\.)*(\w+)`\]")


def help_from_docstring(config_class: _Config) -> _Config:
    """Decorator of a dataclass: a field without help gets the paragraph below its name in the docstring.

    Args:
        config_class (`type`): a dataclass whose docstring lists fields as ``name (`type`, ...):``, the text below.

    Returns:
        `type`: the class.

    Example:

    >>> from dataclasses import dataclass
    >>> @help_from_docstring
    ... @dataclass
    ... class Config:
    ...     '''Settings.
    ...
    ...     Parameters:
    ...         length (`int`, *optional*, defaults to `53`):
    ...             Length of a reply, about 20 %.
    ...     '''
    ...
    ...     length: int = 53
    >>> Config.__dataclass_fields__["length"].metadata["help"]
    'Length of a reply, about 20 %%.'
    """
    for names, text in _ENTRY.findall(inspect.cleandoc(config_class.__doc__ or "") + "\n"):
        shown = _LINK.sub(r"\1", " ".join(text.split())).replace("`", "").replace("%", "%%")
        for name in re.findall(r"\w+", names):
            found = config_class.__dataclass_fields__.get(name)
            if found is not None and "help" not in found.metadata:
                found.metadata = MappingProxyType({**found.metadata, "help": shown})
    return config_class
