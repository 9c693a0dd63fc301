# SPDX-License-Identifier: Apache-2.0
"""Other ways to learn from people who disagree, on the same frozen features and pairs as the mixture here.

    PYTHONPATH=. python benchmarks/neighbours.py --encoder path/to/all-MiniLM-L6-v2 --seeds 0 1 2 \\
        --data bowling_green.pairs.jsonl.gz pairs_annotators_ge20.jsonl.gz --output neighbours.json

| name | what it is |
|---|---|
| single | one Bradley-Terry reward |
| mixture | soft EM over annotators as in this package (`fit_feature_mixture`), posteriors of the training pairs |
| hard_em | the published procedure (arXiv 2402.08925, Algorithm 2): K rewards, hard assignment, ten iterations |
| robust | group-robust preference optimisation (arXiv 2405.20304) of one reward: exponentiated weights of the groups |
| shared | what people share and what is their own: `w_h = w_0 + B z_h`, B of rank K (arXiv 2405.00254) |
| pal | each person's convex weights on K rewards (arXiv 2406.08469), learned together |

All are linear in the features and were written for this comparison from the papers, not by their authors. The width of
the prior of the rewards is chosen on a fifth of the training pairs; the mixture chooses its own out of fold. Judged
are pairs that nobody trained on, of the same people. The worst group is known (planted, or a column `group`); without
one it is the worst tenth of the people with ten held-out pairs or more.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import load_dataset

from benchmarks.planted import plant
from trl_maxmin.evaluation.features import word_features
from trl_maxmin.functional.em import predictive_log_likelihood
from trl_maxmin.functional.em_features import directions_of_pairs, fit_feature_mixture, fit_rewards
from trl_maxmin.functional.feature_pairs import FeaturePairs


PRIORS = (0.25, 1.0, 4.0)
STEPS = 300
OWN_PRIOR = 2.0  # standard deviation of what belongs to one person


def encode(texts, encoder):
    """Mean of the last states: `(M, D)`."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
    model = AutoModel.from_pretrained(encoder, trust_remote_code=False).eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(texts), 32):
            batch = tokenizer(
                texts[start : start + 32], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


def as_pairs(rows, features_of):
    """Pairs, number of people, and the group of each person or `None`."""
    texts = {text: i for i, text in enumerate(dict.fromkeys([*rows["chosen"], *rows["rejected"]]))}
    column = "annotator" if "annotator" in rows.column_names else "annotator_id"
    people = {name: i for i, name in enumerate(dict.fromkeys(rows[column]))}
    pairs = FeaturePairs(
        features_of(list(texts)).float(),
        torch.tensor([texts[text] for text in rows["chosen"]]),
        torch.tensor([texts[text] for text in rows["rejected"]]),
        torch.tensor([people[name] for name in rows[column]]),
    )
    groups = None
    if "group" in rows.column_names:
        named = dict(zip(rows[column], rows["group"], strict=True))
        numbers = {group: i for i, group in enumerate(sorted({g for g in named.values() if g is not None}))}
        groups = torch.tensor([numbers.get(named[name], -1) for name in people])
    return pairs, len(people), groups


def planted_pairs(seed, num_components=3):
    made = plant(num_components, seed)
    pairs, people, _ = as_pairs(made.dataset, lambda texts: torch.from_numpy(word_features(texts, 12)[:, :12]))
    return pairs, people, torch.tensor(made.groups)


def split(pairs, share, generator):
    held = torch.rand(len(pairs), generator=generator) < share
    return pairs.select(~held), pairs.select(held)


def margins(pairs, weight):
    """`(N, C)` log-odds of the pairs under weights `(C, D)`."""
    rewards = pairs.features.to(weight) @ weight.T
    return rewards[pairs.chosen] - rewards[pairs.rejected]


def learn(pairs, rewards, own, log_odds, prior):
    """Full-batch Adam on the mean negative log-likelihood with normal priors on rewards and people's own."""
    optimizer = torch.optim.Adam([*rewards, own], lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        squares = sum(parameter.square().sum() for parameter in rewards) / prior**2
        penalty = (squares + own.square().sum() / OWN_PRIOR**2) / (2 * len(pairs))
        (-F.logsigmoid(log_odds(pairs)).mean() + penalty).backward()
        optimizer.step()


def shared(train, people, k, prior, generator):
    """`w_h = w_0 + B z_h`."""
    width = train.features.shape[1]
    common = torch.zeros(width, requires_grad=True)
    basis = (0.1 * torch.randn(k, width, generator=generator)).requires_grad_()
    own = (0.1 * torch.randn(people, k, generator=generator)).requires_grad_()

    def log_odds(pairs):
        return margins(pairs, common[None])[:, 0] + (margins(pairs, basis) * own[pairs.annotator_index]).sum(1)

    learn(train, [common, basis], own, log_odds, prior)
    return log_odds


def pal(train, people, k, prior, generator):
    """Convex weights of each person on K rewards."""
    rewards = torch.randn(k, train.features.shape[1], generator=generator).requires_grad_()
    own = torch.randn(people, k, generator=generator).requires_grad_()

    def log_odds(pairs):
        return (margins(pairs, rewards) * own.softmax(1)[pairs.annotator_index]).sum(1)

    learn(train, [rewards], own, log_odds, prior)
    return log_odds


def robust(train, groups, prior, step=0.1):
    """One reward; the groups' weights grow by their own loss."""
    weight = torch.zeros(1, train.features.shape[1], requires_grad=True)
    group = groups[train.annotator_index]
    known = group >= 0
    one_hot = F.one_hot(group[known].clamp_min(0)).float()
    shares = torch.full((one_hot.shape[1],), 1.0 / one_hot.shape[1])
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses = -F.logsigmoid(margins(train, weight)[known, 0])
        by_group = (one_hot * losses.unsqueeze(1)).sum(0) / one_hot.sum(0)
        shares = torch.softmax(shares.log() + step * by_group.detach(), dim=0)
        (shares @ by_group + weight.square().sum() / (2 * prior**2 * len(train))).backward()
        optimizer.step()
    return lambda pairs: margins(pairs, weight)[:, 0]


def hard_em(train, people, k, prior, generator, iterations=10):
    """Assign each annotator to the reward that explains their pairs best; a tie keeps the reward that they have."""
    assigned = torch.randint(k, (people,), generator=generator)
    for _ in range(iterations):
        weight = fit_rewards(train, F.one_hot(assigned[train.annotator_index], k).float(), prior)
        sums = torch.zeros(people, k, dtype=torch.float64)
        sums.index_add_(0, train.annotator_index, F.logsigmoid(margins(train, weight)).double())
        now = sums.gather(1, assigned.unsqueeze(1)).squeeze(1)
        assigned = torch.where(sums.amax(1) > now, sums.argmax(1), assigned)
    return lambda pairs: margins(pairs, weight).gather(1, assigned[pairs.annotator_index].unsqueeze(1))[:, 0]


def chosen_on_validation(fit, train, generator):
    """The fit with the prior that predicts a fifth of the training pairs best, on all of them."""
    part, held = split(train, 0.2, generator)
    state = generator.get_state()
    scores = []
    for prior in PRIORS:
        generator.set_state(state)
        scores.append(F.logsigmoid(fit(part, prior)(held)).mean().item())
    generator.set_state(state)
    return fit(train, PRIORS[max(range(len(PRIORS)), key=scores.__getitem__)])


def methods(train, people, groups, k, seed):
    """Name -> seconds and a function from pairs to whether they are predicted."""
    generator = torch.Generator().manual_seed(seed)
    directions, _ = directions_of_pairs(train)
    reduced = train.in_directions(directions)

    def timed(make):
        began = time.perf_counter()
        return make(), time.perf_counter() - began

    def mixture(count):
        fitted = fit_feature_mixture(train, people, count, generator=generator, num_init=4)
        tempered = fitted.tempered(train.annotator_index)

        def ahead(pairs):
            likelihood = pairs.log_likelihood(fitted.weight)
            return predictive_log_likelihood(likelihood, tempered, pairs.annotator_index).exp() > 0.5

        return fitted, ahead

    def of(fit):
        """Fitted in the directions of the training pairs."""
        log_odds = chosen_on_validation(fit, reduced, generator)
        return lambda pairs: log_odds(pairs.in_directions(directions)) > 0

    (_, single), seconds = timed(lambda: mixture(1))
    yield "single", single, seconds
    (fitted, own), seconds = timed(lambda: mixture(k))
    yield "mixture", own, seconds
    known = groups if groups is not None else fitted.log_responsibilities.argmax(1)
    for name, fit in {
        "hard_em": lambda part, prior: hard_em(part, people, k, prior, generator),
        "robust": lambda part, prior: robust(part, known, prior),
        "shared": lambda part, prior: shared(part, people, k, prior, generator),
        "pal": lambda part, prior: pal(part, people, k, prior, generator),
    }.items():
        found, seconds = timed(lambda fit=fit: of(fit))
        yield name, found, seconds


def measured(right, held, groups, people):
    """Accuracy of all pairs, and of the group, or the tenth of the people, that is worst off."""
    right = right.double()
    if groups is not None:
        own = groups[held.annotator_index]
        worst = min(right[own == g].mean().item() for g in range(int(groups.max()) + 1) if (own == g).any())
    else:
        counts = torch.zeros(people).index_add_(0, held.annotator_index, torch.ones(len(held)))
        sums = torch.zeros(people, dtype=torch.float64).index_add_(0, held.annotator_index, right)
        each = (sums / counts)[counts >= 10].sort().values
        worst = each[: max(len(each) // 10, 1)].mean().item()
    return {"accuracy": right.mean().item(), "worst": worst}


def compare(name, load, k, seeds):
    """All methods on one set, over the seeds: means and their standard errors."""
    rows: dict[str, list[dict]] = {}
    for seed in seeds:
        pairs, people, groups = load(seed)
        train, held = split(pairs, 0.3, torch.Generator().manual_seed(seed))
        for method, ahead, seconds in methods(train, people, groups, k, seed):
            found = measured(ahead(held), held, groups, people) | {"seconds": seconds}
            rows.setdefault(method, []).append(found)
            print(json.dumps({"set": name, "seed": seed, "method": method, **found}), flush=True)
    table = {}
    for method, found in rows.items():
        table[method] = {"by_seed": found}
        for measure in ("accuracy", "worst", "seconds"):
            values = torch.tensor([entry[measure] for entry in found], dtype=torch.float64)
            error = (values.var(unbiased=len(values) > 1) / len(values)).sqrt().item()
            table[method][measure] = {"mean": values.mean().item(), "standard_error": error}
    kind = "group" if groups is not None else "tenth of the people"
    return {"num_components": k, "num_pairs": len(pairs), "num_annotators": people, "worst": kind, "methods": table}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[])
    parser.add_argument("--encoder")
    parser.add_argument("--num_components", type=int, default=2, help="of the sets that are no planted ones")
    parser.add_argument("--max_pairs", type=int, help="of each set, the first so many: a part of its people")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    report = {"planted": compare("planted", planted_pairs, 3, arguments.seeds)}
    for path in arguments.data:
        rows = load_dataset("json", data_files=path, split="train")
        rows = rows.select(range(min(arguments.max_pairs or len(rows), len(rows))))
        made = as_pairs(rows, lambda texts: encode(texts, arguments.encoder))
        name = Path(path).name.split(".")[0]
        report[name] = compare(name, lambda seed, made=made: made, arguments.num_components, arguments.seeds)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()
