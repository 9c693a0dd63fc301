# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin evaluate`: any set of policies on any prompts, measured for every group."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress
from trl import ScriptArguments

from ..data.film_reviews import GOLD_UTILITIES
from ..evaluation.evaluator import Evaluation, Policy, evaluate_policies
from ..evaluation.generation import Sampling, read_completions, write_completions
from ..evaluation.judges import EndpointJudge
from ..evaluation.plots import plot_groups, plot_pareto, plot_training
from ..evaluation.results import results_to_markdown
from ..models.loading import require_model_folder
from ..reading import read_json
from ..run_record import RUN_RECORD_NAME, RunRecord
from .io import read_dataset
from .loading import require_model
from .output_folder import EVALUATION_FILES, require_writable
from .parser import CommandParser, UsageError
from .policy import load_reward_models, reward_model_names


@dataclass
class EvaluateArguments(ScriptArguments):
    """Options of `trl-maxmin evaluate`.

    Args:
        policies (`list[str]`): `NAME=FOLDER_OR_HUB_ID`, or the folder or id alone.
        reference (`str`): folder or Hub id of the policy the others are compared with, or its name.
        reward_model (`str`): mixture or reward models whose components are groups.
        gold (`list[str]`): known groups: `FILE.py:FUNCTION` (a reward function), or `world:GROUP`.
        completions (`str`): cached generations (.parquet, .jsonl): policy, prompt, completion, finished.
        judge_url, judge_model, criteria: a pairwise judge behind an OpenAI-compatible endpoint.
        judge_key_variable (`str`): environment variable that holds the endpoint's key.
        output_dir (`str`): folder for results and figures.
        max_prompts (`int`): use the first so many rows.
        max_new_tokens, temperature, num_completions, batch_size, seed, max_prompt_length, generation_backend: of the
            sampling.
        chat_template_kwargs (`dict`): keywords for the chat template, as in the policies' training.
        dtype (`str`): of the policies' weights.
        num_resamples (`int`): of the bootstrap over prompts.
        majority, minority (`str`): groups of the Pareto figure.
    """

    policies: list[str] | None = field(
        default=None, metadata={"help": "Policies: NAME=FOLDER_OR_HUB_ID, or the folder or id alone."}
    )
    reference: str | None = field(
        default=None,
        metadata={"help": "Folder, Hub id or name of the policy that the others are compared with."},
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "Mixture or one-label reward models (comma separated) as groups."}
    )
    gold: list[str] | None = field(
        default=None, metadata={"help": "Known groups: FILE.py:FUNCTION, or world:GROUP of the embedded world."}
    )
    completions: str | None = field(
        default=None,
        metadata={"help": "Cached generations with the columns policy, prompt, completion[, finished]."},
    )
    judge_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible endpoint of a judge, such as http://localhost:8000/v1."}
    )
    judge_model: str | None = field(default=None, metadata={"help": "Name of the judge's model there."})
    criteria: list[str] | None = field(
        default=None, metadata={"help": "What to judge by: P1A, P1B, P2A, P2B, P3A, P3B, or NAME=SENTENCE."}
    )
    judge_key_variable: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the endpoint's key, if any."}
    )
    output_dir: str = field(default="evaluation", metadata={"help": "Folder for results and figures."})
    max_prompts: int | None = field(default=None, metadata={"help": "Use the first so many rows."})
    max_new_tokens: int = field(default=128, metadata={"help": "Length limit of a reply, in tokens."})
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Longer prompts are cut: text keeps BOS and its last tokens, a conversation loses its oldest "
            "turns. By default a long one is an error."
        },
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "JSON of keywords for the chat template, as in the policies' training."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    generation_backend: str = field(
        default="generate",
        metadata={"help": "Who samples: generate, continuous_batching (many prompts, long uneven replies), or auto."},
    )
    num_completions: int = field(default=4, metadata={"help": "Replies a prompt, of every policy."})
    batch_size: int = field(default=32, metadata={"help": "Prompts (or replies to score) a forward."})
    seed: int = field(default=0, metadata={"help": "Of replies and resamples."})
    dtype: str | None = field(default=None, metadata={"help": "Type of the policies' weights, such as bfloat16."})
    num_resamples: int = field(default=2000, metadata={"help": "Resamples of the bootstrap over prompts."})
    majority: str | None = field(default=None, metadata={"help": "Group on the Pareto figure's x axis."})
    minority: str | None = field(default=None, metadata={"help": "Group on its y axis."})


def run(argv: Sequence[str]) -> None:
    """Write `evaluation.json`, `evaluation.md`, `completions.parquet`, figures and the run record.

    Args:
        argv (`Sequence[str]`): options of [`EvaluateArguments`].

    Raises:
        ValueError: options that do not fit together, or as [`evaluate_policies`].
        OSError: a model, file or endpoint that cannot be reached.
    """
    parser = CommandParser(
        EvaluateArguments,
        prog="trl-maxmin evaluate",
        description="Measure policies for every group: utilities, win rates, KL, with paired intervals over prompts.",
        epilog="  trl-maxmin evaluate --policies single=out/single maxmin=out/maxmin --reference out/reference \\\n"
        "      --reward_model out/mixture --dataset_name prompts.jsonl\n"
        "  trl-maxmin evaluate --completions generations.parquet --reference reference \\\n"
        "      --gold my_groups.py:brevity my_groups.py:warmth",
    )
    (arguments,) = parser.parse_args_and_config(list(argv))
    _check(arguments)
    arguments.chat_template_kwargs = chat_template_options(arguments)
    accelerator = Accelerator()
    policies, reference = _policies(arguments)
    generated = any(isinstance(policy.source, str) for policy in policies.values())
    prompts = prompts_of(arguments) if generated else None
    gold = {name: function for name, function in map(_gold, arguments.gold or [])}
    _require_models(policies, arguments.reward_model)
    require_writable(arguments.output_dir)
    with Progress(console=Console(stderr=True), disable=not shows_progress(accelerator), transient=True) as bars:
        found = evaluate_policies(
            policies,
            prompts,
            reference=reference,
            reward_model=load_reward_models(arguments.reward_model) if arguments.reward_model else None,
            gold=gold,
            judges=_judges(arguments),
            sampling=Sampling(
                arguments.max_new_tokens,
                arguments.temperature,
                arguments.num_completions,
                arguments.batch_size,
                arguments.seed,
                arguments.max_prompt_length,
                arguments.chat_template_kwargs,
                arguments.generation_backend,
            ),
            accelerator=accelerator,
            num_resamples=arguments.num_resamples,
            progress=reporter(bars),
        )
    if accelerator.is_main_process:
        _write(found, arguments, generated)
    accelerator.end_training()


def _check(arguments: EvaluateArguments) -> None:
    if not arguments.policies and not arguments.completions:
        raise UsageError("--policies or --completions is required: what should be measured?")
    if not arguments.reference:
        raise UsageError("--reference is required: the folder, Hub id or name of the policy to compare with.")
    if not (arguments.reward_model or arguments.gold or arguments.judge_url):
        raise UsageError("Nobody to ask: give --reward_model, --gold, or --judge_url with --criteria.")
    if bool(arguments.judge_url) != bool(arguments.criteria) or bool(arguments.judge_url) != bool(
        arguments.judge_model
    ):
        raise UsageError("A judge needs --judge_url, --judge_model and --criteria together.")
    if arguments.policies and arguments.completions:
        raise UsageError(
            "--completions and policies that sample cannot be mixed: replies must be to the same prompts. Give one of "
            "the two."
        )
    if arguments.max_prompts is not None and arguments.max_prompts < 2:
        raise UsageError(f"--max_prompts must be at least 2, got {arguments.max_prompts}.")


def chat_template_options(arguments: Any) -> dict[str, Any] | None:
    """`--chat_template_kwargs`, which a recipe gives as an object and a command line as its JSON.

    Raises:
        UsageError: no JSON object.
    """
    text = arguments.chat_template_kwargs
    if not isinstance(text, str):
        return text
    try:
        found = read_json(text.encode())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(
            f"--chat_template_kwargs must be a JSON object such as '{{\"enable_thinking\": false}}', got {text!r}."
        )
    return found


def _policies(arguments: EvaluateArguments) -> tuple[dict[str, Policy], str]:
    policies: dict[str, Policy] = {}
    load = {"dtype": arguments.dtype} if arguments.dtype else {}
    if arguments.completions:
        cached, _ = read_dataset(ScriptArguments(dataset_name=arguments.completions))
        policies |= {name: Policy(replies) for name, replies in read_completions(cached).items()}
    for word in arguments.policies or []:
        # A Hub id and a path have no `=`; where a path does, name it.
        name, _, source = word.rpartition("=") if "=" in word else (Path(word).name, "", word)
        if not name or name in policies:
            raise UsageError(f"The policy {word!r} has no name of its own; write NAME=FOLDER_OR_HUB_ID.")
        policies[name] = _source(source, "--policies", load)
    reference = arguments.reference
    if reference in policies:
        return policies, reference
    if all(not isinstance(policy.source, str) for policy in policies.values()):
        raise ValueError(f"--reference {reference}: none of the policies {list(policies)} of {arguments.completions}.")
    same = [name for name, policy in policies.items() if policy.source == reference]
    if same:
        return policies, same[0]
    name = "reference" if "reference" not in policies else Path(reference).name
    if name in policies:
        raise UsageError(f"--reference {reference} has no name of its own; add it to --policies as NAME={reference}.")
    return {name: _source(reference, "--reference", load)} | policies, name


def _source(source: str, argument: str, load: dict[str, Any]) -> Policy:
    if Path(source).is_dir():
        require_model_folder(source, argument)
    return Policy(source, load)


def _require_models(policies: dict[str, Policy], reward_model: str | None) -> None:
    """All that will be loaded is there, before the first is: the last policy's turn may come after hours."""
    for policy in policies.values():
        if isinstance(policy.source, str):
            require_model(policy.source, "--policies")
    if reward_model:
        reward_model_names(reward_model)


def prompts_of(arguments: Any) -> list[Any]:
    """The first `--max_prompts` of the test split of `--dataset_name`, or of the training split where there is none.

    Raises:
        ValueError: rows without prompts, or as [`read_dataset`].
    """
    train, test = read_dataset(arguments)
    data = train if test is None else test
    if "prompt" not in data.column_names:
        raise ValueError(f"{arguments.dataset_name} has no column 'prompt'; it has {', '.join(data.column_names)}.")
    prompts = list(data["prompt"])[: arguments.max_prompts]
    return prompts


def _gold(word: str) -> tuple[str, Callable[..., Any]]:
    """Name and function of a known group."""
    where, _, name = word.rpartition(":")
    if where == "world":
        if name not in GOLD_UTILITIES:
            raise UsageError(f"--gold {word}: groups of the embedded world are {', '.join(GOLD_UTILITIES)}.")
        from ..data.world import FilmReviewWorld

        return name, FilmReviewWorld(groups=(name,)).gold_reward_functions()[0]
    path = Path(where)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"--gold {word}: write FILE.py:FUNCTION with an existing file, or world:GROUP.")
    spec = importlib.util.spec_from_file_location(f"trl_maxmin_gold_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"--gold {word}: {path} has no function {name!r}.")
    return name, getattr(module, name)


def _judges(arguments: EvaluateArguments) -> dict[str, EndpointJudge]:
    judges = {}
    for word in arguments.criteria or []:
        name, _, sentence = word.partition("=")
        key = os.environ.get(arguments.judge_key_variable)
        judges[name] = EndpointJudge(arguments.judge_url, arguments.judge_model, sentence or name, api_key=key)
    return judges


def shows_progress(accelerator: Accelerator) -> bool:
    """Whether this process draws progress bars: the main one, on a terminal, unless `--quiet`."""
    return accelerator.is_main_process and not os.environ.get("TRL_MAXMIN_QUIET") and Console(stderr=True).is_terminal


def reporter(bars: Progress) -> Callable[[str, int, int], None]:
    """What [`evaluate_policies`] takes as `progress`, drawn as bars."""
    tasks: dict[str, Any] = {}

    def report(title: str, done: int, total: int) -> None:
        if title not in tasks:
            tasks[title] = bars.add_task(title, total=total)
        bars.update(tasks[title], completed=done)

    return report


def _write(found: Evaluation, arguments: EvaluateArguments, generated: bool) -> None:
    folder = Path(arguments.output_dir)
    for file in (folder / name for name in EVALUATION_FILES):  # of an earlier evaluation, of other policies or groups
        if not arguments.completions or file.resolve() != Path(arguments.completions).resolve():
            file.unlink(missing_ok=True)
    results, written = found.results, ["evaluation.json", "evaluation.md"]
    (folder / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / "evaluation.md").write_text(results_to_markdown(results), encoding="utf-8")
    if generated:
        write_completions(found.replies).to_parquet(folder / "completions.parquet")
        written.append("completions.parquet")
    for measure in ("win_rate", "utility"):
        if any(measure in group for entry in results["policies"].values() for group in entry["by_group"].values()):
            written.append(plot_groups(results, folder / f"{measure}.png", measure).name)
    written += _pareto(found, arguments, folder)
    curves = _training_curves(arguments)
    if curves:
        written.append(plot_training(curves, folder / "training.png").name)
    facts = found.run_record_facts()
    if arguments.majority in facts["groups"] and arguments.minority in facts["groups"]:
        facts |= {"majority": arguments.majority, "minority": arguments.minority}
    # What an earlier evaluation in this folder found about other policies or groups is not true of this one.
    stale = dict.fromkeys(("majority", "minority", "win_rate", "gold_utility"))
    RunRecord.update_file(folder, "evaluation", replace=True, **(stale | facts))
    console = Console()
    text = results_to_markdown(results)
    console.print(Markdown(text) if console.is_terminal else text, highlight=False, soft_wrap=not console.is_terminal)
    print(f"wrote {folder}/: {', '.join([*written, RUN_RECORD_NAME])}")


def _pareto(found: Evaluation, arguments: EvaluateArguments, folder: Path) -> list[str]:
    """Of the groups that are named, or of the two known ones (or components) that are the largest and the smallest."""
    groups = found.results["groups"]
    for word in (arguments.majority, arguments.minority):
        if word is not None and word not in groups:
            raise ValueError(f"There is no group {word!r}; groups: {', '.join(groups)}.")
    pair = (arguments.majority, arguments.minority)
    if None in pair:
        kind = next((kind for kind in ("gold", "component") if kind in groups.values()), None)
        own = [group for group, own_kind in groups.items() if own_kind == kind]
        own.sort(key=lambda group: -found.scores.weights.get(group, 0.0))
        if len(own) < 2:
            return []
        pair = (own[0], own[-1])
    return [plot_pareto(found.results, folder / "pareto.png", *pair).name]


def _training_curves(arguments: EvaluateArguments) -> dict[str, list[list[float]]]:
    """Worst-group utilities from the run records beside local policies, where there are some."""
    curves = {}
    for word in arguments.policies or []:
        name, _, source = word.rpartition("=") if "=" in word else (Path(word).name, "", word)
        if (Path(source) / RUN_RECORD_NAME).is_file():
            points = RunRecord.load(source).policy.get("curves", {}).get("maxmin/worst_utility")
            if points:
                curves[name] = points
    return curves
