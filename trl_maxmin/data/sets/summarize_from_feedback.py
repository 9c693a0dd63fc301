# SPDX-License-Identifier: Apache-2.0
"""Summaries with human feedback (`openai/summarize_from_feedback`, `comparisons`): two summaries a row, compared.

Columns: `info{id, post, title, subreddit, site, article}`, `summaries[{text, policy, note}]`, `choice` (0 or 1),
`worker`, `batch`, `split`, `extra{confidence}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Cells, Row, cells_of


def read(rows: Iterable[Row]) -> Iterator[dict[str, Any] | None]:
    """Every comparison is a pair of texts by one worker.

    Args:
        rows: as published.

    Yields:
        `dict`: `prompt` (the post or article), `chosen`, `rejected` (texts), `annotator_id`. None where both summaries
        are the same.

    Raises:
        ValueError: a row that is not of this set.
    """
    for cells in cells_of(rows, "summarize_from_feedback"):
        summaries = [summary.text("text").strip() for summary in cells.parts("summaries", fewest=2)]
        choice = cells.whole("choice", 0, len(summaries) - 1)
        if len(summaries) != 2:
            raise cells.fault("summaries", "there must be two")
        annotator, prompt = cells.person("worker"), _prompt(cells.part("info"))
        yield (
            None
            if summaries[0] == summaries[1]
            else {
                "prompt": prompt,
                "chosen": summaries[choice],
                "rejected": summaries[1 - choice],
                "annotator_id": annotator,
            }
        )


def _prompt(info: Cells) -> str:
    if not info.is_empty("article"):
        return f"{info.text('article').strip()}\n\nTL;DR:"
    head = [] if info.is_empty("subreddit") else [f"SUBREDDIT: r/{info.text('subreddit').strip()}"]
    head += [] if info.is_empty("title") else [f"TITLE: {info.text('title').strip()}"]
    return "\n".join([*head, f"POST: {info.text('post').strip()}", "TL;DR:"])
