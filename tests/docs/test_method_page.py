"""docs/method.md names functions and tests that exist."""

import importlib
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").split("## EM over annotators")[0]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| What ")]
NAMES = sorted(set(re.findall(r"`((?:functional|trainer|evaluation|models)\.[\w.]+)`", "\n".join(ROWS))))


@pytest.mark.parametrize("name", NAMES)
def test_functions_exist(name):
    parts = ["trl_maxmin", *name.split(".")]
    for end in range(len(parts), 1, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return
    pytest.fail(f"no module of {name}")


def test_every_row_names_a_function_and_a_test():
    assert len(ROWS) > 25
    for row in ROWS:
        *_, function, test = row.strip(" |").split(" | ")
        assert "`" in function, row
        assert test.startswith("same") or re.search(r"`tests/[\w/]+\.py`", test), row
    for path in re.findall(r"`(tests/[\w/.]+\.py)`", TABLE):
        assert (ROOT / path).is_file(), path
