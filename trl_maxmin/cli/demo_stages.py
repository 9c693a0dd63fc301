# SPDX-License-Identifier: Apache-2.0
"""The settings of the demo and what each of its stages does; everything goes through the package's public classes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import (
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..data.tokenization import encode_prompt
from ..data.world import MAX_COMPLETION_LENGTH, FilmReviewWorld
from ..evaluation.generation import Replies
from ..trainer import MaxMinPPOConfig, MaxMinPPOTrainer, MixtureRewardConfig, MixtureRewardTrainer
from ..trainer.common.sampling import sample_completions, seeded


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo. They are fixed, so that its figures mean something; tests make them smaller.

    Args:
        pretrain_steps (`int`): optimizer steps of the reference policy.
        num_annotators (`int`): annotators.
        pairs_to_learn (`int`): pairs of each annotator that train and assign.
        pairs_held_out (`int`): further pairs of each annotator that only measure.
        num_preference_prompts (`int`): prompts whose replies are compared.
        replies_per_prompt (`int`): replies among which pairs are chosen, at least 2.
        reward_steps (`int`): optimizer steps of each reward model.
        num_rollouts (`int`): rollouts of each policy.
        replies_per_rollout (`int`): a multiple of 3.
        num_policy_prompts (`int`): distinct prompts the policies train on.
        num_eval_prompts (`int`): draws of held-out prompts.
    """

    pretrain_steps: int = 300
    num_annotators: int = 50
    pairs_to_learn: int = 120
    pairs_held_out: int = 40
    num_preference_prompts: int = 1500
    replies_per_prompt: int = 4
    reward_steps: int = 200
    num_rollouts: int = 90
    replies_per_rollout: int = 96
    num_policy_prompts: int = 192
    num_eval_prompts: int = 1000


def sample_replies(world: FilmReviewWorld, policy: GPT2LMHeadModel, prompts: list[str], *stream: int | str) -> Replies:
    """One reply to each prompt at temperature 1, drawn from the random stream of that name."""
    tokenizer = world.tokenizer
    with seeded(torch.device("cpu"), *stream):
        completions = sample_completions(
            policy,
            [encode_prompt(tokenizer, prompt) for prompt in prompts],
            world.generation_config(),
            pad_token_id=tokenizer.pad_token_id,
            stop_token_ids=[tokenizer.eos_token_id],
            batch_size=256,
        )
    texts = tokenizer.batch_decode([ids for ids, _ in completions], skip_special_tokens=True)
    return Replies(prompts, texts, [finished for _, finished in completions])


def collect_preferences(
    world: FilmReviewWorld, reference: GPT2LMHeadModel, minority_share: float, seed: int, settings: DemoSettings
) -> tuple[Dataset, Dataset]:
    """Replies of the reference policy, compared by annotators with a hidden group: pairs to learn from and assign on,
    and held-out pairs of the same annotators."""
    prompts = world.sample_prompts(settings.num_preference_prompts, seed=seed)
    replies = [
        sample_replies(world, reference, prompts, seed, "preferences", i) for i in range(settings.replies_per_prompt)
    ]
    annotators = world.annotators(settings.num_annotators, minority_share, seed=seed)
    pairs = world.collect_preferences(
        prompts,
        list(zip(*(reply.completions for reply in replies), strict=True)),
        annotators,
        settings.pairs_to_learn + settings.pairs_held_out,
        seed=seed,
        finished=list(zip(*(reply.finished for reply in replies), strict=True)),
    )
    rows: dict[str, list[int]] = {}
    for row, annotator in enumerate(pairs["annotator_id"]):
        rows.setdefault(annotator, []).append(row)
    train = [row for own in rows.values() for row in own[: settings.pairs_to_learn]]
    heldout = [row for own in rows.values() for row in own[settings.pairs_to_learn :]]
    return pairs.select(train), pairs.select(heldout)


def reward_trainer(
    reference: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    heldout: Dataset,
    num_components: int,
    seed: int,
    output_dir: Path,
    settings: DemoSettings,
) -> MixtureRewardTrainer:
    """A mixture of K heads on the reference policy's trunk, not yet trained. EM sees annotator ids, never groups."""
    args = MixtureRewardConfig(
        output_dir=str(output_dir),
        num_components=num_components,
        max_steps=settings.reward_steps,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        learning_rate=1e-3,
        weight_decay=0.1,
        center_rewards_coefficient=0.001,
        max_length=None,
        seed=seed,
        **quiet(),
    )
    return MixtureRewardTrainer(
        copy.deepcopy(reference),
        args,
        train_dataset=train.remove_columns("group"),
        eval_dataset=heldout,
        processing_class=tokenizer,
    )


class Progress(TrainerCallback):
    """Prints a line now and then: how far a training is, and the figures that matter.

    Args:
        console (`Console`): where to print.
        figures (`dict[str, str]`): logged metric -> how to call it.
    """

    def __init__(self, console: Console, figures: dict[str, str]) -> None:
        self.console = console
        self.figures = figures

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Print what the trainer has just logged."""
        shown = [f"{title} {logs[name]:.2f}" for name, title in self.figures.items() if name in logs]
        if shown:
            self.console.print(
                f"  step {state.global_step:>3}/{state.max_steps}  " + "  ".join(shown), highlight=False
            )


def run_training(trainer: Trainer, progress: TrainerCallback | None) -> None:
    """Train, with the demo's lines in place of transformers' bars and dictionaries."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if progress is not None:
        trainer.add_callback(progress)
    trainer.train()


def quiet() -> dict[str, Any]:
    """Training arguments that all trainings of the demo share."""
    return {
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 40,
        "use_cpu": True,
    }


def heldout_accuracy(trainer: MixtureRewardTrainer, groups: tuple[str, ...]) -> dict[str, float]:
    """Accuracy on held-out pairs of the annotators of each planted group (groups without annotators are left out)."""
    right = (trainer.heldout_log_likelihood().exp() > 0.5).double()
    planted = trainer.eval_dataset["group"]
    result = {}
    for group in groups:
        rows = [row for row, name in enumerate(planted) if name == group]
        if rows:
            result[group] = round(right[rows].mean().item(), 4)
    return result


def policy_trainer(
    world: FilmReviewWorld,
    reference: GPT2LMHeadModel,
    reward_model: Any,
    seed: int,
    output_dir: Path,
    settings: DemoSettings,
    welfare: str = "maxmin",
    **overrides: Any,
) -> MaxMinPPOTrainer:
    """MaxMin-PPO, not yet trained; with one reward component this is conventional RLHF on the same utility and KL
    coefficient. `overrides` are fields of its configuration."""
    options: dict[str, Any] = {
        "max_steps": settings.num_rollouts,
        "per_device_train_batch_size": settings.replies_per_rollout // 3,
        "gradient_accumulation_steps": 3,
        "num_ppo_epochs": 4,
        "num_mini_batches": 1,
        "learning_rate": 3e-4,
        # Hard switching moves to and fro between the groups; a rate that falls to 0 settles between them.
        "lr_scheduler_type": "linear",
        "kl_coef": 0.02,
        # Utilities have unit spread, so a critic held to 0.2 a rollout would never catch up with the policy.
        "cliprange_value": 1.0,
        "temperature": 1.0,
        "response_length": MAX_COMPLETION_LENGTH,
        "stop_token": "eos",
        "missing_eos_penalty": 1.0,
        "local_rollout_forward_batch_size": 256,
        "num_sample_generations": 0,
    }
    args = MaxMinPPOConfig(
        output_dir=str(output_dir),
        seed=seed,
        welfare=welfare,
        **{"utility": "zscore", **options, **quiet(), "logging_steps": 15, **overrides},
    )
    return MaxMinPPOTrainer(
        args=args,
        processing_class=world.tokenizer,
        model=copy.deepcopy(reference),
        ref_model=None,
        reward_model=reward_model,
        train_dataset=Dataset.from_dict({"prompt": world.sample_prompts(settings.num_policy_prompts, seed=seed)}),
    )
