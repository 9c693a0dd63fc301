# SPDX-License-Identifier: Apache-2.0
"""From utilities of replies to the results of an evaluation: one JSON object that cards, figures and the Space read.

The format is described in `docs/evaluation.md`, and checked by `run_record.FIELDS["evaluation"]["results"]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bootstrap import AGGREGATES, PromptBootstrap
from .metrics import win_rate


FORMAT_VERSION = 1
GROUP_KINDS = ("component", "gold", "judge")


@dataclass
class GroupScores:
    """What the groups think of every policy's replies, row by row.

    Args:
        groups (`dict[str, str]`): G group names and their kind: `"component"` (learned reward), `"gold"` (known
            utility) or `"judge"` (only wins are known). Groups are aggregated within their kind only: a minimum over a
            group and a component that stands for it would count one of them twice.
        utilities (`dict[str, np.ndarray]`, each of shape `(N, G)`): for each policy the utility of its N replies,
            comparable between the groups of a kind. NaN: not scored, or a group whose kind is `"judge"`.
        prompts (`Sequence` of N hashable values): the prompt of each row, the same for every policy.
        reference (`str`, *optional*): name of the policy that the others are compared with.
        outcomes (`dict[str, np.ndarray]`, each of shape `(N, G)`, *optional*): for each policy but the reference, 1
            where a group prefers its reply to the reference's, 0.5 for a tie, 0 otherwise, NaN where unknown. Default:
            from the utilities.
        weights (`dict[str, float]`, *optional*): share of each group, for `weighted_mean`; given where a kind has a
            weight for each of its groups.
        replies (`dict[str, dict[str, np.ndarray | float]]`, *optional*): for each policy what is known of its replies
            whatever the group: arrays of shape `(N,)` such as `kl` and `length`, which get an interval, and numbers
            such as `distinct_2`, which do not.
        below_floor (`Sequence[str]`, *optional*): groups of too few people or pairs to be the worst-off one, see
            [`has_evidence`]. They are measured as all are, and have no say in minimum, gap and ratio of their kind.
    """

    groups: dict[str, str]
    utilities: dict[str, np.ndarray]
    prompts: Sequence[Any]
    reference: str | None = None
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    replies: dict[str, dict[str, Any]] = field(default_factory=dict)
    below_floor: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.groups or not self.utilities:
            raise ValueError("An evaluation needs at least one group and one policy.")
        if unknown := sorted(set(self.groups.values()) - set(GROUP_KINDS)):
            raise ValueError(f"Unknown kinds of groups {unknown}; kinds: {', '.join(GROUP_KINDS)}.")
        if self.reference is not None and self.reference not in self.utilities:
            raise ValueError(f"The reference {self.reference!r} is none of the policies {list(self.utilities)}.")
        shape = (len(self.prompts), len(self.groups))
        for policy, values in (*self.utilities.items(), *self.outcomes.items()):
            if np.shape(values) != shape:
                raise ValueError(f"The scores of {policy!r} have shape {np.shape(values)}, but {shape} is needed.")
        if self.reference is not None:
            base = self.utilities[self.reference]
            for policy, values in self.utilities.items():
                if policy != self.reference and policy not in self.outcomes:
                    outcome = (values > base) + 0.5 * (values == base)
                    self.outcomes[policy] = np.where(np.isnan(values) | np.isnan(base), np.nan, outcome)

    def columns(self, kind: str) -> list[int]:
        """Numbers of the groups of a kind."""
        return [index for index, own in enumerate(self.groups.values()) if own == kind]

    def counted(self, kind: str) -> list[int]:
        """Which of the groups of a kind, in their order, may be the worst-off one; all where none may."""
        names = [group for group, own in self.groups.items() if own == kind]
        enough = [number for number, name in enumerate(names) if name not in self.below_floor]
        return enough or list(range(len(names)))

    @property
    def kinds(self) -> list[str]:
        """Kinds that occur, in the order of `GROUP_KINDS`."""
        return [kind for kind in GROUP_KINDS if kind in self.groups.values()]


def summarise(
    scores: GroupScores,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    compare: Sequence[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Results of an evaluation, in plain JSON types.

    Args:
        scores ([`GroupScores`]): what was measured.
        num_resamples (`int`, *optional*, defaults to 2000): of the bootstrap over prompts.
        level (`float`, *optional*, defaults to 0.95): of the intervals.
        seed (`int`, *optional*, defaults to 0): of the resamples.
        compare (`Sequence[(str, str)]`, *optional*): policy and baseline of the paired differences. Default: every
            pair of policies, the later against the earlier one.

    Returns:
        `dict`: see `docs/evaluation.md`.

    Raises:
        ValueError: a comparison with an unknown policy, or as [`PromptBootstrap`].

    Example:

    >>> noise = np.random.default_rng(0).normal(size=(100, 2))
    >>> utilities = {"reference": noise, "policy": noise + [1.0, -0.5]}
    >>> results = summarise(GroupScores({"a": "gold", "b": "gold"}, utilities, range(100), reference="reference"))
    >>> results["policies"]["policy"]["worst_group"]
    {'gold': {'utility': 'b', 'win_rate': 'b'}}
    >>> round(results["differences"][0]["by_group"]["b"]["utility"]["mean"], 3)
    -0.5
    """
    policies = list(scores.utilities)
    if compare is None:
        compare = [(later, earlier) for i, earlier in enumerate(policies) for later in policies[i + 1 :]]
    if unknown := sorted({name for pair in compare for name in pair} - set(policies)):
        raise ValueError(f"Cannot compare the unknown policies {unknown}; policies: {policies}.")
    bootstrap = PromptBootstrap(list(scores.prompts), num_resamples, level, seed)
    ranks = _ranks(scores) if len(policies) > 2 else {}
    results: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "groups": dict(scores.groups),
        "num_prompts": bootstrap.num_prompts,
        "num_replies": len(scores.prompts),
        "interval": {"level": level, "num_resamples": num_resamples, "seed": seed},
        "policies": {name: _policy(scores, name, bootstrap, ranks.get(name)) for name in policies},
        "differences": [_difference(scores, policy, baseline, bootstrap) for policy, baseline in compare],
    }
    if scores.reference is not None:
        results["reference"] = scores.reference
    if scores.below_floor:
        results["below_evidence_floor"] = list(scores.below_floor)
    if scores.weights:
        results["weights"] = {group: float(weight) for group, weight in scores.weights.items()}
    return results


def _policy(scores: GroupScores, name: str, bootstrap: PromptBootstrap, ranks: np.ndarray | None) -> dict[str, Any]:
    by_group: dict[str, dict[str, Any]] = {group: {} for group in scores.groups}
    measures = _measures(scores, name) | ({} if ranks is None else {"rank": ranks})
    for measure, values in measures.items():
        for column, group in enumerate(scores.groups):
            if not np.isnan(values[:, column]).all():
                by_group[group][measure] = _interval(measure, values[:, column], scores, bootstrap)
    aggregates: dict[str, Any] = {}
    worst: dict[str, Any] = {}
    for kind in scores.kinds:
        for measure, values in _measures(scores, name).items():
            own = values[:, scores.columns(kind)]
            if not np.isnan(own).all(axis=0).any():
                bounds = (0.0, 1.0) if measure == "win_rate" else None
                counted = scores.counted(kind)
                found = bootstrap.aggregates(own, _weights(scores, kind), bounds, counted)
                aggregates.setdefault(kind, {})[measure] = {key: value.to_dict() for key, value in found.items()}
                if measure == "win_rate":
                    names = list(scores.groups)
                    groups = [names[scores.columns(kind)[number]] for number in counted]
                    _widen(aggregates[kind][measure]["group_min"], [by_group[group][measure] for group in groups])
                lowest = counted[int(np.nanmean(own[:, counted], axis=0).argmin())]
                worst.setdefault(kind, {})[measure] = list(scores.groups)[scores.columns(kind)[lowest]]
    replies = {}
    for key, values in scores.replies.get(name, {}).items():
        replies[key] = float(values) if np.ndim(values) == 0 else bootstrap.mean(values).to_dict()
    return {"by_group": by_group, "aggregates": aggregates, "worst_group": worst, "replies": replies}


def _measures(scores: GroupScores, name: str) -> dict[str, np.ndarray]:
    measures = {"utility": scores.utilities[name]}
    return measures | ({"win_rate": scores.outcomes[name]} if name in scores.outcomes else {})


def _interval(measure: str, values: np.ndarray, scores: GroupScores, bootstrap: PromptBootstrap) -> dict[str, float]:
    if measure != "win_rate" or bootstrap.level != 0.95:
        return bootstrap.mean(values).to_dict()
    # A bootstrap of wins alone sees no spread; Wilson's interval has a width even there.
    known = [row for row, value in enumerate(values) if not np.isnan(value)]
    prompts = [scores.prompts[row] for row in known]
    return win_rate(values[known], np.full(len(known), 0.5), prompts).to_dict() | {"mean": float(values[known].mean())}


def _widen(worst: dict[str, float], groups: Sequence[Mapping[str, float]]) -> None:
    """Where all is won or lost the bootstrap has no width; the minimum is known no better than the groups are."""
    worst["low"] = min(worst["low"], *(rate["low"] for rate in groups), worst["mean"])
    worst["high"] = max(worst["high"], min(rate["high"] for rate in groups))


def _weights(scores: GroupScores, kind: str) -> list[float] | None:
    groups = [group for group, own in scores.groups.items() if own == kind]
    return [scores.weights[group] for group in groups] if all(group in scores.weights for group in groups) else None


def _difference(scores: GroupScores, policy: str, baseline: str, bootstrap: PromptBootstrap) -> dict[str, Any]:
    ours, theirs = _measures(scores, policy), _measures(scores, baseline)
    by_group: dict[str, dict[str, Any]] = {group: {} for group in scores.groups}
    aggregates: dict[str, Any] = {}
    for measure in [measure for measure in ours if measure in theirs]:
        for column, group in enumerate(scores.groups):
            pair = ours[measure][:, column], theirs[measure][:, column]
            if not np.isnan(pair[0] - pair[1]).all():
                by_group[group][measure] = bootstrap.difference(*pair).to_dict()
        for kind in scores.kinds:
            own = ours[measure][:, scores.columns(kind)], theirs[measure][:, scores.columns(kind)]
            if not np.isnan(own[0] - own[1]).all(axis=0).any():
                found = bootstrap.aggregate_differences(*own, _weights(scores, kind), scores.counted(kind))
                aggregates.setdefault(kind, {})[measure] = {key: value.to_dict() for key, value in found.items()}
    return {"policy": policy, "baseline": baseline, "by_group": by_group, "aggregates": aggregates}


def _ranks(scores: GroupScores) -> dict[str, np.ndarray]:
    """Rank of each policy's reply among the policies' replies to a prompt: 1 is best, ties share the middle rank."""
    table = np.stack(list(scores.utilities.values()))
    better = (table[None, :] > table[:, None]).sum(axis=1)
    equal = (table[None, :] == table[:, None]).sum(axis=1)
    ranks = np.where(np.isnan(table).any(axis=0), np.nan, better + (equal + 1) / 2)
    return dict(zip(scores.utilities, ranks, strict=True))


def results_to_markdown(results: Mapping[str, Any]) -> str:
    """The results as Markdown: a table a kind of groups, replies, differences.

    Args:
        results (`Mapping`): from [`summarise`].
    """
    lines = [
        "# Evaluation by group",
        "",
        f"{results['num_prompts']} prompts, {results['num_replies']} replies of each policy; in brackets "
        f"{100 * results['interval']['level']:g} % intervals over prompts (Wilson for win rates of a group, bootstrap "
        "for everything else).",
    ]
    if few := results.get("below_evidence_floor"):
        lines += ["", f"Too few people or pairs to be the worst-off group, and not counted as such: {', '.join(few)}."]
    extra = [f"*{key}*" for key in AGGREGATES]
    kinds = {"component": "Learned components", "gold": "Known groups", "judge": "Judged criteria"}
    for kind, title in kinds.items():
        groups = [group for group, own in results["groups"].items() if own == kind]
        for measure in ("win_rate", "utility", "rank"):
            cells = {
                f"`{name}`": {g: entry["by_group"][g][measure] for g in groups if measure in entry["by_group"][g]}
                | {f"*{key}*": n for key, n in entry["aggregates"].get(kind, {}).get(measure, {}).items()}
                for name, entry in results["policies"].items()
            }
            if any(cells.values()):
                against = f" against `{results['reference']}`" if measure == "win_rate" else ""
                keys = groups + [key for key in extra if any(key in own for own in cells.values())]
                rows = [[name, *(shown(own.get(key)) for key in keys)] for name, own in cells.items() if own]
                lines += ["", f"## {title}: {measure.replace('_', ' ')}{against}", "", *table(["policy", *keys], rows)]
    keys = list(dict.fromkeys(key for entry in results["policies"].values() for key in entry["replies"]))
    if keys:
        replies = {name: entry["replies"] for name, entry in results["policies"].items()}
        rows = [[f"`{name}`", *(shown(own.get(key)) for key in keys)] for name, own in replies.items()]
        lines += ["", "## Replies", "", *table(["policy", *keys], rows)]
    rows = []
    for entry in results["differences"]:
        measured = dict(entry["by_group"])
        for kind, own in entry["aggregates"].items():
            measured[f"*group_min* ({kind})"] = {measure: found["group_min"] for measure, found in own.items()}
        for where, own in measured.items():
            for measure, value in own.items():
                who = f"`{entry['policy']}` - `{entry['baseline']}`"
                rows.append([who, where, measure.replace("_", " "), shown(value), f"{value['p_value']:.4f}"])
    if rows:
        lines += ["", "## Paired differences", ""]
        lines += table(["policies", "group", "measure", "difference", "p"], rows)
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A number with three decimals, with its interval where it has one; `-` for what is not known."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        mean, low, high = (round(value[end], 3) + 0.0 for end in ("mean", "low", "high"))  # no -0.000
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    return f"{value:.3f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
