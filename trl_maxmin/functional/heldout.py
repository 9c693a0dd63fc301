# SPDX-License-Identifier: Apache-2.0
"""What components say of texts, or of people, that their rewards were fitted without.

Once it is known who belongs where, rewards are cheap: all folds are fitted in one go. Texts are held out to see how
sure a reward may be of a reply that nobody judged, people to see how sure it may be of somebody new.

Letters: M texts, N pairs, H annotators, K components, F folds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .em_features import fit_rewards
from .feature_pairs import FeaturePairs, deal_texts
from .feature_rankings import FeatureRankings
from .ranking import RankedChoices


NUM_FOLDS = 5


def text_folds(pairs: FeaturePairs | FeatureRankings, num_folds: int, generator: torch.Generator) -> Tensor:
    """Folds of the texts of each pair or ranking, the same for everybody who judged a text.

    Pairs that hang together by texts fall into one fold; where that would be more than a fold's share, texts are dealt
    out one by one, and a pair with texts of two folds belongs to neither.

    Args:
        pairs ([`FeaturePairs`] or [`FeatureRankings`]): equal rows of `features` are equal texts.
        num_folds (`int`): F.
        generator (`torch.Generator`): on the CPU.

    Returns:
        `Tensor` of shape `(N, 2)`, of rankings `(N, n)`, integers.

    Example:

    >>> pairs = FeaturePairs(torch.eye(4), torch.tensor([0, 2, 2]), torch.tensor([1, 3, 3]), torch.arange(3))
    >>> folds = text_folds(pairs, 2, torch.Generator().manual_seed(0))
    >>> bool((folds[1] == folds[2]).all()), bool((folds[0] != folds[1]).all())
    (True, True)
    """
    return deal_texts(pairs.sides.tolist(), num_folds, generator)


def annotator_folds(annotator_index: Tensor, num_folds: int, generator: torch.Generator) -> Tensor:
    """Folds of people: `(N, 2)` as in [`text_folds`], both entries the fold of the pair's annotator.

    Example:

    >>> annotator_folds(torch.tensor([0, 0, 1]), 2, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    count = int(annotator_index.max()) + 1
    fold = torch.randperm(count, generator=generator) % num_folds
    return fold[annotator_index].unsqueeze(1).repeat(1, 2)


def heldout_differences(pairs: FeaturePairs, responsibilities: Tensor, folds: Tensor, prior_scale: float) -> Tensor:
    """Reward of the chosen minus that of the rejected reply, from rewards that know neither of the two folds.

    Args:
        pairs ([`FeaturePairs`]): N pairs.
        responsibilities (`Tensor` of shape `(N, K)`): of the pairs' annotators.
        folds (`Tensor` of shape `(N, 2)`): from [`text_folds`] or [`annotator_folds`].
        prior_scale (`float`): standard deviation of a pair's log-odds under the prior on the rewards.

    Returns:
        `Tensor` of shape `(N, K)`, float64, Bradley-Terry log-odds; NaN for pairs that lie in no fold as a whole.

    Raises:
        ValueError: features that are the same in every pair.

    Example:

    >>> pairs = FeaturePairs(torch.eye(2), torch.zeros(8).long(), torch.ones(8).long(), torch.arange(8))
    >>> folds = annotator_folds(pairs.annotator_index, 2, torch.Generator().manual_seed(0))
    >>> bool((heldout_differences(pairs, torch.ones(8, 1), folds, 3.0) > 0).all())
    True
    """
    rewards, inside = _rewards_by_fold(pairs, responsibilities, folds, prior_scale)
    own = folds[:, 0]
    differences = rewards[pairs.chosen, own] - rewards[pairs.rejected, own]
    return torch.where(inside.unsqueeze(1), differences, torch.nan)


def heldout_rankings(
    rankings: FeatureRankings, responsibilities: Tensor, folds: Tensor, prior_scale: float
) -> tuple[Tensor, RankedChoices, Tensor]:
    """[`heldout_differences`] of rankings: rewards of their replies, which know nothing of the ranking's fold.

    Args:
        rankings ([`FeatureRankings`]): N rankings.
        responsibilities, folds, prior_scale: as there; folds are `(N, n)` or, of people, `(N, 2)`.

    Returns:
        `Tensor` of shape `(N' * n, K)`, float64, rewards of the replies of the N' rankings that lie in a fold as a
        whole, these rankings over that table, and which they are: `(N,)`, boolean.

    Raises:
        ValueError: features that are the same in every ranking.
    """
    rewards, inside = _rewards_by_fold(rankings, responsibilities, folds, prior_scale)
    rows, choices = rankings.choices.select(inside).apart()
    own = folds[inside, 0].repeat_interleave(choices.responses.shape[1])
    return rewards[rows, own], choices, inside


def _rewards_by_fold(
    pairs: FeaturePairs | FeatureRankings, responsibilities: Tensor, folds: Tensor, prior_scale: float
) -> tuple[Tensor, Tensor]:
    """`(M, F, K)`: rewards of all texts that know nothing of each fold; and which rows lie in one fold, `(N,)`."""
    count, components = int(folds.max()) + 1, responsibilities.shape[1]
    seen = (folds.unsqueeze(1) != torch.arange(count).unsqueeze(1)).all(2).float()
    weights = (seen.unsqueeze(2) * responsibilities.float().unsqueeze(1)).flatten(1)
    weight = fit_rewards(pairs, weights, prior_scale)
    rewards = (pairs.features.to(weight) @ weight.T).view(-1, count, components)
    return rewards, (folds == folds[:, :1]).all(1)
