# SPDX-License-Identifier: Apache-2.0
"""Features of replies on which linear rewards are fitted in seconds: words and length, or a model's last state."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.texts import text_of
from ..functional.directions import principal_directions


if TYPE_CHECKING:
    from datasets import Dataset

    from ..trainer import MixtureRewardTrainer

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


def frozen_trainer(
    dataset: Dataset,
    model_name_or_path: str,
    folder: str,
    seed: int,
    batch_size: int = 32,
    pooling: str = "auto",
    **model_kwargs: Any,
) -> MixtureRewardTrainer:
    """The trainer that `reward --train_trunk false` has, so that the same pairs give the same features and folds.

    Args:
        dataset (`Dataset`): as [`prepare_preferences`] returns it; its column `row` numbers the rows.
        model_name_or_path (`str`): folder or Hub id of a model of a supported family.
        folder (`str`): for what the trainer may write.
        seed (`int`): of the split and of kernel features.
        batch_size (`int`, *optional*, defaults to 32): sequences of a forward.
        pooling (`str`, *optional*, defaults to `"auto"`): as in [`MixtureRewardConfig`].
        **model_kwargs: passed to `from_pretrained`.

    Raises:
        ValueError: an unsupported family, a model or tokenizer that is not there whole.
    """
    from ..trainer import MixtureRewardConfig, MixtureRewardTrainer

    model_kwargs.setdefault("argument", "`model_name_or_path`")
    args = MixtureRewardConfig(
        folder,
        num_components=1,
        train_trunk=False,
        pooling=pooling,
        e_step_batch_size=batch_size,
        seed=seed,
        model_init_kwargs=model_kwargs,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    return MixtureRewardTrainer(model_name_or_path, args, train_dataset=dataset)


def principal_features(features: np.ndarray) -> np.ndarray:
    """Leading principal directions of centred features, on one common scale so that `|psi|^2` is 1 on average per
    direction kept.

    Args:
        features (`np.ndarray` of shape `(N, D)`): any numbers.

    Returns:
        `np.ndarray` of shape `(N, d)`, d at most `MAX_DIRECTIONS`.

    Raises:
        ValueError: features that are the same in every row.
    """
    centred = np.asarray(features, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    directions, squares = principal_directions(torch.from_numpy(centred.T @ centred / len(centred)))
    return centred @ directions[:, -MAX_DIRECTIONS:].numpy() / np.sqrt(squares.mean().item())
