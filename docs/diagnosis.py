# SPDX-License-Identifier: Apache-2.0
"""What `diagnose` says where the truth is known: `python docs/diagnosis.py` writes `results/diagnose.json` and
`diagnosis.png`.

Worlds of 50 annotators who give 60 pairs each; the minority has 0 (one group only), 10, 20 or 30 % of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from datasets import Dataset

from trl_maxmin.data.world import FilmReviewWorld
from trl_maxmin.evaluation import diagnose, plot_diagnosis


HERE = Path(__file__).resolve().parent


def preferences(seed: int, share: float) -> Dataset:
    """Preferences of a planted world."""
    world = FilmReviewWorld(seed=seed)
    prompts = world.sample_prompts(200, seed=seed)
    replies = list(zip(*(world.sample_reviews(prompts, seed=10 * seed + i) for i in range(3)), strict=True))
    planted = world.annotators(50, share, seed=seed)
    return world.collect_preferences(prompts, replies, planted, 60, seed=seed)


def main() -> None:
    """Diagnose every world, and draw the first with 20 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3])
    arguments = parser.parse_args()
    rows, drawn = [], False
    for share in arguments.shares:
        for seed in arguments.seeds:
            started = time.process_time()
            data = preferences(seed, share)
            found = diagnose(data)
            rows.append(
                {
                    "share": share,
                    "seed": seed,
                    "num_groups": found.num_groups,
                    "shares": [round(found.by_group[name]["share"], 4) for name in found.by_group],
                    "gaps": [round(found.by_group[name]["gap"]["mean"], 3) for name in found.by_group],
                    "cpu_seconds": round(time.process_time() - started, 1),
                }
            )
            print(rows[-1], flush=True)
            if share == 0.2 and not drawn:
                drawn = bool(plot_diagnosis(found.to_dict(), HERE / "diagnosis.png"))
    path = HERE / "results" / "diagnose.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
