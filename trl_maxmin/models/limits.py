# SPDX-License-Identifier: Apache-2.0
"""Numbers and names that no configuration holds: a million layers, a negative vocabulary, a component called `../x`.

Building a model of such a configuration would take all memory, or hours, before anything says that the file beside it
is of another model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..reading import printable


MAX_COMPONENTS = 1000
#: What the last words of a setting's name say it counts, and how many there may be.
_LAYERS = re.compile(r"(^|_)(n_layer|n_layers|layers|depth|depths|blocks|n_block)$")
_LIMITS = (
    (_LAYERS, None, 1_000),
    (re.compile(r"(^|_)(n_head|heads|experts|groups|stages|components|branches)$"), None, 100_000),
    (re.compile(r"(^|_)(labels)$"), 1, 100_000),
    (re.compile(r"^(vocab_size|hidden_size|n_embd|d_model)$"), 1, 2**24),
    (
        re.compile(r"(^|_)(size|dim|embd|positions|embeddings|inner|width|rank|length|window|channels|d_ff)$"),
        None,
        2**31,
    ),
    (re.compile(r"(^|_)(n_positions|max_position_embeddings|intermediate_size|n_inner|d_ff)$"), None, 2**24),
)
_LARGEST = 2**53


def require_sane_numbers(config: dict[str, Any], name: str) -> None:
    """Raise where a model's configuration has numbers that no model has.

    Args:
        config (`dict`): what `config.json` holds.
        name (`str`): of the file, for the message.

    Raises:
        ValueError: names the setting, what it is and what is allowed.

    Example:

    >>> require_sane_numbers({"model_type": "gpt2", "n_layer": 10**7}, "config.json")
    Traceback (most recent call last):
    ...
    ValueError: config.json: n_layer is 10000000; allowed is -1 to 1,000. Correct it, or take another model.
    """
    for path, key, number in _numbers(config):
        for pattern, least, most in _LIMITS:
            if pattern.search(key) and not (-1 if least is None else least) <= number <= most:
                raise ValueError(
                    f"{name}: {path} is {number}; allowed is {-1 if least is None else least} to {most:,}. Correct "
                    "it, or take another model."
                )
        if abs(number) > _LARGEST and not isinstance(number, float):
            raise ValueError(f"{name}: {path} is {printable(number, 40)}; no setting is that large. Correct it.")


def require_enough_weights(config: dict[str, Any], number: int, name: str) -> None:
    """Raise where a configuration has so many layers that building them, to find them missing, would take minutes.

    Args:
        config (`dict`): what `config.json` holds.
        number (`int`): of tensors in the files beside it. Families that use a layer ten times over are none.
        name (`str`): of the file, for the message.

    Raises:
        ValueError: more than ten layers a tensor.
    """
    for path, key, layers in _numbers(config):
        if _LAYERS.search(key) and layers > 10 * number:
            raise ValueError(f"{name} describes {layers} layers ({path}), beside {number} weights. Copy all files.")


def _numbers(config: dict[str, Any], above: str = "") -> Iterator[tuple[str, str, int | float]]:
    """Path, last key and value of every number, those in lists under the key of the list."""
    for key, value in config.items():
        path = printable(f"{above}{key}", 80)
        if isinstance(value, dict):
            yield from _numbers(value, f"{path}.")
            continue
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                yield from _numbers(entry, f"{path}.")
            elif isinstance(entry, int | float) and not isinstance(entry, bool):
                yield path, str(key), entry


def require_component_names(names: list[Any]) -> None:
    """Raise where a name cannot be that of a component: they become folders, parts of ids, and lines on a terminal.

    Args:
        names (`list[str]`): of the components.

    Raises:
        ValueError: no text, empty or over 80 characters, with `/`, `\\` or control characters, or only dots.

    Example:

    >>> require_component_names(["likes films, long", "kurz & knapp"])
    """
    for name in names:
        problem = None
        if not isinstance(name, str) or not name.strip():
            problem = "is no text"
        elif len(name) > 80:
            problem = f"has {len(name)} characters"
        elif not name.isprintable() or "/" in name or "\\" in name or not name.strip("."):
            problem = "has '/', '\\', control characters, or only dots"
        if problem:
            raise ValueError(
                f"component_names: '{printable(name)}' {problem}. A name is a folder and part of an id on the Hub: 1 "
                "to 80 letters, digits, spaces and signs other than '/' and '\\'."
            )
