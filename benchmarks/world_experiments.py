# SPDX-License-Identifier: Apache-2.0
"""What imbalance.py and ablations.py share: the embedded world, its annotators, rewards, policies, intervals."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import GPT2LMHeadModel

from trl_maxmin.cli.demo_stages import (
    DemoSettings,
    policy_trainer,
    quiet,
    run_training,
    sample_replies,
)
from trl_maxmin.data.world import FilmReviewWorld
from trl_maxmin.evaluation import Replies, assignment_accuracy, match_components, win_rate
from trl_maxmin.trainer import MaxMinPPOTrainer, MixtureRewardConfig, MixtureRewardTrainer
from trl_maxmin.trainer.reward.heads import rename_components


@dataclass(frozen=True, eq=False)
class Bench:
    """The world with its reference policy, which all seeds share, and replies to compare.

    Args:
        world ([`FilmReviewWorld`]): with the groups `concise` (majority) and `positive`.
        reference (`GPT2LMHeadModel`): pretrained from seed 0.
        settings ([`DemoSettings`]): sizes.
        folder (`Path`): where trainers write.
    """

    world: FilmReviewWorld
    reference: GPT2LMHeadModel
    settings: DemoSettings
    folder: Path

    @classmethod
    def make(cls, settings: DemoSettings, folder: Path | None = None) -> Bench:
        """Pretrain the reference, or read it from the folder."""
        silence()
        folder = Path(tempfile.mkdtemp()) if folder is None else folder
        world = FilmReviewWorld(seed=0)
        kept = folder / f"reference_{settings.pretrain_steps}"
        if not (kept / "config.json").is_file():
            world.pretrain(steps=settings.pretrain_steps, seed=0).save_pretrained(kept)
        return cls(world, GPT2LMHeadModel.from_pretrained(kept).eval(), settings, folder)

    def preferences(self, planted: Sequence[str], seed: int) -> tuple[Dataset, Dataset]:
        """Pairs to learn from, and held-out pairs of the same annotators about other prompts."""
        world, settings = self.world, self.settings
        prompts, texts, ended = self._replies(seed)
        border = len(prompts) * 4 // 5
        return tuple(
            world.collect_preferences(prompts[part], texts[part], planted, count, seed=seed, finished=ended[part])
            for part, count in (
                (slice(0, border), settings.pairs_to_learn),
                (slice(border, None), settings.pairs_held_out),
            )
        )

    @cache  # noqa: B019 - a bench lives as long as the process
    def _replies(self, seed: int) -> tuple[list[str], list[tuple[str, ...]], list[tuple[bool, ...]]]:
        """Prompts, and for each the texts of its replies and whether they ended."""
        world, settings = self.world, self.settings
        prompts = world.sample_prompts(settings.num_preference_prompts, seed=seed)
        replies = [
            sample_replies(world, self.reference, prompts, seed, "preferences", i)
            for i in range(settings.replies_per_prompt)
        ]
        texts = list(zip(*(reply.completions for reply in replies), strict=True))
        return prompts, texts, list(zip(*(reply.finished for reply in replies), strict=True))

    def fit(
        self, train: Dataset, heldout: Dataset, num_components: int, seed: int, encoded=None, **overrides: Any
    ) -> MixtureRewardTrainer:
        """A trained reward trainer; EM sees annotator ids, never groups (but see `group_column`)."""
        options: dict[str, Any] = {
            "max_steps": self.settings.reward_steps,
            "per_device_train_batch_size": 64,
            "per_device_eval_batch_size": 256,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "center_rewards_coefficient": 0.001,
            "max_length": None,
            "disable_tqdm": True,
        }
        args = MixtureRewardConfig(
            output_dir=str(self.folder / "logs"),
            num_components=num_components,
            seed=seed,
            **{**options, **quiet(), **overrides},
        )
        columns = [] if args.group_column else ["group"]
        trainer = MixtureRewardTrainer(
            copy_of(self.reference),
            args,
            train_dataset=train.remove_columns(columns),
            eval_dataset=heldout,
            processing_class=self.world.tokenizer,
        )
        if encoded is not None:
            trainer.share_features(encoded)
        run_training(trainer, None)
        return trainer

    def train(self, reward: Any, seed: int, **overrides: Any) -> MaxMinPPOTrainer:
        """MaxMin-PPO with the demo's settings, trained."""
        options = {"disable_tqdm": True, "oscillation": "ignore", "logging_steps": 1, **overrides}
        logs = self.folder / "logs"
        trainer = policy_trainer(self.world, self.reference, reward, seed, logs, self.settings, **options)
        run_training(trainer, None)
        return trainer

    def win_rates(self, policy: GPT2LMHeadModel, seed: int) -> dict[str, float]:
        """Share of held-out prompts on which each group prefers the policy's reply to the reference's, by gold."""
        world = self.world
        prompts = world.sample_prompts(self.settings.num_eval_prompts, seed=seed, split="eval")
        # Two draws: at the same numbers an unchanged policy would tie with itself.
        now = sample_replies(world, policy, prompts, seed, "evaluation", "policy")
        then = sample_replies(world, self.reference, prompts, seed, "evaluation", "reference")
        gold = {group: [_gold(world, group, replies) for replies in (now, then)] for group in world.groups}
        return {group: round(win_rate(*pair, clusters=prompts).mean, 4) for group, pair in gold.items()}


def _gold(world: FilmReviewWorld, group: str, replies: Replies) -> np.ndarray:
    return world.gold_utility(group, replies.completions, replies.finished)


def copy_of(policy: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The same weights in another model: trainers change what they are given."""
    fresh = GPT2LMHeadModel(policy.config)
    fresh.load_state_dict(policy.state_dict())
    return fresh


def planted(majority: int, minority: int, seed: int) -> list[str]:
    """Groups of so many annotators, in random order."""
    names = ["concise"] * majority + ["positive"] * minority
    return np.random.default_rng([seed, majority, minority]).permutation(names).tolist()


def name_by_group(trainer: MixtureRewardTrainer, heldout: Dataset) -> float:
    """Name the components after the groups they stand for; the share of annotators assigned as planted."""
    group_of = dict(zip(heldout["annotator_id"], heldout["group"], strict=True))
    groups = [group_of[annotator] for annotator in trainer.annotators.annotator_ids]
    found = trainer.em_state.log_responsibilities.argmax(-1).tolist()
    matched = match_components(found, groups)
    rename_components(
        trainer.mixture, [matched.get(k, f"component_{k}") for k in range(trainer.mixture.num_components)]
    )
    return round(assignment_accuracy(found, groups), 4)


def heldout_accuracy(trainer: MixtureRewardTrainer) -> dict[str, float]:
    """Accuracy on held-out pairs of the annotators of each group, who were assigned by their other pairs."""
    right = (trainer.heldout_log_likelihood().exp() > 0.5).double()
    groups = np.asarray(trainer.eval_dataset["group"])
    return {g: round(right[torch.from_numpy(groups == g)].mean().item(), 4) for g in sorted(set(groups.tolist()))}


def silence() -> None:
    """No bars, no advice."""
    from transformers.utils import logging

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()


def save(path: str | Path, content: Any) -> None:
    """Write JSON, aside first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def load(path: str | Path) -> list[dict[str, Any]]:
    """Rows that are there already."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
