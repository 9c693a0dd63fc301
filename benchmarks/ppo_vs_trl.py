# SPDX-License-Identifier: Apache-2.0
"""PPO here against the last one of TRL, 1.12.0: the same policy, prompts, reward and budget, in turns.

    python benchmarks/ppo_vs_trl.py --out ppo_vs_trl.json                   # V = 50,257, five paired seeds
    python benchmarks/ppo_vs_trl.py --vocabulary 512 --out small.json       # where trunk and overhead dominate
    python benchmarks/ppo_vs_trl.py --sides k1 k8                           # what eight components cost
    python benchmarks/ppo_vs_trl.py --model FOLDER --updates 2 --batch 8 --micro-batch 8 --limit 24 --epochs 1
    python benchmarks/ppo_vs_trl.py --model FOLDER --batch 8 --micro-batch 8 --limit 64 --stop . --epochs 4 [--lora]
    python benchmarks/ppo_vs_trl.py --device cuda --bf16 --checkpointing --layers 18 --width 2048 --limit 256 \
        --seeds 2 --updates 4 --out ppo_vs_trl_gpu.json                     # about 1 B parameters on a GPU

TRL 1.12.0 is installed into a folder of its own. Both sides run in float32 without gradient checkpointing unless
`--bf16` and `--checkpointing` are given (1.12 gets them too, and ignores both). Each run is a process of its own, the
order changing from pair to pair. The policy is first trained to end its replies after a quarter to the whole of the
length limit: a random one never does. The reward is the share of half of the words. With `--model` the policy is a
pretrained one (a folder) that continues openings of film reviews, and the reward two random layers of its
architecture. Prints medians and ratios; seconds mean something on an idle machine only, `cpu_second` (one thread) on a
busy one, too. Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from peak_memory import machine
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast


ROOT = Path(__file__).parents[1]
TRL_FOLDER = ROOT / ".seam" / "trl-1.12.0"
EOS, PAD, WORDS = 0, 1, 64
# Two-sided 95 % of Student's t by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def install_trl(folder: Path) -> None:
    """TRL 1.12.0 without its dependencies, which are those of this environment (the folder of `make seam`)."""
    if not (folder / "trl").is_dir():
        for package in (["--no-deps", "trl==1.12.0"], ["requests"]):
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", folder, *package], check=True)


def heads(width: int) -> int:
    """Attention heads of width 48 where that divides, else of 64."""
    return width // 48 if width % 48 == 0 else width // 64 or 1


def sft_policy(args: argparse.Namespace) -> GPT2LMHeadModel:
    """A policy whose replies are random words that end, evenly, after a quarter to the whole of the limit."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=args.vocabulary, n_layer=args.layers, n_embd=args.width, n_head=heads(args.width),
            n_positions=args.limit + 32, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
        )
    ).to(args.device)  # fmt: skip
    rate = 3e-3 * min(1.0, 192 / args.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    used = torch.arange(2 + WORDS, device=args.device)
    others = min(512, args.vocabulary - len(used))
    for step in range(args.sft_steps):
        prompt = torch.randint(2, 2 + WORDS, (16, 12))
        reply = torch.randint(2, 2 + WORDS, (16, args.limit))
        ends = torch.randint(args.limit // 4, args.limit, (16,))
        places = torch.arange(args.limit)
        reply[places == ends.unsqueeze(1)] = EOS
        reply = reply.to(args.device)
        hidden = model.transformer(torch.cat([prompt.to(args.device), reply], 1)).last_hidden_state[:, 11:-1]
        # Softmax over the words and a sample of all other tokens, weighted for those left out.
        sample = torch.randint(len(used), args.vocabulary, (others,)).to(used) if others else used[:0]
        logits = hidden @ model.lm_head.weight[torch.cat([used, sample])].T
        if others:
            left_out = torch.tensor((args.vocabulary - len(used)) / others).log()
            logits = torch.cat([logits[..., : len(used)], logits[..., len(used) :] + left_out], -1)
        mask = (places <= ends.unsqueeze(1)).to(args.device)
        loss = torch.nn.functional.cross_entropy(logits[mask], reply[mask])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / args.sft_steps)
    print(f"policy: {loss.item():.2f} nats per token (words alone: {torch.tensor(float(WORDS)).log():.2f})")
    return model.cpu()


@torch.no_grad()
def share_of_words(vocabulary: int, positions: int) -> GPT2ForSequenceClassification:
    """A reward model that rises with the share of even ids: an attention that averages, and nothing else."""
    config = GPT2Config(
        vocab_size=vocabulary, n_layer=1, n_embd=8, n_head=1, n_positions=positions, num_labels=1, pad_token_id=PAD
    )
    model = GPT2ForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        if "ln_" not in name:
            parameter.zero_()
    embedding = model.transformer.wte.weight
    embedding[:, 0] = torch.where(torch.arange(vocabulary) % 2 == 0, 0.1, -0.1)
    embedding[:, 1], embedding[:, 2] = 1.0, -1.0
    block = model.transformer.h[0].attn
    block.c_attn.weight[0, 16] = 1.0  # value of channel 0; queries and keys are 0, so every token counts the same
    block.c_proj.weight[0, 0] = 5.0
    model.score.weight[0, 0] = 1.0
    return model


def prepare(args: argparse.Namespace) -> Path:
    """Policy, reward and tokenizer that all runs load; made once per shape."""
    if args.model:
        folder = Path(args.work) / Path(args.model).name
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(args.work) / f"v{args.vocabulary}-l{args.layers}-w{args.width}-t{args.limit}-s{args.sft_steps}"
    if not (folder / "reward").is_dir():
        words = {"<eos>": EOS, "<pad>": PAD} | {f"w{i}": i for i in range(2, args.vocabulary)}
        backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
        sft_policy(args).save_pretrained(folder / "policy")
        tokenizer.save_pretrained(folder / "policy")
        share_of_words(args.vocabulary, args.limit + 32).save_pretrained(folder / "reward")
    return folder


def run_side(side: str, seed: int, folder: Path, args: argparse.Namespace) -> dict:
    """One run in a process of its own."""
    settings = {name: getattr(args, name) for name in ("vocabulary", "batch", "micro_batch", "updates", "epochs")}
    settings |= {name: getattr(args, name) for name in ("device", "bf16", "checkpointing", "model", "lora", "stop")}
    settings |= {"limit": args.limit, "lr": args.lr, "threads": args.threads, "seed": seed, "words": WORDS}
    path = [str(ROOT)] if side != "trl" else [str(args.trl), str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": str(args.threads)}
    out = folder / "result.json"
    command = [sys.executable, Path(__file__).with_name("ppo_side.py"), side, folder, json.dumps(settings), out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-4000:]}")
    result = json.loads(out.read_text())
    print(
        f"{side:>4} seed {seed}: {result['episodes_per_second']:6.2f} episodes/s, "
        f"{result['episodes_per_cpu_second']:.3f} a CPU second, {result['peak_mib']:.0f} MiB in all, "
        f"{result['tokens_per_second']:6.0f} tokens/s, "
        f"{result['peak_rollout_mib']:6.0f} MiB rollout, {result['peak_update_mib']:6.0f} MiB update, "
        f"{result['optimizer_steps']} steps, score {result['scores'][0]:.3f} -> {result['scores'][-1]:.3f}",
        flush=True,
    )
    return result


def compare(results: list[dict], sides: list[str]) -> dict:
    """Medians of the paired ratios, second side over first, and the paired difference of the mean score."""
    first, second = ([r for r in results if r["side"] == side] for side in sides)
    names = ("episodes_per_second", "episodes_per_cpu_second", "tokens_per_second")
    names += ("peak_rollout_mib", "peak_update_mib", "peak_mib", "optimizer_steps")
    summary = {
        f"{name}_ratio": statistics.median(b[name] / a[name] for a, b in zip(first, second, strict=True))
        for name in names
    }
    gain = statistics.mean(statistics.mean(r["scores"][-3:]) - r["scores"][0] for r in first)
    differences = [
        statistics.mean(b["scores"]) - statistics.mean(a["scores"]) for a, b in zip(first, second, strict=True)
    ]
    summary |= {"gain_of_first": gain, "mean_score_difference": statistics.mean(differences)}
    if len(differences) > 1:
        error = statistics.stdev(differences) / len(differences) ** 0.5
        margin = STUDENT.get(len(differences) - 1, 1.96) * error
        summary["mean_score_difference_95"] = [statistics.mean(differences) + sign * margin for sign in (-1, 1)]
    return summary


def main() -> None:
    """Parse, run in turns, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs=2, default=["trl", "ours"], choices=["trl", "ours", "k1", "k4", "k8"])
    parser.add_argument("--seeds", type=int, default=5, help="pairs of runs")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--model", help="folder of a pretrained causal language model, in place of a made one")
    parser.add_argument("--stop", help="with --model: text whose last token ends a reply (default: EOS)")
    parser.add_argument("--lora", action="store_true", help="with --model: adapters on policy and critic")
    parser.add_argument("--trl", type=Path, default=TRL_FOLDER, help="folder of TRL 1.12.0; installed if empty")
    parser.add_argument("--work", default=ROOT / ".bench", help="folder of the models")
    numbers = {"vocabulary": 50257, "layers": 4, "width": 192, "limit": 64, "batch": 64, "micro_batch": 16}
    numbers |= {"updates": 8, "epochs": 4, "threads": 2, "sft_steps": 200}
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "trl" in args.sides:
        install_trl(args.trl)
    folder = prepare(args)
    results = []
    for seed in range(args.seeds):
        for side in args.sides if seed % 2 == 0 else args.sides[::-1]:
            results.append(run_side(side, seed, folder, args))
        # After each pair, so that what was measured is there if the rest is not.
        summary = compare(results, args.sides)
        if args.out:
            names = (*numbers, "lr", "seeds", "sides", "device", "bf16", "checkpointing", "lora", "stop")
            settings = {name: getattr(args, name) for name in names}
            settings |= {"model": Path(args.model).name if args.model else None, "seeds": seed + 1}
            record = {"settings": settings, "machine": machine(), "summary": summary, "runs": results}
            Path(args.out).write_text(json.dumps(record, indent=2))
    print(f"{args.sides[1]} against {args.sides[0]}: {json.dumps(summary, indent=2)}")


if __name__ == "__main__":
    main()
