# SPDX-License-Identifier: Apache-2.0
"""Messages on the page are those of the source."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r'^\| (".*?") \|', PAGE, re.MULTILINE)


def texts_of_the_source():
    """Every text of the package, with `{}` for what is put in."""
    for path in (ROOT / "trl_maxmin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


SOURCE = "\n".join(texts_of_the_source())


@pytest.mark.parametrize("quoted", [text for cell in QUOTED for text in re.findall(r'"(.*?)"', cell)])
def test_each_message_is_one_that_can_be_read(quoted):
    assert quoted in SOURCE


def test_there_are_messages():
    assert len(QUOTED) > 12
