# SPDX-License-Identifier: Apache-2.0
"""From the run record to what a card shows: what may be public, and tables of it. Nothing is computed that the record
does not hold; what it does not hold is left out."""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..run_record import STAGES, RunRecord
from .files import is_hub_id


# Names of settings that say where something lies on this machine, who may log in, or who somebody is.
_PRIVATE = re.compile(
    r"token|secret|password|api_key|(^|_)(dir|path|file)$|annotator_ids|annotators_lost|assignments$"
)
# Fields whose names are those of groups, components, policies and metrics, not of settings, or whose texts are data.
_BY_NAME = {"samples", "curves", "win_rate", "gold_utility", "heldout_accuracy", "shares", "groups", "component_names"}
_BY_NAME |= {"component_annotators", "component_pairs", "component_heldout_accuracy", "component_heldout_pairs"}
# The same inside of results and diagnostics.
_NAMED = {"by_group", "aggregates", "worst_group", "policies", "groups", "weights", "judges", "curves"}
_LONGEST_TEXT = 300


def public_record(record: RunRecord) -> RunRecord:
    """The record without annotator ids, tokens and paths of this machine: what may be uploaded.

    Args:
        record ([`RunRecord`]): as trainers wrote it; it is not changed.

    Returns:
        [`RunRecord`]: local paths are cut to their last part.

    Example:

    >>> record = RunRecord().update("reward", base_model="/home/ann/gpt", dataset={"annotators_lost": ["bob"]})
    >>> public_record(record).reward
    {'base_model': 'gpt', 'dataset': {}}
    """
    facts = copy.deepcopy(record.to_dict())
    for stage in STAGES:
        for name, value in facts.get(stage, {}).items():
            if name in _BY_NAME:
                facts[stage][name] = _without_tokens(value)
            else:
                facts[stage][name] = _public(value)
    return RunRecord.from_dict(facts)


def _without_tokens(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tokens(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_tokens(entry) for entry in value]
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_***", value) if isinstance(value, str) else value


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_tokens(entry) if key in _NAMED else _public(entry)
            for key, entry in value.items()
            if not _PRIVATE.search(key)
        }
    if isinstance(value, list):
        return [_public(entry) for entry in value]
    if isinstance(value, str) and re.match(r"^(~|\.{0,2}/|[A-Za-z]:\\)[^\s]*$", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return _without_tokens(value)


def code(text: Any) -> str:
    """A text as it is: in a code span, in which neither HTML nor Markdown means anything, fit for a table cell.

    Example:

    >>> code("<b>a|b</b>")
    '`<b>a\\\\|b</b>`'
    """
    text = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    text = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT].rstrip("\\") + " ..."
    return f"`{text}`" if text else "(empty)"


def plain(text: Any) -> str:
    """A sentence of ours with names from the data in it: nothing in it is HTML, a link or emphasis.

    Example:

    >>> plain("Yes: <b> [x](y) and component_1, 20 %.")
    'Yes: &lt;b&gt; \\\\[x\\\\](y) and component\\\\_1, 20 %.'
    """
    text = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns in which every cell is empty are left out, numbers stand on the right; without
    rows it is empty."""
    rows = [list(row) for row in rows]
    keep = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    if not rows:
        return ""
    numeric = [all(re.fullmatch(r"[-+.\d\[\], ]*", row[i]) for row in rows) for i in range(len(columns))]
    lines = [[columns[i] for i in keep], ["---:" if numeric[i] else "---" for i in keep]]
    lines += [[row[i] or "-" for i in keep] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: Any, digits: int = 2) -> str:
    """A number with so many decimals, nothing for what is not known."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def interval(rate: Mapping[str, float] | None) -> str:
    """`mean [low, high]`."""
    return f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]" if rate else ""


def settings(values: Mapping[str, Any] | None) -> list[str]:
    """`name: value` lines of a free-form part of the record."""
    shown = []
    for name, value in sorted((values or {}).items()):
        if isinstance(value, float):
            value = f"{value:g}"
        if isinstance(value, str | int | float | bool):
            shown.append(f"{name.replace('_', ' ')}: {code(value)}")
    return shown


def last(curves: Mapping[str, Any] | None, *names: str) -> tuple[float, float] | None:
    """Last (step, value) of the first of the curves that is there."""
    for name in names:
        if points := (curves or {}).get(name):
            return points[-1][0], points[-1][1]
    return None


def component_rows(reward: Mapping[str, Any], repos: Mapping[str, str]) -> list[list[str]]:
    """One row a component: name, share, annotators, pairs, held-out accuracy and pairs, temperature, repository."""
    names = reward.get("component_names") or list(reward.get("shares") or {})
    weights = dict(zip(names, reward.get("mixing_weights") or (), strict=False)) or reward.get("shares") or {}
    temperature = dict(zip(names, (reward.get("calibration") or {}).get("temperature") or (), strict=False))
    rows = []
    for name in names:
        link = f"[{repos[name]}](https://huggingface.co/{repos[name]})" if name in repos else ""
        rows.append(
            [
                code(name),
                number(weights.get(name)),
                number((reward.get("component_annotators") or {}).get(name)),
                number((reward.get("component_pairs") or {}).get(name)),
                number(component_accuracy(reward, name)),
                number((reward.get("component_heldout_pairs") or {}).get(name)),
                number(temperature.get(name)),
                link,
            ]
        )
    return rows


COMPONENT_COLUMNS = (
    "component",
    "share of annotators",
    "annotators",
    "training pairs",
    "held-out accuracy",
    "held-out pairs",
    "temperature",
    "on its own",
)


def component_accuracy(reward: Mapping[str, Any], name: str) -> float | None:
    """Held-out accuracy of one component: on pairs of its own annotators that took no part in assigning them."""
    return (reward.get("component_heldout_accuracy") or {}).get(name)


def least(reward: Mapping[str, Any], measure: str) -> tuple[str, float] | None:
    """The component with the least of a measure: `component_heldout_accuracy` (the weakest), `component_pairs`."""
    known = reward.get(measure) or {}
    return min(known.items(), key=lambda item: item[1]) if known else None


def selection_rows(reward: Mapping[str, Any]) -> list[list[str]]:
    """K, held-out log-likelihood per pair, difference to the best with its standard error, which K was taken."""
    selection = reward.get("selection") or {}
    mean = selection.get("mean")
    if not isinstance(mean, Mapping):
        return []

    def of(part: str, k: str, digits: int) -> str:
        return number((selection.get(part) or {}).get(k), digits)

    taken = str(reward.get("num_components", ""))
    return [
        [k, number(mean[k], 4), of("difference", k, 4), of("standard_error", k, 4), "yes" if k == taken else "no"]
        for k in sorted(mean, key=int)
    ]


def group_accuracy_rows(reward: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of held-out accuracy by known group and model."""
    by_model = reward.get("heldout_accuracy") or {}
    groups = list(dict.fromkeys(group for values in by_model.values() for group in values))
    rows = [[code(g), *(number(by_model[m].get(g)) for m in by_model)] for g in groups]
    return ["group", *(code(model) for model in by_model)], rows


def policies_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Names of the evaluated policies, the reference first."""
    named = [*(evaluation.get("gold_utility") or {}), *(evaluation.get("win_rate") or {})]
    return list(dict.fromkeys(named))


def groups_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Names of the groups that were evaluated."""
    if evaluation.get("groups"):
        return list(evaluation["groups"])
    return list(dict.fromkeys(g for rates in (evaluation.get("win_rate") or {}).values() for g in rates))


def result_tables(evaluation: Mapping[str, Any], this: str) -> tuple[str, str]:
    """Group x policy: win rates against the reference with their intervals, and mean utilities."""
    groups, policies = groups_of(evaluation), policies_of(evaluation)
    rates, utility = evaluation.get("win_rate") or {}, evaluation.get("gold_utility") or {}
    minority = evaluation.get("minority")

    def head(policy: str) -> str:
        return f"{code(policy)} (this model)" if policy == this else code(policy)

    def label(group: str) -> str:
        return f"{code(group)} (minority)" if group == minority else code(group)

    def build(cell: Any) -> str:
        return table(["group", *map(head, policies)], [[label(g), *(cell(p, g) for p in policies)] for g in groups])

    won = build(lambda p, g: interval((rates.get(p) or {}).get(g))) if rates else ""
    mean = build(lambda p, g: number((utility.get(p) or {}).get(g))) if utility else ""
    return won, mean


def summary_rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    """Per policy: its worst group by win rate, that rate, and the gap between the best- and the worst-off group."""
    rows = []
    for policy, by_group in (evaluation.get("win_rate") or {}).items():
        means = {group: rate["mean"] for group, rate in by_group.items()}
        if means:
            worst = min(means, key=means.__getitem__)
            gap = max(means.values()) - means[worst]
            rows.append([code(policy), code(worst), number(means[worst]), number(gap)])
    return rows


def diagnosis(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What `trl-maxmin diagnose` recorded, for `_diagnosis.md`: verdict, table of groups, sizes and assumptions."""
    found = evaluation.get("diagnostics") or {}
    if not found:
        return {}
    columns = ["share", "mismatch", "accuracy_single", "accuracy_own", "gap"]
    # An older record's `predicted` is true of two groups only; its groups have no `epsilon`.
    bounds = all("epsilon" in own for own in found["by_group"].values())
    columns += ["predicted"] if bounds else []
    rows = [
        [code(group), *(interval(v) if isinstance(v := own.get(column), Mapping) else number(v) for column in columns)]
        for group, own in found["by_group"].items()
        if found["num_groups"] > 1
    ]
    return {
        "verdict": plain(found["verdict"]),
        "table": table(["group", *columns], rows),
        "bounds": bounds,
        "sizes": ", ".join(
            f"{found[f'num_{what}']} {what}" for what in ("pairs", "annotators", "prompts") if f"num_{what}" in found
        ),
        "features": plain(found.get("features", "")),
        "assumptions": [plain(text) for text in found["assumptions"]],
    }


def curve_rows(curves: Mapping[str, Any] | None, name: str) -> list[list[str]]:
    """At most 8 points of a curve, evenly spaced, the last one included."""
    points = (curves or {}).get(name) or []
    count = min(8, len(points))
    chosen = [round(i * (len(points) - 1) / max(count - 1, 1)) for i in range(count)]
    return [[number(points[i][0]), number(float(points[i][1]), 3)] for i in dict.fromkeys(chosen)]


def sample_blocks(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """For each recorded prompt a table of every policy's reply and, where recorded, its utility for every group."""
    groups, blocks = groups_of(evaluation), []
    for sample in (evaluation.get("samples") or [])[:4]:
        utility = sample.get("utility") or {}
        rows = [
            [code(policy), code(text), *(number((utility.get(policy) or {}).get(g)) for g in groups)]
            for policy, text in sample["completions"].items()
        ]
        columns = ["policy", "reply", *(f"utility for {code(g)}" for g in groups)]
        blocks.append({"prompt": code(sample["prompt"]), "table": table(columns, rows)})
    return blocks


def hub_datasets(*stages: Mapping[str, Any]) -> list[str]:
    """Ids of the data sets that are on the Hub; files of this machine are not named."""
    names = [(stage.get("dataset") or {}).get("name") for stage in stages]
    return [name for name in dict.fromkeys(names) if is_hub_id(name)]
