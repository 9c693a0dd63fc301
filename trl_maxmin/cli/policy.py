# SPDX-License-Identifier: Apache-2.0
"""What `trl-maxmin ppo`, `grpo` and `rloo` share: the options, the reward models, the run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import ModelConfig, ScriptArguments, get_peft_config

from ..data.tokenization import asked, encode_prompt
from ..models import MixtureRewardModel
from ..models.base import context_length
from ..models.loading import load_config, load_pretrained
from ..trainer.scoring.callables import load_reward_model
from .io import read_dataset
from .loading import init_options, quantization_options, require_model
from .output_folder import OVERWRITE_HELP, prepare_output_folder
from .parser import CommandParser, UsageError


logger = logging.getLogger(__name__)

POLICY = "--model_name_or_path"
REWARD = "--reward_model"
# Tokens of a reply below which a default is not lowered in passing.
_SHORTEST = 16


@dataclass
class PolicyArguments(ScriptArguments):
    """What the trainer's configuration does not hold.

    Args:
        reward_model (`str`): folder or Hub id of a `MixtureRewardModel` or of a one-label sequence classifier;
            several, separated by commas, are the rewards of several groups.
        component (`str`): the one component of the mixture that the policy is to serve.
        overwrite_output_dir (`bool`): remove an earlier run from `output_dir`.
    """

    reward_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a mixture or of one-label reward models (comma separated: one a group). The "
            "base of a LoRA mixture is quantised as it was when the mixture was trained."
        },
    )
    component: str | None = field(
        default=None,
        metadata={
            "help": "Train for this component of the mixture alone: a policy for one group, calibrated (zscore) like "
            "the policy of all, so that both can be compared and routed between."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})


def reward_model_names(name: str) -> list[str]:
    """The folders or Hub ids of `--reward_model`, each of which is there.

    Raises:
        ValueError, OSError: one is not, or has no tokenizer; nothing has been loaded then.
    """
    names = [part.strip() for part in name.split(",") if part.strip()]
    for part in names:
        require_model(part, REWARD)
    return names


def require_component(reward_model: str, component: str) -> None:
    """Raise where `--component` is none of the mixture's, before anything is loaded.

    Raises:
        UsageError: several reward models, one that is no mixture, or a component that it does not have.
    """
    names = reward_model_names(reward_model)
    config = load_config(names[0], REWARD)
    if len(names) > 1 or config.model_type != "mixture_reward":
        raise UsageError(
            f"--component {component} is of a mixture, and {REWARD} {reward_model} is none. Leave it out."
        )
    counts = config.component_annotators or [1] * config.num_components
    described = [name for name, count in zip(config.component_names, counts, strict=True) if count > 0]
    if component not in described:
        raise UsageError(f"--component {component}: the components of {names[0]} are {', '.join(described)}.")


def load_reward_models(name: str, component: str | None = None) -> Any:
    """A mixture, or a list of `(one-label model, its tokenizer)`, by what each folder or Hub id holds.

    Args:
        name (`str`): `--reward_model`.
        component (`str`, *optional*): `--component`: all that is kept of the mixture.
    """
    models = [load_reward_model(part, REWARD) for part in reward_model_names(name)]
    if component is not None:
        models[0].keep_component(component)
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
        UsageError: no policy or no reward model was named, or `--output_dir` holds another run.
        ValueError: what is named is not there or broken, or as the trainer.
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
        raise UsageError(f"{' and '.join(missing)} required. `trl-maxmin {command} --help` lists the options.")
    options = init_options(model, args.model_init_kwargs) | quantization_options(model)
    args.model_init_kwargs = None  # they are for `_load_policy`
    train, test = read_dataset(script)
    for data in filter(None, (train, test)):
        _require_prompts(data, script.dataset_name, takes_ids=takes_reference)
    # What is named wrongly is said before the first model is loaded.
    tokenizer = require_model(model.model_name_or_path, POLICY, revision=model.model_revision)
    rewards = reward_model_names(script.reward_model)
    if script.component is not None:
        require_component(script.reward_model, script.component)
        args.utility = args.utility or "zscore"  # as of the policy for all, where one reward alone would be raw
    if not takes_reference:  # PPO looks at its prompts itself
        _fit_completions(args, tokenizer, train, [(model.model_name_or_path, POLICY)] + [(r, REWARD) for r in rewards])
    checkpoint = prepare_output_folder(
        command, args.output_dir, script.overwrite_output_dir, args.resume_from_checkpoint
    )
    trainer = build(
        args=args,
        model=_load_policy(model, options),
        reward_model=load_reward_models(script.reward_model, script.component),
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset=test,
        peft_config=get_peft_config(model),
        **({"ref_model": _load_reference(model, options)} if takes_reference else {}),
    )
    trainer.dataset_name, trainer.reward_model_name = script.dataset_name, script.reward_model
    trainer.reward_component = script.component
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir)
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        print(f"saved to {args.output_dir}")


def _require_prompts(data: Any, name: str, takes_ids: bool) -> None:
    columns = ["prompt", "input_ids"] if takes_ids else ["prompt"]
    if not set(columns) & set(data.column_names):
        raise ValueError(
            f"{name} has no column {' or '.join(map(repr, columns))}; it has {', '.join(data.column_names)}. Rename "
            "the column of the prompts."
        )


def _fit_completions(args: Any, tokenizer: Any, data: Any, models: list[tuple[str, str]]) -> None:
    """Prompt and reply have to fit what policy and rewards read, which TRL finds out in the midst of training.

    The default of `max_completion_length` gives way, and it is said; a length that was asked for is an error.

    Raises:
        ValueError: a prompt, or a prompt with such a reply, is longer than a model reads.
    """
    limits = {}
    for name, argument in models:
        config = load_config(name, argument)
        limits[f"{argument} {name}"] = context_length(getattr(config, "base_config", config)) or sys.maxsize
    who, limit = min(limits.items(), key=lambda item: item[1])
    longest = 0
    for prompt, options in asked(data):
        text = prompt if isinstance(prompt, str) else "".join(str(message.get("content", "")) for message in prompt)
        # A token has at least one byte, so short texts need not be tokenised; a template adds some.
        if isinstance(prompt, str) and len(text.encode()) <= longest:
            continue
        chat = {**(args.chat_template_kwargs or {}), **options}
        longest = max(longest, len(encode_prompt(tokenizer, prompt, chat)))
    room, asked_for = limit - longest, args.max_completion_length
    if asked_for <= room:
        return
    default = type(args).__dataclass_fields__["max_completion_length"].default
    if asked_for != default or room < _SHORTEST:
        raise ValueError(
            f"The longest prompt has {longest} tokens, and {who} reads {limit}: that leaves {max(room, 0)} for a "
            f"reply, and --max_completion_length is {asked_for}. Lower it, or shorten the prompts."
        )
    args.max_completion_length = room
    logger.warning(
        f"--max_completion_length is {room} instead of {default}: the longest prompt has {longest} tokens, and {who} "
        f"reads {limit}."
    )


def _load_reference(model: ModelConfig, options: dict[str, Any]) -> PreTrainedModel | None:
    """The reference, where the policy is loaded in shards (DeepSpeed ZeRO-3), which cannot be copied."""
    if model.use_peft or not is_deepspeed_zero3_enabled():
        return None
    return _load_policy(model, options)


def _load_policy(model: ModelConfig, options: dict[str, Any]) -> PreTrainedModel:
    return load_pretrained(AutoModelForCausalLM, model.model_name_or_path, argument=POLICY, **options)
