# SPDX-License-Identifier: Apache-2.0
"""Cells of the grid as a table over seeds, a figure, and a part of docs/reproduction.md; from files only.

python examples/imdb/report_grid.py --cells imdb-small/cells
python examples/imdb/report_grid.py --cells imdb-small/cells --against examples/imdb/results/small
python examples/imdb/report_grid.py --cells examples/imdb/results/small --docs docs/reproduction.md --name imdb-small
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student


Cell = dict[str, Any]


def read_cells(folder: Path) -> list[Cell]:
    """All cells of a folder.

    Raises:
        ValueError: there are none, or they were made with different settings.
    """
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*_seed*.json"))]
    if not cells:
        raise ValueError(f"There are no cells (*_seed*.json) in {folder}. Make some with run_grid.py.")
    settings = {json.dumps(cell["settings"], sort_keys=True) for cell in cells}
    if len(settings) > 1:
        raise ValueError(f"The cells in {folder} were made with {len(settings)} different settings; keep them apart.")
    return cells


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean with Student's 95 % interval; `low` and `high` are `None` for a single value.

    Example:

    >>> interval([0.3, 0.5])
    {'mean': 0.4, 'low': -0.8706, 'high': 1.6706, 'n': 2}
    """
    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return {"mean": round(mean, 4), "low": None, "high": None, "n": n}
    half = float(student.ppf(0.975, n - 1) * values.std(ddof=1)) / math.sqrt(n)
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "n": n}


def rates(cell: Cell) -> dict[str, float]:
    """Win rates of a cell by group, their mean and their minimum."""
    by_group = {group: cell["win_rate"][group]["mean"] for group in cell["groups"]}
    return {**by_group, "mean": float(np.mean(list(by_group.values()))), "worst": min(by_group.values())}


def summarise(cells: list[Cell]) -> list[dict[str, Any]]:
    """One entry for every trainer and share: each policy's win rates over seeds, and paired differences.

    Args:
        cells (`list[dict]`): of one grid.

    Returns:
        `list[dict]` with `policies` (policy -> group, `mean`, `worst` -> interval) and `differences` (`"a - b"` ->
        the same, over the seeds that have both).
    """
    result = []
    for trainer, share in sorted({(cell["trainer"], cell["minority_share"]) for cell in cells}, reverse=True):
        table: dict[str, dict[int, dict[str, float]]] = {}
        for cell in cells:
            if (cell["trainer"], cell["minority_share"]) == (trainer, share):
                table.setdefault(cell["policy"], {})[cell["seed"]] = rates(cell)
        pairs = [(name, "single") for name in table if name != "single"]
        pairs += [(name, "oracle") for name in table if name not in ("single", "oracle")]
        differences = {}
        for name, other in pairs:
            seeds = sorted(set(table[name]) & set(table.get(other, {})))
            if seeds:
                columns = table[name][seeds[0]]
                differences[f"{name} - {other}"] = {
                    column: interval([table[name][s][column] - table[other][s][column] for s in seeds])
                    for column in columns
                }
        policies = {
            name: {
                column: interval([by_seed[seed][column] for seed in sorted(by_seed)])
                for column in next(iter(by_seed.values()))
            }
            for name, by_seed in table.items()
        }
        result.append({"trainer": trainer, "share": share, "policies": policies, "differences": differences})
    return result


def format_interval(value: dict[str, Any], signed: bool = False) -> str:
    """`0.81 [0.79, 0.83]`; the mean alone below three seeds: the interval of two is thirteen standard errors wide."""
    form = "+.3f" if signed else ".3f"
    ends = "" if value["n"] < 3 else f" [{value['low']:{form}}, {value['high']:{form}}]"
    return f"{value['mean']:{form}}{ends}"


def markdown(cells: list[Cell]) -> str:
    """The tables of a grid, with what EM found."""
    groups, minority = cells[0]["groups"], cells[0]["minority"]
    heads = [f"{group}{' (minority)' * (group == minority)}" for group in groups] + ["mean", "worst"]
    columns = [*groups, "mean", "worst"]
    parts = []
    for block in summarise(cells):
        lines = [
            f"**{block['trainer'].upper()}, minority share {block['share']:.2f}.** Win rates against the reference: "
            "mean over seeds with Student's 95 % interval over seeds (from three on).",
            "",
            f"| policy | seeds | {' | '.join(heads)} | tokens | KL, nats | worst - KL price |",
            f"|{'---|' * (len(heads) + 5)}",
        ]
        mine = [c for c in cells if (c["trainer"], c["minority_share"]) == (block["trainer"], block["share"])]
        for name, values in block["policies"].items():
            cells_of_policy = [c for c in mine if c["policy"] == name]
            tokens = np.mean([c["replies"][name]["mean_tokens"] for c in cells_of_policy])
            shown = " | ".join(format_interval(values[column]) for column in columns)
            lines.append(
                f"| {name} | {values['mean']['n']} | {shown} | {tokens:.1f} | {' | '.join(_price(cells_of_policy))} |"
            )
        if block["differences"]:
            lines += ["", f"| paired difference | seeds | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 2)}"]
            for name, values in block["differences"].items():
                shown = " | ".join(format_interval(values[column], signed=True) for column in columns)
                lines.append(f"| {name} | {values['mean']['n']} | {shown} |")
        parts.append("\n".join([*lines, "", *_em_lines(mine, minority)]))
    return "\n\n".join(parts)


def _price(cells: list[Cell]) -> tuple[str, str]:
    """KL to the reference, and the worst group's win rate less what the KL cost: what max-min is after, by gold."""
    if any(cell["kl_last"] is None for cell in cells):
        return "", ""
    divergence = [cell["kl_last"] for cell in cells]
    left = [rates(cell)["worst"] - cell["settings"]["kl_coef"] * cell["kl_last"] for cell in cells]
    return f"{np.mean(divergence):.1f}", f"{np.mean(left):.3f}"


def _em_lines(cells: list[Cell], minority: str) -> list[str]:
    found = {cell["seed"]: cell["em"] for cell in cells if cell["em"]}
    if not found:
        return []
    mixture = interval([em["heldout_accuracy"]["mixture"][minority] for em in found.values()])
    single = interval([em["heldout_accuracy"]["single"][minority] for em in found.values()])
    ceiling = interval([em["heldout_ceiling"][minority] for em in found.values()])
    assigned = interval([em["assignment_accuracy"] for em in found.values()])
    chosen = [em["selected_num_components"] for em in found.values()]
    return [
        f"Held-out accuracy on the minority's pairs: mixture {mixture['mean']:.3f}, single {single['mean']:.3f}, "
        f"the gold utility itself {ceiling['mean']:.3f} (annotators are noisy). Annotators assigned as planted: "
        f"{assigned['mean']:.3f}. K = 2 was chosen over K = 1 in {sum(k == 2 for k in chosen)} of {len(chosen)} seeds."
    ]


def print_samples(cells: list[Cell], seed: int, count: int = 3) -> str:
    """The same prompts answered by every policy of a seed, as a list in Markdown."""
    mine = {cell["policy"]: cell["samples"] for cell in cells if cell["seed"] == seed}
    if not mine:
        return ""
    lines = []
    for row in range(min(count, len(next(iter(mine.values()))))):
        first = next(iter(mine.values()))[row]
        lines.append(f"- *{first['prompt']}* ...")
        answers = {"reference": first["completions"]["reference"]}
        answers |= {policy: shown[row]["completions"][policy] for policy, shown in mine.items()}
        lines += [f"    - {name}: `{_code(text)}`" for name, text in answers.items()]
    return "\n".join(lines)


def _code(text: str) -> str:
    return text.replace("`", "'").replace("\n", " ").strip() or "(ends here)"


def figure(cells: list[Cell], path: Path) -> None:
    """The Pareto figure of the first trainer and share."""
    from trl_maxmin.evaluation.plots import plot_pareto

    block = summarise(cells)[0]
    groups, minority = cells[0]["groups"], cells[0]["minority"]
    policies = {
        name: {
            "by_group": {
                group: {
                    "win_rate": {
                        end: values[group][end if values[group]["n"] > 2 else "mean"]
                        for end in ("mean", "low", "high")
                    }
                }
                for group in groups
            }
        }
        for name, values in block["policies"].items()
    }
    majority = next(group for group in groups if group != minority)
    plot_pareto({"groups": groups, "policies": policies}, path, majority, minority, "win_rate")


def replace_block(text: str, name: str, content: str) -> str:
    """Put `content` between the two comments of that name.

    Raises:
        ValueError: the document has no such comments.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"The document needs the lines `{begin}` and `{end}`, once each and in this order.")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def block_of(cells: list[Cell]) -> str:
    """What stands in the docs: tables, and replies of the first seed."""
    seed = min(cell["seed"] for cell in cells)
    share = cells[0]["minority_share"]
    shown = print_samples([cell for cell in cells if cell["minority_share"] == share], seed)
    count = sum(line.startswith("- ") for line in shown.splitlines())
    return f"{markdown(cells)}\n\nReplies of seed {seed}, the first {count} test prompts:\n\n{shown}"


def _key(cell: Cell) -> tuple:
    return cell["trainer"], cell["minority_share"], cell["policy"], cell["seed"]


def prediction_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Where a further seed falls with 95 % (Student); `None` below three seeds.

    Example:

    >>> low, high = prediction_interval([0.3, 0.4, 0.5])
    >>> print(round(low, 3), round(high, 3))
    -0.097 0.897
    """
    n = len(values)
    if n < 3:
        return None
    half = student.ppf(0.975, n - 1) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def disagreements(cells: list[Cell], recorded: list[Cell]) -> list[str]:
    """Win rates whose 95 % interval over prompts meets neither that of the recorded cell of the same seed nor where a
    further seed would fall: another processor rounds differently, and training then goes another way."""
    before = {_key(cell): cell for cell in recorded}
    found = []
    for cell in cells:
        for group in cell["groups"] if _key(cell) in before else ():
            now, then = cell["win_rate"][group], before[_key(cell)]["win_rate"][group]
            others = [c["win_rate"][group]["mean"] for c in recorded if _key(c)[:3] == _key(cell)[:3]]
            allowed = [(then["low"], then["high"]), prediction_interval(others)]
            if not any(now["low"] <= ends[1] and ends[0] <= now["high"] for ends in allowed if ends):
                found.append(f"{_key(cell)}, {group}: {now} against the recorded {then}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables; write figure and docs where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True, help="Folder with cells.")
    parser.add_argument("--against", type=Path, help="Recorded cells that the others must agree with.")
    parser.add_argument("--docs", type=Path, help="Document with the lines `<!-- NAME: begin -->` and `... end -->`.")
    parser.add_argument("--name", default="imdb-small", help="NAME of the block in the document.")
    parser.add_argument("--figure", type=Path, help="PNG file for the Pareto figure.")
    arguments = parser.parse_args(argv)
    try:
        cells = read_cells(arguments.cells)
        print(block_of(cells))
        if arguments.docs:
            text = arguments.docs.read_text(encoding="utf-8")
            arguments.docs.write_text(replace_block(text, arguments.name, block_of(cells)), encoding="utf-8")
        if arguments.figure:
            figure(cells, arguments.figure)
        recorded = read_cells(arguments.against) if arguments.against and arguments.against.is_dir() else []
        differing = disagreements(cells, recorded)
    except ValueError as error:
        sys.exit(f"report_grid.py: {error}")
    if arguments.against:
        names = {_key(cell) for cell in recorded}
        compared = sum(_key(cell) in names for cell in cells)
        print(f"\n{compared} of {len(cells)} cells are recorded; {len(differing)} win rates differ.")
    if differing:
        sys.exit("report_grid.py: these differ from the recorded cells:\n" + "\n".join(differing))


if __name__ == "__main__":
    main()
