# SPDX-License-Identifier: Apache-2.0
"""Options that a command has from its hosts' dataclasses and does not take: refused with the reason and the next step.

An option that a command reads is honoured; one that it does not read stands here. There is no third kind: a test walks
the fields of all commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..data.sets import SETS


@dataclass(frozen=True)
class Refusal:
    """Options that have no effect.

    Args:
        options (`str`): their names, separated by spaces.
        reason (`str`): why, and what to do instead; follows "--name is refused: ".
        taken (`Callable`, *optional*): of all values by name: whether the options have an effect after all. Without
            it they never have one, and the help does not list them.
    """

    options: str
    reason: str
    taken: Callable[[Mapping[str, Any]], bool] | None = None


_DATA = (
    Refusal(
        "dataset_streaming",
        "data are read whole, for annotators are numbered and prompts are drawn at random. Leave it out; a part of a "
        "data set is a split (--dataset_train_split).",
    ),
    Refusal("ignore_bias_buffers", "it mends models of other scripts under DDP. Leave it out."),
)
_ONE_SPLIT = (Refusal("dataset_test_split", "the command reads one split. Name it by --dataset_train_split."),)

_TRAINING = (
    Refusal("do_train do_predict", "the command trains and nothing else. Leave it out."),
    Refusal("do_eval", "evaluation during training is asked for by --eval_strategy steps (or epoch)."),
    Refusal(
        "label_smoothing_factor label_names",
        "there are no labels: the loss is that of preferences or rewards. Leave it out.",
    ),
    Refusal(
        "prediction_loss_only include_for_metrics batch_eval_metrics eval_do_concat_batches eval_use_gather_object "
        "eval_accumulation_steps",
        "it is for a `compute_metrics` function, which a command has none of. Leave it out, or use the trainer in "
        "Python.",
    ),
)
_QUANTIZED = Refusal(
    "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage",
    "it shapes weights in 4 bits. Add --load_in_4bit, or leave it out.",
    lambda given: bool(given["load_in_4bit"]),
)
_LORA = "lora_r lora_alpha lora_dropout lora_target_modules use_rslora use_dora"
_LORA_REST = "lora_target_parameters lora_modules_to_save lora_task_type"
_PEFT = Refusal(
    f"{_LORA} {_LORA_REST}",
    "it shapes an adapter, and there is none. Add --use_peft, or leave it out.",
    lambda given: bool(given["use_peft"]),
)
_BITS = Refusal(
    "load_in_4bit load_in_8bit",
    "it loads frozen weights, so there is nothing to train. Add --use_peft, or leave it out.",
    lambda given: bool(given["use_peft"]),
)
_WELFARE = (
    "welfare welfare_temperature welfare_step_size welfare_step_schedule welfare_window welfare_floor "
    "disagreement_point welfare_power welfare_order_weights leximin_delta regret_rule best_utilities "
    "min_group_annotators min_group_share min_group_pairs"
)


def _one_component(options: str) -> Refusal:
    return Refusal(
        options,
        "it weighs components, and --component leaves one. Leave one of the two out.",
        lambda given: given["component"] is None,
    )


_TRAINED = (*_DATA, *_TRAINING, _QUANTIZED, _BITS, _PEFT)
_POLICY = (*_TRAINED, _one_component(f"{_WELFARE} oscillation oscillation_window"))


def _is_lora(given: Mapping[str, Any]) -> bool:
    return given["component_type"] == "lora"


def _samples(given: Mapping[str, Any]) -> bool:
    return bool(given["policies"])


def _of_set(option: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether the reader of the named set has an option; of an unknown set the command says so itself."""
    return lambda given: given["set"] not in SETS or option in SETS[given["set"]].options


_SET_OPTIONS: dict[str, list[str]] = {}  # of `convert`: option -> sets that take it
for _name, _entry in SETS.items():
    for _option in _entry.options:
        _SET_OPTIONS.setdefault(_option, []).append(_name)
_LORA_ONLY = "it shapes components of --component_type lora. Add that, or leave it out."

#: Command -> what it does not take.
REFUSED: dict[str, tuple[Refusal, ...]] = {
    "reward": (
        *_DATA,
        *_TRAINING,
        Refusal(
            _LORA_REST,
            "adapters of components are beside heads, on whole layers. Leave it out, or use --lora_target_modules.",
        ),
        Refusal("pad_token", "a mixture has a pad token of its own, apart from EOS, by which it pools. Leave it out."),
        Refusal(
            "use_peft", "the command has adapters for --component_type lora. Add that, or leave it out.", _is_lora
        ),
        Refusal(f"{_LORA} load_in_4bit load_in_8bit", _LORA_ONLY, _is_lora),
        _QUANTIZED,
        Refusal(
            "resume_from_checkpoint",
            "heads on a frozen trunk are fitted in one go. Leave it out, or train the trunk (--train_trunk true).",
            lambda given: given["train_trunk"],
        ),
    ),
    "ppo": (
        *_POLICY,
        Refusal("sft_model_path", "scripts of TRL 1.12 read it. Name the policy by --model_name_or_path."),
        Refusal("reward_model_path", "scripts of TRL 1.12 read it. Name the rewards by --reward_model."),
        Refusal("dataset_num_proc", "prompts are tokenised as they are drawn. Leave it out."),
        Refusal("remove_unused_columns", "all columns go to the reward functions. Leave it out."),
        Refusal(
            "world_size num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size "
            "mini_batch_size",
            "the trainer fills it in. Set --per_device_train_batch_size, --gradient_accumulation_steps, "
            "--num_mini_batches and --total_episodes.",
        ),
        Refusal(
            "auto_find_batch_size", "the size of a rollout is fixed before it. Lower --per_device_train_batch_size."
        ),
    ),
    "grpo": _POLICY,
    "rloo": _POLICY,
    "dpo": (
        *_TRAINED,
        _one_component(f"{_WELFARE} small_group_offset"),
        Refusal("padding_free", "TRL has switched it off for DPO. Leave it out."),
    ),
    "assign": (
        *_DATA,
        *_ONE_SPLIT,
        Refusal("seed", "it orders pairs of the curve. Add --curve, or leave it out.", lambda given: given["curve"]),
    ),
    "convert": (
        *(
            Refusal(option, f"it is for {', '.join(sets)}. Leave it out.", _of_set(option))
            for option, sets in _SET_OPTIONS.items()
        ),
        Refusal(
            "salt_file",
            "it is the key of the hashes. Add --hash_annotators true, or leave it out.",
            lambda given: given["hash_annotators"],
        ),
    ),
    "diagnose": (
        *_DATA,
        *_ONE_SPLIT,
        Refusal(
            "batch_size pooling",
            "it is of a model's forward. Add --model_name_or_path, or leave it out.",
            lambda given: bool(given["model_name_or_path"]),
        ),
    ),
    "evaluate": (
        *_DATA,
        Refusal(
            "dataset_name dataset_config dataset_train_split dataset_test_split max_prompts max_new_tokens "
            "max_prompt_length temperature num_completions chat_template_kwargs dtype generation_backend",
            "it is for policies that sample, and --completions holds replies. Give --policies, or leave it out.",
            _samples,
        ),
        Refusal(
            "judge_key_variable",
            "it is the key of a judge. Add --judge_url, or leave it out.",
            lambda given: bool(given["judge_url"]),
        ),
    ),
    "best-of": (
        *_DATA,
        Refusal(
            "welfare_step_size welfare_step_schedule welfare_window oscillation oscillation_window",
            "it is of training, rollout by rollout, and here all replies are there at once. Leave it out.",
        ),
        Refusal("max_calibration_prompts", "every prompt is measured. Leave it out, or use --max_prompts."),
        Refusal(
            "dataset_name dataset_config dataset_train_split dataset_test_split max_prompts num_completions",
            "prompts, and the number of replies to each, are those of --completions. Leave one of the two out.",
            lambda given: not given["completions"],
        ),
    ),
    "serve": (
        Refusal(
            "utility num_reference_completions max_calibration_prompts generation_backend",
            "the server samples nothing: utilities are zscores by what clients, or the mixture, were "
            "calibrated with. Leave it out.",
        ),
        Refusal("oscillation oscillation_window", "the trainer is elsewhere and cannot be stopped. Leave it out."),
    ),
    "push": (
        Refusal(
            "space_sdk space_hardware",
            "it is of a Space. Add --space FOLDER, or leave it out.",
            lambda given: bool(given["space"]),
        ),
        Refusal(
            "dataset space collection",
            "--exact pushes one model to one repository. Leave one of the two out.",
            lambda given: not given["exact"],
        ),
    ),
    "space": (
        Refusal(
            "host port open",
            "it is of the page on this machine, and --push makes a Space. Leave one of the two out.",
            lambda given: not given["push"],
        ),
        Refusal(
            "private hardware secrets",
            "it is of a Space on the Hub. Add --push ID, or leave it out.",
            lambda given: bool(given["push"]),
        ),
    ),
}


def never_taken(command: str) -> set[str]:
    """Options of a command that never have an effect.

    Example:

    >>> "sft_model_path" in never_taken("ppo"), never_taken("demo")
    (True, set())
    """
    return {name for entry in REFUSED.get(command, ()) if entry.taken is None for name in entry.options.split()}


def refusal(command: str, given: Iterable[str], values: Mapping[str, Any]) -> str | None:
    """What is wrong with the options that were given, or `None`.

    Args:
        command (`str`): name of the subcommand.
        given (`Iterable[str]`): names of the options on the command line and in the recipe.
        values (`Mapping[str, Any]`): values of all options of the command.

    Example:

    >>> refusal("diagnose", ["batch_size"], {"batch_size": 8, "model_name_or_path": None})
    "--batch_size 8 is refused: it is of a model's forward. Add --model_name_or_path, or leave it out."
    """
    given = set(given)
    for entry in REFUSED.get(command, ()):
        for name in entry.options.split():
            # `false` and `null` of a recipe say what holds anyway; `--collection false` is `--exact`.
            value = values.get(name)
            unset = value is None or value is False or value in ("", [])
            if name in given and not unset and not (entry.taken and entry.taken(values)):
                return f"--{name} {value} is refused: {entry.reason}"
    return None
