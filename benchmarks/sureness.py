# SPDX-License-Identifier: Apache-2.0
"""How sure may a mixture be: of who somebody is, and of a text that nobody judged?

    python benchmarks/sureness.py --data ../shared/data/polis/bowling_green.pairs.jsonl.gz \\
        --encoder path/to/all-MiniLM-L6-v2 --output docs/results/sureness_bowling_green.json
    python benchmarks/sureness.py --planted --output docs/results/sureness_planted.json

Mixtures of two linear heads on mean-pooled states. For each seed the people are dealt into five parts:

- the weight of the evidence is fitted on four parts, heads on the frozen trunk knowing nothing of the person scored,
  and judged on the fifth: how often two halves of a person's pairs agree, and how often that was announced;
- new votes: each person's texts are dealt into folds; who somebody is comes from the other folds;
- temperatures come from texts that heads do not know in one half of the folds, and are judged in the other;
- what else was tried: components drawn together by a factor, and a deviation of each person from their component.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_dataset

from trl_maxmin.data.texts import number_values
from trl_maxmin.functional.em import annotator_log_likelihood, log_responsibilities, predictive_log_likelihood
from trl_maxmin.functional.em_features import fit_feature_mixture
from trl_maxmin.functional.evidence import _halves, _hits, fit_evidence_weight
from trl_maxmin.functional.feature_pairs import FeaturePairs, deal_folds
from trl_maxmin.functional.heldout import annotator_folds, heldout_differences, text_folds
from trl_maxmin.functional.preference import fit_temperature


PRIOR = 3.0


def encode(texts, folder):
    """Mean-pooled last states."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = torch.zeros(len(texts), model.config.hidden_size)
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True, truncation=True, max_length=128)
        mask = batch["attention_mask"].unsqueeze(-1)
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        found[rows] = (states * mask).sum(1) / mask.sum(1)
    return found


def read(path, folder):
    """Pairs over the distinct texts of a set."""
    rows = load_dataset("json", data_files=path, split="train")
    numbers = {}
    chosen, rejected = (number_values(rows[side], numbers) for side in ("chosen", "rejected"))
    annotator = torch.tensor(number_values(rows["annotator"]))
    return FeaturePairs(encode(list(numbers), folder), torch.tensor(chosen), torch.tensor(rejected), annotator)


def plant(seed, people=400, pairs=30, texts=500, width=24, minority=0.3, deviation=0.7):
    """Two groups on shared texts; each person deviates from the group's wishes, and texts have tastes of their own."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(texts, width))
    wishes = rng.normal(size=(2, width)) / width**0.5 * 1.5
    group = (rng.random(people) < minority).astype(int)
    own = wishes[group] + deviation * rng.normal(size=(people, width)) / width**0.5
    rewards = own @ features.T + (rng.normal(size=(2, texts)) * 0.5)[group]
    who = np.repeat(np.arange(people), pairs)
    sides = np.array([rng.choice(texts, 2, replace=False) for _ in who])
    odds = rewards[who, sides[:, 0]] - rewards[who, sides[:, 1]]
    swap = rng.random(len(who)) > 1 / (1 + np.exp(-odds))
    sides[swap] = sides[swap][:, ::-1]
    return FeaturePairs(
        torch.tensor(features).float(), torch.tensor(sides[:, 0]), torch.tensor(sides[:, 1]), torch.tensor(who)
    )


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def assignments(pairs, fitted, people, seed):
    """The weight from four fifths of the people, agreement of halves of the fifth."""
    responsibilities = fitted.log_responsibilities.exp()[pairs.annotator_index]
    folds = annotator_folds(pairs.annotator_index, 5, seeded(seed))
    scores = F.logsigmoid(heldout_differences(pairs, responsibilities, folds, PRIOR))
    halves = [deal_folds(pairs, 2, seeded(seed + i)) for i in range(3)]
    log_mixing, result = fitted.mixing_weights.log(), {"weights": [], "weighed": [], "whole": []}
    for part in range(5):
        rest, out = (folds[:, 0] != part), (folds[:, 0] == part)
        found = fit_evidence_weight(
            scores[rest], pairs.annotator_index[rest], [h[rest] for h in halves], fitted.mixing_weights
        )
        result["weights"].append(found.weight)
        cases = [case for h in halves for case in _halves(scores[out], pairs.annotator_index[out], h[out])]
        for name, weight in (("weighed", found.weight), ("whole", 1.0)):
            result[name] += [_hits(case, log_mixing, weight) for case in cases]
    report = {"weight": round(statistics.mean(result["weights"]), 3)}
    for name in ("weighed", "whole"):
        expected, observed = (torch.cat(side).mean().item() for side in zip(*result[name], strict=True))
        report[name] = {"expected": round(expected, 4), "observed": round(observed, 4)}
    report["shared_texts"] = shared_texts(pairs, scores, halves, fitted.mixing_weights, seed)
    return report


def shared_texts(pairs, scores, halves, mixing_weights, seed):
    """Whole pairs, so many of each person that no text stands in two of them; and as many at random."""
    rng, apart, alike = np.random.default_rng(seed), [], []
    who = pairs.annotator_index.numpy()
    order = np.argsort(who, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(who[order])) + 1):
        used, mine = set(), []
        for row in rng.permutation(rows):
            texts = {int(pairs.chosen[row]), int(pairs.rejected[row])}
            if not texts & used:
                mine.append(row)
                used |= texts
        apart += mine
        alike += rng.permutation(rows)[: len(mine)].tolist()
    report = {}
    for name, rows in (("no_text_twice", apart), ("as_many_at_random", alike)):
        keep = torch.tensor(sorted(rows))
        found = fit_evidence_weight(
            scores[keep], pairs.annotator_index[keep], [half[keep] for half in halves], mixing_weights
        )
        report[name] = {"num_pairs": len(keep), "weight": round(found.weight, 3)}
        report[name] |= {
            "expected": round(found.expected_unweighted, 4), "observed": round(found.observed_unweighted, 4)
        }  # fmt: skip
    return report


def new_votes(pairs, people, weight, seed):
    """Predictive log-likelihood of votes on texts that the person's other pairs do not hold."""
    folds = deal_folds(pairs, 5, seeded(seed))
    out, rest = (folds == 0).all(1), (folds != 0).all(1)
    train, held = pairs.select(rest), pairs.select(out)
    fitted = fit_feature_mixture(train, people, 2, generator=seeded(seed), num_init=4, prior_scale=PRIOR)
    sums = annotator_log_likelihood(fitted.scores, train.annotator_index, people)
    likelihood, log_mixing = held.log_likelihood(fitted.weight), fitted.mixing_weights.log()

    def score(alpha, pair_likelihood=likelihood):
        gamma = log_responsibilities(sums, log_mixing, alpha)
        return round(predictive_log_likelihood(pair_likelihood, gamma, held.annotator_index).mean().item(), 4)

    grid = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    rewards = held.features.double() @ fitted.weight.T
    difference = rewards[held.chosen] - rewards[held.rejected]
    common = (difference * fitted.mixing_weights).sum(1, keepdim=True)
    drawn = {f: score(weight, F.logsigmoid(common + f * (difference - common))) for f in (0.25, 0.5, 0.75, 1.0)}
    return {
        "num_pairs": len(held),
        "whole": score(1.0),
        "weighed": score(weight),
        "by_weight": {str(alpha): score(alpha) for alpha in grid},
        "components_drawn_together": {str(f): value for f, value in drawn.items()},
        "own_deviation": deviations(train, held, fitted, sums, log_mixing, weight, people),
    }


def deviations(train, held, fitted, sums, log_mixing, weight, people):
    """Each person's own linear reward on top of their mixture's, a step of Newton from zero, by the prior's scale."""
    gamma = log_responsibilities(sums, log_mixing, weight).exp()
    features = train.features.double()
    features = (features - features.mean(0)) / features.std() / features.shape[1] ** 0.5

    def of(pairs):
        rewards = pairs.features.double() @ fitted.weight.T
        return (gamma[pairs.annotator_index] * (rewards[pairs.chosen] - rewards[pairs.rejected])).sum(1)

    base, held_base = of(train), of(held)
    x = features[train.chosen] - features[train.rejected]
    z = features[held.chosen] - features[held.rejected]
    found = {"none": round(F.logsigmoid(held_base).mean().item(), 4)}
    for scale in (0.25, 0.5, 1.0, 2.0):
        extra = torch.zeros(len(held), dtype=torch.float64)
        for h in range(people):
            mine, theirs = train.annotator_index == h, held.annotator_index == h
            if not mine.any() or not theirs.any():
                continue
            wrong = torch.sigmoid(-base[mine])
            kernel = x[mine] @ x[mine].T * scale**2
            noise = torch.diag(1 / (wrong * (1 - wrong)).clamp(min=0.02))
            step = torch.linalg.solve(kernel + noise, wrong / (wrong * (1 - wrong)).clamp(min=0.02))
            extra[theirs] = scale**2 * (z[theirs] @ x[mine].T) @ step
        found[str(scale)] = round(F.logsigmoid(held_base + extra).mean().item(), 4)
    return found


def temperatures(pairs, fitted, seed):
    """From texts that heads do not know in two of five folds, judged in the three others; and the familiar way."""
    responsibilities = fitted.log_responsibilities.exp()[pairs.annotator_index]
    folds = text_folds(pairs, 5, seeded(seed))
    found = heldout_differences(pairs, responsibilities, folds, PRIOR)
    scored = found.isfinite().all(1)
    fit, judge = scored & (folds[:, 0] < 2), scored & (folds[:, 0] >= 2)
    new = [fit_temperature(found[fit, k], responsibilities[fit, k]) for k in range(2)]
    known = heldout_differences(pairs, responsibilities, deal_pairs(pairs, seed), PRIOR)
    familiar = [fit_temperature(known[:, k], responsibilities[:, k]) for k in range(2)]

    def loss(by):
        tempered = F.logsigmoid(found[judge] / torch.tensor(by))
        return round(-(responsibilities[judge] * tempered).sum(1).mean().item(), 4)

    return {
        "num_pairs": int(judge.sum()),
        "on_new_texts": [round(t, 2) for t in new],
        "on_familiar_texts": [round(t, 2) for t in familiar],
        "loss": {"none": loss([1.0, 1.0]), "on_familiar_texts": loss(familiar), "on_new_texts": loss(new)},
    }


def deal_pairs(pairs, seed):
    """Folds of pairs, whose texts the heads know from others."""
    return torch.randint(5, (len(pairs),), generator=seeded(seed)).unsqueeze(1).repeat(1, 2)


def table(reports):
    """The block of docs/reproduction.md from what was written: means over seeds."""
    titles = ["data", "seeds", "weight", "announced, observed", "whole pairs: announced, observed"]
    titles += [
        "new votes (nats): weighed, whole",
        "loss on new texts (nats): temperature of new texts, of familiar, none",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for report in reports:
        seeds = list(report["seeds"].values())

        def mean(*path, digits=3, seeds=seeds):
            values = []
            for entry in seeds:
                for name in path:
                    entry = entry[name]
                values.append(entry)
            return f"{statistics.mean(values):.{digits}f}"

        def two(name, seeds=seeds, mean=mean):
            return ", ".join(mean("assignments", name, which) for which in ("expected", "observed"))

        loss = [mean("temperatures", "loss", name) for name in ("on_new_texts", "on_familiar_texts", "none")]
        votes = [mean("new_votes", name) for name in ("weighed", "whole")]
        row = [report["data"], str(len(seeds)), mean("assignments", "weight", digits=2), two("weighed"), two("whole")]
        lines.append("| " + " | ".join([*row, ", ".join(votes), ", ".join(loss)]) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--encoder")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = None if arguments.planted else read(arguments.data, arguments.encoder)
    report = {"data": "planted" if arguments.planted else Path(arguments.data).name, "seeds": {}}
    for seed in arguments.seeds:
        own = plant(seed) if pairs is None else pairs
        people = int(own.annotator_index.max()) + 1
        fitted = fit_feature_mixture(own, people, 2, generator=seeded(seed), num_init=4, prior_scale=PRIOR)
        found = {"num_annotators": people, "assignments": assignments(own, fitted, people, seed)}
        found["new_votes"] = new_votes(own, people, found["assignments"]["weight"], seed)
        found["temperatures"] = temperatures(own, fitted, seed)
        report["seeds"][str(seed)] = found
        print(json.dumps({seed: found}), flush=True)
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
