# SPDX-License-Identifier: Apache-2.0
"""Exports of Label Studio (JSON) from a project with a `<Pairwise>` tag.

A task has `data` with the two texts, and `annotations[{completed_by, was_cancelled, result: [{from_name, type:
"pairwise", value: {selected: "left"}}]}]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .cells import Cells, Row, cells_of


def read(
    rows: Iterable[Row],
    *,
    response_fields: Sequence[str] = ("text1", "text2"),
    prompt_field: str | None = None,
    question: str | None = None,
) -> Iterator[dict[str, Any] | None]:
    """Every annotation is a pair.

    Args:
        rows: the tasks.
        response_fields (`Sequence[str]`): keys of `data` of the left and of the right text, as the tag's `toName` has
            them.
        prompt_field (`str`, *optional*): key of `data` of the prompt.
        question (`str`, *optional*): `name` of the tag, where a task has several.

    Yields:
        `dict`: `prompt`, `chosen`, `rejected` (texts), `annotator_id`. None for annotations that were cancelled or
        chose neither.

    Raises:
        ValueError: not two response fields, or a task that is not of such an export.
    """
    if len(response_fields) != 2:
        raise ValueError(f"response_fields={list(response_fields)}: a pairwise task has a left and a right field.")
    for cells in cells_of(rows, "the Label Studio export"):
        data = cells.part("data")
        replies = dict(zip(("left", "right"), map(data.text, response_fields), strict=True))
        prompt = "" if prompt_field is None else data.text(prompt_field)
        for annotation in cells.parts("annotations"):
            person = _person(annotation)
            chosen = None if annotation.row.get("was_cancelled") else _selected(annotation, question)
            yield chosen and {
                "prompt": prompt,
                "chosen": replies[chosen],
                "rejected": replies["right" if chosen == "left" else "left"],
                "annotator_id": person,
            }


def _person(annotation: Cells) -> str:
    who = annotation.get("completed_by")
    if not isinstance(who, dict):
        return annotation.person("completed_by")
    part = annotation.part("completed_by")
    return part.person("id" if "id" in who else "email")


def _selected(annotation: Cells, question: str | None) -> str | None:
    results = [
        result
        for result in annotation.parts("result")
        if result.row.get("type") == "pairwise" and question in (None, result.row.get("from_name"))
    ]
    if len(results) > 1:
        raise annotation.fault("result", "it has several pairwise answers; name one by question")
    if not results:
        return None
    value = results[0].part("value")
    return None if value.is_empty("selected") else value.one_of("selected", ("left", "right"))
