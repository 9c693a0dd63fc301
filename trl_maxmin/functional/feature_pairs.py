# SPDX-License-Identifier: Apache-2.0
"""Preference pairs over texts that are known by their features, and the folds they are dealt into."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .feature_rankings import FeatureRankings
from .preference import vote_log_likelihood


@dataclass(frozen=True)
class FeaturePairs:
    """Preference pairs over texts that are known by their features.

    Args:
        features (`Tensor` of shape `(M, D)`): what a head reads of each distinct text.
        chosen (`Tensor` of shape `(N,)`): row of the preferred text.
        rejected (`Tensor` of shape `(N,)`): row of the other text.
        annotator_index (`Tensor` of shape `(N,)`): annotator 0..H-1.
        margin (`Tensor` of shape `(N,)`, *optional*): Bradley-Terry log-odds.
        share (`Tensor` of shape `(N,)`, *optional*): of the votes for the chosen text.
    """

    features: Tensor
    chosen: Tensor
    rejected: Tensor
    annotator_index: Tensor
    margin: Tensor | None = None
    share: Tensor | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    @classmethod
    def from_rankings(cls, rankings: FeatureRankings) -> FeaturePairs | None:
        """Rankings of two as the pairs that they are; None where any is of more, or a tie."""
        (block, *others) = rankings.choices.blocks or (None,)
        if block is None or others or block.sizes != (1, 1) or len(block.rows) < len(rankings):
            return None
        chosen, rejected = block.responses.T
        return cls(rankings.features, chosen, rejected, rankings.annotator_index, rankings.choices.margin)

    def select(self, rows: Tensor) -> FeaturePairs:
        """The pairs of a mask or of row numbers; the texts stay."""
        margin, share = (None if of is None else of[rows] for of in (self.margin, self.share))
        own = (self.chosen[rows], self.rejected[rows], self.annotator_index[rows])
        return FeaturePairs(self.features, *own, margin, share)

    def of_annotators(self, annotator_index: Tensor) -> FeaturePairs:
        """The same pairs, given by others."""
        return replace(self, annotator_index=annotator_index)

    @property
    def sides(self) -> Tensor:
        """`(N, 2)`: rows of the two texts."""
        return torch.stack([self.chosen, self.rejected], dim=1)

    def moment(self, features: Tensor) -> Tensor:
        """`(D, D)`: mean outer product of the differences, for features `(M, D)` of the texts."""
        moment = features.new_zeros(features.shape[1], features.shape[1])
        for rows in torch.arange(len(self)).split(8192):
            part = features[self.chosen[rows]] - features[self.rejected[rows]]
            moment += part.T @ part
        return moment / max(len(self), 1)

    def in_directions(self, directions: Tensor) -> FeaturePairs:
        """The pairs with features `(M, R)` in these directions. Where texts are more numerous than pairs, a pair
        becomes one row, its difference, against a row of zeros."""
        features = self.features.float()
        if len(features) <= len(self):
            return replace(self, features=(features - features.mean(0)) @ directions)
        difference = (features[self.chosen] - features[self.rejected]) @ directions
        rows = torch.cat([difference, difference.new_zeros(1, directions.shape[1])])
        number = torch.arange(len(self))
        return replace(self, features=rows, chosen=number, rejected=torch.full_like(number, len(self)))

    def log_likelihood(self, weight: Tensor) -> Tensor:
        """`(N, K)` log-likelihood of the pairs under rewards `features @ weight.T`, nats."""
        rewards = self.features.to(weight) @ weight.T
        difference = rewards[self.chosen] - rewards[self.rejected]
        if self.margin is not None:
            difference = difference - self.margin.to(weight).unsqueeze(1)
        return vote_log_likelihood(difference, self.share)


def deal_folds(pairs: FeaturePairs | FeatureRankings, num_folds: int, generator: torch.Generator) -> Tensor:
    """Folds of the chosen and of the rejected text of each pair; every annotator's are dealt out evenly.

    Who has said that A beats B and B beats C has said that A beats C. Where an annotator judged a text in several
    pairs, a held-out pair of texts that the other pairs hold would therefore score what is known of this annotator
    already, and the more components there are, the better they remember it. Pairs that hang together by such texts go
    into one fold; where that would be more than the share of a fold (each statement that a person agrees with against
    each that they disagree with, say), the annotator's texts are dealt out instead. A pair with texts of two folds
    belongs to neither: it is not scored, and what scores either fold has not seen it.

    Args:
        pairs ([`FeaturePairs`]): the pairs; equal rows of `features` are equal texts.
        num_folds (`int`): number of folds.
        generator (`torch.Generator`): on the CPU.

    Returns:
        `Tensor` of shape `(N, 2)`, integers; both entries are the same for every pair whose texts its annotator judged
        nowhere else.

    Example:

    >>> chosen, rejected = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 3, 2, 3])
    >>> votes = FeaturePairs(torch.eye(4), chosen, rejected, torch.zeros(4).long())
    >>> deal_folds(votes, 2, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 2])
    """
    order = torch.randperm(len(pairs), generator=generator)
    by_annotator = order[torch.argsort(pairs.annotator_index[order], stable=True)]
    fold = torch.empty(len(pairs), dtype=torch.long)
    fold[by_annotator] = torch.arange(len(pairs)) % num_folds
    sides = pairs.sides
    folds = fold.unsqueeze(1).repeat(1, sides.shape[1])
    for rows in _rows_that_share_texts(pairs):
        folds[rows] = deal_texts(sides[rows].tolist(), num_folds, generator)
    return folds


def own_folds(sides: Tensor, folds: Tensor) -> Tensor:
    """The fold `(N,)` that scores each row. A row with texts of several folds is scored by what has not seen one of
    them; which one does not depend on who was preferred.

    Args:
        sides (`Tensor` of shape `(N, n)`): numbers of the texts, -1 where there are fewer.
        folds (`Tensor` of shape `(N, n)`): theirs.

    Example:

    >>> own_folds(torch.tensor([[4, 2], [2, 4], [1, 2]]), torch.tensor([[0, 1], [1, 0], [0, 1]])).tolist()
    [0, 0, 0]
    """
    there = sides >= 0
    # Texts may be numbered in the order of preference: so it is not always the lowest number.
    position = (sides.masked_fill(~there, 0).sum(1) + 1) % there.sum(1)
    order = sides.masked_fill(~there, sides.max() + 1).argsort(1)
    return folds.gather(1, order.gather(1, position.unsqueeze(1))).squeeze(1)


def _rows_that_share_texts(pairs: FeaturePairs | FeatureRankings) -> list[Tensor]:
    """Rows of each annotator who judged a text in more than one row."""
    sides = pairs.sides + pairs.annotator_index.unsqueeze(1) * len(pairs.features)
    judged, times = torch.unique(sides[pairs.sides >= 0], return_counts=True)
    sharing = torch.unique(judged[times > 1] // max(len(pairs.features), 1))
    own = torch.isin(pairs.annotator_index, sharing).nonzero().flatten()
    own = own[torch.argsort(pairs.annotator_index[own], stable=True)]
    counts = torch.unique(pairs.annotator_index[own], return_counts=True)[1]
    return list(own.split(counts.tolist()))


def deal_texts(sides: list[list[int]], num_folds: int, generator: torch.Generator) -> Tensor:
    """Folds of the texts of one annotator's rows: connected rows together, or text by text where they are too many.

    Args:
        sides (`list[list[int]]`): numbers of the texts of each row, -1 where it has fewer than others.
        num_folds (`int`): number of folds.
        generator (`torch.Generator`): on the CPU.

    Returns:
        `Tensor` of the shape of `sides`, integers; the first text's where there is none.

    Example:

    >>> deal_texts([[0, 1], [1, 2], [5, 6]], 2, torch.Generator().manual_seed(0)).tolist()
    [[0, 0], [0, 0], [1, 1]]
    """
    rows = [[text for text in row if text >= 0] for row in sides]
    width = max(map(len, rows))
    # One side after the other, as they come in pairs.
    root = {row[side]: row[side] for side in range(width) for row in rows if side < len(row)}

    def find(text: int) -> int:
        """The text that stands for all that hang together with this one."""
        while root[text] != text:
            root[text] = text = root[root[text]]
        return text

    for one, *others in rows:
        for other in others:
            root[find(one)] = find(other)
    members: dict[int, list[int]] = {}
    for text in root:
        members.setdefault(find(text), []).append(text)
    sizes = dict.fromkeys(members, 0)
    for row in rows:
        sizes[find(row[0])] += 1
    units: list[list[int]] = []
    for name, texts in members.items():
        if sizes[name] <= max(1, math.ceil(len(rows) / num_folds)):
            units.append(texts)
            continue
        # At least two texts in each part, since a part of one text holds no pair.
        parts = min(num_folds, max(1, len(texts) // 2))
        shuffled = [texts[i] for i in torch.randperm(len(texts), generator=generator).tolist()]
        units += [shuffled[part::parts] for part in range(parts)]
    fold = {}
    for position, unit in enumerate(torch.randperm(len(units), generator=generator).tolist()):
        fold.update(dict.fromkeys(units[unit], position % num_folds))
    return torch.tensor(
        [[fold[text if text >= 0 else row[0]] for text in side] for side, row in zip(sides, rows, strict=True)]
    )
