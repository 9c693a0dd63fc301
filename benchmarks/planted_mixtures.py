# SPDX-License-Identifier: Apache-2.0
"""Are planted groups found, and is their number?

    python benchmarks/planted_mixtures.py --output docs/results/planted_trained.json  # defaults: the trunk is trained
    python benchmarks/planted_mixtures.py --train_trunk false --pooling mean --output docs/results/planted_frozen.json

For each K and seed: the adjusted Rand index of the assignments, that of the posterior under the true components (more
is not possible), and the K that `num_components="auto"` chooses; `--output` keeps the rows and prints their table. Run
from the repository's root with PYTHONPATH=.
"""

import argparse
import json
import tempfile
import time

import numpy as np
import torch

from benchmarks.planted import base_model, plant, tokenizer
from benchmarks.world_experiments import save
from trl_maxmin.evaluation import adjusted_rand_index
from trl_maxmin.trainer import MixtureRewardConfig, MixtureRewardTrainer


def run(num_components, seed, automatic, arguments):
    planted = plant(num_components, seed)
    with tempfile.TemporaryDirectory() as folder:
        args = MixtureRewardConfig(
            output_dir=folder, num_components="auto" if automatic else num_components, seed=seed, use_cpu=True,
            bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no",
            train_trunk=arguments.train_trunk == "true", pooling=arguments.pooling,
        )  # fmt: skip
        trainer = MixtureRewardTrainer(
            base_model(seed=seed), args, train_dataset=planted.dataset, processing_class=tokenizer()
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        found = trainer.assignments()
    order = dict.fromkeys(planted.dataset["annotator_id"])
    ari = adjusted_rand_index([found[a] for a in order], planted.groups)
    result = {"planted": num_components, "seed": seed, "ari": round(ari, 4), "true_ari": round(planted.true_ari(), 4)}
    result |= {"chosen": trainer.mixture.num_components, "seconds": round(seconds, 1)}
    if trainer.selection is not None:
        result["verdict"] = trainer.selection.verdict()
    return result


def table(rows):
    """One line for each planted K: means over seeds."""
    lines = [
        "| planted K | seeds | adjusted Rand index | under the true components | lower by, mean (worst) | K chosen |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for k in sorted({row["planted"] for row in rows}):
        mine = [row for row in rows if row["planted"] == k]
        gaps = [row["true_ari"] - row["ari"] for row in mine]
        ari, best = (np.mean([row[name] for row in mine]) for name in ("ari", "true_ari"))
        chosen = f"{sum(row['chosen'] == k for row in mine)} of {len(mine)} times {k}"
        gap = f"{np.mean(gaps):.3f} ({max(gaps):.3f})"
        lines.append(f"| {k} | {len(mine)} | {ari:.3f} | {best:.3f} | {gap} | {chosen} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--num_components", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--train_trunk", default="true", choices=["true", "false"])
    parser.add_argument("--pooling", default="auto", choices=["auto", "mean"])
    parser.add_argument("--output", help="JSON file for the rows.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for k in arguments.num_components:
        for seed in arguments.seeds:
            rows.append(run(k, seed, True, arguments))
            print(json.dumps(rows[-1]), flush=True)
            if arguments.output:
                save(arguments.output, {"settings": vars(arguments), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
