# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin convert` on files: what is written, what is refused, and where ids stay."""

import csv
import gzip
import json
import os
import stat
from pathlib import Path

import pytest
from datasets import Dataset

from tests.data.sets.shapes import SHAPES
from trl_maxmin.cli import main
from trl_maxmin.data.sets import SETS


RANKINGS = [
    {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [2, 1, None], "annotator_id": "ann"},
    {"prompt": "p", "responses": ["a", "b"], "choice": 1, "annotator_id": "bob"},
    {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 1], "annotator_id": "bob"},
]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RANKINGS))
    return tmp_path


@pytest.mark.parametrize("name", SETS)
def test_every_set_from_a_file(name, folder, capsys):
    rows, options = SHAPES[name]
    Path("in.json").write_text(json.dumps(rows))
    words = [
        part
        for key, value in options.items()
        for part in (f"--{key}", ",".join(value) if isinstance(value, list) else value)
    ]
    assert main(["convert", name, "--input", "in.json", "--output", "out.jsonl", *words]) == 0
    printed = capsys.readouterr().out
    written = lines("out.jsonl")
    assert f"wrote out.jsonl: {len(written)} " in printed and "annotators" in printed
    ranked = {"responses" in row for row in written}
    assert len(ranked) == 1 and all("choice" not in row for row in written)
    if ranked == {True}:
        cut = ["convert", name, "--input", "in.json", "--output", "pairs.jsonl", "--as_pairs", "all", *words]
        assert main(cut) == 0 and len(lines("pairs.jsonl")) > len(written) - 1


def test_the_same_rows_from_every_kind_of_file(folder):
    rows = [
        {"annotator_id": f"1e{i}", "prompt": "p", "text": f"t{i},\n{j}", "score": j}
        for i in range(3)
        for j in range(3)
    ]
    Path("x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("x.json").write_text(json.dumps(rows))
    with gzip.open("x.jsonl.gz", "wt") as file:
        file.write(Path("x.jsonl").read_text())
    with open("x.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    Dataset.from_list(rows).to_parquet("x.parquet")
    found = []
    for name in ("x.jsonl", "x.json", "x.jsonl.gz", "x.csv", "x.parquet"):
        assert main(["convert", "ratings", "--input", name, "--output", "o.jsonl", "--overwrite", "true"]) == 0
        found.append(lines("o.jsonl"))
    assert all(rows == found[0] for rows in found) and len(found[0]) == 9
    assert {row["annotator_id"] for row in found[0]} == {"1e0", "1e1", "1e2"}, "ids keep their text"


def test_rankings_are_checked_cut_and_counted(folder, capsys):
    assert main(["convert", "rankings", "--input", "r.jsonl", "--output", "o.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "wrote o.jsonl: 2 rankings from 3 rows, of 2 annotators" in out and "left out 1 judgements" in out
    assert [row["ranking"] for row in lines("o.jsonl")] == [[2, 1, None], [None, 1]]
    assert main(["convert", "rankings", "--input", "r.jsonl", "--output", "p.jsonl", "--as_pairs", "best"]) == 0
    assert [(row["chosen"], row["rejected"]) for row in lines("p.jsonl")] == [("b", "a"), ("b", "c"), ("b", "a")]
    assert "wrote p.jsonl: 3 pairs from 3 rows, of 2 annotators" in capsys.readouterr().out
    assert main(["convert", "rankings", "--input", "r.jsonl", "--output", "one.jsonl", "--max_rows", "1"]) == 0
    assert len(lines("one.jsonl")) == 1
    assert main(["convert", "rankings", "--input", "p.jsonl", "--output", "again.jsonl"]) == 0
    assert lines("again.jsonl") == lines("p.jsonl"), "pairs pass as they are"


def test_a_row_is_counted_as_it_stands_when_rankings_are_cut(folder, capsys):
    Path("bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*RANKINGS, RANKINGS[1] | {"choice": 9}]))
    words = ["convert", "rankings", "--input", "bad.jsonl", "--output", "o.jsonl", "--as_pairs", "all"]
    assert main(words) == 1
    assert "Row 3 has choice 9" in capsys.readouterr().err and not Path("o.jsonl").exists()


def test_hashed_ids_need_the_key_and_keep_people_apart(folder, capsys):
    words = ["convert", "rankings", "--input", "r.jsonl", "--hash_annotators", "true", "--output"]
    assert main([*words, "o.jsonl"]) == 0
    assert "keep it on this machine" in capsys.readouterr().out
    people = [row["annotator_id"] for row in lines("o.jsonl")]
    assert len(set(people)) == 2 and not {"ann", "bob"} & set(people) and all(len(who) == 16 for who in people)
    assert stat.S_IMODE(os.stat("o.salt").st_mode) == 0o600
    assert main([*words, "same.jsonl", "--salt_file", "o.salt"]) == 0
    assert [row["annotator_id"] for row in lines("same.jsonl")] == people, "the same key, the same person"
    assert main([*words, "new.jsonl"]) == 0
    assert {row["annotator_id"] for row in lines("new.jsonl")}.isdisjoint(people)
    Path("bad.salt").write_text("abc")
    assert main([*words, "x.jsonl", "--salt_file", "bad.salt"]) == 1
    assert "holds no key of at least 16 bytes" in capsys.readouterr().err


C = ["convert", "rankings", "--input", "r.jsonl", "--output", "o.jsonl"]


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["convert"], 2, "Name a set"),
        (["convert", "prisms", "--output", "o.jsonl"], 2, "There is no set 'prisms'. Sets: community_alignment"),
        (["convert", "rankings", "--input", "r.jsonl"], 2, "must name a .jsonl file"),
        (["convert", "rankings", "--input", "r.jsonl", "--output", "o.csv"], 2, "--output o.csv must name a .jsonl"),
        (["convert", "rankings", "--output", "o.jsonl"], 2, "--input FILE is required: rankings is not on the Hub"),
        ([*C[:-1], "r.jsonl"], 2, "--output r.jsonl is there. Name another file, or add --overwrite true"),
        ([*C, "--as_pairs", "yes"], 2, "--as_pairs yes is unknown; allowed: all, best"),
        ([*C, "--max_rows", "0"], 2, "--max_rows 0 must be at least 1"),
        ([*C, "--question", "q"], 2, "--question q is refused: it is for collective_alignment"),
        ([*C, "--num_users", "4"], 2, "--num_users 4 is refused: it is for personal_llm. Leave it out"),
        ([*C, "--salt_file", "s"], 2, "--salt_file s is refused: it is the key of the hashes"),
        ([*C, "--split", "train"], 2, "--split is for a set on the Hub, r.jsonl is a file"),
        (["convert", "argilla", "--input", "r.jsonl", "--output", "o.jsonl"], 2, "--question is required for argilla"),
        (["convert", "rankings", "--input", "no.jsonl", "--output", "o.jsonl"], 1, "There is no file no.jsonl"),
        (["convert", "rankings", "--input", "x.txt", "--output", "o.jsonl"], 1, "Cannot read x.txt: type .txt"),
        (
            ["convert", "rankings", "--input", "torn.jsonl", "--output", "o.jsonl"],
            1,
            "Line 2 of torn.jsonl is no JSON",
        ),
        (["convert", "rankings", "--input", "lines.json", "--output", "o.jsonl"], 1, "is to be named .jsonl"),
        (["convert", "rankings", "--input", "object.json", "--output", "o.jsonl"], 1, "holds dict; a list of rows"),
        (["convert", "rankings", "--input", "wide.csv", "--output", "o.jsonl"], 1, "Row 1 of wide.csv has more cells"),
        (
            ["convert", "rankings", "--input", "no.parquet", "--output", "o.jsonl"],
            1,
            "Cannot read no.parquet as parquet",
        ),
        (
            ["convert", "rankings", "--input", "tied.jsonl", "--output", "o.jsonl"],
            1,
            "No preference was found in 1 rows",
        ),
        (["convert", "rankings", "--input", "bad.jsonl", "--output", "o.jsonl"], 1, "Row 1 has choice 9"),
        (["convert", "rankings", "--input", "nobody.jsonl", "--output", "o.jsonl"], 1, "Row 0 has no annotator"),
        (["convert", "rankings", "--input", "half.jsonl", "--output", "o.jsonl"], 1, "Row 0 has no rejected"),
        (["convert", "rankings", "--input", "mixed.jsonl", "--output", "o.jsonl"], 1, "Row 1 is a pair, unlike"),
        (
            ["convert", "rankings", "--input", "share.jsonl", "--output", "o.jsonl"],
            1,
            "Row 0 has chosen_probability 0.2",
        ),
        (
            ["convert", "prism", "--input", "r.jsonl", "--output", "o.jsonl"],
            1,
            "Row 0 of PRISM's utterances has no conv",
        ),
        ([*C[:-1], "file/o.jsonl"], 1, "--output: the folder file cannot be written"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(argv, status, words, folder, capsys):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    files = {
        "x.txt": "x",
        "torn.jsonl": json.dumps(pair) + '\n{"resp',
        "lines.json": '{"a": 1}\n{"a": 2}\n',
        "object.json": "{}",
        "wide.csv": "chosen,rejected\na,b\nc,d,e\n",
        "no.parquet": "x",
        "file": "",
        "tied.jsonl": json.dumps(RANKINGS[2]),
        "bad.jsonl": json.dumps(RANKINGS[0]) + "\n" + json.dumps(RANKINGS[1] | {"choice": 9}),
        "nobody.jsonl": json.dumps(RANKINGS[0] | {"annotator_id": " "}),
        "half.jsonl": json.dumps({"prompt": "p", "chosen": "a"}),
        "mixed.jsonl": json.dumps(RANKINGS[0]) + "\n" + json.dumps(pair),
        "share.jsonl": json.dumps(pair | {"chosen_probability": 0.2}),
    }
    for name, text in files.items():
        Path(name).write_text(text)
    there = {path: path.read_bytes() for path in folder.iterdir()}
    assert main(argv) == status
    captured = capsys.readouterr()
    assert words in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""
    assert {path: path.read_bytes() for path in folder.iterdir()} == there, "nothing is half-written"


def test_a_set_of_the_hub(folder, monkeypatch, capsys):
    from trl_maxmin.cli import convert

    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_list(SHAPES["collective_alignment"][0])

    monkeypatch.setattr(convert, "load_dataset", load)
    assert main(["convert", "collective_alignment", "--output", "o.jsonl", "--question", "world"]) == 0
    assert asked[0] == (("openai/collective-alignment-1", "comparisons"), {"split": "train", "revision": None})
    assert lines("o.jsonl")[0]["ranking"] == [1, 2, 3, 4]
    words = ["--input", "me/copy", "--split", "test", "--config_name", "c", "--revision", "v1", "--overwrite", "true"]
    assert main(["convert", "collective_alignment", "--output", "o.jsonl", *words]) == 0
    assert asked[1] == (("me/copy", "c"), {"split": "test", "revision": "v1"})

    def no_split(*args, **kwargs):
        raise ValueError("Unknown split \"train\". Should be one of ['all'].")

    monkeypatch.setattr(convert, "load_dataset", no_split)
    assert main(["convert", "arena", "--output", "a.jsonl"]) == 1
    assert "has no split 'train'" in (error := capsys.readouterr().err) and "Name one by --split" in error
