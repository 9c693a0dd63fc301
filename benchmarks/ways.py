# SPDX-License-Identifier: Apache-2.0
"""Ways to serve the worst-off group on the embedded world, in one table: the same preferences, judged by gold.

    PYTHONPATH=. python benchmarks/ways.py --output docs/results/ways.json
    PYTHONPATH=. python benchmarks/ways.py --output docs/results/ways.json --ways dpo_em dpo_known --seeds 0

50 annotators, 10 of them in the minority, compare 120 pairs of the reference's replies each; the mixture (K = 2) and
the single reward are those of the demo. A way is a function from a `Learned` to a policy: add it to `WAYS`. Rows that
are in the file already are not made again. `seconds` are processor time of the policy alone, on one thread; what
learning the rewards took is `reward_seconds`, where a way needs them. The margin of a group is its win rate against
the reference less one half.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel

from benchmarks.world_experiments import Bench, copy_of, load, name_by_group, planted, save
from trl_maxmin.cli.demo_stages import DemoSettings, quiet, run_training
from trl_maxmin.models import AnnotatorPosterior
from trl_maxmin.trainer import MaxMinDPOConfig, MaxMinDPOTrainer, MixtureRewardTrainer


MAJORITY, MINORITY = 40, 10
#: Of DPO, for all its ways.
DPO = {
    "max_steps": 100,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "beta": 0.1,
    "disable_dropout": True,
}


class Learned:
    """Preferences of one seed, and what is learned from them when a way asks for it.

    Args:
        bench ([`Bench`]): world and reference.
        seed (`int`): of annotators, pairs and trainings.
    """

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.seed = bench, seed
        self.train, self.heldout = bench.preferences(planted(MAJORITY, MINORITY, seed), seed)
        self.reward_seconds: dict[str, float] = {}

    @cached_property
    def mixture(self) -> MixtureRewardTrainer:
        """K = 2, its components named after the groups that they stand for."""
        trainer = self._fit("mixture", 2)
        name_by_group(trainer, self.heldout)
        return trainer

    @cached_property
    def single(self) -> MixtureRewardTrainer:
        """K = 1."""
        return self._fit("single", 1)

    def _fit(self, name: str, components: int) -> MixtureRewardTrainer:
        start = time.process_time()
        trainer = self.bench.fit(self.train, self.heldout, components, self.seed)
        self.reward_seconds[name] = round(time.process_time() - start, 1)
        return trainer

    def posterior(self) -> dict[str, dict[str, float]]:
        """What EM says of the annotators: probabilities by component."""
        trainer = self.mixture
        told = AnnotatorPosterior(trainer.annotators.annotator_ids, trainer.em_state.log_responsibilities.exp().cpu())
        names = trainer.mixture.component_names
        return {
            str(annotator): dict(zip(names, row, strict=True))
            for annotator, row in zip(told.annotator_ids, told.probabilities.tolist(), strict=True)
        }


def reference(learned: Learned) -> GPT2LMHeadModel:
    """The policy as it was."""
    return learned.bench.reference


def single_ppo(learned: Learned) -> GPT2LMHeadModel:
    """PPO on the single reward."""
    return learned.bench.train(learned.single.mixture, learned.seed).policy_model


def maxmin_ppo(learned: Learned) -> GPT2LMHeadModel:
    """MaxMin-PPO on the mixture."""
    return learned.bench.train(learned.mixture.mixture, learned.seed).policy_model


def dpo_all(learned: Learned) -> GPT2LMHeadModel:
    """DPO on all pairs."""
    return _dpo(learned, group_column="group", welfare="mixing")


def dpo_known(learned: Learned) -> GPT2LMHeadModel:
    """Group-robust DPO, groups known."""
    return _dpo(learned, group_column="group")


def dpo_em(learned: Learned) -> GPT2LMHeadModel:
    """Group-robust DPO, groups of EM."""
    return _dpo(learned, learned.posterior())


def _dpo(learned: Learned, assignments: Any = None, **settings: Any) -> GPT2LMHeadModel:
    bench = learned.bench
    args = MaxMinDPOConfig(
        output_dir=str(bench.folder / "logs"), seed=learned.seed, disable_tqdm=True, **{**DPO, **quiet(), **settings}
    )
    pairs: Dataset = learned.train
    trainer = MaxMinDPOTrainer(
        copy_of(bench.reference),
        copy_of(bench.reference),
        args,
        pairs,
        processing_class=bench.world.tokenizer,
        assignments=assignments,
    )
    run_training(trainer, None)
    return trainer.model


#: Name -> the way, and which rewards it needs.
WAYS: dict[str, tuple[Callable[[Learned], GPT2LMHeadModel], tuple[str, ...]]] = {
    "reference": (reference, ()),
    "single_ppo": (single_ppo, ("single",)),
    "maxmin_ppo": (maxmin_ppo, ("mixture",)),
    "dpo_all": (dpo_all, ()),
    "dpo_em": (dpo_em, ("mixture",)),
    "dpo_known": (dpo_known, ()),
}


def measure(learned: Learned, name: str) -> dict[str, Any]:
    """One row: win rates by group, the worst margin, seconds."""
    way, rewards = WAYS[name]
    for reward in rewards:
        getattr(learned, reward)
    start = time.process_time()
    policy = way(learned).eval()
    seconds = time.process_time() - start
    rates = learned.bench.win_rates(policy, learned.seed)
    return {
        "way": name,
        "seed": learned.seed,
        "win_rate": rates,
        "worst_margin": round(min(rates.values()) - 0.5, 4),
        "seconds": round(seconds, 1),
        "reward_seconds": sum(learned.reward_seconds[reward] for reward in rewards),
    }


def main(argv: list[str] | None = None, settings: DemoSettings | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="JSON file; rows that are there are not made again.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--work_dir", type=Path, help="Keeps the reference policy.")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = settings or DemoSettings()
    rows, bench = load(arguments.output), None
    for seed in arguments.seeds:
        learned = None
        for name in arguments.ways:
            if any((row["way"], row["seed"]) == (name, seed) for row in rows):
                continue
            bench = bench or Bench.make(settings, arguments.work_dir)
            learned = learned or Learned(bench, seed)
            rows.append(measure(learned, name))
            print(rows[-1], flush=True)
            save(arguments.output, {"settings": vars(settings), "dpo": DPO, "rows": rows})


if __name__ == "__main__":
    main()
