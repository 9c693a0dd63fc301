# SPDX-License-Identifier: Apache-2.0
"""HelpSteer3's preferences (`nvidia/HelpSteer3`, `preference`): comparisons with several judgements, nobody named.

Columns: `context` (messages), `response1`, `response2`, `overall_preference` (-3 to 3, below 0 = the first reply), and
`individual_preference[{score, reasoning, feedback1, feedback2}]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Row, assistant, cells_of


def read(rows: Iterable[Row]) -> Iterator[dict[str, Any] | None]:
    """Every individual judgement is a pair; where there are none, the overall preference.

    The set names nobody, so every judgement is an annotator of its own and one pair says little about who gave it: use
    it to train K = 1, or to assign with a mixture learned elsewhere.

    Args:
        rows: as published.

    Yields:
        `dict`: `prompt`, `chosen`, `rejected` (messages), `annotator_id` (`judgement-12-0`). None for a score of 0.

    Raises:
        ValueError: a row that is not of this set.
    """
    for cells in cells_of(rows, "HelpSteer3's preferences"):
        prompt = cells.messages("context", "user", "tool")
        replies = [[assistant(cells.text(name))] for name in ("response1", "response2")]
        if cells.is_empty("individual_preference") or not cells.parts("individual_preference"):
            scores = [cells.whole("overall_preference", -3, 3)]
        else:
            scores = [judgement.whole("score", -3, 3) for judgement in cells.parts("individual_preference")]
        for position, score in enumerate(scores):
            chosen, rejected = replies if score < 0 else replies[::-1]
            yield (
                None
                if not score
                else {
                    "prompt": prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "annotator_id": f"judgement-{cells.number}-{position}",
                }
            )
