# SPDX-License-Identifier: Apache-2.0
"""Rows of the shape that public sets are published in, written here, brought to our columns."""

import pytest

from trl_maxmin.data.columns import prepare_preferences
from trl_maxmin.data.public_sets import from_dices, from_helpsteer, from_multipref, from_prism, from_ratings


def test_prism_chosen_against_every_other_answer_of_the_turn():
    turn = {"interaction_id": "int1", "user_id": "user7", "user_prompt": "Hi", "score": 50}
    rows = [turn | {"model_response": text, "if_chosen": text == "b"} for text in "abc"]
    rows += [{**turn, "interaction_id": "int2", "model_response": "alone", "if_chosen": True}]
    pairs = prepare_preferences(from_prism(rows))
    assert [(p["chosen"], p["rejected"], p["annotator_id"]) for p in pairs] == [
        ("b", "a", "user7"),
        ("b", "c", "user7"),
    ]


def test_multipref_each_worker_is_a_pair():
    row = {
        "comparison_id": "1", "text": "Why?", "completion_a": "A!", "completion_b": "B!",
        "normal_worker_annotations": [
            {"evaluator": "w1", "overall_pref": "A-is-slightly-better", "helpful_pref": "B-is-clearly-better"},
            {"evaluator": "w2", "overall_pref": "Tie", "helpful_pref": "Tie"},
        ],
        "expert_worker_annotations": [
            {"evaluator": "e1", "overall_pref": "B-is-clearly-better", "helpful_pref": "Tie"}
        ],
    }  # fmt: skip
    pairs = from_multipref([row])
    assert [(p["chosen"], p["annotator_id"], p["worker_kind"]) for p in pairs] == [
        ("A!", "w1", "normal"),
        ("B!", "e1", "expert"),
    ]
    assert from_multipref([row], aspect="helpful_pref")["chosen"][0] == "B!"


def test_dices_safe_over_unsafe_of_the_same_rater():
    rows = [
        {"rater_id": rater, "item_id": i, "context": f"c{i}", "response": f"r{i}", "Q_overall": answer}
        for rater, answers in ((5, ("No", "Yes", "Unsure")), (6, ("Yes", "Yes", "Yes")))
        for i, answer in enumerate(answers)
    ]
    pairs = from_dices(rows)
    assert len(pairs) == 1 and pairs[0]["chosen"] == "c0\nr0" and pairs[0]["rejected"] == "c1\nr1"
    assert pairs[0]["annotator_id"] == 5


def test_helpsteer_judgements_are_nobody_in_particular():
    row = {
        "context": [{"role": "user", "content": "Hi"}], "response1": "one", "response2": "two",
        "overall_preference": -1, "individual_preference": [{"score": -2}, {"score": 0}, {"score": 1}],
    }  # fmt: skip
    pairs = from_helpsteer([row])
    assert [p["chosen"][0]["content"] for p in pairs] == ["one", "two"]
    assert len(set(pairs["annotator_id"])) == 2
    del row["individual_preference"]
    assert from_helpsteer([row])[0]["rejected"][0]["content"] == "two"


def test_ratings_compare_within_a_prompt_and_are_capped():
    rows = [{"annotator_id": 1, "p": i % 2, "text": str(i), "score": i} for i in range(20)]
    pairs = from_ratings(rows, prompt="p", max_pairs_per_annotator=7)
    assert len(pairs) == 7
    for pair in pairs:
        assert int(pair["chosen"]) > int(pair["rejected"]) and (int(pair["chosen"]) - int(pair["rejected"])) % 2 == 0


@pytest.mark.parametrize("read", [from_prism, from_multipref, from_dices, from_helpsteer, from_ratings])
def test_another_table_is_refused_with_what_is_missing(read):
    with pytest.raises(ValueError, match="does not look like.*missing, there are x"):
        read([{"x": 1}])


def test_only_ties_are_refused():
    with pytest.raises(ValueError, match="No preference was found.*DICES"):
        from_dices([{"rater_id": 1, "context": "c", "response": "r", "Q_overall": "Unsure"}])
