# SPDX-License-Identifier: Apache-2.0
"""What [`diagnose`] reads of the pairs, which of them it learns from and holds out, and how many groups they hold."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets

from ..data.columns import ANNOTATOR_COLUMN, AnnotatorIndex, is_known_group, without_ties
from ..data.rankings import choices_of, is_ranked
from ..data.texts import distinct_replies, distinct_texts, number_values, prompts_of
from ..functional.em_features import fit_feature_mixture, fit_rewards
from ..functional.feature_pairs import FeaturePairs, deal_texts
from ..functional.feature_rankings import FeatureRankings
from ..functional.num_components import choose_components
from ..functional.preference import preference_accuracy
from ..trainer.reward.annotated_preferences import numbers_of
from ..trainer.reward.component_selection import ComponentSelection
from .features import frozen_trainer, principal_features, word_features


# Into which the texts of an annotator are dealt, where some of them stand in several pairs.
_NUM_FOLDS = 10
# Ends the message about replies that are the same in counts of words.
_AS_WORDS = " in all that is read of them (their words)"


@dataclass
class Pairs:
    """The data as arrays.

    Args:
        table ([`FeaturePairs`] or [`FeatureRankings`]): N pairs or rankings over the M distinct texts, with all that
            is read of them. What is said of pairs here holds for rankings.
        principal (`np.ndarray` of shape `(M, D)`): the texts in leading principal directions, in which quantities of
            the theory are measured.
        prompt (`np.ndarray` of shape `(N,)`): prompt of each pair.
        learn, heldout (`np.ndarray` of shape `(N,)`): whether a pair trains, or is held out. Pairs that share a text
            with held-out and with training pairs of their annotator do neither.
        choice (`np.ndarray` of shape `(N,)`): pairs by which the number of groups is chosen.
        prior_scale (`float`, *optional*): of the rewards, see [`fit_rewards`].
    """

    table: FeaturePairs | FeatureRankings
    principal: np.ndarray
    prompt: np.ndarray
    learn: np.ndarray
    heldout: np.ndarray
    choice: np.ndarray
    prior_scale: float | None = None

    @property
    def annotator(self) -> np.ndarray:
        """Annotator of each pair, (N,)."""
        return self.table.annotator_index.numpy()

    @property
    def texts(self) -> np.ndarray:
        """Rows of the chosen and of the rejected text of each pair, (N, 2); of rankings (N, n), -1 where one has
        fewer."""
        return self.table.sides.numpy()

    @property
    def unit(self) -> str:
        """What a row is."""
        return "pair" if isinstance(self.table, FeaturePairs) else "ranking"

    def compared(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every two replies of which a held-out row says which is better: the row, and their principal features, (C,)
        and (C, D) twice."""
        rows = np.flatnonzero(self.heldout)
        if isinstance(self.table, FeaturePairs):
            better, worse = self.texts[rows].T
        else:
            number, *texts = self.table.choices.select(torch.tensor(rows)).comparisons()
            rows, (better, worse) = rows[number.numpy()], (side.numpy() for side in texts)
        return rows, self.principal[better], self.principal[worse]

    def agreement(self, rows: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
        """How well linear rewards (D,) agree with some rows: `accuracy` (whether the chosen reply has the higher one;
        of rankings whether the best has the highest), and Kendall's `tau` of rankings."""
        rewards = torch.tensor(self.principal @ weight).unsqueeze(1)
        own = self.table.select(torch.tensor(rows))
        if isinstance(own, FeaturePairs):
            return {"accuracy": preference_accuracy(rewards[own.chosen], rewards[own.rejected])[:, 0].numpy()}
        measures = {"accuracy": own.choices.top_accuracy, "tau": own.choices.kendall_tau}
        return {name: measure(rewards)[:, 0].numpy() for name, measure in measures.items()}


def read_pairs(
    dataset: Dataset,
    heldout_fraction: float,
    model: str | None,
    seed: int,
    known: bool,
    **model_kwargs: Any,
) -> tuple[Pairs, Dataset]:
    """The preferences as arrays, and the rows behind them: without those whose replies read alike.

    Args:
        dataset (`Dataset`): as [`prepare_rows`] returns it.
        heldout_fraction (`float`): share of each annotator's pairs, or texts, to hold out.
        model (`str`, *optional*): frozen model of the features; `None` counts words.
        seed (`int`): of the split.
        known (`bool`): whether groups are known, so that nobody has to be placed.
        **model_kwargs: of [`frozen_trainer`].
    """
    if model is None:
        features, rows, dataset, choice = _counted(dataset)
    else:
        features, rows, dataset, choice = _encoded(dataset, model, seed, **model_kwargs)
    index = AnnotatorIndex.from_values(dataset[ANNOTATOR_COLUMN])
    annotator = torch.tensor(index.encode(dataset[ANNOTATOR_COLUMN]))
    # Without prompts nothing is known to be comparable but the two replies of a pair.
    given = prompts_of(dataset) if "prompt" in dataset.column_names else range(len(dataset))
    learn, heldout = _split(annotator.numpy(), rows.numpy(), heldout_fraction, seed, known)
    table: FeaturePairs | FeatureRankings
    if is_ranked(dataset):
        table = FeatureRankings(features, choices_of(dataset, rows, annotator))
    else:
        table = FeaturePairs(features, rows[:, 0], rows[:, 1], annotator, *numbers_of(dataset))
    # Frequent texts count as often as they are judged.
    judged = rows.T[rows.T >= 0]
    principal = principal_features(features[judged].numpy())
    by_text = np.zeros((len(features), principal.shape[1]))
    by_text[judged.numpy()] = principal
    prompt = np.array(number_values([str(prompt) for prompt in given]))
    return Pairs(table, by_text, prompt, learn, heldout, choice), dataset


def _counted(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor, Dataset, np.ndarray]:
    """Counts of words: features of the distinct texts (M, F), rows of the pairs' texts (N, 2) (of rankings (N, n), -1
    where one has fewer), what is left of the data, and that all of it may choose the number of groups."""
    if is_ranked(dataset):
        return _counted_rankings(dataset)
    replies = [*dataset["chosen"], *dataset["rejected"]]
    raw = word_features(replies)
    count = len(dataset)
    differ = np.flatnonzero((raw[:count] != raw[count:]).any(1))
    if len(differ) < count:
        sides = np.split(raw, 2)
        raw = np.concatenate([side[differ] for side in sides])
        ties = ([row.tobytes() for row in side] for side in sides)
        dataset = without_ties(dataset, *ties, _AS_WORDS)
    numbers = distinct_texts(prompts_of(dataset), dataset["chosen"], dataset["rejected"])[1]
    features = np.zeros((numbers.max() + 1, raw.shape[1]), dtype=np.float32)
    features[numbers.T.flatten()] = raw
    return torch.tensor(features), torch.tensor(numbers), dataset, np.ones(len(dataset), dtype=bool)


def _counted_rankings(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor, Dataset, np.ndarray]:
    raw = word_features([reply for own in dataset["responses"] for reply in own])
    at, sides = 0, []
    for own in dataset["responses"]:
        here = [row.tobytes() for row in raw[at : at + len(own)]]
        # The first reply, and one that reads otherwise where there is one.
        sides.append((here[0], next((other for other in here if other != here[0]), here[0])))
        at += len(own)
    kept = without_ties(dataset.add_column("row", list(range(len(dataset)))), *zip(*sides, strict=True), _AS_WORDS)
    rows = distinct_replies(prompts_of(kept), kept["responses"])[1]
    starts = np.cumsum([0, *map(len, dataset["responses"])])
    judged = [place for row in kept["row"] for place in range(starts[row], starts[row + 1])]
    features = np.zeros((rows.max() + 1, raw.shape[1]), dtype=np.float32)
    features[rows[rows >= 0]] = raw[judged]
    return torch.tensor(features), torch.tensor(rows), kept.remove_columns("row"), np.ones(len(kept), dtype=bool)


def _encoded(
    dataset: Dataset, model: str, seed: int, **model_kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, Dataset, np.ndarray]:
    """Likewise the states of a frozen model, each distinct text encoded once, by the very trainer that `reward` has
    with `train_trunk=False`; the pairs that train there choose the number of groups here."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = frozen_trainer(dataset, model, folder, seed, **model_kwargs)
        trainer.choose_feature_map()
        parts = [part for part in (trainer.train_dataset, trainer.eval_dataset) if part is not None]
        # Twice: only once all texts are met does the table hold them all.
        pairs = [[trainer.feature_pairs(part) for part in parts] for _ in range(2)][1]
    width = max(part.sides.shape[1] for part in pairs)
    rows = torch.cat([F.pad(part.sides, (0, width - part.sides.shape[1]), value=-1) for part in pairs])
    choice = np.arange(len(rows)) < len(parts[0])
    return pairs[0].features.float(), rows, concatenate_datasets(parts), choice


def _split(
    annotator: np.ndarray, texts: np.ndarray, fraction: float, seed: int, known: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs train, and which are held out. Of an annotator who judged a text in several pairs, texts are held
    out, since their other pairs would imply the held-out ones; a pair with texts of both parts is in neither."""
    generator, torch_generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    by_annotator = _rows_of(annotator)
    judged = [texts[rows][texts[rows] >= 0] for rows in by_annotator]
    sharing = [len(np.unique(own)) < len(own) for own in judged]
    heldout = np.zeros(len(annotator), dtype=bool)
    learn = ~heldout
    # Nobody has to be placed where groups are known, so pairs may be held out of people with a single one.
    together = known and not any(sharing)
    for rows, shares in [(np.arange(len(annotator)), False)] if together else zip(by_annotator, sharing, strict=True):
        if shares:
            folds = deal_texts(texts[rows].tolist(), _NUM_FOLDS, torch_generator).numpy()
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


def rewards_on(pairs: Pairs, weights: np.ndarray) -> np.ndarray:
    """Linear rewards (K, D) in the principal directions on the pairs that train, each with its weights (N, K)."""
    rows = torch.tensor(pairs.learn)
    table = replace(pairs.table, features=torch.tensor(pairs.principal)).select(rows)
    return fit_rewards(table, torch.tensor(weights)[rows], pairs.prior_scale).numpy()


def find_groups(pairs: Pairs, max_groups: int, num_init: int, seed: int) -> tuple[np.ndarray, ComponentSelection]:
    """Memberships (H, K), the largest component first, and the choice of K."""
    people = len(np.unique(pairs.annotator))
    table = pairs.table.select(torch.tensor(pairs.choice))
    options: dict[str, Any] = {"num_init": 2 * num_init}
    chosen = choose_components(table, people, range(1, min(max_groups, people) + 1), seed=seed, **options)
    selection = ComponentSelection.of(chosen)
    count = selection.num_components
    if count == 1:
        return np.ones((people, 1)), selection
    learn = pairs.table.select(torch.tensor(pairs.learn))
    fitted = fit_feature_mixture(learn, people, count, generator=torch.Generator().manual_seed(seed), **options)
    posterior = fitted.log_responsibilities.exp()
    return posterior[:, posterior.sum(0).argsort(descending=True)].numpy(), selection


def known_groups(pairs: Pairs, groups: Sequence[Any], seed: int) -> tuple[np.ndarray, ComponentSelection, list[str]]:
    """Memberships (N, K) by column, whether their own rewards predict held-out pairs better than one for all, and the
    names of the groups."""
    if missing := [row for row, group in enumerate(groups) if not is_known_group(group)]:
        row = missing[0]
        raise ValueError(f"Row {row} has no group ({groups[row]!r}); name one, or remove the row.")
    labels = np.array([str(group) for group in groups])
    names, counts = np.unique(labels, return_counts=True)
    names = [str(name) for name in names[np.argsort(-counts, kind="stable")]]
    memberships = (labels[:, None] == np.array(names)).astype(np.float64)
    if bare := [name for k, name in enumerate(names) if not memberships[pairs.learn, k].any()]:
        raise ValueError(f"The groups {bare} have no pair to learn from; leave them out or collect more.")
    # Who gave pairs under several labels counts once for each.
    belongs = memberships.argmax(1)
    parts, who = np.unique(pairs.annotator * len(names) + belongs, return_inverse=True)
    table = pairs.table.of_annotators(torch.tensor(who.reshape(-1)))
    known = torch.tensor(parts % len(names))
    chosen = choose_components(table, len(parts), sorted({1, len(names)}), seed=seed, known=known)
    return memberships, ComponentSelection.of(chosen), names
