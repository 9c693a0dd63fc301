"""Tokens per CPU second of `generate` and of continuous batching, in turns, on a grid of sizes.

    PYTHONPATH=. python benchmarks/generation_backends.py --out generation_backends.json
    PYTHONPATH=. python benchmarks/generation_backends.py --step    # a token's cost over a bare forward, V = 262,144
    PYTHONPATH=. python benchmarks/generation_backends.py --device cuda --bf16 --layers 18 --width 2048 \
        --batch_size 512 --sizes 512x512x0 512x512x120              # about 1 B parameters on a GPU

A Llama of random weights (vocabulary 8,000, width 192, 4 layers) that ends a reply after `mean` tokens on average
(`0`: every reply has its full length). On a CPU one thread and CPU time, since other work may run; on a GPU seconds;
medians of `--pairs`.
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


def policy(vocabulary, width, layers, heads=4):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config).eval()


def clock(device):
    """Seconds of this process on a CPU, of the wall once a GPU has done what it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def grid(sizes, options):
    device, dtype = torch.device(options.device), torch.bfloat16 if options.bf16 else torch.float32
    model, rows = policy(8000, options.width, options.layers, max(options.width // 128, 4)).to(device, dtype), []
    batch_size = options.batch_size
    for count, limit, mean in sizes:
        prompts = [[3 + i % 20, 5, 7 + i % 40] + [9] * (i % 20) for i in range(count)]
        stops = list(range(11, 8000, mean)) if mean else []
        speeds = {"generate": [], "continuous_batching": []}
        for _ in range(options.pairs):
            for backend, found in speeds.items():
                start = clock(device)
                replies = sample_replies(model, prompts, sampling_config(1.0, limit), 0, stops, batch_size, backend)
                found.append(sum(len(ids) for ids, _ in replies) / (clock(device) - start))
        ratio = statistics.median(b / a for a, b in zip(*speeds.values(), strict=True))
        # As after a first batch of such replies.
        chosen = choose_backend("auto", count, limit, device, mean or limit)
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
    parser.add_argument("--sizes", nargs="*", help="prompts x limit x mean, such as 128x256x60; default: the grid")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step:
        found = [step(batch, width, pairs=arguments.pairs) for batch, width in ((8, 64), (8, 640), (64, 64))]
    else:
        sizes = [tuple(map(int, size.split("x"))) for size in arguments.sizes] if arguments.sizes else GRID
        found = grid(sizes, arguments)
    print(json.dumps(found))
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"torch": torch.__version__, "rows": found}, file, indent=1)
