# SPDX-License-Identifier: Apache-2.0
"""Simulated votes of two groups on pairs that there are, by the people there are: what such data could have shown."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .feature_pairs import FeaturePairs
from .feature_rankings import FeatureRankings
from .ranking import RankedChoices


_LARGEST = 8.0  # standard deviation of the log-odds by which groups differ, where no more is tried
_NUM_PARTS = 5


def plant_two_groups(
    pairs: FeaturePairs | FeatureRankings, weight: Tensor, small: Tensor, gain: float, generator: torch.Generator
) -> FeaturePairs | FeatureRankings:
    """The same pairs by the same people, with votes drawn anew from two groups.

    The larger group has a given reward, the smaller one that reward and a random one in addition, as large as makes it
    worth `gain` to know both (or, where no difference is worth as much in so few pairs a person, eight log-odds).

    Args:
        pairs ([`FeaturePairs`] or [`FeatureRankings`]): N pairs, or rankings: the same replies are ranked anew, and as
            much is told of the order.
        weight (`Tensor` of shape `(D,)`): of the larger group's reward.
        small (`Tensor` of shape `(H,)`): who is of the smaller group.
        gain (`float`): nats a pair or ranking.
        generator (`torch.Generator`): on the CPU.

    Returns:
        [`FeaturePairs`] or [`FeatureRankings`]: without margins.
    """
    if isinstance(pairs, FeatureRankings):
        return _plant_rankings(pairs, weight, small, gain, generator)
    features = pairs.features.double()
    other = torch.randn(features.shape[1], generator=generator, dtype=torch.float64) * features.std(0)
    common, extra = (_difference(pairs, features @ direction) for direction in (weight.double(), other))
    extra = extra / extra.std().clamp(min=1e-12)
    share = small.double().mean().item()
    # Which of a pair stands first must say nothing: so the coin is for the first of the two as they are numbered.
    uniform = torch.rand(len(pairs), generator=generator, dtype=torch.float64)
    fold = torch.randint(_NUM_PARTS, (len(pairs),), generator=generator)
    low, high = 0.0, _LARGEST
    for _ in range(12):
        middle = (low + high) / 2
        log_odds = torch.stack([common, common + middle * extra], dim=1)
        worth = worth_of_knowing(log_odds, pairs.annotator_index, small, share, uniform, fold)
        low, high = (low, middle) if worth > gain else (middle, high)
    own = common + torch.where(small[pairs.annotator_index], high, 0.0) * extra
    stays = uniform < torch.sigmoid(own)
    chosen, rejected = (
        torch.where(stays, one, two) for one, two in ((pairs.chosen, pairs.rejected), (pairs.rejected, pairs.chosen))
    )
    return replace(pairs, chosen=chosen, rejected=rejected, margin=None, share=None)


def _plant_rankings(
    rankings: FeatureRankings, weight: Tensor, small: Tensor, gain: float, generator: torch.Generator
) -> FeatureRankings:
    choices, features = rankings.choices, rankings.features.double()
    other = torch.randn(features.shape[1], generator=generator, dtype=torch.float64) * features.std(0)
    common, extra = features @ weight.double(), features @ other
    _, better, worse = choices.comparisons()
    extra = extra / (extra[better] - extra[worse]).std().clamp(min=1e-12)
    share = small.double().mean().item()
    noise = -torch.rand(choices.responses.shape, generator=generator, dtype=torch.float64).log().neg().log()
    fold = torch.randint(_NUM_PARTS, (len(choices),), generator=generator)
    at, is_small = choices.responses.clamp(min=0), small[choices.annotator_index].unsqueeze(1)

    def anew(size: float) -> tuple[RankedChoices, Tensor]:
        """Rankings, and their likelihood `(N, 2)` under both rewards."""
        rewards = torch.stack([common, common + size * extra], dim=1)
        drawn = choices.drawn(torch.where(is_small, rewards[at, 1], rewards[at, 0]), noise)
        return drawn, drawn.log_likelihood(rewards)

    low, high = 0.0, _LARGEST
    for _ in range(12):
        middle = (low + high) / 2
        likelihood = anew(middle)[1]
        posterior, prior = _posterior(likelihood, choices.annotator_index, len(small), share, fold)
        # Each ranking as it was drawn: there are too many outcomes for an expectation.
        worth = ((posterior + likelihood).logsumexp(1) - (prior + likelihood).logsumexp(1)).mean()
        low, high = (low, middle) if worth > gain else (middle, high)
    return replace(rankings, choices=anew(high)[0])


def who_is_small(num_annotators: int, share: float, generator: torch.Generator) -> Tensor:
    """`(H,)` whether an annotator is of the smaller of two groups: a share of them by lot, at least one, never all.

    Example:

    >>> int(who_is_small(12, 0.1, torch.Generator().manual_seed(0)).sum())
    1
    """
    small = torch.zeros(num_annotators, dtype=torch.bool)
    count = min(max(round(share * num_annotators), 1), num_annotators - 1)
    small[torch.randperm(num_annotators, generator=generator)[:count]] = True
    return small


def worth_of_knowing(
    log_odds: Tensor, annotator_index: Tensor, small: Tensor, share: float, uniform: Tensor, fold: Tensor
) -> float:
    """Nats a pair that the two true rewards gain, each annotator placed by their pairs of the other folds, against
    the two mixed by their shares.

    Args:
        log_odds (`Tensor` of shape `(N, 2)`): of the larger and the smaller group.
        annotator_index (`Tensor` of shape `(N,)`): annotator of each pair.
        small (`Tensor` of shape `(H,)`): who is of the smaller group.
        share (`float`): of it.
        uniform (`Tensor` of shape `(N,)`): in [0, 1), by which votes are drawn.
        fold (`Tensor` of shape `(N,)`): in 0..4.
    """
    own = log_odds.gather(1, small[annotator_index].long().unsqueeze(1)).squeeze(1)
    sign = torch.where(uniform < torch.sigmoid(own), 1.0, -1.0).unsqueeze(1)
    likelihood = F.logsigmoid(sign * log_odds)
    posterior, prior = _posterior(likelihood, annotator_index, len(small), share, fold)
    # In expectation over the vote of the pair itself.
    worth = torch.zeros(())
    for side in (1.0, -1.0):
        of = F.logsigmoid(side * log_odds)
        gained = (posterior + of).logsumexp(1) - (prior + of).logsumexp(1)
        worth = worth + (torch.sigmoid(side * own) * gained).mean()
    return worth.item()


def _posterior(
    likelihood: Tensor, annotator_index: Tensor, num_annotators: int, share: float, fold: Tensor
) -> tuple[Tensor, Tensor]:
    """Log posterior `(N, 2)` of each row's annotator from their rows of the other folds, and the log prior `(2,)`."""
    cells = torch.zeros(num_annotators * _NUM_PARTS, 2, dtype=torch.float64)
    cells.index_add_(0, annotator_index * _NUM_PARTS + fold, likelihood)
    cells = cells.view(-1, _NUM_PARTS, 2)
    prior = torch.tensor([1 - share, share], dtype=torch.float64).log()
    return torch.log_softmax(prior + cells.sum(1, keepdim=True) - cells, dim=-1)[annotator_index, fold], prior


def _difference(pairs: FeaturePairs, rewards: Tensor) -> Tensor:
    return rewards[pairs.chosen] - rewards[pairs.rejected]
