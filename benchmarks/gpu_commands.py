# SPDX-License-Identifier: Apache-2.0
"""Every command of the package end to end on small files made here, with the defaults a GPU gets (bfloat16,
checkpointing): `PYTHONPATH=. python benchmarks/gpu_commands.py --device cuda --out commands.json`.

Each command is a process of its own; its seconds and exit status are recorded, and the first that fails ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.peak_memory import machine


WORDS = "the a film plot story acting is was feels great superb lovely dull awful weak very and but good bad".split()
PROMPTS = ("the film", "a plot", "the acting was", "a story")


def write_files(folder: Path, width: int, layers: int) -> None:
    """A base of random weights, preferences of two groups that want praise and brevity, and prompts."""
    names = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS]
    backend = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    draw, praise = random.Random(0), {"great", "superb", "lovely", "good"}
    pairs = []
    for annotator in range(30):
        for _ in range(12):
            texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 12))) for _ in range(2)]
            brief = annotator < 10
            texts.sort(key=lambda text: -len(text.split()) if brief else sum(word in praise for word in text.split()))
            pairs.append(
                {"prompt": "the film", "chosen": texts[1], "rejected": texts[0], "annotator_id": f"a{annotator}"}
            )
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    prompts = [{"prompt": draw.choice(PROMPTS)} for _ in range(128)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))


def commands(device: str, steps: int) -> dict[str, list[str]]:
    """What is run, in this order: later commands read what earlier ones wrote."""
    place = ["--use_cpu", "true", "--bf16", "false"] if device == "cpu" else []
    common = ["--model_name_or_path", "base", "--report_to", "none", "--disable_tqdm", "true", *place]
    reward = ["reward", "--dataset_name", "pairs.jsonl", "--num_components", "2", "--max_steps", str(4 * steps)]
    reward += ["--per_device_train_batch_size", "16", *common]
    policy = ["--dataset_name", "prompts.jsonl", "--max_steps", str(steps), "--num_reference_completions", "4"]
    policy += ["--per_device_train_batch_size", "8", "--save_strategy", "no", *common]
    groups = ["--max_completion_length", "12", "--num_generations", "4"]
    ppo = ["ppo", *policy, "--response_length", "12"]
    return {
        "reward, heads": [*reward, "--output_dir", "heads"],
        "reward, frozen trunk": [*reward, "--train_trunk", "false", "--output_dir", "frozen"],
        "reward, adapters": [*reward, "--component_type", "lora", "--output_dir", "adapters"],
        "ppo": [*ppo, "--reward_model", "heads", "--output_dir", "by_ppo"],
        "ppo, one base": [*ppo, "--reward_model", "adapters", "--use_peft", "true", "--output_dir", "by_peft"],
        "grpo": ["grpo", *policy, *groups, "--reward_model", "heads", "--output_dir", "by_grpo"],
        "rloo": ["rloo", *policy, *groups, "--reward_model", "heads", "--output_dir", "by_rloo"],
        "assign": ["assign", "--reward_model", "heads", "--dataset_name", "pairs.jsonl", "--output_file", "who.json"],
        "evaluate": [
            "evaluate", "--policies", "ppo=by_ppo", "grpo=by_grpo", "--reference", "base", "--reward_model", "heads",
            "--dataset_name", "prompts.jsonl", "--output_dir", "evaluation",
        ],
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Parse, write files, run, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="names of commands (default: all)")
    parser.add_argument("--out", required=True, help="JSON file")
    settings = parser.parse_args(argv)
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    environment["HF_HUB_OFFLINE"] = "1"
    record = {"machine": machine(), "device": settings.device, "commands": {}}
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), settings.width, settings.layers)
        for name, words in commands(settings.device, settings.steps).items():
            if settings.only and name not in settings.only:
                continue
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "trl_maxmin.cli", *words], cwd=folder, env=environment,
                capture_output=True, text=True,
            )  # fmt: skip
            record["commands"][name] = {"seconds": time.perf_counter() - start, "status": done.returncode}
            print(name, record["commands"][name], flush=True)
            Path(settings.out).write_text(json.dumps(record, indent=2) + "\n")
            if done.returncode:
                sys.exit(f"`trl-maxmin {' '.join(words)}` failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    main()
