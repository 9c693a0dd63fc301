# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation, of training and of a diagnosis. They read without colour and at the width of a README."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import _canvas, _draw_bar, _draw_point, _dress, _errors, _marker, _patch, _save, _Style, _styles


_LINES = (
    ("#1f4e79", "-", "o"),
    ("#d07a28", "--", "^"),
    ("#5f5f5f", "-.", "s"),
    ("#8a6fb0", ":", "D"),
    ("#3f7f4f", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#a03c4c", (0, (1, 1)), "P"),
)
_LABELS = {"win_rate": "win rate against the reference", "utility": "utility (0 = reference policy)"}
_BARS_IN_A_ROW = 12
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


def _short(name: str, longest: int = 18) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def plot_groups(
    results: Mapping[str, Any], path: str | os.PathLike[str], measure: str = "win_rate", kind: str | None = None
) -> Path:
    """Bars with intervals: what each policy gives each group.

    Args:
        results (`Mapping`): from [`summarise`].
        path (`str` or `os.PathLike`): of the PNG file; its folder is created.
        measure (`str`, *optional*, defaults to `"win_rate"`): `"win_rate"` or `"utility"`.
        kind (`str`, *optional*): groups of this kind only. Default: all that have the measure.

    Raises:
        ValueError: an unknown measure, or no group and policy that have it.
    """
    if measure not in _LABELS:
        raise ValueError(f"Unknown measure {measure!r}; measures: {', '.join(_LABELS)}.")
    policies, groups = _measured(results, measure, kind)
    # More bars in a row than this cannot be read at the width of a README, so groups go on in further rows.
    num_rows = -(-len(groups) // max(1, _BARS_IN_A_ROW // len(policies)))
    in_a_row = -(-len(groups) // num_rows)
    width = max(6.0, 2.2 + 0.55 * in_a_row * len(policies))
    figure, panels = _canvas(1, width, 4.4 if num_rows == 1 else 1.2 + 2.9 * num_rows, num_rows)
    entries = {name: results["policies"][name]["by_group"] for name in policies}
    numbers = [entries[name][group].get(measure) for name in policies for group in groups]
    lowest, highest = (min(n["low"] for n in numbers if n), max(n["high"] for n in numbers if n))
    span = 1.0 if measure == "win_rate" else max(highest, 0.0) - min(lowest, 0.0) or 1.0
    styles = _styles(policies)
    for row, axes in enumerate(panels):
        shown = groups[row * in_a_row : (row + 1) * in_a_row]
        for index, name in enumerate(policies):
            for place, group in enumerate(shown):
                if (number := entries[name][group].get(measure)) is not None:
                    centre = place + (index - (len(policies) - 1) / 2) * 0.8 / len(policies)
                    _draw_bar(axes, centre, 0.72 / len(policies), number, styles[name], span, fontsize=9, bbox=_BOX)
        if measure == "win_rate":
            axes.axhline(0.5, color="black", ls="--", lw=1)
            axes.set_ylim(0, 1.12)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        else:
            axes.axhline(0.0, color="black", lw=1)
            axes.set_ylim(min(lowest, 0.0) - 0.12 * span, max(highest, 0.0) + 0.12 * span)
        axes.set_xlim(-0.55, in_a_row - 0.45)
        axes.set_xticks(range(len(shown)))
        room = int((width - 1.2) / in_a_row / 0.095)
        axes.set_xticklabels([textwrap.fill(_short(group, 2 * room), room) for group in shown], fontsize=11)
        label = _LABELS[measure]
        _dress(axes, ylabel=label if num_rows == 1 else label.replace(" (", "\n(").replace(" ag", "\nag"))
    title = "Win rate" if measure == "win_rate" else "Utility"
    panels[0].set_title(f"{title} by group, {100 * results['interval']['level']:g} % interval", fontsize=12)
    _legend_below(figure, panels[0], [(styles[name].label, _patch(styles[name])) for name in policies])
    return _save(figure, path)


def _measured(results: Mapping[str, Any], measure: str, kind: str | None) -> tuple[list[str], list[str]]:
    entries = {name: entry["by_group"] for name, entry in results["policies"].items()}
    groups = [
        group
        for group, own in results["groups"].items()
        if kind in (None, own) and any(measure in by_group.get(group, {}) for by_group in entries.values())
    ]
    policies = [name for name, by_group in entries.items() if any(measure in by_group[group] for group in groups)]
    if not groups or not policies:
        raise ValueError(f"No policy has a {measure} for any group of kind {kind}; kinds: {results['groups']}.")
    return policies, groups


def _legend_below(figure: Any, axes: Any, entries: Sequence[tuple[str, Any]]) -> None:
    labels = [_short(label, 32) for label, _ in entries]
    longest = max(len(label) for label in labels)
    columns = max(1, min(len(labels), int(figure.get_figwidth() * 11 / (longest + 7))))
    rows = -(-len(labels) // columns)
    height = figure.get_figheight()
    figure.tight_layout(rect=(0, (0.1 + 0.24 * rows) / height, 1, 1))
    figure.legend(
        [handle for _, handle in entries],
        labels,
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=10,
        handlelength=2.6,
    )


def plot_pareto(
    results: Mapping[str, Any], path: str | os.PathLike[str], majority: str, minority: str, measure: str = "utility"
) -> Path:
    """What every policy gives the minority against what it gives the majority, with both intervals.

    Policies that no other beats for both groups are joined: up and right is better.

    Args:
        results (`Mapping`): from [`summarise`].
        path (`str` or `os.PathLike`): of the PNG file.
        majority, minority (`str`): two groups.
        measure (`str`, *optional*, defaults to `"utility"`): `"utility"` or `"win_rate"`.

    Raises:
        ValueError: an unknown measure or group, or no policy that has the measure for both groups.
    """
    if measure not in _LABELS or not {majority, minority} <= set(results["groups"]):
        raise ValueError(
            f"Needs a measure of {', '.join(_LABELS)} and two of the groups {list(results['groups'])}; got "
            f"{measure!r}, {majority!r} and {minority!r}."
        )
    points = {
        name: (entry["by_group"][majority][measure], entry["by_group"][minority][measure])
        for name, entry in results["policies"].items()
        if measure in entry["by_group"][majority] and measure in entry["by_group"][minority]
    }
    if not points:
        raise ValueError(f"No policy has a {measure} for both {majority!r} and {minority!r}.")
    figure, (axes,) = _canvas(1, 6.0, 5.0)
    styles = _styles(list(points))
    means = {name: (x["mean"], y["mean"]) for name, (x, y) in points.items()}
    front = sorted(
        point
        for name, point in means.items()
        if not any(o != point and o[0] >= point[0] and o[1] >= point[1] for other, o in means.items() if other != name)
    )
    axes.plot(*zip(*front, strict=True), color="#9a9a9a", lw=1.2, ls=":", zorder=1)
    for name, (x, y) in points.items():
        error = {"xerr": _errors(x), "yerr": _errors(y)}
        axes.errorbar(x["mean"], y["mean"], fmt="none", ecolor="black", elinewidth=1, capsize=2, zorder=2, **error)
        _draw_point(axes, *means[name], styles[name], zorder=3)
    axes.margins(0.16)
    label = measure.replace("_", " ")
    labels = f"{label} of the majority ({_short(majority)})", f"{label} of the minority ({_short(minority)})"
    _dress(axes, "Both groups at once (up and right is better)", *labels, grid=True)
    _legend_below(figure, axes, [(styles[name].label, _marker(styles[name], ls="", ms=9)) for name in points])
    return _save(figure, path)


def plot_training(
    curves: Mapping[str, Sequence[Sequence[float]]],
    path: str | os.PathLike[str],
    title: str = "Worst group utility during training",
    ylabel: str = "utility of the worst-off group",
    xlabel: str = "step",
    bands: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> Path:
    """Curves over steps, one line a run: how the worst-off group fares while policies train.

    Args:
        curves (`Mapping`): run -> list of `[step, value]`, as `policy.curves["maxmin/worst_utility"]` of a run record.
        path (`str` or `os.PathLike`): of the PNG file.
        title, ylabel, xlabel (`str`, *optional*): of the axes.
        bands (`Mapping`, *optional*): run -> list of `[step, low, high]`, shaded behind the run's curve, such as the
            range over seeds.

    Raises:
        ValueError: no curve with a point, or a band of a run without a curve.
    """
    curves = {name: points for name, points in curves.items() if len(points)}
    if not curves:
        raise ValueError("There is no curve with a point; run records keep them under policy.curves.")
    if unknown := sorted(set(bands or {}) - set(curves)):
        raise ValueError(f"There are bands of {unknown}, but curves only of {sorted(curves)}.")
    figure, (axes,) = _canvas(1, 6.4, 4.2)
    for index, name in enumerate(curves):
        if name in (bands or {}):
            steps, low, high = zip(*bands[name], strict=True)
            axes.fill_between(steps, low, high, color=_LINES[index % len(_LINES)][0], alpha=0.18, lw=0)
    _draw_lines(axes, curves)
    _dress(axes, title, xlabel, ylabel, grid=True)
    _legend_below(figure, axes, list(zip(curves, axes.get_lines()[: len(curves)], strict=True)))
    return _save(figure, path)


def _draw_lines(axes: Any, curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    for index, points in enumerate(curves.values()):
        colour, line, marker = _LINES[index % len(_LINES)]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, ls=line, marker=marker, ms=5, lw=1.8, markevery=max(1, len(steps) // 8))


def plot_diagnosis(diagnosis: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Evidence for K, what the single reward costs each group as the group's share varies, and, of groups that EM
    found, how often two halves of a person's pairs agree against how often posteriors say so.

    Args:
        diagnosis (`Mapping`): `Diagnosis.to_dict()`.
        path (`str` or `os.PathLike`): of the PNG file.
    """
    curves = diagnosis["curves"]
    calibration = (diagnosis.get("assignment_calibration") or {}).get("curve") if curves else None
    count = 1 + bool(curves) + bool(calibration)
    figure, panels = _canvas(count, (5.0, 9.4, 13.6)[count - 1], 4.4)
    axes = panels[0]
    ks = sorted(diagnosis["selection"], key=int)
    below = [-diagnosis["selection"][k]["difference"] for k in ks]
    errors = [diagnosis["selection"][k]["standard_error"] for k in ks]
    chosen = [int(k) == diagnosis["num_groups"] for k in ks]
    for place, (value, error, own) in enumerate(zip(below, errors, chosen, strict=True)):
        fill = "#4b7fae" if own else "white"
        axes.errorbar(place, value, yerr=error, fmt="o", ms=10, mfc=fill, mec="black", ecolor="black", capsize=4)
    axes.set_xticks(range(len(ks)))
    axes.set_xticklabels([f"K = {k}" + ("\n(chosen)" if own else "") for k, own in zip(ks, chosen, strict=True)])
    axes.set_xlim(-0.5, len(ks) - 0.5)
    axes.axhline(0, color="black", lw=0.8, ls="--")
    _dress(axes, "How many groups?", ylabel="held-out log-likelihood,\nnats per pair below the best")
    if not curves:
        figure.tight_layout()
        return _save(figure, path)
    axes = panels[1]
    _draw_lines(axes, curves)
    handles = list(zip((f"gap of {_short(name)}" for name in curves), axes.get_lines(), strict=True))
    for index, facts in enumerate(diagnosis["by_group"].values()):
        fill, gap = _LINES[index % len(_LINES)][0], facts["gap"]["mean"]
        axes.plot(facts["share"], gap, marker="*", ms=16, mfc=fill, mec="black", ls="", zorder=5)
    handles.append(("these data", _marker(_Style("", "white", "", "*"), ls="", ms=13)))
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1)
    labels = "share of the group in the data", "alignment gap of single-reward RLHF\n(log-odds)"
    _dress(axes, "What one reward costs each group", *labels, grid=True)
    if calibration:
        _draw_calibration(panels[2], calibration)
    _legend_below(figure, axes, handles)
    return _save(figure, path)


def _draw_calibration(axes: Any, curve: Sequence[Mapping[str, float]]) -> None:
    """Bins of people: size by number, bars of two standard errors, against the diagonal."""
    most = max(entry["num_annotators"] for entry in curve)
    axes.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--")
    for entry in curve:
        size = 4 + 10 * (entry["num_annotators"] / most) ** 0.5
        bar = {"yerr": 2 * entry["standard_error"], "ecolor": "black", "capsize": 3}
        axes.errorbar(entry["expected"], entry["observed"], fmt="o", ms=size, mfc="#4b7fae", mec="black", **bar)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    labels = "agreement that posteriors announce", "agreement of two halves of a person's pairs"
    _dress(axes, "How sure are assignments?", *labels, grid=True)
