# SPDX-License-Identifier: Apache-2.0
"""What each choice of the method is worth, on the embedded world; one JSON file an ablation.

    PYTHONPATH=. python benchmarks/ablations.py em --output docs/results/ablation_em.json
    PYTHONPATH=. python benchmarks/ablations.py trunk --output docs/results/ablation_trunk.json
    PYTHONPATH=. python benchmarks/ablations.py components --output docs/results/ablation_components.json
    PYTHONPATH=. python benchmarks/ablations.py policy --output docs/results/ablation_policy.json

em          soft against hard assignment, annealed or not, with and without the short starts
trunk       one trunk with K heads, trained or frozen, against K models, at minority shares 0.01 to 0.2; the groups are
            known, so that only what the components share differs
components  K = 1, 2, 3, 5 where two groups were planted: rewards, and the policy trained on them
policy      on one mixture: standardised against raw utilities, the minimum of means against the mean of minima, a
            critic of K outputs against one of the worst group's reward alone

Rows that are there are not made again. All seeds share the reference policy; annotators, replies, EM, PPO and the test
prompts are drawn anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.world_experiments import Bench, heldout_accuracy, load, name_by_group, planted, save
from trl_maxmin.cli.demo_stages import DemoSettings
from trl_maxmin.trainer import MaxMinPPOTrainer
from trl_maxmin.trainer.scoring.batch import RewardBatch, RewardSource
from trl_maxmin.trainer.scoring.reference_statistics import ReferenceStatistics, prompt_key
from trl_maxmin.trainer.scoring.sources import build_reward_source


Row = dict[str, Any]
EM_VARIANTS = {
    "soft, annealed, starts": {},
    "hard, starts": {"em": "hard"},
    "soft, annealed, no starts": {"n_init": 0},
    "soft, not annealed, no starts": {"n_init": 0, "annealing_start": 1.0},
    "hard, no starts": {"n_init": 0, "em": "hard"},
}
TRUNKS = {
    "head": {},
    "full": {"component_type": "full"},
    "frozen": {"train_trunk": False, "pooling": "mean", "kernel_features": 0},
}
SHARES = {"0.01": (99, 1), "0.05": (95, 5), "0.10": (90, 10), "0.20": (80, 20)}
COMPONENTS = ("1", "2", "3", "5")
POLICY_VARIANTS = (
    "zscore",
    "raw",
    "raw, minority x 3",
    "raw, majority x 3",
    "zscore, majority x 3",
    "sample_min",
    "scalar critic",
)


def em(bench: Bench, seed: int, missing: list[str]) -> Iterator[Row]:
    """How EM assigns: the trunk is trained."""
    train, heldout = bench.preferences(planted(40, 10, seed), seed)
    for variant in missing:
        trainer = bench.fit(train, heldout, 2, seed, **EM_VARIANTS[variant])
        yield {
            "variant": variant,
            "assigned_as_planted": name_by_group(trainer, heldout),
            "heldout_accuracy": heldout_accuracy(trainer),
        }


def trunk(bench: Bench, seed: int, missing: list[str]) -> Iterator[Row]:
    """One trunk or several, with known groups."""
    for share in dict.fromkeys(variant.split(", ")[0] for variant in missing):
        train, heldout = bench.preferences(planted(*SHARES[share], seed), seed)
        for kind, options in TRUNKS.items():
            if f"{share}, {kind}" in missing:
                trainer = bench.fit(train, heldout, 2, seed, group_column="group", **options)
                yield {"variant": f"{share}, {kind}", "heldout_accuracy": heldout_accuracy(trainer)}


def components(bench: Bench, seed: int, missing: list[str]) -> Iterator[Row]:
    """Another number of components than of groups."""
    train, heldout = bench.preferences(planted(40, 10, seed), seed)
    for variant in missing:
        trainer = bench.fit(train, heldout, int(variant), seed)
        sizes = trainer.em_state.log_responsibilities.exp().mean(0)
        yield {
            "variant": variant,
            "assigned_as_planted": name_by_group(trainer, heldout),
            "heldout_accuracy": heldout_accuracy(trainer),
            "heldout_log_likelihood": round(trainer.heldout_log_likelihood().mean().item(), 4),
            "component_sizes": [round(size, 3) for size in sizes.tolist()],
            "win_rate": bench.win_rates(bench.train(trainer.mixture, seed).policy_model, seed),
        }


class WorstGroup(RewardSource):
    """The utility of whichever group is worst off in the rollout, as one reward: a scalar critic has to follow it."""

    names = ["worst"]

    def __init__(self, source: RewardSource, statistics: ReferenceStatistics) -> None:
        self.source, self.statistics = source, statistics
        self.worst: list[int] = []

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        keys = [prompt_key(ids) for ids in batch.prompt_ids]
        utilities = self.statistics.utilities(self.source(batch), keys)
        self.worst.append(int(utilities.mean(0).argmin()))
        return utilities[:, [self.worst[-1]]]


def policy(bench: Bench, seed: int, missing: list[str]) -> Iterator[Row]:
    """The policy's objective and its critic, on one mixture."""
    train, heldout = bench.preferences(planted(40, 10, seed), seed)
    rewards = bench.fit(train, heldout, 2, seed)
    name_by_group(rewards, heldout)
    mixture, names = rewards.mixture, rewards.mixture.component_names
    statistics = None
    for variant in missing:
        scale = torch.ones(2)
        if " x 3" in variant:
            scale[names.index("positive" if "minority" in variant else "concise")] = 3.0
        mixture.scale_heads((1 / scale).tolist())
        if variant == "scalar critic":
            statistics = statistics or bench.train(mixture, seed, max_steps=1).reference_statistics
            reward = WorstGroup(build_reward_source(mixture, bench.world.tokenizer), statistics)
            trainer = bench.train(reward, seed, utility="raw")
            worst = [names[k] for k in reward.worst]
        else:
            utility = "raw" if variant.startswith("raw") else "zscore"
            welfare = "sample_min" if variant == "sample_min" else "maxmin"
            trainer = bench.train(mixture, seed, utility=utility, welfare=welfare)
            worst = _worst(trainer, names)
            if variant == "zscore":
                statistics = trainer.reference_statistics
        mixture.scale_heads(scale.tolist())
        yield {
            "variant": variant,
            "heldout_accuracy": heldout_accuracy(rewards),
            "win_rate": bench.win_rates(trainer.policy_model, seed),
            "switches": sum(a != b for a, b in zip(worst, worst[1:], strict=False)),
            "explained_variance": _mean_of_log(trainer, "val/explained_variance"),
            "kl": _mean_of_log(trainer, "objective/kl"),
        }


def _worst(trainer: MaxMinPPOTrainer, names: list[str]) -> list[str]:
    entries = [entry for entry in trainer.state.log_history if f"maxmin/utility/{names[0]}" in entry]
    return [min(names, key=lambda name: entry[f"maxmin/utility/{name}"]) for entry in entries]


def _mean_of_log(trainer: MaxMinPPOTrainer, name: str) -> float:
    """Over the last half of the rollouts."""
    values = [float(entry[name]) for entry in trainer.state.log_history if name in entry]
    return round(float(np.mean(values[len(values) // 2 :])), 4)


ABLATIONS: dict[str, tuple[Callable[..., Iterator[Row]], list[str]]] = {
    "em": (em, list(EM_VARIANTS)),
    "trunk": (trunk, [f"{share}, {kind}" for share in SHARES for kind in TRUNKS]),
    "components": (components, list(COMPONENTS)),
    "policy": (policy, list(POLICY_VARIANTS)),
}


def main(argv: list[str] | None = None, settings: DemoSettings | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation", choices=list(ABLATIONS))
    parser.add_argument("--output", required=True, help="JSON file; rows that are there are not made again.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", help="Only these.")
    parser.add_argument("--work_dir", type=Path, help="Keeps the reference policy.")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = settings or DemoSettings()
    run, variants = ABLATIONS[arguments.ablation]
    unknown = set(arguments.variants or []) - set(variants)
    if unknown:
        parser.error(f"--variants has {sorted(unknown)}, which {arguments.ablation} does not know: {variants}")
    rows, bench = load(arguments.output), None
    for seed in arguments.seeds:
        done = {row["variant"] for row in rows if row["seed"] == seed}
        missing = [v for v in arguments.variants or variants if v not in done]
        if not missing:
            continue
        bench = bench or Bench.make(settings, arguments.work_dir)
        start = time.process_time()
        for row in run(bench, seed, missing):
            seconds = time.process_time() - start
            rows.append({"seed": seed, **row, "cpu_seconds": round(seconds, 1)})
            print(rows[-1], flush=True)
            rows.sort(key=lambda row: (row["seed"], variants.index(row["variant"])))
            save(arguments.output, {"ablation": arguments.ablation, "settings": vars(settings), "rows": rows})
            start = time.process_time()


if __name__ == "__main__":
    main()
