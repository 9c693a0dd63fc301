# SPDX-License-Identifier: Apache-2.0
"""How much of the minority's wish a mixture learns, by the blocks that it reads, its pooling, and what is trained.

python examples/imdb/probe_rewards.py --config examples/recipes/imdb/small.yaml --seeds 0 --output_dir imdb-probe

Held-out pairs are about the reference's long replies; a policy that pleases the majority writes short ones. So the
rewards are also asked about short replies, beginnings of other replies, and compared with the gold utilities.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from imdb_gold import GROUPS
from imdb_grid import SeedRun, make_reference, write_json
from imdb_options import GridArguments, option
from imdb_policy import Replies
from imdb_report import heldout_accuracy, match_names
from imdb_stages import collect_preferences, fit_reward
from report_grid import replace_block
from rich.console import Console
from train_imdb import be_quiet
from trl import TrlParser


# Is the trunk trained, what do the heads read of a text's tokens, how many of the policy's blocks are below them.
KINDS = (
    *((False, "mean", blocks) for blocks in (None, 3, 2, 1, 0)),
    (False, "mean_sqrt_len", 0),
    (True, "mean", 0),
    (True, "mean_sqrt_len", 0),
)
KIND_NAMES = ("train_trunk", "pooling", "reward_layers")
PROMPTS, SHORT_REPLIES = 60, 100


@dataclass
class ProbeArguments(GridArguments):
    """The grid's options; the first seed and share count."""

    docs: str | None = option(None, "Document with the lines `<!-- imdb-probe: begin -->` and `... end -->`.")


def short_replies(replies: Replies, count: int, rng: np.random.Generator) -> list[str]:
    """The first two to eight words of replies, all distinct."""
    found: dict[str, None] = {}
    for row in rng.permutation(len(replies.texts)):
        words = replies.texts[row].split()[: rng.integers(2, 9)]
        found[" " + " ".join(words).rstrip(".,!?") + "."] = None
        if len(found) == count:
            break
    return list(found)


def correlation_within(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of `(prompts, replies)` after each prompt's mean is taken off."""
    centred = [values - values.mean(axis=1, keepdims=True) for values in (first, second)]
    return float(np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1])


def probe(run: SeedRun, share: float, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for every kind of reward; those that are there are not made again."""
    there = {tuple(row[name] for name in KIND_NAMES) for row in rows}
    arguments, (reference, tokenizer) = run.arguments, run.loaded
    arguments.minority_share = share
    data = collect_preferences(
        arguments, run.gold, run.asked, np.random.default_rng([arguments.seed, round(1000 * share)])
    )
    asked = run.train_prompts[:PROMPTS]
    texts = short_replies(run.asked.replies, SHORT_REPLIES, np.random.default_rng([arguments.seed, 1]))
    prompts, completions = [p for p in asked for _ in texts], texts * len(asked)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in completions]
    replies = Replies(completions, lengths, [True] * len(completions))
    gold = {group: run.gold(group, prompts, replies).reshape(len(asked), -1) for group in GROUPS}
    rows = list(rows)
    for kind in (kind for kind in KINDS if kind not in there):
        arguments.train_trunk, arguments.pooling, arguments.reward_layers = kind
        trainer = fit_reward(arguments, reference, tokenizer, data, 2, run.console)
        match_names(trainer, data)
        names = trainer.mixture.component_names
        rewards = trainer.mixture.score(prompts, completions, processing_class=tokenizer).cpu().numpy()
        short = {g: rewards[:, names.index(g)].reshape(len(asked), -1) for g in GROUPS if g in names}
        rows.append(
            {
                **dict(zip(KIND_NAMES, kind, strict=True)),
                "heldout_accuracy": heldout_accuracy(trainer),
                "short_replies": {g: round(correlation_within(short[g], gold[g]), 4) for g in short},
            }
        )
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    heads = ["trunk", "pooling", "blocks"]
    heads += [f"{g}: {what}" for g in GROUPS for what in ("held-out accuracy", "short replies")]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        blocks = "all" if row["reward_layers"] is None else row["reward_layers"]
        cells = ["trained" if row["train_trunk"] else "frozen", row["pooling"], str(blocks)]
        for group in GROUPS:
            cells += [f"{row['heldout_accuracy'][group]:.3f}", f"{row['short_replies'].get(group, float('nan')):.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options (TRL's parser: `--config FILE.yaml` works too), probe the first seed and share."""
    be_quiet()
    (arguments,) = TrlParser((ProbeArguments,)).parse_args_and_config(list(sys.argv[1:] if argv is None else argv))
    arguments.seed, share, console = arguments.seeds[0], arguments.shares[0], Console(width=120)
    make_reference(arguments, console)
    path = Path(arguments.output_dir) / "probe.json"
    settings = {name: value for name, value in arguments.settings().items() if name not in KIND_NAMES}
    about = {"seed": arguments.seed, "minority_share": share, "settings": settings}
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    there = before["rows"] if before and all(before[name] == value for name, value in about.items()) else []
    rows = probe(SeedRun(arguments, console), share, there)
    write_json(path, {**about, "rows": rows})
    print(table(rows))
    if arguments.docs:
        document = Path(arguments.docs)
        text = document.read_text(encoding="utf-8")
        document.write_text(replace_block(text, "imdb-probe", table(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
