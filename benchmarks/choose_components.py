# SPDX-License-Identifier: Apache-2.0
"""How many components: planted worlds of 2 to 500 annotators, and what the rule says of them.

    PYTHONPATH=. python benchmarks/choose_components.py --output docs/results/choose_components.json

Forty worlds: numbers of annotators, pairs each, share of the smaller group, how alike the two groups' rewards are, and
counts of words or dense features as of a frozen encoder. Six have two annotators to six, half of them exactly opposed;
twenty hold one group. For each: the verdict, and what the TRUE rewards of the two groups gain of held-out pairs once
people are placed by their other pairs, with its standard error by annotator. A world that is in the output already is
not run again. What is counted:

- wrong "one": one reward is said to suffice where the true components gain more than two standard errors;
- false groups: groups in a world of one group, or more than were planted in another.

`diagnose` and `reward --select` call the same function on the same features; that they agree through their whole paths
is tested in `tests/evaluation/test_one_choice.py`.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from trl_maxmin.functional.em import clustered_error
from trl_maxmin.functional.feature_pairs import FeaturePairs
from trl_maxmin.functional.num_components import choose_components


#: annotators, pairs each, share of the smaller group (0: one group), correlation of the two rewards, features
OPPOSED = [(people, pairs, 0.5, -1.0, kind) for people, pairs in ((2, 60), (4, 60), (6, 60)) for kind in ("dense", "counts")]
GROUPS = [
    (10, 200, 0.3, 0.0, "dense"), (20, 40, 0.5, 0.0, "counts"), (30, 20, 0.2, 0.0, "dense"), (40, 40, 0.1, -0.5, "counts"),
    (50, 20, 0.4, 0.3, "dense"), (60, 30, 0.05, 0.0, "dense"), (80, 20, 0.25, 0.0, "counts"), (100, 40, 0.5, 0.0, "dense"),
    (100, 10, 0.2, 0.0, "counts"), (150, 10, 0.1, 0.0, "dense"), (200, 5, 0.3, 0.0, "dense"), (200, 10, 0.05, 0.0, "counts"),
    (300, 5, 0.5, 0.0, "counts"), (500, 5, 0.2, 0.0, "dense"),
]  # fmt: skip
ONE = [
    (people, pairs, 0.0, 1.0, kind)
    for people, pairs in ((2, 60), (4, 60), (6, 40), (10, 60), (10, 200), (20, 30), (40, 20), (60, 20), (100, 10), (300, 5))
    for kind in ("dense", "counts")
]  # fmt: skip
WIDTH, WORDS, SCALE, NUM_FOLDS = 48, 150, 1.5, 5


def world(number, people, pairs, share, alike, kind):
    """Pairs, who is of the smaller group, and the true log-odds `(N, 2)` of what was chosen."""
    g = torch.Generator().manual_seed(number)
    count = people * pairs
    if kind == "dense":
        mixing = torch.randn(WIDTH, WIDTH, generator=g) * torch.logspace(0, -1, WIDTH)
        features = torch.randn(2 * count, WIDTH, generator=g) @ mixing.T
    else:
        features = torch.poisson((torch.logspace(0.5, -1.5, WORDS) / 4).expand(2 * count, WORDS), generator=g)
    directions = torch.randn(2, features.shape[1], generator=g) / features.std(0).clamp(min=0.05)
    difference = (features[:count] - features[count:]) @ directions.T
    own, other = (difference / difference.std(0)).T
    odds = SCALE * torch.stack([own, alike * own + math.sqrt(1 - alike**2) * other], dim=1)
    small = torch.zeros(people, dtype=torch.bool)
    if share:
        small[torch.randperm(people, generator=g)[: max(1, round(share * people))]] = True
    annotator = torch.arange(people).repeat_interleave(pairs)
    mine = odds.gather(1, small[annotator].long().unsqueeze(1)).squeeze(1)
    first = torch.rand(count, generator=g) < torch.sigmoid(mine)
    number = torch.arange(count)
    chosen, rejected = torch.where(first, number, number + count), torch.where(first, number + count, number)
    return FeaturePairs(features, chosen, rejected, annotator), small, torch.where(first.unsqueeze(1), odds, -odds)


def true_gain(pairs, small, odds):
    """What the true rewards gain by knowing who is who, nats a held-out pair, and its standard error by annotator."""
    if not small.any():
        return 0.0, 0.0
    likelihood, people, fold = F.logsigmoid(odds.double()), pairs.annotator_index, torch.arange(len(pairs)) % NUM_FOLDS
    cells = torch.zeros(len(small) * NUM_FOLDS, 2, dtype=torch.float64).index_add_(0, people * NUM_FOLDS + fold, likelihood)
    cells, share = cells.view(-1, NUM_FOLDS, 2), small.double().mean()
    prior = torch.stack([1 - share, share]).log()
    posterior = torch.log_softmax(prior + cells.sum(1, keepdim=True) - cells, -1)[people, fold]
    gained = (posterior + likelihood).logsumexp(1) - (prior + likelihood).logsumexp(1)
    return gained.mean().item(), clustered_error(gained, people, len(small))


def summary(found):
    """What is counted."""
    several = [row for row in found if row["share"]]
    matter = [row for row in several if row["true_gain"] > 2 * row["true_gain_error"]]
    none = [row for row in found if not row["share"]]
    return {
        "worlds": len(found),
        "worlds_whose_groups_matter": len(matter),
        "wrong_one": sum(row["verdict"] == "one" for row in matter),
        "groups_found": sum(row["verdict"] == "groups" for row in matter),
        "more_than_planted": sum(row["num_components"] > 2 for row in several),
        "one_group_worlds": len(none),
        "false_groups": sum(row["verdict"] == "groups" for row in none),
        "one_said_of_one": sum(row["verdict"] == "one" for row in none),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="docs/results/choose_components.json")
    parser.add_argument("--max_seconds", type=float, default=math.inf, help="Begin no world after so long.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path, began = Path(arguments.output), time.perf_counter()
    found = json.loads(path.read_text())["by_world"] if path.exists() else []
    done = {row["world"] for row in found}
    # In turns, so that a part of them is a sample of all.
    plans = list(enumerate([*OPPOSED, *GROUPS, *ONE]))
    for number, plan in sorted(plans, key=lambda entry: (entry[0] % 20 * 7 % 20, entry[0])):
        if number in done or time.perf_counter() - began > arguments.max_seconds:
            continue
        started = time.process_time()
        pairs, small, odds = world(number, *plan)
        choice = choose_components(pairs, plan[0], range(1, min(3, plan[0]) + 1), seed=number)
        gain, error = true_gain(pairs, small, odds)
        found.append(
            {
                "world": number,
                **dict(zip(("annotators", "pairs", "share", "alike", "features"), plan, strict=True)),
                "verdict": choice.verdict_kind,
                "num_components": choice.num_components,
                "gain": round(choice.gain[2], 4),
                "gain_error": round(choice.gain_error[2], 4),
                "true_gain": round(gain, 4),
                "true_gain_error": round(error, 4),
                "prior_scale": choice.prior_scale[choice.num_components],
                "cpu_seconds": round(time.process_time() - started, 1),
            }
        )
        print(json.dumps(found[-1]), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"summary": summary(found), "by_world": found}, indent=1) + "\n")
    print(json.dumps(summary(found), indent=1))


if __name__ == "__main__":
    main()
