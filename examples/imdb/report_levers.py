# SPDX-License-Identifier: Apache-2.0
"""What each lever of the grid's settings does on one seed: cells with different settings in one table.

python examples/imdb/report_levers.py --cells examples/imdb/results/levers --docs docs/reproduction.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report_grid import replace_block


LEVERS = ("limit", "prompts", "pairs", "reward reads", "prior", "utility", "KL price", "rate", "epochs", "rollouts")
POLICIES = ("single", "maxmin", "oracle")
# What cells did that are older than the option.
BEFORE_THE_CHOICE = {"utility": "zscore", "reward_layers": None}


def levers(settings: dict[str, Any]) -> tuple[str, ...]:
    """What a cell's settings say of the levers."""
    settings = {**BEFORE_THE_CHOICE, **settings}
    blocks = "all" if settings["reward_layers"] is None else settings["reward_layers"]
    trained = ", trained" if settings["train_trunk"] else ""
    names = ("prior_scale", "utility", "kl_coef", "policy_learning_rate", "ppo_epochs", "policy_steps")
    return (
        *(str(settings[name]) for name in ("max_new_tokens", "preference_prompts", "pairs")),
        f"{blocks} blocks, {settings['pooling']}{trained}",
        *(str(settings[name]) for name in names),
    )


def table(cells: list[dict[str, Any]]) -> str:
    """One line for each combination of settings; win rates `majority / minority` by policy.

    Args:
        cells (`list[dict]`): of one seed, as run_grid.py writes them.

    Returns:
        `str`: Markdown.
    """
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for cell in cells:
        rates = " / ".join(f"{cell['win_rate'][group]['mean']:.3f}" for group in cell["groups"])
        row = rows.setdefault(levers(cell["settings"]), {})
        row[cell["policy"]] = rates
        if cell["policy"] == "maxmin":
            row["accuracy"] = f"{cell['em']['heldout_accuracy']['mixture'][cell['minority']]:.3f}"
    head = [*LEVERS, "reward right on the minority", *POLICIES]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for key in sorted(rows):
        shown = [*key, *(rows[key].get(name, "") for name in ("accuracy", *POLICIES))]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True, help="Folder with cells.")
    parser.add_argument("--docs", type=Path, help="Document with the lines `<!-- imdb-levers: begin -->` and `end`.")
    arguments = parser.parse_args(argv)
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.cells.glob("*.json"))]
    if not cells:
        sys.exit(f"report_levers.py: there are no cells (*.json) in {arguments.cells}.")
    content = table(cells)
    print(content)
    if arguments.docs:
        text = arguments.docs.read_text(encoding="utf-8")
        arguments.docs.write_text(replace_block(text, "imdb-levers", content), encoding="utf-8")


if __name__ == "__main__":
    main()
