# SPDX-License-Identifier: Apache-2.0
"""What one reward for everybody costs the minority, by the ratio of majority to minority (the paper's accuracy table).

    PYTHONPATH=. python benchmarks/imbalance.py --output docs/results/imbalance.json

On the embedded world: 42 annotators (44 for 10:1), each compares 120 pairs of the reference's replies; EM with K = 2
and the single reward get the same pairs and the same features (heads on the frozen trunk, mean pooled). Accuracy on 40
further pairs of each annotator, about other prompts. All seeds share the reference policy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.world_experiments import Bench, heldout_accuracy, load, name_by_group, planted, save
from trl_maxmin.cli.demo_stages import DemoSettings


RATIOS = {"1:1": (21, 21), "2:1": (28, 14), "6:1": (36, 6), "10:1": (40, 4)}


def measure(bench: Bench, ratio: str, seed: int) -> dict:
    """One row: accuracies of the mixture and of the single reward by group."""
    train, heldout = bench.preferences(planted(*RATIOS[ratio], seed), seed)
    frozen = {"train_trunk": False, "pooling": "mean", "kernel_features": 0}
    mixture = bench.fit(train, heldout, 2, seed, **frozen)
    single = bench.fit(train, heldout, 1, seed, encoded=mixture, **frozen)
    return {
        "ratio": ratio,
        "seed": seed,
        "assigned_as_planted": name_by_group(mixture, heldout),
        "mixture": heldout_accuracy(mixture),
        "single": heldout_accuracy(single),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="JSON file; rows that are there are not made again.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--ratios", nargs="+", default=list(RATIOS), choices=list(RATIOS))
    parser.add_argument("--pretrain_steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--work_dir", type=Path, help="Keeps the reference policy.")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = DemoSettings(pretrain_steps=arguments.pretrain_steps, num_preference_prompts=arguments.prompts)
    rows = load(arguments.output)
    bench = None
    for seed in arguments.seeds:
        for ratio in arguments.ratios:
            if any((row["ratio"], row["seed"]) == (ratio, seed) for row in rows):
                continue
            bench = bench or Bench.make(settings, arguments.work_dir)
            rows.append(measure(bench, ratio, seed))
            print(rows[-1], flush=True)
            save(arguments.output, {"settings": vars(settings), "rows": rows})


if __name__ == "__main__":
    main()
