# SPDX-License-Identifier: Apache-2.0
"""Texts of others in a card, as text: nothing in a name, a prompt or a reply is Markdown, HTML or code there."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


_LONGEST_TEXT = 300
_LONGEST_WORD, _LONGEST_IN_TEXT = 36, 70
# What a card shows is about 85 characters wide; twice-as-long cells may break at their spaces.
_WIDTH, _UNBROKEN_WIDTH = 84, 115
_KEPT = "\u200d\u00a0\u3000"  # the joiner of emoji, and spaces of other scripts


def clean(text: Any) -> str:
    r"""A text in one line, in which what is not seen is spelled out: control characters, turns of direction, halves
    of characters.

    Example:

    >>> clean("a\n b\x1b[2J\u202ec")
    'a b\\x1b[2J\\u202ec'
    """
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() or c in _KEPT else c.encode("unicode_escape").decode() for c in line)


def code(text: Any, longest: int = _LONGEST_TEXT) -> str:
    """A text in a code span, in which neither HTML nor Markdown means anything; words wider than a page are cut.

    Example:

    >>> code("<b>a|b</b>")
    '`<b>a|b</b>`'
    """
    # Other scripts than the Latin one break between any two characters, or have shorter words.
    text = re.sub(rf"([!-~]{{{_LONGEST_IN_TEXT}}})[!-~]{{4,}}", r"\1...", clean(text).replace("`", "'"))
    text = text if len(text) <= longest else text[:longest] + " ..."
    return f"`{text}`" if text.strip() else "(empty)"


def plain(text: Any) -> str:
    """A sentence of ours with names from the data in it: nothing in it is HTML, a link, a heading or emphasis.

    Example:

    >>> plain("Yes: <b> [x](y) and component_1, 20 %, www.z.com.")
    'Yes: &lt;b&gt; \\\\[x\\\\](y) and component\\\\_1, 20 %, www\\\\.z.com.'
    """
    text = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", html.escape(clean(text), quote=False))
    text = re.sub(r"(?i)(:)(?=//)|(?<=www)(\.)|(@)", lambda match: "\\" + match[0], text)
    return re.sub(r"^(\d+)([.)])|^([-+=])", lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", text)


def literal(text: Any) -> str:
    """A string of a Python program, inside a fenced block.

    Example:

    >>> literal('a"```')
    '"a\\\\"\\\\u0060\\\\u0060\\\\u0060"'
    """
    return json.dumps(clean(text)).replace("`", "\\u0060")


def labels(names: Iterable[str]) -> dict[str, str]:
    """Names as code spans for a table: long words are cut in the middle, and differ still.

    Example:

    >>> labels(["concise", "x" * 60])["x" * 60]
    '`xxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxx`'
    """
    found: dict[str, str] = {}
    for name in names:
        words = (w if len(w) <= _LONGEST_WORD else f"{w[:24]}...{w[-9:]}" for w in clean(name).split(" "))
        label = code(" ".join(words), 2 * _LONGEST_WORD)
        number = 2
        while label in found.values() and name not in found:
            label, number = f"{label.split(' (')[0]} ({number})", number + 1
        found.setdefault(name, label)
    return found


def number(value: Any, digits: int = 2) -> str:
    """A number with so many decimals, nothing for what is not known."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    if abs(value) >= 1e9:
        return f"{value:.3g}" if abs(value) < 1e300 else "over 1e300"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def interval(rate: Mapping[str, float] | None) -> str:
    """`mean [low, high]`."""
    return f"{number(rate['mean'])} [{number(rate['low'])}, {number(rate['high'])}]" if rate else ""


def settings(values: Mapping[str, Any] | None) -> list[str]:
    """`name: value` lines of a free-form part of the record."""
    shown = []
    for name, value in sorted((values or {}).items()):
        if isinstance(value, list):
            value = ", ".join(number(entry, 3) for entry in value)
        if isinstance(value, str | int | float | bool):
            value = f"{value:g}" if isinstance(value, float) else value
            shown.append(f"{plain(name.replace('_', ' '))}: {code(value)}")
    return shown


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, or several of them below each other where one would be too wide: each has the first column.

    Columns in which every cell is empty are left out, and numbers stand on the right; without rows it is empty.
    """
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    keep = [i for i in range(1, len(columns)) if any(row[i] for row in rows)]
    blocks: list[list[int]] = [[0]]
    for i in keep:
        block = [*blocks[-1], i]
        if len(block) > 2 and not _fits(columns, rows, block):
            blocks.append([0])
        blocks[-1].append(i)
    return "\n\n".join(_table(columns, rows, block) for block in blocks)


def _fits(columns: Sequence[str], rows: Sequence[Sequence[str]], block: Sequence[int]) -> bool:
    def width(text: str) -> int:
        return max(map(len, text.split()), default=0)

    broken = sum(max(width(columns[i]), *(width(row[i]) for row in rows)) + 3 for i in block)
    whole = sum(max(width(columns[i]), *(min(len(row[i]), 2 * _LONGEST_WORD) for row in rows)) + 3 for i in block)
    return broken <= _WIDTH and whole <= _UNBROKEN_WIDTH


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], keep: Sequence[int]) -> str:
    numeric = [all(re.fullmatch(r"[-+.\d\[\]e, ]*", row[i]) for row in rows) for i in range(len(columns))]
    lines = [[columns[i] for i in keep], ["---:" if numeric[i] else "---" for i in keep]]
    lines += [[row[i] or "-" for i in keep] for row in rows]
    # Of a table, a bar ends the cell even in a code span.
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
