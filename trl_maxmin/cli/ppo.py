# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin ppo`: one policy for the worst-off group, from the user's own prompts and reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config

from ..models import MixtureRewardModel
from ..trainer import MaxMinPPOConfig, MaxMinPPOTrainer
from .io import read_dataset


@dataclass
class PPOArguments(ScriptArguments):
    """What the trainer's configuration does not hold.

    Args:
        reward_model (`str`): folder or Hub id of a `MixtureRewardModel` or of a one-label sequence classifier;
            several, separated by commas, are the rewards of several groups.
    """

    reward_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a mixture or of one-label reward models (comma separated: one a group)."
        },
    )


def load_reward_model(name: str) -> Any:
    """A mixture, or a list of `(one-label model, its tokenizer)`, by what each folder or Hub id holds."""
    names = [part.strip() for part in name.split(",") if part.strip()]
    if len(names) == 1 and AutoConfig.from_pretrained(names[0]).model_type == "mixture_reward":
        return MixtureRewardModel.from_pretrained(names[0])
    return [
        (AutoModelForSequenceClassification.from_pretrained(part, num_labels=1), AutoTokenizer.from_pretrained(part))
        for part in names
    ]


def run(argv: Sequence[str]) -> None:
    """Train and save a policy.

    Args:
        argv (`Sequence[str]`): `--dataset_name` (with a `prompt` column), `--model_name_or_path`, `--reward_model`,
            and the fields of [`MaxMinPPOConfig`].
    """
    parser = TrlParser((PPOArguments, MaxMinPPOConfig, ModelConfig), prog="trl-maxmin ppo")
    script, args, model = parser.parse_args_and_config(list(argv))
    missing = [
        name
        for name, value in (
            ("--model_name_or_path", model.model_name_or_path),
            ("--reward_model", script.reward_model),
        )
        if not value
    ]
    if missing:
        raise ValueError(f"{' and '.join(missing)} required.")
    train, test = read_dataset(script)
    trainer = MaxMinPPOTrainer(
        args=args,
        processing_class=AutoTokenizer.from_pretrained(model.model_name_or_path, revision=model.model_revision),
        model=AutoModelForCausalLM.from_pretrained(
            model.model_name_or_path, revision=model.model_revision, dtype=model.dtype
        ),
        ref_model=None,
        reward_model=load_reward_model(script.reward_model),
        train_dataset=train,
        eval_dataset=test,
        peft_config=get_peft_config(model),
    )
    trainer.dataset_name, trainer.reward_model_name = script.dataset_name, script.reward_model
    trainer.train()
    trainer.save_model(args.output_dir)
    trainer.create_model_card()
    print(f"saved to {args.output_dir}")
