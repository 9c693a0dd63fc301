# SPDX-License-Identifier: Apache-2.0
"""How many components preferences support: cross-validation, and one rule with three answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .em import clustered_error, predictive_log_likelihood, select_num_components
from .em_features import LinearMixture, directions_of_pairs, fit_feature_mixtures, fit_rewards
from .feature_pairs import FeaturePairs, deal_folds
from .feature_rankings import FeatureRankings
from .planted import plant_two_groups, who_is_small


MIN_GAIN = 2e-3
"""Nats a held-out pair that one more component has to gain: a group of 1 % brings that much if its own reward predicts
its pairs 0.2 nats better. Where there is no further group, the gain or loss is far less."""
RELEVANT_GAIN = 0.02
"""Nats a pair that groups have to be worth, once they are known, before they matter: a group of a tenth whose pairs
its own reward predicts 0.2 nats better."""
SHARES = (0.5, 0.1)
"""Of the smaller group in the simulations that say whether such groups would have been seen."""
_ERRORS = 2.0  # standard errors beyond which something counts as seen
_SMALL = 4000  # pairs up to which every simulation is made twice


@dataclass(frozen=True)
class FoldFit:
    """What one fold of the cross-validation fitted, and what it says of pairs that it has not seen.

    Args:
        train, heldout (`Tensor`): rows of the pairs; a pair with texts of two folds is in neither.
        fitted ([`LinearMixture`]): its `scores` are those of the rows of `train`.
        scores (`Tensor` of shape `(len(heldout), K)`): log-likelihood of the held-out pairs, nats. Their texts are new
            to their annotator.
    """

    train: Tensor
    heldout: Tensor
    fitted: LinearMixture
    scores: Tensor

    def predicted(self, annotator_index: Tensor) -> Tensor:
        """`(len(heldout),)` predictive log-likelihood, nats, given the annotators `(N,)` of all pairs."""
        log_resp = self.fitted.tempered(annotator_index[self.train])
        return predictive_log_likelihood(self.scores, log_resp, annotator_index[self.heldout])


@dataclass(frozen=True)
class Choice:
    """How many components, and on which numbers. Dictionaries have the candidate K as keys; all in nats a pair.

    Args:
        verdict_kind (`str`): `"groups"`, `"one"` or `"cannot_tell"`.
        num_components (`int`): the K to use: 1 unless the answer is groups.
        best (`int`): the K of highest predictive log-likelihood.
        log_likelihood, difference, standard_error (`dict[int, float]`): as in [`NumComponentsSelection`].
        accuracy (`dict[int, float]`): share of pairs to whose chosen reply more than one half is given.
        gain, gain_error (`dict[int, float]`): against one component, and its standard error: the larger of that
            clustered by annotator and that of independent pairs.
        coin_error (`float`): standard error of one component's log-likelihood.
        prior_scale (`dict[int, list[float]]`): chosen in each fold.
        predictive_weight (`dict[int, list[float]]`): likewise.
        num_starts, num_partitions (`dict[int, list[int]]`): likewise.
        simulated (`dict[float, tuple[float, float]]`): share of the smaller of two simulated groups worth
            `RELEVANT_GAIN` -> what two components gained of it, and its standard error. Empty where nothing had to be
            simulated.
        num_pairs, num_annotators (`int`): what the numbers rest on.
        chance (`float`): log-likelihood under no reward; that of a coin for pairs.
        unit (`str`): `"pair"`, or `"ranking"` where one is a row.
    """

    verdict_kind: str
    num_components: int
    best: int
    log_likelihood: dict[int, float]
    difference: dict[int, float]
    standard_error: dict[int, float]
    accuracy: dict[int, float]
    gain: dict[int, float]
    gain_error: dict[int, float]
    coin_error: float
    num_pairs: int
    num_annotators: int
    prior_scale: dict[int, list[float]] = field(default_factory=dict)
    predictive_weight: dict[int, list[float]] = field(default_factory=dict)
    num_starts: dict[int, list[int]] = field(default_factory=dict)
    num_partitions: dict[int, list[int]] = field(default_factory=dict)
    simulated: dict[float, tuple[float, float]] = field(default_factory=dict)
    chance: float = math.log(0.5)
    unit: str = "pair"


def cross_validate(
    pairs: FeaturePairs | FeatureRankings,
    num_annotators: int,
    candidates: Sequence[int],
    *,
    seed: int,
    num_folds: int = 5,
    **options: Any,
) -> dict[int, list[FoldFit]]:
    """Fit every K without each fold in turn, everything that is chosen by the data within the other folds.

    Args:
        pairs ([`FeaturePairs`]): all pairs.
        num_annotators (`int`): H.
        candidates (`Sequence[int]`): values of K.
        seed (`int`): of the folds, the same for every K, so that differences are paired.
        num_folds (`int`): parts that each annotator's pairs are dealt into, see [`deal_folds`].
        **options: of [`fit_feature_mixture`].
    """
    folds = deal_folds(pairs, num_folds, torch.Generator().manual_seed(seed))
    # Once for all folds: directions in which no pair differs are dropped. That looks at texts, not at preferences.
    directions, _ = directions_of_pairs(pairs)
    reduced = replace(pairs, features=(pairs.features.float() - pairs.features.float().mean(0)) @ directions)
    found: dict[int, list[FoldFit]] = {k: [] for k in candidates}
    for part in range(num_folds):
        out, rest = (folds == part).all(1).nonzero().flatten(), (folds != part).all(1).nonzero().flatten()
        if not len(out) or not len(rest):
            continue
        generator = torch.Generator().manual_seed(seed)
        fitted = fit_feature_mixtures(reduced.select(rest), num_annotators, candidates, generator=generator, **options)
        held = reduced.select(out)
        for k, one in fitted.items():
            found[k].append(FoldFit(rest, out, one, held.log_likelihood(one.weight)))
    return found


def heldout_scores(fits: Sequence[FoldFit], annotator_index: Tensor) -> Tensor:
    """`(N,)` predictive log-likelihood of every pair in a fold of its own, nats; NaN where a pair is in none."""
    scores = torch.full((len(annotator_index),), torch.nan, dtype=torch.float64)
    for fit in fits:
        scores[fit.heldout] = fit.predicted(annotator_index)
    return scores


def choose_components(
    pairs: FeaturePairs | FeatureRankings,
    num_annotators: int,
    candidates: Sequence[int],
    *,
    seed: int,
    simulate: bool = True,
    **options: Any,
) -> Choice:
    """Whether preferences hold groups, one reward suffices, or these data cannot tell.

    *Groups*: the smallest K within one standard error of the best gains more than two standard errors, and `MIN_GAIN`,
    against one component. *One suffices*: one component predicts better than a coin, no K can gain `RELEVANT_GAIN`
    within two standard errors, and two simulated groups that are worth as much would have been seen in these pairs of
    these people. Otherwise *cannot tell*.

    Args:
        pairs, num_annotators, candidates, seed: as in [`cross_validate`].
        simulate (`bool`): whether groups may be simulated; without it the answer is never that one suffices.
        **options: of [`fit_feature_mixture`].

    Raises:
        ValueError: pairs of fewer than two annotators can be held out.
    """
    fits = cross_validate(pairs, num_annotators, candidates, seed=seed, **options)
    scores = {k: heldout_scores(of, pairs.annotator_index) for k, of in fits.items()}
    chance = None
    if isinstance(pairs, FeatureRankings):
        chance = pairs.choices.log_likelihood(torch.zeros(len(pairs.features), 1))[:, 0]
    choice = decide(scores, pairs.annotator_index, chance)
    details: dict[str, Any] = {
        name: {k: [getattr(fit.fitted, name) for fit in of] for k, of in fits.items()}
        for name in ("prior_scale", "predictive_weight", "num_starts", "num_partitions")
    }
    choice = replace(choice, **details)
    if choice.verdict_kind == "groups":
        choice = replace(choice, num_components=_described(choice, fits))
    if simulate and choice.verdict_kind == "one":
        simulated = _simulate(pairs, num_annotators, choice, seed, options)
        choice = replace(choice, simulated=simulated)
    if choice.verdict_kind == "one" and not _would_have_been_seen(choice):
        choice = replace(choice, verdict_kind="cannot_tell")
    return choice


def decide(scores: dict[int, Tensor], annotator_index: Tensor, chance: Tensor | None = None) -> Choice:
    """The rule of [`choose_components`] short of the simulations.

    Args:
        scores (`dict[int, Tensor]`, each `(N,)`): predictive log-likelihood of the same pairs under each K, nats; NaN
            marks pairs that could not be held out.
        annotator_index (`Tensor` of shape `(N,)`): annotator of each pair.
        chance (`Tensor` of shape `(N,)`, *optional*): log-likelihood under no reward, nats; that of a coin by default.

    Raises:
        ValueError: pairs of fewer than two annotators have scores; else as [`select_num_components`].

    Example:

    >>> two = torch.tensor([-0.2, -0.4, -0.3, -0.5, -0.2, -0.3])
    >>> choice = decide({1: torch.full((6,), -0.9), 2: two}, torch.tensor([0, 0, 1, 1, 2, 2]))
    >>> choice.verdict_kind, choice.num_components
    ('groups', 2)
    """
    scored = torch.stack([value.isfinite() for value in scores.values()]).all(0)
    people, index = annotator_index[scored].unique(return_inverse=True)
    if len(people) < 2:
        raise ValueError(
            f"Of {len(scored)} pairs {int(scored.sum())} can be held out, of fewer than 2 annotators: nearly all "
            "consist of texts that the same annotator judges in other pairs too. Give num_components, or more "
            "texts for each annotator."
        )
    kept = {k: value[scored].double() for k, value in scores.items()}
    coin = torch.full((len(scored),), math.log(0.5)) if chance is None else chance
    coin = coin[scored].double()
    found = select_num_components(kept, index)
    chosen = next(k for k in sorted(kept) if found.difference[k] <= max(found.standard_error[k], MIN_GAIN))

    def error(values: Tensor) -> float:
        independent = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.inf
        return max(clustered_error(values, index, len(people)), independent)

    single = kept.get(1)
    gain = {k: (value - single).mean().item() for k, value in kept.items()} if single is not None else {}
    gain_error = {k: error(value - single) for k, value in kept.items()} if single is not None else {}
    coin_error = error(kept[min(kept)])
    seen = chosen > 1 and bool(gain) and gain[chosen] > max(_ERRORS * gain_error[chosen], MIN_GAIN)
    kind = "cannot_tell"
    if seen and found.mean[chosen] > coin.mean():
        kind = "groups"
    elif len(gain) > 1 and found.mean[1] - _ERRORS * coin_error > coin.mean():
        upper = max(gain[k] + _ERRORS * gain_error[k] for k in gain if k > 1)
        kind = "one" if upper < RELEVANT_GAIN else kind
    return Choice(
        kind,
        chosen if kind == "groups" or not gain else 1,
        found.best,
        found.mean,
        found.difference,
        found.standard_error,
        {k: (value > coin).double().mean().item() for k, value in kept.items()},
        gain,
        gain_error,
        coin_error,
        len(index),
        len(people),
        chance=coin.mean().item(),
        unit="pair" if chance is None else "ranking",
    )


def _simulate(
    pairs: FeaturePairs | FeatureRankings, num_annotators: int, choice: Choice, seed: int, options: dict[str, Any]
) -> dict[float, tuple[float, float]]:
    """Votes of two groups worth `RELEVANT_GAIN` on the same pairs by the same people: what two components gain.

    Under the prior that one reward has on the data: so are the rewards drawn, and to choose it once more for every
    simulation would cost four times as much.
    """
    prior = _middle(choice.prior_scale[1])
    single = fit_rewards(pairs, torch.ones(len(pairs), 1), prior)[0]
    known = options.get("known")
    # Groups that are given are those that would have to be seen; who is of one in part only has to be found.
    given = known == torch.bincount(known).argmin() if known is not None and bool((known >= 0).all()) else None
    found: dict[float, tuple[float, float]] = {}
    for number, share in enumerate(SHARES if given is None else SHARES[:1]):
        gains = []
        for again in range(2 if len(pairs) <= _SMALL else 1):
            generator = torch.Generator().manual_seed(seed + 101 * number + 11 * again + 1)
            small = who_is_small(num_annotators, share, generator) if given is None else given
            votes = plant_two_groups(pairs, single, small, RELEVANT_GAIN, generator)
            own = options | {"known": None if given is None else given.long(), "prior_scale": prior}
            fits = cross_validate(votes, num_annotators, (1, 2), seed=seed, **own)
            index = votes.annotator_index
            result = decide({k: heldout_scores(of, index) for k, of in fits.items()}, index)
            gains.append((result.gain[2], result.gain_error[2]))
            part = small.double().mean().item()
            if result.gain[2] <= max(MIN_GAIN, *(choice.gain[k] for k in choice.gain if k > 1)):
                break  # a second world would have to make up for the first
        error = math.sqrt(sum(error**2 for _, error in gains)) / len(gains)
        found[part] = (sum(gain for gain, _ in gains) / len(gains), error)
        if not _would_have_been_seen(replace(choice, simulated=found)):
            break  # one kind of groups that would have gone unseen is enough
    return found


def _described(choice: Choice, fits: dict[int, list[FoldFit]]) -> int:
    """K, or fewer where in most folds a component describes nobody and fewer components show groups as well."""
    chosen = choice.num_components
    counts = [len(fit.fitted.log_responsibilities.argmax(-1).unique()) for fit in fits[chosen]]
    count = sorted(counts)[len(counts) // 2]
    if count in choice.gain and choice.gain[count] > max(_ERRORS * choice.gain_error[count], MIN_GAIN):
        return min(count, chosen)
    return chosen


def _middle(scales: Sequence[float]) -> float:
    return sorted(scales)[len(scales) // 2]


def _would_have_been_seen(choice: Choice) -> bool:
    """Whether every simulated world gains enough to be called groups, and more than these data do, by two standard
    errors of the difference."""
    return bool(choice.simulated) and all(_seen(choice, gain, error) for gain, error in choice.simulated.values())


def _seen(choice: Choice, gain: float, error: float, factor: float = 1.0) -> bool:
    """Of one simulated world, if standard errors were those of so many times as many pairs."""
    several = [k for k in choice.gain if k > 1]
    return gain > MIN_GAIN and all(
        gain - choice.gain[k] > _ERRORS * math.hypot(error, choice.gain_error[k]) / math.sqrt(factor) for k in several
    )


def needed(choice: Choice) -> tuple[str, float]:
    """What would decide a "cannot tell", as (`"annotators"` or `"pairs"`, how many times as many).

    Standard errors shrink with the square root of the number of annotators; what estimating the components costs
    shrinks with the number of pairs.
    """
    several = [k for k in choice.gain if k > 1]
    if not several:
        return "annotators", 1.0
    if choice.simulated:
        for factor in (1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32):
            enough = all(
                _seen(choice, RELEVANT_GAIN - (RELEVANT_GAIN - gain) / factor, error, factor)
                for gain, error in choice.simulated.values()
            )
            if enough:
                return "pairs", float(factor)
        return "pairs", math.inf
    k = max(several, key=lambda k: choice.gain[k] + _ERRORS * choice.gain_error[k])
    # Either the gain stands out from nothing, or it falls below what matters, whichever needs less.
    distance = max(choice.gain[k], RELEVANT_GAIN - choice.gain[k])
    return "annotators", max(1.0, (_ERRORS * choice.gain_error[k] / distance) ** 2)
