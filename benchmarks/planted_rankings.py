# SPDX-License-Identifier: Apache-2.0
"""Planted groups from few choices a person: best of four, full rankings, the same cut into pairs, and single pairs.

200 people of three groups choose four times among four texts. Compared are the adjusted Rand index of EM's assignments
with the groups, that of the Bayes posterior under the true rewards, and how sure EM is against how often it is right.

    python benchmarks/planted_rankings.py --seeds 0,1,2,3,4 --output docs/results/planted_rankings.json
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch
from torch import Tensor

from trl_maxmin.functional.em_features import fit_feature_mixture
from trl_maxmin.functional.feature_pairs import FeaturePairs
from trl_maxmin.functional.feature_rankings import FeatureRankings
from trl_maxmin.functional.ranking import RankedChoices


PEOPLE, GROUPS, CHOICES, REPLIES, TEXTS, WIDTH, SPREAD = 200, 3, 4, 4, 240, 8, 2.5


def world(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features `(M, D)`, true rewards `(M, K)`, groups `(H,)`, texts of each choice in the order of their owner's
    preference `(N, n)` (Luce's rule: rewards plus Gumbel noise), and owners `(N,)`."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(TEXTS, WIDTH, generator=generator, dtype=torch.float64)
    weight = SPREAD / WIDTH**0.5 * torch.randn(GROUPS, WIDTH, generator=generator, dtype=torch.float64)
    group, owner = torch.arange(PEOPLE) % GROUPS, torch.arange(PEOPLE).repeat_interleave(CHOICES)
    # No text twice for a person.
    shown = [torch.randperm(TEXTS, generator=generator)[: CHOICES * REPLIES] for _ in range(PEOPLE)]
    texts = torch.stack(shown).view(-1, REPLIES)
    rewards = features @ weight.T
    noise = -torch.rand(texts.shape, generator=generator, dtype=torch.float64).log().neg().log()
    order = (rewards[texts, group[owner].unsqueeze(1)] + noise).argsort(1, descending=True)
    return features, rewards, group, texts.gather(1, order), owner


def rand_index(one: Tensor, other: Tensor) -> float:
    """Adjusted Rand index of two partitions (Hubert and Arabie, 1985)."""
    table = torch.zeros(int(one.max()) + 1, int(other.max()) + 1, dtype=torch.float64)
    table.index_put_((one, other), torch.ones(len(one), dtype=torch.float64), accumulate=True)

    def pairs(count: Tensor) -> float:
        return (count * (count - 1) / 2).sum().item()

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / pairs(torch.tensor([float(len(one))]))
    return (both - expected) / ((rows + columns) / 2 - expected)


def share_right(log_resp: Tensor, group: Tensor) -> float:
    """Share of people in their own group, under the naming of components that suits best."""
    best = log_resp.argmax(1)
    return max((torch.tensor(names)[best] == group).double().mean().item()
               for names in itertools.permutations(range(log_resp.shape[1])))  # fmt: skip


def measure(data: FeaturePairs | FeatureRankings, rewards: Tensor, group: Tensor, seed: int) -> dict[str, float]:
    """EM's assignments and the Bayes posterior's, from the same data."""
    if isinstance(data, FeaturePairs):
        likelihood = torch.nn.functional.logsigmoid(rewards[data.chosen] - rewards[data.rejected])
    else:
        likelihood = data.choices.log_likelihood(rewards)
    sums = torch.zeros(PEOPLE, GROUPS, dtype=torch.float64).index_add_(0, data.annotator_index, likelihood)
    fitted = fit_feature_mixture(data, PEOPLE, GROUPS, generator=torch.Generator().manual_seed(seed), num_init=8)
    log_resp = fitted.log_responsibilities
    return {
        "rows": len(data),
        "ari_bayes": rand_index(group, sums.argmax(1)),
        "ari": rand_index(group, log_resp.argmax(1)),
        "announced": log_resp.exp().amax(1).mean().item(),
        "right": share_right(log_resp, group),
        "predictive_weight": fitted.predictive_weight,
    }


def run(seed: int) -> dict[str, dict[str, float]]:
    """All forms of the same choices of one world."""
    features, rewards, group, ordered, owner = world(seed)
    features, count = features.float(), len(ordered)
    full = torch.arange(1, REPLIES + 1).expand(count, REPLIES)
    best = (full == 1).long()
    first, second = torch.triu_indices(REPLIES, REPLIES, 1)
    one = torch.rand(count, REPLIES, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :2].sort(1).values

    def pairs(better: Tensor, worse: Tensor) -> FeaturePairs:
        each = better.shape[1]
        return FeaturePairs(features, better.reshape(-1), worse.reshape(-1), owner.repeat_interleave(each))

    forms = {
        "best of four": FeatureRankings(features, RankedChoices(ordered, best, owner)),
        "best of four, cut into three pairs": pairs(ordered[:, :1].expand(-1, REPLIES - 1), ordered[:, 1:]),
        "full ranking": FeatureRankings(features, RankedChoices(ordered, full, owner)),
        "full ranking, cut into six pairs": pairs(ordered[:, first], ordered[:, second]),
        "one pair of each four": pairs(ordered.gather(1, one[:, :1]), ordered.gather(1, one[:, 1:])),
    }
    return {name: measure(data, rewards, group, seed) for name, data in forms.items()}


def main() -> None:
    """Measure all seeds; write and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = {}
    for seed in map(int, arguments.seeds.split(",")):
        found[seed] = run(seed)
        print(seed, json.dumps(found[seed]), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    for name in next(iter(found.values())):
        means = {
            key: sum(of[name][key] for of in found.values()) / len(found) for key in found[next(iter(found))][name]
        }
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in means.items()))


if __name__ == "__main__":
    main()
