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

    @property
    def surface(self) -> dict[str, str]:
        return {"facecolor": self.fill, "hatch": self.hatch, "edgecolor": "black"}


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


def _canvas(columns: int, width: float, height: float, rows: int = 1) -> tuple[Any, list[Any]]:
    # The canvas is named instead of taken from pyplot: no window system is asked for, no global state is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160)
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure: Any, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _dress(axes: Any, title: str = "", xlabel: str = "", ylabel: str = "", grid: bool = False) -> None:
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(xlabel, fontsize=11)
    axes.set_ylabel(ylabel, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    if grid:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)


def _errors(number: Mapping[str, float]) -> list[list[float]]:
    return [[max(0.0, number["mean"] - number["low"])], [max(0.0, number["high"] - number["mean"])]]


def _draw_bar(
    axes: Any, centre: float, width: float, number: Mapping[str, float], style: _Style, span: float = 1.0, **text: Any
) -> None:
    mean, up = number["mean"], number["mean"] >= 0
    axes.bar(centre, mean, width, **style.surface, linewidth=0.8)
    axes.errorbar(centre, mean, yerr=_errors(number), fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
    edge = max(mean, number["high"], 0.0) if up else min(mean, number["low"], 0.0)
    place = {"ha": "center", "va": "bottom" if up else "top"}
    axes.text(centre, edge + (0.02 if up else -0.02) * span, f"{round(mean, 2) + 0.0:.2f}", **place, **text)


def _draw_point(axes: Any, x: float, y: float, style: _Style, size: float = 110, zorder: float = 4) -> None:
    axes.scatter(x, y, s=size, marker=style.marker, **style.surface, linewidth=1.1, zorder=zorder)


def _patch(style: _Style) -> Any:
    from matplotlib.patches import Patch

    return Patch(**style.surface, linewidth=0.8)


def _marker(style: _Style, **line: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker=style.marker, mfc=style.fill, mec="black", **line)


def plot_comparison(report: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw win rates per group and, where there is a minority, both groups' gold utilities against each other.

    Args:
        report (`Mapping`): needs `groups` (names, the majority first) and `win_rate` (policy -> group -> `mean`,
            `low`, `high`). With `minority` (a name) and `gold_utility` (policy -> group -> number) there is a second
            panel.
        path (`str` or `os.PathLike`): where to write the PNG file; its folder is created.

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

    figure, axes = _canvas(1 + two_panels, 9.0 if two_panels else 5.5, 4.6)
    _draw_win_rates(axes[0], groups, win_rate, styles, minority if two_panels else None)
    if two_panels:
        _draw_utilities(axes[1], majority, minority, utility, styles)
    _draw_legend(figure, styles)
    return _save(figure, path)


def _draw_win_rates(axes, groups: list[str], win_rate: dict, styles: dict[str, _Style], minority: str | None) -> None:
    for index, (policy, rates) in enumerate(win_rate.items()):
        for position, group in enumerate(groups):
            centre = position + (index - (len(win_rate) - 1) / 2) * 0.8 / len(win_rate)
            _draw_bar(axes, centre, 0.72 / len(win_rate), rates[group], styles[policy], fontsize=10)
    axes.axhline(0.5, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(-0.55, len(groups) - 0.45)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xticks(range(len(groups)))
    axes.set_xticklabels([f"{group}\n(minority)" if group == minority else group for group in groups], fontsize=11)
    _dress(axes, "Win rate per group, 95 % interval", ylabel="win rate against the reference")


def _draw_utilities(axes, majority: str, minority: str, utility: dict, styles: dict[str, _Style]) -> None:
    for policy, values in utility.items():
        if majority in values and minority in values:
            # The ceiling is larger and lies below: what comes close to it must stay visible.
            size, zorder = (300, 3) if policy == "oracle" else (110, 4)
            _draw_point(axes, values[majority], values[minority], styles[policy], size, zorder)
    axes.margins(0.16)
    labels = f"gold utility of the majority ({majority})", f"gold utility of the minority ({minority})"
    _dress(axes, "Both groups at once (up and right is better)", *labels, grid=True)


def _draw_legend(figure, styles: dict[str, _Style]) -> None:
    from matplotlib.legend_handler import HandlerTuple

    two_panels = len(figure.axes) > 1
    handles = [
        (_patch(style), _marker(style, color="none")) if two_panels else _patch(style) for style in styles.values()
    ]
    columns = min(len(styles), 4 if two_panels else 2)
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
