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
from imdb_gold import GROUPS, GoldUtilities, annotator_groups, compare, gold_noise
from imdb_options import ImdbArguments
from imdb_policy import Replies, finetune, load_policy, new_policy, sample, start_with_bos, train_tokenizer
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

from trl_maxmin import (
    MaxMinGRPOConfig,
    MaxMinGRPOTrainer,
    MaxMinPPOConfig,
    MaxMinPPOTrainer,
    MixtureRewardConfig,
    MixtureRewardTrainer,
)
from trl_maxmin.trainer.scoring.reference_statistics import ReferenceStatistics


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
    """Pairs to learn from, held-out pairs of the same annotators on other prompts; of the gold utilities on the
    reference's replies: how far the two groups agree (Pearson correlation), and what a unit of log-odds is to each."""

    train: Dataset
    heldout: Dataset
    gold_correlation: float
    gold_noise: dict[str, float]


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
    steps, learning_rate = arguments.pretraining
    texts = rng.permutation(np.asarray(reviews.for_training, dtype=object)).tolist()
    if arguments.policy_folder is None:
        tokenizer = train_tokenizer(texts[:20_000], arguments.vocab_size)
        model = new_policy(tokenizer, arguments.width, arguments.layers, arguments.heads, arguments.seed)
    else:
        model, tokenizer = load_policy(str(arguments.policy_folder))
    start_with_bos(tokenizer)
    if steps:
        # About nine reviews in ten have a first sentence that is short enough.
        rows = openings(texts[: steps * arguments.batch_size * 5 // 4], tokenizer, arguments.max_new_tokens, rng)
        settings = trainer_settings(arguments, "reference", max(steps // 4, 1))
        trainer = finetune(model, tokenizer, rows, steps, arguments.batch_size, learning_rate, settings)
        run_training(trainer, Progress(console, loss="loss"))
    return model.eval(), tokenizer


@dataclass(frozen=True)
class Asked:
    """Prompts, one for each reply, the reference's replies to them, and how many replies each prompt has."""

    prompts: list[str]
    replies: Replies
    replies_per_prompt: int


def ask_reference(
    arguments: ImdbArguments,
    reviews: Reviews,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
) -> Asked:
    """Replies of the reference policy to training prompts, for the annotators."""
    distinct = prompts(reviews.for_training, tokenizer, arguments.preference_prompts, rng)
    asked = [prompt for prompt in distinct for _ in range(arguments.replies_per_prompt)]
    replies = sample(reference, tokenizer, asked, arguments.max_new_tokens, arguments.seed)
    return Asked(asked, replies, arguments.replies_per_prompt)


def collect_preferences(
    arguments: ImdbArguments, gold: GoldUtilities, asked: Asked, rng: np.random.Generator
) -> Preferences:
    """Annotators with hidden groups compare the reference's replies."""
    utilities = {group: gold(group, asked.prompts, asked.replies) for group in GROUPS}
    annotators = annotator_groups(arguments.num_annotators, arguments.minority_share, rng)
    # Held-out pairs are about other prompts: no reply is in both parts.
    border = len(asked.prompts) // asked.replies_per_prompt * 4 // 5 * asked.replies_per_prompt
    parts = []
    for rows, count in (
        (range(border), arguments.pairs),
        (range(border, len(asked.prompts)), arguments.heldout_pairs),
    ):
        part = {group: values[list(rows)] for group, values in utilities.items()}
        shown = [asked.prompts[row] for row in rows]
        parts.append(compare(shown, asked.replies.select(rows), part, annotators, count, rng))
    correlation = float(np.corrcoef(*utilities.values())[0, 1])
    return Preferences(*parts, correlation, gold_noise(asked.prompts, asked.replies, utilities))


def first_blocks(policy: PreTrainedModel, count: int | None) -> PreTrainedModel:
    """A copy of a GPT-2 with its first blocks: what a text says is better read before the last ones, which foretell
    the next token."""
    policy = copy.deepcopy(policy)
    if count is not None:
        blocks = policy.transformer.h
        if not 0 <= count <= len(blocks):
            raise ValueError(f"reward_layers must lie in 0 ... {len(blocks)}, the policy's blocks, got {count}.")
        policy.transformer.h = blocks[:count]
        policy.config.n_layer = count
    return policy


def fit_reward(
    arguments: ImdbArguments,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Preferences,
    num_components: int,
    console: Console,
    encoded: MixtureRewardTrainer | None = None,
) -> MixtureRewardTrainer:
    """K heads on the reference policy's trunk; K = 1 is the control. EM sees annotator ids, never groups.

    `encoded` is a trainer on the same frozen trunk: its features are used again.
    """
    args = MixtureRewardConfig(
        num_components=num_components,
        train_trunk=arguments.train_trunk,
        pooling=arguments.pooling,
        kernel_features=0 if arguments.train_trunk else arguments.kernel_features,
        prior_scale=arguments.prior_scale,
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
        first_blocks(reference, arguments.reward_layers),
        args,
        train_dataset=train.add_column(args.length_column_name, characters),
        eval_dataset=data.heldout,
        processing_class=tokenizer,
    )
    if encoded is not None and not arguments.train_trunk:
        trainer.share_features(encoded)
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
    welfare: str = "maxmin",
    statistics: ReferenceStatistics | None = None,
) -> Trainer:
    """A trained trainer, from the reference; one component is conventional RLHF on the same utility and KL price.

    Args:
        arguments ([`ImdbArguments`]): sizes, rates and which trainer.
        name (`str`): of the policy.
        reference, tokenizer: where the policy starts.
        reward_model: a mixture, or a list of reward functions.
        prompts (`list[str]`): to train on.
        console (`Console`): for the progress.
        welfare (`str`): welfare rule.
        statistics ([`ReferenceStatistics`], *optional*): of the same rewards, reference and prompts; measured if None.

    Returns:
        `Trainer`: with `reference_statistics`, the log in `state.log_history`, and the policy, see [`policy_of`].
    """
    # Their own copies: a trainer changes what it is given.
    settings = trainer_settings(arguments, name, max(arguments.policy_steps // 8, 1))
    shared = {
        "welfare": welfare,
        "welfare_step_size": arguments.welfare_step_size,
        "utility": arguments.utility,
        "max_steps": arguments.policy_steps,
        "temperature": 1.0,
    }
    shared["num_reference_completions"] = arguments.reference_completions
    shared["learning_rate"] = arguments.policy_learning_rate
    dataset = Dataset.from_dict({"prompt": prompts})
    start = copy.deepcopy(reference)
    if arguments.trainer == "grpo":
        args = MaxMinGRPOConfig(**_grpo_options(arguments), **shared, **settings)
        trainer = MaxMinGRPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=start,
            reward_funcs=reward_model,
            train_dataset=dataset,
            reference_statistics=statistics,
        )
    else:
        args = MaxMinPPOConfig(**_ppo_options(arguments), **shared, **settings)
        trainer = MaxMinPPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=start,
            ref_model=None,
            reward_model=reward_model,
            train_dataset=dataset,
            reference_statistics=statistics,
        )
    figures = {"worst utility": "maxmin/worst_utility", "KL": "objective/kl", "tokens": "completions/mean_length"}
    run_training(trainer, Progress(console, **figures))
    return trainer


def policy_of(trainer: Trainer) -> PreTrainedModel:
    """The policy that a trainer trained."""
    return getattr(trainer, "policy_model", trainer.model).eval()


def _ppo_options(arguments: ImdbArguments) -> dict[str, Any]:
    return {
        # One optimizer step takes two micro-batches, replies of like length together: less padding.
        "per_device_train_batch_size": arguments.batch_size // 2,
        "gradient_accumulation_steps": 2,
        "num_ppo_epochs": arguments.ppo_epochs,
        "num_mini_batches": 1,
        "lr_scheduler_type": "linear",
        "kl_coef": arguments.kl_coef,
        # Utilities have unit spread: a critic that may move 0.2 a rollout lags behind.
        "cliprange_value": 1.0,
        "response_length": arguments.max_new_tokens,
        "stop_token": "eos",
        "local_rollout_forward_batch_size": 256,
        "num_sample_generations": 0,
        "gradient_checkpointing": False,
    }


def _grpo_options(arguments: ImdbArguments) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": arguments.batch_size,
        "num_generations": 8 if arguments.batch_size % 8 == 0 else 2,
        "lr_scheduler_type": "linear",
        "beta": arguments.kl_coef,
        "max_completion_length": arguments.max_new_tokens,
        "gradient_checkpointing": False,
    }
