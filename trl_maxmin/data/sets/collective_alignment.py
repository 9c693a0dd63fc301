# SPDX-License-Identifier: Apache-2.0
"""Collective Alignment 1 (`openai/collective-alignment-1`, `comparisons`): several people's rankings of four replies.

A row has `prompt.messages`, `responses[{response_index, messages}]` and `metadata.assessments[{annotator_id,
ranking_blocks{personal, world}[{ranking: "B>A=C=D"}]}]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Cells, Row, cells_of


QUESTIONS = ("personal", "world")


def read(rows: Iterable[Row], *, question: str = "personal") -> Iterator[dict[str, Any] | None]:
    """Every assessment is a ranking by one person, with ties.

    Args:
        rows: as published.
        question (`str`): `"personal"`: what is best for the annotator; `"world"`: what is best for everybody.

    Yields:
        `dict`: `prompt` (messages), `responses` (messages each; those that the person ranked), `ranking`,
        `annotator_id`. None for an assessment without such a ranking.

    Raises:
        ValueError: another question, or a row that is not of this set.
    """
    if question not in QUESTIONS:
        raise ValueError(f"question={question!r} is unknown; Collective Alignment has {', '.join(QUESTIONS)}.")
    for cells in cells_of(rows, "Collective Alignment"):
        prompt = cells.part("prompt").messages("messages", "user", "tool")
        replies: dict[str, Any] = {}
        for reply in cells.parts("responses", fewest=2):
            index = reply.text("response_index").strip()
            if index in replies:
                raise reply.fault("response_index", "another reply has it already")
            replies[index] = reply.messages("messages", "assistant")
        for assessment in cells.part("metadata").parts("assessments"):
            annotator = assessment.person("annotator_id")
            ranking = _ranking(assessment, question, replies)
            yield ranking and {
                "prompt": prompt,
                "responses": [replies[index] for index in ranking],
                "ranking": list(ranking.values()),
                "annotator_id": annotator,
            }


def _ranking(assessment: Cells, question: str, replies: dict[str, Any]) -> dict[str, int] | None:
    """Rank of each reply that the person placed; of several attempts the first."""
    if assessment.is_empty("ranking_blocks"):
        return None
    blocks = assessment.part("ranking_blocks")
    if not blocks.row.get(question):
        return None
    block = blocks.parts(question)[0]
    if block.is_empty("ranking"):
        return None
    found: dict[str, int] = {}
    for rank, tied in enumerate(block.text("ranking").split(">"), start=1):
        for index in map(str.strip, tied.split("=")):
            if index not in replies or index in found:
                raise block.fault("ranking", f"it must order {', '.join(replies)}, each at most once, by > and =")
            found[index] = rank
    return found if len(found) > 1 else None
