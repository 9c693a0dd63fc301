# SPDX-License-Identifier: Apache-2.0
"""How much an annotator's pairs say about who they are: one weight of the evidence, and whether it is calibrated.

A product over the pairs of a person is surer than it should be: within a component people still differ from it, the
rewards are estimates, and both err in the same direction in many pairs of one person. The posterior is therefore a
power posterior, `gamma[h, k] proportional to pi_k exp(alpha L[h, k])`, with one weight `alpha` in (0, 1].

`alpha` comes from halves. Each annotator's texts are dealt into two halves, and both halves assign the annotator. If
posteriors mean what they say, the second half agrees with the first as often as the first announces and the second can
tell: `E[gamma_2k | first half] = sum_j gamma_1j M_jk`, where `M_jk` is the mean of `gamma_2k` over people of component
j. Under too large a weight the halves agree less often than that.

Letters: N pairs, H annotators, K components, S ways to deal halves. Log-likelihoods are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .em import annotator_log_likelihood, log_responsibilities
from .preference import require_shape


MIN_EVIDENCE_WEIGHT = 0.05
"""Twenty pairs then say as much as one does in a plain product: below it, components are no groups of people."""
_STRATUM = 50
_MOST_STRATA = 4
_BINS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class EvidenceWeight:
    """What [`fit_evidence_weight`] found. Agreements are shares of annotators, in [0, 1].

    Args:
        weight (`float`): alpha, in [0.05, 1].
        expected (`float`): how often two halves of a person's pairs give the same component, as the posterior under
            `weight` says.
        observed (`float`): how often they do.
        expected_unweighted, observed_unweighted (`float`): the same under a weight of 1.
        excess (`float`): agreement of the two posteriors announced beyond the measured one, under a weight of 1.
        standard_error (`float`): of the excess, over annotators.
        above_chance (`float`): measured agreement of the two posteriors beyond that of strangers, under `weight`.
        above_chance_error (`float`): its standard error.
        num_annotators (`int`): how many have pairs in both halves.
        curve (`list[dict]`): where people are binned by the agreement expected of them: `expected`, `observed`,
            `standard_error`, `num_annotators` of each bin.
    """

    weight: float
    expected: float
    observed: float
    expected_unweighted: float
    observed_unweighted: float
    excess: float
    standard_error: float
    above_chance: float
    above_chance_error: float
    num_annotators: int
    curve: list[dict[str, float]]

    @property
    def says_nothing(self) -> bool:
        """Whether halves of one person agree no more than halves of two: the assignments are noise."""
        return self.above_chance <= 2 * self.above_chance_error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the fields, and `says_nothing`."""
        return asdict(self) | {"says_nothing": self.says_nothing}


@dataclass(frozen=True)
class _Halves:
    """One half that announces and one that answers, (H, K) each, and strata of about as many answering pairs."""

    first: torch.Tensor
    second: torch.Tensor
    strata: list[torch.Tensor]


def fit_evidence_weight(
    scores: torch.Tensor,
    annotator_index: torch.Tensor,
    folds: Sequence[torch.Tensor],
    mixing_weights: torch.Tensor,
) -> EvidenceWeight | None:
    """The largest weight under which an annotator's halves agree as often as the posterior says.

    Args:
        scores (`torch.Tensor` of shape `(N, K)`): log-likelihood of each pair under each component, in nats, from
            rewards that were fitted without the pair's annotator, or at least without the pair. Pairs with NaN do not
            count.
        annotator_index (`torch.Tensor` of shape `(N,)`, integer): annotator of each pair.
        folds (S tensors of shape `(N, 2)`, integer): half, 0 or 1, of the chosen and of the rejected text, from
            [`deal_folds`][trl_maxmin.functional.feature_pairs.deal_folds]. A pair with texts of both is in neither. Of
            rankings `(N, n)`.
        mixing_weights (`torch.Tensor` of shape `(K,)`): share of each component.

    Returns:
        [`EvidenceWeight`], or `None` where fewer than two annotators have pairs in both halves. The weight is 1 for a
        single component, and where the halves agree as often as announced within one standard error.

    Raises:
        ValueError: a wrong shape, no halves, or mixing weights that are negative or all 0.

    Example:

    >>> sure = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log().repeat_interleave(8, 0)
    >>> halves = torch.tensor([0, 1] * 8).unsqueeze(1).repeat(1, 2)
    >>> found = fit_evidence_weight(sure, torch.arange(16) // 2, [halves], torch.tensor([0.5, 0.5]))
    >>> found.weight, round(found.observed, 2)
    (1.0, 1.0)
    """
    require_shape("scores", scores, (None, None), "pairs by components, (N, K)")
    require_shape("mixing_weights", mixing_weights, (scores.shape[1],), "one share per component, (K,)")
    if not len(folds):
        raise ValueError("`folds` is empty, but at least one way to deal halves is needed; see `deal_folds`.")
    if not (mixing_weights >= 0).all() or not mixing_weights.sum() > 0:
        raise ValueError(f"`mixing_weights` are {mixing_weights.tolist()}, but must be non-negative and not all 0.")
    log_mixing = mixing_weights.detach().double().cpu().log()
    scores, annotator_index = scores.detach().double().cpu(), annotator_index.cpu()
    cases = [case for fold in folds for case in _halves(scores, annotator_index, fold.cpu())]
    if not cases:
        return None
    excess, error = _excess(cases, log_mixing, 1.0)
    weight = 1.0 if scores.shape[1] == 1 or excess <= error else _calibrated(cases, log_mixing)
    expected, observed = (torch.cat(part) for part in zip(*(_hits(c, log_mixing, weight) for c in cases), strict=True))
    plain = [torch.cat(part) for part in zip(*(_hits(c, log_mixing, 1.0) for c in cases), strict=True)]
    above, above_error = _above_chance(cases, log_mixing, weight)
    return EvidenceWeight(
        weight,
        expected.mean().item(),
        observed.mean().item(),
        plain[0].mean().item(),
        plain[1].mean().item(),
        excess,
        error,
        above,
        above_error,
        len(cases[0].first),
        _curve(expected, observed, len(cases)),
    )


def _halves(scores: torch.Tensor, annotator_index: torch.Tensor, fold: torch.Tensor) -> list[_Halves]:
    """Both orders of the two halves, of the annotators who have pairs in both."""
    require_shape(
        "folds", fold, (len(scores), None), "halves of the two texts of each pair, (N, 2), or of all of each ranking"
    )
    scored = ~scores.isnan().any(1)
    count = int(annotator_index.max()) + 1 if len(annotator_index) else 0
    sums, sizes = [], []
    for half in (0, 1):
        rows = scored & (fold == half).all(1)
        sums.append(annotator_log_likelihood(scores[rows], annotator_index[rows], count))
        sizes.append(torch.bincount(annotator_index[rows], minlength=count))
    both = (sizes[0] > 0) & (sizes[1] > 0)
    if int(both.sum()) < 2:
        return []
    first, second = sums[0][both], sums[1][both]
    return [_Halves(first, second, _strata(sizes[1][both])), _Halves(second, first, _strata(sizes[0][both]))]


def _strata(sizes: torch.Tensor) -> list[torch.Tensor]:
    """Rows of people with about as many pairs: who gave more can be told better."""
    count = min(_MOST_STRATA, max(1, len(sizes) // _STRATUM))
    cuts = torch.quantile(sizes.double(), torch.linspace(0, 1, count + 1, dtype=torch.float64)[1:-1])
    label = torch.searchsorted(cuts, sizes.double(), right=True)
    return [rows for part in range(count) if len(rows := (label == part).nonzero().flatten())]


def _posteriors(case: _Halves, log_mixing: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (log_responsibilities(sums, log_mixing, weight).exp() for sums in (case.first, case.second))
    return first, second


def _said(first: torch.Tensor, second: torch.Tensor, answer: torch.Tensor, strata: list[torch.Tensor]) -> torch.Tensor:
    """`(H, K)`: what the first half announces of the second one's answer `(H, K)`: its mean over people of each
    component, weighted by who the first half takes a person to be."""
    said = torch.zeros_like(first)
    for rows in strata:
        of_component = second[rows].T @ answer[rows] / second[rows].sum(0).clamp(min=1e-300).unsqueeze(1)
        said[rows] = first[rows] @ of_component
    return said


def _per_person(cases: list[_Halves], log_mixing: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`(cases, H)`-like lists flattened: announced and measured agreement of the two posteriors."""
    said, seen = [], []
    for case in cases:
        first, second = _posteriors(case, log_mixing, weight)
        said.append((_said(first, second, second, case.strata) * first).sum(1))
        seen.append((first * second).sum(1))
    return torch.cat(said), torch.cat(seen)


def _excess(cases: list[_Halves], log_mixing: torch.Tensor, weight: float) -> tuple[float, float]:
    """By how much the agreement announced exceeds the measured one, with its standard error over people."""
    said, seen = _per_person(cases, log_mixing, weight)
    return _mean_with_error(said - seen, len(cases))


def _mean_with_error(values: torch.Tensor, num_cases: int) -> tuple[float, float]:
    """Different ways to deal halves are of the same people: they do not shrink the error below that of one."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values) / num_cases)


def _calibrated(cases: list[_Halves], log_mixing: torch.Tensor) -> float:
    """The largest weight that announces no more than is measured; the least one where there is none."""
    high = 1.0
    grid = [MIN_EVIDENCE_WEIGHT ** (step / 24) for step in range(1, 25)]
    for low in grid:
        if _excess(cases, log_mixing, low)[0] <= 0:
            break
        high = low
    else:
        return MIN_EVIDENCE_WEIGHT
    for _ in range(20):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _excess(cases, log_mixing, middle)[0] <= 0 else (low, middle)
    return low


def _hits(case: _Halves, log_mixing: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`(H,)`: how probable it is that the second half gives the same component as the first; whether it does."""
    first, second = _posteriors(case, log_mixing, weight)
    best = first.argmax(1, keepdim=True)
    answer = torch.zeros_like(second).scatter(1, second.argmax(1, keepdim=True), 1.0)
    said = _said(first, second, answer, case.strata)
    return said.gather(1, best).squeeze(1), answer.gather(1, best).squeeze(1)


def _above_chance(cases: list[_Halves], log_mixing: torch.Tensor, weight: float) -> tuple[float, float]:
    values = []
    for case in cases:
        first, second = _posteriors(case, log_mixing, weight)
        values.append(((first - first.mean(0)) * (second - second.mean(0))).sum(1))
    return _mean_with_error(torch.cat(values), len(cases))


def _curve(expected: torch.Tensor, observed: torch.Tensor, num_cases: int) -> list[dict[str, float]]:
    """People by the agreement expected of them, in bins; each person counts once for all ways to deal halves."""
    label = torch.bucketize(expected, torch.tensor(_BINS, dtype=expected.dtype))
    curve = []
    for part in range(len(_BINS) + 1):
        rows = label == part
        people = int(rows.sum()) / num_cases
        if people >= 2:
            mean = observed[rows].mean().item()
            curve.append(
                {
                    "expected": expected[rows].mean().item(),
                    "observed": mean,
                    "standard_error": math.sqrt(mean * (1 - mean) / people),
                    "num_annotators": round(people),
                }
            )
    return curve
