# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin demo`: the whole method on the embedded world, measured with gold utilities that training never sees."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from rich.console import Console
from transformers import GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from ..data.world import FilmReviewWorld
from ..evaluation.agreement import assignment_accuracy, match_components
from ..evaluation.figures import plot_comparison
from ..evaluation.generation import Replies
from ..evaluation.metrics import win_rate
from ..models.modeling_mixture_reward import MixtureRewardModel
from ..run_record import RunRecord
from ..space.groups import describe_groups, write_group_facts
from ..trainer import MixtureRewardTrainer
from ..trainer.common.recording import component_counts, component_heldout
from ..trainer.maxmin.maxmin_config import WELFARE_CHOICES
from ..trainer.reward.component_selection import ComponentSelection
from .demo_stages import (
    DemoSettings,
    Progress,
    collect_preferences,
    heldout_accuracy,
    policy_trainer,
    reward_trainer,
    run_training,
    sample_replies,
)
from .io import print_table
from .output_folder import OVERWRITE_HELP, prepare_output_folder
from .parser import CommandParser
from .reward import save_mixture


ALGORITHMS = ("ppo", "grpo", "rloo")


@dataclass
class DemoArguments:
    r"""
    Options of `trl-maxmin demo`.

    Args:
        output_dir (`str`): folder for everything the demo writes.
        seed (`int`): everything follows from it.
        minority_share (`float`): share of the 50 annotators who are in the minority; 0 plants no groups.
        trainer (`str`): algorithm of the policies, `"ppo"`, `"grpo"` or `"rloo"`.
        welfare (`str`): welfare rule of the MaxMin policy.
        oracle (`bool`): also train max-min on the gold utilities, as the ceiling.
        overwrite_output_dir (`bool`): remove an earlier run from `output_dir`.
    """

    output_dir: str = field(default="maxmin-demo", metadata={"help": "Folder for everything the demo writes."})
    seed: int = field(default=0, metadata={"help": "Everything follows from it."})
    minority_share: float = field(
        default=0.2, metadata={"help": "Share of the 50 annotators in the minority; 0 plants no groups."}
    )
    trainer: str = field(default="ppo", metadata={"help": "Algorithm of the policies: 'ppo', 'grpo' or 'rloo'."})
    welfare: str = field(default="maxmin", metadata={"help": "Welfare rule of the MaxMin policy."})
    oracle: bool = field(default=False, metadata={"help": "Also train max-min on the gold utilities, the ceiling."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})

    def __post_init__(self) -> None:
        if not 0 <= self.minority_share < 1:
            raise ValueError(f"minority_share must lie in [0, 1), got {self.minority_share}.")
        if self.trainer not in ALGORITHMS:
            raise ValueError(f"trainer must be one of {', '.join(ALGORITHMS)}, got {self.trainer!r}.")
        if self.welfare not in WELFARE_CHOICES:
            raise ValueError(f"welfare must be one of {', '.join(WELFARE_CHOICES)}, got {self.welfare!r}.")


class Demo:
    """The stages of the demo, in order. Each writes its part of the report.

    Args:
        arguments ([`DemoArguments`]): options.
        console (`Console`): where to print.
        settings ([`DemoSettings`]): sizes.
    """

    def __init__(self, arguments: DemoArguments, console: Console, settings: DemoSettings | None = None) -> None:
        self.arguments = arguments
        self.settings = settings or DemoSettings()
        self.console = console
        self.output = Path(arguments.output_dir)
        self.output.mkdir(parents=True, exist_ok=True)
        self.world = FilmReviewWorld(seed=arguments.seed)
        self.seconds: dict[str, float] = {}
        self.report: dict[str, Any] = {
            "seed": arguments.seed,
            "groups": list(self.world.groups),
            "minority": self.world.minority,
        }
        if arguments.trainer != "ppo":
            self.report["trainer"] = arguments.trainer
        self.record = RunRecord(seed=arguments.seed, versions=RunRecord.installed_versions())

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Announce a stage and time it."""
        self.console.print(f"[bold]{title}[/bold]")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.console.print(f"  {time.perf_counter() - start:.0f} s")

    def run(self) -> dict[str, Any]:
        """All stages; returns the report that is also written to `report.json`."""
        start = time.perf_counter()
        seed = self.arguments.seed
        with self.stage("pretrain", "1/5 Pretrain the reference policy on film reviews"):
            reference = self.world.pretrain(steps=self.settings.pretrain_steps, seed=seed)
            self.save_policy(reference, "reference")
        with self.stage(
            "reward",
            f"2/5 Ask {self.settings.num_annotators} annotators, learn rewards by EM and, as control, one for all",
        ):
            mixture, single = self.fit_rewards(reference)
        algorithm = self.arguments.trainer.upper()
        policies: dict[str, GPT2LMHeadModel] = {"reference": reference}
        with self.stage("single", f"3/5 {algorithm} on the single reward (conventional RLHF)"):
            policies["single"] = self.train("single", reference, single.mixture)
        with self.stage("maxmin", f"4/5 MaxMin-{algorithm} on the mixture"):
            policies["maxmin"] = self.train("maxmin", reference, mixture.mixture)
        if self.arguments.oracle:
            with self.stage("oracle", "    Max-min on the gold utilities (the ceiling)"):
                policies["oracle"] = self.train("oracle", reference, self.world.gold_reward_functions())
        with self.stage("evaluation", "5/5 Ask the gold utilities, which training never saw"):
            self.evaluate(policies)
        self.seconds["total"] = time.perf_counter() - start
        self.report["seconds"] = {name: round(value, 1) for name, value in self.seconds.items()}
        # Linux counts kilobytes, macOS bytes.
        unit = 2**20 if sys.platform == "darwin" else 2**10
        self.report["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
        self.write()
        return self.report

    def fit_rewards(self, reference: GPT2LMHeadModel) -> tuple[MixtureRewardTrainer, MixtureRewardTrainer]:
        """Preferences, how many components they support (K = 1 or 2), the control (K = 1) and the mixture."""
        train, heldout = collect_preferences(
            self.world, reference, self.arguments.minority_share, self.arguments.seed, self.settings
        )
        trainers = {
            k: reward_trainer(
                reference,
                self.world.tokenizer,
                train,
                heldout,
                k,
                self.arguments.seed,
                self.output / "logs" / f"k{k}",
                self.settings,
            )
            for k in (1, 2)
        }
        # As `reward --select 1,2` does: on the trunk as it is, before it is trained.
        selection = trainers[2].select_num_components([1, 2])
        trainers[1].share_features(trainers[2])
        chosen = selection.num_components
        for k in sorted({1, chosen}):
            figures = {"predictive_log_likelihood": f"K = {k}: log-likelihood", "accuracy": "accuracy"}
            run_training(trainers[k], Progress(self.console, figures))
        single, mixture = trainers[1], trainers[chosen]
        if selection.verdict_kind == "one":
            self.console.print("  No evidence of groups in these data: one component suffices.")
        self.console.print(f"  {selection.verdict()}")
        planted = {row["annotator_id"]: row["group"] for row in train}
        groups = [planted[annotator] for annotator in mixture.annotators.annotator_ids]
        found = mixture.em_state.log_responsibilities.argmax(-1).tolist()
        if mixture.mixture.num_components > 1:
            # The world knows its groups, so components may carry their names; EM never saw them.
            matched = match_components(found, groups)
            names = [matched.get(k, f"component_{k}") for k in range(mixture.mixture.num_components)]
            mixture.mixture.config.component_names = names
        accuracy = assignment_accuracy(found, groups)
        self.report["em"] = {
            "assignment_accuracy": accuracy,
            "mixing_weights": mixture.mixture.mixing_weights.tolist(),
            "num_components": selection.num_components,
            "component_names": mixture.mixture.component_names,
            "heldout_accuracy": {
                "mixture": heldout_accuracy(mixture, self.world.groups),
                "single": heldout_accuracy(single, self.world.groups),
            },
            "heldout_log_likelihood": {str(k): value for k, value in selection.log_likelihood.items()},
            "verdict_kind": selection.verdict_kind,
        }
        self.console.print(
            f"  annotators assigned as planted: {accuracy:.2f}; held-out accuracy "
            + ", ".join(
                f"{model} {group} {value:.2f}"
                for model, by_group in self.report["em"]["heldout_accuracy"].items()
                for group, value in by_group.items()
            )
        )
        save_mixture(mixture, self.output, "mixture")
        single.mixture.save_pretrained(self.output / "single_reward")
        write_group_facts(describe_groups(mixture.mixture, train), self.output)
        self.record.update("reward", **self.reward_facts(mixture, selection))
        return mixture, single

    def reward_facts(self, mixture: MixtureRewardTrainer, selection: ComponentSelection) -> dict[str, Any]:
        """What the run record keeps of the reward stage."""
        em, config = self.report["em"], mixture.mixture.config
        keys = ("assignment_accuracy", "mixing_weights", "num_components", "component_names", "heldout_accuracy")
        curves: dict[str, list[list[float]]] = {}
        for entry in mixture.em_history:
            for name, value in entry.items():
                if name != "step":
                    curves.setdefault(name, []).append([entry["step"], value])
        return {
            **{key: em[key] for key in keys},
            "component_kind": config.component_type,
            "dataset": {"num_rows": len(mixture.train_dataset), "num_annotators": len(mixture.annotators)},
            # Anew, for the components have got their names since.
            **component_counts(mixture),
            **component_heldout(mixture, mixture.scored(mixture.eval_dataset).accuracy),
            "em": {"kind": mixture.args.em, "n_init": mixture.args.n_init, "init_steps": mixture.args.init_steps},
            "training": {"max_steps": mixture.args.max_steps, "learning_rate": mixture.args.learning_rate},
            "curves": curves,
            "selection": selection.facts(),
            "calibration": {"temperature": config.temperatures},
        }

    def train(self, name: str, reference: GPT2LMHeadModel, reward_model: MixtureRewardModel | list) -> GPT2LMHeadModel:
        """One policy from the reference, with the budget and the KL coefficient that all of them get."""
        build, start = policy_trainer, reference
        if self.arguments.trainer != "ppo":
            from .demo_trl import trl_policy_trainer  # TRL's trainers take seconds to import

            build, start = partial(trl_policy_trainer, self.arguments.trainer), self.output / "policies" / "reference"
        logs, options = self.output / "logs" / name, self.arguments
        trainer = build(self.world, start, reward_model, options.seed, logs, self.settings, options.welfare)
        shown = {"maxmin/worst_utility": "worst utility", "maxmin/gap": "gap"}
        shown |= {"objective/kl": "KL (nats)", "kl": "KL (nats a token)"}
        run_training(trainer, Progress(self.console, shown))
        policy = trainer.policy_model if self.arguments.trainer == "ppo" else trainer.model
        self.save_policy(policy, name)
        curves: dict[str, list[list[float]]] = {}
        for entry in trainer.state.log_history:
            for metric, value in entry.items():
                if metric.startswith(("maxmin/", "objective/", "rewards/")) or metric == "kl":
                    curves.setdefault(metric, []).append([entry["step"], value])
        rewards = {"single": "single_reward", "maxmin": "mixture", "oracle": "gold utilities"}
        facts = {
            "name": name,
            "algorithm": self.arguments.trainer.upper(),
            "reward_model": rewards[name],
            "welfare": {"rule": self.arguments.welfare},
            "calibration": {"utility": "zscore"},
            "curves": curves,
        }
        RunRecord().update("policy", **facts).save(self.output / "policies" / name)
        if name == "maxmin":
            self.record.update("policy", **facts)
        return policy

    def save_policy(self, policy: GPT2LMHeadModel, name: str) -> None:
        """`policies/<name>`: a folder for `AutoModelForCausalLM` and `AutoTokenizer`."""
        folder = self.output / "policies" / name
        policy.save_pretrained(folder)
        self.world.tokenizer.save_pretrained(folder)

    def evaluate(self, policies: dict[str, GPT2LMHeadModel]) -> None:
        """Gold utility of every policy, and its win rate against the reference, for every group."""
        seed = self.arguments.seed
        prompts = self.world.sample_prompts(self.settings.num_eval_prompts, seed=seed, split="eval")
        # The trained policies share one random stream, apart from the reference's: they are compared with each other
        # on equal luck, and their replies stay independent of those they are to beat.
        replies = {
            name: sample_replies(self.world, policy, prompts, seed, "evaluation", name == "reference")
            for name, policy in policies.items()
        }
        utility = {
            name: {g: self.world.gold_utility(g, r.completions, r.finished) for g in self.world.groups}
            for name, r in replies.items()
        }
        self.report["gold_utility"] = {
            name: {group: round(float(values.mean()), 4) for group, values in by_group.items()}
            for name, by_group in utility.items()
        }
        self.report["win_rate"] = {}
        for name in [name for name in policies if name != "reference"]:
            rates = {
                g: win_rate(utility[name][g], utility["reference"][g], clusters=prompts) for g in self.world.groups
            }
            self.report["win_rate"][name] = {
                g: {end: round(value, 4) for end, value in rate.to_dict().items()} for g, rate in rates.items()
            }
        # The first answers of every policy to the same prompts, with what each is worth to every group.
        samples = [
            {
                "prompt": prompts[i],
                "completions": {name: r.completions[i] for name, r in replies.items()},
                "utility": {
                    name: {group: round(float(values[i]), 4) for group, values in by_group.items()}
                    for name, by_group in utility.items()
                },
            }
            for i in range(4)
        ]
        self.save_replies(replies, utility)
        self.record.update(
            "evaluation",
            groups=list(self.world.groups),
            majority=self.world.majority,
            minority=self.world.minority,
            num_prompts=len(prompts),
            utility="gold",
            gold_utility=self.report["gold_utility"],
            win_rate=self.report["win_rate"],
            samples=samples,
        )
        self.print_results(samples)

    def save_replies(self, replies: dict[str, Replies], utility: dict[str, dict[str, Any]]) -> None:
        """`evaluation/completions.jsonl`: one row per policy and prompt."""
        folder = self.output / "evaluation"
        folder.mkdir(exist_ok=True)
        with open(folder / "completions.jsonl", "w", encoding="utf-8") as file:
            for name, reply in replies.items():
                for i, prompt in enumerate(reply.prompts):
                    row = {"prompt": prompt, "policy": name}
                    row |= {"completion": reply.completions[i], "finished": reply.finished[i]}
                    row |= {f"utility_{group}": round(float(v[i]), 4) for group, v in utility[name].items()}
                    file.write(json.dumps(row) + "\n")

    def print_results(self, samples: list[dict[str, Any]]) -> None:
        """The one table, and a few answers side by side."""
        rows = []
        for name, by_group in self.report["gold_utility"].items():
            row = [name]
            for group in self.world.groups:
                rate = self.report["win_rate"].get(name, {}).get(group)
                won = f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]" if rate else "-"
                row += [f"{by_group[group]:+.2f}", won]
            rows.append(row)
        columns = ["policy"]
        for group in self.world.groups:
            mark = " (minority)" if group == self.world.minority else ""
            columns += [f"{group}{mark}: utility", "win rate vs reference [95 %]"]
        print_table("Gold utility and win rate by group", columns, rows, self.console)
        for sample in samples:
            self.console.print(f"[dim]{sample['prompt']}[/dim]")
            for name, text in sample["completions"].items():
                self.console.print(f"  {name:>9}: {text or '(empty)'}", highlight=False)

    def write(self) -> None:
        """Figure, run record and report; the report comes last, so that its presence means that all is there."""
        plot_comparison(self.report, self.output / "comparison.png")
        self.record.save(self.output)
        (self.output / "report.json").write_text(json.dumps(self.report, indent=2) + "\n")
        self.console.print(f"Wrote {self.output}/report.json, comparison.png, mixture/, components/, policies/")


def run(argv: Sequence[str]) -> None:
    """Run the demo.

    Args:
        argv (`Sequence[str]`): options of [`DemoArguments`].

    Raises:
        UsageError: an option outside its range, or a folder that holds another run.
        OSError: a folder that cannot be written.
    """
    parser = CommandParser(
        DemoArguments,
        prog="trl-maxmin demo",
        description="The whole method on an embedded world of film reviews; a few minutes on one core, no download.",
        epilog="  trl-maxmin demo\n  trl-maxmin demo --seed 1 --oracle --output_dir demo1\n"
        "  trl-maxmin demo --minority_share 0",
    )
    (arguments,) = parser.parse_args_and_config(list(argv))
    prepare_output_folder("demo", arguments.output_dir, arguments.overwrite_output_dir)
    # The models are tiny: a second thread gains a tenth on an idle machine and loses everything on a busy one.
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    Demo(arguments, Console()).run()
