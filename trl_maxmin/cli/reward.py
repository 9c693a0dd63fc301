# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin reward`: a mixture of reward models from the user's own preferences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig
from trl import ModelConfig, ScriptArguments

from ..trainer import MixtureRewardConfig, MixtureRewardTrainer
from .io import print_table, read_dataset
from .loading import init_options, quantization_options, require_model
from .output_folder import OVERWRITE_HELP, prepare_output_folder
from .parser import CommandParser, UsageError
from .reward_report import print_report


@dataclass
class RewardArguments(ScriptArguments):
    """What the trainer's configuration does not hold.

    Args:
        overwrite_output_dir (`bool`): remove an earlier run from `output_dir`.
    """

    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})


def run(argv: Sequence[str]) -> None:
    """Train and save a mixture.

    Writes to `--output_dir`: the mixture, `components/<name>/` as plain one-label models, and `assignments.json`
    (annotator -> component), which is for this machine only.

    Args:
        argv (`Sequence[str]`): `--dataset_name`, `--model_name_or_path`, and the fields of [`MixtureRewardConfig`].

    Raises:
        UsageError: no base model was named, or `--output_dir` holds another run.
        ValueError: what is named is not there or broken, or as the trainer.
    """
    parser = CommandParser(
        (RewardArguments, MixtureRewardConfig, ModelConfig),
        prog="trl-maxmin reward",
        description="Learn a mixture of reward models by EM from preferences with annotator ids.",
        epilog="  trl-maxmin reward --dataset_name preferences.jsonl --model_name_or_path Qwen/Qwen3-0.6B \\\n"
        "      --num_components 2 --output_dir mixture",
    )
    script, args, model = parser.parse_args_and_config(list(argv))
    if not model.model_name_or_path:
        raise UsageError("--model_name_or_path is required: the base model of the reward components.")
    args.model_init_kwargs = init_options(model, args.model_init_kwargs)
    peft_config = None
    if args.component_type == "lora":
        args.model_init_kwargs |= quantization_options(model)
        peft_config = lora_config(model)
    train, test = read_dataset(script, [args.annotator_column, args.group_column])
    require_model(model.model_name_or_path, "--model_name_or_path", revision=model.model_revision)
    checkpoint = prepare_output_folder(
        "reward", args.output_dir, script.overwrite_output_dir, args.resume_from_checkpoint
    )
    trainer = MixtureRewardTrainer(
        model.model_name_or_path, args, train_dataset=train, eval_dataset=test, peft_config=peft_config
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    save_mixture(trainer, args.output_dir)
    chosen = trainer.selection
    if chosen is not None and trainer.accelerator.is_main_process:
        chosen.save(args.output_dir)
        print_table(
            f"Choice of K: {chosen.num_pairs} {chosen.unit}s of {chosen.num_annotators} annotators, each scored by a "
            "mixture and an assignment that never saw it",
            ["K (* chosen)", "log-likelihood", "worse than the best", "accuracy", "prior (log-odds)"],
            chosen.rows(),
        )
        print(chosen.verdict())
    trainer.dataset_name = script.dataset_name
    trainer.create_model_card()
    print_report(trainer)
    if trainer.accelerator.is_main_process:
        print(f"saved to {args.output_dir}")
    if args.push_to_hub:
        trainer.push_to_hub()


def lora_config(model: ModelConfig) -> LoraConfig:
    """The adapters that `--lora_r`, `--lora_alpha`, ... ask for (TRL's options, of which `--use_peft` is implied)."""
    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=model.lora_target_modules,
        use_rslora=model.use_rslora,
        use_dora=model.use_dora,
    )


def save_mixture(trainer: MixtureRewardTrainer, output_dir: str | Path, mixture_dir: str = "") -> None:
    """Save the mixture, its components and the assignments below a folder. All ranks have to call it; one writes."""
    assignments = {str(annotator): name for annotator, name in trainer.assignments().items()}
    if not trainer.accelerator.is_main_process:
        return
    output_dir = Path(output_dir)
    trainer.mixture.save_pretrained(output_dir / mixture_dir)
    for name in trainer.mixture.component_names if trainer.mixture.exports_components else ():
        trainer.mixture.save_component(name, output_dir / "components" / name)
    (output_dir / "assignments.json").write_text(json.dumps(assignments, indent=2) + "\n")
