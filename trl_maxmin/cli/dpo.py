# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin dpo`: one policy for the worst-off group from the user's own preferences, without a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForCausalLM
from trl import ModelConfig, ScriptArguments, get_peft_config

from ..models.loading import load_pretrained
from ..trainer import MaxMinDPOConfig, MaxMinDPOTrainer
from .io import read_dataset
from .loading import init_options, quantization_options, require_model
from .output_folder import OVERWRITE_HELP, prepare_output_folder
from .parser import CommandParser, UsageError
from .policy import POLICY


ASSIGNMENTS = "--assignments"


@dataclass
class DPOArguments(ScriptArguments):
    """What the trainer's configuration does not hold.

    Args:
        assignments (`str`): folder or Hub id of a mixture, or a JSON file of `assign` or `reward`.
        overwrite_output_dir (`bool`): remove an earlier run from `output_dir`.
    """

    assignments: str | None = field(
        default=None,
        metadata={
            "help": "Which component describes each annotator, where no --group_column says it: folder or Hub id of a "
            "mixture, or the JSON file that `trl-maxmin assign` or `reward` wrote. Stays on this machine."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})


def require_groups(assignments: str | None, group_column: str | None) -> None:
    """Refuse a run whose groups nobody names, or whose mixture is not there, before anything is loaded.

    Raises:
        UsageError: neither or both of `--group_column` and `--assignments`.
        ValueError, OSError: a file or a mixture that is not there.
    """
    if (assignments is None) == (group_column is None):
        found = "both were given" if assignments else "neither was given"
        raise UsageError(
            "Either --group_column COLUMN (known groups) or --assignments MIXTURE|FILE (components of a mixture, or "
            f"what `trl-maxmin assign` wrote) is required, and {found}."
        )
    if assignments is None or Path(assignments).is_file():
        return
    if assignments.endswith(".json"):
        raise FileNotFoundError(f"{ASSIGNMENTS} {assignments}: there is no such file.")
    require_model(assignments, ASSIGNMENTS)


def run(argv: Sequence[str]) -> None:
    """Train and save a policy.

    Args:
        argv (`Sequence[str]`): `--dataset_name` (preferences or rankings), `--model_name_or_path`, `--group_column` or
            `--assignments`, and the fields of [`MaxMinDPOConfig`].

    Raises:
        UsageError: no policy or no groups were named, or `--output_dir` holds another run.
        ValueError: what is named is not there or broken, or as the trainer.
    """
    parser = CommandParser(
        (DPOArguments, MaxMinDPOConfig, ModelConfig),
        prog="trl-maxmin dpo",
        description="Train one policy for the worst-off group from preferences alone, by group-robust DPO.",
        epilog="  trl-maxmin dpo --dataset_name preferences.jsonl --model_name_or_path Qwen/Qwen3-0.6B \\\n"
        "      --assignments mixture --output_dir policy",
    )
    script, args, model = parser.parse_args_and_config(list(argv))
    if not model.model_name_or_path:
        raise UsageError(f"{POLICY} is required: the policy to start from. `trl-maxmin dpo --help` lists the options.")
    require_groups(script.assignments, args.group_column)
    options = init_options(model, args.model_init_kwargs) | quantization_options(model)
    args.model_init_kwargs = None  # they are for `load_pretrained`
    train, test = read_dataset(script, [args.annotator_column, args.group_column])
    tokenizer = require_model(model.model_name_or_path, POLICY, revision=model.model_revision)
    checkpoint = prepare_output_folder(
        "dpo", args.output_dir, script.overwrite_output_dir, args.resume_from_checkpoint
    )
    trainer = MaxMinDPOTrainer(
        model=load_pretrained(AutoModelForCausalLM, model.model_name_or_path, argument=POLICY, **options),
        args=args,
        train_dataset=train,
        eval_dataset=test if args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=get_peft_config(model),
        assignments=script.assignments,
    )
    trainer.dataset_name = script.dataset_name
    if script.assignments and not Path(script.assignments).is_file():
        trainer.reward_model_name = script.assignments
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir)
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        print(f"saved to {args.output_dir}")
