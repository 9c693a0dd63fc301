# SPDX-License-Identifier: Apache-2.0
"""Evaluation with the gold utilities, and what the example prints and writes."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imdb_gold import GROUPS, GoldUtilities
from imdb_options import ImdbArguments
from imdb_policy import Replies
from imdb_stages import Preferences
from rich.console import Console

from trl_maxmin import MixtureRewardTrainer
from trl_maxmin.cli.io import print_table
from trl_maxmin.evaluation import assignment_accuracy, match_components, plot_comparison, win_rate
from trl_maxmin.functional.num_components import decide
from trl_maxmin.run_record import RunRecord
from trl_maxmin.trainer.reward.heads import rename_components


MAJORITY, MINORITY = GROUPS


@dataclass
class Stopwatch:
    """Announces stages and times them."""

    console: Console
    start: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str, title: str) -> Iterator[None]:
        self.console.print(f"[bold]{title}[/bold]")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        self.console.print(f"  {self.seconds[name]:.0f} s", highlight=False)

    def stop(self) -> dict[str, float]:
        """Seconds of all stages and in total."""
        return {**self.seconds, "total": round(time.perf_counter() - self.start, 1)}


def heldout_accuracy(trainer: MixtureRewardTrainer) -> dict[str, float]:
    """Accuracy on held-out pairs of each planted group's annotators, who were assigned by their other pairs."""
    right = (trainer.heldout_log_likelihood().exp() > 0.5).numpy()
    return _mean_by_group(right, trainer.eval_dataset["group"])


def _mean_by_group(values: np.ndarray, groups: list[str]) -> dict[str, float]:
    groups = np.asarray(groups)
    return {g: round(float(np.mean(values[groups == g])), 4) for g in GROUPS if (groups == g).any()}


def match_names(mixture: MixtureRewardTrainer, data: Preferences) -> tuple[list[int], list[str]]:
    """Name the components after the groups they stand for (EM never saw them).

    Returns:
        Each annotator's component and planted group.
    """
    planted = dict(zip(data.train["annotator_id"], data.train["group"], strict=True))
    groups = [planted[annotator] for annotator in mixture.annotators.annotator_ids]
    found = mixture.em_state.log_responsibilities.argmax(-1).tolist()
    matched = match_components(found, groups)
    count = mixture.mixture.num_components
    rename_components(mixture.mixture, [matched.get(k, f"component_{k}") for k in range(count)])
    return found, groups


def report_rewards(single: MixtureRewardTrainer, mixture: MixtureRewardTrainer, data: Preferences) -> dict[str, Any]:
    """What EM found; names the components, see [`match_names`]."""
    found, groups = match_names(mixture, data)
    count = mixture.mixture.num_components
    annotators = torch.tensor(single.eval_dataset["annotator_index"])
    scores = {1: single.heldout_log_likelihood(), count: mixture.heldout_log_likelihood()}
    selection = decide(scores, annotators)
    return {
        "assignment_accuracy": assignment_accuracy(found, groups),
        "mixing_weights": [round(weight, 4) for weight in mixture.mixture.mixing_weights.tolist()],
        "component_names": mixture.mixture.component_names,
        "heldout_accuracy": {"mixture": heldout_accuracy(mixture), "single": heldout_accuracy(single)},
        # Nobody can be right more often than the noise of the annotators leaves.
        "heldout_ceiling": _mean_by_group(np.asarray(data.heldout["gold_agrees"]), data.heldout["group"]),
        "heldout_log_likelihood": {str(k): round(value, 4) for k, value in selection.log_likelihood.items()},
        "selected_num_components": selection.num_components,
    }


def evaluate(gold: GoldUtilities, prompts: list[str], replies: dict[str, Replies]) -> dict[str, Any]:
    """Gold utility of every policy and its win rate against the reference, for every group.

    Args:
        gold ([`GoldUtilities`]): what training never saw.
        prompts (`list[str]`): P test prompts.
        replies (`dict[str, Replies]`): policy -> its replies, `"reference"` among them.
    """
    utility = {name: {g: gold(g, prompts, r) for g in GROUPS} for name, r in replies.items()}
    rates = {
        name: {g: win_rate(by_group[g], utility["reference"][g], clusters=prompts) for g in GROUPS}
        for name, by_group in utility.items()
        if name != "reference"
    }
    return {
        "gold_utility": {n: {g: round(float(u.mean()), 4) for g, u in by.items()} for n, by in utility.items()},
        "win_rate": {
            name: {g: {end: round(value, 4) for end, value in asdict(rate).items()} for g, rate in by_group.items()}
            for name, by_group in rates.items()
        },
        "replies": {
            name: {
                "mean_tokens": round(float(np.mean(r.lengths)), 2),
                "finished": round(float(np.mean(r.finished)), 4),
            }
            for name, r in replies.items()
        },
        "num_prompts": len(prompts),
    }


def samples(prompts: list[str], replies: dict[str, Replies], count: int = 5) -> list[dict[str, Any]]:
    """The first answers of every policy to the same prompts."""
    return [
        {"prompt": prompts[row], "completions": {name: r.texts[row] for name, r in replies.items()}}
        for row in range(min(count, len(prompts)))
    ]


def print_results(report: dict[str, Any], shown: list[dict[str, Any]], console: Console) -> None:
    """The one table, and a few answers side by side."""
    columns = ["policy"]
    for group in GROUPS:
        columns += [f"{group}{' (minority)' * (group == MINORITY)}: utility", "win rate vs reference [95 %]"]
    rows = []
    for name, by_group in report["gold_utility"].items():
        row = [name]
        for group in GROUPS:
            rate = report["win_rate"].get(name, {}).get(group)
            row.append(f"{by_group[group]:.2f}")
            row.append(f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]" if rate else "-")
        rows.append([*row, f"{report['replies'][name]['mean_tokens']:.1f}"])
    print_table("Gold utility and win rate by group", [*columns, "tokens"], rows, console)
    for sample in shown:
        console.print(sample["prompt"], style="dim", markup=False, highlight=False)
        for name, text in sample["completions"].items():
            console.print(f"  {name:>9}: {text or '(ends here)'}", markup=False, highlight=False)


def write(
    arguments: ImdbArguments, report: dict[str, Any], shown: list[dict[str, Any]], histories: dict[str, list[dict]]
) -> None:
    """Figure, run record and report; the report comes last, so that its presence means that all is there."""
    folder = Path(arguments.output_dir)
    record = RunRecord(seed=arguments.seed, versions=RunRecord.installed_versions())
    em = report["em"]
    record.update(
        "reward",
        **{
            name: em[name] for name in ("assignment_accuracy", "mixing_weights", "component_names", "heldout_accuracy")
        },
        component_kind="head",
        num_components=len(em["component_names"]),
        training={"max_steps": arguments.reward_steps, "learning_rate": arguments.reward_learning_rate},
    )
    record.update(
        "policy",
        name="maxmin",
        algorithm=arguments.trainer.upper(),
        welfare={"rule": arguments.welfare},
        training={name: getattr(arguments, name) for name in ("policy_steps", "policy_learning_rate", "kl_coef")},
        curves=_curves(histories["maxmin"]),
    )
    record.update(
        "evaluation",
        groups=list(GROUPS),
        majority=MAJORITY,
        minority=MINORITY,
        utility="gold",
        samples=shown,
        **{name: report[name] for name in ("num_prompts", "gold_utility", "win_rate")},
    )
    record.save(folder)
    plot_comparison(report, folder / "comparison.png")
    (folder / "report.json").write_text(json.dumps({**report, "samples": shown}, indent=2, ensure_ascii=False) + "\n")


def _curves(history: list[dict[str, float]]) -> dict[str, list[list[float]]]:
    curves: dict[str, list[list[float]]] = {}
    for entry in history:
        for metric, value in entry.items():
            if metric.startswith(("maxmin/", "objective/", "rewards/")):
                curves.setdefault(metric, []).append([entry["step"], float(value)])
    return curves


def peak_memory_mb() -> dict[str, float]:
    """Largest resident size of this process so far, and where there is a GPU the most that its tensors held there."""
    # Linux counts kilobytes, macOS bytes.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    peaks = {"peak_rss_mb": round(resident, 1)}
    if torch.cuda.is_available():
        peaks["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peaks
