# SPDX-License-Identifier: Apache-2.0
"""What `trl-maxmin ppo`, `grpo` and `rloo` share: the options, the reward models, the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import ModelConfig, ScriptArguments, get_peft_config

from ..models import MixtureRewardModel
from ..trainer.scoring.callables import load_reward_model
from .io import read_dataset
from .loading import quantization_options
from .parser import CommandParser


@dataclass
class PolicyArguments(ScriptArguments):
    """What the trainer's configuration does not hold.

    Args:
        reward_model (`str`): folder or Hub id of a `MixtureRewardModel` or of a one-label sequence classifier;
            several, separated by commas, are the rewards of several groups.
    """

    reward_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a mixture or of one-label reward models (comma separated: one a group). The "
            "base of a LoRA mixture is quantised as it was when the mixture was trained."
        },
    )


def load_reward_models(name: str) -> Any:
    """A mixture, or a list of `(one-label model, its tokenizer)`, by what each folder or Hub id holds."""
    models = [load_reward_model(part.strip()) for part in name.split(",") if part.strip()]
    return models[0] if len(models) == 1 and isinstance(models[0], MixtureRewardModel) else models


def run_policy(
    argv: Sequence[str],
    command: str,
    config_class: type,
    build: Callable[..., Any],
    takes_reference: bool = False,
) -> None:
    """Train and save a policy.

    Args:
        argv (`Sequence[str]`): `--dataset_name` (with a `prompt` column), `--model_name_or_path`, `--reward_model`,
            and the fields of the configuration.
        command (`str`): name of the subcommand.
        config_class (`type`): training arguments.
        build (`Callable`): makes the trainer from `args`, `model`, `reward_model`, `processing_class`,
            `train_dataset`, `eval_dataset` and `peft_config`.
        takes_reference (`bool`, defaults to `False`): whether `build` takes the reference of the KL penalty as well,
            `ref_model`; `None` where the trainer can make it from the policy.

    Raises:
        ValueError: no policy or no reward model was named, a quantised policy without adapters, or as the trainer.
    """
    parser = CommandParser(
        (PolicyArguments, config_class, ModelConfig),
        prog=f"trl-maxmin {command}",
        description=f"Train one policy for the worst-off group by MaxMin-{command.upper()}.",
        epilog=f"  trl-maxmin {command} --dataset_name prompts.jsonl --model_name_or_path Qwen/Qwen3-0.6B \\\n"
        "      --reward_model mixture --output_dir policy",
    )
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
    trainer = build(
        args=args,
        model=AutoModelForCausalLM.from_pretrained(model.model_name_or_path, **_loading_options(model)),
        reward_model=load_reward_models(script.reward_model),
        processing_class=AutoTokenizer.from_pretrained(model.model_name_or_path, revision=model.model_revision),
        train_dataset=train,
        eval_dataset=test,
        peft_config=get_peft_config(model),
        **({"ref_model": _load_reference(model)} if takes_reference else {}),
    )
    trainer.dataset_name, trainer.reward_model_name = script.dataset_name, script.reward_model
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or None)
    trainer.save_model(args.output_dir)
    trainer.create_model_card()
    print(f"saved to {args.output_dir}")


def _load_reference(model: ModelConfig) -> PreTrainedModel | None:
    """The reference, where the policy is loaded in shards (DeepSpeed ZeRO-3), which cannot be copied."""
    if model.use_peft or not is_deepspeed_zero3_enabled():
        return None
    return AutoModelForCausalLM.from_pretrained(model.model_name_or_path, **_loading_options(model))


def _loading_options(model: ModelConfig) -> dict[str, Any]:
    """How the policy is loaded; in 4 or 8 bits (`--load_in_4bit`) it needs adapters to be trained."""
    quantization = quantization_options(model)
    if quantization and not model.use_peft:
        raise ValueError(
            "--load_in_4bit and --load_in_8bit load frozen weights, so there is nothing to train: add --use_peft, or "
            "leave them out."
        )
    return {"revision": model.model_revision, "dtype": model.dtype, **quantization}
