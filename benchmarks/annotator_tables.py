# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/reproduction.md from the files that `annotator_sets.py` wrote.

python benchmarks/annotator_tables.py docs/results/annotators_*.json
"""

import json
import statistics
import sys
from pathlib import Path


def mean(values: list[float], digits: int = 3) -> str:
    """Mean over seeds and its standard deviation, as text."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def rows(report: dict) -> list[str]:
    """One line per K: accuracy and log-likelihood on held-out pairs of known people, then on statements never seen."""
    seeds = list(report["seeds"].values())
    lines = []
    for k in seeds[0]["heldout"]:
        held = [s["heldout"][k] for s in seeds]
        new = [s["unseen_statements"][k] for s in seeds]
        ari = [h["ari_with_group"] for h in held if "ari_with_group" in h]
        chosen = sum(s["num_components"] == int(k) for s in seeds)
        cells = [
            k, mean([h["accuracy"] for h in held]), mean([h["log_likelihood"] for h in held]),
            mean(ari, 2) if ari and k != "1" else "", mean([n["accuracy"] for n in new]), f"{chosen} of {len(seeds)}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def curve(report: dict) -> list[str]:
    """Accuracy on people never seen in training after so many of their pairs."""
    seeds = list(report["seeds"].values())
    seen = [point["pairs_seen"] for point in seeds[0]["unseen_annotators"]]
    values = [[s["unseen_annotators"][i]["accuracy"] for s in seeds] for i in range(len(seen))]
    return [f"{n}: {statistics.mean(v):.3f}" for n, v in zip(seen, values, strict=True)]


def main() -> None:
    """Print one table per file."""
    for path in sys.argv[1:]:
        report = json.loads(Path(path).read_text())
        automatic = [s["chosen"] for s in report["seeds"].values()]
        print(
            f"\n**{report['data']}**, {report['num_pairs']:,} pairs ([{Path(path).name}](results/{Path(path).name}))\n"
        )
        print("| K | accuracy | log-likelihood | ARI with the set's groups | accuracy, both statements new | chosen |")
        print("|---|---|---|---|---|---|")
        print("\n".join(rows(report)))
        accuracy, likelihood = (mean([a[name] for a in automatic]) for name in ("accuracy", "log_likelihood"))
        print(
            f"\nAutomatic K: accuracy {accuracy}, log-likelihood {likelihood}. New people, accuracy after so many of"
        )
        print(f"their pairs: {', '.join(curve(report))}.")


if __name__ == "__main__":
    main()
