# SPDX-License-Identifier: Apache-2.0
"""Rankings of real people, learned as they are and cut into pairs: K, and top-1 and Kendall's tau on held-out ones.

    python benchmarks/real_rankings.py sushi --data ../shared/data/sushi/sushi_rankings.csv.gz \\
        --encoder path/to/all-MiniLM-L6-v2 --seeds 0,1,2 --output docs/results/rankings_sushi.json
    python benchmarks/real_rankings.py jester --data ../shared/data/jester5k \\
        --encoder path/to/all-MiniLM-L6-v2 --seeds 0,1,2 --output docs/results/rankings_jester.json

For each seed people are drawn, and what they ranked is dealt into rankings that share no item: of sushi, where
everyone ranked ten kinds, of 4, 3 and 3; of Jester's jokes, by their ratings, eight of 4. Of Luce's rankings such
parts are independent. A third or a quarter of them is held out. Both forms are trained by

    trl-maxmin reward --dataset_name FOLDER --model_name_or_path ENCODER --train_trunk false --pooling mean \\
        --select 1,2,3 --seed SEED --output_dir OUT

and the mixtures are asked about the same held-out rankings, everyone assigned by their own training rows.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict

from trl_maxmin import MixtureRewardModel
from trl_maxmin.cli import main as trl_maxmin
from trl_maxmin.data.rankings import prepare_rankings, rankings_to_pairs
from trl_maxmin.functional.em import clustered_error
from trl_maxmin.models.text_interface import scored_rankings


Row = dict[str, Any]


def dealt(items: list[str], scores: dict[str, float], sizes: list[int], who: str, prompt: str) -> list[Row]:
    """One person's rankings; a higher score is better, and equal ones are a tie."""
    rows, start = [], 0
    for size in sizes:
        replies = items[start : start + size]
        places = sorted({scores[item] for item in replies}, reverse=True)
        ranking = [places.index(scores[item]) + 1 for item in replies]
        rows.append({"prompt": prompt, "responses": replies, "ranking": ranking, "annotator_id": who})
        start += size
    return rows


def read_sushi(path: Path, people: int, generator: random.Random) -> list[list[Row]]:
    """Of each person the rankings of 4, 3 and 3 kinds, the last to be held out."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    found = []
    for row in generator.sample(table, people):
        who = row.pop("user")
        items = sorted(row)
        generator.shuffle(items)
        scores = {item: -float(rank) for item, rank in row.items()}
        found.append(dealt(items, scores, [4, 3, 3], who, "Which sushi would you like?"))
    return found


def read_jester(folder: Path, people: int, generator: random.Random) -> list[list[Row]]:
    """Of each person who rated 32 jokes or more eight rankings of 4, the last two to be held out."""
    with gzip.open(folder / "jokes.jsonl.gz", "rt", encoding="utf-8") as file:
        jokes = {str(row["joke"]): row["text"] for row in map(json.loads, file)}
    ratings: dict[str, dict[str, float]] = defaultdict(dict)
    with gzip.open(folder / "ratings.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            ratings[row["user"]][jokes[row["joke"]]] = float(row["rating"])
    found = []
    for who in generator.sample(sorted(who for who, own in ratings.items() if len(own) >= 32), people):
        items = sorted(ratings[who])
        generator.shuffle(items)
        found.append(dealt(items, ratings[who], [4] * 8, who, "Which joke is the funniest?"))
    return found


#: Reader, people, and how many of a person's rankings are held out.
SETS = {"sushi": (read_sushi, 1000, 1), "jester": (read_jester, 150, 2)}


def heldout_figures(mixture: MixtureRewardModel, train: Dataset, held: Dataset) -> dict[str, float]:
    """Top-1, Kendall's tau and log-likelihood of the mixture on held-out rankings, with errors clustered by person."""
    posterior = mixture.assign(train)
    number = {who: row for row, who in enumerate(posterior.annotator_ids)}
    people = torch.tensor([number[who] for who in held["annotator_id"]])
    rewards, choices = scored_rankings(mixture, held)
    rewards = rewards.double()
    log_weights = posterior.probabilities.double().log()[people]
    chance, own = choices.blended(rewards, log_weights)
    measured = {
        "top_1": own.top_accuracy(chance)[:, 0],
        "tau": own.kendall_tau(chance)[:, 0],
        "log_likelihood": (log_weights + choices.log_likelihood(rewards)).logsumexp(1),
    }
    errors = {f"{name}_error": clustered_error(v, people, len(number)) for name, v in measured.items()}
    by_chance = choices.top_accuracy(torch.zeros(len(rewards), 1).double()).mean().item()
    return {name: v.mean().item() for name, v in measured.items()} | errors | {"top_1_by_chance": by_chance}


def run(name: str, data: Path, encoder: str, seed: int, folder: Path) -> dict[str, Any]:
    """Both forms of one seed's people."""
    reader, people, held_out = SETS[name]
    of_people = reader(data, people, random.Random(seed))
    train = prepare_rankings(Dataset.from_list([row for own in of_people for row in own[:-held_out]]))
    held = prepare_rankings(Dataset.from_list([row for own in of_people for row in own[-held_out:]]))
    forms = {
        "rankings": DatasetDict(train=train, test=held),
        "pairs": DatasetDict(train=rankings_to_pairs(train), test=rankings_to_pairs(held)),
    }
    found: dict[str, Any] = {}
    for form, rows in forms.items():
        rows.save_to_disk(folder / form)
        out, start = folder / f"{form}-mixture", time.time()
        words = ["--dataset_name", str(folder / form), "--model_name_or_path", encoder, "--train_trunk", "false"]
        words += ["--pooling", "mean", "--select", "1,2,3", "--seed", str(seed), "--output_dir", str(out)]
        words += ["--bf16", "false", "--use_cpu", "true", "--report_to", "none"]
        if trl_maxmin(["reward", *words]):
            raise SystemExit(f"trl-maxmin reward failed on {form} of seed {seed}")
        seconds = time.time() - start
        chosen = json.loads((out / "selection.json").read_text())
        mixture = MixtureRewardModel.from_pretrained(out)
        found[form] = {
            "rows": len(rows["train"]),
            "K": mixture.num_components,
            "best_K": chosen["best"],
            "verdict_kind": chosen["verdict_kind"],
            "gain_of_2": chosen["gain"]["2"],
            "gain_of_2_error": chosen["gain_error"]["2"],
            "evidence_weight": mixture.config.evidence_weight,
            **heldout_figures(mixture, train, held),
            "seconds": seconds,
        }
    return found


def table(found: dict[Any, dict[str, Any]]) -> list[str]:
    """Lines of Markdown: means over the seeds, each with the mean of its standard errors."""
    lines = ["| form | rows | K by seed | top-1 | Kendall's tau | log-likelihood | weight |", "|" + "---|" * 7]
    for form in ("rankings", "pairs"):
        each = [of[form] for of in found.values()]
        mean = {key: sum(of[key] for of in each) / len(each) for key in each[0] if key != "verdict_kind"}
        lines.append(
            f"| {form} | {mean['rows']:,.0f} | {', '.join(str(of['K']) for of in each)} | "
            f"{mean['top_1']:.3f} ± {mean['top_1_error']:.3f} | {mean['tau']:.3f} ± {mean['tau_error']:.3f} | "
            f"{mean['log_likelihood']:.3f} | {mean['evidence_weight']:.2f} |"
        )
    return lines


def main() -> None:
    """Measure all seeds; write them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = {}
    for seed in map(int, arguments.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            found[seed] = run(arguments.set, arguments.data, arguments.encoder, seed, Path(folder))
        print(seed, json.dumps(found[seed]), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
