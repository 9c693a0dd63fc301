# SPDX-License-Identifier: Apache-2.0
"""How sure a mixture may be: of a reply that nobody judged, and of who somebody is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.logging import get_logger

from ...functional.evidence import MIN_EVIDENCE_WEIGHT, EvidenceWeight, fit_evidence_weight
from ...functional.feature_pairs import FeaturePairs, deal_folds
from ...functional.feature_rankings import FeatureRankings
from ...functional.heldout import NUM_FOLDS, annotator_folds, heldout_differences, heldout_rankings, text_folds
from ...functional.ranking import RankedChoices
from .scored_rows import ScoredPairs, ScoredRankings


logger = get_logger(__name__)

#: Ways to deal an annotator's texts into halves.
_NUM_SPLITS = 3
#: Of two new texts: below it, pairs of one new text help to fit temperatures.
MIN_NEW_PAIRS = 200


def scored_on_new_texts(
    pairs: FeaturePairs | FeatureRankings, responsibilities: torch.Tensor, prior_scale: float, seed: int
) -> tuple[ScoredPairs | ScoredRankings, torch.Tensor]:
    """Training pairs or rankings that lie in a fold of texts as a whole, by heads that know none of their texts; and
    which they are, `(N,)`.

    Args:
        pairs ([`FeaturePairs`] or [`FeatureRankings`]): training rows.
        responsibilities (`torch.Tensor` of shape `(N, K)`): of their annotators.
        prior_scale (`float`): of the heads.
        seed (`int`): of the folds.
    """
    folds = text_folds(pairs, NUM_FOLDS, torch.Generator().manual_seed(seed))
    return _heldout(pairs, responsibilities, folds, prior_scale)


def _heldout(
    pairs: FeaturePairs | FeatureRankings, responsibilities: torch.Tensor, folds: torch.Tensor, prior_scale: float
) -> tuple[ScoredPairs | ScoredRankings, torch.Tensor]:
    if isinstance(pairs, FeatureRankings):
        rewards, choices, inside = heldout_rankings(pairs, responsibilities, folds, prior_scale)
        return ScoredRankings(rewards, choices), inside
    differences = heldout_differences(pairs, responsibilities, folds, prior_scale)
    inside = differences.isfinite().all(1)
    return ScoredPairs(differences, pairs.margin, pairs.share).select(inside), inside


def scores_of_new_people(
    pairs: FeaturePairs | FeatureRankings, responsibilities: torch.Tensor, prior_scale: float, seed: int
) -> torch.Tensor:
    """`(N, K)` log-likelihood of training pairs or rankings under heads that know nothing of their annotator, nats."""
    folds = annotator_folds(pairs.annotator_index, NUM_FOLDS, torch.Generator().manual_seed(seed))
    return _heldout(pairs, responsibilities, folds, prior_scale)[0].log_likelihood()


def weigh_evidence(
    scores: torch.Tensor,
    texts: Sequence[torch.Tensor],
    annotator_index: torch.Tensor,
    mixing_weights: torch.Tensor,
    seed: int,
) -> EvidenceWeight | None:
    """Fit the weight of an annotator's pairs.

    Args:
        scores (`torch.Tensor` of shape `(N, K)`): of training pairs, nats; NaN: not scored.
        texts (n tensors of shape `(N,)`): numbers of the chosen and of the rejected text of each pair, or of all texts
            of each ranking; -1 where it has fewer.
        annotator_index (`torch.Tensor` of shape `(N,)`): whose they are.
        mixing_weights (`torch.Tensor` of shape `(K,)`): share of each component.
        seed (`int`): of the halves.

    Returns:
        [`EvidenceWeight`], or `None` where too few annotators have pairs of two texts apart.
    """
    sides = torch.stack([*texts], dim=1)
    nothing = torch.zeros(int(sides.max()) + 1, 1)
    pairs: FeaturePairs | FeatureRankings = FeaturePairs(nothing, sides[:, 0], sides[:, 1], annotator_index)
    if sides.shape[1] > 2:
        pairs = FeatureRankings(nothing, RankedChoices(sides, torch.zeros_like(sides), annotator_index))
    folds = [deal_folds(pairs, 2, torch.Generator().manual_seed(seed + i)) for i in range(_NUM_SPLITS)]
    return fit_evidence_weight(scores, annotator_index, folds, mixing_weights)


def say_how_sure(found: EvidenceWeight | None) -> None:
    """What the weight means, into the log of the main process.

    Args:
        found ([`EvidenceWeight`], *optional*): from [`weigh_evidence`].
    """
    if found is None:
        logger.info(
            "Fewer than two annotators have pairs of texts apart, so nothing says how sure assignments may be; each "
            "pair counts whole."
        )
        return
    logger.info(
        f"Each pair of an annotator counts {found.weight:.2f} in their assignment: two halves of a person's pairs "
        f"agree in {found.observed:.1%} of {found.num_annotators} annotators, and posteriors announce "
        f"{found.expected:.1%} (whole pairs: {found.observed_unweighted:.1%} and {found.expected_unweighted:.1%})."
    )
    if found.says_nothing or found.weight <= MIN_EVIDENCE_WEIGHT:
        logger.warning(
            f"Two halves of a person's pairs agree about as often as those of two strangers (weight of the evidence "
            f"{found.weight:.2f}): these components are no groups of people. Fit fewer (num_components=1), or collect "
            "more pairs of each annotator."
        )
