# SPDX-License-Identifier: Apache-2.0
"""One way from a prompt and its reply to the token ids that a reward component sees.

Reward training, scoring, assigning, the policy trainers, evaluation, the Space and its votes all come through here, so
that the same reply gets the same score from each of them. A reply is what a policy writes: behind the ids of the
prompt, with its generation prompt, come the reply's own tokens, and the token that stops it if and only if it
finished. Nothing follows, whatever a chat template writes behind a turn (a newline in ChatML); and the stop token of a
conversation is the template's, which need not be the tokenizer's EOS (Gemma, Llama 3).
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..reading import read_json


Prompt = str | list[dict[str, Any]]
#: What a chat template is given beside the messages: `tools`, and keywords such as `enable_thinking`.
ChatOptions = Mapping[str, Any]

PAD_TOKEN = "<|pad|>"
# Stands for a reply in a template. A single word, since templates strip what they are given.
_MARK = "MaxMinReply"


def chat_options(row: Mapping[str, Any], defaults: ChatOptions | None = None) -> dict[str, Any]:
    """What the chat template is given for a row of the data, by the columns that TRL reads.

    Args:
        row (`dict`): with `chat_template_kwargs` (`dict`) and `tools` (a list, or JSON text) where it has them.
        defaults (`dict`, *optional*): of the whole run; the row's own win.

    Returns:
        `dict`: for [`encode_prompt`] and [`encode_reply`].

    Example:

    >>> chat_options({"prompt": "Hi", "chat_template_kwargs": {"enable_thinking": False, "style": None}})
    {'enable_thinking': False}
    """
    tools = row.get("tools")
    tools = read_json(tools.encode(), name="the column `tools`") if isinstance(tools, str) else tools
    # Where rows have different keys, a table fills them up with None.
    own = {name: value for name, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
    return {**(defaults or {}), **own, **({"tools": tools} if tools else {})}


def asked(dataset: Any) -> list[tuple[Any, dict[str, Any]]]:
    """The prompt of each row of a data set, and what the chat template is given for it.

    Args:
        dataset (`Dataset`): with `prompt`, `tools` and `chat_template_kwargs` where it has them.

    Returns:
        `list[tuple]`: prompt (`None` without one) and options.
    """
    names = [name for name in ("prompt", "tools", "chat_template_kwargs") if name in dataset.column_names]
    if not names:
        return [(None, {})] * len(dataset)
    rows = (dict(zip(names, values, strict=True)) for values in zip(*(dataset[name] for name in names), strict=True))
    return [(row.get("prompt"), chat_options(row)) for row in rows]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    options: ChatOptions | None = None,
    max_length: int | None = None,
) -> list[int]:
    """Token ids of a prompt, ready for a reply to be appended.

    Args:
        tokenizer: the tokenizer of the model that reads the ids.
        prompt (`str` or `list[dict]`): plain text, or messages, to which the chat template with its generation prompt
            is applied.
        options (`dict`, *optional*): for the chat template, see [`chat_options`].
        max_length (`int`, *optional*): a longer prompt is cut, and its frame stays: text loses its beginning, but no
            leading special token; a conversation loses its oldest turns, each whole with what answered it, but not
            what the system said.

    Returns:
        `list[int]`: ids, with the tokenizer's own leading special tokens (BOS) and no trailing ones.

    Raises:
        ValueError: messages, and a tokenizer without a chat template; a last turn that is too long by itself.
    """
    if isinstance(prompt, str):
        ids = list(_frame(tokenizer)[0]) + tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return cut_ids(tokenizer, ids, max_length)
    ids = _ids(tokenizer, _rendered(tokenizer, prompt, options, add_generation_prompt=True))
    kept, turns = _system_turns(prompt)
    while max_length is not None and len(ids) > max_length:
        later = next((row for row, turn in enumerate(turns) if row and turn.get("role") == "user"), None)
        if later is None:
            raise ValueError(
                f"The last turn of a conversation has {len(ids)} tokens with its frame, but prompts may have "
                f"{max_length}: {str(turns)[:80]}. Older turns are dropped whole, but this one cannot be cut. Raise "
                "`max_prompt_length`, shorten the message, or leave the row out."
            )
        turns = turns[later:]
        ids = _ids(tokenizer, _rendered(tokenizer, [*kept, *turns], options, add_generation_prompt=True))
    return ids


def cut_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], max_length: int | None) -> list[int]:
    """Ids of a text without their beginning, behind the leading special tokens (BOS, `[CLS]`) that they came with:
    without BOS some models no longer read what follows.

    Args:
        tokenizer: that made the ids.
        ids (`list[int]`): of any length.
        max_length (`int`, *optional*): to keep, frame and all.

    Returns:
        `list[int]`: at most `max_length`, the last ones.

    Raises:
        ValueError: a limit that leaves no room behind the frame.

    Example:

    >>> from trl_maxmin.data.world import FilmReviewWorld
    >>> tokenizer = FilmReviewWorld(seed=0).tokenizer
    >>> cut_ids(tokenizer, [7, 8, 9], 2)
    [8, 9]
    """
    ids = list(ids)
    if max_length is None or len(ids) <= max_length:
        return ids
    head = list(_frame(tokenizer)[0])
    head = head if ids[: len(head)] == head else []
    if max_length <= len(head):
        raise ValueError(
            f"A limit of {max_length} tokens leaves no room behind the {len(head)} that every text begins with; set "
            f"`max_prompt_length` to at least {len(head) + 1}."
        )
    return head + ids[len(ids) - (max_length - len(head)) :]


def plain_messages(value: Any) -> Any:
    """Messages without keys that hold nothing: where rows have different keys, a table fills them up with `None`.

    Args:
        value: messages, or parts of one; text stays as it is.

    Example:

    >>> plain_messages([{"role": "user", "content": "Hi", "tool_calls": None}])
    [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(value, Mapping):
        return {name: plain_messages(part) for name, part in value.items() if part is not None}
    return [plain_messages(part) for part in value] if isinstance(value, list | tuple) else value


def _system_turns(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the system says at the beginning of a conversation, and the turns that follow."""
    count = next((row for row, turn in enumerate(messages) if turn.get("role") not in ("system", "developer")), 0)
    return list(messages[:count]), list(messages[count:])


def encode_reply(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt | None,
    completion: Prompt,
    finished: bool = True,
    options: ChatOptions | None = None,
) -> list[int]:
    """Token ids of a prompt together with its reply.

    Args:
        tokenizer: the tokenizer of the reward model.
        prompt (`str` or `list[dict]`, *optional*): text or messages. Without one, messages of the reply up to the last
            are the prompt (TRL's implicit prompt).
        completion (`str` or `list[dict]`): text, or messages where the prompt is messages; text may follow messages.
        finished (`bool`, defaults to `True`): whether the reply ended by itself. A finished reply ends with the token
            of [`stop_token`], a truncated one does not. Encoders frame the whole text with their own special tokens
            (`[CLS]`, `[SEP]`) in both cases.
        options (`dict`, *optional*): for the chat template, see [`chat_options`].

    Returns:
        `list[int]`: ids of prompt and reply.

    Raises:
        ValueError: messages, and a tokenizer without a chat template; a reply of messages to a prompt of text.

    Example:

    >>> from trl_maxmin.data.world import FilmReviewWorld
    >>> tokenizer = FilmReviewWorld(seed=0).tokenizer
    >>> encode_reply(tokenizer, "", "superb")[-1] == tokenizer.eos_token_id
    True
    >>> encode_reply(tokenizer, "", "superb", finished=False) == encode_reply(tokenizer, "", "superb")[:-1]
    True
    """
    if not prompt and not isinstance(completion, str) and len(completion) > 1:
        prompt, completion = completion[:-1], completion[-1:]
    if isinstance(prompt, str) and prompt and not isinstance(completion, str):
        raise ValueError(
            f"The reply is a list of messages, but its prompt is text ({prompt[:40]!r}). Give both as messages, or "
            "both as text."
        )
    conversational = not (isinstance(prompt or "", str) and isinstance(completion, str))
    end = stop_token(tokenizer, conversational, options)
    start = encode_prompt(tokenizer, prompt or "", options) if prompt or not conversational else []
    text = _content(completion)
    if text is None or (conversational and not prompt):
        ids = start + _turns(tokenizer, prompt or [], completion, end, options)
    else:
        ids = start + tokenizer(text, add_special_tokens=False)["input_ids"]
    if reads_frame(tokenizer):
        head, tail = map(list, _frame(tokenizer))
        return [*(head if ids[: len(head)] != head else []), *ids, *tail]
    # Exactly one stop token at the end of a finished reply, none at that of a truncated one.
    bare = ids[:-1] if len(ids) > len(start) and ids[-1] == end else ids
    return [*bare, end] if finished and end is not None else bare


def as_trained(
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: Prompt | None,
    completion_ids: Sequence[int],
    finished: bool,
    options: ChatOptions | None = None,
) -> list[int]:
    """Ids of a reply that a policy has sampled, with the ending that reward training knows.

    A policy may stop at one of several tokens. Reward training has seen one of them, and read at another a reward is
    arbitrary.

    Args:
        tokenizer (*optional*): the reward model's, of the policy's vocabulary. Without one ids stay as they are.
        prompt (`str` or `list[dict]`, *optional*): says whether this is a conversation. Where only its ids are known,
            the reply stays as it is.
        completion_ids (`Sequence[int]`): without padding; the last is the token that stopped the reply if it finished.
        finished (`bool`): whether it did.
        options (`dict`, *optional*): for the chat template, see [`chat_options`].

    Returns:
        `list[int]`: the same but for the last token.
    """
    ids = list(completion_ids)
    if tokenizer is None or prompt is None or not finished:
        return ids
    end = stop_token(tokenizer, not isinstance(prompt, str), options)
    return ids if end is None else [*ids[:-1], end]


def stop_token(
    tokenizer: PreTrainedTokenizerBase, conversational: bool = False, options: ChatOptions | None = None
) -> int | None:
    """The token that ends a finished reply.

    Args:
        tokenizer: of the model.
        conversational (`bool`): whether prompts are messages.
        options (`dict`, *optional*): for the chat template, see [`chat_options`].

    Returns:
        `int` or `None`: of a conversation, the first special token that the template writes behind a reply; otherwise,
        and where it writes none, the tokenizer's EOS.
    """
    if not conversational or not getattr(tokenizer, "chat_template", None):
        return tokenizer.eos_token_id
    given = json.dumps(dict(options or {}), sort_keys=True, default=str)
    eos, template = tokenizer.eos_token_id, str(tokenizer.chat_template)
    return _template_stop(tokenizer, _vocabulary(tokenizer), template, eos, given, _Unhashed(options))


def stop_tokens(
    tokenizer: PreTrainedTokenizerBase, own: int | Sequence[int] | None, conversational: bool
) -> list[int]:
    """Tokens at which a policy stops: those of its generation configuration, else its tokenizer's EOS; in a
    conversation also the one that closes a turn.

    Args:
        tokenizer: the policy's.
        own (`int` or `Sequence[int]`, *optional*): `eos_token_id` of its generation configuration.
        conversational (`bool`): whether prompts are messages.

    Returns:
        `list[int]`: maybe empty; every reply then runs to its full length.
    """
    own = tokenizer.eos_token_id if own is None else own
    found = [] if own is None else [own] if isinstance(own, int) else [int(token) for token in own]
    turn = stop_token(tokenizer, conversational)
    return found if turn is None or not conversational or turn in found else [*found, turn]


def reads_frame(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer is an encoder's, which frames a whole text (`[CLS] ... [SEP]`); EOS is no frame, though
    some decoders' tokenizers append it."""
    tail = _frame(tokenizer)[1]
    return bool(tail) and (tail != (tokenizer.eos_token_id,) or tail == (tokenizer.sep_token_id,))


def _content(completion: Prompt) -> str | None:
    """The text of a reply that is one plain turn; `None` where it is more (several turns, tool calls, images)."""
    if isinstance(completion, str):
        return completion
    filled = plain_messages(completion)
    if len(filled) != 1 or set(filled[0]) - {"role", "content", "name"}:
        return None
    content = filled[0].get("content", "")
    if isinstance(content, list):
        plain = len(content) == 1 and content[0].get("type") == "text"
        return content[0].get("text") if plain else None
    return content


def _turns(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, turns: Prompt, end: int | None, options: ChatOptions | None
) -> list[int]:
    """Ids of what a template makes of turns (tool calls and their results among them), up to the last stop token."""
    whole = _rendered(tokenizer, [*prompt, *turns], options)
    asked = _rendered(tokenizer, prompt, options, add_generation_prompt=True) if prompt else ""
    ids = _ids(tokenizer, whole[len(os.path.commonprefix([asked, whole])) :])
    return ids[: len(ids) - ids[::-1].index(end)] if end in ids else ids


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Prompt, options: ChatOptions | None, **kwargs: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"The data are conversational (lists of messages), but {type(tokenizer).__name__} has no chat template. "
            "Set `tokenizer.chat_template`, or give plain text."
        )
    # Some templates print a `None`.
    return tokenizer.apply_chat_template(plain_messages(messages), tokenize=False, **kwargs, **(options or {}))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class _Unhashed:
    """Carries the options of a template past the cache, whose key has their text."""

    def __init__(self, options: ChatOptions | None) -> None:
        self.options = options

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)


@lru_cache(maxsize=256)
def _template_stop(
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: tuple[Any, ...],
    template: str,
    eos: int | None,
    given: str,
    options: _Unhashed,
) -> int | None:
    for form in (str, lambda text: [{"type": "text", "text": text}]):
        turns = [{"role": "user", "content": form("?")}, {"role": "assistant", "content": form(_MARK)}]
        try:
            _, found, behind = _rendered(tokenizer, turns, options.options).rpartition(_MARK)
        except Exception:  # a template may raise whatever it likes, such as at text where it wants a list
            continue
        if found:
            return _first_special(tokenizer, _ids(tokenizer, behind), eos)
    return eos


def _first_special(tokenizer: PreTrainedTokenizerBase, ids: list[int], eos: int | None) -> int | None:
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}
    # Some tokenizers mark the end of a turn as an ordinary word of their own; others have their line breaks there.
    words = {token for token, entry in added.items() if entry.content.strip()}
    none = {tokenizer.unk_token_id, tokenizer.bos_token_id}
    return next((token for kind in (special - none, words - none) for token in ids if token in kind), eos)


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """What a script may change of a tokenizer after the first call, as a part of a cache's key."""
    names = ("bos_token_id", "eos_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "pad_token_id")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    processor = getattr(backend, "post_processor", None)
    return (
        *(getattr(tokenizer, name, None) for name in names),
        tuple(map(str, getattr(tokenizer, "extra_special_tokens", None) or ())),
        len(tokenizer),
        None if processor is None else repr(processor),
    )


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special tokens that a tokenizer puts before and after one text, such as `[BOS]`, or `[CLS]` and `[SEP]`."""
    names = ("add_bos_token", "add_eos_token")
    return _measured_frame(tokenizer, _vocabulary(tokenizer) + tuple(getattr(tokenizer, name, None) for name in names))


@lru_cache(maxsize=64)
def _measured_frame(
    tokenizer: PreTrainedTokenizerBase, settings: tuple[Any, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()


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
        `bool`: the same tokens with equal ids, and the same EOS. A pad token more, added for reward training, is the
        only difference that ids never show.
    """
    if tokenizer is None or other is None or tokenizer is other:
        return True
    if tokenizer.eos_token_id != other.eos_token_id:
        return False
    # Comparing 150,000 tokens takes longer than scoring a batch, so it is done once for two tokenizers as they are.
    stamp = _vocabulary_stamp(tokenizer), _vocabulary_stamp(other)
    known = _COMPARED.setdefault(tokenizer, weakref.WeakKeyDictionary())
    if other not in known or known[other][0] != stamp:
        known[other] = stamp, _compare_vocabularies(tokenizer, other)
    return known[other][1]


#: Tokenizer -> other -> (stamps of both, whether their vocabularies are the same).
_COMPARED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _vocabulary_stamp(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """What changes with a vocabulary, and costs nothing to look at."""
    return len(tokenizer), tokenizer.pad_token, id(getattr(tokenizer, "_tokenizer", None))


def _compare_vocabularies(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    small, large = sorted((tokenizer, other), key=len)
    few, many = small.get_vocab(), large.get_vocab()
    return few.items() <= many.items() and many.keys() - few.keys() <= {large.pad_token}
