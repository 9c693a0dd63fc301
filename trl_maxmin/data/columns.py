# SPDX-License-Identifier: Apache-2.0
"""The column contract of preference data, and its checks.

TRL's preference format, standard or conversational, plus who gave the preference:

| column | type | meaning |
|---|---|---|
| `prompt` | `str` or messages, optional | what both replies answer; messages end with the user or a tool |
| `chosen`, `rejected` | `str` or messages | the reply the annotator preferred, and the other; messages end with the \
assistant |
| `annotator_id` | `str` or `int` | the person; without it every pair is its own annotator |
| `group` | `str`, optional | a known sub-population, used for reporting; None, NaN or blank where it is unknown |
| `margin` | `float`, optional | Bradley-Terry log-odds by which the chosen reply should win |
| `chosen_probability` | `float`, optional | share of votes for `chosen`, 0.5 to 1, where nobody is named; every \
pair is its own annotator then |

Rankings of several replies have `responses` instead, see [`trl_maxmin.data.rankings`].
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from .checks import check_annotator, check_margin, check_probability, check_prompt, check_reply
from .texts import distinct_replies, number_values, prompts_of
from .tokenization import plain_messages


logger = logging.getLogger(__name__)

# Above it, held-out figures say little of what people will prefer next.
_MAX_FAMILIAR_SHARE = 0.1
# Below it, holding out texts leaves too few of them to learn from or to measure on.
_MIN_TEXTS = 50

ANNOTATOR_COLUMN = "annotator_id"
VOTE_SHARE = "chosen_probability"
# Of an annotator who is no person but a row.
_ROW_NAME = re.compile(r"pair-\d+")
# Ends the message about ties that are none as text.
AS_TOKENS = " once they are tokenised (as unknown words, or behind what the tokenizer normalises)"


@dataclass(frozen=True)
class AnnotatorIndex:
    """Numbers the annotators of a data set. Stays on the user's machine: it is saved with no model.

    Args:
        annotator_ids (`tuple`): H distinct ids in order of first appearance.

    Example:

    >>> index = AnnotatorIndex.from_values(["ann", "bob", "ann"])
    >>> len(index), index.encode(["bob"])
    (2, [1])
    """

    annotator_ids: tuple[str | int, ...]

    @classmethod
    def from_values(cls, values: Sequence[str | int]) -> AnnotatorIndex:
        """Index of the distinct values, in order of first appearance."""
        return cls(tuple(dict.fromkeys(values)))

    def __len__(self) -> int:
        return len(self.annotator_ids)

    def encode(self, values: Sequence[str | int]) -> list[int]:
        """Numbers 0..H-1 of annotator ids.

        Raises:
            KeyError: an id that is not in the index.
        """
        lookup = {annotator: position for position, annotator in enumerate(self.annotator_ids)}
        return [lookup[value] for value in values]


def prepare_preferences(
    dataset: Dataset, annotator_column: str = ANNOTATOR_COLUMN, num_components: int | None = None
) -> Dataset:
    """Check preference data and bring the annotator column to its standard name.

    Args:
        dataset (`Dataset` or `IterableDataset`): columns as in the table above. A stream is read to its end.
        annotator_column (`str`, defaults to `"annotator_id"`): the column that names the annotator.
        num_components (`int`, *optional*): K, to check that there are at least K annotators.

    Returns:
        `Dataset`: the same rows (ties removed) with a column `annotator_id`.

    Raises:
        TypeError: something else than a `Dataset`.
        ValueError: no rows; a column missing; a prompt or a reply that is neither text nor messages, or messages that
            lack a role or content or end with the wrong role; a missing or non-finite margin; an annotator id that
            names nobody (None, NaN, blank, "nan", "none", "null") or is no text and no whole number; a share of votes
            outside [0.5, 1], or beside annotators or margins; only ties; fewer annotators than components, or a single
            annotator for more than one component.

    Warns:
        when there is no annotator column (every pair becomes its own annotator), and when ties were removed.
    """
    dataset = as_dataset(dataset, "`chosen` and `rejected`")
    columns = dataset.column_names
    if "responses" in columns:
        raise ValueError(
            "The data are rankings (`responses`), and pairs are needed here. Cut them into pairs: `trl-maxmin convert "
            "rankings --input FILE --as_pairs all --output pairs.jsonl`, or "
            "`trl_maxmin.data.rankings.rankings_to_pairs(dataset)`."
        )
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    if missing:
        raise ValueError(
            f"The preference data lack the column(s) {', '.join(missing)}. They have: {', '.join(columns)}. Expected: "
            "`chosen`, `rejected`, usually `prompt` and `annotator_id` (TRL's preference format)."
        )
    _check_texts(dataset)
    if VOTE_SHARE in columns:
        _check_vote_shares(dataset, annotator_column)
    dataset = with_annotators(dataset, annotator_column)
    for row, margin in enumerate(dataset["margin"][:] if "margin" in columns else ()):
        check_margin({"margin": margin}, row)
    dataset = without_ties(dataset, *(list(map(plain_messages, dataset[side][:])) for side in ("chosen", "rejected")))
    check_annotator_count(dataset, num_components)
    return dataset


def _check_vote_shares(dataset: Dataset, annotator_column: str) -> None:
    named = dataset[annotator_column][:] if annotator_column in dataset.column_names else []
    if not all(_ROW_NAME.fullmatch(str(annotator)) for annotator in named):
        raise ValueError(
            f"The data have `{VOTE_SHARE}` and {annotator_column!r}: a share of votes belongs to no one person. "
            "Remove one of the columns; how strongly a person prefers a reply is a `margin`."
        )
    if "margin" in dataset.column_names and any(dataset["margin"][:]):
        raise ValueError(
            f"The data have `{VOTE_SHARE}` and `margin`: a margin is how strongly one person prefers a reply, and "
            "shares of votes say it of many. Remove one of the columns."
        )
    for row, probability in enumerate(dataset[VOTE_SHARE][:]):
        check_probability(probability, row)


def as_dataset(dataset: Any, needed: str) -> Dataset:
    """Rows in memory, at least one.

    Args:
        dataset: what was given; a stream is read to its end.
        needed (`str`): what a row needs, for the message.

    Raises:
        TypeError: something else than a `Dataset`.
        ValueError: no rows.
    """
    if isinstance(dataset, IterableDataset):
        # EM returns to every annotator's preferences again and again, so a stream has to be held.
        dataset = Dataset.from_list(list(dataset))
        logger.info(f"Read {len(dataset)} rows of a streaming data set into memory: EM visits every one many times.")
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"Preferences must be a `datasets.Dataset`, got {type(dataset).__name__}. Choose a split of a "
            "`DatasetDict`; turn rows into one by `Dataset.from_list(rows)`."
        )
    if len(dataset) == 0:
        raise ValueError(f"The preference data are empty. Give at least one row with {needed}.")
    return dataset


def with_annotators(dataset: Dataset, annotator_column: str, unit: str = "pair") -> Dataset:
    """The rows with their annotators in `annotator_id`; without a column each row is its own annotator.

    Args:
        dataset (`Dataset`): rows.
        annotator_column (`str`): the column that names the annotator.
        unit (`str`): what a row is, `"pair"` or `"ranking"`.

    Raises:
        ValueError: no such column, or an id that names nobody.
    """
    if annotator_column in dataset.column_names:
        if annotator_column != ANNOTATOR_COLUMN:
            if ANNOTATOR_COLUMN in dataset.column_names:
                dataset = dataset.remove_columns(ANNOTATOR_COLUMN)
            dataset = dataset.rename_column(annotator_column, ANNOTATOR_COLUMN)
        for row, value in enumerate(dataset[ANNOTATOR_COLUMN][:]):
            check_annotator(value, annotator_column, row)
        return dataset
    if annotator_column != ANNOTATOR_COLUMN:
        raise ValueError(
            f"There is no column {annotator_column!r} for the annotators. The data have: "
            f"{', '.join(dataset.column_names)}. Set `annotator_column` to one of them."
        )
    logger.warning(
        f"The preference data have no `annotator_id` column, so each {unit} is taken as its own annotator: one {unit} "
        "says very little about who gave it, components will be weak and nobody can be assigned reliably. If the data "
        "name their annotators under another name, set `annotator_column`."
    )
    return dataset.add_column(ANNOTATOR_COLUMN, [f"{unit}-{i}" for i in range(len(dataset))])


def _check_texts(dataset: Dataset) -> None:
    for row, (prompt, *replies) in enumerate(
        zip(prompts_of(dataset), dataset["chosen"][:], dataset["rejected"][:], strict=True)
    ):
        check_prompt(prompt, row)
        for name, reply in zip(("chosen", "rejected"), replies, strict=True):
            check_reply(reply, name, prompt, row)
        if type(replies[0]) is not type(replies[1]):
            raise ValueError(f"Row {row} has one reply as text and one in messages; give both in the same form.")


def without_ties(dataset: Dataset, chosen: Sequence[Any], rejected: Sequence[Any], reading: str = "") -> Dataset:
    """The pairs whose two replies differ; a warning says how many do not.

    Args:
        dataset (`Dataset`): N pairs.
        chosen, rejected (`Sequence`, N each): the replies as they are read, such as their token ids.
        reading (`str`): what makes them equal, for the message.

    Raises:
        ValueError: no pair is left.
    """
    keep = [i for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if a != b]
    ties = len(dataset) - len(keep)
    if not keep:
        raise ValueError(
            f"In all {ties} rows `chosen` equals `rejected`{reading}: there is no preference to learn from."
        )
    if ties:
        logger.warning(f"Dropped {ties} of {len(dataset)} pairs whose `chosen` equals `rejected`{reading}.")
        dataset = dataset.select(keep)
    return dataset


def check_annotator_count(dataset: Dataset, num_components: int | None) -> None:
    """Refuse more components than there are annotators.

    Raises:
        ValueError: see above.
    """
    if num_components is None:
        return
    annotators = len(set(dataset[ANNOTATOR_COLUMN][:]))
    if num_components > annotators:
        raise ValueError(
            f"num_components={num_components} is larger than the number of annotators ({annotators}): a component "
            f"describes at least one annotator. Use num_components between 1 and {annotators}."
        )


def is_known_group(group: Any) -> bool:
    """Whether a cell of a group column names a group: None, NaN and blank texts do not. "none" does.

    Example:

    >>> [is_known_group(cell) for cell in ("farmers", None, "", float("nan"), "nan", "none")]
    [True, False, False, False, False, True]
    """
    return group is not None and str(group).strip().lower() not in ("", "nan")


def require_group_column(
    group_column: str | None, annotator_column: str, columns: Sequence[str] | None = None
) -> None:
    """Refuse a column of groups that is not there, or that names the annotators themselves.

    Args:
        group_column (`str`, *optional*): None is never refused.
        annotator_column (`str`): the column that names the annotator.
        columns (`Sequence[str]`, *optional*): of the data, where they are known.

    Raises:
        ValueError: see above.
    """
    if group_column is not None and group_column in (annotator_column, ANNOTATOR_COLUMN):
        raise ValueError(
            f"group_column={group_column!r} names annotators, not groups of them. Name another column, or leave "
            "group_column out and let EM find groups."
        )
    if group_column is not None and columns is not None and group_column not in columns:
        raise ValueError(f"There is no column {group_column!r} of known groups; columns: {', '.join(columns)}.")


def known_groups(dataset: Dataset, group_column: str | None, num_components: int) -> dict[str | int, str]:
    """Group of each annotator whose group is known.

    Args:
        dataset (`Dataset`): of [`prepare_preferences`].
        group_column (`str`, *optional*): column of groups, None, NaN or blank in a row where it is unknown. Without it
            no group is used.
        num_components (`int`): K; every group is a component.

    Returns:
        `dict`: annotator id -> group; empty where no column is given.

    Raises:
        ValueError: no such column, that of the annotators, an annotator of two groups, more groups than components, or
            no group at all.
    """
    if group_column is None:
        return {}
    require_group_column(group_column, ANNOTATOR_COLUMN, dataset.column_names)
    groups: dict[str | int, str] = {}
    for annotator, group in zip(dataset[ANNOTATOR_COLUMN][:], dataset[group_column][:], strict=True):
        if not is_known_group(group):
            continue
        if groups.setdefault(annotator, str(group)) != str(group):
            raise ValueError(
                f"An annotator has two groups, {groups[annotator]!r} and {str(group)!r}. Give each annotator one "
                "group, or None where it is unknown."
            )
    count = len(set(groups.values()))
    if not 0 < count <= num_components:
        raise ValueError(
            f"Column {group_column!r} names {count} groups for {num_components} components. Set num_components, or "
            "the smallest candidate of select, to at least the number of groups, and name at least one."
        )
    return groups


def split_by_text(dataset: Dataset, heldout_fraction: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Set aside texts, where most of them stand in several pairs: who has trained on a text knows it.

    Held out are the pairs that have one of these texts, so none is lost; of some of them both texts are new. Where
    texts are few, or most stand in a single pair, [`split_by_annotator`] deals pairs.

    Args:
        dataset (`Dataset`): preferences, see [`prepare_preferences`].
        heldout_fraction (`float`): share of the pairs to hold out, about, in [0, 1).
        seed (`int`): of the random choice.

    Returns:
        `tuple[Dataset, Dataset | None]`: pairs to train and assign on, and held-out pairs (`None` where none are).

    Raises:
        ValueError: a fraction outside [0, 1).
    """
    texts = distinct_replies(prompts_of(dataset), _replies_of(dataset))[1]
    count, there = int(texts.max()) + 1, texts >= 0
    repeated = (np.bincount(texts[there], minlength=count)[texts] > 1) | ~there
    if count < _MIN_TEXTS or repeated.all(1).mean() <= 0.5 or not 0 < heldout_fraction < 1:
        return split_by_annotator(dataset, heldout_fraction, seed)
    # Pairs with neither text held out remain: (1 - q)^2 of them; of rankings of n, (1 - q)^n.
    size = max(1, round(count * (1 - (1 - heldout_fraction) ** (1 / there.sum(1).mean()))))
    new = np.zeros(count, dtype=bool)
    new[np.random.default_rng(seed).permutation(count)[:size]] = True
    held = (new[texts] & there).any(1)
    # An annotator whose pairs would all be held out keeps them: nothing else says who they are.
    annotators = np.array(number_values(dataset[ANNOTATOR_COLUMN][:]))
    lost = np.bincount(annotators[~held], minlength=annotators.max() + 1) == 0
    held &= ~lost[annotators]
    if not held.any():
        return split_by_annotator(dataset, heldout_fraction, seed)
    return dataset.select(np.flatnonzero(~held)), dataset.select(np.flatnonzero(held))


def split_by_annotator(
    dataset: Dataset, heldout_fraction: float, seed: int, annotator_column: str = ANNOTATOR_COLUMN
) -> tuple[Dataset, Dataset | None]:
    """Set aside a part of every annotator's pairs.

    An annotator is assigned to a component on one part of their pairs and scored on the other: accuracy on pairs that
    chose the component would flatter it. Pairs are held out, not texts; a warning says where that flatters too.

    Args:
        dataset (`Dataset`): with an `annotator_id` column.
        heldout_fraction (`float`): share of each annotator's pairs to hold out, in [0, 1). Annotators with one pair
            keep it for training.
        seed (`int`): of the random choice.
        annotator_column (`str`): the column that names the annotator.

    Returns:
        `tuple[Dataset, Dataset | None]`: pairs to train and assign on, and held-out pairs (`None` where none are).

    Raises:
        ValueError: a fraction outside [0, 1).
    """
    if not 0 <= heldout_fraction < 1:
        raise ValueError(f"heldout_fraction must lie in [0, 1), got {heldout_fraction}.")
    generator = np.random.default_rng(seed)
    rows: dict[Any, list[int]] = {}
    for row, annotator in enumerate(dataset[annotator_column]):
        rows.setdefault(annotator, []).append(row)
    heldout: list[int] = []
    for own in rows.values():
        count = min(round(heldout_fraction * len(own)), len(own) - 1)
        heldout.extend(generator.permutation(own)[:count].tolist())
    if not heldout:
        return dataset, None
    chosen = set(heldout)
    train, held = dataset.select([i for i in range(len(dataset)) if i not in chosen]), dataset.select(sorted(heldout))
    familiar = share_of_familiar_pairs(train, held, annotator_column)
    if familiar > _MAX_FAMILIAR_SHARE:
        logger.warning(
            f"{familiar:.0%} of the held-out pairs consist of two texts that the same annotator judges in training "
            "pairs as well. Held-out accuracy and likelihood then partly repeat what the training pairs say, the more "
            'so the more components there are: choose K with num_components="auto", which holds out texts, and '
            "measure accuracy on an eval_dataset of texts that are new to their annotators."
        )
    return train, held


def share_of_familiar_pairs(train: Dataset, heldout: Dataset, annotator_column: str = ANNOTATOR_COLUMN) -> float:
    """How many held-out pairs consist of two texts that their annotator judges in training pairs as well.

    Where one pair is made of each two votes of a person, nearly all do: who preferred A to C and B to D in training
    has half said which of A and D they prefer. Accuracy on such pairs is not accuracy on what the person says next.

    Args:
        train, heldout (`Dataset`): as [`split_by_annotator`] returns them.
        annotator_column (`str`): the column that names the annotator.

    Returns:
        `float`: a share of `heldout`, in [0, 1].

    Example:

    >>> pairs = [{"chosen": a, "rejected": b, "annotator_id": 1} for a in "ab" for b in "cd"]
    >>> share_of_familiar_pairs(Dataset.from_list(pairs[:3]), Dataset.from_list(pairs[3:]))
    1.0
    """
    people, prompts, replies = [], [], []
    for part in (train, heldout):
        people += part[annotator_column]
        prompts += prompts_of(part)
        replies += _replies_of(part)
    texts = distinct_replies(prompts, replies)[1]
    judged = np.array(number_values(people))[:, None] * (texts.max() + 1) + texts
    known = np.isin(judged[len(train) :], judged[: len(train)][texts[: len(train)] >= 0])
    return float((known | (texts[len(train) :] < 0)).all(1).mean())


def _replies_of(dataset: Dataset) -> list[Sequence[Any]]:
    """What each row compares, in pairs or in rankings."""
    if "responses" in dataset.column_names:
        return dataset["responses"][:]
    return list(zip(dataset["chosen"][:], dataset["rejected"][:], strict=True))
