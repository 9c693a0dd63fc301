# SPDX-License-Identifier: Apache-2.0
"""Every reader on rows of the published shape: what comes out, written by hand."""

import inspect
import json

import pytest
from datasets import Dataset

from tests.data.sets.shapes import (
    SHAPES,
    argilla_record,
    asked,
    battle,
    collective_row,
    community_row,
    dices_row,
    label_studio_task,
    multipref_row,
    personal_row,
    prism_row,
    said,
    summaries_row,
)
from trl_maxmin.data.columns import prepare_preferences
from trl_maxmin.data.rankings import is_ranked, prepare_rankings
from trl_maxmin.data.sets import SETS


def read(name, rows=None, **more):
    own, options = SHAPES[name]
    return list(SETS[name].read(own if rows is None else rows, **(options | more)))


def test_every_set_has_a_shape_and_a_line():
    assert list(SHAPES) == list(SETS)
    assert all(entry.about and (entry.hub_id is None or "/" in entry.hub_id) for entry in SETS.values())


@pytest.mark.parametrize("name", SETS)
def test_what_comes_out_keeps_the_contract(name):
    rows = [row for row in read(name) if row is not None]
    data = Dataset.from_list(rows)
    prepared = prepare_rankings(data) if is_ranked(data) else prepare_preferences(data)
    assert len(prepared) == len(rows) > 0 and all(isinstance(who, str) for who in prepared["annotator_id"])
    assert list(SETS[name].read(iter(SHAPES[name][0]), **SHAPES[name][1])) == read(name), "a stream will do"


def test_community_alignment():
    first, second, other = read("community_alignment")
    assert first == {
        "prompt": [asked("first?")],
        "responses": [[said(f"first {letter}")] for letter in "abcd"],
        "choice": 1,
        "annotator_id": "a1",
    }
    assert second["prompt"] == [asked("first?"), said("first b"), asked("second?")] and second["choice"] == 3
    assert other["annotator_id"] == "a2"
    assert read("community_alignment", group_by="annotator_country")[2]["group"] == "france"
    gap = community_row("a3", "response_c", "response_a") | {"second_turn_preferred_response": ""}
    assert len(read("community_alignment", [gap])) == 1, "a conversation ends where no choice was made"
    assert read("community_alignment", [gap | {"first_turn_preferred_response": None}]) == [None]
    three = community_row("a4", "response_c") | {"first_turn_response_a": float("nan")}
    (row,) = read("community_alignment", [three])
    assert len(row["responses"]) == 3 and row["choice"] == 1


def test_collective_alignment():
    first, second = read("collective_alignment")
    assert first["ranking"] == [1, 2, 2, 2] and [r[0]["content"][-1] for r in first["responses"]] == list("BACD")
    assert first["prompt"] == [said("Be kind.", "system"), asked("Is it right?")]
    assert second["ranking"] == [1, 2, 3, 3]
    assert [row["ranking"] for row in read("collective_alignment", question="world")] == [[1, 2, 3, 4], [1, 1, 1, 1]]
    assert read("collective_alignment", [collective_row("", None)]) == [None]
    (part,) = read("collective_alignment", [collective_row("C > A", "")])
    assert [r[0]["content"] for r in part["responses"]] == ["reply C", "reply A"], "only what was ranked"
    with pytest.raises(ValueError, match="question='self' is unknown"):
        read("collective_alignment", question="self")


def test_prism():
    rows = [
        prism_row(1, 1, 70, True),
        prism_row(1, 0, 70, False),
        prism_row(0, 2, "55", "False"),
        prism_row(0, 0, "20", "False"),
        prism_row(0, 1, "90", "True"),
        prism_row(2, 0, 5, True),
        prism_row(2, 1, 6, False),
    ]
    first, tied, third = read("prism", rows)
    assert first == {
        "prompt": [asked("prompt 0")],
        "responses": [[said(f"reply 0-{i}")] for i in range(3)],
        "ranking": [3, 1, 2],
        "annotator_id": "user7",
    }
    assert tied is None and third["ranking"] == [2, 1]
    assert [turn["content"] for turn in third["prompt"]] == [
        "prompt 0",
        "reply 0-1",
        "prompt 1",
        "reply 1-1",
        "prompt 2",
    ]
    assert read("prism", [row | {"if_chosen": False} for row in rows])[1:] == [None, None], (
        "nobody knows how it went on"
    )


def test_arena_and_mt_bench():
    first, second = read("arena")
    assert first == {
        "prompt": [asked("q0")],
        "chosen": [said("A0")],
        "rejected": [said("B0")],
        "annotator_id": "h1",
    }
    assert second["chosen"] == [said("B0"), asked("q1"), said("B1")]
    as_text = battle("tie (bothbad)", {"judge_hash": "h"}), battle("model_a", {"judge_hash": "h"})
    as_text[1].update({f"conversation_{s}": json.dumps(as_text[1][f"conversation_{s}"]) for s in "ab"})
    assert read("arena", as_text) == [None, first | {"annotator_id": "h"}]
    same_start = battle("model_b", {"judge_hash": "h"}, ("A", "A"), 2)
    same_start["conversation_b"][-1] = said("else")
    (row,) = read("arena", [same_start])
    assert row["prompt"] == [asked("q0"), said("A0"), asked("q1")] and row["chosen"] == [said("else")]
    late, early = battle("model_a", {"judge": "expert_3"}, turns=2), battle("tie", {"judge": "expert_3"}, turns=2)
    (row, none) = read("mt_bench", [late | {"turn": 1}, early])
    assert row["chosen"] == [said("A0")] and row["annotator_id"] == "expert_3" and none is None


def test_summarize_from_feedback():
    row = read("summarize_from_feedback")[1]
    assert row == {
        "prompt": "SUBREDDIT: r/AskX\nTITLE: Title\nPOST: A long post.\nTL;DR:",
        "chosen": "two",
        "rejected": "one",
        "annotator_id": "W1",
    }
    news = summaries_row(0, article="News.", post=None)
    assert read("summarize_from_feedback", [news])[0]["prompt"] == "News.\n\nTL;DR:"


def test_personal_llm():
    rows = [personal_row(n) for n in range(12)]
    found = read("personal_llm", rows, num_users=5, choices_per_user=6, seed=3)
    assert len(found) == 30 and len({row["annotator_id"] for row in found}) == 5
    assert found == read("personal_llm", rows, num_users=5, choices_per_user=6, seed=3)
    assert found != read("personal_llm", rows, num_users=5, choices_per_user=6, seed=4)
    for row in found:  # the best reply of a user who cares for one model alone is that model's
        assert sorted(row["ranking"])[0] == 1 and len(row["responses"]) == 8
    assert read("personal_llm", []) == []
    with pytest.raises(ValueError, match="num_users=0"):
        read("personal_llm", rows, num_users=0)


def test_multipref():
    found = read("multipref", [multipref_row()])
    assert [row and (row["chosen"], row["annotator_id"], row["group"]) for row in found] == [
        ("A!", "w1", "normal"),
        None,
        ("B!", "w3", "expert"),
    ]
    assert [row["chosen"] for row in read("multipref", [multipref_row()], question="helpful_pref")] == ["B!"] * 3


def test_helpsteer_and_plural():
    rows = read("helpsteer3")
    assert [row and (row["chosen"][0]["content"], row["annotator_id"]) for row in rows[:3]] == [
        ("one", "judgement-0-0"),
        None,
        ("two", "judgement-0-2"),
    ]
    bare = SHAPES["helpsteer3"][0][0] | {"individual_preference": None, "overall_preference": -1}
    assert read("helpsteer3", [bare])[0]["chosen"] == [said("one")]
    assert [row["group"] for row in read("plural")] == ["India", "Japan"]


def test_ratings_and_dices():
    rows = [dices_row(7, text, verdict) for text, verdict in (("a", "No"), ("b", "Yes"), ("c", "Unsure"))]
    none, pair, nobody = read("dices", [*rows, dices_row(8, "a", "No")])
    assert none is None and nobody is None and pair["annotator_id"] == "7"
    assert pair["chosen"] == "USER: a\nBOT: a" and pair["rejected"] == "USER: b\nBOT: b" and pair["prompt"] == ""
    many = [{"annotator_id": 1, "prompt": "p", "text": str(n), "score": n} for n in range(30)]
    assert len(read("ratings", many)) == 30 and len(read("ratings", many, max_pairs=7)) == 7
    apart = [row | {"prompt": str(n)} for n, row in enumerate(many)]
    assert read("ratings", apart) == [None], "replies to different prompts are not compared"
    assert read("ratings", [many[0] | {"score": None}, many[1]])[0] is None
    with pytest.raises(ValueError, match="max_pairs=0"):
        read("ratings", many, max_pairs=0)


def argilla(rows, **more):
    return [row and row["ranking"] for row in read("argilla", rows, **more)]


def test_argilla_in_its_three_forms():
    first, second = read("argilla")
    assert first == {"prompt": "why?", "responses": ["one", "two"], "ranking": [2, 1], "annotator_id": "u1"}
    assert second["ranking"] == [1, 2]
    fields = {"question": "why?", "first": "one", "second": "two"}
    table = fields | {
        "best.responses": ["second", "first"],
        "best.responses.users": ["u1", "u2"],
        "best.responses.status": ["submitted", "discarded"],
    }
    assert argilla([table]) == [[None, 1]]
    entries = [{"user_id": "u1", "value": "1", "status": "submitted"}, {"user_id": "u2", "value": "B", "status": None}]
    assert argilla([fields | {"best": entries}]) == [[1, None], [None, 1]]
    columns = {key: [entry[key] for entry in entries] for key in entries[0]}
    assert argilla([fields | {"best": columns}]) == [[1, None], [None, 1]]
    ranked = {"user_id": ["u1"], "value": [{"rank": [2, 1], "value": ["first", "second"]}], "status": ["submitted"]}
    assert argilla([fields | {"best": ranked}]) == [[2, 1]]
    assert argilla([fields | {"best": None}]) == []
    assert argilla([argilla_record(value) for value in ("tie", '["second", "first"]', ["first"])]) == [
        None,
        [2, 1],
        [1, None],
    ]


def test_argilla_ratings():
    record = argilla_record(None)
    record["responses"] = {
        "r1": [{"value": 4, "user_id": "u1"}, {"value": 2, "user_id": "u2"}, {"value": 5, "user_id": "u3"}],
        "r2": [{"value": 5, "user_id": "u1"}, {"value": 2, "user_id": "u2"}],
    }
    assert argilla([record], question="r1,r2") == [[2, 1], None, None]
    with pytest.raises(ValueError, match="do not fit"):
        read("argilla", response_fields=["first"])
    with pytest.raises(ValueError, match="do not fit"):
        read("argilla", question="a,b,c")


def test_label_studio():
    first, second = read("label_studio")
    assert first == {"prompt": "why?", "chosen": "one", "rejected": "two", "annotator_id": "10"}
    assert second["chosen"] == "two"
    task = label_studio_task("left", {"id": 3, "email": "a@b"})
    assert read("label_studio", [task])[0]["annotator_id"] == "3"
    task["annotations"][0]["was_cancelled"] = True
    assert read("label_studio", [task]) == [None]
    two = label_studio_task("left")
    two["annotations"][0]["result"].append(two["annotations"][0]["result"][0] | {"from_name": "other"})
    assert read("label_studio", [two], question="pw")[0]["chosen"] == "one"
    with pytest.raises(ValueError, match="Row 0 .*several pairwise answers"):
        read("label_studio", [two])
    with pytest.raises(ValueError, match="a left and a right field"):
        read("label_studio", response_fields=["a"])


def test_options_are_what_the_readers_take():
    for entry in SETS.values():
        assert set(entry.options) == set(inspect.signature(entry.read).parameters) - {"rows"}
