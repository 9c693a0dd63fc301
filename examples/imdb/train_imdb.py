# SPDX-License-Identifier: Apache-2.0
"""MaxMin-RLHF on real text: people who disagree about film reviews, and one policy for all of them.

From the repository, with the reviews in `../shared/data/imdb` (or any other folder, or the Hub):

python examples/imdb/train_imdb.py --output_dir imdb-maxmin
python examples/imdb/train_imdb.py --data_dir stanfordnlp/imdb --policy none --output_dir imdb-maxmin

The steps: a small GPT-2 that continues the first words of a review; 50 annotators, 80 % of whom want short reviews and
20 % positive ones, compare its replies; EM finds the two groups and a reward for each; PPO on one reward for everybody
(conventional RLHF) and MaxMin-PPO; the gold utilities, which no training saw, judge both on prompts of the test split.
See README.md.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars
from imdb_data import load_reviews, prompts
from imdb_gold import GROUPS, GoldUtilities, SentimentOracle
from imdb_options import ImdbArguments
from imdb_policy import sample, save_policy
from imdb_report import (
    Stopwatch,
    evaluate,
    peak_memory_mb,
    print_results,
    report_rewards,
    samples,
    write,
)
from imdb_stages import ask_reference, build_reference, collect_preferences, fit_reward, policy_of, train_policy
from rich.console import Console
from transformers.utils import logging as transformers_logging
from trl import TrlParser


def run(arguments: ImdbArguments, console: Console) -> dict[str, Any]:
    """All stages; returns the report that is also written to `report.json`."""
    reviews = load_reviews(arguments.data_dir)
    folder = Path(arguments.output_dir)
    # Each stage has a stream of its own: a setting of one does not change what another draws.
    streams = iter(np.random.default_rng(arguments.seed).spawn(4))
    stage = Stopwatch(console)
    with stage("sentiment", "1/7 Fit the minority's sentiment classifier on labelled reviews"):
        gold = GoldUtilities(SentimentOracle.fit(reviews), arguments.max_new_tokens)
        console.print(f"  accuracy on openings of test reviews: {gold.oracle.accuracy:.3f}")
    with stage("pretrain", "2/7 Train the reference policy on openings of reviews"):
        reference, tokenizer = build_reference(arguments, reviews, next(streams), console)
        save_policy(reference, tokenizer, folder / "policies" / "reference")
    with stage("preferences", "3/7 Ask the annotators to compare its replies"):
        stream = next(streams)
        asked = ask_reference(arguments, reviews, reference, tokenizer, stream)
        data = collect_preferences(arguments, gold, asked, stream)
    with stage("reward", "4/7 Learn rewards by EM (K = 2) and, as control, K = 1"):
        single, mixture = (fit_reward(arguments, reference, tokenizer, data, k, console) for k in (1, 2))
        em = report_rewards(single, mixture, data)
        console.print(
            f"  assigned as planted: {em['assignment_accuracy']:.2f}; held-out accuracy {em['heldout_accuracy']}"
        )
        single.mixture.save_pretrained(folder / "single_reward")
        mixture.mixture.save_pretrained(folder / "mixture")
    train_prompts = prompts(reviews.for_training, tokenizer, arguments.train_prompts, next(streams))
    rewards: dict[str, Any] = {"single": single.mixture, "maxmin": mixture.mixture}
    if arguments.oracle:
        rewards["oracle"] = gold.reward_functions(tokenizer.eos_token_id, data.gold_noise)
    policies, histories = {"reference": reference}, {}
    for number, (name, reward) in enumerate(rewards.items(), start=5):
        with stage(name, f"{min(number, 6)}/7 {arguments.trainer.upper()}: {name}"):
            trainer = train_policy(
                arguments, name, reference, tokenizer, reward, train_prompts, console, arguments.welfare
            )
            policies[name], histories[name] = policy_of(trainer), trainer.state.log_history
            save_policy(policies[name], tokenizer, folder / "policies" / name)
    with stage("evaluation", "7/7 Ask the gold utilities, which training never saw"):
        # Short beginnings such as "This movie" occur in both splits; those are left out.
        asked = prompts(reviews.test, tokenizer, arguments.eval_prompts, next(streams), exclude=train_prompts)
        # Not with the reference's random numbers: a policy that is next to it would mostly tie.
        replies = {
            name: sample(policy, tokenizer, asked, arguments.max_new_tokens, arguments.seed + (name != "reference"))
            for name, policy in policies.items()
        }
        results = evaluate(gold, asked, replies)
    report = {
        "seed": arguments.seed,
        "groups": list(GROUPS),
        "minority": GROUPS[-1],
        "sentiment_accuracy": round(gold.oracle.accuracy, 4),
        "gold_correlation": round(data.gold_correlation, 4),
        "em": em,
        **results,
        "seconds": stage.stop(),
        **peak_memory_mb(),
    }
    shown = samples(asked, replies)
    print_results(report, shown, console)
    write(arguments, report, shown, histories)
    console.print(f"Wrote {folder}/report.json, run_record.json, comparison.png, mixture/, policies/", highlight=False)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options (TRL's parser: `--config FILE.yaml` works too) and run."""
    (arguments,) = TrlParser((ImdbArguments,)).parse_args_and_config(list(sys.argv[1:] if argv is None else argv))
    be_quiet()
    torch.set_float32_matmul_precision(arguments.matmul_precision)
    try:
        run(arguments, Console())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"train_imdb.py: {error}")


def be_quiet() -> None:
    """No bars and no advice from the libraries: the example prints its own lines."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


if __name__ == "__main__":
    main()
