# SPDX-License-Identifier: Apache-2.0
"""PLURAL (`agdhruv/plural-alignment`): synthetic pairs from surveys of the values of 92 countries; nobody is a person.

Columns: `id`, `country`, `region_iso`, `prompt`, `pref`, `dispref`, `survey_metadata`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Row, cells_of


def read(rows: Iterable[Row]) -> Iterator[dict[str, Any] | None]:
    """Every row is a pair; the country stands in the annotator's place, and is the group.

    Args:
        rows: as published.

    Yields:
        `dict`: `prompt`, `chosen`, `rejected` (texts), `annotator_id`, `group`. None where both replies are the same.

    Raises:
        ValueError: a row that is not of this set.
    """
    for cells in cells_of(rows, "PLURAL"):
        country, chosen, rejected = cells.person("country"), cells.text("pref"), cells.text("dispref")
        prompt = cells.text("prompt")
        yield (
            None
            if chosen == rejected
            else {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "annotator_id": country,
                "group": country,
            }
        )
