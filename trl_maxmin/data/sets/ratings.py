# SPDX-License-Identifier: Apache-2.0
"""Scores of single texts by named people, as comparisons: any table of ratings, and DICES.

DICES (`google-research-datasets/dices-dataset`, files `diverse_safety_adversarial_dialog_350.csv` and `_990.csv`) has
`rater_id`, `context`, `response` and questions such as `Q_overall` ("Yes" = unsafe, "No", "Unsure").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Row, cells_of


#: So that nobody outweighs the others.
MAX_PAIRS = 30

_Judgement = tuple[str, str, float]  # prompt, text, score


def read(rows: Iterable[Row], *, max_pairs: int = MAX_PAIRS) -> Iterator[dict[str, Any] | None]:
    """What a person rated higher over what they rated lower, among texts of the same prompt.

    Args:
        rows: `annotator_id`, `text`, `score`, and `prompt` where texts are replies.
        max_pairs (`int`): at most so many per person, spread evenly over all their comparisons.

    Yields:
        `dict`: `prompt`, `chosen`, `rejected` (texts), `annotator_id`. None for each text without a score, and for
        each person who rated no two texts differently.

    Raises:
        ValueError: a row without these columns, or `max_pairs` below 1.

    Example:

    >>> scores = [{"annotator_id": 1, "text": "a", "score": 3}, {"annotator_id": 1, "text": "b", "score": 5}]
    >>> next(read(scores))["chosen"]
    'b'
    """
    people: dict[str, list[_Judgement]] = {}
    for cells in cells_of(rows, "the ratings"):
        own = people.setdefault(cells.person("annotator_id"), [])
        cells.get("score")
        if cells.is_empty("score"):
            yield None
            continue
        prompt = "" if cells.is_empty("prompt") else cells.text("prompt")
        own.append((prompt, cells.text("text"), cells.number_of("score")))
    yield from _comparisons(people, max_pairs)


def read_dices(
    rows: Iterable[Row], *, question: str = "Q_overall", max_pairs: int = MAX_PAIRS
) -> Iterator[dict[str, Any] | None]:
    """A rater's safe conversations over their unsafe ones.

    The set holds judgements of single conversations, so a pair joins two different conversations and has no prompt of
    its own: what is learned is which conversation a rater finds safe.

    Args:
        rows: as published.
        question (`str`): column of the judgement.
        max_pairs (`int`): at most so many per rater.

    Yields:
        `dict`: `prompt` (empty), `chosen`, `rejected` (texts), `annotator_id`. None for "Unsure", and for raters who
        found all safe or all unsafe.

    Raises:
        ValueError: a row that is not of this set, or `max_pairs` below 1.
    """
    people: dict[str, list[_Judgement]] = {}
    for cells in cells_of(rows, "DICES"):
        own = people.setdefault(cells.person("rater_id"), [])
        text = f"{cells.text('context')}\n{cells.text('response')}"
        cells.get(question)
        if cells.is_empty(question):
            yield None
            continue
        verdict = cells.one_of(question, ("Yes", "No", "Unsure"))
        if verdict == "Unsure":
            yield None
        else:
            own.append(("", text, float(verdict == "No")))
    yield from _comparisons(people, max_pairs)


def _comparisons(people: dict[str, list[_Judgement]], max_pairs: int) -> Iterator[dict[str, Any] | None]:
    if max_pairs < 1:
        raise ValueError(f"max_pairs={max_pairs} must be at least 1.")
    for person, judged in people.items():
        pairs = [
            {"prompt": one[0], "chosen": one[1], "rejected": other[1], "annotator_id": person}
            for one in judged
            for other in judged
            if one[0] == other[0] and one[2] > other[2]
        ]
        if not pairs:
            yield None
        step = max(len(pairs) / max_pairs, 1.0)
        yield from (pairs[int(i * step)] for i in range(min(len(pairs), max_pairs)))
