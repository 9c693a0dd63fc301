# SPDX-License-Identifier: Apache-2.0
"""One way from text to the token ids that a reward component sees.

Reward training, `MixtureRewardModel.score` and the policy trainers all come through here, so that the same reply gets
the same score from each of them: prompt and reply are tokenised apart (the policy never merges a token across the
border), and the end-of-sequence token is present if and only if the reply finished.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase


Prompt = str | list[dict[str, Any]]

PAD_TOKEN = "<|pad|>"


@lru_cache(maxsize=64)
def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special tokens that a tokenizer puts before and after one text, such as `[BOS]`, or `[CLS]` and `[SEP]`."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, ready for a reply to be appended.

    Args:
        tokenizer: the tokenizer of the model that reads the ids.
        prompt (`str` or `list[dict]`): plain text, or messages, to which the chat template with its generation prompt
            is applied.

    Returns:
        `list[int]`: ids, with the tokenizer's own leading special tokens (BOS) and no trailing ones.

    Raises:
        ValueError: messages, and a tokenizer without a chat template.
    """
    if isinstance(prompt, str):
        return list(_frame(tokenizer)[0]) + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    _require_chat_template(tokenizer)
    return tokenizer.apply_chat_template(prompt, tokenize=True, return_dict=True, add_generation_prompt=True)[
        "input_ids"
    ]


def encode_reply(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Prompt, finished: bool = True
) -> list[int]:
    """Token ids of a prompt together with its reply.

    Args:
        tokenizer: the tokenizer of the reward model.
        prompt (`str` or `list[dict]`): text or messages.
        completion (`str` or `list[dict]`): text or messages, the same form as the prompt; text may follow messages.
        finished (`bool`, defaults to `True`): whether the reply ended by itself. A finished reply ends with EOS, a
            truncated one does not. Encoders frame the whole text with their own special tokens (`[CLS]`, `[SEP]`)
            in both cases.

    Returns:
        `list[int]`: ids of prompt and reply.

    Raises:
        ValueError: messages, and a tokenizer without a chat template.
    """
    if not isinstance(completion, str):
        _require_chat_template(tokenizer)
        messages = (prompt if not isinstance(prompt, str) else []) + completion
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        return ids if finished else _strip_end(ids, tokenizer)
    suffix = list(_frame(tokenizer)[1])
    ids = encode_prompt(tokenizer, prompt) + tokenizer(completion, add_special_tokens=False)["input_ids"]
    if suffix:
        return ids + suffix
    eos = tokenizer.eos_token_id
    if finished and eos is not None and (not ids or ids[-1] != eos):
        ids = ids + [eos]
    return ids


def _strip_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A chat template closes every turn; a truncated turn was not closed."""
    last = max((i for i, token in enumerate(ids) if token == tokenizer.eos_token_id), default=None)
    return ids if last is None else ids[:last]


def _require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"The data are conversational (lists of messages), but {type(tokenizer).__name__} has no chat template. "
            "Set `tokenizer.chat_template`, or give plain text."
        )


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give a tokenizer a padding token of its own.

    A plain sequence-classification model reads its score at the last token that is not the pad token. Where pad and
    EOS are the same token it would read the token before EOS, so such a tokenizer gets a new token.

    Args:
        tokenizer: changed in place.

    Returns:
        `bool`: whether a token was added; the model's embedding must then be resized to `len(tokenizer)`.

    Example:

    >>> from trl_maxmin.data.world import FilmReviewWorld
    >>> ensure_pad_token(FilmReviewWorld(seed=0).tokenizer)
    False
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return False
    before = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return len(tokenizer) > before


def same_vocabulary(tokenizer: PreTrainedTokenizerBase | None, other: PreTrainedTokenizerBase | None) -> bool:
    """Whether ids of the first tokenizer mean the same in the second, so that ids may be passed on as they are.

    Args:
        tokenizer, other: two tokenizers; `None` counts as the same, since nothing says otherwise.

    Returns:
        `bool`: the smaller vocabulary is part of the larger one with equal ids, and both end with the same EOS.
    """
    if tokenizer is None or other is None or tokenizer is other:
        return True
    if tokenizer.eos_token_id != other.eos_token_id:
        return False
    small, large = sorted((tokenizer.get_vocab(), other.get_vocab()), key=len)
    # A pad token added for reward training is the only difference that ids never show.
    return len(large) - len(small) <= 2 and small.items() <= large.items()
