# SPDX-License-Identifier: Apache-2.0
r"""Memory of one base that carries a policy's adapter and K reward components: scoring, and a MaxMin-PPO step.

    PYTHONPATH=. python benchmarks/base_memory.py --device cuda --out base_memory.json    # 7 B parameters, bf16
    PYTHONPATH=. python benchmarks/base_memory.py --layers 8 --width 512 --inner 1376 --heads 8 \
        --vocabulary 8000 --tokens 128 --prompt 96                                        # on a CPU

A Llama of random weights in bfloat16. Each measurement is a process of its own, with one component and with
`--components` of the default rank. The policy has a LoRA adapter of `--rank` on the layers that
`examples/recipes/tulu2/ppo_qlora.yaml` names; as there, its reference is the base with the adapter off, and its critic
stands on the policy's trunk. `ratio` is the peak with K components, less what the peak with
one component holds beyond its weights (the activations), over the weights of one base.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.peak_memory import PeakMemory, machine
from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer, MixtureRewardModel


STAGES = ("score", "ppo")
BAR = 1.3
NUMBERS = {
    "vocabulary": 32000, "layers": 32, "width": 4096, "inner": 11008, "heads": 32, "components": 4, "rank": 16,
    "batch": 4, "tokens": 512, "prompt": 128,
}  # fmt: skip


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word for each id."""
    words = {"<eos>": 0, "<pad>": 1} | {f"w{i}": i for i in range(2, vocabulary)}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def make_base(s: dict[str, Any]) -> torch.nn.Module:
    """The base, made on its device."""
    config = LlamaConfig(
        vocab_size=s["vocabulary"], hidden_size=s["width"], intermediate_size=s["inner"],
        num_hidden_layers=s["layers"], num_attention_heads=s["heads"], num_key_value_heads=s["heads"],
        max_position_embeddings=s["tokens"], bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    with torch.device(s["device"]):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def policy_adapter(s: dict[str, Any]) -> LoraConfig:
    """The policy's adapter, with the layers of the recipe."""
    return LoraConfig(r=s["rank"], target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")


def step(base: Any, mixture: MixtureRewardModel, tokenizer: Any, s: dict[str, Any], folder: str) -> MaxMinPPOTrainer:
    """The trainer of one rollout and its optimizer step: `batch` replies, `tokens` tokens with their prompts."""
    prompts = torch.randint(2, s["vocabulary"], (s["batch"], s["prompt"])).tolist()
    args = MaxMinPPOConfig(
        folder, per_device_train_batch_size=s["batch"], gradient_accumulation_steps=1, max_steps=1, num_ppo_epochs=1,
        response_length=s["tokens"] - s["prompt"], stop_token="eos", utility="raw",
        gradient_checkpointing=True, bf16=s["device"] == "cuda", use_cpu=s["device"] != "cuda", report_to=[],
        num_sample_generations=0, save_strategy="no", disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    return MaxMinPPOTrainer(
        args, processing_class=tokenizer, model=base, ref_model=None, reward_model=mixture,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=policy_adapter(s),
    )  # fmt: skip


def measure(stage: str, components: int, s: dict[str, Any], folder: str) -> dict[str, float]:
    """MiB held before the base, with the base, with all adapters, and at the peak of a stage."""
    torch.manual_seed(0)
    memory, tokenizer = PeakMemory(s["device"]), word_tokenizer(s["vocabulary"])
    empty = memory.now()
    base = make_base(s)
    one_base = memory.now() - empty
    mixture = MixtureRewardModel.from_base(base, components, "lora", processing_class=tokenizer)
    # Given as a configuration, the adapter is new to the trainer, which takes it off for the reference.
    trainer = step(base, mixture, tokenizer, s, folder) if stage == "ppo" else None
    if trainer is None:
        base = get_peft_model(base, policy_adapter(s))
    weights = memory.now() - empty
    memory.reset()
    if trainer is not None:
        trainer.train()
    else:
        ids = torch.randint(2, s["vocabulary"], (s["batch"], s["tokens"]), device=s["device"])
        with torch.no_grad():
            mixture.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    return {"one_base": one_base, "weights": weights, "peak": memory.peak() - empty}


def summarise(one: dict[str, float], several: dict[str, float]) -> dict[str, float]:
    """The ratio of the module's docstring, and the activations it takes off."""
    activations = one["peak"] - one["weights"]
    return {"activations_k1": activations, "ratio": (several["peak"] - activations) / several["one_base"]}


def main(argv: list[str] | None = None) -> None:
    """Parse, measure in processes of their own, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--worker", nargs=2, metavar=("STAGE", "K"), help=argparse.SUPPRESS)
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(argv)
    if not 0 < args.prompt < args.tokens:
        parser.error(
            f"--prompt must leave room for a reply: from 1 to {args.tokens - 1} (--tokens), got {args.prompt}."
        )
    settings = {name: getattr(args, name) for name in (*NUMBERS, "device")}
    if args.worker:
        stage, components = args.worker
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(stage, int(components), settings, folder)))
        return
    summary, runs = {}, {}
    for stage in STAGES:
        for k in dict.fromkeys([1, args.components]):
            command = [sys.executable, __file__, "--worker", stage, str(k)]
            options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
            done = subprocess.run([*command, *options], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{stage} with {k} components failed:\n{done.stderr[-4000:]}")
            runs[f"{stage}_k{k}"] = json.loads(done.stdout.strip().splitlines()[-1])
            print(stage, f"K = {k}:", {name: round(value) for name, value in runs[f"{stage}_k{k}"].items()}, "MiB")
        summary[stage] = summarise(runs[f"{stage}_k1"], runs[f"{stage}_k{args.components}"])
        ratio = summary[stage]["ratio"]
        print(f"{stage}: {ratio:.3f} of one base beside the activations of one component ({BAR} at most)", flush=True)
    if args.out:
        record = {"settings": settings, "machine": machine(), "runs": runs, "summary": summary}
        Path(args.out).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
