# SPDX-License-Identifier: Apache-2.0
"""A reply ends at its stop token, whatever a chat template writes behind it."""

from pathlib import Path

import pytest
import trl
from tokenizers.processors import TemplateProcessing

from tests.chat_templates import CHATML, TEMPLATES, chat_tokenizer, stop_of
from tests.conftest import build_word_tokenizer
from trl_maxmin.data.tokenization import (
    as_trained,
    chat_options,
    encode_prompt,
    encode_reply,
    stop_token,
    stop_tokens,
)


USER = [{"role": "user", "content": "the film"}]
REPLY = [{"role": "assistant", "content": "great superb"}]


def content_ids(tokenizer, text="great superb"):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
class TestTemplates:
    def test_a_reply_is_the_policys_prompt_its_own_tokens_and_the_stop_token(self, name):
        tokenizer = chat_tokenizer(name)
        expected = [*encode_prompt(tokenizer, USER), *content_ids(tokenizer), stop_of(tokenizer, name)]
        assert encode_reply(tokenizer, USER, REPLY) == expected
        assert encode_reply(tokenizer, USER, "great superb") == expected, "text after messages"
        assert encode_reply(tokenizer, None, USER + REPLY) == expected, "TRL's implicit prompt"
        assert encode_reply(tokenizer, USER, [REPLY[0] | {"tool_calls": None}]) == expected, "filled up by a table"
        blocks = [{"role": "assistant", "content": [{"type": "text", "text": "great superb"}]}]
        assert encode_reply(tokenizer, USER, blocks) == expected

    def test_a_truncated_reply_has_no_stop_token(self, name):
        tokenizer = chat_tokenizer(name)
        for reply in (REPLY, "great superb"):
            cut = encode_reply(tokenizer, USER, reply, finished=False)
            assert cut == encode_reply(tokenizer, USER, reply)[:-1]

    def test_ids_of_a_policy_end_as_in_training(self, name):
        tokenizer = chat_tokenizer(name)
        for stop in {stop_of(tokenizer, name), tokenizer.eos_token_id}:
            ids = [*content_ids(tokenizer), stop]
            trained = as_trained(tokenizer, USER, ids, True)
            assert [*encode_prompt(tokenizer, USER), *trained] == encode_reply(tokenizer, USER, REPLY)
        assert as_trained(tokenizer, USER, content_ids(tokenizer), False) == content_ids(tokenizer)
        assert as_trained(tokenizer, None, [7, 9], True) == [7, 9], "ids alone do not say whether it was a chat"

    def test_a_policy_stops_where_a_turn_is_closed(self, name):
        tokenizer = chat_tokenizer(name)
        assert stop_of(tokenizer, name) in stop_tokens(tokenizer, None, conversational=True)
        assert stop_tokens(tokenizer, [5, 6], conversational=True)[:2] == [5, 6]
        assert stop_tokens(tokenizer, None, conversational=False) == [tokenizer.eos_token_id]


def test_text_ends_with_eos_though_there_is_a_template():
    tokenizer = chat_tokenizer("gemma")
    assert encode_reply(tokenizer, "the film", "great")[-1] == tokenizer.eos_token_id
    assert stop_token(tokenizer) == tokenizer.eos_token_id


def test_options_of_the_template_reach_prompt_and_reply():
    tokenizer = chat_tokenizer("qwen3")
    options = chat_options({"chat_template_kwargs": {"enable_thinking": False}})
    think = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert encode_prompt(tokenizer, USER, options) == encode_prompt(tokenizer, USER) + think
    assert encode_reply(tokenizer, USER, REPLY, True, options)[: -len(content_ids(tokenizer)) - 1] == encode_prompt(
        tokenizer, USER, options
    )
    tools = [{"type": "function", "function": {"name": "film"}}]
    with_tools = chat_options({"tools": tools}, {"enable_thinking": False})
    assert len(encode_prompt(tokenizer, USER, with_tools)) > len(encode_prompt(tokenizer, USER, options))
    as_json = chat_options({"tools": '[{"type": "function", "function": {"name": "film"}}]'})
    assert as_json == {"tools": tools}


def test_turns_of_tools_are_kept_up_to_the_last_stop_token():
    tokenizer = chat_tokenizer("chatml")
    turns = [REPLY[0] | {"name": "a"}, {"role": "user", "content": "long"}, {"role": "assistant", "content": "good"}]
    ids = encode_reply(tokenizer, USER, turns)
    assert (
        tokenizer.decode(ids).split()
        == (
            "<|im_start|> user the film <|im_end|> <|im_start|> assistant great superb <|im_end|> "
            "<|im_start|> user long <|im_end|> <|im_start|> assistant good <|im_end|>"
        ).split()
    )
    assert encode_reply(tokenizer, USER, turns, finished=False) == ids[:-1]


def test_a_changed_template_is_read_anew():
    tokenizer = chat_tokenizer("words")
    assert stop_token(tokenizer, True) == tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    assert stop_token(tokenizer, True) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_decoders_tokenizer_that_appends_eos_does_not_finish_a_truncated_reply():
    tokenizer = build_word_tokenizer()
    special = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    whole = encode_reply(tokenizer, "the film", "great")
    assert tokenizer.convert_ids_to_tokens(whole) == ["<bos>", "the", "film", "great", "<eos>"]
    assert encode_reply(tokenizer, "the film", "great", finished=False) == whole[:-1]


def test_messages_that_answer_text_are_refused():
    with pytest.raises(ValueError, match="reply is a list of messages, but its prompt is text .'the film'.*both as"):
        encode_reply(chat_tokenizer("chatml"), "the film", REPLY)


SHIPPED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_templates_that_trl_ships(path):
    """Nothing stands behind the stop token, and what is behind the prompt is the reply's text and it."""
    tokenizer = build_word_tokenizer()
    names = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "</s>", "<|END_OF_TURN_TOKEN|>"]
    names += [
        "<｜end▁of▁sentence｜>",
        "<|return|>",
        "<end_of_utterance>",
        "<|im_start|>",
        "<|user|>",
        "<|observation|>",
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    try:
        prompt = encode_prompt(tokenizer, USER)
    except Exception as error:  # such as a template that wants images or a date
        pytest.skip(f"it does not render text: {error}")
    ids = encode_reply(tokenizer, USER, REPLY)
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) : -1] == content_ids(tokenizer)
    # Read off what the template itself writes behind the answer: its first special token, else EOS.
    blocks = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in USER + REPLY]
    try:
        text = tokenizer.apply_chat_template(USER + REPLY, tokenize=False)
    except Exception:  # of pictures and text
        text = ""
    text = text if "great superb" in text else tokenizer.apply_chat_template(blocks, tokenize=False)
    behind = text.rpartition("great superb")[2]
    first = min((name for name in [*names, "<eos>"] if name in behind), key=behind.index, default="<eos>")
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == first
