# SPDX-License-Identifier: Apache-2.0
"""Public sets that say who gave which judgement, brought to this package's columns.

Each function takes the rows as they are published and returns pairs with `prompt`, `chosen`, `rejected`,
`annotator_id`. Nothing is downloaded: load the set with `datasets.load_dataset` and hand over its rows. Ties and
judgements that express no preference are left out and counted in a log line.

| function | set | what a row is |
|---|---|---|
| `from_prism` | PRISM, table `utterances` | one model's answer to one turn, chosen or not, with the user's id |
| `from_multipref` | MultiPref | one comparison with the annotations of several workers |
| `from_dices` | DICES-350 or -990 | one rater's safety judgement of one conversation |
| `from_helpsteer` | HelpSteer3, preferences | one comparison with several judgements, nobody named |
| `from_ratings` | any | one person's score of one text |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from datasets import Dataset


logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


def _require(row: Row, names: Iterable[str], source: str) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        raise ValueError(
            f"This does not look like {source}: the column(s) {', '.join(missing)} are missing, there are "
            f"{', '.join(sorted(row))}. Rename the columns to those of the published set."
        )


def _pair(prompt: Any, chosen: Any, rejected: Any, annotator: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator_id": annotator, **more}


def _dataset(pairs: list[dict[str, Any]], source: str, left_out: int) -> Dataset:
    if not pairs:
        raise ValueError(f"No preference was found in these rows of {source} ({left_out} ties or unclear judgements).")
    if left_out:
        logger.info(f"{source}: {len(pairs)} pairs; {left_out} ties or unclear judgements left out.")
    return Dataset.from_list(pairs)


def from_prism(rows: Iterable[Row]) -> Dataset:
    """PRISM's `utterances`: the answer a user chose against each of the others of the same turn.

    Args:
        rows: with `interaction_id`, `user_id`, `user_prompt`, `model_response`, `if_chosen`.

    Returns:
        `Dataset` with `prompt`, `chosen`, `rejected`, `annotator_id`.

    Raises:
        ValueError: columns missing, or no turn with a chosen and another answer.
    """
    turns: dict[Any, list[Row]] = {}
    for row in rows:
        _require(
            row, ("interaction_id", "user_id", "user_prompt", "model_response", "if_chosen"), "PRISM's utterances"
        )
        turns.setdefault(row["interaction_id"], []).append(row)
    pairs, left_out = [], 0
    for answers in turns.values():
        chosen = [row for row in answers if row["if_chosen"]]
        others = [row for row in answers if not row["if_chosen"]]
        left_out += not (chosen and others)
        pairs += [
            _pair(best["user_prompt"], best["model_response"], other["model_response"], best["user_id"])
            for best in chosen
            for other in others
        ]
    return _dataset(pairs, "PRISM", left_out)


def from_multipref(rows: Iterable[Row], aspect: str = "overall_pref", annotator_key: str = "evaluator") -> Dataset:
    """MultiPref: each worker's judgement of a comparison is a pair of its own.

    Args:
        rows: with `text`, `completion_a`, `completion_b` and the lists `normal_worker_annotations`,
            `expert_worker_annotations`.
        aspect (`str`): which judgement, a key of an annotation such as `helpful_pref`.
        annotator_key (`str`): key of an annotation that names the worker.

    Returns:
        `Dataset` with `prompt`, `chosen`, `rejected`, `annotator_id`, `worker_kind` (`"normal"` or `"expert"`).

    Raises:
        ValueError: columns or keys missing, or no preference.
    """
    pairs, left_out = [], 0
    for row in rows:
        _require(row, ("text", "completion_a", "completion_b"), "MultiPref")
        for kind in ("normal", "expert"):
            for annotation in row.get(f"{kind}_worker_annotations") or ():
                _require(annotation, (aspect, annotator_key), "an annotation of MultiPref")
                verdict = str(annotation[aspect])
                sides = {"A": ("completion_a", "completion_b"), "B": ("completion_b", "completion_a")}.get(verdict[:1])
                if sides is None or "better" not in verdict:
                    left_out += 1
                    continue
                replies = (row[side] for side in sides)
                pairs.append(_pair(row["text"], *replies, annotation[annotator_key], worker_kind=kind))
    return _dataset(pairs, "MultiPref", left_out)


def from_dices(rows: Iterable[Row], max_pairs_per_rater: int = 30, question: str = "Q_overall") -> Dataset:
    """DICES: a rater's safe conversations over their unsafe ones.

    The set holds judgements of single conversations, so a pair joins two different conversations and has no prompt of
    its own: what is learned is which conversation a rater finds safe.

    Args:
        rows: with `rater_id`, `context`, `response` and the question's column, `"Yes"` = unsafe, `"No"` = safe.
        max_pairs_per_rater (`int`): at most so many, so that nobody outweighs the others.
        question (`str`): column of the judgement.

    Returns:
        `Dataset` with `prompt` (empty), `chosen`, `rejected`, `annotator_id`.

    Raises:
        ValueError: columns missing, or no rater with a safe and an unsafe conversation.
    """

    def score(row: Row) -> float | None:
        _require(row, ("rater_id", "context", "response", question), "DICES")
        return {"no": 1.0, "yes": 0.0}.get(str(row[question]).strip().lower())

    return from_ratings(
        rows,
        annotator="rater_id",
        text=lambda row: f"{row['context']}\n{row['response']}",
        score=score,
        max_pairs_per_annotator=max_pairs_per_rater,
        source="DICES",
    )


def from_helpsteer(rows: Iterable[Row]) -> Dataset:
    """HelpSteer3's preferences: each individual judgement is a pair.

    The set names nobody, so every judgement is an annotator of its own and one pair says little about who gave it: use
    it to train K = 1, or to assign with a mixture learned elsewhere.

    Args:
        rows: with `context` (messages), `response1`, `response2` and `individual_preference` (list with `score`, below
            0 = the first response) or `overall_preference`.

    Returns:
        `Dataset` with `prompt`, `chosen`, `rejected` (messages), `annotator_id`.

    Raises:
        ValueError: columns missing, or no preference.
    """
    pairs, left_out = [], 0
    for number, row in enumerate(rows):
        _require(row, ("context", "response1", "response2"), "HelpSteer3's preferences")
        judgements = row.get("individual_preference") or [{"score": row.get("overall_preference")}]
        for position, judgement in enumerate(judgements):
            score = judgement.get("score")
            if not score:
                left_out += 1
                continue
            first, second = ("response1", "response2") if score < 0 else ("response2", "response1")
            replies = ([{"role": "assistant", "content": row[side]}] for side in (first, second))
            pairs.append(_pair(list(row["context"]), *replies, f"judgement-{number}-{position}"))
    return _dataset(pairs, "HelpSteer3", left_out)


def from_ratings(
    rows: Iterable[Row],
    *,
    annotator: str = "annotator_id",
    text: str | Callable[[Row], str] = "text",
    score: str | Callable[[Row], float | None] = "score",
    prompt: str | None = None,
    max_pairs_per_annotator: int = 30,
    source: str = "the ratings",
) -> Dataset:
    """Scores of single texts as comparisons: what a person rated higher over what they rated lower.

    Args:
        rows: one judgement each.
        annotator (`str`): column of the person.
        text, score: columns, or functions of a row; a score of None is no judgement.
        prompt (`str`, *optional*): column; then only texts of the same prompt are compared.
        max_pairs_per_annotator (`int`): at most so many per person, spread evenly over all their comparisons.
        source (`str`): how messages call the data.

    Returns:
        `Dataset` with `prompt`, `chosen`, `rejected`, `annotator_id`.

    Raises:
        ValueError: a column missing, or nobody rated two texts differently.

    Example:

    >>> rows = [{"who": 1, "text": "a", "score": 3}, {"who": 1, "text": "b", "score": 5}]
    >>> from_ratings(rows, annotator="who")[0]["chosen"]
    'b'
    """
    get_text = text if callable(text) else lambda row: row[text]
    get_score = score if callable(score) else lambda row: row[score]
    people: dict[Any, list[tuple[Any, str, float]]] = {}
    left_out = 0
    for row in rows:
        _require(row, [name for name in (annotator, text, score, prompt) if isinstance(name, str)], source)
        value = get_score(row)
        if value is None:
            left_out += 1
            continue
        key = row[prompt] if prompt else ""
        people.setdefault(row[annotator], []).append((key, get_text(row), float(value)))
    pairs = []
    for person, judged in people.items():
        own = [
            _pair(first[0], first[1], second[1], person)
            for first in judged
            for second in judged
            if first[0] == second[0] and first[2] > second[2]
        ]
        step = max(len(own) / max_pairs_per_annotator, 1.0)
        pairs += [own[int(i * step)] for i in range(min(len(own), max_pairs_per_annotator))]
    return _dataset(pairs, source, left_out)
