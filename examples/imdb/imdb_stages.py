# SPDX-License-Identifier: Apache-2.0
"""The stages of the example, each through a public class of the package or of TRL."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from imdb_data import Reviews, openings, prompts
from imdb_gold import GROUPS, GoldUtilities, annotator_groups, compare
from imdb_options import ImdbArguments
from imdb_policy import finetune, load_policy, new_policy, sample, start_with_bos, train_tokenizer
from rich.console import Console
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer, MixtureRewardConfig, MixtureRewardTrainer


class Progress(TrainerCallback):
    """Prints how far a training is, and the figures that matter."""

    def __init__(self, console: Console, **figures: str) -> None:
        self.console = console
        self.figures = figures

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict, **kwargs: Any
    ) -> None:
        shown = [f"{title} {float(logs[name]):.2f}" for title, name in self.figures.items() if name in logs]
        if shown:
            line = f"  step {state.global_step:>4}/{state.max_steps}  " + "  ".join(shown)
            self.console.print(line, highlight=False)


@dataclass(frozen=True)
class Preferences:
    """Pairs to learn from, held-out pairs of the same annotators on other prompts, and how far the gold utilities of
    the two groups agree on the reference's replies (Pearson correlation)."""

    train: Dataset
    heldout: Dataset
    gold_correlation: float


def trainer_settings(arguments: ImdbArguments, name: str, logging_steps: int) -> dict[str, Any]:
    """Arguments that all trainers of the example share."""
    return {
        "output_dir": str(Path(arguments.output_dir) / "logs" / name),
        "seed": arguments.seed,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": logging_steps,
        "disable_tqdm": True,
    }


def run_training(trainer: Trainer, progress: Progress) -> None:
    """Train, printing no more than the progress."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)
    trainer.train()


def build_reference(
    arguments: ImdbArguments, reviews: Reviews, rng: np.random.Generator, console: Console
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The reference policy: a given or a new GPT-2, trained on openings that fit into the length limit."""
    texts = rng.permutation(np.asarray(reviews.for_training, dtype=object)).tolist()
    if arguments.policy_folder is None:
        tokenizer = train_tokenizer(texts[:20_000], arguments.vocab_size)
        model = new_policy(tokenizer, arguments.width, arguments.layers, arguments.heads, arguments.seed)
    else:
        model, tokenizer = load_policy(str(arguments.policy_folder))
    start_with_bos(tokenizer)
    steps, learning_rate = arguments.pretraining
    if steps:
        # About nine reviews in ten have a first sentence that is short enough.
        rows = openings(texts[: steps * arguments.batch_size * 5 // 4], tokenizer, arguments.max_new_tokens, rng)
        settings = trainer_settings(arguments, "reference", max(steps // 4, 1))
        trainer = finetune(model, tokenizer, rows, steps, arguments.batch_size, learning_rate, settings)
        run_training(trainer, Progress(console, loss="loss"))
    return model.eval(), tokenizer


def collect_preferences(
    arguments: ImdbArguments,
    reviews: Reviews,
    gold: GoldUtilities,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
) -> Preferences:
    """Annotators with hidden groups compare the reference's replies to training prompts."""
    distinct = prompts(reviews.for_training, tokenizer, arguments.preference_prompts, rng)
    asked = [prompt for prompt in distinct for _ in range(arguments.replies_per_prompt)]
    replies = sample(reference, tokenizer, asked, arguments.max_new_tokens, arguments.seed)
    utilities = {group: gold(group, asked, replies) for group in GROUPS}
    annotators = annotator_groups(arguments.num_annotators, arguments.minority_share, rng)
    # Held-out pairs are about other prompts: no reply is in both parts.
    border = len(distinct) * 4 // 5 * arguments.replies_per_prompt
    parts = []
    for rows, count in ((range(border), arguments.pairs), (range(border, len(asked)), arguments.heldout_pairs)):
        part = {group: values[list(rows)] for group, values in utilities.items()}
        parts.append(compare([asked[row] for row in rows], replies.select(rows), part, annotators, count, rng))
    return Preferences(*parts, float(np.corrcoef(*utilities.values())[0, 1]))


def fit_reward(
    arguments: ImdbArguments,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Preferences,
    num_components: int,
    console: Console,
) -> MixtureRewardTrainer:
    """K heads on the reference policy's trunk; K = 1 is the control. EM sees annotator ids, never groups."""
    args = MixtureRewardConfig(
        num_components=num_components,
        max_steps=arguments.reward_steps,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=256,
        learning_rate=arguments.reward_learning_rate,
        weight_decay=0.1,
        center_rewards_coefficient=0.001,
        max_length=None,
        gradient_checkpointing=False,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        **trainer_settings(arguments, f"k{num_components}", max(arguments.reward_steps // 5, 1)),
    )
    train = data.train.remove_columns(["group", "gold_agrees"])
    # Pairs of like length together: a third less padding.
    characters = [max(len(a), len(b)) for a, b in zip(train["chosen"], train["rejected"], strict=True)]
    trainer = MixtureRewardTrainer(
        copy.deepcopy(reference),
        args,
        train_dataset=train.add_column(args.length_column_name, characters),
        eval_dataset=data.heldout,
        processing_class=tokenizer,
    )
    run_training(trainer, Progress(console, **{f"K = {num_components}: accuracy": "accuracy"}))
    return trainer


def train_policy(
    arguments: ImdbArguments,
    name: str,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward_model: Any,
    prompts: list[str],
    console: Console,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """MaxMin-PPO from the reference; with one component this is conventional RLHF on the same utility and KL price."""
    args = MaxMinPPOConfig(
        welfare=arguments.welfare,
        utility="zscore",
        max_steps=arguments.ppo_steps,
        # One optimizer step takes two micro-batches, replies of like length together: less padding.
        per_device_train_batch_size=arguments.batch_size // 2,
        gradient_accumulation_steps=2,
        num_ppo_epochs=4,
        num_mini_batches=1,
        learning_rate=arguments.ppo_learning_rate,
        lr_scheduler_type="linear",
        kl_coef=arguments.kl_coef,
        # Utilities have unit spread: a critic that may move 0.2 a rollout lags behind.
        cliprange_value=1.0,
        temperature=1.0,
        response_length=arguments.max_new_tokens,
        stop_token="eos",
        local_rollout_forward_batch_size=256,
        num_reference_completions=arguments.reference_completions,
        num_sample_generations=0,
        gradient_checkpointing=False,
        **trainer_settings(arguments, name, max(arguments.ppo_steps // 8, 1)),
    )
    trainer = MaxMinPPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=copy.deepcopy(reference),
        ref_model=None,
        reward_model=reward_model,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )
    figures = {"worst utility": "maxmin/worst_utility", "KL": "objective/kl", "tokens": "completions/mean_length"}
    run_training(trainer, Progress(console, **figures))
    return trainer.policy_model.eval(), trainer.state.log_history
