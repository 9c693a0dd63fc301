# SPDX-License-Identifier: Apache-2.0
"""What a sampler that computes otherwise than the trainer does to a run of PPO: logits rounded to bfloat16.

    PYTHONPATH=. python benchmarks/sampler_noise.py --steps 1000 --out sampler_noise.json

Two runs from the same seed, one whose sampler rounds and one whose does not; the replies' log-probabilities are the
trainer's in both. The policy is a small GPT-2, the reward the share of one word. Reports the mean KL and reward over
the last tenth of each run and the mean ratio of the trainer's to the sampler's probabilities.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.peak_memory import machine
from trl_maxmin import PPOConfig, PPOTrainer
from trl_maxmin.trainer.common.generation_backends import SampledReplies


VOCABULARY, SCALE = 64, 8.0


class RoundedSampler(PPOTrainer):
    """Samples from logits rounded to bfloat16, and tells what it made of each token."""

    def _sample_from(self, model: torch.nn.Module, rows: list, *stream: int | str) -> Any:
        hook = self.policy_model.lm_head.register_forward_hook(lambda module, args, out: out.bfloat16().float())
        try:
            return super()._sample_from(model, rows, *stream)
        finally:
            hook.remove()

    @torch.no_grad()
    def _build_rollout(self, rows: list, prompt_ids: list[list[int]], replies: SampledReplies) -> Any:
        told = SampledReplies(replies, [[0.0] * len(ids) for ids, _ in replies])
        rollout = super()._build_rollout(rows, prompt_ids, told)
        positions = (rollout.attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        model = self.policy_model.eval()
        out = model(rollout.input_ids, attention_mask=rollout.attention_mask.long(), position_ids=positions)
        width = rollout.completion_mask.shape[1]
        # The hook is still on: these are the sampler's logits.
        logprobs = out.logits[:, -width - 1 : -1].log_softmax(-1)
        chosen = logprobs.gather(-1, rollout.input_ids[:, -width:, None])[..., 0]
        rollout.sampler_logprobs = chosen * rollout.completion_mask
        return rollout


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of as many words as the policy has tokens."""
    ids = {"<eos>": 0, "<pad>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    backend = Tokenizer(WordLevel(ids, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def share(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """The share of word 7."""
    return [ids.count(7) / max(len(ids), 1) for ids in completion_ids]


def run(rounded: bool, steps: int, batch: int = 32) -> dict[str, float]:
    """One run, and what its last tenth shows."""
    torch.manual_seed(0)
    policy = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_layer=1, n_head=2, n_embd=32, n_positions=16, eos_token_id=0)
    )
    # Logits large enough for rounding to matter.
    policy.lm_head.weight.data.mul_(SCALE)
    rows = [[2 + i % 60, 3] for i in range(4 * batch)]
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            folder, report_to=[], disable_tqdm=True, save_strategy="no", seed=0, per_device_train_batch_size=batch,
            gradient_accumulation_steps=1, max_steps=steps, num_ppo_epochs=1, response_length=6, stop_token="eos",
            temperature=1.0, learning_rate=3e-3, lr_scheduler_type="linear", logging_steps=1, kl_coef=0.05,
            num_sample_generations=0, gradient_checkpointing=False, bf16=False, use_cpu=True, log_level="error",
        )  # fmt: skip
        kind = RoundedSampler if rounded else PPOTrainer
        data = Dataset.from_dict({"input_ids": rows})
        trainer = kind(args, words(), policy, reward_model=share, train_dataset=data)
        trainer.remove_callback(trainer.callback_handler.callbacks[-1])
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "objective/kl" in entry]
    last = history[-max(steps // 10, 1) :]
    result = {name: statistics.mean(entry[f"objective/{name}"] for entry in last) for name in ("kl", "scores")}
    if rounded:
        result["ratio_mean"] = statistics.mean(entry["sampling/ratio_mean"] for entry in history)
        result["ratio_max"] = max(entry["sampling/ratio_max"] for entry in history)
    return result


def main(argv: list[str] | None = None) -> None:
    """Parse, run both, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", help="JSON file")
    settings = parser.parse_args(argv)
    torch.set_num_threads(1)
    exact, rounded = run(False, settings.steps), run(True, settings.steps)
    summary = {"kl_ratio": rounded["kl"] / exact["kl"], "ratio_mean": rounded["ratio_mean"]}
    record = {"steps": settings.steps, "machine": machine(), "exact": exact, "rounded": rounded, "summary": summary}
    print(json.dumps(record, indent=2))
    if settings.out:
        Path(settings.out).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
