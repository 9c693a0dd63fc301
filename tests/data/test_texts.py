# SPDX-License-Identifier: Apache-2.0
"""Numbers of texts: words, prompts and messages decide, never the object."""

from datasets import Dataset

from trl_maxmin.data.texts import distinct_texts, number_values, prompts_of


def test_the_same_words_in_reply_to_another_prompt_are_another_text():
    texts, rows = distinct_texts(["p", "p", "q"], ["a", "b", "a"], ["b", "a", "c"])
    assert texts == [("p", "a"), ("p", "b"), ("q", "a"), ("q", "c")]
    assert rows.tolist() == [[0, 1], [1, 0], [2, 3]]


def test_messages_are_compared_by_what_they_say():
    def say(text):
        return [{"role": "assistant", "content": text}]

    texts, rows = distinct_texts([say("p"), say("p")], [say("a"), say("a")])
    assert texts == [(say("p"), say("a"))] and rows.tolist() == [[0], [0]]


def test_no_pairs():
    assert distinct_texts([], [], [])[1].shape == (0, 2)


def test_numbers_go_on_where_they_stopped():
    numbers = {}
    assert number_values("aba", numbers) == [0, 1, 0] and number_values("cb", numbers) == [2, 1]


def test_data_without_prompts():
    assert prompts_of(Dataset.from_dict({"chosen": ["a", "b"]})) == ["", ""]
