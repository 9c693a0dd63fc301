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


JUDGED = {"heldout": "held-out pairs", "unseen_votes": "new votes", "unseen_statements": "new statements"}


def rows(report: dict) -> list[str]:
    """One line per K: accuracy and log-likelihood by what is judged, agreement with the groups, how often chosen."""
    seeds = list(report["seeds"].values())
    lines = []
    for k in seeds[0]["heldout"]:
        cells = [k]
        for name in JUDGED:
            cells += [mean([s[name][k][of] for s in seeds]) for of in ("accuracy", "log_likelihood")]
        ari = [s["heldout"][k]["ari_with_group"] for s in seeds if "ari_with_group" in s["heldout"][k]]
        cells += [mean(ari, 2) if ari and k != "1" else "", f"{sum(s['num_components'] == int(k) for s in seeds)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def gains(report: dict) -> str:
    """What more than one component gains over one, nats a new vote, paired by seed."""
    seeds = list(report["seeds"].values())
    values = {
        k: [s["unseen_votes"][k]["log_likelihood"] - s["unseen_votes"]["1"]["log_likelihood"] for s in seeds]
        for k in seeds[0]["heldout"]
        if k != "1"
    }
    return ", ".join(f"K = {k} {statistics.mean(v):+.3f} ± {statistics.stdev(v):.3f}" for k, v in values.items())


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
        seeds = list(report["seeds"].values())
        heads = [f"{title}: {of}" for title in JUDGED.values() for of in ("accuracy", "log-likelihood")]
        familiar = mean([s["familiar_heldout_pairs"] for s in seeds], 2)
        kernel = sum(s["heads"] == "kernel" for s in seeds)
        print(
            f"\n**{report['data']}**, {report['num_pairs']:,} pairs ([{Path(path).name}](results/{Path(path).name}))\n"
        )
        print(f"| K | {' | '.join(heads)} | ARI with the set's groups | chosen, of {len(seeds)} |")
        print("|---" * (len(heads) + 3) + "|")
        print("\n".join(rows(report)))
        print(f"\nAgainst K = 1, nats a new vote: {gains(report)}. Share of held-out pairs of which the same person's")
        print(
            f"training pairs hold both texts: {familiar}. Kernel features: {kernel} of {len(seeds)} seeds. New people,"
        )
        print(f"accuracy after so many of their pairs: {', '.join(curve(report))}.")


if __name__ == "__main__":
    main()
