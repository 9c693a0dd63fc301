# SPDX-License-Identifier: Apache-2.0
"""Rankings as rows: what is accepted, what is refused with which words, and the way to pairs and back."""

import logging
import math

import pytest
from datasets import Dataset

from trl_maxmin.data.columns import prepare_preferences
from trl_maxmin.data.rankings import (
    is_ranked,
    pairs_to_rankings,
    prepare_rankings,
    ranking_of_row,
    rankings_to_pairs,
)


def said(content, role="assistant"):
    return [{"role": role, "content": content}]


def row(**more):
    return {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [1, 2, 3], "annotator_id": "ann"} | more


def prepared(*rows, **more):
    return prepare_rankings(Dataset.from_list(list(rows)), **more)


def test_rankings_and_choices_come_to_one_form():
    data = prepared(
        row(ranking=[10, None, 2], choice=None),  # `from_list` takes the columns of the first row
        row(ranking=None, choice=1, annotator_id="bob"),
        row(ranking=[3, 1, 3], choice=None),
        row(responses=["a", "b"], ranking=[2, 1]),
    )
    assert list(data["ranking"]) == [[2, None, 1], [None, 1, None], [2, 1, 2], [2, 1]]
    assert "choice" not in data.column_names and data["annotator_id"] == ["ann", "bob", "ann", "ann"]
    assert list(prepare_rankings(data)["ranking"]) == list(data["ranking"]), "once more changes nothing"


def test_conversations_groups_and_margins_stay():
    talk = row(
        prompt=said("q", "user"), responses=[said("a"), said("b")], ranking=[1, 2], group="x", margin=0.5, tools=None
    )
    assert prepared(talk).to_list()[0] == talk
    whole = row(responses=[said("q", "user") + said(x) for x in "ab"], ranking=[1, 2])
    assert len(prepared({name: cell for name, cell in whole.items() if name != "prompt"})) == 1


def test_what_orders_nothing_is_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        data = prepared(row(), row(ranking=[2, 2, 2]), row(responses=["a", "a", "a"]), row(responses=["a", "a", "b"]))
    assert len(data) == 2 and "Left out 2 of 4 rankings" in caplog.text
    with pytest.raises(ValueError, match="In all 1 rows the replies are the same or tied"):
        prepared(row(ranking=[1, 1, 1]))


def test_annotators_as_in_pairs(caplog):
    nobody = {name: cell for name, cell in row().items() if name != "annotator_id"}
    with caplog.at_level(logging.WARNING):
        data = prepared(nobody, nobody)
    assert data["annotator_id"] == ["ranking-0", "ranking-1"] and "each ranking is taken as its own" in caplog.text
    assert prepared(nobody | {"worker": 7}, annotator_column="worker")["annotator_id"] == [7]
    with pytest.raises(ValueError, match=r"num_components=2.*annotators \(1\)"):
        prepared(row(), num_components=2)
    assert len(prepare_rankings(Dataset.from_list([row()]).to_iterable_dataset())) == 1


BAD = [
    ({"responses": None}, "responses None; it must be a list of at least two"),
    ({"responses": ["a"]}, r"responses \['a'\]; it must be a list of at least two"),
    ({"responses": "abc"}, "responses 'abc'; it must be a list"),
    ({"responses": ["a", None, "c"]}, r"responses\[1\] None; a reply must be text or a list of messages"),
    ({"responses": ["a", 7, "c"]}, r"responses\[1\] 7"),
    ({"responses": ["a", said("b"), "c"], "prompt": ""}, "responses as text and in messages"),
    ({"responses": [said("a"), said("b"), said("c")]}, r"a prompt that is text, 'p', and responses\[0\] in messages"),
    ({"responses": [[], ["b"], "c"], "prompt": ""}, r"responses\[0\] .*the list has no message"),
    ({"responses": [said("a", "user")] * 3, "prompt": ""}, r"responses\[0\] .*last message is of 'user'"),
    ({"responses": [said(" ")] * 3, "prompt": ""}, r"responses\[0\] .*no content"),
    ({"prompt": None}, "prompt None.*Without a prompt, give ''"),
    ({"prompt": said("x")}, "prompt .*must be of 'user' or 'tool'"),
    ({"ranking": [1, 2]}, r"ranking \[1, 2\]; it must be a list of 3 ranks"),
    ({"ranking": 1}, "ranking 1; it must be a list of 3 ranks"),
    ({"ranking": [1, 2, 0]}, r"ranking\[2\] 0; a rank is a whole number from 1"),
    ({"ranking": [1, -2, 3]}, r"ranking\[1\] -2"),
    ({"ranking": [1.5, 2, 3]}, r"ranking\[0\] 1.5"),
    ({"ranking": [1, 2, math.nan]}, r"ranking\[2\] nan"),
    ({"ranking": [1, True, 3]}, r"ranking\[1\] True"),
    ({"ranking": ["1", "2", "3"]}, r"ranking\[0\] '1'"),
    ({"ranking": [None, None, None]}, "in which no reply has a rank"),
    ({"ranking": None}, "neither ranking nor choice"),
    ({"choice": 0}, "both ranking and choice"),
    ({"ranking": None, "choice": 3}, "choice 3; it must be the position of a reply, 0 to 2"),
    ({"ranking": None, "choice": -1}, "choice -1"),
    ({"ranking": None, "choice": "a"}, "choice 'a'"),
    ({"ranking": None, "choice": True}, "choice True"),
    ({"ranking": None, "choice": 0.5}, "choice 0.5"),
    ({"ranking": [1, [2], 3]}, r"ranking\[1\] \[2\]"),
    ({"ranking": [1, math.inf, 3]}, r"ranking\[1\] inf"),
    ({"ranking": {"a": 1}}, "ranking .*must be a list of 3 ranks"),
    ({"ranking": None, "choice": 10**400}, "choice 1000"),
    ({"ranking": None, "choice": [0]}, r"choice \[0\]"),
    ({"responses": [said(7)] * 3, "prompt": ""}, r"responses\[0\] .*has content 7, which is neither text nor a list"),
    ({"margin": 0.5}, "margin 0.5 and more than two replies"),
    ({"margin": math.inf}, "margin inf; a margin must be a finite number"),
    ({"responses": list("abcdefghij"), "ranking": [1] * 9 + [2]}, "9 replies tied before the last place; at most 8"),
    ({"responses": list("abcdefghij"), "ranking": [1] * 9 + [None]}, "9 replies tied before the last place"),
]


def test_there_are_twenty():
    assert len(BAD) >= 20


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_a_row_that_is_no_ranking_is_refused_with_its_number_and_column(bad, words):
    with pytest.raises(ValueError, match=f"^Row 4 has .*{words}"):
        ranking_of_row(row(**bad), 4)


@pytest.mark.parametrize("value", [None, "", "nan", math.nan])
def test_nobody_is_refused(value):
    rest = 1.0 if isinstance(value, float) else "bob"
    with pytest.raises(ValueError, match="Row 1 has no annotator"):
        prepared(row(annotator_id=rest), row(annotator_id=value))


def test_ties_of_the_last_place_may_be_many():
    many = row(responses=[str(i) for i in range(20)], ranking=[1, *[2] * 19])
    assert ranking_of_row(many, 0)[:2] == [1, 2]
    assert ranking_of_row(row(responses=list("abcdefghij"), ranking=[4] * 10), 0) == [1] * 10


def test_other_data_are_refused():
    with pytest.raises(
        ValueError, match="Rankings need `responses`, and `ranking` or `choice`. The data have: chosen"
    ):
        prepared({"chosen": "a", "rejected": "b"})
    with pytest.raises(ValueError, match="Rankings need"):
        prepared({"responses": ["a", "b"]})
    with pytest.raises(ValueError, match="are empty. Give at least one row with `responses`"):
        prepare_rankings(Dataset.from_dict({"responses": [], "choice": []}))
    with pytest.raises(TypeError, match="must be a `datasets.Dataset`, got list"):
        prepare_rankings([row()])
    with pytest.raises(ValueError, match="rankings and pairs at once"):
        is_ranked(Dataset.from_list([row(chosen="a")]))
    assert not is_ranked(Dataset.from_list([{"chosen": "a", "rejected": "b"}]))


def test_rankings_given_where_pairs_are_read_say_what_to_do():
    with pytest.raises(
        ValueError, match=r"trl-maxmin convert rankings .*--as_pairs all.*rankings_to_pairs\(dataset\)"
    ):
        prepare_preferences(Dataset.from_list([row()]))


def test_cut_into_pairs():
    data = Dataset.from_list([row(responses=list("abcd"), ranking=[2, 1, 2, None], group="g")])
    cut = rankings_to_pairs(data)
    assert [(pair["chosen"], pair["rejected"]) for pair in cut] == [
        ("b", "a"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    assert all(pair["group"] == "g" and pair["annotator_id"] == "ann" and pair["prompt"] == "p" for pair in cut)
    assert set(cut.column_names) == {"prompt", "chosen", "rejected", "annotator_id", "group"}
    best = [(pair["chosen"], pair["rejected"]) for pair in rankings_to_pairs(data, "best")]
    assert best == [("b", "a"), ("b", "c"), ("b", "d")]
    shared = Dataset.from_list([row(ranking=[1, 1, 2])])
    assert [(p["chosen"], p["rejected"]) for p in rankings_to_pairs(shared, "best")] == [("a", "c"), ("b", "c")]
    with pytest.raises(ValueError, match="cut='worst' is unknown.*'all' or 'best'"):
        rankings_to_pairs(data, "worst")
    with pytest.raises(ValueError, match="In all 1 rows the replies are tied"):
        rankings_to_pairs(Dataset.from_list([row(ranking=[1, 1, 1])]))


def test_pairs_are_rankings_of_two_and_back():
    pairs = Dataset.from_list(
        [{"prompt": "p", "chosen": c, "rejected": "z", "annotator_id": c, "margin": 0.25} for c in "ab"]
    )
    ranked = pairs_to_rankings(pairs)
    assert ranked[0]["responses"] == ["a", "z"] and ranked[0]["ranking"] == [1, 2]
    back = rankings_to_pairs(prepare_rankings(ranked))
    assert sorted(back[0].items()) == sorted(pairs[0].items()) and len(back) == 2


def test_vote_shares(caplog):
    pairs = {"prompt": ["p"] * 2, "chosen": ["a", "b"], "rejected": ["c", "d"]}
    shares = Dataset.from_dict(pairs | {"chosen_probability": [0.5, 1.0]})
    with caplog.at_level(logging.WARNING):
        data = prepare_preferences(shares)
    assert data["annotator_id"] == ["pair-0", "pair-1"] and "each pair is taken as its own annotator" in caplog.text
    assert prepare_preferences(data).to_list() == data.to_list(), "once more changes nothing"
    with pytest.raises(ValueError, match="`chosen_probability` and `margin`: a margin is how strongly one person"):
        prepare_preferences(shares.add_column("margin", [0.0, 0.5]))
    for ranked in (lambda: pairs_to_rankings(shares), lambda: prepared(row(chosen_probability=0.6))):
        with pytest.raises(ValueError, match="`chosen_probability`, which is for pairs"):
            ranked()
    for bad in ([0.9, 0.4], [0.9, 1.1], [0.9, math.nan], [0.9, None]):
        with pytest.raises(ValueError, match="Row 1 has chosen_probability .*from 0.5 to 1"):
            prepare_preferences(Dataset.from_dict(pairs | {"chosen_probability": bad}))
    with pytest.raises(ValueError, match="belongs to no one person"):
        prepare_preferences(Dataset.from_dict(pairs | {"chosen_probability": [0.9, 0.9], "annotator_id": [1, 2]}))
