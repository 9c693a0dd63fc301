# SPDX-License-Identifier: Apache-2.0
"""Do my data need more than one reward? An answer from the preferences alone, before anyone trains a policy.

Linear rewards on frozen features are fitted for K = 1, 2, ... groups, K is chosen on held-out pairs, and the
quantities of the impossibility result are measured under the fitted rewards: seconds, where training takes hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.columns import ANNOTATOR_COLUMN, require_group_column
from ..trainer.reward.annotated_preferences import prepare_rows
from .assignment_calibration import assignment_calibration, calibration_lines, group_sizes
from .bootstrap import Interval, PromptBootstrap
from .diagnosis_groups import Pairs, find_groups, known_groups, read_pairs, rewards_on
from .diversity import (
    ASSUMPTIONS,
    GAP_ASSUMPTIONS,
    alignment_gap,
    diversity_margins,
    diversity_matrix,
    feature_curvature,
    gap_bound,
    mismatch_bound,
    preference_probability,
    total_variation,
)
from .results import shown, table


SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
_CURVATURE_PROMPTS = 200


@dataclass
class Diagnosis:
    """What [`diagnose`] found. Numbers with interval are `{"mean", "low", "high"}`; rewards are log-odds.

    Args:
        verdict_kind (`str`): `"groups"`, `"one"` (one reward suffices) or `"cannot_tell"`, see [`choose_components`].
        num_groups (`int`): K; 1 unless the verdict is groups.
        known (`bool`): groups came from a column; otherwise EM found them by annotator.
        num_pairs, num_annotators, num_prompts (`int`): sizes of the data.
        selection (`dict`): K -> `mean` held-out log-likelihood (nats a pair), `difference` to the best and its
            `standard_error`, clustered by annotator, `gain` against one reward with its `gain_error`, and the
            `prior_scale` chosen.
        evidence (`str`): why, in words.
        worse_than_a_coin (`str`): said before anything else where even the best K predicts less than a coin does.
        diversity (`list[list[float]]`): total variation between groups, K x K.
        by_group (`dict`): group -> `num_annotators`, `num_pairs`, `share` (of the annotators; of the pairs where
            groups are known), `share_of_pairs`, `mismatch` (total variation of the single reward to the group's),
            `accuracy_own` and `accuracy_single` on held-out pairs (of rankings top-1, with `tau_own` and `tau_single`,
            Kendall's), `epsilon` (the group's margin of diversity),
            `predicted` (`epsilon (1 - share_of_pairs)`: the least total variation of everybody's preferences to the
            group's), `parameter_distance` with its bound `parameter_bound`, and `gap` with its bound
            `predicted_bound`. The bounds order nothing.
        assignment_calibration (`dict`, *optional*): of groups that EM found, see [`EvidenceWeight`]: the weight of an
            annotator's pairs, how often two halves of them agree, and how often posteriors say so.
        below_evidence_floor (`list[str]`): groups of too few people or pairs to be the worst-off group of a policy.
        curves (`dict`): group -> list of `[share, gap]` as the group's share is varied by reweighting.
        feature_bound (`float`): D.
        beta (`float`): KL coefficient of the gaps.
        features (`str`): what the rewards are linear in.
        unit (`str`): what a row of the data is, `"pair"` or `"ranking"`; the former stands for both in what is said
            above.
        assumptions (`list[str]`): what all of this stands on.
    """

    num_pairs: int
    num_annotators: int
    num_prompts: int
    diversity: list[list[float]]
    by_group: dict[str, dict[str, Any]]
    curves: dict[str, list[list[float]]]
    feature_bound: float
    beta: float
    features: str
    num_groups: int = 1
    verdict_kind: str = "cannot_tell"
    evidence: str = ""
    worse_than_a_coin: str = ""
    known: bool = False
    selection: dict[str, dict[str, float]] = field(default_factory=dict)
    assignment_calibration: dict[str, Any] | None = None
    below_evidence_floor: list[str] = field(default_factory=list)
    unit: str = "pair"
    assumptions: list[str] = field(default_factory=lambda: [*ASSUMPTIONS, *GAP_ASSUMPTIONS])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the fields, `verdict` and `measured_order`."""
        found = {"verdict": self.verdict(), **asdict(self), "measured_order": self.measured_order}
        del found["worse_than_a_coin"]  # the verdict begins with it
        return found

    def run_record_facts(self, dataset: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Facts for `RunRecord.replace("evaluation", ...)`.

        Args:
            dataset (`Mapping`, *optional*): where the preferences come from: `name`, `config`, `split`.
        """
        return {"diagnostics": self.to_dict() | ({"dataset": dict(dataset)} if dataset else {})}

    @property
    def measured_order(self) -> list[str]:
        """Groups by measured gap, the largest first."""
        return sorted(self.by_group, key=lambda group: -self.by_group[group]["gap"]["mean"])

    def verdict(self) -> str:
        """The answer in words."""
        kind = "groups you named" if self.known else "groups of annotators"
        if self.verdict_kind != "groups":
            answer = {"one": "No: one reward suffices.", "cannot_tell": "These data cannot tell."}[self.verdict_kind]
            return f"{self.worse_than_a_coin}{answer} {self.evidence}"
        worst = self.measured_order[0]
        entry = self.by_group[worst]
        shares = ", ".join(f"{name} {100 * facts['share']:.0f} %" for name, facts in self.by_group.items())
        accuracy = (
            f" On its held-out {self.unit}s a single reward is right in "
            f"{100 * entry['accuracy_single']['mean']:.0f} % of the cases, its own in "
            f"{100 * entry['accuracy_own']['mean']:.0f} %."
            if "accuracy_own" in entry
            else ""
        )
        return (
            f"Yes: the data hold {self.num_groups} {kind} ({shares}). {self.evidence} The most diverse two "
            f"disagree by {max(map(max, self.diversity)):.2f} in total variation. A policy for the single reward "
            f"costs {worst} the most: {entry['gap']['mean']:.2f} log-odds.{accuracy}"
        )

    def to_markdown(self) -> str:
        """Words, tables and the assumptions."""
        lines = ["# Do these data need more than one reward?", "", self.verdict(), ""]
        lines += [
            f"{self.num_pairs} {self.unit}s of {self.num_annotators} annotators on {self.num_prompts} prompts; "
            f"rewards linear in {self.features}, D = {self.feature_bound:.2f}, beta = {self.beta:g}.",
            "",
        ]
        measures = {"mean": f"held-out log-likelihood (nats a {self.unit})", "difference": "below the best by"}
        measures |= {"standard_error": "standard error", "gain": "gain on one reward", "gain_error": "standard error"}
        measures |= {"prior_scale": "prior (log-odds)"}
        rows = [[k, *(f"{facts[name]:.4g}" for name in measures)] for k, facts in self.selection.items()]
        lines += table(["K", *measures.values()], rows)
        if self.num_groups > 1:
            columns = [
                "num_annotators",
                "num_pairs",
                "share",
                "mismatch",
                "accuracy_own",
                "accuracy_single",
                *(("tau_own", "tau_single") if self.unit == "ranking" else ()),
                "gap",
                "epsilon",
                "predicted",
            ]
            columns += ["predicted_bound", "parameter_distance", "parameter_bound"]
            rows = [
                [name, *(_shown(facts.get(column)) for column in columns)] for name, facts in self.by_group.items()
            ]
            lines += ["", *table(["group", *columns], rows)]
            lines += [
                "",
                "`mismatch`: total variation between the single reward's preferences and the group's. `gap`: what the "
                "group loses under the policy of the single reward, log-odds. `epsilon`: how much farther the group "
                "lies from some other than all the rest do; where it is 0 the bounds say nothing of this group. "
                "`predicted`: epsilon (1 - share of the pairs), the least total variation between everybody's "
                "preferences together and the group's. `predicted_bound`, `parameter_bound`: lower bounds of `gap` "
                "and `parameter_distance` (Lemma 1; its square with strong concavity). Bounds are not estimates, and "
                "their order is not that of the gaps.",
                "",
                f"Groups by measured gap, the largest first: {', '.join(self.measured_order)}.",
            ]
        if self.below_evidence_floor and self.num_groups > 1:
            few = ", ".join(self.below_evidence_floor)
            lines += ["", f"Too few people or pairs to be the worst-off group of a policy: {few}."]
        if self.assignment_calibration:
            lines += ["", *calibration_lines(self.assignment_calibration, self.unit)]
        lines += ["", "Assumptions:", "", *(f"- {assumption}" for assumption in self.assumptions)]
        return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return shown(value) if value is None or isinstance(value, dict) else f"{value:.3g}"


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
        dataset (`Dataset`): pairs, see [`trl_maxmin.data.columns`], or rankings, see [`trl_maxmin.data.rankings`].
            Rankings of two are the pairs that they are.
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
        **model_kwargs: `batch_size` and `pooling` as in [`MixtureRewardConfig`]; others are passed to
            `from_pretrained`. With a model, what `reward --train_trunk false --select` does with the same data, seed
            and pooling gives the same K.

    Raises:
        ValueError: data that break the column contract, no group column of that name, `max_groups`, `beta` or
            `heldout_fraction` out of range, or annotators who all gave one pair (without a group column).
    """
    if max_groups < 2 or beta <= 0 or not 0 < heldout_fraction < 1:
        raise ValueError(
            f"Needs max_groups >= 2, beta > 0 and heldout_fraction in (0, 1); got {max_groups}, {beta} and "
            f"{heldout_fraction}."
        )
    require_group_column(group_column, annotator_column, dataset.column_names)
    dataset = prepare_rows(dataset, annotator_column)
    known = group_column is not None
    pairs, dataset = read_pairs(dataset, heldout_fraction, model_name_or_path, seed, known, **model_kwargs)
    if not pairs.heldout.any():
        raise ValueError(
            f"{len(pairs.annotator)} {pairs.unit}s of {pairs.annotator.max() + 1} annotators leave no held-out "
            f"{pairs.unit}: nearly everyone gave one {pairs.unit}, and one says nothing about who gave it. Name the "
            "annotators (annotator_column), collect several pairs from each, or name known groups (group_column)."
        )
    if not known:
        posterior, selection = find_groups(pairs, max_groups, num_init, seed)
        names = [f"component_{k}" for k in range(selection.num_components)]
        memberships, shares = posterior[pairs.annotator], posterior.mean(axis=0)
        learn = pairs.table.select(torch.tensor(pairs.learn))
        prior = selection.prior_of(selection.num_components)
        calibration = assignment_calibration(learn, prior, posterior, seed)
    else:
        memberships, selection, names = known_groups(pairs, dataset[group_column], seed)
        shares, calibration = memberships.mean(axis=0), None
    # Cards show this text, so of a local model only the folder's own name.
    model = Path(model_name_or_path or "")
    features = (
        f"the last state of {model.name if model.exists() else model}" if model_name_or_path else "counts of words"
    )
    pairs = replace(pairs, prior_scale=selection.prior_of(selection.num_components))
    diagnosis = _measure(pairs, memberships, shares, names, features, beta, num_resamples, seed)
    return replace(
        diagnosis,
        num_groups=selection.num_components,
        verdict_kind=selection.verdict_kind,
        evidence=selection.evidence(),
        worse_than_a_coin=selection.worse_than_a_coin(),
        known=known,
        selection=selection.by_candidate(),
        assignment_calibration=calibration,
    )


def _measure(
    pairs: Pairs,
    memberships: np.ndarray,
    shares: np.ndarray,
    names: list[str],
    features: str,
    beta: float,
    num_resamples: int,
    seed: int,
) -> Diagnosis:
    """Everything that follows from the memberships (N, K) of the pairs; K = 1 gives no group a gap."""
    learn, heldout = pairs.learn, np.flatnonzero(pairs.heldout)
    *own, single = rewards_on(pairs, np.column_stack([memberships, np.ones(len(memberships))]))
    own = np.stack(own)
    compared, chosen, rejected = pairs.compared()
    probability = preference_probability(chosen @ own.T, rejected @ own.T)
    probability_single = preference_probability(chosen @ single, rejected @ single)
    diversity = diversity_matrix(probability)
    margins = diversity_margins(diversity)
    of_pairs = memberships[learn].mean(axis=0)
    bound = float(np.linalg.norm(pairs.principal, axis=1).max())
    candidates = _candidates(pairs)
    by_prompt = _bootstrap(pairs.prompt[compared], num_resamples, seed)
    over_prompts = _bootstrap(np.arange(len(candidates)), num_resamples, seed)
    belongs = memberships[heldout].argmax(axis=1)
    sizes, counts, enough = group_sizes(pairs.annotator, memberships)
    by_group: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(names):
        epsilon, part = float(margins[k]), float(of_pairs[k])
        gap = _gaps(candidates, own[k], single, beta)
        curvature = feature_curvature(candidates[:_CURVATURE_PROMPTS], own[k], single, beta)
        facts: dict[str, Any] = {
            "num_annotators": sizes[k],
            "num_pairs": counts[k],
            "share": float(shares[k]),
            "share_of_pairs": part,
            "mismatch": _mean(by_prompt, total_variation(probability[:, k], probability_single)),
            "parameter_distance": float(np.linalg.norm(own[k] - single)),
            "parameter_bound": mismatch_bound(epsilon, part, bound),
            "epsilon": epsilon,
            "predicted": epsilon * (1 - part),
            "predicted_bound": gap_bound(epsilon, part, bound, beta, curvature),
            "gap": _mean(over_prompts, gap),
        }
        mine = heldout[belongs == k]
        if len(mine):
            by_person = _bootstrap(pairs.annotator[mine], num_resamples, seed)
            for whose, weight in (("own", own[k]), ("single", single)):
                measured = pairs.agreement(mine, weight).items()
                facts |= {f"{what}_{whose}": _mean(by_person, values) for what, values in measured}
        by_group[name] = facts
    return Diagnosis(
        num_pairs=len(pairs.annotator),
        num_annotators=int(pairs.annotator.max()) + 1,
        num_prompts=int(pairs.prompt.max()) + 1,
        diversity=diversity.tolist(),
        by_group=by_group,
        below_evidence_floor=[name for name, has in zip(names, enough, strict=True) if not has],
        curves=_curves(pairs, memberships, own, names, candidates, beta) if len(names) > 1 else {},
        feature_bound=bound,
        beta=beta,
        features=features,
        unit=pairs.unit,
    )


def _curves(
    pairs: Pairs, memberships: np.ndarray, own: np.ndarray, names: list[str], candidates: list[np.ndarray], beta: float
) -> dict[str, list[list[float]]]:
    """Gap of each group where its pairs are weighted so that they make up a given share, the others in proportion."""
    mass = memberships[pairs.learn].mean(axis=0)
    factors = [
        np.where(np.arange(len(names)) == k, share / mass[k], (1 - share) / max(1 - mass[k], 1e-12))
        for k in range(len(names))
        for share in SHARES
    ]
    singles = rewards_on(pairs, memberships @ np.stack(factors, axis=1)).reshape(len(names), len(SHARES), -1)
    return {
        name: [
            [share, float(_gaps(candidates, own[k], single, beta).mean())]
            for share, single in zip(SHARES, singles[k], strict=True)
        ]
        for k, name in enumerate(names)
    }


def _candidates(pairs: Pairs) -> list[np.ndarray]:
    """For each prompt the features (M, D) of its different replies."""
    found: dict[int, dict[int, None]] = {}
    for prompt, texts in zip(pairs.prompt.tolist(), pairs.texts.tolist(), strict=True):
        found.setdefault(prompt, {}).update(dict.fromkeys(text for text in texts if text >= 0))
    return [pairs.principal[list(texts)] for texts in found.values()]


def _gaps(candidates: list[np.ndarray], own: np.ndarray, single: np.ndarray, beta: float) -> np.ndarray:
    return alignment_gap([psi @ own for psi in candidates], [psi @ single for psi in candidates], beta)


def _bootstrap(clusters: np.ndarray, num_resamples: int, seed: int) -> PromptBootstrap | None:
    return PromptBootstrap(clusters.tolist(), num_resamples, seed=seed) if len(set(clusters.tolist())) > 1 else None


def _mean(bootstrap: PromptBootstrap | None, values: np.ndarray) -> dict[str, float]:
    """With its interval; of a single prompt or annotator nothing is known but the number, so the interval is empty."""
    mean = float(values.mean())
    return Interval(mean, mean, mean).to_dict() if bootstrap is None else bootstrap.mean(values).to_dict()
