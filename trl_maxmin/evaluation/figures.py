# SPDX-License-Identifier: Apache-2.0
"""The comparison figure: what each policy gives each group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class _Style:
    """Fill, hatch and marker differ in lightness and shape, so that the figure reads without colour."""

    label: str
    fill: str
    hatch: str
    marker: str


_STYLES = {
    "reference": _Style("reference policy", "#ffffff", "", "s"),
    "single": _Style("single-reward RLHF", "#f0b27a", "////", "^"),
    "maxmin": _Style("MaxMin-RLHF", "#4b7fae", "", "o"),
    "oracle": _Style("MaxMin on gold utilities", "#dbe6ee", "....", "D"),
}
_OTHER = (
    ("#d9d9d9", "xx", "v"),
    ("#7f7f7f", "\\\\\\\\", "P"),
    ("#a3c293", "++", "X"),
    ("#ffffff", "---", "<"),
    ("#8a6fb0", "|||", ">"),
    ("#f4e7c3", "oo", "*"),
)


def _styles(policies: list[str]) -> dict[str, _Style]:
    others = [policy for policy in policies if policy not in _STYLES]
    extra = {name: _Style(name, *_OTHER[index % len(_OTHER)]) for index, name in enumerate(others)}
    return {policy: _STYLES.get(policy) or extra[policy] for policy in policies}


def plot_comparison(report: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw win rates per group and, where there is a minority, both groups' gold utilities against each other.

    Args:
        report (`Mapping`): needs `groups` (names, the majority first) and `win_rate` (policy -> group -> `mean`,
            `low`, `high`). With `minority` (a name) and `gold_utility` (policy -> group -> number) there is a second
            panel.
        path (`str` or `os.PathLike`): where to write the PNG file; its folder is created.

    Returns:
        `Path` of the file.

    Raises:
        ValueError: the report has no groups or no win rates, or a policy lacks a group.

    Example:

    >>> import tempfile
    >>> half = {"mean": 0.5, "low": 0.47, "high": 0.53}
    >>> report = {"groups": ["concise"], "win_rate": {"maxmin": {"concise": half}}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_comparison(report, f"{folder}/comparison.png").name
    'comparison.png'
    """
    # The canvas is named instead of taken from pyplot: no window system is asked for, no global state is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups, win_rate = list(report.get("groups") or ()), dict(report.get("win_rate") or {})
    if not groups or not win_rate:
        raise ValueError(f"the report needs groups and win_rate, got the keys {sorted(report)}")
    for policy, rates in win_rate.items():
        if missing := [group for group in groups if group not in rates]:
            raise ValueError(f"win_rate of {policy!r} lacks the groups {missing}")

    minority, utility = report.get("minority"), dict(report.get("gold_utility") or {})
    majority = groups[0]
    two_panels = minority in groups and minority != majority and bool(utility)
    styles = _styles(list(dict.fromkeys([*(utility if two_panels else ()), *win_rate])))

    figure = Figure(figsize=(9.0 if two_panels else 5.5, 4.6), dpi=160)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if two_panels else 1, squeeze=False)[0]
    _draw_win_rates(axes[0], groups, win_rate, styles, minority if two_panels else None)
    if two_panels:
        _draw_utilities(axes[1], majority, minority, utility, styles)
    _draw_legend(figure, styles)

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _draw_win_rates(axes, groups: list[str], win_rate: dict, styles: dict[str, _Style], minority: str | None) -> None:
    width = 0.8 / len(win_rate)
    for index, (policy, rates) in enumerate(win_rate.items()):
        style = styles[policy]
        centres = [position + (index - (len(win_rate) - 1) / 2) * width for position in range(len(groups))]
        means = [rates[group]["mean"] for group in groups]
        errors = [
            [max(0.0, rates[group]["mean"] - rates[group]["low"]) for group in groups],
            [max(0.0, rates[group]["high"] - rates[group]["mean"]) for group in groups],
        ]
        axes.bar(centres, means, width * 0.9, color=style.fill, hatch=style.hatch, edgecolor="black", linewidth=0.8)
        axes.errorbar(centres, means, yerr=errors, fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
        for centre, group in zip(centres, groups, strict=True):
            top = max(rates[group]["mean"], rates[group]["high"])
            axes.text(centre, top + 0.02, f"{rates[group]['mean']:.2f}", ha="center", va="bottom", fontsize=10)
    axes.axhline(0.5, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(-0.55, len(groups) - 0.45)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xticks(range(len(groups)))
    axes.set_xticklabels([f"{group}\n(minority)" if group == minority else group for group in groups], fontsize=11)
    axes.set_ylabel("win rate against the reference", fontsize=11)
    axes.set_title("Win rate per group, 95 % interval", fontsize=12)
    _clean(axes)


def _draw_utilities(axes, majority: str, minority: str, utility: dict, styles: dict[str, _Style]) -> None:
    for policy, values in utility.items():
        if majority in values and minority in values:
            style = styles[policy]
            axes.scatter(
                values[majority],
                values[minority],
                # The ceiling is larger and lies below: what comes close to it must stay visible.
                s=300 if policy == "oracle" else 110,
                marker=style.marker,
                facecolor=style.fill,
                hatch=style.hatch,
                edgecolor="black",
                linewidth=1.1,
                zorder=3 if policy == "oracle" else 4,
            )
    axes.margins(0.16)
    axes.set_xlabel(f"gold utility of the majority ({majority})", fontsize=11)
    axes.set_ylabel(f"gold utility of the minority ({minority})", fontsize=11)
    axes.set_title("Both groups at once (up and right is better)", fontsize=12)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    _clean(axes)


def _draw_legend(figure, styles: dict[str, _Style]) -> None:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    two_panels = len(figure.axes) > 1
    patches = [
        Patch(facecolor=style.fill, hatch=style.hatch, edgecolor="black", linewidth=0.8) for style in styles.values()
    ]
    markers = [
        Line2D([], [], marker=style.marker, color="none", markerfacecolor=style.fill, markeredgecolor="black")
        for style in styles.values()
    ]
    handles = list(zip(patches, markers, strict=True)) if two_panels else patches
    columns = min(len(styles), 4) if two_panels else min(len(styles), 2)
    rows = -(-len(styles) // columns)
    figure.tight_layout(rect=(0, 0.04 + 0.055 * rows, 1, 1), w_pad=3)
    figure.legend(
        handles,
        [style.label for style in styles.values()],
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.6)},
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=10.5,
        handlelength=3.2,
    )


def _clean(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
