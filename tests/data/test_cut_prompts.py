# SPDX-License-Identifier: Apache-2.0
"""A cut prompt keeps its frame; what holds nothing says nothing; caches notice what becomes of a tokenizer."""

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from tests.chat_templates import TEMPLATES, chat_tokenizer
from trl_maxmin.data.columns import prepare_preferences
from trl_maxmin.data.texts import distinct_texts
from trl_maxmin.data.tokenization import cut_ids, encode_prompt, encode_reply, stop_token
from trl_maxmin.trainer.ppo.prompts import PromptReader
from trl_maxmin.trainer.scoring.reference_statistics import prompt_key


def say(role, content, **more):
    return {"role": role, "content": content, **more}


TALK = [
    say("system", "good"),
    say("user", "the film"),
    say("assistant", "a movie story"),
    say("user", "plot of the film"),
    say("assistant", "long"),
    say("user", "acting"),
]


def with_bos(tokenizer):
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def test_text_keeps_its_leading_token(word_tokenizer):
    plain = word_tokenizer("the film a movie story")["input_ids"]
    assert encode_prompt(word_tokenizer, "the film a movie story", max_length=2) == plain[-2:]
    tokenizer = with_bos(word_tokenizer)
    bos = tokenizer.bos_token_id
    assert encode_prompt(tokenizer, "the film a movie story", max_length=3) == [bos, *plain[-2:]]
    assert encode_prompt(tokenizer, "the film a movie story", max_length=6) == [bos, *plain]
    assert cut_ids(tokenizer, [bos, *plain], 3) == [bos, *plain[-2:]]
    assert cut_ids(tokenizer, plain, 3) == plain[-3:], "ids that came without it stay without"
    with pytest.raises(ValueError, match="at least 2"):
        encode_prompt(tokenizer, "the film", max_length=1)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_loses_whole_turns(name):
    tokenizer = chat_tokenizer(name)
    options = [TALK, [TALK[0], *TALK[3:]], [TALK[0], TALK[5]]]
    whole = [
        tokenizer(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
            add_special_tokens=False,
        )["input_ids"]
        for messages in options
    ]
    for expected in whole:
        for spare in (0, 1):
            assert encode_prompt(tokenizer, TALK, max_length=len(expected) + spare) == expected
    with pytest.raises(ValueError, match="cannot be cut.*max_prompt_length"):
        encode_prompt(tokenizer, TALK, max_length=len(whole[-1]) - 1)


def test_the_reader_of_prompts_cuts_likewise_and_names_the_row(word_tokenizer):
    tokenizer = with_bos(word_tokenizer)
    read = PromptReader(tokenizer, max_prompt_length=3)
    plain = tokenizer("the film a movie", add_special_tokens=False)["input_ids"]
    expected = [tokenizer.bos_token_id, *plain[-2:]]
    assert read({"prompt": "the film a movie"}) == expected
    assert read({"input_ids": [tokenizer.bos_token_id, *plain]}) == expected
    chat = PromptReader(chat_tokenizer("gemma"), max_prompt_length=3)
    with pytest.raises(ValueError, match="Row 0 of the training set.*cannot be cut"):
        chat.check(Dataset.from_list([{"prompt": TALK}]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_keys_that_hold_nothing_make_no_other_prompt(name):
    filled = [say("user", "the film", tool_calls=None, name=None)]
    bare = [say("user", "the film")]
    parts = [say("user", [{"type": "text", "text": "the film", "image": None}])]
    assert prompt_key(filled) == prompt_key(bare) != prompt_key([say("user", "a film")])
    assert prompt_key(parts) == prompt_key([say("user", [{"type": "text", "text": "the film"}])])
    assert len(distinct_texts([filled, bare], ["a", "a"])[0]) == 1
    tokenizer = chat_tokenizer(name)
    assert encode_prompt(tokenizer, filled) == encode_prompt(tokenizer, bare)


def test_replies_that_differ_in_nothing_but_such_keys_are_ties():
    rows = [
        {"chosen": [say("assistant", "a", name=None)], "rejected": [say("assistant", "a")]},
        {"chosen": [say("assistant", "a")], "rejected": [say("assistant", "b")]},
    ]
    kept = prepare_preferences(Dataset.from_list([row | {"prompt": "", "annotator_id": "ann"} for row in rows]))
    assert len(kept) == 1


def test_caches_know_what_the_tokenizer_was(word_tokenizer):
    film = word_tokenizer("film")["input_ids"]
    assert encode_prompt(word_tokenizer, "film") == film
    with_bos(word_tokenizer)
    assert encode_prompt(word_tokenizer, "film") == [word_tokenizer.bos_token_id, *film]

    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<stop>")
    assert stop_token(tokenizer, True) == tokenizer.eos_token_id, "an unknown word stops nothing"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<stop>"]})
    stop = tokenizer.convert_tokens_to_ids("<stop>")
    assert stop_token(tokenizer, True) == stop
    reply = encode_reply(tokenizer, [say("user", "film")], [say("assistant", "good")])
    assert reply[-1] == stop
