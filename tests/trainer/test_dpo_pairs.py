# SPDX-License-Identifier: Apache-2.0
"""The ids of pairs: the prompt as the policy is given it, and the reply up to what stops it."""

import pytest
from datasets import Dataset

from tests.chat_templates import TEMPLATES, chat_tokenizer
from trl_maxmin import MaxMinDPOConfig
from trl_maxmin.trainer.dpo.pairs import prepare_pairs, tokenize_pairs


@pytest.fixture
def config(tmp_path):
    def build(**settings):
        return MaxMinDPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)

    return build


def pairs(prompt, chosen, rejected):
    return Dataset.from_list([{"prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator_id": "ann"}])


def test_a_text_begins_where_the_prompt_ends_whatever_would_merge(config, word_tokenizer):
    class Merging(type(word_tokenizer)):
        """As BPE does with some words: ":good" is one token, ":" and "good" are two."""

        def __call__(self, text, **kwargs):
            return super().__call__(text.replace(":good", "story"), **kwargs)

    word_tokenizer.__class__ = Merging
    tokenized = tokenize_pairs(pairs("film :", "good acting", "bad"), word_tokenizer, config())[0]
    word = word_tokenizer.convert_tokens_to_ids
    assert tokenized["prompt_ids"] == word_tokenizer("film :", add_special_tokens=False)["input_ids"]
    assert tokenized["chosen_ids"] == [word("good"), word("acting"), word_tokenizer.eos_token_id]
    assert tokenized["rejected_ids"] == [word("bad"), word_tokenizer.eos_token_id]


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_turn_ends_with_what_stops_it_and_nothing_behind(name, config):
    tokenizer = chat_tokenizer(name)
    prompt = [{"role": "user", "content": "film"}]
    given = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    replies = ([{"role": "assistant", "content": text}] for text in ("good acting", "bad"))
    tokenized = tokenize_pairs(pairs(prompt, *replies), tokenizer, config())[0]
    stop = tokenizer.convert_tokens_to_ids(TEMPLATES[name][2])
    assert tokenized["prompt_ids"] == given[: len(tokenized["prompt_ids"])] and len(tokenized["prompt_ids"]) > 2
    for side in ("chosen_ids", "rejected_ids"):
        assert tokenized[side][-1] == stop and stop not in tokenized[side][:-1]
    implicit = Dataset.from_list(
        [
            {"chosen": [*prompt, {"role": "assistant", "content": "good acting"}], "annotator_id": "ann"}
            | {"rejected": [*prompt, {"role": "assistant", "content": "bad"}]}
        ]
    )
    found = tokenize_pairs(implicit, tokenizer, config())[0]
    assert all(found[key] == tokenized[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids"))


def test_without_a_prompt_both_replies_share_their_beginning(config, word_tokenizer):
    rows = Dataset.from_list([{"chosen": "the film good", "rejected": "the film bad", "annotator_id": "ann"}])
    tokenized = tokenize_pairs(rows, word_tokenizer, config())[0]
    assert len(tokenized["prompt_ids"]) == 2 and len(tokenized["chosen_ids"]) == len(tokenized["rejected_ids"]) == 2


def test_prompts_that_leave_no_room_are_left_out_and_said(config, word_tokenizer, caplog):
    rows = pairs("the film plot story", "good", "bad").to_list() + pairs("film", "good", "bad").to_list()
    kept = tokenize_pairs(Dataset.from_list(rows), word_tokenizer, config(max_length=4))
    assert len(kept) == 1 and "1 of 2 pairs of the train data were left out" in caplog.text
    assert len(tokenize_pairs(Dataset.from_list(rows), word_tokenizer, config(max_length=None))) == 2
    with pytest.raises(ValueError, match="Every prompt of the train data has max_length=1"):
        tokenize_pairs(Dataset.from_list(rows), word_tokenizer, config(max_length=1))


def test_replies_that_are_the_same_tokens_are_refused(config, word_tokenizer):
    with pytest.raises(ValueError, match="`chosen` equals `rejected` once they are tokenised"):
        tokenize_pairs(pairs("film", "good", "good "), word_tokenizer, config())


def test_rows_without_annotators_where_groups_are_known(config):
    rows = Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b", "group": "g"}] * 2)
    assert prepare_pairs(rows, config(group_column="group"))["annotator_id"] == ["pair-0", "pair-1"]
