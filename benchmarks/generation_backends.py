"""Tokens per CPU second of `generate` and of continuous batching, in turns, on a grid of sizes.

    PYTHONPATH=. python benchmarks/generation_backends.py --out generation_backends.json
    PYTHONPATH=. python benchmarks/generation_backends.py --step    # a token's cost over a bare forward, V = 262,144

A Llama of random weights (vocabulary 8,000, width 192, 4 layers) that ends a reply after `mean` tokens on average
(`0`: every reply has its full length). One thread; CPU time, since other work may run; medians of `--pairs`.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trl_maxmin.trainer.common.generation_backends import choose_backend, sample_replies
from trl_maxmin.trainer.common.sampling import sampling_config


# Prompts, length limit, mean length of a reply (0: the limit).
GRID = [
    *((8, 24, 0), (8, 64, 20), (16, 128, 40), (32, 32, 0), (32, 128, 40), (64, 64, 20)),
    *((64, 128, 40), (64, 256, 60), (128, 32, 0), (128, 128, 0), (128, 128, 40), (128, 256, 60)),
]


def policy(vocabulary, width, layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config).eval()


def grid(pairs, batch_size):
    model, rows = policy(8000, 192, 4), []
    for count, limit, mean in GRID:
        prompts = [[3 + i % 20, 5, 7 + i % 40] + [9] * (i % 20) for i in range(count)]
        stops = list(range(11, 8000, mean)) if mean else []
        speeds = {"generate": [], "continuous_batching": []}
        for _ in range(pairs):
            for backend, found in speeds.items():
                start = time.process_time()
                replies = sample_replies(model, prompts, sampling_config(1.0, limit), 0, stops, batch_size, backend)
                found.append(sum(len(ids) for ids, _ in replies) / (time.process_time() - start))
        ratio = statistics.median(b / a for a, b in zip(*speeds.values(), strict=True))
        chosen = choose_backend("auto", count, limit, torch.device("cpu"))
        row = {"prompts": count, "limit": limit, "mean": mean, "ratio": round(ratio, 2), "auto": chosen}
        rows.append(row | {name: round(statistics.median(found)) for name, found in speeds.items()})
        print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def step(batch, width, tokens=24, pairs=5):
    """CPU milliseconds of a token with `generate`, over those of a bare forward with its cache."""
    model = policy(262_144, width, 2)
    ids = torch.tensor([[5 + i, 7, 9, 11] for i in range(batch)])
    ratios = []
    for _ in range(pairs):
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        start = time.process_time()
        for _ in range(tokens - 1):
            out = model(input_ids=ids[:, :1], past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        bare = time.process_time() - start
        spent = []
        for length in (tokens, 1):
            start = time.process_time()
            sample_replies(model, ids.tolist(), sampling_config(1.0, length), 0, [], batch)
            spent.append(time.process_time() - start)
        ratios.append((spent[0] - spent[1]) / bare)
    return {"batch": batch, "width": width, "ratio": round(statistics.median(ratios), 2)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step:
        found = [step(batch, width) for batch, width in ((8, 64), (8, 640), (64, 64))]
    else:
        found = grid(arguments.pairs, arguments.batch_size)
    print(json.dumps(found))
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"torch": torch.__version__, "rows": found}, file, indent=1)
