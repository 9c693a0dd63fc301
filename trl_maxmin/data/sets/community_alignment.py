# SPDX-License-Identifier: Apache-2.0
"""Community Alignment (`facebook/community-alignment-dataset`): best of four, up to four turns a conversation.

Columns: `conversation_id`, `annotator_id`, `assigned_lang`, for each turn `first_turn_prompt`,
`first_turn_response_a` to `_d`, `first_turn_preferred_response` (`"response_a"`), `first_turn_feedback`, ...,
`annotator_age`, `annotator_gender`, `annotator_education_level`, `annotator_political`, `annotator_ethnicity`,
`annotator_country`, `is_pregenerated_first_prompt`, `in_balanced_subset`, `wave`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .cells import Row, assistant, cells_of, user


_TURNS = ("first", "second", "third", "fourth")
# What the generating models wrote at the end of some replies.
_END = "<|end_of_text|>"


def read(rows: Iterable[Row], *, group_by: str | None = None) -> Iterator[dict[str, Any] | None]:
    """Every turn is a choice of one of its replies, after the turns before it as the annotator chose them.

    Args:
        rows: as published.
        group_by (`str`, *optional*): column of the annotator that becomes `group`, such as `annotator_country`.

    Yields:
        `dict`: `prompt` (messages), `responses` (messages each), `choice`, `annotator_id`, maybe `group`. None for a
        conversation in which the first turn has no choice; one ends at the first turn that was not had.

    Raises:
        ValueError: a row that is not of this set.
    """
    for cells in cells_of(rows, "Community Alignment"):
        annotator = cells.person("annotator_id")
        group = {} if group_by is None else {"group": cells.get(group_by)}
        history: list[dict[str, str]] = []
        for turn in _TURNS:
            prompt, preferred = f"{turn}_turn_prompt", f"{turn}_turn_preferred_response"
            if turn == "first":
                cells.get(prompt), cells.get(preferred)  # a set without these columns is another one
            if cells.is_empty(prompt) or cells.is_empty(preferred):
                break
            names = [f"response_{letter}" for letter in "abcd" if not cells.is_empty(f"{turn}_turn_response_{letter}")]
            if len(names) < 2:
                raise cells.fault(f"{turn}_turn_response_a", "at least two replies of the turn are needed")
            replies = [cells.text(f"{turn}_turn_{name}").replace(_END, "").strip() for name in names]
            choice = names.index(cells.one_of(preferred, names))
            history.append(user(cells.text(prompt)))
            yield {
                "prompt": list(history),
                "responses": [[assistant(reply)] for reply in replies],
                "choice": choice,
                "annotator_id": annotator,
                **group,
            }
            history.append(assistant(replies[choice]))
        if not history:
            yield None
