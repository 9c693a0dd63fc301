# SPDX-License-Identifier: Apache-2.0
"""Do my data need more than one reward? An answer from the preferences alone, before anyone trains a policy.

Linear rewards on frozen features are fitted for K = 1, 2, ... groups, K is chosen on held-out pairs, and the
quantities of the impossibility result are measured under the fitted rewards: seconds, where training takes hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset

from ..data.columns import ANNOTATOR_COLUMN, AnnotatorIndex, is_known_group, prepare_preferences
from ..functional.em import NumComponentsSelection, predictive_log_likelihood, select_num_components
from ..functional.em_features import deal_texts
from ..functional.em_linear import fit_linear_mixture, fit_weighted_logistic
from .bootstrap import Interval, PromptBootstrap
from .diversity import (
    ASSUMPTIONS,
    GAP_ASSUMPTIONS,
    alignment_gap,
    diversity_margin,
    diversity_matrix,
    feature_curvature,
    gap_bound,
    mismatch_bound,
    preference_probability,
    total_variation,
)
from .features import model_features, principal_features, word_features


SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
RIDGES = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0)
"""Prior precisions of the rewards that are tried; features have unit mean square."""
MIN_GAIN = 2e-3
"""Nats a held-out pair that one more group has to gain: a group of 1 % brings that much if its own reward predicts its
pairs 0.2 nats better. Where there is no further group, the gain or loss is far less."""
_CURVATURE_PROMPTS = 200
_MAX_RIDGE_OF_SEVERAL = 256.0
# Into which the texts of an annotator are dealt, where some of them stand in several pairs.
_NUM_FOLDS = 10


@dataclass
class Diagnosis:
    """What [`diagnose`] found. Numbers with interval are `{"mean", "low", "high"}`; rewards are log-odds.

    Args:
        num_groups (`int`): K; 1 says that one reward suffices.
        known (`bool`): groups came from a column; otherwise EM found them by annotator.
        num_pairs, num_annotators, num_prompts (`int`): sizes of the data.
        selection (`dict`): K -> `mean` held-out log-likelihood (nats a pair), `difference` to the best and its
            `standard_error`, clustered by annotator.
        diversity (`list[list[float]]`): total variation between groups, K x K.
        epsilon (`float`): the paper's margin of diversity.
        by_group (`dict`): group -> `share`, `mismatch` (total variation of the single reward to the group's),
            `accuracy_own` and `accuracy_single` on held-out pairs, `parameter_distance` with its bound
            `parameter_bound`, `predicted` (`epsilon (1 - share)`), `predicted_bound` and `gap`.
        curves (`dict`): group -> list of `[share, gap]` as the group's share is varied by reweighting.
        feature_bound (`float`): D.
        beta (`float`): KL coefficient of the gaps.
        features (`str`): what the rewards are linear in.
        assumptions (`list[str]`): what all of this stands on.
    """

    num_pairs: int
    num_annotators: int
    num_prompts: int
    diversity: list[list[float]]
    epsilon: float
    by_group: dict[str, dict[str, Any]]
    curves: dict[str, list[list[float]]]
    feature_bound: float
    beta: float
    features: str
    num_groups: int = 1
    known: bool = False
    selection: dict[str, dict[str, float]] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=lambda: [*ASSUMPTIONS, *GAP_ASSUMPTIONS])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the fields, `verdict`, `predicted_order` and `measured_order`."""
        orders = {"predicted_order": self.predicted_order, "measured_order": self.measured_order}
        return {"verdict": self.verdict(), **asdict(self), **orders}

    def run_record_facts(self, dataset: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Facts for `RunRecord.replace("evaluation", ...)`.

        Args:
            dataset (`Mapping`, *optional*): where the preferences come from: `name`, `config`, `split`.
        """
        return {"diagnostics": self.to_dict() | ({"dataset": dict(dataset)} if dataset else {})}

    @property
    def predicted_order(self) -> list[str]:
        """Groups by predicted gap, the largest first: by `epsilon (1 - share)`."""
        return sorted(self.by_group, key=lambda group: -self.by_group[group]["predicted"])

    @property
    def measured_order(self) -> list[str]:
        """Groups by measured gap, the largest first."""
        return sorted(self.by_group, key=lambda group: -self.by_group[group]["gap"]["mean"])

    def verdict(self) -> str:
        """The answer in words."""
        kind = "groups you named" if self.known else "groups of annotators"
        if self.num_groups == 1:
            return (
                f"No: one reward suffices. {self._evidence(2)}Nothing in these {self.num_pairs} pairs supports more "
                f"than one of the {kind}; conventional RLHF is the simpler choice."
                if not self.known
                else f"No: one reward suffices. {self._evidence(self._most())}Separate rewards for the {kind} do not "
                "predict held-out pairs better than a single one."
            )
        worst = self.measured_order[0]
        entry = self.by_group[worst]
        shares = ", ".join(f"{name} {100 * facts['share']:.0f} %" for name, facts in self.by_group.items())
        accuracy = ""
        if "accuracy_own" in entry:
            accuracy = (
                f" On its held-out pairs a single reward is right in {100 * entry['accuracy_single']['mean']:.0f} % "
                f"of the cases, its own in {100 * entry['accuracy_own']['mean']:.0f} %."
            )
        return (
            f"Yes: the data hold {self.num_groups} {kind} ({shares}). {self._evidence(1)}The most diverse two "
            f"disagree by {max(map(max, self.diversity)):.2f} in total variation. A policy for the single reward "
            f"costs {worst} the most: {entry['gap']['mean']:.2f} log-odds.{accuracy}"
        )

    def _most(self) -> int:
        return max(int(k) for k in self.selection)

    def _evidence(self, other: int) -> str:
        if str(other) not in self.selection or other == self.num_groups:
            return ""
        ours, theirs = self.selection[str(self.num_groups)]["mean"], self.selection[str(other)]["mean"]
        gain = "gains" if ours >= theirs else "loses"
        return f"K = {self.num_groups} {gain} {abs(ours - theirs):.3f} nats per held-out pair against K = {other}. "

    def to_markdown(self) -> str:
        """Words, tables and the assumptions."""
        lines = ["# Do these data need more than one reward?", "", self.verdict(), ""]
        lines += [
            f"{self.num_pairs} pairs of {self.num_annotators} annotators on {self.num_prompts} prompts; rewards "
            f"linear in {self.features}, D = {self.feature_bound:.2f}, beta = {self.beta:g}.",
            "",
            "| K | held-out log-likelihood (nats a pair) | below the best by | standard error |",
            "|---|---|---|---|",
        ]
        for k, facts in self.selection.items():
            lines.append(f"| {k} | {facts['mean']:.4f} | {facts['difference']:.4f} | {facts['standard_error']:.4f} |")
        if self.num_groups > 1:
            columns = ["share", "mismatch", "accuracy_own", "accuracy_single", "predicted", "gap"]
            columns += ["parameter_distance", "parameter_bound", "predicted_bound"]
            lines += ["", "| group | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
            for name, facts in self.by_group.items():
                lines.append(f"| {name} | " + " | ".join(_shown(facts.get(column)) for column in columns) + " |")
            lines += [
                "",
                "`mismatch`: total variation between the single reward's preferences and the group's. `predicted`: "
                f"epsilon (1 - share) with epsilon = {self.epsilon:.3f}, which orders the gaps; `gap`: what the group "
                "loses under the policy of the single reward, log-odds; `parameter_bound`, `predicted_bound`: lower "
                "bounds of `parameter_distance` and `gap` (Lemma 1; its square with strong concavity).",
                "",
                f"Predicted order of the gaps: {', '.join(self.predicted_order)}. Measured: "
                f"{', '.join(self.measured_order)}.",
            ]
        lines += ["", "Assumptions:", "", *(f"- {assumption}" for assumption in self.assumptions)]
        return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value:.3g}"


@dataclass
class _Pairs:
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
        return self.chosen - self.rejected


def diagnose(
    dataset: Dataset,
    *,
    annotator_column: str = ANNOTATOR_COLUMN,
    group_column: str | None = None,
    max_groups: int = 3,
    model_name_or_path: str | None = None,
    heldout_fraction: float = 0.3,
    beta: float = 1.0,
    num_init: int = 4,
    num_resamples: int = 1000,
    seed: int = 0,
    **model_kwargs: Any,
) -> Diagnosis:
    """Whether preferences hold groups that one reward cannot serve, and what it would cost each of them.

    Args:
        dataset (`Dataset`): preferences, see [`trl_maxmin.data.columns`].
        annotator_column (`str`, *optional*): the column that names the annotator.
        group_column (`str`, *optional*): groups that are known, instead of those that EM finds by annotator.
        max_groups (`int`, *optional*, defaults to 3): largest K that is tried.
        model_name_or_path (`str`, *optional*): frozen model whose last state the rewards are linear in. Default:
            counts of words, which need no model.
        heldout_fraction (`float`, *optional*, defaults to 0.3): share of each annotator's pairs that only measures; of
            an annotator who judged a text in several pairs, share of the texts.
        beta (`float`, *optional*, defaults to 1.0): KL coefficient of the alignment gaps, positive.
        num_init (`int`, *optional*, defaults to 4): restarts of EM.
        num_resamples (`int`, *optional*, defaults to 1000): of the intervals.
        seed (`int`, *optional*, defaults to 0): of splits, restarts and resamples.
        **model_kwargs: passed to `from_pretrained`.

    Returns:
        [`Diagnosis`]

    Raises:
        ValueError: data that break the column contract, no group column of that name, `max_groups`, `beta` or
            `heldout_fraction` out of range, or annotators who all gave one pair (without a group column).
    """
    if max_groups < 2 or beta <= 0 or not 0 < heldout_fraction < 1:
        raise ValueError(
            f"Needs max_groups >= 2, beta > 0 and heldout_fraction in (0, 1); got {max_groups}, {beta} and "
            f"{heldout_fraction}."
        )
    if group_column is not None and group_column not in dataset.column_names:
        raise ValueError(
            f"There is no column {group_column!r} of known groups; columns: {', '.join(dataset.column_names)}."
        )
    if group_column is not None and group_column == annotator_column:
        raise ValueError(
            f"The column {group_column!r} names annotators, not groups of them; name another column, or leave "
            "group_column out and let EM find groups."
        )
    dataset = prepare_preferences(dataset, annotator_column)
    known = group_column is not None
    pairs = _read(dataset, heldout_fraction, model_name_or_path, seed, known, **model_kwargs)
    if not pairs.heldout.any():
        raise ValueError(
            f"{len(pairs.annotator)} pairs of {pairs.annotator.max() + 1} annotators leave no held-out pair: nearly "
            "everyone gave one pair, and a pair says nothing about who gave it. Name the annotators "
            "(annotator_column), collect several pairs from each, or name known groups (group_column)."
        )
    if not known:
        posterior, selection, chosen, ridge = _find_groups(pairs, max_groups, num_init, seed)
        names = [f"component_{k}" for k in range(chosen)]
        memberships, shares = posterior[pairs.annotator], posterior.mean(axis=0)
    else:
        memberships, selection, chosen, names, ridge = _known_groups(pairs, dataset[group_column])
        shares = memberships.mean(axis=0)
    # Cards show this text, so of a local model only the folder's own name.
    model = Path(model_name_or_path or "")
    features = (
        f"the last state of {model.name if model.exists() else model}" if model_name_or_path else "counts of words"
    )
    pairs = replace(pairs, ridge=ridge)
    diagnosis = _measure(pairs, memberships, shares, names, features, beta, num_resamples, seed)
    return replace(diagnosis, num_groups=chosen, known=known, selection=selection)


def _read(
    dataset: Dataset, heldout_fraction: float, model: str | None, seed: int, known: bool, **model_kwargs: Any
) -> _Pairs:
    count = len(dataset)
    replies = [*dataset["chosen"], *dataset["rejected"]]
    given = dataset["prompt"] if "prompt" in dataset.column_names else [""] * count
    if model is None:
        raw = word_features(replies)
    else:
        raw = model_features(model, [*given, *given], replies, **model_kwargs)
    features = principal_features(raw)
    index = AnnotatorIndex.from_values(dataset[ANNOTATOR_COLUMN])
    annotator = np.array(index.encode(dataset[ANNOTATOR_COLUMN]))
    # Without prompts nothing is known to be comparable but the two replies of a pair.
    keys = [str(prompt) for prompt in given] if "prompt" in dataset.column_names else list(range(count))
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    margin = np.array(dataset["margin"]) if "margin" in dataset.column_names else np.zeros(count)
    prompt = np.array([number[key] for key in keys])
    texts = list(zip(map(str, replies[:count]), map(str, replies[count:]), strict=True))
    learn, heldout = _split(annotator, _text_numbers(given, texts), heldout_fraction, seed, known)
    return _Pairs(features[:count], features[count:], margin, annotator, prompt, learn, heldout, texts)


def _text_numbers(prompts: Sequence[Any], texts: list[tuple[str, str]]) -> np.ndarray:
    """(N, 2): equal numbers for equal replies to equal prompts."""
    numbers: dict[tuple[str, str], int] = {}
    keys = [[(str(prompt), reply) for reply in pair] for prompt, pair in zip(prompts, texts, strict=True)]
    return np.array([[numbers.setdefault(key, len(numbers)) for key in pair] for pair in keys])


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


def _fit(pairs: _Pairs, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Linear reward (D,) on some of the pairs."""
    difference = torch.tensor(pairs.difference[rows])
    weight = torch.ones(len(difference)) if weights is None else torch.tensor(weights)
    start = torch.zeros(1, difference.shape[1], dtype=torch.float64)
    margin = torch.tensor(pairs.margin[rows], dtype=torch.float64)
    return fit_weighted_logistic(difference, weight.double()[:, None], margin, pairs.ridge, start, num_steps=15)[
        0
    ].numpy()


class _Scored(NamedTuple):
    scores: torch.Tensor  # (N,) of the held-out pairs, nats
    fitted: Any
    ridge: float


def _one_reward(pairs: _Pairs) -> _Scored:
    """Under the prior precision that predicts held-out pairs best."""

    def score(ridge: float) -> _Scored:
        of = replace(pairs, ridge=ridge)
        return _Scored(_log_likelihood(of, of.heldout, _fit(of, of.learn)[None])[:, 0], None, ridge)

    return max(map(score, RIDGES), key=lambda scored: scored.scores.mean().item())


def _for_several(pairs: _Pairs, one: _Scored) -> _Pairs:
    """The pairs with the prior of several rewards: that of one reward, but for one that says next to nothing.

    If the prior were weaker, several rewards that are all alike would predict better than one only because each is
    shrunk more, and data of one group would seem to hold several. But between two groups that want opposite things one
    reward can say nothing, and is shrunk to nothing; several may not be shrunk away with it.
    """
    return replace(pairs, ridge=min(one.ridge, _MAX_RIDGE_OF_SEVERAL))


def _log_likelihood(pairs: _Pairs, rows: np.ndarray, parameters: np.ndarray) -> torch.Tensor:
    """(N, K) of some pairs under rewards with parameters (K, D)."""
    log_odds = pairs.difference[rows] @ parameters.T - pairs.margin[rows, None]
    return F.logsigmoid(torch.tensor(log_odds))


def _find_groups(
    pairs: _Pairs, max_groups: int, num_init: int, seed: int
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


def _known_groups(
    pairs: _Pairs, groups: Sequence[Any]
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
        own = np.stack([_fit(pairs, learn, memberships[learn, k]) for k in range(len(names))])
        likelihood, belongs = _log_likelihood(pairs, heldout, own), torch.tensor(memberships[heldout].argmax(1))
        best[len(names)] = _Scored(likelihood[torch.arange(len(belongs)), belongs], None, pairs.ridge)
    found, chosen = _select({k: scored.scores for k, scored in best.items()}, torch.tensor(pairs.annotator[heldout]))
    return memberships, _evidence(found), chosen, names, best[chosen].ridge


def _evidence(found: NumComponentsSelection) -> dict[str, dict[str, float]]:
    return {
        str(k): {"mean": found.mean[k], "difference": found.difference[k], "standard_error": found.standard_error[k]}
        for k in found.mean
    }


def _measure(
    pairs: _Pairs,
    memberships: np.ndarray,
    shares: np.ndarray,
    names: list[str],
    features: str,
    beta: float,
    num_resamples: int,
    seed: int,
) -> Diagnosis:
    """Everything that follows from the memberships (N, K) of the pairs; K = 1 gives no group a gap."""
    learn, heldout = pairs.learn, pairs.heldout
    own = np.stack([_fit(pairs, learn, memberships[learn, k]) for k in range(len(names))])
    single = _fit(pairs, learn)
    chosen, rejected = pairs.chosen[heldout], pairs.rejected[heldout]
    probability = preference_probability(chosen @ own.T, rejected @ own.T)
    probability_single = preference_probability(chosen @ single, rejected @ single)
    diversity = diversity_matrix(probability)
    epsilon = diversity_margin(diversity)
    bound = float(np.linalg.norm(np.concatenate([pairs.chosen, pairs.rejected]), axis=1).max())
    candidates = _candidates(pairs)
    by_prompt = _bootstrap(pairs.prompt[heldout], num_resamples, seed)
    over_prompts = _bootstrap(np.arange(len(candidates)), num_resamples, seed)
    belongs = memberships[heldout].argmax(axis=1)
    by_group: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(names):
        share = float(shares[k])
        gap = _gaps(candidates, own[k], single, beta)
        curvature = feature_curvature(candidates[:_CURVATURE_PROMPTS], own[k], single, beta)
        facts: dict[str, Any] = {
            "share": share,
            "mismatch": _mean(by_prompt, total_variation(probability[:, k], probability_single)),
            "parameter_distance": float(np.linalg.norm(own[k] - single)),
            "parameter_bound": mismatch_bound(epsilon, share, bound),
            "predicted": epsilon * (1 - share),
            "predicted_bound": gap_bound(epsilon, share, bound, beta, curvature),
            "gap": _mean(over_prompts, gap),
        }
        mine = belongs == k
        if mine.any():
            people = _bootstrap(pairs.annotator[heldout][mine], num_resamples, seed)
            facts["accuracy_own"] = _mean(people, _right(probability[mine, k]))
            facts["accuracy_single"] = _mean(people, _right(probability_single[mine]))
        by_group[name] = facts
    return Diagnosis(
        num_pairs=len(pairs.annotator),
        num_annotators=int(pairs.annotator.max()) + 1,
        num_prompts=int(pairs.prompt.max()) + 1,
        diversity=diversity.tolist(),
        epsilon=epsilon,
        by_group=by_group,
        curves=_curves(pairs, memberships, own, names, candidates, beta) if len(names) > 1 else {},
        feature_bound=bound,
        beta=beta,
        features=features,
    )


def _curves(
    pairs: _Pairs,
    memberships: np.ndarray,
    own: np.ndarray,
    names: list[str],
    candidates: list[np.ndarray],
    beta: float,
) -> dict[str, list[list[float]]]:
    """Gap of each group where its pairs are weighted so that they make up a given share, the others in proportion."""
    learn = pairs.learn
    mass = memberships[learn].mean(axis=0)
    curves: dict[str, list[list[float]]] = {}
    for k, name in enumerate(names):
        curves[name] = []
        for share in SHARES:
            factors = np.where(np.arange(len(names)) == k, share / mass[k], (1 - share) / max(1 - mass[k], 1e-12))
            single = _fit(pairs, learn, memberships[learn] @ factors)
            curves[name].append([share, float(_gaps(candidates, own[k], single, beta).mean())])
    return curves


def _candidates(pairs: _Pairs) -> list[np.ndarray]:
    """For each prompt the features (M, D) of its different replies."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for row, prompt in enumerate(pairs.prompt):
        replies = found.setdefault(int(prompt), {})
        for text, features in zip(pairs.texts[row], (pairs.chosen[row], pairs.rejected[row]), strict=True):
            replies.setdefault(text, features)
    return [np.stack(list(replies.values())) for replies in found.values()]


def _gaps(candidates: list[np.ndarray], own: np.ndarray, single: np.ndarray, beta: float) -> np.ndarray:
    return alignment_gap([psi @ own for psi in candidates], [psi @ single for psi in candidates], beta)


def _right(probability: np.ndarray) -> np.ndarray:
    return (probability > 0.5) + 0.5 * (probability == 0.5)


def _bootstrap(clusters: np.ndarray, num_resamples: int, seed: int) -> PromptBootstrap | None:
    return PromptBootstrap(clusters.tolist(), num_resamples, seed=seed) if len(set(clusters.tolist())) > 1 else None


def _mean(bootstrap: PromptBootstrap | None, values: np.ndarray) -> dict[str, float]:
    """With its interval; of a single prompt or annotator nothing is known but the number, so the interval is empty."""
    mean = float(values.mean())
    return Interval(mean, mean, mean).to_dict() if bootstrap is None else bootstrap.mean(values).to_dict()
