# SPDX-License-Identifier: Apache-2.0
"""Rankings as rows: what may stand in them, and the way to pairs and back.

| column | type | meaning |
|---|---|---|
| `prompt` | `str` or messages, optional | what all replies answer |
| `responses` | list of `str` or of messages | at least two replies |
| `ranking` | list of ranks | one a reply: 1 = best, equal ranks = a tie, null = not ranked, behind all that are |
| `choice` | `int` | instead of `ranking`: position of the best reply, counted from 0 |
| `annotator_id`, `group` | as in pairs | |
| `margin` | `float`, optional | as in pairs; only for two replies |

A reply that nobody compared with the others does not belong into `responses`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from datasets import Dataset

from ..functional.ranking import MAX_TIED, UNRANKED, RankedChoices
from .checks import check_margin, check_prompt, check_reply, is_whole_number
from .columns import (
    ANNOTATOR_COLUMN,
    VOTE_SHARE,
    as_dataset,
    check_annotator_count,
    prepare_preferences,
    with_annotators,
)
from .tokenization import plain_messages


logger = logging.getLogger(__name__)

#: How [`rankings_to_pairs`] cuts a ranking.
CUTS = ("all", "best")


def is_ranked(dataset: Dataset) -> bool:
    """Whether rows are rankings (`responses`) and not pairs (`chosen`, `rejected`).

    Raises:
        ValueError: both, so that nobody can tell which is meant.

    Example:

    >>> is_ranked(Dataset.from_list([{"responses": ["a", "b"], "choice": 0}]))
    True
    """
    names = set(dataset.column_names)
    if "responses" in names and names & {"chosen", "rejected"}:
        raise ValueError(
            "The data have `responses` as well as `chosen` or `rejected`: rankings and pairs at once. Remove the "
            "columns of one kind."
        )
    return "responses" in names


def prepare_rankings(
    dataset: Dataset, annotator_column: str = ANNOTATOR_COLUMN, num_components: int | None = None
) -> Dataset:
    """Check rankings and bring them to one form.

    Args:
        dataset (`Dataset` or `IterableDataset`): columns as in the table above. A stream is read to its end.
        annotator_column (`str`, defaults to `"annotator_id"`): the column that names the annotator.
        num_components (`int`, *optional*): K, to check that there are at least K annotators.

    Returns:
        `Dataset`: the rows that order at least two replies, with `annotator_id`, and `ranking` in place of `choice`
        (ranks from 1 without gaps, None behind them).

    Raises:
        TypeError: something else than a `Dataset`.
        ValueError: no rows; a column missing, or `chosen_probability`; a row that is no ranking, see
            [`ranking_of_row`]; a prompt, an annotator or a margin that is refused in pairs; only ties; fewer
            annotators than components.

    Warns:
        when there is no annotator column, and when rows that order nothing were left out.
    """
    dataset = as_dataset(dataset, "`responses` and `ranking` or `choice`")
    columns = dataset.column_names
    if "responses" not in columns or not {"ranking", "choice"} & set(columns):
        raise ValueError(f"Rankings need `responses`, and `ranking` or `choice`. The data have: {', '.join(columns)}.")
    _refuse_vote_shares(columns)
    ranks = [ranking_of_row(row, number) for number, row in enumerate(dataset)]
    dataset = with_annotators(dataset, annotator_column, "ranking")
    keep = [number for number, row in enumerate(dataset) if _orders_something(row["responses"], ranks[number])]
    lost = len(dataset) - len(keep)
    if not keep:
        raise ValueError(f"In all {lost} rows the replies are the same or tied: there is no preference to learn from.")
    if lost:
        logger.warning(f"Left out {lost} of {len(dataset)} rankings whose replies are all the same or all tied.")
    dataset = dataset.remove_columns([name for name in ("ranking", "choice") if name in columns])
    dataset = dataset.select(keep).add_column("ranking", [ranks[number] for number in keep])
    check_annotator_count(dataset, num_components)
    return dataset


def prepare_either(
    dataset: Dataset, annotator_column: str = ANNOTATOR_COLUMN, num_components: int | None = None
) -> Dataset:
    """[`prepare_rankings`] or [`prepare_preferences`], by the columns.

    Args:
        dataset, annotator_column, num_components: as there.

    Returns:
        `Dataset`: rankings (`responses`, `ranking`), or pairs (`chosen`, `rejected`).

    Raises:
        TypeError, ValueError: as there.
    """
    prepare = prepare_rankings if is_ranked(as_dataset(dataset, "preferences")) else prepare_preferences
    return prepare(dataset, annotator_column, num_components)


def _refuse_vote_shares(columns: list[str]) -> None:
    if VOTE_SHARE in columns:
        raise ValueError(
            f"The data have `{VOTE_SHARE}`, which is for pairs (`chosen`, `rejected`) alone. Train on pairs, or "
            "remove the column: every row then counts as a certain choice."
        )


def choices_of(rankings: Dataset, rows: Any, annotators: Any) -> RankedChoices:
    """Rankings as the likelihood takes them.

    Args:
        rankings (`Dataset`): of [`prepare_rankings`].
        rows (`(N, n)`): row of each reply's text, -1 where a ranking has fewer (see [`distinct_replies`]).
        annotators (`(N,)`): annotator of each ranking.

    Returns:
        [`RankedChoices`].
    """
    responses = torch.as_tensor(rows)
    ranks = torch.zeros_like(responses)
    for row, own in enumerate(rankings["ranking"]):
        ranks[row, : len(own)] = torch.tensor([UNRANKED if rank is None else rank for rank in own])
    margin = torch.tensor(rankings["margin"]) if "margin" in rankings.column_names else None
    return RankedChoices(responses, ranks, torch.as_tensor(annotators), margin)


def ranking_of_row(row: Mapping[str, Any], number: int) -> list[int | None]:
    """The ranks of one row, checked: from 1 without gaps, None for replies behind them.

    Args:
        row (`Mapping`): see the table above.
        number (`int`): of the row, for messages.

    Raises:
        ValueError: the message names the row, the column, what stands there and what may.

    Example:

    >>> ranking_of_row({"responses": ["a", "b", "c"], "ranking": [4, None, 2]}, 0)
    [2, None, 1]
    >>> ranking_of_row({"responses": ["a", "b", "c"], "choice": 3}, 7)
    Traceback (most recent call last):
    ...
    ValueError: Row 7 has choice 3; it must be the position of a reply, 0 to 2.
    """
    replies = row.get("responses")
    if not isinstance(replies, list | tuple) or len(replies) < 2:
        raise ValueError(f"Row {number} has responses {_short(replies)}; it must be a list of at least two replies.")
    prompt = row.get("prompt", "")
    check_prompt(prompt, number)
    for position, reply in enumerate(replies):
        check_reply(reply, f"responses[{position}]", prompt, number)
    if len({isinstance(reply, str) for reply in replies}) > 1:
        raise ValueError(f"Row {number} has responses as text and in messages; give all in the same form.")
    check_margin(row, number, only_pairs=len(replies) > 2)
    given = [name for name in ("ranking", "choice") if row.get(name) is not None]
    if len(given) != 1:
        found = "both ranking and choice" if given else "neither ranking nor choice"
        raise ValueError(f"Row {number} has {found}; give one of them.")
    return _ranks_of(row["ranking"], len(replies), number) if given[0] == "ranking" else _best(row, number)


def _best(row: Mapping[str, Any], number: int) -> list[int | None]:
    choice, count = row["choice"], len(row["responses"])
    if not is_whole_number(choice) or not 0 <= choice < count:
        raise ValueError(f"Row {number} has choice {choice!r}; it must be the position of a reply, 0 to {count - 1}.")
    return [1 if position == choice else None for position in range(count)]


def _ranks_of(ranking: Any, count: int, number: int) -> list[int | None]:
    if not isinstance(ranking, list | tuple) or len(ranking) != count:
        raise ValueError(
            f"Row {number} has ranking {_short(ranking)}; it must be a list of {count} ranks, one for each reply."
        )
    for position, rank in enumerate(ranking):
        if rank is not None and not (is_whole_number(rank) and rank >= 1):
            raise ValueError(
                f"Row {number} has ranking[{position}] {rank!r}; a rank is a whole number from 1 (the best), or null "
                "where a reply was not ranked."
            )
    places = {rank: place for place, rank in enumerate(sorted({int(r) for r in ranking if r is not None}), start=1)}
    if not places:
        raise ValueError(f"Row {number} has ranking {_short(ranking)}, in which no reply has a rank; remove the row.")
    ranks = [None if rank is None else places[int(rank)] for rank in ranking]
    shared = Counter(rank for rank in ranks if rank is not None)
    # The last place is the one whose replies are behind everybody.
    tied = max(size for place, size in shared.items() if None in ranks or place < len(places) or len(places) == 1)
    if tied > MAX_TIED and (len(places) > 1 or None in ranks):
        raise ValueError(
            f"Row {number} has ranking {_short(ranking)}, with {tied} replies tied before the last place; at most "
            f"{MAX_TIED} can be, for all their orders are summed over. Break ties, or leave replies out."
        )
    return ranks


def _orders_something(replies: list[Any], ranks: list[int | None]) -> bool:
    return len(set(ranks)) > 1 and len({repr(plain_messages(reply)) for reply in replies}) > 1


def rankings_to_pairs(rankings: Dataset, cut: str = "all") -> Dataset:
    """Rankings cut into pairs, for what takes pairs only (DPO, other libraries).

    One decision becomes several rows: a best of four becomes three pairs that are not independent, and a ranking of
    four six. What counts them as independent is surer than it should be.

    Args:
        rankings (`Dataset`): of [`prepare_rankings`], or rows that it takes.
        cut (`str`): `"all"`: each two replies whose order the ranking tells. `"best"`: the best (all, where several
            share the first place) against each other reply.

    Returns:
        `Dataset` with `chosen` and `rejected` in place of `responses` and `ranking`; the other columns stay.

    Raises:
        ValueError: another cut, or as [`prepare_rankings`].

    Example:

    >>> row = {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [2, 1, None], "annotator_id": "ann"}
    >>> [(pair["chosen"], pair["rejected"]) for pair in rankings_to_pairs(Dataset.from_list([row]))]
    [('b', 'a'), ('a', 'c'), ('b', 'c')]
    """
    pairs = [pair for number, row in enumerate(rankings) for pair in pairs_of_row(row, number, cut)]
    if not pairs:
        raise ValueError(f"In all {len(rankings)} rows the replies are tied: there is no pair.")
    return Dataset.from_list(pairs)


def pairs_of_row(row: Mapping[str, Any], number: int, cut: str = "all") -> list[dict[str, Any]]:
    """The pairs of one ranking, see [`rankings_to_pairs`].

    Raises:
        ValueError: another cut, or a row that is no ranking.
    """
    if cut not in CUTS:
        raise ValueError(f"cut={cut!r} is unknown; rankings are cut into pairs by {' or '.join(map(repr, CUTS))}.")
    ranks, replies = ranking_of_row(row, number), row["responses"]
    place = [len(replies) + 1 if rank is None else rank for rank in ranks]
    rest = {name: value for name, value in row.items() if name not in ("responses", "ranking", "choice")}
    pairs = []
    for one, other in combinations(range(len(replies)), 2):
        best, worse = sorted((one, other), key=place.__getitem__)
        if place[best] < place[worse] and (cut == "all" or place[best] == 1):
            pairs.append({**rest, "chosen": replies[best], "rejected": replies[worse]})
    return pairs


def pairs_to_rankings(pairs: Dataset) -> Dataset:
    """Pairs as rankings of two: the same preferences, the same likelihood.

    Args:
        pairs (`Dataset`): with `chosen` and `rejected`.

    Returns:
        `Dataset` with `responses` and `ranking` in their place; the other columns stay.

    Raises:
        ValueError: shares of votes.

    Example:

    >>> pairs_to_rankings(Dataset.from_list([{"chosen": "a", "rejected": "b"}]))[0]
    {'responses': ['a', 'b'], 'ranking': [1, 2]}
    """
    _refuse_vote_shares(pairs.column_names)
    rows = [
        {
            **{name: value for name, value in row.items() if name not in ("chosen", "rejected")},
            "responses": [row["chosen"], row["rejected"]],
            "ranking": [1, 2],
        }
        for row in pairs
    ]
    return Dataset.from_list(rows)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
