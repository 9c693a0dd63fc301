# SPDX-License-Identifier: Apache-2.0
"""The column contract: what is accepted, what is refused with which words, and what is held out."""

import logging
from collections import Counter

import pytest
from datasets import Dataset

from trl_maxmin.data.columns import AnnotatorIndex, prepare_preferences, share_of_familiar_pairs, split_by_annotator


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
