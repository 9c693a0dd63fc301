# SPDX-License-Identifier: Apache-2.0
"""Which pairs [`diagnose`] learns from and which it holds out, and how many groups they support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset

from ..data.columns import ANNOTATOR_COLUMN, AnnotatorIndex, is_known_group, without_ties
from ..data.texts import distinct_texts, number_values, prompts_of
from ..functional.em import NumComponentsSelection, predictive_log_likelihood, select_num_components
from ..functional.em_features import deal_texts
from ..functional.em_linear import fit_linear_mixture, fit_weighted_logistic
from .features import model_features, principal_features, word_features


RIDGES = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0)
"""Prior precisions of the rewards that are tried; features have unit mean square."""
MIN_GAIN = 2e-3
"""Nats a held-out pair that one more group has to gain: a group of 1 % brings that much if its own reward predicts its
pairs 0.2 nats better. Where there is no further group, the gain or loss is far less."""
_MAX_RIDGE_OF_SEVERAL = 256.0
# Into which the texts of an annotator are dealt, where some of them stand in several pairs.
_NUM_FOLDS = 10


@dataclass
class Pairs:
    """The data as arrays: features of chosen and rejected (N, D), annotator, prompt, whether a pair trains or is held
    out. Pairs that share a text with held-out and with training pairs of their annotator do neither."""

    chosen: np.ndarray
    rejected: np.ndarray
    margin: np.ndarray
    annotator: np.ndarray
    prompt: np.ndarray
    learn: np.ndarray
    heldout: np.ndarray
    texts: list[tuple[Any, Any]]
    ridge: float = RIDGES[0]

    @property
    def difference(self) -> np.ndarray:
        """Features of the chosen less those of the rejected reply, (N, D)."""
        return self.chosen - self.rejected


def read_pairs(
    dataset: Dataset, heldout_fraction: float, model: str | None, seed: int, known: bool, **model_kwargs: Any
) -> tuple[Pairs, Dataset]:
    """The preferences as arrays, split into pairs that train and pairs that are held out, and the rows behind them:
    without those whose replies read alike.

    Args:
        dataset (`Dataset`): as [`prepare_preferences`] returns it.
        heldout_fraction (`float`): share of each annotator's pairs, or texts, to hold out.
        model (`str`, *optional*): frozen model of the features; `None` counts words.
        seed (`int`): of the split.
        known (`bool`): whether groups are known, so that nobody has to be placed.
        **model_kwargs: passed to `from_pretrained`.
    """
    raw = _raw_features(dataset, model, **model_kwargs)
    differ = np.flatnonzero((raw[: len(dataset)] != raw[len(dataset) :]).any(1))
    if len(differ) < len(dataset):
        sides = np.split(raw, 2)
        raw = np.concatenate([side[differ] for side in sides])
        ties = ([row.tobytes() for row in side] for side in sides)
        dataset = without_ties(dataset, *ties, " in all that is read of them (their words, or a model's states)")
    count = len(dataset)
    replies = [*dataset["chosen"], *dataset["rejected"]]
    given = prompts_of(dataset)
    features = principal_features(raw)
    index = AnnotatorIndex.from_values(dataset[ANNOTATOR_COLUMN])
    annotator = np.array(index.encode(dataset[ANNOTATOR_COLUMN]))
    # Without prompts nothing is known to be comparable but the two replies of a pair.
    keys = [str(prompt) for prompt in given] if "prompt" in dataset.column_names else list(range(count))
    margin = np.array(dataset["margin"]) if "margin" in dataset.column_names else np.zeros(count)
    prompt = np.array(number_values(keys))
    texts = list(zip(map(str, replies[:count]), map(str, replies[count:]), strict=True))
    numbers = distinct_texts(given, replies[:count], replies[count:])[1]
    learn, heldout = _split(annotator, numbers, heldout_fraction, seed, known)
    return Pairs(features[:count], features[count:], margin, annotator, prompt, learn, heldout, texts), dataset


def _raw_features(dataset: Dataset, model: str | None, **model_kwargs: Any) -> np.ndarray:
    """What is read of the chosen replies, then of the rejected ones, (2N, F)."""
    replies, given = [*dataset["chosen"], *dataset["rejected"]], prompts_of(dataset)
    if model is None:
        return word_features(replies)
    return model_features(model, [*given, *given], replies, **model_kwargs)


def _split(
    annotator: np.ndarray, texts: np.ndarray, fraction: float, seed: int, known: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs train, and which are held out. Of an annotator who judged a text in several pairs, texts are held
    out, since their other pairs would imply the held-out ones; a pair with texts of both parts is in neither."""
    generator, torch_generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    by_annotator = _rows_of(annotator)
    sharing = [len(np.unique(texts[rows])) < texts[rows].size for rows in by_annotator]
    heldout = np.zeros(len(annotator), dtype=bool)
    learn = ~heldout
    # Nobody has to be placed where groups are known, so pairs may be held out of people with a single one.
    together = known and not any(sharing)
    for rows, shares in [(np.arange(len(annotator)), False)] if together else zip(by_annotator, sharing, strict=True):
        if shares:
            folds = deal_texts(*texts[rows].T.tolist(), _NUM_FOLDS, torch_generator).numpy()
            # Of an annotator with few texts the first folds have some; others shall be held out of another.
            folds = (folds + generator.integers(_NUM_FOLDS)) % _NUM_FOLDS
            out = folds < min(max(round(fraction * _NUM_FOLDS), 1), _NUM_FOLDS - 1)
            heldout[rows], learn[rows] = out.all(1), ~out.any(1)
        else:
            size = min(round(fraction * len(rows)), len(rows) - 1)
            chosen = generator.permutation(rows)[:size]
            heldout[chosen], learn[chosen] = True, False
    return learn, heldout


def _rows_of(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def fit_reward(pairs: Pairs, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Linear reward (D,) on some of the pairs."""
    difference = torch.tensor(pairs.difference[rows])
    weight = torch.ones(len(difference)).double() if weights is None else torch.tensor(weights).double()
    start = torch.zeros(1, difference.shape[1], dtype=torch.float64)
    margin = torch.tensor(pairs.margin[rows], dtype=torch.float64)
    return fit_weighted_logistic(difference, weight[:, None], margin, pairs.ridge, start, 15)[0].numpy()


class _Scored(NamedTuple):
    scores: torch.Tensor  # (N,) of the held-out pairs, nats
    fitted: Any
    ridge: float


def _one_reward(pairs: Pairs) -> _Scored:
    """Under the prior precision that predicts held-out pairs best."""

    def score(ridge: float) -> _Scored:
        of = replace(pairs, ridge=ridge)
        return _Scored(_log_likelihood(of, of.heldout, fit_reward(of, of.learn)[None])[:, 0], None, ridge)

    return max(map(score, RIDGES), key=lambda scored: scored.scores.mean().item())


def _for_several(pairs: Pairs, one: _Scored) -> Pairs:
    """The pairs with the prior of several rewards: that of one reward, but for one that says next to nothing.

    If the prior were weaker, several rewards that are all alike would predict better than one only because each is
    shrunk more, and data of one group would seem to hold several. But between two groups that want opposite things one
    reward can say nothing, and is shrunk to nothing; several may not be shrunk away with it.
    """
    return replace(pairs, ridge=min(one.ridge, _MAX_RIDGE_OF_SEVERAL))


def _log_likelihood(pairs: Pairs, rows: np.ndarray, parameters: np.ndarray) -> torch.Tensor:
    """(N, K) of some pairs under rewards with parameters (K, D)."""
    log_odds = pairs.difference[rows] @ parameters.T - pairs.margin[rows, None]
    return F.logsigmoid(torch.tensor(log_odds))


def find_groups(
    pairs: Pairs, max_groups: int, num_init: int, seed: int
) -> tuple[np.ndarray, dict[str, dict[str, float]], int, float]:
    """Memberships (H, K), the largest component first; the evidence for each K, the K it supports, and the prior."""
    size = int(pairs.annotator.max()) + 1
    learn, heldout = pairs.learn, pairs.heldout
    annotator = torch.tensor(pairs.annotator)

    def several(k: int) -> _Scored:
        fitted = fit_linear_mixture(
            torch.tensor(pairs.difference[learn]),
            annotator[learn],
            size,
            k,
            generator=torch.Generator().manual_seed(seed),
            margin=torch.tensor(pairs.margin[learn]),
            num_init=num_init,
            ridge=pairs.ridge,
        )
        likelihood = _log_likelihood(pairs, heldout, fitted.weight.numpy())
        posterior = fitted.log_responsibilities.exp()
        scores = predictive_log_likelihood(likelihood, fitted.log_responsibilities, annotator[heldout])
        return _Scored(scores, posterior[:, posterior.sum(0).argsort(descending=True)].numpy(), pairs.ridge)

    one = _one_reward(pairs)
    pairs = _for_several(pairs, one)
    best = {1: one._replace(fitted=np.ones((size, 1)))}
    best |= {k: several(k) for k in range(2, min(max_groups, size) + 1)}
    found, chosen = _select({k: scored.scores for k, scored in best.items()}, annotator[heldout])
    return best[chosen].fitted, _evidence(found), chosen, best[chosen].ridge


def _select(scores: dict[int, torch.Tensor], annotator: torch.Tensor) -> tuple[NumComponentsSelection, int]:
    """The evidence, and the K it supports: the smallest within one standard error, or `MIN_GAIN`, of the best.

    Where components are all alike, or one of them is empty, another K gains next to nothing, and by chance more than
    one standard error of that in every sixth data set.
    """
    found = select_num_components(scores, annotator)
    return found, next(k for k in sorted(scores) if found.difference[k] <= max(found.standard_error[k], MIN_GAIN))


def known_groups(
    pairs: Pairs, groups: Sequence[Any]
) -> tuple[np.ndarray, dict[str, dict[str, float]], int, list[str], float]:
    """Memberships (N, K) by column, whether their own rewards predict held-out pairs better than one for all, and the
    prior."""
    if missing := [row for row, group in enumerate(groups) if not is_known_group(group)]:
        row = missing[0]
        raise ValueError(f"Row {row} has no group ({groups[row]!r}); name one, or remove the row.")
    labels = np.array([str(group) for group in groups])
    names, counts = np.unique(labels, return_counts=True)
    names = [str(name) for name in names[np.argsort(-counts, kind="stable")]]
    learn, heldout = pairs.learn, pairs.heldout
    memberships = (labels[:, None] == np.array(names)).astype(np.float64)
    if bare := [name for k, name in enumerate(names) if not memberships[learn, k].any()]:
        raise ValueError(f"The groups {bare} have no pair to learn from; leave them out or collect more.")
    best = {1: _one_reward(pairs)}
    if len(names) > 1:
        pairs = _for_several(pairs, best[1])
        own = np.stack([fit_reward(pairs, learn, memberships[learn, k]) for k in range(len(names))])
        likelihood, belongs = _log_likelihood(pairs, heldout, own), torch.tensor(memberships[heldout].argmax(1))
        best[len(names)] = _Scored(likelihood[torch.arange(len(belongs)), belongs], None, pairs.ridge)
    found, chosen = _select({k: scored.scores for k, scored in best.items()}, torch.tensor(pairs.annotator[heldout]))
    return memberships, _evidence(found), chosen, names, best[chosen].ridge


def _evidence(found: NumComponentsSelection) -> dict[str, dict[str, float]]:
    return {
        str(k): {"mean": found.mean[k], "difference": found.difference[k], "standard_error": found.standard_error[k]}
        for k in found.mean
    }
