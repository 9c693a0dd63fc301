# SPDX-License-Identifier: Apache-2.0
"""Ids and texts of a file come out as they stand in it, whatever they look like."""

import gzip
import json

import pytest
from datasets import Dataset
from trl import ScriptArguments

from trl_maxmin.cli.io import read_dataset
from trl_maxmin.data.columns import prepare_preferences


IDS = ["1e5", "007", "true", "NA-1", "1.0", "0x1F", "2024-01-01", "12345678901234567890", "1_000", "inf-7"]
TEXTS = ["None", "1", "true", "NA", "null", "3.0", "2024-01-01T00:00:00", "nan", "-", "0"]
ROWS = [
    {"prompt": text, "chosen": text, "rejected": text + "!", "who": name, "group": "1.0", "margin": 0.5, "stars": 3}
    for name, text in zip(IDS, TEXTS, strict=True)
]


def write(path, rows):
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
        return
    lines = [json.dumps(row) for row in rows]
    if ".csv" in path.name:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.jsonl", "rows.json", "rows.parquet"])
def test_text_stays_text(name, tmp_path):
    write(tmp_path / name, ROWS)
    rows, _ = read_dataset(ScriptArguments(dataset_name=str(tmp_path / name)), ["who", None, "not there"])
    assert [list(row.values()) for row in rows] == [list(row.values()) for row in ROWS]
    prepared = prepare_preferences(rows, "who")
    assert prepared["annotator_id"] == IDS


def test_what_names_nobody_is_refused_in_a_file_without_types(tmp_path):
    for cell in ("", "nan", "NULL", "None"):
        write(tmp_path / "rows.csv", [*ROWS, ROWS[0] | {"who": cell}])
        rows, _ = read_dataset(ScriptArguments(dataset_name=str(tmp_path / "rows.csv")), ["who"])
        with pytest.raises(ValueError, match=f"Row {len(ROWS)} has no annotator"):
            prepare_preferences(rows, "who")


@pytest.mark.parametrize("ids", [[1.0, float("nan")], [True, False], [1.5, 2.0], [None, "a"], [["a"], ["b"]]])
def test_what_names_nobody_is_refused_in_memory(ids):
    pairs = {"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": ["c", "d"], "annotator_id": ids}
    with pytest.raises(ValueError, match="has no annotator"):
        prepare_preferences(Dataset.from_dict(pairs))


def test_whole_numbers_name_somebody():
    pairs = {"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": ["c", "d"], "annotator_id": [1.0, 2.0]}
    assert prepare_preferences(Dataset.from_dict(pairs))["annotator_id"] == [1, 2]
