# SPDX-License-Identifier: Apache-2.0
"""What a token costs where the vocabulary is large: its log-probability, and drawing it. On a CPU, in turns.

    PYTHONPATH=. python benchmarks/token_costs.py --output docs/results/token_costs.json

`loss`: log-probabilities and their gradient, `cross_entropy` against `token_logprobs`, with the arrays of the logits'
size that each holds at its peak beside the logits. `without_gradient`: projection, temperature, log-probabilities and
entropy in one piece against chunks of the size that PPO takes. `draw`: softmax and `torch.multinomial` against
`SampleByCdf`, and the projection onto the vocabulary that precedes both. Processor time on one thread, medians; ratios
are second over first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from benchmarks.peak_memory import PeakMemory, machine
from trl_maxmin.functional import token_logprobs
from trl_maxmin.trainer.common.drawing import SampleByCdf
from trl_maxmin.trainer.ppo.policy import CACHED_LOGITS


def in_turns(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of processor time of each side; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, side in sides.items():
            start = time.process_time()
            side()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def held_arrays(side: Callable[[], object], size: int) -> float:
    """Peak memory of a side above what was held before, in arrays of `size` float32 numbers."""
    memory = PeakMemory("cpu")
    memory.reset()
    before = memory.now()
    result = side()
    peak = memory.peak()
    del result
    return (peak - before) * 2**20 / (4 * size)


def loss(s: argparse.Namespace) -> dict:
    """Forward and backward from logits."""
    logits = torch.randn(s.tokens, s.vocabulary).requires_grad_()
    tokens = torch.randint(s.vocabulary, (s.tokens,))
    sides = {
        "cross_entropy": lambda: torch.autograd.grad(cross_entropy(logits, tokens, reduction="none").sum(), logits),
        "token_logprobs": lambda: torch.autograd.grad(-token_logprobs(logits, tokens)[0].sum(), logits),
    }
    arrays = {name: held_arrays(side, logits.numel()) for name, side in sides.items()}
    return {"seconds": in_turns(sides, s.repeats), "arrays": arrays}


@torch.no_grad()
def without_gradient(s: argparse.Namespace) -> dict:
    """From hidden states to log-probabilities."""
    hidden, head = torch.randn(s.tokens, s.width), torch.randn(s.vocabulary, s.width)
    tokens = torch.randint(s.vocabulary, (s.tokens,))

    def pieces(size: int) -> list[torch.Tensor]:
        chunks = zip(hidden.split(size), tokens.split(size), strict=True)
        return [token_logprobs((states @ head.T) / 0.7, ids, with_entropy=True)[0] for states, ids in chunks]

    chunk = max(CACHED_LOGITS // s.vocabulary, 64)
    sides = {"one_piece": lambda: pieces(s.tokens), "chunks": lambda: pieces(chunk)}
    return {"seconds": in_turns(sides, s.repeats), "chunk": chunk}


@torch.no_grad()
def draw(s: argparse.Namespace) -> dict:
    """One token for each of the rows."""
    hidden, head = torch.randn(s.rows, s.width), torch.randn(s.vocabulary, s.width) / s.width**0.5
    scores, sampler = hidden @ head.T, SampleByCdf(1.0)
    sides = {
        "multinomial": lambda: torch.multinomial(scores.softmax(-1), 1),
        "sample_by_cdf": lambda: sampler(None, scores.clone()).argmax(-1),  # it writes into what it is given
        "projection": lambda: hidden @ head.T,
    }
    return {"seconds": in_turns(sides, s.repeats)}


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON file")
    sizes = {"vocabulary": 50257, "tokens": 1024, "width": 192, "rows": 64, "repeats": 9}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    settings = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {}
    for measurement in (loss, without_gradient, draw):
        result = measurement(settings)
        first, second, *_ = result["seconds"].values()
        result["ratio"] = second / first
        results[measurement.__name__] = result
        print(measurement.__name__, json.dumps(result))
    if settings.output:
        record = {"settings": {name: getattr(settings, name) for name in sizes}, "machine": machine(), **results}
        Path(settings.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
