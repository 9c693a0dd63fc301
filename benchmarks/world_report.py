# SPDX-License-Identifier: Apache-2.0
"""Tables of imbalance.py and ablations.py for docs/reproduction.md, from their files only.

PYTHONPATH=. python benchmarks/world_report.py --docs docs/reproduction.md
PYTHONPATH=. python benchmarks/world_report.py --figure docs/imbalance.png
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student


RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
Row = dict[str, Any]


def mean_interval(values: list[float]) -> str:
    """`0.854 [0.840, 0.868]`: mean and Student's 95 % interval; of two values `0.854 (0.850, 0.858)`, both of them."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return f"{mean:.3f}"
    if n == 2:
        # Student's interval of two is thirteen standard errors wide: true, and of no use.
        return f"{mean:.3f} ({', '.join(f'{value:.3f}' for value in sorted(values))})"
    half = student.ppf(0.975, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def table(rows: list[Row], by: str, columns: dict[str, Callable[[Row], float]]) -> str:
    """One line for every value of `rows[.][by]`, means over seeds."""
    heads = [by, "seeds", *columns]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for value in dict.fromkeys(row[by] for row in rows):
        mine = [row for row in rows if row[by] == value]
        cells = [mean_interval([column(row) for row in mine]) for column in columns.values()]
        lines.append(f"| {value} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(*path: str) -> Callable[[Row], float]:
    def get(row: Row) -> float:
        value: Any = row
        for name in path:
            value = value[name]
        return value

    return get


ACCURACY = {
    "majority": _of("heldout_accuracy", "concise"),
    "minority": _of("heldout_accuracy", "positive"),
}
WINS = {"majority wins": _of("win_rate", "concise"), "minority wins": _of("win_rate", "positive")}
TABLES: dict[str, tuple[str, dict[str, Callable[[Row], float]]]] = {
    "imbalance": (
        "ratio",
        {
            "single: majority": _of("single", "concise"),
            "single: minority": _of("single", "positive"),
            "mixture: majority": _of("mixture", "concise"),
            "mixture: minority": _of("mixture", "positive"),
            "assigned as planted": _of("assigned_as_planted"),
        },
    ),
    "ablation_em": ("variant", {**ACCURACY, "assigned as planted": _of("assigned_as_planted")}),
    "ablation_trunk": ("variant", ACCURACY),
    "ablation_components": ("variant", {**ACCURACY, **WINS}),
    "ablation_policy": ("variant", {**WINS, "switches": _of("switches"), "KL, nats": _of("kl")}),
}


def blocks(results: Path = RESULTS) -> dict[str, str]:
    """The tables whose files are there."""
    found = {}
    for name, (by, columns) in TABLES.items():
        path = results / f"{name}.json"
        if path.is_file():
            found[name] = table(json.loads(path.read_text(encoding="utf-8"))["rows"], by, columns)
    return found


def replace_block(text: str, name: str, content: str) -> str:
    """Put `content` between the two comments of that name.

    Raises:
        ValueError: the document has no such comments.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"The document needs the lines `{begin}` and `{end}`, once each.")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def figure(results: Path, path: Path) -> None:
    """Accuracy on each group's pairs against the imbalance, single reward and mixture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = json.loads((results / "imbalance.json").read_text(encoding="utf-8"))["rows"]
    ratios = list(dict.fromkeys(row["ratio"] for row in rows))
    canvas, axes = plt.subplots(figsize=(6, 4))
    for model, line in (("single", "--"), ("mixture", "-")):
        for group, who, colour in (("concise", "majority", "#0072b2"), ("positive", "minority", "#d55e00")):
            means = [np.mean([row[model][group] for row in rows if row["ratio"] == ratio]) for ratio in ratios]
            axes.plot(ratios, means, line, marker="o", color=colour, label=f"{model}, {who}")
    axes.axhline(0.5, color="#9a9a9a", lw=0.8)
    axes.set_xlabel("annotators, majority : minority")
    axes.set_ylabel("accuracy on held-out pairs")
    axes.legend(frameon=False)
    canvas.tight_layout()
    canvas.savefig(path, dpi=120)
    plt.close(canvas)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args(argv)
    for name, content in blocks(arguments.results).items():
        print(f"{name}\n{content}\n")
        if arguments.docs:
            text = arguments.docs.read_text(encoding="utf-8")
            arguments.docs.write_text(replace_block(text, name, content), encoding="utf-8")
    if arguments.figure:
        figure(arguments.results, arguments.figure)


if __name__ == "__main__":
    main()
