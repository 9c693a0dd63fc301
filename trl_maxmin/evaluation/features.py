# SPDX-License-Identifier: Apache-2.0
"""Features of replies on which linear rewards are fitted in seconds: words and length, or a model's last state."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..data.texts import text_of
from ..functional.directions import principal_directions


MAX_DIRECTIONS = 128
_WORD = re.compile(r"\w+|[^\w\s]")


def word_features(replies: Sequence[str | list[dict[str, Any]]], num_words: int = 500) -> np.ndarray:
    """Counts of the most frequent words and signs, and the length: what can be known without any model.

    Args:
        replies (`Sequence` of length N): text or messages.
        num_words (`int`, *optional*, defaults to 500): size of the vocabulary, taken from these replies.

    Returns:
        `np.ndarray` of shape `(N, D)`: counts, number of words, and number of characters over 6.

    Raises:
        ValueError: no replies, or only empty ones.

    Example:

    >>> word_features(["a good film", "good good"], num_words=2).tolist()
    [[1.0, 1.0, 3.0, 1.8333333333333333], [2.0, 0.0, 2.0, 1.5]]
    """
    words = [_WORD.findall(text_of(reply).lower()) for reply in replies]
    frequency = Counter(word for reply in words for word in reply)
    if not frequency:
        raise ValueError(f"None of the {len(words)} replies holds a word; check the columns `chosen` and `rejected`.")
    # Ties in frequency by the word itself: the same data in another order give the same features.
    vocabulary = [word for word, _ in sorted(frequency.items(), key=lambda item: (-item[1], item[0]))][:num_words]
    column = {word: index for index, word in enumerate(vocabulary)}
    features = np.zeros((len(words), len(column) + 2))
    for row, reply in enumerate(words):
        for word in reply:
            if word in column:
                features[row, column[word]] += 1
        features[row, -2], features[row, -1] = len(reply), len(text_of(replies[row])) / 6
    return features


def model_features(
    model_name_or_path: str,
    prompts: Sequence[Any],
    replies: Sequence[Any],
    batch_size: int = 32,
    device: str | torch.device | None = None,
    max_length: int | None = None,
    **model_kwargs: Any,
) -> np.ndarray:
    """Last hidden state of a frozen language model (or encoder) at the end of each reply.

    Args:
        model_name_or_path (`str`): folder or Hub id of a model of a supported family.
        prompts, replies (`Sequence` of length N): text or messages.
        batch_size (`int`, *optional*, defaults to 32): sequences a forward.
        device (`str` or `torch.device`, *optional*): default: a GPU where there is one.
        max_length (`int`, *optional*): longer sequences lose their beginning. Default: what the model reads.
        **model_kwargs: passed to `from_pretrained`.

    Returns:
        `np.ndarray` of shape `(N, D)`, float32.

    Raises:
        ValueError: an unsupported family, a model or tokenizer that is not there whole, or as the tokenizer.
    """
    from ..data.tokenization import encode_reply
    from ..models import MixtureRewardModel
    from ..models.base import context_length
    from ..models.scoring import pad_sequences

    model_kwargs.setdefault("argument", "`model_name_or_path`")
    mixture = MixtureRewardModel.from_base(model_name_or_path, num_components=1, **model_kwargs).eval()
    mixture.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    limit = max_length or context_length(mixture.config.base_config) or 4096
    sequences = [
        encode_reply(mixture.processing_class, prompt, reply)[-limit:]
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    features: list[np.ndarray] = [np.empty(0)] * len(sequences)
    pad_token_id = mixture.config.get_text_config().pad_token_id or 0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        input_ids, mask = pad_sequences([sequences[row] for row in rows], pad_token_id)
        with torch.no_grad():
            states = mixture.features(input_ids.to(mixture.device), mask.to(mixture.device))[:, 0]
        for row, state in zip(rows, states.float().cpu().numpy(), strict=True):
            features[row] = state
    return np.stack(features)


def principal_features(features: np.ndarray, max_directions: int = MAX_DIRECTIONS) -> np.ndarray:
    """Leading principal directions of centred features, on one common scale so that `|psi|^2` is 1 on average per
    direction kept.

    Args:
        features (`np.ndarray` of shape `(N, D)`): any numbers.
        max_directions (`int`, *optional*): most directions to keep.

    Returns:
        `np.ndarray` of shape `(N, d)`, d at most `max_directions`.

    Raises:
        ValueError: features that are the same in every row.
    """
    centred = np.asarray(features, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    directions, squares = principal_directions(torch.from_numpy(centred.T @ centred / len(centred)))
    return centred @ directions[:, -max_directions:].numpy() / np.sqrt(squares.mean().item())
