# SPDX-License-Identifier: Apache-2.0
"""How well a mixture serves people it has just met: accuracy against the number of their pairs it has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..functional.em import (
    annotator_log_likelihood,
    clustered_error,
    log_responsibilities,
    posterior_entropy,
    predictive_log_likelihood,
)
from ..functional.ranking import RankedChoices


CURVE_SIZES = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True)
class AssignmentPoint:
    """One point of [`assignment_curve`].

    Args:
        num_seen (`int`): pairs of each annotator that assigned them.
        accuracy (`float`): share of their judging pairs to whose chosen reply the posterior gives more than one half;
            of rankings, of which the most probable best reply is the best.
        standard_error (`float`): of the accuracy, clustered by annotator.
        log_likelihood (`float`): mean over judging pairs, nats.
        entropy (`float`): mean entropy of the posterior, nats.
        num_annotators, num_pairs (`int`): who was judged, on how many pairs.
        tau (`float`, *optional*): Kendall's, of rankings.
    """

    num_seen: int
    accuracy: float
    standard_error: float
    log_likelihood: float
    entropy: float
    num_annotators: int
    num_pairs: int
    tau: float | None = None


def assignment_curve(
    log_likelihood: torch.Tensor,
    annotator_index: torch.Tensor,
    mixing_weights: torch.Tensor,
    *,
    generator: torch.Generator,
    sizes: Sequence[int] = CURVE_SIZES,
    texts: torch.Tensor | None = None,
    evidence_weight: float = 1.0,
    rankings: tuple[torch.Tensor, RankedChoices] | None = None,
) -> list[AssignmentPoint]:
    """Assign each annotator by some of their pairs and score the rest.

    Every size is judged on the same annotators and the same pairs, so the curve rises or falls for one reason only:
    annotators with more than `max(sizes)` pairs take part, and the pairs beyond that number judge. With `texts`,
    pairs that share a text with the first `max(sizes)` of their annotator do not: they would partly repeat those.

    Args:
        log_likelihood (`torch.Tensor` of shape `(N, K)`): of the pairs of annotators who did not train, nats.
        annotator_index (`torch.Tensor` of shape `(N,)`): whose pair it is, 0..H-1.
        mixing_weights (`torch.Tensor` of shape `(K,)`): the posterior of who has shown nothing.
        generator (`torch.Generator`): of the order of each annotator's pairs.
        sizes (`Sequence[int]`): numbers of pairs seen.
        texts (`torch.Tensor` of shape `(N, 2)`, *optional*): numbers of the two texts of each pair; of rankings
            `(N, n)`, -1 where one has fewer.
        evidence_weight (`float`): of the pairs seen, in (0, 1].
        rankings (`tuple[torch.Tensor, RankedChoices]`, *optional*): where rows are rankings, rewards `(M, K)` of their
            texts, and the rankings, for top-1 and tau.

    Returns:
        `list[AssignmentPoint]`, one per size.

    Raises:
        ValueError: fewer than two annotators have pairs left to judge beyond the largest size.

    Example:

    >>> sure = torch.tensor([[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3).log()
    >>> curve = assignment_curve(sure, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0.6, 0.4]),
    ...                          generator=torch.Generator().manual_seed(0), sizes=(0, 1))
    >>> [point.accuracy for point in curve]
    [0.5, 1.0]
    """
    order = torch.randperm(len(annotator_index), generator=generator)
    order = order[torch.argsort(annotator_index[order], stable=True)]
    people = annotator_index[order]
    counts = torch.bincount(people)
    starts = counts.cumsum(0) - counts
    position = torch.arange(len(people)) - starts[people]
    judged = position >= max(sizes)
    if texts is not None:
        # Those that share a text with one of the same annotator's pairs that are seen.
        keys = people.unsqueeze(1) * (int(texts.max()) + 1) + texts[order]
        there = texts[order] >= 0
        judged &= ~(torch.isin(keys, keys[~judged][there[~judged]]) & there).any(1)
    enough = torch.bincount(people[judged], minlength=len(counts)) > 0
    if int(enough.sum()) < 2:
        raise ValueError(
            f"{int(enough.sum())} annotators have more than {max(sizes)} pairs"
            f"{' and some that share no text with those' if texts is not None else ''}, but the curve needs two at "
            "least. Give smaller sizes, or more pairs of the same people."
        )
    taking_part = enough[people]
    order, people, position, judged = (t[taking_part] for t in (order, people, position, judged))
    people = torch.unique(people, return_inverse=True)[1]
    scores = log_likelihood[order].double()
    log_mixing = mixing_weights.double().log()
    ranked = None if rankings is None else (rankings[0], rankings[1].select(order[judged]))
    return [
        _point(size, scores, people, position < size, judged, log_mixing, evidence_weight, ranked) for size in sizes
    ]


def _point(
    size: int,
    scores: torch.Tensor,
    people: torch.Tensor,
    seen: torch.Tensor,
    judged: torch.Tensor,
    log_mixing: torch.Tensor,
    evidence_weight: float,
    ranked: tuple[torch.Tensor, RankedChoices] | None,
) -> AssignmentPoint:
    count = int(people.max()) + 1
    sums = annotator_log_likelihood(scores[seen], people[seen], count)
    log_resp = log_responsibilities(sums, log_mixing, evidence_weight)
    predictive = predictive_log_likelihood(scores[judged], log_resp, people[judged])
    right, tau = (predictive.exp() > 0.5).double(), None
    if ranked is not None:
        chance, own = ranked[1].blended(ranked[0].double(), log_resp[people[judged]])
        right, tau = own.top_accuracy(chance)[:, 0], own.kendall_tau(chance).mean().item()
    return AssignmentPoint(
        size,
        right.mean().item(),
        clustered_error(right, people[judged], count),
        predictive.mean().item(),
        posterior_entropy(log_resp).mean().item(),
        count,
        len(right),
        tau,
    )
