# SPDX-License-Identifier: Apache-2.0
"""The column contract: what is accepted, what is refused with which words, and what is held out."""

import logging
import time
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from trl_maxmin.data.columns import (
    AnnotatorIndex,
    known_groups,
    prepare_preferences,
    share_of_familiar_pairs,
    split_by_annotator,
    split_by_text,
)


def preferences(**columns):
    data = {
        "prompt": ["p"] * 4,
        "chosen": ["a", "b", "c", "d"],
        "rejected": ["b", "c", "d", "a"],
        "annotator_id": ["ann", "bob", "ann", "cy"],
    }
    data.update(columns)
    return Dataset.from_dict({name: values for name, values in data.items() if values is not None})


def test_good_data_pass_unchanged_and_silently(caplog):
    data = preferences(group=["x", "y", "x", "y"], margin=[0.0, 0.5, 1.0, -0.2])
    with caplog.at_level(logging.WARNING):
        assert prepare_preferences(data, num_components=3).to_dict() == data.to_dict()
    assert not caplog.records


def test_another_annotator_column_is_renamed():
    data = preferences(annotator_id=None, worker=[7, 8, 7, 9])
    assert prepare_preferences(data, "worker")["annotator_id"] == [7, 8, 7, 9]
    both = preferences(worker=[7, 8, 7, 9])
    assert prepare_preferences(both, "worker")["annotator_id"] == [7, 8, 7, 9]


def test_missing_annotators_become_one_per_pair_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        prepared = prepare_preferences(preferences(annotator_id=None))
    assert len(set(prepared["annotator_id"])) == 4
    assert "annotator_column" in caplog.text and "its own annotator" in caplog.text


def test_ties_are_dropped_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        prepared = prepare_preferences(preferences(rejected=["b", "b", "d", "a"]))
    assert prepared["chosen"] == ["a", "c", "d"]
    assert "Dropped 1 of 4" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Dataset.from_dict({"chosen": [], "rejected": []}), "empty"),
        (Dataset.from_dict({"prompt": ["p"], "completion": ["a"]}), r"chosen, rejected.*prompt, completion"),
        (preferences(rejected=["a", "b", "c", "d"]), "all 4 rows"),
        (
            Dataset.from_dict({"chosen": ["a", "b"], "rejected": ["c", None]}),
            "Row 1 has rejected None; a reply must be",
        ),
        (preferences(margin=[0.0, float("nan"), 0.0, 0.0]), r"Row 1 has margin nan"),
        (preferences(margin=[0.0, 1.0, float("inf"), 0.0]), r"Row 2 has margin inf"),
        (preferences(margin=[0.0, 1.0, None, 0.0]), r"Row 2 has margin"),
        (preferences(annotator_id=["ann", None, "bob", "cy"]), "Row 1 has no annotator"),
    ],
)
def test_bad_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        prepare_preferences(data)


def test_a_wrong_column_name_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="'worker'.*annotator_id"):
        prepare_preferences(preferences(), "worker")


def test_more_components_than_annotators_are_refused():
    with pytest.raises(ValueError, match=r"num_components=4.*annotators \(3\).*between 1 and 3"):
        prepare_preferences(preferences(), num_components=4)


def test_a_single_annotator_serves_one_component_only():
    data = preferences(annotator_id=["ann"] * 4)
    assert len(prepare_preferences(data, num_components=1)) == 4
    with pytest.raises(ValueError, match=r"num_components=2.*annotators \(1\)"):
        prepare_preferences(data, num_components=2)


def test_annotator_index_numbers_in_order_of_appearance():
    index = AnnotatorIndex.from_values([30, "x", 30, 4])
    assert index.annotator_ids == (30, "x", 4)
    assert index.encode([4, 30]) == [2, 0]
    with pytest.raises(KeyError):
        index.encode(["unknown"])


def test_split_holds_out_a_share_of_every_annotator():
    rows = [{"chosen": f"{who}{i}", "rejected": "z", "annotator_id": who} for who in "abc" for i in range(10)]
    rows.append({"chosen": "only", "rejected": "z", "annotator_id": "d"})
    data = Dataset.from_list(rows)
    train, heldout = split_by_annotator(data, 0.3, seed=1)
    assert Counter(heldout["annotator_id"]) == {"a": 3, "b": 3, "c": 3}
    assert Counter(train["annotator_id"]) == {"a": 7, "b": 7, "c": 7, "d": 1}
    assert sorted([*train["chosen"], *heldout["chosen"]]) == sorted(data["chosen"])
    again, _ = split_by_annotator(data, 0.3, seed=1)
    other, _ = split_by_annotator(data, 0.3, seed=2)
    assert list(again["chosen"]) == list(train["chosen"]) != list(other["chosen"])


def votes(people=20):
    """Each of four statements that a person agrees with against each of four that they do not."""
    return [
        {"prompt": "p", "chosen": f"a{i}", "rejected": f"d{j}", "annotator_id": who}
        for who in range(people) for i in range(4) for j in range(4)
    ]  # fmt: skip


def test_held_out_pairs_that_training_pairs_imply_are_counted_and_said(caplog):
    train, heldout = split_by_annotator(Dataset.from_list(votes()), 0.2, seed=0)
    judged = {(row["annotator_id"], row[side]) for row in train for side in ("chosen", "rejected")}
    by_hand = [all((row["annotator_id"], row[side]) in judged for side in ("chosen", "rejected")) for row in heldout]
    assert share_of_familiar_pairs(train, heldout) == sum(by_hand) / len(by_hand) > 0.9
    assert "of the held-out pairs consist of two texts that the same annotator judges" in caplog.text
    caplog.clear()
    others = [row | {"annotator_id": f"{row['annotator_id']} {n}"} for n, row in enumerate(votes())]
    assert share_of_familiar_pairs(Dataset.from_list(others[:300]), Dataset.from_list(others[300:])) == 0.0
    prompts = Dataset.from_list([row | {"prompt": str(n)} for n, row in enumerate(votes())])
    split_by_annotator(prompts, 0.2, seed=0)  # the same words in reply to another prompt are another text
    assert caplog.text == ""


class TestSplitByText:
    def everybody(self, people=30, texts=80, each=20):
        rng = np.random.default_rng(0)
        pairs = [(who, *rng.choice(texts, 2, replace=False)) for who in range(people) for _ in range(each)]
        return [{"prompt": "p", "chosen": f"t{a}", "rejected": f"t{b}", "annotator_id": who} for who, a, b in pairs]

    def test_texts_that_everybody_judges_are_held_out_and_no_pair_is_lost(self):
        data = Dataset.from_list(self.everybody())
        train, held = split_by_text(data, 0.2, seed=0)
        assert len(train) + len(held) == len(data) and 0.1 < len(held) / len(data) < 0.3
        known = {*train["chosen"], *train["rejected"]}
        new = {*held["chosen"], *held["rejected"]} - known
        assert new and all({row["chosen"], row["rejected"]} & new for row in held)
        again, other = (split_by_text(data, 0.2, seed=seed)[1] for seed in (0, 1))
        assert list(again["chosen"]) == list(held["chosen"]) != list(other["chosen"])

    def test_nobody_is_lost(self):
        rows = self.everybody()
        rows += [{"prompt": "p", "chosen": f"t{i}", "rejected": "t79", "annotator_id": 100 + i} for i in range(79)]
        train, _ = split_by_text(Dataset.from_list(rows), 0.5, seed=0)
        assert {*train["annotator_id"]} == {row["annotator_id"] for row in rows}

    @pytest.mark.parametrize("alone", ["few texts", "texts of their own"])
    def test_elsewhere_pairs_are_dealt(self, alone):
        if alone == "few texts":
            rows = self.everybody(texts=40)
        else:
            rows = [row | {"prompt": str(n)} for n, row in enumerate(self.everybody())]
        data = Dataset.from_list(rows)
        for ours, theirs in zip(split_by_text(data, 0.2, seed=3), split_by_annotator(data, 0.2, seed=3), strict=True):
            assert ours.to_dict() == theirs.to_dict()

    def test_bad_fractions(self):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            split_by_text(Dataset.from_list(self.everybody()), 1.0, seed=0)
        assert split_by_text(Dataset.from_list(self.everybody()), 0.0, seed=0)[1] is None


def test_nothing_to_hold_out():
    data = preferences()
    train, heldout = split_by_annotator(data, 0.0, seed=0)
    assert heldout is None and len(train) == 4
    for fraction in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            split_by_annotator(data, fraction, seed=0)


def test_a_stream_is_read_to_its_end():
    rows = [{"chosen": "a", "rejected": "b", "annotator_id": i % 2} for i in range(5)]
    prepared = prepare_preferences(Dataset.from_list(rows).to_iterable_dataset(), num_components=2)
    assert prepared.to_list() == rows


@pytest.mark.parametrize(
    "value",
    [None, "", "  ", "nan", "NaN", "Nan", " NAN ", "None", "NULL", "<NA>", "NaT", float("nan"), ["ann"]],
)
def test_ids_that_name_nobody_are_refused(value):
    """Half of them come out of pandas: one export of missing values, and a crowd is one annotator."""
    others = [["bob"]] * 3 if isinstance(value, list) else [1.0] * 3 if isinstance(value, float) else ["bob"] * 3
    with pytest.raises(ValueError, match=r"Row 0 has no annotator \(worker is .*'nan', 'none', 'null'"):
        prepare_preferences(preferences(annotator_id=None, worker=[value, *others]), "worker")


@pytest.mark.parametrize("values", [["Nancy", "nano", "no one", "-"], [0, 1, 2, 3], [1.0, 2.0, 1.0, 3.0]])
def test_ids_that_only_look_like_nobody_pass(values):
    assert prepare_preferences(preferences(annotator_id=values))["annotator_id"] == values


def said(content, role="assistant", **more):
    return {"role": role, "content": content, **more}


def conversation(prompt=None, chosen=None, rejected=None):
    """Two rows of which the first is right; the second has what is given in place of what is right."""
    good = [said("Hi?", "user")], [said("Hi.")], [said("No.")]
    bad = [right if given is None else given for given, right in zip((prompt, chosen, rejected), good, strict=True)]
    return Dataset.from_dict(
        {
            **{name: [a, b] for name, a, b in zip(("prompt", "chosen", "rejected"), good, bad, strict=True)},
            "annotator_id": ["ann", "bob"],
        }
    )


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ({"chosen": []}, "Row 1 has chosen .*the list has no message"),
        ({"rejected": [{"content": "No."}]}, "Row 1 has rejected .*has no role"),
        ({"rejected": [said("No.", "")]}, "Row 1 has rejected .*has no role"),
        (
            {"chosen": [said("Hi.", "user")]},
            "Row 1 has chosen .*last message is of 'user', but must be",
        ),
        ({"chosen": [said("Hi."), said("And?", "user")]}, "Row 1 has chosen .*must be of 'assistant'"),
        ({"chosen": [said("")]}, "Row 1 has chosen .*the message of 'assistant' has no content"),
        ({"chosen": [said(" \n")]}, "Row 1 has chosen .*no content"),
        ({"chosen": [{"role": "assistant"}]}, "Row 1 has chosen .*no content"),
        ({"prompt": []}, "Row 1 has prompt .*the list has no message.*Without a prompt, give ''"),
        ({"prompt": [said("Hi?", "user"), said("Well")]}, "Row 1 has prompt .*must be of 'user' or 'tool'"),
        ({"prompt": [said("Be kind.", "system")]}, "Row 1 has prompt .*'system'"),
        ({"prompt": [said(" ", "user")]}, "Row 1 has prompt .*no content"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(faulty, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        prepare_preferences(conversation(**faulty))


def test_conversations_as_the_world_has_them_pass():
    call = [said("2+2?", "user"), said("", tool_calls=[{"name": "sum"}]), said("4", "tool")]
    rows = [
        {
            "prompt": [said("Be kind.", "system"), said("Hi?", "user")],
            "chosen": [said("Hi.")],
            "rejected": [said("No")],
        },
        {"prompt": call, "chosen": [said("Four.")], "rejected": [said("", tool_calls=[{"name": "sum"}])]},
        {"prompt": [said("a", "user"), said("b"), said("c", "user")], "chosen": [said("d")], "rejected": [said("e")]},
    ]
    assert len(prepare_preferences(Dataset.from_list([row | {"annotator_id": 1} for row in rows]))) == 3
    whole = [{"chosen": [said("q", "user"), said(x)], "rejected": [said("q", "user"), said("z")]} for x in "ab"]
    assert len(prepare_preferences(Dataset.from_list([row | {"annotator_id": 1} for row in whole]))) == 2


def test_forms_that_do_not_go_together_are_refused():
    text = {"prompt": "Hi?", "chosen": [said("Hi.")], "rejected": [said("No.")], "annotator_id": 1}
    with pytest.raises(ValueError, match=r"Row 0 has a prompt that is text, 'Hi\?', and chosen in messages"):
        prepare_preferences(Dataset.from_list([text]))
    with pytest.raises(ValueError, match="Row 0 has one reply as text and one in messages"):
        prepare_preferences(Dataset.from_list([{"chosen": "Hi.", "rejected": [said("No.")], "annotator_id": 1}]))
    with pytest.raises(ValueError, match="Row 1 has prompt None.*Without a prompt, give ''"):
        prepare_preferences(preferences(prompt=["p", None, "p", "p"]))
    assert len(prepare_preferences(preferences(prompt=["", " ", "p", "p"]))) == 4
    with pytest.raises(ValueError, match="Row 0 has margin '0.5'"):
        prepare_preferences(preferences(margin=["0.5"] * 4))
    with pytest.raises(TypeError, match="must be a `datasets.Dataset`, got list"):
        prepare_preferences(preferences().to_list())


def test_known_groups_of_an_export_with_gaps():
    data = preferences(group=["x", "nan", "x", None], kind=["none", " ", "none", "NaN"])
    assert known_groups(data, "group", 2) == {"ann": "x"}
    assert known_groups(data, "kind", 2) == {"ann": "none"}
    with pytest.raises(ValueError, match="group_column='annotator_id' names annotators"):
        known_groups(data, "annotator_id", 9)


def test_twenty_thousand_annotators_take_no_time():
    people, rows = 20_000, 40_000
    data = Dataset.from_dict(
        {
            "prompt": ["p"] * rows,
            "chosen": [f"c{i % 50}" for i in range(rows)],
            "rejected": [f"r{i % 10}" for i in range(rows)],
            "annotator_id": [f"a{i % people}" for i in range(rows)],
            "group": [f"g{i % people % 3}" for i in range(rows)],
        }
    )
    began = time.process_time()
    data = prepare_preferences(data)
    assert len(known_groups(data, "group", 3)) == people
    split_by_annotator(data, 0.5, seed=0)
    assert time.process_time() - began < 5
