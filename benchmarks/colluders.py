# SPDX-License-Identifier: Apache-2.0
"""How many colluding annotators it takes to own the worst-off group, and what the floor of evidence is worth.

    PYTHONPATH=. python benchmarks/colluders.py --output docs/results/colluders.json

A hundred honest annotators of 40 pairs each, seventy of one taste and thirty of another. Beside them c colluders who
give their 40 pairs by a reward of their own: the opposite of what the honest want on average. EM gets a component for
them (K = 3, which favours the attacker: a chosen K often ignores a few people). Replies are then chosen by max-min
over the utilities of the components: best of 8 on 300 new prompts, one weight vector, as a policy would be trained.
Reported, with the floor (10 people or 5 % of all, 30 pairs) and without: whether a component belongs to the colluders
(over half of those it describes), its weight in the minimum, and what the honest lose of what they have without
colluders, in standard deviations of their true utility, the worse of the two groups.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from trl_maxmin.functional.best_of import best_of_n
from trl_maxmin.functional.em_features import fit_feature_mixture
from trl_maxmin.functional.feature_pairs import FeaturePairs
from trl_maxmin.functional.group_floor import has_evidence


PEOPLE, SHARE, PAIRS, WIDTH, SCALE = 100, 0.7, 40, 16, 2.0
COLLUDERS = (0, 1, 2, 4, 6, 8, 10, 15, 20, 30)
PROMPTS, CANDIDATES = 300, 8


def votes(colluders, seed):
    """Pairs of honest people and colluders, and the rewards `(3, D)`: two tastes and what the colluders want."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(2, WIDTH, generator=g)
    directions = directions / directions.norm(dim=1, keepdim=True)
    against = -(SHARE * directions[0] + (1 - SHARE) * directions[1])
    directions = torch.cat([directions, (against / against.norm()).unsqueeze(0)])
    kind = torch.zeros(PEOPLE + colluders, dtype=torch.long)
    kind[round(SHARE * PEOPLE) : PEOPLE], kind[PEOPLE:] = 1, 2
    annotator = torch.arange(len(kind)).repeat_interleave(PAIRS)
    count = len(annotator)
    features = torch.randn(2 * count, WIDTH, generator=g)
    odds = SCALE * (features[:count] - features[count:]) @ directions.T
    mine = odds.gather(1, kind[annotator].unsqueeze(1)).squeeze(1)
    first = torch.rand(count, generator=g) < torch.sigmoid(mine)
    one, two = torch.arange(count), torch.arange(count) + count
    chosen, rejected = torch.where(first, one, two), torch.where(first, two, one)
    return FeaturePairs(features, chosen, rejected, annotator), kind, directions


def standardised(rewards):
    """Utilities of candidates `(P, n, K)`: rewards less the prompt's mean, over the spread within prompts."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / centred.pow(2).mean((0, 1)).sqrt()


def measure(colluders, seed):
    """One world: facts with and without the floor."""
    pairs, kind, directions = votes(colluders, seed)
    generator = torch.Generator().manual_seed(seed)
    fitted = fit_feature_mixture(pairs, len(kind), 3 if colluders else 2, generator=generator)
    component = fitted.log_responsibilities.argmax(1)
    count = component.bincount(minlength=len(fitted.weight))
    owned = [bool((kind[component == k] == 2).float().mean() > 0.5) if count[k] else False for k in range(len(count))]
    replies = torch.randn(PROMPTS, CANDIDATES, WIDTH, generator=torch.Generator().manual_seed(10_000 + seed))
    utilities, truth = standardised(replies @ fitted.weight.float().T), standardised(replies @ directions[:2].T)
    has = has_evidence(count.tolist(), (count * PAIRS).tolist())
    facts = {"colluders": colluders, "seed": seed, "annotators": count.tolist(), "owned": owned}
    for name, among in (("with_floor", has), ("without_floor", count > 0)):
        found = best_of_n(utilities, "maxmin", among=among)
        honest = truth[torch.arange(PROMPTS), found.choice].mean(0)
        weight = sum(float(w) for w, theirs in zip(found.weights, owned, strict=True) if theirs)
        facts[name] = {"weight_of_colluders": weight, "honest_utility": honest.tolist()}
    return facts


def table(rows):
    """Means over seeds, a line for each number of colluders."""
    base = {row["seed"]: row for row in rows if not row["colluders"]}
    lines = []
    for colluders in sorted({row["colluders"] for row in rows} - {0}):
        these = [row for row in rows if row["colluders"] == colluders]
        line = {"colluders": colluders, "own_a_component": sum(any(row["owned"]) for row in these), "of": len(these)}
        for name in ("with_floor", "without_floor"):
            lost = []
            for row in these:
                before, after = base[row["seed"]][name]["honest_utility"], row[name]["honest_utility"]
                lost.append(max(b - a for a, b in zip(after, before, strict=True)))
            line[name] = {
                "weight_of_colluders": round(sum(row[name]["weight_of_colluders"] for row in these) / len(these), 3),
                "honest_lose": round(sum(lost) / len(lost), 3),
            }
        lines.append(line)
    return lines


def plot(lines, path):
    """What the honest lose against the number of colluders."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    count = [line["colluders"] for line in lines]
    for name, label in (("without_floor", "no floor"), ("with_floor", "floor: 10 people or 5 %")):
        axes.plot(count, [line[name]["honest_lose"] for line in lines], marker="o", label=label)
    axes.set(xlabel="colluders beside 100 honest annotators", ylabel="utility lost (sd), worse group", xscale="symlog")
    axes.set_xticks(count, [str(number) for number in count])
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="docs/results/colluders.json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", help="Write a figure, of what --output holds if that is there.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    output = Path(arguments.output)
    if arguments.plot and output.exists():
        plot(json.loads(output.read_text())["table"], arguments.plot)
        return
    rows = []
    for seed in range(arguments.seeds):
        for colluders in COLLUDERS:
            rows.append(measure(colluders, seed))
            print(json.dumps(rows[-1]), flush=True)
        lines = table(rows)
        output.write_text(json.dumps({"table": lines, "by_world": rows}, indent=1) + "\n")
    for line in lines:
        print(line)
    if arguments.plot:
        plot(lines, arguments.plot)


if __name__ == "__main__":
    main()
