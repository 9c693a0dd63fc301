# SPDX-License-Identifier: Apache-2.0
"""What each lever of the grid's settings does on one seed: cells with different settings in one table.

python examples/imdb/report_levers.py --cells examples/imdb/results/levers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


LEVERS = {
    "max_new_tokens": "limit",
    "preference_prompts": "preference prompts",
    "reward_layers": "blocks of the reward",
    "prior_scale": "prior",
    "utility": "utility",
    "kl_coef": "KL price",
    "policy_learning_rate": "rate",
    "policy_steps": "rollouts",
}
POLICIES = ("single", "maxmin", "oracle")
# What cells did that are older than the option.
BEFORE_THE_CHOICE = {"utility": "zscore", "reward_layers": None}


def table(cells: list[dict[str, Any]]) -> str:
    """One line for each combination of settings; win rates `majority / minority` by policy.

    Args:
        cells (`list[dict]`): of one seed, as run_grid.py writes them.

    Returns:
        `str`: Markdown.
    """
    rows: dict[tuple, dict[str, str]] = {}
    for cell in cells:
        settings = {**BEFORE_THE_CHOICE, **cell["settings"]}
        rates = " / ".join(f"{cell['win_rate'][group]['mean']:.3f}" for group in cell["groups"])
        row = rows.setdefault(tuple(settings[name] for name in LEVERS), {})
        row[cell["policy"]] = rates
        if cell["policy"] == "maxmin":
            row["accuracy"] = f"{cell['em']['heldout_accuracy']['mixture'][cell['minority']]:.3f}"
    head = [*LEVERS.values(), "reward right on the minority", *POLICIES]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for key in sorted(rows, key=str):
        shown = ["all" if value is None else str(value) for value in key] + [
            rows[key].get(name, "") for name in ("accuracy", *POLICIES)
        ]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True, help="Folder with cells.")
    folder = parser.parse_args().cells
    print(table([json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]))


if __name__ == "__main__":
    main()
