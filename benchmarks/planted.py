# SPDX-License-Identifier: Apache-2.0
"""Planted mixtures as text: replies of a few words, K groups whose utilities are sums over the words.

200 annotators with 20 pairs each; the smallest group has a tenth of them; a preference agrees with the utility about
80 % of the time; utilities of two groups correlate 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trl_maxmin.evaluation import adjusted_rand_index
from trl_maxmin.functional.em import annotator_log_likelihood, log_responsibilities


SHARES = {1: (1.0,), 2: (0.9, 0.1), 3: (0.6, 0.3, 0.1), 4: (0.4, 0.3, 0.2, 0.1)}


@dataclass(frozen=True)
class Planted:
    """Pairs, the group of each annotator (in order of appearance), and log-likelihoods under the true rewards."""

    dataset: Dataset
    groups: list[int]
    true_log_likelihood: torch.Tensor
    annotator_index: torch.Tensor
    shares: torch.Tensor

    def true_ari(self) -> float:
        """Agreement of the posterior under the TRUE components, from all pairs, with the planted groups."""
        sums = annotator_log_likelihood(self.true_log_likelihood, self.annotator_index, len(self.groups))
        best = log_responsibilities(sums, self.shares.log()).argmax(-1)
        return adjusted_rand_index(best.tolist(), self.groups)


def plant(num_components, seed, num_words=12, length=8, annotators=200, pairs=20, accuracy=0.8, correlation=0.3):
    """A planted mixture of K = 1 to 4 groups."""
    rng = np.random.default_rng([seed, num_components])
    words = [f"w{i}" for i in range(num_words)]
    # Orthogonal to the constant: the length of a reply is the same for all, so a common level would say nothing.
    basis = rng.normal(size=(num_components + 1, num_words))
    basis -= basis.mean(1, keepdims=True)
    q = np.linalg.qr(basis.T)[0].T
    weights = np.sqrt(correlation) * q[0] + np.sqrt(1 - correlation) * q[1 : num_components + 1]
    replies = rng.integers(num_words, size=(annotators * pairs, 2, length))
    counts = np.stack([(replies == w).sum(-1) for w in range(num_words)], axis=-1).astype(float)
    difference = counts[:, 0] - counts[:, 1]
    odds = difference @ weights.T
    low, high = 0.01, 100.0
    for _ in range(60):
        scale = (low * high) ** 0.5
        agreement = (1 / (1 + np.exp(-np.abs(scale * odds)))).mean()
        low, high = (scale, high) if agreement < accuracy else (low, scale)
    odds *= scale
    shares = SHARES[num_components]
    group = np.repeat(np.arange(num_components), [round(s * annotators) for s in shares])
    group = rng.permutation(group)
    who = np.repeat(np.arange(annotators), pairs)
    mine = odds[np.arange(len(who)), group[who]]
    first = rng.random(len(who)) < 1 / (1 + np.exp(-mine))
    text = [[" ".join(words[i] for i in side) for side in pair] for pair in replies]
    dataset = Dataset.from_dict(
        {
            "prompt": ["p"] * len(who),
            "chosen": [t[0] if f else t[1] for t, f in zip(text, first, strict=True)],
            "rejected": [t[1] if f else t[0] for t, f in zip(text, first, strict=True)],
            "annotator_id": [f"a{h}" for h in who],
        }
    )
    signed = torch.tensor(np.where(first, 1.0, -1.0)[:, None] * odds)
    return Planted(
        dataset, group.tolist(), F.logsigmoid(signed), torch.tensor(who), torch.tensor(shares, dtype=torch.float64)
    )


def tokenizer(num_words=12):
    """Word-level, with distinct pad, bos and eos."""
    names = ["<pad>", "<bos>", "<eos>", "<unk>", "p", *(f"w{i}" for i in range(num_words))]
    backend = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def base_model(num_words=12, width=64, layers=2, seed=0):
    """A small GPT-2 with random weights: nothing about the words is known beforehand."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=num_words + 5, n_embd=width, n_layer=layers, n_head=4, n_positions=32, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)
