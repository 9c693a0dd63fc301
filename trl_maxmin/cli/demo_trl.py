# SPDX-License-Identifier: Apache-2.0
"""The policy stage of the demo with TRL's own algorithms, GRPO and RLOO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import GPT2LMHeadModel

from ..data.world import MAX_COMPLETION_LENGTH, FilmReviewWorld
from ..models.loading import load_pretrained
from ..trainer.maxmin.maxmin_grpo_config import MaxMinGRPOConfig
from ..trainer.maxmin.maxmin_grpo_trainer import MaxMinGRPOTrainer
from ..trainer.maxmin.maxmin_rloo_config import MaxMinRLOOConfig
from ..trainer.maxmin.maxmin_rloo_trainer import MaxMinRLOOTrainer
from .demo_stages import DemoSettings, quiet


# Replies to a prompt that are compared with each other.
NUM_GENERATIONS = 8
TRAINERS = {"grpo": (MaxMinGRPOTrainer, MaxMinGRPOConfig), "rloo": (MaxMinRLOOTrainer, MaxMinRLOOConfig)}


def trl_policy_trainer(
    algorithm: str,
    world: FilmReviewWorld,
    reference_dir: Path,
    reward_model: Any,
    seed: int,
    output_dir: Path,
    settings: DemoSettings,
    welfare: str = "maxmin",
    **overrides: Any,
) -> MaxMinGRPOTrainer | MaxMinRLOOTrainer:
    """MaxMin-GRPO or MaxMin-RLOO, not yet trained; with one reward component this is TRL's on the same utility.

    Args:
        algorithm (`str`): `"grpo"` or `"rloo"`.
        world ([`FilmReviewWorld`]): prompts and tokenizer.
        reference_dir (`Path`): folder of the reference policy; TRL loads it by its name.
        reward_model: a mixture, or a list of reward functions.
        seed (`int`): everything follows from it.
        output_dir (`Path`): for logs.
        settings ([`DemoSettings`]): sizes.
        welfare (`str`): welfare rule.
        **overrides: fields of the configuration.
    """
    trainer_class, config_class = TRAINERS[algorithm]
    options: dict[str, Any] = {
        "max_steps": settings.num_rollouts,
        "per_device_train_batch_size": settings.replies_per_rollout,
        "num_generations": min(NUM_GENERATIONS, settings.replies_per_rollout // 2),
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "beta": 0.03,
        "max_completion_length": MAX_COMPLETION_LENGTH,
        # A reply that is cut has no reward that means anything; PPO penalises it instead.
        "mask_truncated_completions": True,
        "temperature": 1.0,
    }
    args = config_class(
        output_dir=str(output_dir),
        seed=seed,
        welfare=welfare,
        utility="zscore",
        **{**options, **quiet(), "logging_steps": 15, **overrides},
    )
    return trainer_class(
        model=load_pretrained(GPT2LMHeadModel, reference_dir, argument="the reference"),
        reward_funcs=reward_model,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": world.sample_prompts(settings.num_policy_prompts, seed=seed)}),
        processing_class=world.tokenizer,
    )
