# SPDX-License-Identifier: Apache-2.0
"""Prompt and reply become ids in one way: apart, with EOS if and only if the reply finished."""

import copy

import pytest
from tokenizers.processors import TemplateProcessing

from trl_maxmin.data.tokenization import encode_prompt, encode_reply, ensure_pad_token, same_vocabulary


CHAT = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


def words(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def with_bos(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def like_bert(tokenizer):
    ids = [("<bos>", tokenizer.bos_token_id), ("<unk>", tokenizer.unk_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <unk>", special_tokens=ids)
    return tokenizer


def test_finished_replies_end_with_eos_and_others_do_not(word_tokenizer):
    assert words(word_tokenizer, encode_reply(word_tokenizer, "the film", "is great")) == "the film is great <eos>"
    unfinished = encode_reply(word_tokenizer, "the film", "is great", finished=False)
    assert words(word_tokenizer, unfinished) == "the film is great"
    already = encode_reply(word_tokenizer, "the film", "is great <eos>")
    assert words(word_tokenizer, already) == "the film is great <eos>"


def test_an_empty_reply_is_a_lone_eos(word_tokenizer):
    assert words(word_tokenizer, encode_reply(word_tokenizer, "the film", "")) == "the film <eos>"


def test_bos_comes_once_and_only_before_the_prompt(word_tokenizer):
    tokenizer = with_bos(word_tokenizer)
    assert words(tokenizer, encode_prompt(tokenizer, "the film")) == "<bos> the film"
    assert words(tokenizer, encode_reply(tokenizer, "the film", "is great")) == "<bos> the film is great <eos>"


def test_an_encoder_frames_the_whole_text(word_tokenizer):
    tokenizer = like_bert(word_tokenizer)
    assert words(tokenizer, encode_reply(tokenizer, "the film", "is great")) == "<bos> the film is great <unk>"


def test_prompt_ids_begin_the_reply_ids(word_tokenizer):
    """What lets a trainer that has ids and a script that has text ask about the same sequence."""
    prompt = encode_prompt(word_tokenizer, "the film")
    assert encode_reply(word_tokenizer, "the film", "is great")[: len(prompt)] == prompt


class TestConversations:
    prompt = [{"role": "user", "content": "the film ?"}]

    def test_template_is_applied_with_its_generation_prompt(self, word_tokenizer):
        word_tokenizer.chat_template = CHAT
        assert words(word_tokenizer, encode_prompt(word_tokenizer, self.prompt)) == (
            "user : the film <unk> <eos> assistant :"
        )

    def test_messages_and_text_as_reply_agree(self, word_tokenizer):
        word_tokenizer.chat_template = CHAT
        reply = [{"role": "assistant", "content": "is great"}]
        as_messages = encode_reply(word_tokenizer, self.prompt, reply)
        as_text = encode_reply(word_tokenizer, self.prompt, "is great")
        assert as_messages == as_text
        assert words(word_tokenizer, as_messages).endswith("assistant : is great <eos>")

    def test_a_truncated_turn_is_not_closed(self, word_tokenizer):
        word_tokenizer.chat_template = CHAT
        reply = [{"role": "assistant", "content": "is great"}]
        assert words(word_tokenizer, encode_reply(word_tokenizer, self.prompt, reply, finished=False)).endswith(
            "assistant : is great"
        )

    def test_without_a_template_messages_are_refused(self, word_tokenizer):
        with pytest.raises(ValueError, match="no chat template"):
            encode_prompt(word_tokenizer, self.prompt)
        with pytest.raises(ValueError, match="no chat template"):
            encode_reply(word_tokenizer, "", [{"role": "assistant", "content": "x"}])


class TestPadToken:
    def test_a_distinct_pad_token_is_kept(self, word_tokenizer):
        assert ensure_pad_token(word_tokenizer) is False
        assert word_tokenizer.pad_token == "<pad>"

    def test_pad_equal_to_eos_is_replaced(self, word_tokenizer):
        word_tokenizer.pad_token = "<eos>"
        assert ensure_pad_token(word_tokenizer) is True
        assert word_tokenizer.pad_token_id not in (None, word_tokenizer.eos_token_id)

    def test_a_missing_pad_token_is_added(self, word_tokenizer_without_pad):
        size = len(word_tokenizer_without_pad)
        assert ensure_pad_token(word_tokenizer_without_pad) is True
        assert word_tokenizer_without_pad.pad_token_id == size


class TestSameVocabulary:
    def test_a_pad_token_more_is_the_same_language(self, word_tokenizer_without_pad):
        padded = copy.deepcopy(word_tokenizer_without_pad)
        ensure_pad_token(padded)
        assert same_vocabulary(word_tokenizer_without_pad, padded)
        assert same_vocabulary(padded, word_tokenizer_without_pad)
        assert same_vocabulary(None, padded)

    def test_other_ids_or_another_eos_are_not(self, word_tokenizer):
        other = copy.deepcopy(word_tokenizer)
        other.add_tokens([f"new{i}" for i in range(5)])
        assert not same_vocabulary(word_tokenizer, other)
        other_eos = copy.deepcopy(word_tokenizer)
        other_eos.eos_token = "<unk>"
        assert not same_vocabulary(word_tokenizer, other_eos)
