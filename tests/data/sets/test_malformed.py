# SPDX-License-Identifier: Apache-2.0
"""Rows that are not of the set: every reader names the row and the column. At least twenty of them for each."""

import copy
import json
import math
import random
import re

import pytest

from tests.data.sets.shapes import SHAPES, asked, said
from trl_maxmin.cli.convert import _Counts, _written
from trl_maxmin.data.sets import SETS


GONE = object()
PERSON = [GONE, None, "", " ", "nan", "None", True, 0.5, ["ann"]]
TEXT = [GONE, None, "", "  ", 7, [], {"a": 1}]
MAYBE_TEXT = [7, [], {"a": 1}]  # where an empty cell means that there is none
NUMBER = [GONE, None, "", "seven", True, math.nan, math.inf, [], 10**400, "1e300"]
LIST = [GONE, None, "text", 7, {"a": 1}]
OBJECT = [GONE, None, "text", 7, []]
MESSAGES = [GONE, None, "text", 7, [], ["text"], [{"content": "x"}], [asked(" ")], [said("x"), said("x", "system")]]
MESSAGES += [[{"role": "user", "content": content}, said("x")] for content in (7, b"x", {"a": 1})]

#: Set -> path of a cell -> what cannot stand there.
BAD = {
    "community_alignment": {
        "annotator_id": PERSON,
        "first_turn_prompt": [GONE, *MAYBE_TEXT],
        "first_turn_preferred_response": [GONE, "a", "response_e", "response_A", 7, []],
        "first_turn_response_a": MAYBE_TEXT,
    },
    "collective_alignment": {
        "prompt": OBJECT,
        "prompt.messages": MESSAGES,
        "responses": [*LIST, [], [{"response_index": "A"}]],
        "responses.1.response_index": [*TEXT, "A"],
        "responses.0.messages": MESSAGES,
        "metadata.assessments": LIST,
        "metadata.assessments.0.annotator_id": PERSON,
        "metadata.assessments.0.ranking_blocks": ["text", 7],
        "metadata.assessments.0.ranking_blocks.personal.0.ranking": ["A>E", "A>A", "A>>B", "a>b", "best: A", 7],
    },
    "prism": {
        "user_id": PERSON,
        "conversation_id": PERSON,
        "turn": [*NUMBER, -1, 0.5],
        "within_turn_id": NUMBER,
        "model_response": TEXT,
        "score": NUMBER,
        "if_chosen": [GONE, None, "", "maybe", 7],
    },
    "arena": {
        "judge_hash": PERSON,
        "winner": [GONE, None, "", "model_c", "A", 1],
        "conversation_a": MESSAGES,
        "conversation_b": [*MESSAGES, [asked("other"), said("x")]],
    },
    "mt_bench": {
        "judge": PERSON,
        "winner": [GONE, None, "", "model_c", "A", 1],
        "turn": [*NUMBER, 0, 3, 1.5],
        "conversation_a": [*MESSAGES, [asked("q0"), said("x")]],
    },
    "summarize_from_feedback": {
        "info": OBJECT,
        "info.post": TEXT,
        "summaries": [*LIST, [], [{"text": "a"}], [{"text": "a"}, {"text": "b"}, {"text": "c"}]],
        "summaries.0.text": TEXT,
        "choice": [*NUMBER, 2, -1],
        "worker": PERSON,
    },
    "plural": {"country": PERSON, "prompt": TEXT, "pref": TEXT, "dispref": TEXT},
    "personal_llm": {"prompt": TEXT, "response_8": TEXT, "response_3_gemma_7b": NUMBER},
    "multipref": {
        "text": TEXT,
        "completion_a": TEXT,
        "normal_worker_annotations": LIST,
        "expert_worker_annotations.0": OBJECT[1:],
        "expert_worker_annotations.0.evaluator": PERSON,
        "normal_worker_annotations.1.overall_pref": [GONE, "A", "C-is-better", 7, []],
    },
    "helpsteer3": {
        "context": MESSAGES,
        "response1": TEXT,
        "response2": TEXT,
        "individual_preference": ["text", 7, {"a": 1}],
        "individual_preference.2.score": [*NUMBER, 4, 0.5],
    },
    "dices": {
        "rater_id": PERSON,
        "context": TEXT,
        "response": TEXT,
        "Q_overall": [GONE, "yes", "safe", 1, True],
    },
    "argilla": {
        "fields": [GONE, None, "text", 7],
        "fields.first": TEXT,
        "fields.question": TEXT,
        "responses.best": [GONE, "text", 7, {"value": ["a"], "user_id": []}, {"value": "a"}, ["text"]],
        "responses.best.0.user_id": PERSON,
        "responses.best.0.value": [
            "third",
            "9",
            7,
            "[broken",
            [],
            [{"value": "third", "rank": 1}],
            [{"value": "first"}],
            [{"value": "first", "rank": 0}],
            [{"value": "first", "rank": 1}, {"value": "first", "rank": 2}],
            [[1]],
            {"value": 1},
            {"value": ["first", "second"], "rank": [1]},
            '{"value": "first", "rank": 1}',
        ],
        "responses.best.0": [{"user_id": "u"}, {"value": "first"}],
    },
    "label_studio": {
        "data": OBJECT,
        "data.text1": TEXT,
        "data.question": TEXT,
        "annotations": LIST,
        "annotations.0.completed_by": PERSON,
        "annotations.0.result": LIST,
        "annotations.0.result.0.value": OBJECT,
        "annotations.0.result.0.value.selected": ["both", "Left", 1, []],
    },
    "ratings": {
        "annotator_id": PERSON,
        "text": TEXT,
        "score": [GONE, "seven", True, math.inf, []],
        "prompt": MAYBE_TEXT,
    },
}


def spoiled(row, path, value):
    row = copy.deepcopy(row)
    *way, last = (int(part) if part.isdigit() else part for part in path.split("."))
    place = row
    for part in way:
        place = place[part]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return row


#: What may stand anywhere in a file of somebody else.
UNKIND = [
    GONE, None, "", " ", 7, -3, 10**400, math.nan, math.inf, True, b"bytes", [], {}, [[[]]], [None], [1, [2]], (),
    {"a": {"b": []}}, {1: 2}, "9" * 400, "[", "{", "[null]", '{"value": 1}', [True], ["a", "a"], [{"role": "user"}],
    object(), "\ud800",
]  # fmt: skip


def places(value, at=()):
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*at, key)
        yield from places(part, (*at, key))


@pytest.mark.parametrize("name", SETS)
def test_whatever_stands_anywhere_is_written_or_refused_with_its_row(name):
    """Three hundred of all cells with all values: rows that can be written, or an error that names the row."""
    rows, options = SHAPES[name]
    ways = [(place, value) for place in places(rows[:3]) for value in UNKIND]
    drawn = random.Random(0).sample(ways, min(300, len(ways)))
    refused = 0
    for (first, *way), value in drawn:
        spoilt = copy.deepcopy(rows)
        place, last = spoilt, (first, *way)[-1]
        for part in (first, *way)[:-1]:
            place = place[part]
        if value is GONE:
            del place[last]
        else:
            place[last] = value
        try:
            for row in _written(SETS[name].read(spoilt, **options), None, None, _Counts()):
                json.dumps(row, ensure_ascii=False).encode()
        except ValueError as error:
            assert re.search(r"\bRow \d+ ", str(error)), (way, value, error)
            refused += 1
    assert refused > 30


def test_what_cannot_be_written_is_named_before_it_is():
    rows = [{"chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": "\ud800"}]
    with pytest.raises(ValueError, match="^Row 1 has rejected that cannot be written as JSON in UTF-8"):
        list(_written(rows, None, None, _Counts()))


def test_a_user_who_answers_twice():
    rows, options = SHAPES["argilla"]
    row = copy.deepcopy(rows[0])
    row["responses"]["best"] += row["responses"]["best"][:1]
    with pytest.raises(ValueError, match="Row 0 of .*user_id .*has answered best before in the same record"):
        list(SETS["argilla"].read([row], **options))


def test_there_are_twenty_for_every_reader():
    counts = {name: sum(map(len, cells.values())) for name, cells in BAD.items()}
    assert set(BAD) | {"rankings"} == set(SETS), "rows of one's own are the contract's: tests/data/test_rankings.py"
    assert min(counts.values()) >= 20, counts


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, cells in BAD.items() for path in cells]
)  # a test a cell, not a value: they take no time
def test_the_row_and_the_column_are_named(name, path):
    rows, options = SHAPES[name]
    for value in BAD[name][path]:
        bad = [rows[0], spoiled(rows[1], path, value)]
        with pytest.raises(ValueError) as error:
            list(SETS[name].read(bad, **options))
        message = str(error.value)
        column = [part for part in path.split(".") if not part.isdigit()][-1]
        assert re.search(r"\bRow 1 of ", message) and column in message, (value, message)
        assert len(message.splitlines()) == 1 and len(message) < 500, message


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_is_none(name):
    rows, options = SHAPES[name]
    for row in (None, "text", 7, ["a"]):
        with pytest.raises(ValueError, match="Row 1 of .*must be an object"):
            list(SETS[name].read([rows[0], row], **options))
    with pytest.raises(ValueError, match="Row 1 of .* has no "):
        list(SETS[name].read([rows[0], {"other": 1}], **options))
