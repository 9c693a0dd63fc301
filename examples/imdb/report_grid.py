# SPDX-License-Identifier: Apache-2.0
"""Cells of the grid as a table over seeds, a figure, and a part of docs/reproduction.md; from files only.

python examples/imdb/report_grid.py --cells imdb-small/cells
python examples/imdb/report_grid.py --cells imdb-small/cells --against examples/imdb/results/small
python examples/imdb/report_grid.py --cells examples/imdb/results/small --docs docs/reproduction.md --name imdb-small
python examples/imdb/report_grid.py --cells examples/imdb/results/shares examples/imdb/results/small \\
    --docs docs/reproduction.md --name imdb-shares --figure docs/imdb_shares.png
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student


Cell = dict[str, Any]


def read_cells(*folders: Path, policies: Sequence[str] | None = None) -> list[Cell]:
    """All cells of the folders, or those of some policies.

    Raises:
        ValueError: there are none of them or of one of the policies, a cell is there twice, or they were made with
            different settings.
    """
    paths = [path for folder in folders for path in sorted(folder.glob("*_seed*.json"))]
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    cells = [cell for cell in cells if policies is None or cell["policy"] in policies]
    where = " and ".join(str(folder) for folder in folders)
    missing = sorted(set(policies or ()) - {cell["policy"] for cell in cells})
    if missing or not cells:
        of = f" of {', '.join(missing)}" if missing else ""
        raise ValueError(f"There are no cells{of} (*_seed*.json) in {where}. Make some with run_grid.py.")
    twice = [key for key, count in Counter(map(_key, cells)).items() if count > 1]
    if twice:
        raise ValueError(f"The cell {twice[0]} is there more than once in {where}; name each folder of a grid once.")
    settings = {json.dumps(cell["settings"], sort_keys=True) for cell in cells}
    if len(settings) > 1:
        raise ValueError(f"The cells in {where} were made with {len(settings)} different settings; keep them apart.")
    return sorted(cells, key=_key)


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
    """Win rates of a cell by group, their mean and their minimum; where the KL is known, `net`: the minimum less what
    the KL cost."""
    by_group = {group: cell["win_rate"][group]["mean"] for group in cell["groups"]}
    found = {**by_group, "mean": float(np.mean(list(by_group.values()))), "worst": min(by_group.values())}
    if cell["kl_last"] is not None:
        found["net"] = found["worst"] - cell["settings"]["kl_coef"] * cell["kl_last"]
    return found


def summarise(cells: list[Cell]) -> list[dict[str, Any]]:
    """One entry for every trainer and share: each policy's win rates over seeds, and paired differences.

    Args:
        cells (`list[dict]`): of one grid.

    Returns:
        `list[dict]` with `policies` (policy -> group, `mean`, `worst`, `net` -> interval) and `differences`
        (`"a - b"` -> the same, over the seeds that have both).
    """
    result = []
    for trainer, share in sorted({(cell["trainer"], cell["minority_share"]) for cell in cells}):
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
    """The tables of each trainer, with what EM found."""
    return "\n\n".join(
        _tables([cell for cell in cells if cell["trainer"] == trainer])
        for trainer in sorted({cell["trainer"] for cell in cells}, reverse=True)
    )


def _tables(cells: list[Cell]) -> str:
    """The tables of one trainer."""
    groups, minority = cells[0]["groups"], cells[0]["minority"]
    columns = [*groups, "mean", "worst"]
    heads = [f"{name}{' (minority)' * (name == minority)}" for name in columns]
    rates_of, gains, found = [], [], []
    for block in summarise(cells):
        share = f"{block['share']:.2f}"
        mine = [cell for cell in cells if cell["minority_share"] == block["share"]]
        for name, values in block["policies"].items():
            cells_of_policy = [cell for cell in mine if cell["policy"] == name]
            tokens = np.mean([cell["replies"][name]["mean_tokens"] for cell in cells_of_policy])
            shown = [format_interval(values[column]) for column in columns]
            divergence = [cell["kl_last"] for cell in cells_of_policy]
            kl = "" if None in divergence else f"{np.mean(divergence):.1f}"
            rates_of.append([share, name, values["mean"]["n"], *shown, f"{tokens:.1f}", kl, _net(values)])
        for name, values in block["differences"].items():
            shown = [format_interval(values[column], signed=True) for column in columns]
            gains.append([share, name, values["mean"]["n"], *shown, _net(values, signed=True)])
        found += [[share, *row] for row in _em_rows(mine, minority)]
    tables = [
        f"**{cells[0]['trainer'].upper()}.** Win rates against the reference: mean over seeds with Student's 95 % "
        "interval over seeds (from three on).",
        _table(["share", "policy", "seeds", *heads, "tokens", "KL, nats", "worst - KL price"], rates_of),
        _table(["share", "paired difference", "seeds", *heads, "worst - KL price"], gains),
    ]
    if found:
        tables += [
            "What EM found; accuracy on the minority's held-out pairs, where annotators are noisy (the gold utility):",
            _table(
                ["share", "seeds", "mixture", "single", "gold utility", "assigned as planted", "K = 2 chosen"], found
            ),
        ]
    return "\n\n".join(table for table in tables if table)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """In Markdown; nothing without rows."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(value) for value in line)} |" for line in lines) if rows else ""


def _net(values: dict[str, Any], signed: bool = False) -> str:
    return format_interval(values["net"], signed) if "net" in values else ""


def _em_rows(cells: list[Cell], minority: str) -> list[list[Any]]:
    """One row for the cells of a share, none if all of them are the oracle's."""
    found = list({cell["seed"]: cell["em"] for cell in cells if cell["em"]}.values())
    if not found:
        return []
    values = [[em["heldout_accuracy"][reward][minority] for em in found] for reward in ("mixture", "single")]
    values += [[em["heldout_ceiling"][minority] for em in found], [em["assignment_accuracy"] for em in found]]
    chosen = sum(em["selected_num_components"] == 2 for em in found)
    return [[len(found), *(f"{np.mean(row):.3f}" for row in values), f"{chosen} of {len(found)}"]]


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
    """Of one share the Pareto figure; of several the minority's win rate against its share."""
    from trl_maxmin.evaluation.plots import plot_pareto, plot_training

    blocks = summarise([cell for cell in cells if cell["trainer"] == cells[0]["trainer"]])
    groups, minority = cells[0]["groups"], cells[0]["minority"]
    if len(blocks) > 1:
        curves: dict[str, list] = {}
        bands: dict[str, list] = {}
        for block in blocks:
            for name, values in block["policies"].items():
                ends = _ends(values[minority])
                curves.setdefault(name, []).append([block["share"], ends["mean"]])
                bands.setdefault(name, []).append([block["share"], ends["low"], ends["high"]])
        title, ylabel = f"The minority ({minority}), mean and 95 % over seeds", "win rate against the reference"
        plot_training(curves, path, title, ylabel, "minority share of the annotators", bands)
        return
    policies = {
        name: {"by_group": {group: {"win_rate": _ends(values[group])} for group in groups}}
        for name, values in blocks[0]["policies"].items()
    }
    majority = next(group for group in groups if group != minority)
    plot_pareto({"groups": groups, "policies": policies}, path, majority, minority, "win_rate")


def _ends(value: dict[str, Any]) -> dict[str, float]:
    """What is drawn: no interval below three seeds."""
    return {end: value[end if value["n"] > 2 else "mean"] for end in ("mean", "low", "high")}


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
    return (
        f"{markdown(cells)}\n\nReplies of seed {seed} at share {share:.2f}, the first {count} test prompts:\n\n{shown}"
    )


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
    parser.add_argument("--cells", type=Path, required=True, nargs="+", help="Folders with cells of one grid.")
    parser.add_argument("--policies", nargs="+", help="Only these policies.")
    parser.add_argument("--against", type=Path, help="Recorded cells that the others must agree with.")
    parser.add_argument("--docs", type=Path, help="Document with the lines `<!-- NAME: begin -->` and `... end -->`.")
    parser.add_argument("--name", default="imdb-small", help="NAME of the block in the document.")
    parser.add_argument("--figure", type=Path, help="PNG file: Pareto figure, or the minority against shares.")
    arguments = parser.parse_args(argv)
    try:
        cells = read_cells(*arguments.cells, policies=arguments.policies)
        if arguments.docs:
            text = arguments.docs.read_text(encoding="utf-8")
            arguments.docs.write_text(replace_block(text, arguments.name, block_of(cells)), encoding="utf-8")
        if arguments.figure:
            figure(cells, arguments.figure)
        # After what was asked for is written: who reads the tables may stop reading.
        print(block_of(cells))
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
