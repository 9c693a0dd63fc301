# SPDX-License-Identifier: Apache-2.0
"""How sure a mixture may be: of a reply that nobody judged, and of who somebody is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.logging import get_logger

from ...functional.evidence import MIN_EVIDENCE_WEIGHT, EvidenceWeight, fit_evidence_weight
from ...functional.feature_pairs import FeaturePairs, deal_folds
from ...functional.heldout import NUM_FOLDS, annotator_folds, heldout_differences, text_folds
from ...functional.preference import preference_log_likelihood


logger = get_logger(__name__)

#: Ways to deal an annotator's texts into halves.
_NUM_SPLITS = 3
#: Of two new texts: below it, pairs of one new text help to fit temperatures.
MIN_NEW_PAIRS = 200


def differences_on_new_texts(
    pairs: FeaturePairs, responsibilities: torch.Tensor, prior_scale: float, seed: int
) -> torch.Tensor:
    """`(N, K)` reward differences of training pairs by heads that know neither text; NaN where no fold holds both.

    Args:
        pairs ([`FeaturePairs`]): training pairs.
        responsibilities (`torch.Tensor` of shape `(N, K)`): of their annotators.
        prior_scale (`float`): of the heads.
        seed (`int`): of the folds.
    """
    folds = text_folds(pairs, NUM_FOLDS, torch.Generator().manual_seed(seed))
    return heldout_differences(pairs, responsibilities, folds, prior_scale)


def scores_of_new_people(
    pairs: FeaturePairs, responsibilities: torch.Tensor, prior_scale: float, seed: int
) -> torch.Tensor:
    """`(N, K)` log-likelihood of training pairs under heads that know nothing of their annotator, nats."""
    folds = annotator_folds(pairs.annotator_index, NUM_FOLDS, torch.Generator().manual_seed(seed))
    differences = heldout_differences(pairs, responsibilities, folds, prior_scale)
    return preference_log_likelihood(differences, torch.zeros_like(differences), pairs.margin)


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
        texts (two tensors of shape `(N,)`): numbers of the chosen and of the rejected text of each pair.
        annotator_index (`torch.Tensor` of shape `(N,)`): whose they are.
        mixing_weights (`torch.Tensor` of shape `(K,)`): share of each component.
        seed (`int`): of the halves.

    Returns:
        [`EvidenceWeight`], or `None` where too few annotators have pairs of two texts apart.
    """
    chosen, rejected = texts
    count = int(torch.cat([chosen, rejected]).max()) + 1
    pairs = FeaturePairs(torch.zeros(count, 1), chosen, rejected, annotator_index)
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
