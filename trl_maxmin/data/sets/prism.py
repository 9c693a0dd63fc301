# SPDX-License-Identifier: Apache-2.0
"""PRISM (`HannahRoseKirk/prism-alignment`, `utterances`): scored replies of conversations, one row a reply.

Columns: `utterance_id`, `interaction_id`, `conversation_id`, `user_id`, `turn`, `within_turn_id`, `user_prompt`,
`model_response`, `score` (1 to 100), `if_chosen`, ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Cells, Row, assistant, cells_of, user


def read(rows: Iterable[Row]) -> Iterator[dict[str, Any] | None]:
    """Every turn is a ranking of its replies by their score, after the turns before it as the user went on.

    Args:
        rows: as published, in any order.

    Yields:
        `dict`: `prompt` (messages), `responses` (messages each), `ranking`, `annotator_id`. None for a turn with a
        single reply, one whose replies have the same score, and those behind a turn in which none was chosen.

    Raises:
        ValueError: a row that is not of this set.
    """
    conversations: dict[str, dict[int, list[Cells]]] = {}
    for cells in cells_of(rows, "PRISM's utterances"):
        turns = conversations.setdefault(cells.person("conversation_id"), {})
        turns.setdefault(cells.whole("turn", 0, 10_000), []).append(cells)
    for turns in conversations.values():
        history: list[dict[str, str]] = []
        broken = False
        for _, answers in sorted(turns.items()):
            answers.sort(key=lambda cells: cells.number_of("within_turn_id"))
            prompt, replies = answers[0].text("user_prompt"), [cells.text("model_response") for cells in answers]
            scores = [cells.number_of("score") for cells in answers]
            people = {cells.person("user_id") for cells in answers}
            if len(people) > 1:
                raise answers[-1].fault("user_id", f"other replies of this turn are of {', '.join(sorted(people))}")
            chosen = [reply for cells, reply in zip(answers, replies, strict=True) if cells.truth("if_chosen")]
            history.append(user(prompt))
            places = sorted(set(scores), reverse=True)
            yield (
                None
                if broken or len(places) < 2
                else {
                    "prompt": list(history),
                    "responses": [[assistant(reply)] for reply in replies],
                    "ranking": [places.index(score) + 1 for score in scores],
                    "annotator_id": people.pop(),
                }
            )
            broken = broken or not chosen
            history.append(assistant(chosen[0] if chosen else replies[0]))
