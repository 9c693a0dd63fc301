# SPDX-License-Identifier: Apache-2.0
"""Chat templates as the world has them, in small: how they open a reply, and what they write behind it."""

from tests.conftest import build_word_tokenizer


CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }}\n{{ m['content'] }} <|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant\n{% endif %}"
)
# A thinking model: the generation prompt says whether it may, and finished turns get an empty thought.
QWEN3 = (
    "{% if tools %}<|im_start|> system\n{{ tools | tojson }} <|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|> {{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }} <|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ bos_token if loop.first }} <|start_header_id|> {{ m['role'] }} <|end_header_id|>\n\n"
    "{{ m['content'] | trim }} <|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %} <|start_header_id|> assistant <|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %} <start_of_turn> {{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }} <end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %} <start_of_turn> model\n{% endif %}"
)
# Closes a turn with words: nothing stops a policy there but its tokenizer's EOS.
WORDS = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' long . ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)

#: name -> (template, its special tokens, the token that stops a reply, the tokenizer's EOS)
TEMPLATES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|im_end|>"),
    "qwen3": (QWEN3, ["<|im_start|>", "<|im_end|>", "<think>", "</think>"], "<|im_end|>", "<|im_end|>"),
    "qwen_base": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>", "<eos>"),
    "llama3": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>", "<eos>"),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>", "<eos>"),
    "words": (WORDS, [], "<eos>", "<eos>"),
}


def chat_tokenizer(name: str, reverse: bool = False):
    """A word-level tokenizer with one of [`TEMPLATES`]; with `reverse` every word has another id."""
    template, special, _, eos = TEMPLATES[name]
    tokenizer = build_word_tokenizer(reverse=reverse)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.eos_token = eos
    tokenizer.chat_template = template
    return tokenizer


def stop_of(tokenizer, name: str) -> int:
    """The token that ends a reply under a template."""
    return tokenizer.convert_tokens_to_ids(TEMPLATES[name][2])
