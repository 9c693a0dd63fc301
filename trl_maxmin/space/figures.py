# SPDX-License-Identifier: Apache-2.0
"""Figures of the overview as SVG in the page: they take the page's colours, scale with it and need no file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from .html import escape
from .run_data import RunData
from .scoring import label


_FILLS = {"reference": "var(--mm-none)", "single": "var(--mm-a)", "maxmin": "var(--mm-b)", "oracle": "var(--mm-c)"}
_OTHERS = ("var(--mm-d)", "var(--mm-e)")
_GOLDEN_ANGLE = 137.508
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4")
_W, _H = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44


def _colours(run: RunData) -> dict[str, str]:
    """One colour for each policy of a run, the same in every figure."""
    policies = list(dict.fromkeys([*run.utility, *run.win_rate]))
    others = [name for name in policies if name not in _FILLS]
    # Beyond the chosen ones hues that are far from each other, of a lightness that is seen on light and on dark.
    made = (f"hsl({_GOLDEN_ANGLE * n % 360:.0f} 55% 52%)" for n in itertools.count())
    return _FILLS | dict(zip(others, itertools.chain(_OTHERS, made), strict=False))


def _svg(title: str, description: str, body: str) -> str:
    return (
        f'<figure class="mm-figure"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{escape(title + ". " + description)}">{body}</svg>'
        "</figure>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'


def _short(name: str, longest: int = 16) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _legend(policies: Sequence[str], colours: Mapping[str, str]) -> str:
    items = "".join(
        f'<li><span class="mm-swatch" style="background:{colours[policy]}"></span>{escape(label(policy))}</li>'
        for policy in policies
    )
    return f'<ul class="mm-legend">{items}</ul>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two ends.

    Example:

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        high = low + 1.0
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    values = []
    while first * step <= high + 1e-9:
        if first * step >= low - 1e-9:
            values.append(round(first * step, 10))
        first += 1
    return values


class _Axes:
    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = x, y

    def px(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / ((high - low) or 1.0) * (_W - _LEFT - _RIGHT)

    def py(self, value: float) -> float:
        low, high = self.y
        return _H - _BOTTOM - (value - low) / ((high - low) or 1.0) * (_H - _TOP - _BOTTOM)

    def grid(self, ylabel: str, xlabel: str = "", xticks: bool = True) -> str:
        parts = []
        for value in ticks(*self.y):
            y = self.py(value)
            parts.append(f'<line class="mm-grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", "end"))
        if xticks:
            for value in ticks(*self.x):
                parts.append(_text(self.px(value), _H - _BOTTOM + 17, f"{value:g}"))
        middle = (_TOP + _H - _BOTTOM) / 2
        parts.append(_text(13, middle, ylabel, extra=f'transform="rotate(-90 13 {middle})"'))
        if xlabel:
            parts.append(_text((_LEFT + _W - _RIGHT) / 2, _H - 8, xlabel))
        return "".join(parts)


def bars_by_group(run: RunData) -> str:
    """Win rates of each policy for each group, with intervals; utilities where there are no win rates."""
    numbers, measure = (run.win_rate, "win rate") if run.win_rate else (run.utility, "utility")
    policies, colours = list(numbers), _colours(run)
    groups = [group for group in run.groups if any(group in row for row in numbers.values())]
    if not policies or not groups:
        return ""
    cells = [number for row in numbers.values() for number in row.values()]
    low = 0.0 if run.win_rate else min(0.0, *(cell.get("low", cell["mean"]) for cell in cells))
    high = 1.0 if run.win_rate else max(0.0, *(cell.get("high", cell["mean"]) for cell in cells))
    axes = _Axes((0, len(groups)), (low, high))
    body = [axes.grid(measure, xticks=False)]
    width = 0.8 / len(policies)
    for place, group in enumerate(groups):
        body.append(_text(axes.px(place + 0.5), _H - _BOTTOM + 18, _short(group)))
        for index, policy in enumerate(policies):
            number = numbers[policy].get(group)
            if number is None:
                continue
            left, right = axes.px(place + 0.1 + index * width), axes.px(place + 0.1 + (index + 0.9) * width)
            top, bottom = sorted((axes.py(number["mean"]), axes.py(0.0)))
            said = f"{label(policy)}, {group}: {number['mean']:.2f}"
            body.append(
                f'<rect class="mm-mark" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                f'height="{max(bottom - top, 1):.1f}" fill="{colours[policy]}">'
                f"<title>{escape(said)}</title></rect>"
            )
            middle = (left + right) / 2
            if "low" in number and "high" in number:
                ends = f"M{middle:.1f} {axes.py(number['low']):.1f}V{axes.py(number['high']):.1f}"
                body.append(f'<path class="mm-line-mark" d="{ends}"/>')
            inside = axes.py(0.0) - 6
            body.append(_text(middle, inside, f"{number['mean']:.2f}", extra='class="mm-on-bar"'))
    if run.win_rate:
        y = axes.py(0.5)
        body.append(f'<line class="mm-dash" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    against = f" against {label(run.reference)}" if run.win_rate else ""
    title = f"{measure.capitalize()}{against} by group, with 95 % interval"
    return _svg(title, "The table below has the numbers.", "".join(body)) + _legend(policies, colours)


def pareto(run: RunData) -> str:
    """What each policy gives the minority against what it gives the majority; up and right is better."""
    numbers, measure = (run.utility, "utility") if run.utility else (run.win_rate, "win rate")
    pair = (run.majority, run.minority)
    if None in pair and len(run.groups) >= 2:
        pair = (run.groups[0], run.groups[-1])
    major, minor = pair
    points = {p: (row[major], row[minor]) for p, row in numbers.items() if major in row and minor in row}
    if len(points) < 2 or major is None or minor is None:
        return ""
    ends = []
    for axis in (0, 1):
        values = [point[axis].get(end, point[axis]["mean"]) for point in points.values() for end in ("low", "high")]
        pad = 0.12 * ((max(values) - min(values)) or 1.0)
        ends.append((min(values) - pad, max(values) + pad))
    axes = _Axes(ends[0], ends[1])
    body = [axes.grid(f"{measure}: {_short(minor)}", f"{measure}: {_short(major)}")]
    means = {p: (x["mean"], y["mean"]) for p, (x, y) in points.items()}
    front = sorted(
        m for m in means.values() if not any(o != m and o[0] >= m[0] and o[1] >= m[1] for o in means.values())
    )
    if len(front) > 1:
        path = " ".join(f"{axes.px(x):.1f},{axes.py(y):.1f}" for x, y in front)
        body.append(f'<polyline class="mm-dash" fill="none" points="{path}"/>')
    labels: list[tuple[float, float]] = []
    colours = _colours(run)
    for policy, (x, y) in points.items():
        cx, cy = axes.px(x["mean"]), axes.py(y["mean"])
        if "low" in x and "low" in y:
            body.append(
                f'<path class="mm-line-mark" d="M{axes.px(x["low"]):.1f} {cy:.1f}H{axes.px(x["high"]):.1f}'
                f'M{cx:.1f} {axes.py(y["low"]):.1f}V{axes.py(y["high"]):.1f}"/>'
            )
        body.append(f'<circle class="mm-mark" cx="{cx:.1f}" cy="{cy:.1f}" r="7" fill="{colours[policy]}"/>')
        side, above = ("end" if cx > _W * 0.7 else "start"), cy - 10
        if any(abs(above - y) < 18 and abs(cx - x) < 160 for x, y in labels):
            above = cy + 22
        labels.append((cx, above))
        body.append(_text(cx + (-11 if side == "end" else 11), above, label(policy), side))
    listed = "; ".join(f"{label(p)}: {x:.2f}, {y:.2f}" for p, (x, y) in means.items())
    return _svg("Both groups at once (up and right is better)", f"{major}, {minor} of {listed}.", "".join(body))


def training(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Utility of the worst-off group during training."""
    curves = {policy: points for policy, points in curves.items() if len(points) > 1}
    if not curves:
        return ""
    steps = [point[0] for points in curves.values() for point in points]
    values = [point[1] for points in curves.values() for point in points]
    axes = _Axes((min(steps), max(steps)), (min(0.0, *values), max(0.0, *values)))
    body = [axes.grid("worst utility", "rollout")]
    items = []
    for index, (policy, points) in enumerate(curves.items()):
        path = " ".join(f"{axes.px(x):.1f},{axes.py(y):.1f}" for x, y in points)
        dash = _DASHES[index % len(_DASHES)]
        body.append(f'<polyline class="mm-curve" fill="none" stroke-dasharray="{dash}" points="{path}"/>')
        items.append(
            '<li><svg viewBox="0 0 34 10" aria-hidden="true">'
            f'<path class="mm-curve" stroke-dasharray="{dash}" d="M0 5H34"/>'
            f"</svg>{escape(label(policy))}</li>"
        )
    last = "; ".join(f"{label(policy)} ends at {points[-1][1]:.2f}" for policy, points in curves.items())
    title = "Utility of the worst-off group during training, by the rewards trained on"
    return _svg(title, last + ".", "".join(body)) + f'<ul class="mm-legend">{"".join(items)}</ul>'


def overview(run: RunData) -> str:
    """The three figures; a sentence where the run has no results."""
    figures = [bars_by_group(run), pareto(run), training(run.curves)]
    shown = "".join(f'<div class="mm-figure-box">{figure}</div>' for figure in figures if figure)
    if not shown:
        return "<p>No results are recorded: give a folder with run_record.json, evaluation.json or report.json.</p>"
    return f'<div class="mm-figures">{shown}</div>'
