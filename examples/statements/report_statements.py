# SPDX-License-Identifier: Apache-2.0
"""Reports of train_statements.py over seeds as a table, and a part of docs/reproduction.md; from files only.

python examples/statements/report_statements.py --results examples/statements/results --docs docs/reproduction.md
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student


BEGIN, END = "<!-- statements: begin -->", "<!-- statements: end -->"
SAMPLES = 5


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The reports of a folder, by seed.

    Raises:
        ValueError: there are none.
    """
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    if not reports:
        raise ValueError(f"There is no report (*.json) in {folder}. Make some with train_statements.py.")
    return sorted(reports, key=lambda report: report["seed"])


def shown(values: Sequence[float], form: str = ".3f") -> str:
    """Mean with Student's 95 % interval over seeds; the mean alone below three, whose interval is of no use."""
    mean, n = float(np.mean(values)), len(values)
    if n < 3:
        return f"{mean:{form}}"
    half = student.ppf(0.975, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def markdown(reports: list[dict[str, Any]]) -> str:
    """Win rates against the reference by group of people, their differences, and what the figures stand on."""
    groups = list(reports[0]["judge_accuracy"])
    lines = [f"| policy | seeds | {' | '.join(groups)} | worst-off group |", f"|{'---|' * (len(groups) + 3)}"]

    def column(policy: str, group: str) -> list[float]:
        return [report["win_rate"][policy][group] for report in reports]

    def worst(policy: str) -> list[float]:
        return [min(report["win_rate"][policy].values()) for report in reports]

    for policy in ("single", "maxmin"):
        cells = [shown(column(policy, group)) for group in groups] + [shown(worst(policy))]
        lines.append(f"| {policy} | {len(reports)} | {' | '.join(cells)} |")
    pairs = [(column("maxmin", group), column("single", group)) for group in groups]
    pairs.append((worst("maxmin"), worst("single")))
    cells = [shown(np.subtract(a, b), "+.3f") for a, b in pairs]
    lines.append(f"| maxmin - single | {len(reports)} | {' | '.join(cells)} |")
    accuracy = ", ".join(f"{g} {shown([r['judge_accuracy'][g] for r in reports])}" for g in groups)
    found = shown([report["ari_with_published_groups"] for report in reports])
    lines += ["", f"Judges right on held-out votes of their own people: {accuracy}."]
    lines += [f"Adjusted Rand index of the components with the published groups: {found}.", ""]
    lines += _components(reports[0])
    lines += ["| policy | distinct | voted on by people |", "|---|---|---|"]
    for policy in reports[0]["written"]:
        cells = [shown([report["written"][policy][kind] for report in reports]) for kind in ("distinct", "voted_on")]
        lines.append(f"| {policy} | {' | '.join(cells)} |")
    lines += ["", f"What they write, seed {reports[0]['seed']}, the first {SAMPLES} statements:", ""]
    for row in reports[0]["samples"][:SAMPLES]:
        lines += [f"{'-' if n == 0 else '  -'} {name}: `{_code(text)}`" for n, (name, text) in enumerate(row.items())]
    return "\n".join(lines)


def _components(report: dict[str, Any]) -> list[str]:
    """Who the components of one seed are."""
    lines = [f"The components of seed {report['seed']}:", ""]
    for name, facts in report["components"].items():
        groups = ", ".join(f"{count} of {group}" for group, count in facts["published_groups"].items())
        lines.append(f"- {name}: {facts['annotators']} people ({groups})")
    return [*lines, ""]


def _code(text: str) -> str:
    return text.replace("`", "'").replace("\n", " ").strip()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="Folder with the reports, one a seed.")
    parser.add_argument("--docs", type=Path, help=f"Document with the lines `{BEGIN}` and `{END}`.")
    arguments = parser.parse_args(argv)
    content = markdown(read_reports(arguments.results))
    print(content)
    if arguments.docs:
        text = arguments.docs.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1:
            raise ValueError(f"{arguments.docs} needs the lines `{BEGIN}` and `{END}`, once each.")
        head, rest = text.split(BEGIN)
        arguments.docs.write_text(f"{head}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
