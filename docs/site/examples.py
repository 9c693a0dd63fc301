# SPDX-License-Identifier: Apache-2.0
"""Examples of docstrings stand as plain doctests; on the site they are code."""

import griffe


def fenced(text: str) -> str:
    """A docstring with each doctest that stands in no fence put into one.

    >>> print(fenced("One:\\n\\n>>> 1 + 1\\n2\\n\\nEnd."))
    One:
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    <BLANKLINE>
    End.
    """
    lines, within, open_ = [], False, False
    for line in [*text.split("\n"), ""]:
        if line.strip().startswith("```"):
            within = not within
        if not within and not open_ and line.startswith(">>>"):
            lines.append("```pycon")
            open_ = True
        elif open_ and not line.strip():
            lines.append("```")
            open_ = False
        lines.append(line)
    return "\n".join(lines[:-1])


class Examples(griffe.Extension):
    """Changes what the site reads, never the source."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
