# SPDX-License-Identifier: Apache-2.0
"""The IMDb reviews: reading them, cutting openings out of them, and the prompts."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import load_dataset
from imdb_options import find_folder
from transformers import PreTrainedTokenizerBase


HUB_ID = "stanfordnlp/imdb"
PROMPT_TOKENS = range(2, 9)
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}
_LABELS = {"pos": 1, "neg": 0, 1: 1, 0: 0}
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+")
_HEAD_CHARACTERS = 1000


@dataclass(frozen=True)
class Reviews:
    """Texts of the three splits, and whether the labelled ones are positive (1) or not (0)."""

    train: list[str]
    train_labels: list[int]
    test: list[str]
    test_labels: list[int]
    unlabelled: list[str]

    @property
    def for_training(self) -> list[str]:
        """What the policy may read: everything but the test split, without labels."""
        return self.train + self.unlabelled


def load_reviews(data_dir: str) -> Reviews:
    """Read a data folder or a set of the Hub.

    Args:
        data_dir (`str`): a folder with `*labelled*.jsonl` (rows with `split`, `label`, `text`) and optionally
            `*unsup*.jsonl` (`text`), plain or compressed by gzip or xz; relative to the working directory or to the
            repository. Or a Hub id with the columns of `stanfordnlp/imdb`.

    Raises:
        FileNotFoundError: there is no such folder, or no labelled reviews in it.
    """
    folder = find_folder(data_dir)
    if folder is not None:
        return _from_folder(folder)
    if re.fullmatch(r"[\w-]+/[\w.-]+", data_dir):
        return _from_hub(data_dir)
    raise FileNotFoundError(
        f"There is no folder {data_dir} with IMDb reviews. The set is `{HUB_ID}` on the Hub: pass "
        f"`--data_dir {HUB_ID}` to fetch it from there, or `--data_dir FOLDER` with a file "
        "`imdb_labelled_50k.jsonl.xz` (one JSON object a line with `split`, `label` and `text`)."
    )


def _from_folder(folder: Path) -> Reviews:
    labelled = sorted(folder.glob("*labelled*.jsonl*"))
    if not labelled:
        raise FileNotFoundError(
            f"{folder} has no file *labelled*.jsonl[.gz|.xz]. Pass `--data_dir` with the folder of the reviews, or "
            f"`--data_dir {HUB_ID}` to take them from the Hub."
        )
    rows = {"train": [], "test": []}
    for row in (row for path in labelled for row in _read_lines(path)):
        rows[row["split"]].append((clean(row["text"]), _LABELS[row["label"]]))
    unlabelled = [clean(row["text"]) for path in sorted(folder.glob("*unsup*.jsonl*")) for row in _read_lines(path)]
    return _reviews(rows["train"], rows["test"], unlabelled)


def _from_hub(name: str) -> Reviews:
    data = load_dataset(name)
    pairs = {split: [(clean(row["text"]), row["label"]) for row in data[split]] for split in data}
    return _reviews(pairs["train"], pairs["test"], [text for text, _ in pairs.get("unsupervised", [])])


def _reviews(train: list[tuple[str, int]], test: list[tuple[str, int]], unlabelled: list[str]) -> Reviews:
    return Reviews(
        [t for t, _ in train], [y for _, y in train], [t for t, _ in test], [y for _, y in test], unlabelled
    )


def _read_lines(path: Path) -> Iterator[dict]:
    # Bytes, not text: a text file splits its lines at \n only by chance of how it was opened, and reviews hold U+2028.
    with _OPENERS.get(path.suffix, open)(path, "rb") as file:
        for line in file:
            yield json.loads(line)


def clean(text: str) -> str:
    """Without line-break tags, and with single spaces."""
    return " ".join(re.sub(r"<br\s*/?>", " ", text).split())


def pieces(text: str, max_words: int, count: int) -> list[str]:
    """The first pieces of a review: whole sentences of together at most `max_words` words (a longer one is cut)."""
    result: list[str] = []
    current: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        words = sentence.split()
        if current and len(current) + len(words) > max_words:
            result.append(" ".join(current))
            current = []
        current = (current + words)[:max_words]
        if len(result) == count:
            return result
    return [*result, " ".join(current)] if current else result


def openings(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int, rng: np.random.Generator
) -> list[list[int]]:
    """Token ids of the beginnings of reviews, each cut at the end of a sentence.

    Args:
        texts (`Sequence[str]`): N reviews.
        tokenizer: of the policy.
        max_tokens (`int`): most tokens of an opening.
        rng (`np.random.Generator`): chooses among the sentence ends that fit, so that lengths vary.

    Returns:
        At most N lists of ids without special tokens; a review whose first sentence is too long is left out.
    """
    split = [_SENTENCE_END.split(text[:_HEAD_CHARACTERS]) for text in texts]
    # The last sentence of what was cut off is not a whole one.
    split = [s[:-1] if len(text) > _HEAD_CHARACTERS else s for s, text in zip(split, texts, strict=True)]
    flat = [(" " if number else "") + sentence for sentences in split for number, sentence in enumerate(sentences)]
    tokens = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    result = []
    for sentences in split:
        ids: list[int] = []
        ends = [len(ids) for _ in sentences if len(ids := ids + next(tokens)) <= max_tokens]
        if ends:
            result.append(ids[: rng.choice(ends)])
    return result


def prompts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    rng: np.random.Generator,
    exclude: Sequence[str] = (),
) -> list[str]:
    """Distinct prompts: the first 2 to 8 tokens of reviews, cut where a word ends.

    Args:
        texts (`Sequence[str]`): reviews, more than `count`.
        tokenizer: of the policy.
        count (`int`): prompts wanted.
        rng (`np.random.Generator`): chooses reviews and lengths.
        exclude (`Sequence[str]`): prompts that must not occur.

    Returns:
        `list[str]` of at most `count` prompts that the tokenizer reads back as the same tokens.
    """
    found: dict[str, None] = {}
    excluded = set(exclude)
    for row in rng.permutation(len(texts)):
        ids = tokenizer(texts[row][:200], add_special_tokens=False)["input_ids"]
        word_ends = [n for n in PROMPT_TOKENS if n < len(ids) and tokenizer.decode([ids[n]]).startswith(" ")]
        if not word_ends:
            continue
        ids = ids[: rng.choice(word_ends)]
        text = tokenizer.decode(ids)
        if text not in excluded and tokenizer(text, add_special_tokens=False)["input_ids"] == ids:
            found[text] = None
        if len(found) == count:
            break
    return list(found)
