# SPDX-License-Identifier: Apache-2.0
"""How few people can be a group? The argument for `min_group_annotators`.

    python benchmarks/group_floor.py --output docs/results/group_floor.json

326 people give 30 pairs each; some of them want something else (rewards over 12 features that correlate 0.55). A
mixture of two linear rewards is fitted, and of its smaller component is asked: how many people it describes, which
share of them are of the planted minority, and how often it ranks two texts as the minority does where the majority
ranks them the other way. Run from the repository's root with PYTHONPATH=.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from trl_maxmin.functional.em_features import fit_feature_mixture
from trl_maxmin.functional.feature_pairs import FeaturePairs


def world(seed, minority, people=326, each=30, width=12):
    """Pairs, true rewards (2, D), group of each person."""
    rng = np.random.default_rng([seed, minority])
    basis = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    rewards = np.stack([basis[0], np.sqrt(0.3) * basis[0] + np.sqrt(0.7) * basis[1]]) * 2.2
    count = people * each
    features = rng.normal(size=(2 * count, width)).astype(np.float32)
    group = np.zeros(people, dtype=int)
    group[:minority] = 1
    who = np.repeat(np.arange(people), each)
    odds = ((features[:count] - features[count:]) @ rewards.T) / np.sqrt(2)
    first = rng.random(count) < 1 / (1 + np.exp(-odds[np.arange(count), group[who]]))
    one, other = np.arange(count), np.arange(count) + count
    chosen, rejected = np.where(first, one, other), np.where(first, other, one)
    return FeaturePairs(*(torch.tensor(x) for x in (features, chosen, rejected, who))), rewards, group


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minorities", type=int, nargs="+", default=[0, 2, 3, 5, 6, 8, 10, 15, 20, 33])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts, rows = np.random.default_rng(9).normal(size=(4000, 12)), []
    for minority in arguments.minorities:
        row = {"minority": minority, "found": [], "purity": [], "accuracy_where_they_differ": []}
        for seed in arguments.seeds:
            pairs, rewards, group = world(seed, minority)
            generator = torch.Generator().manual_seed(seed)
            fitted = fit_feature_mixture(pairs, len(group), 2, generator=generator, num_init=4, prior_scale=3.0)
            best = fitted.log_responsibilities.argmax(1).numpy()
            small = np.bincount(best, minlength=2).argmin()
            own = best == small
            majority, wanted = (texts @ rewards[k] > 0 for k in (0, 1))
            right = (texts @ fitted.weight[small].numpy() > 0) == wanted
            row["found"].append(int(own.sum()))
            row["purity"].append(round(float(group[own].mean()), 2) if own.any() else 0.0)
            row["accuracy_where_they_differ"].append(round(float(right[majority != wanted].mean()), 2))
        rows.append(row)
        print(json.dumps(row), flush=True)
        Path(arguments.output).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
