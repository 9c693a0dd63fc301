# SPDX-License-Identifier: Apache-2.0
"""MultiPref (`allenai/multipref`): comparisons with the judgements of several workers each.

Columns: `text`, `completion_a`, `completion_b`, and the lists `normal_worker_annotations` and
`expert_worker_annotations` of `{evaluator, overall_pref: "A-is-clearly-better", helpful_pref, ...}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Row, cells_of


_VERDICTS = {f"{side}-is-{how}-better": side for side in "AB" for how in ("clearly", "slightly")}


def read(rows: Iterable[Row], *, question: str = "overall_pref") -> Iterator[dict[str, Any] | None]:
    """Every worker's judgement is a pair of its own.

    Args:
        rows: as published.
        question (`str`): which judgement: `overall_pref`, `helpful_pref`, `truthful_pref` or `harmless_pref`.

    Yields:
        `dict`: `prompt`, `chosen`, `rejected` (texts), `annotator_id`, `group` (`"normal"` or `"expert"`: the kind of
        worker). None for ties, and where nothing was said.

    Raises:
        ValueError: a row that is not of this set.
    """
    for cells in cells_of(rows, "MultiPref"):
        prompt = cells.text("text")
        replies = {side: cells.text(f"completion_{side.lower()}") for side in "AB"}
        for kind in ("normal", "expert"):
            for annotation in cells.parts(f"{kind}_worker_annotations"):
                worker = annotation.person("evaluator")
                annotation.get(question)
                if annotation.is_empty(question):
                    yield None
                    continue
                best = _VERDICTS.get(annotation.one_of(question, (*_VERDICTS, "Tie")))
                yield best and {
                    "prompt": prompt,
                    "chosen": replies[best],
                    "rejected": replies["B" if best == "A" else "A"],
                    "annotator_id": worker,
                    "group": kind,
                }
