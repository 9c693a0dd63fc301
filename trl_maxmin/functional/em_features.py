# SPDX-License-Identifier: Apache-2.0
"""EM for a mixture of linear rewards on features of texts that are encoded once.

Where many people judge the same texts (700 statements in 34,000 pairs, say), the reward of a pair is the difference of
two entries of a table: rewards are computed per text, gathered per pair, and gradients scattered back, so that a step
costs next to nothing whatever the width of the features. Steps are Newton's with a curvature that is diagonal in the
principal directions of the differences, which are computed once. Several candidates (a start under a prior) advance
at once, as columns of the same matrices.

Letters: M texts, D features, R directions, N pairs, H annotators, K components, F folds, B candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .directions import principal_directions
from .em import annealed_beta, mixing_weights_of, with_known
from .em_starts import distinct_partitions, propose_starts
from .feature_pairs import FeaturePairs, deal_folds, own_folds
from .feature_rankings import FeatureRankings, RankingFitter
from .incidence import differences_of, sums_of
from .preference import vote_log_likelihood


PRIOR_SCALES = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Standard deviations of a pair's log-odds under the prior of the heads that are tried out of fold."""
PREDICTIVE_WEIGHTS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.0)
"""Weights of an annotator's evidence that are tried out of fold."""
CLEARLY_BETTER = 0.05
"""Nats a pair by which another prior has to predict better on the finer folds than the one of the coarser folds."""
#: Of kernel features over many texts the further directions hold next to nothing.
MAX_DIRECTIONS = 1024
# Under which the starts are compared with each other; the best ones are then tried under all priors.
_PRIORS_OF_STARTS = (0.5, 2.0)
_MOST_COLUMNS = 6_000_000  # entries of a matrix of pairs by columns; more candidates advance one part after another


@dataclass(frozen=True)
class LinearMixture:
    """A fitted mixture of linear rewards.

    Args:
        weight (`Tensor` of shape `(K, D)`): rewards are `features @ weight.T`, Bradley-Terry log-odds.
        log_responsibilities (`Tensor` of shape `(H, K)`): from pairs scored out of fold.
        mixing_weights (`Tensor` of shape `(K,)`): on the simplex.
        score (`float`): predictive log-likelihood of a pair out of fold, nats, by which starts and priors were
            compared: each pair given its annotator's pairs of the other folds.
        scores (`Tensor` of shape `(N, K)`): log-likelihood of each pair under weights that have not seen it, nats.
        folds (`Tensor` of shape `(N, 2)`): of the two texts of each pair, see [`deal_folds`]. Where both are the same,
            the weights that scored the pair have seen no pair of its annotator with either text.
        prior_scale (`float`): standard deviation of a pair's log-odds under the prior.
        predictive_weight (`float`): weight of an annotator's evidence that predicts their other pairs best, in [0, 1];
            for the choice of K. How sure an assignment may be is another question: see `functional.evidence`.
        num_starts, num_partitions (`int`): how many starts there were, and in how many partitions of the annotators
            they ended; two that differ in less than a twentieth of the annotators are the same.
        known (`Tensor` of shape `(H,)`, *optional*): component of each annotator where it was given, else -1.
    """

    weight: Tensor
    log_responsibilities: Tensor
    mixing_weights: Tensor
    score: float
    scores: Tensor
    folds: Tensor
    prior_scale: float
    predictive_weight: float = 1.0
    num_starts: int = 1
    num_partitions: int = 1
    known: Tensor | None = None

    def tempered(self, annotator_index: Tensor) -> Tensor:
        """`(H, K)` log responsibilities from the scores of the training pairs, their annotators `(N,)`, with the
        evidence weighted."""
        sums = torch.zeros_like(self.log_responsibilities).index_add_(0, annotator_index, self.scores.double())
        tempered = torch.log_softmax(self.mixing_weights.log() + self.predictive_weight * sums, dim=-1)
        return with_known(tempered, self.known)


def directions_of_pairs(pairs: FeaturePairs | FeatureRankings) -> tuple[Tensor, Tensor]:
    """Directions `(D, R)` in which the differences of the pairs are uncorrelated, and their mean squares `(R,)`.

    Directions in which the pairs do not differ at all are left out, and those beyond the first `MAX_DIRECTIONS`. The
    scale is common to all directions: mean square 1 on average.
    """
    features = pairs.features.float()
    moment = pairs.moment(features - features.mean(0))
    vectors, values = principal_directions(moment, MAX_DIRECTIONS, floor=1e-6)
    return vectors / values.mean().sqrt(), values / values.mean()


class _Fitter:
    """Quasi-Newton steps on the weighted, ridge-penalised likelihood, for many rewards at once.

    Args:
        curvature (`(R,)`): mean squares of the differences in the principal directions.
        pairs ([`FeaturePairs`]): the pairs, with features in these directions.
    """

    def __init__(self, curvature: Tensor, pairs: FeaturePairs) -> None:
        self.texts, self.curvature, self.pairs = pairs.features, curvature, pairs
        self.gather, self.scatter = differences_of(pairs.chosen, pairs.rejected, len(pairs.features))
        self.margin = None if pairs.margin is None else pairs.margin.to(self.texts).unsqueeze(1)
        self.against = None if pairs.share is None else (1 - pairs.share).to(self.texts).unsqueeze(1)

    def differences(self, weight: Tensor) -> Tensor:
        """`(N, C)` for weights `(C, R)`."""
        found = self.gather @ (self.texts @ weight.T)
        return found if self.margin is None else found - self.margin

    def ridge(self, prior_scale: Tensor) -> Tensor:
        """Precision of the weights, from the standard deviation of a pair's log-odds under the prior."""
        return self.curvature.sum() / prior_scale.to(self.curvature).square()

    def step(
        self, weight: Tensor, momentum: Tensor, responsibilities: Tensor, ridge: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of weights `(C, R)` for pair weights `(N, C)` and ridges `(C, 1)`: new weights, new momentum,
        `(N, C)` differences that it started from. The momentum is Nesterov's and restarts where it points uphill."""
        ahead = weight + momentum
        difference = self.differences(ahead)
        wrong = torch.sigmoid(-difference)
        # A quadratic that lies above -logsigmoid (Jaakkola and Jordan, 2000): its curvature never undershoots. It is
        # tanh(d / 2) / (2 d), and tanh(d / 2) = 1 - 2 sigmoid(-d).
        bound = (1 - 2 * wrong).div_(2 * difference).nan_to_num_(nan=0.25).clamp_(0.0, 0.25)
        bound = bound.mul_(responsibilities).sum(0)
        slope = wrong if self.against is None else wrong - self.against
        gradient = -(self.scatter @ slope.mul_(responsibilities)).T @ self.texts + ridge * ahead
        new = ahead - gradient / (bound.unsqueeze(1) * self.curvature + ridge)
        moved = new - weight
        uphill = (gradient * moved).sum(1, keepdim=True) > 0
        return new, torch.where(uphill, 0.0, 0.7) * moved, difference

    def log_likelihood_of(self, differences: Tensor) -> Tensor:
        """Of what `step` returns."""
        return vote_log_likelihood(differences, self.pairs.share)

    def annotator_gradients(
        self, weights: Tensor, scores: Tensor, own: Tensor, num_annotators: int
    ) -> tuple[Tensor, float]:
        """`(H, R)`: what each annotator's pairs would change of a reward, and the variance of a vote.

        Args:
            weights (`Tensor` of shape `(F, R)`): of the reward, without each fold.
            scores (`Tensor` of shape `(N, 1)`): log-likelihood of the pairs out of their fold.
            own (`Tensor` of shape `(N,)`): the fold that each pair is in.
            num_annotators (`int`): H.
        """
        slope = (1 - scores.exp()).float()
        if self.against is not None:
            slope = torch.sigmoid(-self.differences(weights).gather(1, own.unsqueeze(1)))
        variance = (slope * (1 - slope)).mean().clamp(min=1e-6).item()
        slope = slope if self.against is None else slope - self.against
        found = torch.zeros(num_annotators, len(self.curvature))
        for rows in torch.arange(len(slope)).split(8192):
            pairs = self.pairs.select(rows)
            part = pairs.features[pairs.chosen] - pairs.features[pairs.rejected]
            found.index_add_(0, pairs.annotator_index, part * slope[rows])
        return found, variance


def _fitter(pairs: FeaturePairs | FeatureRankings) -> tuple[_Fitter | RankingFitter, Tensor]:
    """What takes steps, and the directions `(D, R)` in which it takes them."""
    directions, curvature = directions_of_pairs(pairs)
    reduced = pairs.in_directions(directions)
    of = _Fitter if isinstance(reduced, FeaturePairs) else RankingFitter
    return of(curvature, reduced), directions  # type: ignore[arg-type]


def fit_rewards(
    pairs: FeaturePairs | FeatureRankings, weights: Tensor, prior_scale: float | None = None, num_steps: int = 100
) -> Tensor:
    """K linear rewards for given weights of the pairs: the M-step alone.

    Args:
        pairs ([`FeaturePairs`] or [`FeatureRankings`]): N rows; rankings of two are fitted as the pairs that they are.
        weights (`Tensor` of shape `(N, K)`): of each row in each reward's likelihood, non-negative.
        prior_scale (`float`, *optional*): standard deviation of a pair's log-odds under the prior. Default: that of
            precision 1 on features of mean square 1, which grows with the number of directions.
        num_steps (`int`): quasi-Newton steps.

    Returns:
        `Tensor` of shape `(K, D)`, float64: rewards are `features @ weight.T`, Bradley-Terry log-odds.

    Raises:
        ValueError: features that are the same in every pair.

    Example:

    >>> pairs = FeaturePairs(torch.eye(2), torch.zeros(9).long(), torch.ones(9).long(), torch.arange(9))
    >>> bool(fit_rewards(pairs, torch.ones(9, 1)).diff() < 0)
    True
    """
    if isinstance(pairs, FeatureRankings):
        pairs = FeaturePairs.from_rankings(pairs) or pairs
    fitter, directions = _fitter(pairs)
    scale = math.sqrt(directions.shape[1]) if prior_scale is None else prior_scale
    weight = torch.zeros(weights.shape[1], directions.shape[1])
    return (
        _converge(fitter, weight, weights.float(), fitter.ridge(torch.tensor(scale)), num_steps)
        @ directions.T.double()
    )


def _converge(
    fitter: _Fitter | RankingFitter, weight: Tensor, pair_weights: Tensor, ridge: Tensor, num_steps: int
) -> Tensor:
    momentum = torch.zeros_like(weight)
    for _ in range(num_steps):
        before = weight
        weight, momentum, _ = fitter.step(weight, momentum, pair_weights, ridge)
        if (weight - before).abs().max() <= 1e-5 * weight.abs().max():
            break
    return weight.double()


@dataclass(frozen=True)
class _State:
    """B candidates."""

    weight: Tensor  # (B, F, K, R)
    momentum: Tensor  # (B, F, K, R)
    log_resp: Tensor  # (B, H, K)
    mixing: Tensor  # (B, K)
    prior: Tensor  # (B,)
    scores: Tensor  # (B, N, K)

    def pick(self, rows: Tensor) -> _State:
        """Some of the candidates."""
        return _State(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class _Run:
    """EM on one set of folds."""

    def __init__(
        self,
        fitter: _Fitter | RankingFitter,
        num_annotators: int,
        folds: Tensor,
        own: Tensor,
        num_folds: int,
        options: _Options,
    ) -> None:
        pairs = fitter.pairs
        self.fitter, self.num_annotators, self.num_folds, self.options = fitter, num_annotators, num_folds, options
        self.folds, self.annotators = folds, pairs.annotator_index
        self.own = own
        self.whole = (folds == folds[:, :1]).all(1).nonzero().flatten()
        if not len(self.whole):
            self.whole = torch.arange(len(pairs))
        self.seen = (folds.unsqueeze(2) != torch.arange(num_folds)).all(1).float()  # (N, F)
        self.total = sums_of(self.annotators, num_annotators)
        # Of an annotator's evidence that which is not of a fold: all, less the pairs with a text of it.
        number, fold = (folds.unsqueeze(2) == torch.arange(num_folds)).any(1).nonzero().T
        cells = self.annotators[number] * num_folds + fold
        self.touching = sums_of(cells, num_annotators * num_folds, number, len(pairs))

    def start(self, log_resp: Tensor, prior: Tensor) -> _State:
        """Zero weights, responsibilities `(B, H, K)` with the known annotators put right, priors `(B,)`."""
        log_resp = self._settle(log_resp, hard=self.options.em == "hard")
        count, _, components = log_resp.shape
        zero = torch.zeros(count, self.num_folds, components, len(self.fitter.curvature))
        scores = torch.full((count, len(self.own), components), math.log(0.5))
        return _State(zero, zero, log_resp, self._mixing(log_resp), prior, scores)

    def _settle(self, log_resp: Tensor, hard: bool) -> Tensor:
        if hard:
            log_resp = F.one_hot(log_resp.argmax(-1), log_resp.shape[-1]).to(log_resp).log()
        known = self.options.known
        return log_resp if known is None else torch.stack([with_known(one, known) for one in log_resp])

    def _mixing(self, log_resp: Tensor) -> Tensor:
        options = self.options
        of = torch.vmap(lambda one: mixing_weights_of(one, options.em, options.dirichlet_concentration))
        return of(log_resp)

    def advance(self, state: _State, beta: Tensor, assign: bool = True) -> _State:
        """An M-step for every fold of every candidate, then an E-step from the scores that each pair got out of its
        fold, at inverse temperatures `(B,)`."""
        count, folds, components = state.weight.shape[:3]
        size = max(1, _MOST_COLUMNS // max(len(self.own) * folds * components, 1))
        parts = [self._advance(state.pick(rows), beta[rows], assign) for rows in torch.arange(count).split(size)]
        return (
            parts[0]
            if len(parts) == 1
            else _State(*(torch.cat([getattr(part, name) for part in parts]) for name in _State.__dataclass_fields__))
        )

    def _advance(self, state: _State, beta: Tensor, assign: bool) -> _State:
        count, folds, components, width = state.weight.shape
        owns = state.log_resp.exp().float().transpose(0, 1).reshape(-1, count, 1, components)[self.annotators]
        pair_weights = (owns * self.seen.view(-1, 1, folds, 1)).flatten(1)
        ridge = self.fitter.ridge(state.prior).repeat_interleave(folds * components).unsqueeze(1)
        weight, momentum, difference = self.fitter.step(
            state.weight.view(-1, width), state.momentum.view(-1, width), pair_weights, ridge
        )
        own = self.own.view(-1, 1, 1, 1).expand(-1, count, 1, components)
        scores = self.fitter.log_likelihood_of(difference.view(-1, count, folds, components).gather(2, own).squeeze(2))
        after = replace(
            state,
            weight=weight.view_as(state.weight),
            momentum=momentum.view_as(state.weight),
            scores=scores.transpose(0, 1),
        )
        return self.assigned(after, beta) if assign else after

    def assigned(self, state: _State, beta: Tensor) -> _State:
        """The E-step."""
        if state.mixing.shape[1] == 1:
            return state
        mixing, hard = self._mixing(state.log_resp), self.options.em == "hard"
        joint = self._sums(self.total, state.scores)
        if not hard:
            joint = mixing.log().unsqueeze(1) + beta.view(-1, 1, 1) * joint
        return replace(state, mixing=mixing, log_resp=self._settle(torch.log_softmax(joint, dim=-1), hard))

    def _sums(self, matrix: Tensor, scores: Tensor) -> Tensor:
        """`(B, rows of the matrix, K)` of scores `(B, N, K)`."""
        count, _, components = scores.shape
        sums = matrix @ scores.transpose(0, 1).flatten(1).double()
        return sums.view(-1, count, components).transpose(0, 1)

    def predictive(self, state: _State) -> Tensor:
        """`(B, A)` mean log-likelihood of a pair given its annotator's pairs of other folds, nats, for each of the
        `PREDICTIVE_WEIGHTS`; of pairs whose texts are new to what scores and assigns."""
        count, _, components = state.scores.shape
        others = self._sums(self.total, state.scores).unsqueeze(2) - self._sums(self.touching, state.scores).view(
            count, self.num_annotators, self.num_folds, components
        )
        people, folds = self.annotators[self.whole], self.own[self.whole]
        scores = state.scores[:, self.whole].double()
        found = []
        for alpha in PREDICTIVE_WEIGHTS if components > 1 else (1.0,):
            log_resp = torch.log_softmax(state.mixing.log().view(count, 1, 1, -1) + alpha * others, dim=-1)
            if self.options.known is not None:
                known = self.options.known.repeat_interleave(self.num_folds)
                settled = [with_known(one.flatten(0, 1), known).view_as(one) for one in log_resp]
                log_resp = torch.stack(settled)
            found.append((log_resp[:, people, folds] + scores).logsumexp(-1).mean(-1))
        return torch.stack(found, dim=1)


@dataclass(frozen=True)
class _Options:
    dirichlet_concentration: float
    known: Tensor | None
    em: str
    priors: Sequence[float]


def fit_feature_mixture(
    pairs: FeaturePairs | FeatureRankings,
    num_annotators: int,
    num_components: int,
    *,
    generator: torch.Generator,
    num_init: int = 8,
    num_steps: int = 48,
    num_final_steps: int = 24,
    num_folds: int = 4,
    num_final_folds: int = 10,
    prior_scale: float | str = "auto",
    dirichlet_concentration: float = 2.0,
    known: Tensor | None = None,
    em: str = "soft",
) -> LinearMixture:
    """EM from several starts under several priors; pairs are scored by weights that were fitted without their fold.

    Starts ([`propose_starts`]) are compared under two priors for a third of the steps. The best three go on under
    every prior for another third, the best three of these for the rest, and the best one on finer folds. They are
    compared by what they predict of pairs out of fold, of texts that are new to their annotator, given the annotator's
    pairs in the other folds.

    Args:
        pairs ([`FeaturePairs`]): training pairs.
        num_annotators (`int`): H.
        num_components (`int`): K.
        generator (`torch.Generator`): of the starts and the folds, on the CPU.
        num_init (`int`): number of starts. One for K = 1.
        num_steps (`int`): EM steps of a start.
        num_final_steps (`int`): further EM steps of the best start, after half as many M-steps on the new folds.
        num_folds (`int`): F of the starts, at least 2.
        num_final_folds (`int`): F of the best one's further steps, at least 2. The weights that score a pair have then
            seen nearly all others; with few pairs for each weight that is most of what separates the assignments from
            those under the true rewards.
        prior_scale (`float` or `"auto"`): standard deviation of a pair's log-odds under the prior on the weights,
            which is normal and isotropic in the features. `"auto"`: the one of `PRIOR_SCALES` that predicts best.
        dirichlet_concentration (`float`): of the prior on the mixing weights, at least 1.
        known (`Tensor` of shape `(H,)`, *optional*): component of each annotator where it is known, -1 where not.
            Known annotators keep it, but for K = 1.
        em (`str`): `"soft"`, or `"hard"`: every E-step gives each annotator to one component, without annealing and
            without a prior on the mixing weights.

    Raises:
        ValueError: no pairs, features that are the same in every pair, fewer than two folds.

    Example:

    >>> generator = torch.Generator().manual_seed(0)
    >>> pairs = FeaturePairs(torch.eye(2), torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]), torch.arange(4))
    >>> fit_feature_mixture(pairs, 4, 1, generator=generator).weight.shape
    torch.Size([1, 2])
    """
    fitted = fit_feature_mixtures(
        pairs,
        num_annotators,
        (num_components,),
        generator=generator,
        num_init=num_init,
        num_steps=num_steps,
        num_final_steps=num_final_steps,
        num_folds=num_folds,
        num_final_folds=num_final_folds,
        prior_scale=prior_scale,
        dirichlet_concentration=dirichlet_concentration,
        known=known,
        em=em,
    )
    return fitted[num_components]


def fit_feature_mixtures(
    pairs: FeaturePairs | FeatureRankings,
    num_annotators: int,
    candidates: Sequence[int],
    *,
    generator: torch.Generator,
    num_init: int = 8,
    num_steps: int = 48,
    num_final_steps: int = 24,
    num_folds: int = 4,
    num_final_folds: int = 10,
    prior_scale: float | str = "auto",
    dirichlet_concentration: float = 2.0,
    known: Tensor | None = None,
    em: str = "soft",
) -> dict[int, LinearMixture]:
    """[`fit_feature_mixture`] for several K, which share folds and the single reward. What is found for one K does not
    depend on which others there are."""
    if isinstance(pairs, FeatureRankings):
        pairs = FeaturePairs.from_rankings(pairs) or pairs
    if len(pairs) == 0 or min(num_folds, num_final_folds) < 2:
        folds = min(num_folds, num_final_folds)
        raise ValueError(f"Needs pairs and at least 2 folds, got {len(pairs)} pairs and {folds} folds.")
    fitter, directions = _fitter(pairs)
    priors = PRIOR_SCALES if prior_scale == "auto" else (float(prior_scale),)
    options, single = (_Options(dirichlet_concentration, of, em, priors) for of in (known, None))
    seed = int(torch.randint(2**31, (1,), generator=generator))

    dealt = {
        count: deal_folds(pairs, count, torch.Generator().manual_seed(seed + count))
        for count in (num_folds, num_final_folds)
    }

    def with_folds(count: int, options: _Options) -> _Run:
        own = own_folds(pairs.sides, dealt[count])
        return _Run(fitter, num_annotators, dealt[count], own, count, options)

    path, found = _one_reward(with_folds(num_folds, single), num_steps), {}
    if 1 in candidates:
        found[1] = _finish(with_folds(num_final_folds, single), path, num_final_steps, directions, 1, 1)
    run, final = (with_folds(count, options) for count in (num_folds, num_final_folds))
    for k in [k for k in candidates if k > 1]:
        own = torch.Generator().manual_seed(seed + 1000 * k)
        best, starts, partitions = _search(run, path, k, num_init, num_steps, own)
        found[k] = _finish(final, best, num_final_steps, directions, starts, partitions)
    return found


def _one_reward(run: _Run, num_steps: int) -> _State:
    """K = 1 under the prior that predicts best; the priors share every step."""
    priors = torch.tensor(run.options.priors)
    state = run.start(torch.zeros(len(priors), run.num_annotators, 1, dtype=torch.float64), priors)
    for _ in range(num_steps):
        state = run.advance(state, torch.ones(len(priors)), assign=False)
    return state.pick(run.predictive(state)[:, 0].argmax().view(1))


def _search(
    run: _Run, path: _State, num_components: int, num_init: int, num_steps: int, generator: torch.Generator
) -> tuple[_State, int, int]:
    """The best candidate of K > 1, the number of starts, and of the partitions they end in."""
    first, second, third = (num_steps // 3, num_steps // 3, num_steps - 2 * (num_steps // 3))
    starts, betas = propose_starts(_gradients(run, path), num_components, num_init, generator)
    priors = run.options.priors
    coarse = torch.tensor(_PRIORS_OF_STARTS if len(priors) > 1 else priors)
    count = len(coarse)
    state = run.start(starts.repeat_interleave(count, 0), coarse.repeat(len(starts)))
    temperatures = betas.repeat_interleave(count).tolist()
    for step in range(first):
        beta = torch.tensor([annealed_beta(step, first // 2, start) for start in temperatures])
        state = run.advance(state, beta)
    partitions = distinct_partitions(state.log_resp.argmax(-1)[::count])
    state = state.pick(_best(run, state, 3))
    every = torch.tensor(priors)
    if len(priors) > 1:
        state = replace(
            state.pick(torch.arange(len(state.prior)).repeat_interleave(len(every))),
            prior=every.repeat(len(state.prior)),
        )
    for number, steps in enumerate((second, third)):
        for _ in range(steps):
            state = run.advance(state, torch.ones(len(state.prior)))
        state = state.pick(_best(run, state, 3 if number == 0 else 1))
    return state, len(starts), partitions


def _best(run: _Run, state: _State, count: int) -> Tensor:
    """Candidates that predict best, each under the evidence weight that suits it."""
    return run.predictive(state).amax(1).argsort(descending=True)[:count]


def _gradients(run: _Run, path: _State) -> Tensor:
    """`(H, R)`: what each annotator's pairs would change of the single reward, in standard errors.

    Where one reward describes all, entries are standard normal; where an annotator is of another mind, they are not.
    """
    fitter = run.fitter
    found, variance = fitter.annotator_gradients(path.weight[0, :, 0], path.scores[0], run.own, run.num_annotators)
    size = torch.bincount(run.annotators, minlength=run.num_annotators).clamp(min=1).unsqueeze(1)
    # A direction counts as far as a pair of its spread can be told from noise.
    return found / (variance * size * fitter.curvature + fitter.ridge(torch.tensor(1.0))).sqrt()


def _finish(
    run: _Run, best: _State, num_steps: int, directions: Tensor, num_starts: int, num_partitions: int
) -> LinearMixture:
    """The best candidate on finer folds, under the prior that predicts best there, then its weights on all pairs.

    The prior is looked at once more, since a fourth of few texts may hold all there is of a word: what has not seen it
    errs the surer the wider the prior. Another one has to be `CLEARLY_BETTER`: responsibilities have seen all pairs.
    """
    # New folds, so weights that have seen nothing yet: they catch up before they may judge.
    priors, one = torch.tensor(run.options.priors), torch.ones(1)
    state = run.start(best.log_resp.repeat(len(priors), 1, 1), priors)
    components, catch_up = best.mixing.shape[1], num_steps // 2
    for _ in range(catch_up):
        state = run.advance(state, torch.ones(len(priors)), assign=False)
    found = run.predictive(state).amax(1)
    kept = (priors - best.prior).abs().argmin()
    state = state.pick((found.argmax() if found.max() > found[kept] + CLEARLY_BETTER else kept).view(1))
    for _ in range(0 if components > 1 else 2 * num_steps - catch_up):
        state = run.advance(state, one, assign=False)
    state = run.assigned(state, one)
    for _ in range(num_steps if components > 1 else 0):
        state = run.advance(state, one)
    predicted = run.predictive(state)[0]
    weights = state.log_resp[0].exp().float()[run.annotators]
    ridge = run.fitter.ridge(state.prior)
    weight = _converge(run.fitter, state.weight[0].mean(0), weights, ridge, 4 * max(num_steps, 1))
    return LinearMixture(
        weight @ directions.T.double(),
        state.log_resp[0],
        state.mixing[0],
        predicted.max().item(),
        state.scores[0],
        run.folds,
        state.prior.item(),
        PREDICTIVE_WEIGHTS[int(predicted.argmax())] if components > 1 else 1.0,
        num_starts,
        num_partitions,
        run.options.known,
    )
