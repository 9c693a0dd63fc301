# SPDX-License-Identifier: Apache-2.0
"""docs/data.md speaks of every set, and its rows are rows."""

import json
import re
from pathlib import Path

from trl_maxmin.data.rankings import ranking_of_row
from trl_maxmin.data.sets import SETS


TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_set_is_in_the_table_and_says_where_its_columns_were_checked():
    table, _, checked = TEXT.split("## The sets")[1].partition("### Where the columns were checked")
    rows = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert set(rows) == set(SETS) - {"rankings"}
    assert set(re.findall(r"^\| `(\w+)`", checked, re.MULTILINE)) == set(SETS) - {"rankings", "ratings"}
    for name in rows:
        assert len(next(line for line in table.splitlines() if line.startswith(f"| `{name}`")).split(" | ")) >= 4


def test_the_examples_are_rankings():
    rows = [json.loads(line) for line in TEXT.split("```json\n")[1].split("```")[0].splitlines()]
    assert [ranking_of_row(row, number) for number, row in enumerate(rows)] == [[1, 2, 1, None], [None, None, 1, None]]


def test_options_that_are_named_are_there():
    from trl_maxmin.cli.convert import ConvertArguments

    named = set(re.findall(r"--(\w+)", TEXT))
    assert named <= set(ConvertArguments.__dataclass_fields__)
