# SPDX-License-Identifier: Apache-2.0
"""From the run record to what a card shows: tables and lists. Nothing is computed that the record does not hold; what
it does not hold is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .markdown import clean, code, interval, labels, number, plain, table


_DATA_FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")


def hub_id(*names: Any) -> str | None:
    """The first name that is `namespace/name` on the Hub; in a public record, what is on a machine begins with `./`.

    Unlike [`~trl_maxmin.hub.files.is_hub_id`] it does not look at this machine: a card is the same everywhere.
    """
    for name in names:
        if isinstance(name, str) and name.count("/") == 1 and name[0] not in "./~" and not name.endswith(_DATA_FILES):
            try:
                validate_repo_id(name)
            except HFValidationError:
                continue
            return name
    return None


def local_name(*names: Any) -> str | None:
    """Name of a base that is on somebody's machine only."""
    return next((name[2:] for name in names if isinstance(name, str) and name.startswith("./")), None)


def hub_datasets(*stages: Mapping[str, Any]) -> list[str]:
    """Ids of the data sets that are on the Hub; files of this machine are not named."""
    names = [hub_id((stage.get("dataset") or {}).get("name")) for stage in stages]
    return [name for name in dict.fromkeys(names) if name]


def last(curves: Mapping[str, Any] | None, *names: str) -> tuple[float, float] | None:
    """Last (step, value) of the first of the curves that is there."""
    for name in names:
        if points := (curves or {}).get(name):
            return points[-1][0], points[-1][1]
    return None


def component_names(reward: Mapping[str, Any]) -> list[str]:
    """Names of the components, in the order of the mixture."""
    return list(reward.get("component_names") or reward.get("component_annotators") or reward.get("shares") or ())


def component_tables(reward: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """What is known of components: of their `annotators`, and of how good they are on pairs held out (`heldout`)."""
    every, names = component_names(reward), list(names)
    shown = labels(every)
    weights = dict(zip(every, reward.get("mixing_weights") or (), strict=False))
    temperature = dict(zip(every, (reward.get("calibration") or {}).get("temperature") or (), strict=False))
    counts, pairs = reward.get("component_annotators") or {}, reward.get("component_pairs") or {}
    total = (reward.get("dataset") or {}).get("num_annotators") or (set(counts) == set(every) and sum(counts.values()))
    accuracy = reward.get("component_heldout_accuracy") or {}
    heldout = reward.get("component_heldout_pairs") or {}
    who, how_good = [], []
    for name in names:
        share = counts[name] / total if name in counts and total else None
        who.append([number(counts.get(name)), number(share), number(weights.get(name)), number(pairs.get(name))])
        how_good.append([number(accuracy.get(name)), number(heldout.get(name)), number(temperature.get(name))])

    def build(columns: list[str], rows: list[list[str]]) -> str:
        known = [[shown.get(name, code(name)), *row] for name, row in zip(names, rows, strict=True)]
        return table(["component", *columns], known) if any(any(row) for row in rows) else ""

    return {
        "who": build(["annotators", "share of annotators", "mixing weight", "training pairs"], who),
        "heldout": build(["held-out accuracy", "held-out pairs", "temperature"], how_good),
    }


def least(reward: Mapping[str, Any], measure: str) -> tuple[str, float] | None:
    """The component with the least of a measure: `component_heldout_accuracy`, `component_pairs`."""
    known = reward.get(measure) or {}
    return min(known.items(), key=lambda item: item[1]) if known else None


def selection_table(reward: Mapping[str, Any]) -> str:
    """K, held-out log-likelihood per pair, difference to the best with its standard error, which K was taken."""
    selection = reward.get("selection") or {}
    mean = selection.get("mean")
    if not isinstance(mean, Mapping):
        return ""
    taken, rows = str(reward.get("num_components", "")), []
    for k in sorted((k for k in mean if k.isdecimal()), key=int):
        difference, error = ((selection.get(part) or {}).get(k) for part in ("difference", "standard_error"))
        rows.append([k, number(mean[k], 4), number(difference, 4), number(error, 4), "yes" if k == taken else "no"])
    columns = ["K", "held-out log-likelihood per pair (nats)", "difference to the best", "standard error", "taken"]
    return table(columns, rows)


def group_accuracy(reward: Mapping[str, Any]) -> str:
    """Held-out accuracy by known group and model."""
    by_model = reward.get("heldout_accuracy") or {}
    groups = labels(group for values in by_model.values() for group in values)
    rows = [[label, *(number(by_model[model].get(group)) for model in by_model)] for group, label in groups.items()]
    return table(["group", *labels(by_model).values()], rows)


def policies_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Names of the evaluated policies, the reference first."""
    named = [*(evaluation.get("gold_utility") or {}), *(evaluation.get("win_rate") or {})]
    return list(dict.fromkeys(named))


def groups_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Names of the groups that were evaluated."""
    if evaluation.get("groups"):
        return list(evaluation["groups"])
    return list(dict.fromkeys(g for rates in (evaluation.get("win_rate") or {}).values() for g in rates))


def result_tables(evaluation: Mapping[str, Any], this: str) -> dict[str, str]:
    """Group x policy: win rates against the reference with their intervals (`won`), and mean utilities (`mean`)."""
    groups, policies = labels(groups_of(evaluation)), labels(policies_of(evaluation))
    rates, utility = evaluation.get("win_rate") or {}, evaluation.get("gold_utility") or {}
    minority = evaluation.get("minority")

    def build(known: Mapping[str, Any], show: Any) -> str:
        own = [policy for policy in policies if policy in known]
        columns = [policies[policy] + " (this model)" * (policy == this) for policy in own]
        rows = [
            [label + " (minority)" * (group == minority), *(show(known[policy].get(group)) for policy in own)]
            for group, label in groups.items()
        ]
        return table(["group", *columns], rows) if own else ""

    return {"won": build(rates, interval), "mean": build(utility, number)}


def lowest(evaluation: Mapping[str, Any]) -> str:
    """Per policy: the group with the lowest win rate, that rate with its interval, and the gap to the highest."""
    win_rates, rows = evaluation.get("win_rate") or {}, []
    groups, policies = labels(groups_of(evaluation)), labels(policies_of(evaluation))
    for policy, by_group in win_rates.items():
        means = {group: rate["mean"] for group, rate in by_group.items()}
        if len(means) > 1:
            worst = min(means, key=means.__getitem__)
            gap = max(means.values()) - means[worst]
            rows.append([policies[policy], groups.get(worst, code(worst)), interval(by_group[worst]), number(gap)])
    return table(["policy", "lowest group", "its win rate", "gap to the highest"], rows)


def diagnosis(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What `trl-maxmin diagnose` recorded, for `_diagnosis.md`: verdict, table of groups, sizes and assumptions."""
    found = evaluation.get("diagnostics") or {}
    if not found:
        return {}
    columns = ["share", "mismatch", "accuracy_single", "accuracy_own", "gap"]
    # An older record's `predicted` is true of two groups only; its groups have no `epsilon`.
    bounds = all("epsilon" in own for own in found["by_group"].values())
    columns += ["predicted"] if bounds else []
    shown = labels(found["by_group"])
    rows = [
        [
            shown[group],
            *(interval(v) if isinstance(v := own.get(column), Mapping) else number(v) for column in columns),
        ]
        for group, own in found["by_group"].items()
        if found["num_groups"] > 1
    ]
    return {
        "verdict": plain(found["verdict"]),
        "table": table(["group", *columns], rows),
        "columns": [column for i, column in enumerate(columns, 1) if any(row[i] for row in rows)],
        "sizes": ", ".join(
            f"{found[f'num_{what}']} {found.get('unit', 'pair') + 's' if what == 'pairs' else what}"
            for what in ("pairs", "annotators", "prompts")
            if f"num_{what}" in found
        ),
        "features": plain(found.get("features", "")),
        "assignments": assignment_calibration(found.get("assignment_calibration")),
        "below": [shown.get(name, code(name)) for name in found.get("below_evidence_floor") or []],
        "assumptions": [plain(text) for text in found["assumptions"]],
    }


def assignment_calibration(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """How sure assignments are, for `_assignment_calibration.md`: agreements in per cent, and the curve."""
    if not found or not all(isinstance(found.get(name), int | float) for name in ("expected", "observed")):
        return {}
    names = ("expected", "observed", "standard_error", "num_annotators")
    rows = [[number(entry.get(name)) for name in names] for entry in found.get("curve") or []]
    columns = ["agreement expected", "observed", "standard error", "annotators"]
    return {
        "weight": number(found.get("weight")),
        "table": table(columns, rows),
        "num_annotators": number(found.get("num_annotators")),
        "nothing": bool(found.get("says_nothing")),
        **{name: number(100.0 * found[name], 1) for name in ("expected", "observed")},
    }


def curve(curves: Mapping[str, Any] | None, name: str, column: str) -> str:
    """At most 8 points of a curve, evenly spaced, the last one included."""
    points = (curves or {}).get(name) or []
    count = min(8, len(points))
    chosen = dict.fromkeys(round(i * (len(points) - 1) / max(count - 1, 1)) for i in range(count))
    return table(["step", column], [[number(points[i][0]), number(float(points[i][1]), 3)] for i in chosen])


def samples(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each recorded prompt a line for every policy: its reply and, where recorded, its utility for every group."""
    blocks = []
    for sample in (evaluation.get("samples") or [])[:4]:
        lines = []
        for policy, text in sample["completions"].items():
            known = (sample.get("utility") or {}).get(policy) or {}
            worth = ", ".join(f"{code(group)} {number(value)}" for group, value in known.items())
            lines.append(f"{code(policy)}: {code(text)}" + (f" (utility: {worth})" if worth else ""))
        blocks.append({"prompt": code(sample["prompt"]), "lines": lines})
    return blocks


def names_of(values: Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(map(code, values))


def as_data(name: Any) -> str:
    """A name in the metadata, where it stands as it is."""
    return clean(name) or "(empty)"
