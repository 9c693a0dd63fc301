# SPDX-License-Identifier: Apache-2.0
"""Exports of Argilla: records with the answers of several users to a rating, ranking or label question.

Three forms are read: records of Argilla 2 (`records.to_json`: `fields`, `responses{question: [{value, user_id}]}`),
their table (`records.to_datasets`: a column a field, `question.responses`, `question.responses.users`), and the Hub
export of Argilla 1 (a column a field, and a column a question: a list of `{user_id, value, status}`, or one object of
lists).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .cells import Cells, Row, cells_of


_NO_PREFERENCE = ("tie", "both", "none", "equal", "neither", "same", "")
_DISCARDED = ("discarded", "draft", "pending")


def read(
    rows: Iterable[Row], *, question: str, response_fields: Sequence[str], prompt_field: str | None = None
) -> Iterator[dict[str, Any] | None]:
    """Every user's answer to a record is a ranking.

    A ranking question orders the fields; a label question names the best one (by the name of its field, or by its
    number or letter); several rating questions, separated by commas, rate one field each.

    Args:
        rows: the export.
        question (`str`): name of the question; of rating questions one for each response field, joined by commas.
        response_fields (`Sequence[str]`): fields that hold the replies.
        prompt_field (`str`, *optional*): field that holds the prompt.

    Yields:
        `dict`: `prompt`, `responses` (texts), `ranking`, `annotator_id`. None for answers that were discarded or not
        submitted, for ties of all replies, and for ratings that lack one of the fields.

    Raises:
        ValueError: fewer than two response fields, or a record without these fields and questions.
    """
    questions = [name.strip() for name in question.split(",")]
    if len(response_fields) < 2 or len(questions) not in (1, len(response_fields)):
        raise ValueError(
            f"response_fields={list(response_fields)} and question={question!r} do not fit: at least two response "
            "fields are needed, with one ranking or label question, or one rating question each."
        )
    for cells in cells_of(rows, "the Argilla export"):
        fields = cells.part("fields") if isinstance(cells.row.get("responses"), dict) else cells
        replies = [fields.text(name) for name in response_fields]
        prompt = "" if prompt_field is None else fields.text(prompt_field)
        answers = [_answers(cells, name) for name in questions]
        for person in dict.fromkeys(who for given in answers for who in given):
            given = [own.get(person) for own in answers]
            ranking = None if None in given else _ranking(given, list(response_fields))
            yield ranking and {
                "prompt": prompt,
                "responses": replies,
                "ranking": ranking,
                "annotator_id": person,
            }


def _answers(cells: Cells, question: str) -> dict[str, Cells]:
    """Each user's submitted answer, as a cell named `value`."""
    if isinstance(cells.row.get("responses"), dict):
        found = _entries(cells.part("responses"), question)
    elif f"{question}.responses" in cells.row:
        columns = {"value": f"{question}.responses", "user_id": f"{question}.responses.users"}
        columns["status"] = f"{question}.responses.status"
        table = {key: cells.row.get(name) for key, name in columns.items() if cells.row.get(name) is not None}
        found = _entries(Cells({question: table}, cells.number, cells.source, cells.path), question)
    else:
        found = _entries(cells, question)
    submitted = (entry for entry in found if str(entry.row.get("status") or "submitted") not in _DISCARDED)
    given: dict[str, Cells] = {}
    for entry in submitted:
        if entry.get("value") is None:
            continue
        if (person := entry.person("user_id")) in given:
            raise entry.fault("user_id", f"this user has answered {question} before in the same record")
        given[person] = entry
    return given


def _entries(cells: Cells, question: str) -> list[Cells]:
    value = cells.get(question)
    if value is None:
        return []
    if isinstance(value, dict):  # one object of lists
        lengths = {len(column) for column in value.values() if isinstance(column, list)}
        if len(lengths) > 1 or not all(isinstance(column, list) for column in value.values()):
            raise cells.fault(question, "its lists must be as long as each other")
        value = [dict(zip(value, entry, strict=True)) for entry in zip(*value.values(), strict=True)]
    return Cells({question: value}, cells.number, cells.source, cells.path).parts(question)


def _ranking(given: list[Any], fields: list[str]) -> list[int | None] | None:
    if len(given) > 1:
        ratings = [entry.number_of("value") for entry in given]
        places = sorted(set(ratings), reverse=True)
        return [places.index(rating) + 1 for rating in ratings] if len(places) > 1 else None
    (entry,) = given
    value = entry.get("value")
    if isinstance(value, str) and value.startswith(("[", "{")):
        try:
            value = json.loads(value)
        except ValueError:
            raise entry.fault("value", "it must be JSON where it begins like it") from None
    if isinstance(value, list | dict):
        return _order(entry, value, fields)
    label = str(value).strip()
    if label.lower() in _NO_PREFERENCE:
        return None
    names = {field: i for i, field in enumerate(fields)}
    for i in range(len(fields)):
        names |= {str(i + 1): i, chr(ord("a") + i): i, chr(ord("A") + i): i}
    if label not in names:
        raise entry.fault("value", f"a label must name a reply ({', '.join(fields)}, its number from 1 or its letter)")
    return [1 if i == names[label] else None for i in range(len(fields))]


def _order(entry: Cells, value: list[Any] | dict[str, Any], fields: list[str]) -> list[int | None]:
    """Ranks from `[{value, rank}]`, `{value: [...], rank: [...]}` or names in order."""
    wanted = f"it must order {', '.join(fields)}"
    if isinstance(value, dict):
        names, places = value.get("value"), value.get("rank")
        if not isinstance(names, list) or not isinstance(places, list) or len(names) != len(places):
            raise entry.fault("value", f"{wanted}, in a list `value` with a list `rank` of the same length")
        value = [{"value": name, "rank": rank} for name, rank in zip(names, places, strict=True)]
    ranks: dict[str, int] = {}
    for position, item in enumerate(value, start=1):
        name, rank = (item.get("value"), item.get("rank")) if isinstance(item, dict) else (item, position)
        if name not in fields or name in ranks or not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise entry.fault("value", wanted)
        ranks[name] = rank
    if not ranks:
        raise entry.fault("value", wanted)
    found = [ranks.get(name) for name in fields]
    return found if len(set(found)) > 1 else None  # type: ignore[return-value]
