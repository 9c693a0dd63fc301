# SPDX-License-Identifier: Apache-2.0
"""EM for a mixture of linear rewards on features of texts that are encoded once.

Where many people judge the same texts (700 statements in 34,000 pairs, say), the reward of a pair is the difference of
two entries of a table: rewards are computed per text, gathered per pair, and gradients scattered back, so that a step
costs next to nothing whatever the width of the features. Steps are Newton's with a curvature that is diagonal in the
principal directions of the differences, which are computed once.

Letters: M texts, D features, N pairs, H annotators, K components, F folds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .directions import principal_directions
from .em import (
    annealed_beta,
    annotator_log_likelihood,
    assign_annotators,
    mixing_weights_of,
    predictive_log_likelihood,
    with_known,
)
from .em_linear import LinearMixture


@dataclass(frozen=True)
class FeaturePairs:
    """Preference pairs over texts that are known by their features.

    Args:
        features (`Tensor` of shape `(M, D)`): what a head reads of each distinct text.
        chosen (`Tensor` of shape `(N,)`): row of the preferred text.
        rejected (`Tensor` of shape `(N,)`): row of the other text.
        annotator_index (`Tensor` of shape `(N,)`): annotator 0..H-1.
        margin (`Tensor` of shape `(N,)`, *optional*): Bradley-Terry log-odds.
    """

    features: Tensor
    chosen: Tensor
    rejected: Tensor
    annotator_index: Tensor
    margin: Tensor | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    def select(self, rows: Tensor) -> FeaturePairs:
        """The pairs of a mask or of row numbers; the texts stay."""
        margin = None if self.margin is None else self.margin[rows]
        return FeaturePairs(self.features, self.chosen[rows], self.rejected[rows], self.annotator_index[rows], margin)

    def log_likelihood(self, weight: Tensor) -> Tensor:
        """`(N, K)` log-likelihood of the pairs under rewards `features @ weight.T`, nats."""
        rewards = self.features.to(weight) @ weight.T
        difference = rewards[self.chosen] - rewards[self.rejected]
        if self.margin is not None:
            difference = difference - self.margin.to(weight).unsqueeze(1)
        return F.logsigmoid(difference)


#: Of kernel features over many texts the further directions hold next to nothing.
MAX_DIRECTIONS = 1024


def directions_of_pairs(pairs: FeaturePairs) -> tuple[Tensor, Tensor]:
    """Directions `(D, R)` in which the differences of the pairs are uncorrelated, and their mean squares `(R,)`.

    Directions in which the pairs do not differ at all are left out, and those beyond the first `MAX_DIRECTIONS`. The
    scale is common to all directions: mean square 1 on average.
    """
    features = pairs.features.float()
    features = features - features.mean(0)
    moment = torch.zeros(features.shape[1], features.shape[1])
    for rows in torch.arange(len(pairs)).split(8192):
        part = features[pairs.chosen[rows]] - features[pairs.rejected[rows]]
        moment += part.T @ part
    vectors, values = principal_directions(moment / max(len(pairs), 1), MAX_DIRECTIONS, floor=1e-6)
    return vectors / values.mean().sqrt(), values / values.mean()


def _in_directions(pairs: FeaturePairs, directions: Tensor) -> FeaturePairs:
    """The pairs with features `(M, R)` in these directions. Where texts are more numerous than pairs, a pair becomes
    one row, its difference, against a row of zeros."""
    features = pairs.features.float()
    if len(features) <= len(pairs):
        return replace(pairs, features=(features - features.mean(0)) @ directions)
    difference = (features[pairs.chosen] - features[pairs.rejected]) @ directions
    rows = torch.cat([difference, difference.new_zeros(1, directions.shape[1])])
    number = torch.arange(len(pairs))
    return replace(pairs, features=rows, chosen=number, rejected=torch.full_like(number, len(pairs)))


class _Fitter:
    """Quasi-Newton steps on the weighted, ridge-penalised likelihood, for F x K rewards at once.

    Args:
        curvature (`(D,)`): mean squares of the differences in the principal directions.
        pairs ([`FeaturePairs`]): the pairs, with features in these directions.
        prior_scale (`float`): standard deviation of a pair's log-odds under the prior.
    """

    def __init__(self, curvature: Tensor, pairs: FeaturePairs, prior_scale: float) -> None:
        self.texts, self.curvature, self.pairs = pairs.features, curvature, pairs
        self.ridge = curvature.sum().item() / prior_scale**2
        self.margin = 0.0 if pairs.margin is None else pairs.margin.to(self.texts).unsqueeze(1)

    def differences(self, weight: Tensor) -> Tensor:
        """`(N, C)` for weights `(C, D)`."""
        rewards = self.texts @ weight.T
        return rewards[self.pairs.chosen] - rewards[self.pairs.rejected] - self.margin

    def step(self, weight: Tensor, responsibilities: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of weights `(C, D)` for pair weights `(N, C)`: new weights, new momentum, `(N, C)` differences that
        it started from. The momentum is Nesterov's and restarts where it points uphill."""
        ahead = weight + momentum
        difference = self.differences(ahead)
        slope = -responsibilities * torch.sigmoid(-difference)
        # A quadratic that lies above -logsigmoid (Jaakkola and Jordan, 2000): its curvature never undershoots.
        half = difference.abs().clamp(min=1e-3) / 2
        bound = (responsibilities * torch.tanh(half) / (4 * half)).sum(0)
        per_text = torch.zeros(len(self.texts), slope.shape[1], dtype=self.texts.dtype)
        per_text.index_add_(0, self.pairs.chosen, slope)
        per_text.index_add_(0, self.pairs.rejected, -slope)
        gradient = per_text.T @ self.texts + self.ridge * ahead
        new = ahead - gradient / (bound.unsqueeze(1) * self.curvature + self.ridge)
        moved = new - weight
        uphill = (gradient * moved).sum(1, keepdim=True) > 0
        return new, torch.where(uphill, 0.0, 0.7) * moved, difference


def fit_rewards(pairs: FeaturePairs, weights: Tensor, prior_scale: float, num_steps: int = 100) -> Tensor:
    """K linear rewards for given weights of the pairs: the M-step alone.

    Args:
        pairs ([`FeaturePairs`]): N pairs.
        weights (`Tensor` of shape `(N, K)`): of each pair in each reward's likelihood, non-negative.
        prior_scale (`float`): standard deviation of a pair's log-odds under the prior.
        num_steps (`int`): quasi-Newton steps.

    Returns:
        `Tensor` of shape `(K, D)`, float64: rewards are `features @ weight.T`, Bradley-Terry log-odds.
    """
    directions, curvature = directions_of_pairs(pairs)
    fitter = _Fitter(curvature, _in_directions(pairs, directions), prior_scale)
    weight = torch.zeros(weights.shape[1], len(curvature))
    momentum = torch.zeros_like(weight)
    for _ in range(num_steps):
        weight, momentum, _ = fitter.step(weight, weights.float(), momentum)
    return weight.double() @ directions.T.double()


def fit_feature_mixture(
    pairs: FeaturePairs,
    num_annotators: int,
    num_components: int,
    *,
    generator: torch.Generator,
    num_init: int = 8,
    num_steps: int = 60,
    num_final_steps: int = 40,
    num_folds: int = 3,
    num_final_folds: int = 10,
    annealing_start: float = 0.02,
    prior_scale: float = 3.0,
    dirichlet_concentration: float = 2.0,
    known: Tensor | None = None,
    em: str = "soft",
) -> LinearMixture:
    """Annealed EM from several starts; pairs are scored by weights that were fitted without their fold.

    Args:
        pairs ([`FeaturePairs`]): training pairs.
        num_annotators (`int`): H.
        num_components (`int`): K.
        generator (`torch.Generator`): of the starts and the folds, on the CPU.
        num_init (`int`): number of starts; the best out-of-fold likelihood wins. One for K = 1.
        num_steps (`int`): EM steps of a start; the first half of them anneals, after which the better half of the
            starts goes on.
        num_final_steps (`int`): further EM steps of the best start, after half as many M-steps on the new folds.
        num_folds (`int`): F of the starts, at least 2.
        num_final_folds (`int`): F of the best one's further steps, at least 2. The weights that score a pair have then
            seen nearly all others; with few pairs for each weight that is most of what separates the assignments from
            those under the true rewards.
        annealing_start (`float`): first inverse temperature, in (0, 1].
        prior_scale (`float`): standard deviation of a pair's log-odds under the prior on the weights, which is normal
            and isotropic in the features.
        dirichlet_concentration (`float`): of the prior on the mixing weights, at least 1.
        known (`Tensor` of shape `(H,)`, *optional*): component of each annotator where it is known, -1 where not.
            Known annotators keep it.
        em (`str`): `"soft"`, or `"hard"`: every E-step gives each annotator to one component, without annealing and
            without a prior on the mixing weights.

    Returns:
        [`LinearMixture`]: `score` is the out-of-fold log-likelihood per pair, nats.

    Raises:
        ValueError: no pairs, features that are the same in every pair, fewer than two folds.

    Example:

    >>> generator = torch.Generator().manual_seed(0)
    >>> pairs = FeaturePairs(torch.eye(2), torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]), torch.arange(4))
    >>> fit_feature_mixture(pairs, 4, 1, generator=generator).weight.shape
    torch.Size([1, 2])
    """
    folds = min(num_folds, num_final_folds)
    if len(pairs) == 0 or folds < 2:
        raise ValueError(f"Needs pairs and at least 2 folds, got {len(pairs)} pairs and {folds} folds.")
    directions, curvature = directions_of_pairs(pairs)
    fitter = _Fitter(curvature, _in_directions(pairs, directions), prior_scale)

    def with_folds(count: int) -> _Run:
        """EM on folds that are drawn anew."""
        fold = torch.randint(count, (len(pairs),), generator=generator)
        return _Run(fitter, fold, count, num_annotators, num_components, dirichlet_concentration, known, em)

    run = with_folds(num_folds)
    starts = []
    for _ in range(num_init if num_components > 1 else 1):
        noise = torch.randn(num_annotators, num_components, generator=generator)
        state = run.start(torch.log_softmax(2 * noise.double(), dim=-1))
        for step in range(num_steps // 2):
            state = run.advance(state, annealed_beta(step, num_steps // 2, annealing_start))
        starts.append(state)
    # Once annealing is over, the lower half of the starts has no chance worth its price.
    starts.sort(key=lambda state: -state.score)
    starts = starts[: (len(starts) + 1) // 2]
    for _ in range(num_steps - num_steps // 2):
        starts = [run.advance(state, 1.0) for state in starts]
    best = max(starts, key=lambda state: state.score)
    # New folds, so weights that have seen nothing yet: they catch up before they may judge.
    run = with_folds(num_final_folds)
    best = run.start(best.log_resp)
    for _ in range(num_final_steps // 2):
        best = replace(run.advance(best, 1.0), log_resp=best.log_resp)
    for _ in range(num_final_steps):
        best = run.advance(best, 1.0)
    weight, momentum = best.weight.mean(0), torch.zeros_like(best.weight[0])
    responsibilities = best.log_resp.exp().float()[pairs.annotator_index]
    for _ in range(2 * max(num_final_steps, 1)):
        weight, momentum, _ = fitter.step(weight, responsibilities, momentum)
    return LinearMixture((weight @ directions.T).double(), best.log_resp, best.mixing, best.score, best.scores)


@dataclass(frozen=True)
class _State:
    weight: Tensor  # (F, K, D)
    momentum: Tensor  # (F, K, D)
    log_resp: Tensor  # (H, K)
    mixing: Tensor  # (K,)
    score: float
    scores: Tensor | None = None  # (N, K)


@dataclass(frozen=True)
class _Run:
    fitter: _Fitter
    fold: Tensor
    num_folds: int
    num_annotators: int
    num_components: int
    concentration: float
    known: Tensor | None
    em: str

    def start(self, log_resp: Tensor) -> _State:
        """State before the first step: zero weights, these responsibilities with the known annotators put right."""
        zero = torch.zeros(self.num_folds, self.num_components, self.fitter.texts.shape[1])
        if self.em == "hard":
            log_resp = F.one_hot(log_resp.argmax(-1), self.num_components).to(log_resp).log()
        log_resp = with_known(log_resp, self.known)
        return _State(zero, zero, log_resp, mixing_weights_of(log_resp, self.em, self.concentration), float("-inf"))

    def advance(self, state: _State, beta: float) -> _State:
        """An M-step for every fold, then an E-step from the scores that each pair got out of its fold."""
        annotators = self.fitter.pairs.annotator_index
        folds, components = state.weight.shape[:2]
        responsibilities = state.log_resp.exp().float()[annotators]
        # Each fold's weights see the pairs of the other folds.
        seen = (self.fold.unsqueeze(1) != torch.arange(folds)).float()
        weights = (seen.unsqueeze(2) * responsibilities.unsqueeze(1)).flatten(1)
        weight, momentum, difference = self.fitter.step(
            state.weight.flatten(0, 1), weights, state.momentum.flatten(0, 1)
        )
        own = difference.view(-1, folds, components)[torch.arange(len(self.fold)), self.fold]
        scores = F.logsigmoid(own)
        sums = annotator_log_likelihood(scores, annotators, self.num_annotators)
        mixing = mixing_weights_of(state.log_resp, self.em, self.concentration)
        log_resp = assign_annotators(sums, mixing.log(), self.em, beta, state.log_resp.argmax(-1), self.known)
        # Of each annotator under the mixture, or under the component that they were given to.
        prior = log_resp if self.em == "hard" else mixing.log()
        score = torch.logsumexp(prior + sums, dim=-1).sum().item() / len(own)
        return _State(weight.view_as(state.weight), momentum.view_as(state.weight), log_resp, mixing, score, scores)


def cross_validated_scores(
    pairs: FeaturePairs, num_annotators: int, num_components: int, *, seed: int, num_folds: int = 5, **kwargs: Any
) -> Tensor:
    """Predictive log-likelihood of pairs from a mixture, and an assignment, that never saw them.

    Args:
        pairs ([`FeaturePairs`]): all pairs.
        num_annotators (`int`): H.
        num_components (`int`): K.
        seed (`int`): of the folds, the same for every K, so that differences are paired.
        num_folds (`int`): parts that each annotator's pairs are dealt into.
        **kwargs: of [`fit_feature_mixture`].

    Returns:
        `Tensor` of shape `(N,)`, nats: `log sum_k gamma[h, k] p_k(pair)`, where `gamma` and the rewards come from
        pairs of the other folds; NaN where a pair is in no fold as a whole (see [`deal_folds`]).
    """
    folds = deal_folds(pairs, num_folds, torch.Generator().manual_seed(seed))
    # Once for all folds: directions in which no pair differs are dropped. That looks at texts, not at preferences.
    directions, _ = directions_of_pairs(pairs)
    pairs = _in_directions(pairs, directions)
    scores = torch.full((len(pairs),), torch.nan, dtype=torch.float64)
    for part in range(num_folds):
        out, rest = (folds == part).all(1), (folds != part).all(1)
        if not out.any() or not rest.any():
            continue
        fitted = fit_feature_mixture(
            pairs.select(rest), num_annotators, num_components, generator=torch.Generator().manual_seed(seed), **kwargs
        )
        held = pairs.select(out)
        scores[out] = predictive_log_likelihood(
            held.log_likelihood(fitted.weight), fitted.log_responsibilities, held.annotator_index
        )
    return scores


def deal_folds(pairs: FeaturePairs, num_folds: int, generator: torch.Generator) -> Tensor:
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
    folds = fold.unsqueeze(1).repeat(1, 2)
    for rows in _rows_that_share_texts(pairs):
        folds[rows] = deal_texts(pairs.chosen[rows].tolist(), pairs.rejected[rows].tolist(), num_folds, generator)
    return folds


def _rows_that_share_texts(pairs: FeaturePairs) -> list[Tensor]:
    """Rows of each annotator who judged a text in more than one pair."""
    sides = torch.stack([pairs.chosen, pairs.rejected], dim=1) + pairs.annotator_index.unsqueeze(1) * len(
        pairs.features
    )
    judged, times = torch.unique(sides, return_counts=True)
    sharing = torch.unique(judged[times > 1] // max(len(pairs.features), 1))
    own = torch.isin(pairs.annotator_index, sharing).nonzero().flatten()
    own = own[torch.argsort(pairs.annotator_index[own], stable=True)]
    counts = torch.unique(pairs.annotator_index[own], return_counts=True)[1]
    return list(own.split(counts.tolist()))


def deal_texts(chosen: list[int], rejected: list[int], num_folds: int, generator: torch.Generator) -> Tensor:
    """Folds of the texts of one annotator's pairs: connected pairs together, or text by text where they are too many.

    Args:
        chosen, rejected (`list[int]`): numbers of the texts of each pair.
        num_folds (`int`): number of folds.
        generator (`torch.Generator`): on the CPU.

    Returns:
        `Tensor` of shape `(n, 2)`, integers.

    Example:

    >>> deal_texts([0, 1, 5], [1, 2, 6], 2, torch.Generator().manual_seed(0)).tolist()
    [[0, 0], [0, 0], [1, 1]]
    """
    root = {text: text for text in [*chosen, *rejected]}

    def find(text: int) -> int:
        """The text that stands for all that hang together with this one."""
        while root[text] != text:
            root[text] = text = root[root[text]]
        return text

    for one, other in zip(chosen, rejected, strict=True):
        root[find(one)] = find(other)
    members: dict[int, list[int]] = {}
    for text in root:
        members.setdefault(find(text), []).append(text)
    sizes = dict.fromkeys(members, 0)
    for text in chosen:
        sizes[find(text)] += 1
    units: list[list[int]] = []
    for name, texts in members.items():
        if sizes[name] <= max(1, math.ceil(len(chosen) / num_folds)):
            units.append(texts)
            continue
        # At least two texts in each part, since a part of one text holds no pair.
        parts = min(num_folds, max(1, len(texts) // 2))
        shuffled = [texts[i] for i in torch.randperm(len(texts), generator=generator).tolist()]
        units += [shuffled[part::parts] for part in range(parts)]
    fold = {}
    for position, unit in enumerate(torch.randperm(len(units), generator=generator).tolist()):
        fold.update(dict.fromkeys(units[unit], position % num_folds))
    return torch.tensor([[fold[one], fold[other]] for one, other in zip(chosen, rejected, strict=True)])
