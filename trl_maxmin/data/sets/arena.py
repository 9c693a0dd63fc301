# SPDX-License-Identifier: Apache-2.0
"""Battles of two models: Chatbot Arena (`lmarena-ai/arena-human-preference-100k`) and MT-Bench's human judgements
(`lmsys/mt_bench_human_judgments`).

Columns: `model_a`, `model_b`, `winner`, `conversation_a`, `conversation_b` (messages, or JSON text of them), `turn`,
and who voted: `judge_hash` in Arena, `judge` (`"expert_3"`, `"author_1"`) in MT-Bench.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Cells, Row, cells_of, pair_of_conversations


_WINNERS = ("model_a", "model_b")
_NO_WINNER = ("tie", "tie (bothbad)", "tie (inconsistent)", "both_bad", "bothbad")


def read(rows: Iterable[Row]) -> Iterator[dict[str, Any] | None]:
    """Every vote of Arena is a pair of conversations; the prompt is what both share.

    Args:
        rows: as published.

    Yields:
        `dict`: `prompt`, `chosen`, `rejected` (messages), `annotator_id`. None for ties and "both are bad".

    Raises:
        ValueError: a row that is not of this set.
    """
    for cells in cells_of(rows, "Arena"):
        yield _vote(cells, "judge_hash", None)


def read_mt_bench(rows: Iterable[Row]) -> Iterator[dict[str, Any] | None]:
    """Every judgement of MT-Bench is about the first or the second turn of two conversations.

    Args:
        rows: as published (split `human`).

    Yields:
        `dict`: as [`read`].

    Raises:
        ValueError: a row that is not of this set.
    """
    for cells in cells_of(rows, "MT-Bench"):
        yield _vote(cells, "judge", 2 * cells.whole("turn", 1, 2))


def _vote(cells: Cells, who: str, length: int | None) -> dict[str, Any] | None:
    annotator = cells.person(who)
    winner = cells.one_of("winner", (*_WINNERS, *_NO_WINNER))
    names = [f"conversation_{side}" for side in "ab"]
    conversations = [cells.messages(name, "assistant")[:length] for name in names]
    for name, turns in zip(names, conversations, strict=True):
        if length is not None and len(turns) < length:
            raise cells.fault(name, f"turn {length // 2} needs {length} messages")
    if winner in _NO_WINNER or conversations[0] == conversations[1]:
        return None
    prompt, *replies = pair_of_conversations(*conversations, cells, " and ".join(names))
    chosen, rejected = replies if winner == "model_a" else replies[::-1]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator_id": annotator}
