# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin best-of`: of n sampled replies the one that serves the worst-off group, without any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress
from trl import ScriptArguments

from ..evaluation.evaluator import Policy
from ..evaluation.generation import Replies, Sampling, read_completions, write_completions
from ..inference.best_of import BestOfN, BestOfPolicy
from ..trainer.maxmin.maxmin_config import WELFARE_CHOICES, MaxMinConfigMixin
from .evaluate import chat_template_options, prompts_of, reporter, shows_progress
from .io import print_table, read_dataset
from .loading import require_model
from .output_folder import require_writable
from .parser import CommandParser, UsageError
from .policy import load_reward_models, reward_model_names


COMPLETIONS_NAME, REPORT_NAME = "completions.parquet", "best_of.json"


@dataclass
class BestOfArguments(MaxMinConfigMixin, ScriptArguments):
    """Options of `trl-maxmin best-of`, beside those of the welfare rules.

    Args:
        policy (`str`): folder or Hub id of the policy that is sampled.
        reward_model (`str`): mixture or reward models whose components choose.
        num_candidates (`int`): replies that each chosen one is chosen from.
        also (`list[str]`): further welfare rules, on the same candidates.
        name (`list[str]`): names of the policies in the result, one a rule.
        reference (`str`): folder or Hub id of the policy that utilities are measured against; with `completions`, its
            name there.
        completions (`str`): replies of other policies, as `evaluate` writes them: the prompts are theirs, and the
            result holds them too.
        output_dir (`str`): folder for the result.
        max_prompts, max_new_tokens, max_prompt_length, chat_template_kwargs, temperature, num_completions, batch_size,
            seed, dtype: as in `evaluate`.
    """

    policy: str | None = field(default=None, metadata={"help": "Folder or Hub id of the policy that is sampled."})
    reward_model: str | None = field(
        default=None, metadata={"help": "Mixture or one-label reward models (comma separated) that choose."}
    )
    num_candidates: int = field(default=16, metadata={"help": "n: replies that each chosen one is chosen from."})
    also: list[str] | None = field(
        default=None, metadata={"help": "Further welfare rules on the same candidates, such as utilitarian."}
    )
    name: list[str] | None = field(
        default=None, metadata={"help": "Names of the policies in the result, one a rule (best-of-16-maxmin)."}
    )
    reference: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of the policy that utilities are measured against (by default the policy "
            "itself); with --completions, its name there."
        },
    )
    completions: str | None = field(
        default=None,
        metadata={"help": "Replies of other policies (.parquet, .jsonl of evaluate) that the result holds as well."},
    )
    output_dir: str = field(default="best-of", metadata={"help": "Folder for the chosen replies."})
    max_prompts: int | None = field(default=None, metadata={"help": "Use the first so many rows."})
    max_new_tokens: int = field(default=128, metadata={"help": "Length limit of a reply, in tokens."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longer prompts are cut, as in evaluate. By default a long one is an error."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "JSON of keywords for the chat template, as in the policy's training."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature, above 0."})
    num_completions: int = field(
        default=4, metadata={"help": "Replies to be chosen a prompt, each among num_candidates of its own."}
    )
    batch_size: int = field(default=32, metadata={"help": "Prompts (or replies to score) a forward."})
    seed: int = field(default=0, metadata={"help": "Of the replies."})
    dtype: str | None = field(default=None, metadata={"help": "Type of the policy's weights, such as bfloat16."})


def run(argv: Sequence[str]) -> None:
    """Write `completions.parquet`, with the reference's replies and the chosen ones, and `best_of.json`.

    Args:
        argv (`Sequence[str]`): options of [`BestOfArguments`].

    Raises:
        UsageError: options that do not fit together.
        ValueError: as [`BestOfN`].
        OSError: a model or file that cannot be reached.
    """
    parser = CommandParser(
        BestOfArguments,
        prog="trl-maxmin best-of",
        description="Of n sampled replies to each prompt choose the one that serves the worst-off group: one weight "
        "vector for the set of prompts. Nothing is trained.",
        epilog="  trl-maxmin best-of --policy out/reference --reward_model out/mixture --dataset_name p.jsonl \\\n"
        "      --welfare maxmin --also utilitarian --output_dir best-of\n"
        "  trl-maxmin evaluate --completions best-of/completions.parquet --reference reference \\\n"
        "      --reward_model out/mixture",
    )
    (arguments,) = parser.parse_args_and_config(list(argv))
    rules = [arguments.welfare, *(arguments.also or [])]
    names = _check(arguments, rules)
    options = chat_template_options(arguments)
    accelerator = Accelerator()
    others, prompts = _prompts(arguments)
    if taken := [name for name in names if name in others]:
        raise UsageError(f"{arguments.completions} has a policy {taken[0]!r} already; give --name another one.")
    for source, option in ((arguments.policy, "--policy"), (_sampled_reference(arguments), "--reference")):
        if source:
            require_model(source, option)
    reward_model_names(arguments.reward_model)
    require_writable(arguments.output_dir)
    count = len(next(iter(others.values()))) // len(prompts) if others else arguments.num_completions
    load = {"dtype": arguments.dtype} if arguments.dtype else {}
    reference: Any = others.get(arguments.reference)
    if _sampled_reference(arguments):
        reference = Policy(arguments.reference, load).load(accelerator.device)
    best_of = BestOfN(
        Policy(arguments.policy, load).load(accelerator.device),
        load_reward_models(arguments.reward_model),
        arguments.num_candidates,
        _settings(arguments),
        Sampling(
            arguments.max_new_tokens,
            arguments.temperature,
            count,
            arguments.batch_size,
            arguments.seed,
            arguments.max_prompt_length,
            options,
            arguments.generation_backend,
        ),
        reference,
        accelerator,
    )
    with Progress(console=Console(stderr=True), disable=not shows_progress(accelerator), transient=True) as bars:
        chosen = best_of.run(prompts, rules, reporter(bars))
    if accelerator.is_main_process:
        _write(
            arguments, others or {"reference": best_of.reference_replies}, dict(zip(names, rules, strict=True)), chosen
        )
    accelerator.end_training()


def _check(arguments: BestOfArguments, rules: list[str]) -> list[str]:
    """Names of the policies in the result."""
    missing = [f"--{name}" for name in ("policy", "reward_model") if not getattr(arguments, name)]
    if missing:
        raise UsageError(f"{' and '.join(missing)} required. `trl-maxmin best-of --help` lists the options.")
    if arguments.completions and not arguments.reference:
        raise UsageError("--completions needs --reference: which of its policies are utilities measured against?")
    if unknown := [rule for rule in rules if rule not in WELFARE_CHOICES]:
        raise UsageError(f"--also {unknown[0]} is unknown; choose of {', '.join(WELFARE_CHOICES)}.")
    if len(set(rules)) < len(rules):
        raise UsageError(f"The rules {', '.join(rules)} name one twice; leave it out of --also.")
    names = arguments.name or [f"best-of-{arguments.num_candidates}-{rule}" for rule in rules]
    if len(names) != len(rules) or len({*names, "reference"}) <= len(rules):
        raise UsageError(f"--name needs {len(rules)} different names other than 'reference', got {', '.join(names)}.")
    return names


def _sampled_reference(arguments: BestOfArguments) -> str | None:
    return None if arguments.completions else arguments.reference


def _prompts(arguments: BestOfArguments) -> tuple[dict[str, Replies], list[Any]]:
    """Replies of other policies, and the prompts."""
    if not arguments.completions:
        return {}, prompts_of(arguments)
    cached, _ = read_dataset(ScriptArguments(dataset_name=arguments.completions))
    others = read_completions(cached)
    if arguments.reference not in others:
        raise ValueError(
            f"--reference {arguments.reference}: none of the policies {', '.join(others)} of {arguments.completions}."
        )
    own = others[arguments.reference].prompts
    prompts = list({repr(prompt): prompt for prompt in own}.values())
    if any(own[row * len(own) // len(prompts)] != prompt for row, prompt in enumerate(prompts)):
        raise ValueError(
            f"{arguments.completions} has more replies to some prompts than to others; give the same number to each."
        )
    return others, prompts


def _settings(arguments: BestOfArguments) -> MaxMinConfigMixin:
    return MaxMinConfigMixin(**{entry.name: getattr(arguments, entry.name) for entry in fields(MaxMinConfigMixin)})


def _write(
    arguments: BestOfArguments,
    others: dict[str, Replies | None],
    rules: dict[str, str],
    chosen: dict[str, BestOfPolicy],
) -> None:
    folder = Path(arguments.output_dir)
    rows = write_completions({**others, **{name: chosen[rule].replies for name, rule in rules.items()}})
    temporary = folder / f".{COMPLETIONS_NAME}"
    rows.to_parquet(temporary)
    temporary.replace(folder / COMPLETIONS_NAME)
    facts = {name: {"rule": rule, **chosen[rule].facts()} for name, rule in rules.items()}
    num_replies = len(next(iter(chosen.values())).replies)
    report = {"num_candidates": arguments.num_candidates, "num_replies": num_replies, "policies": facts}
    (folder / REPORT_NAME).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_table(
        f"Best of {arguments.num_candidates}, {num_replies} replies, by the rewards that chose them",
        ["policy", *(f"{group} (weight)" for group in chosen[arguments.welfare].names), "KL (nats)"],
        [
            [
                name,
                *(
                    f"{entry['utility'].get(group, float('nan')):+.3f}"
                    + (f" ({entry['weight'][group]:.2f})" if "weight" in entry else "")
                    for group in chosen[arguments.welfare].names
                ),
                f"{entry['kl']:.3f}",
            ]
            for name, entry in facts.items()
        ],
    )
    print("Rewards like what they chose; `trl-maxmin evaluate` measures it, with --gold where groups are known.")
    print(f"wrote {folder}/: {COMPLETIONS_NAME}, {REPORT_NAME}")
