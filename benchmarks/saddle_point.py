# SPDX-License-Identifier: Apache-2.0
r"""
Three groups, one prompt, one-token replies: a game small enough to solve exactly, played by the real trainers.

Each group likes a word of its own (utilities 1, 0.8 and 0.5) and there is a compromise word (0.1 to each). No word
serves all: the max-min policy mixes the three so that every group gets 4 / 17. The linear program gives that value;
the trainers see rewards of sampled words only. What is reported, in shares of the max-min value:

- averaged: the smallest group utility of the mean policy over the second half of the run (exact, from the logits);
- last: that of the last policy; gap: the largest minus the smallest group utility of the same policies.

python benchmarks/saddle_point.py --trainer rloo --output docs/results/saddle_point_rloo.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from scipy.optimize import linprog
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from trl_maxmin import (
    MaxMinGRPOConfig,
    MaxMinGRPOTrainer,
    MaxMinPPOConfig,
    MaxMinPPOTrainer,
    MaxMinRLOOConfig,
    MaxMinRLOOTrainer,
)


WORDS = ["<pad>", "<eos>", "<unk>", "say", "first", "second", "third", "compromise", "other"]
UTILITIES = {
    "first": (1.0, 0.0, 0.0),
    "second": (0.0, 0.8, 0.0),
    "third": (0.0, 0.0, 0.5),
    "compromise": (0.1, 0.1, 0.1),
}
GAME = np.array([UTILITIES.get(word, (0.0, 0.0, 0.0)) for word in WORDS])
GROUPS = ("a", "b", "c")
REPLIES = 128
RULES = {
    "mirror": {"welfare": "mirror", "welfare_step_size": 1.0, "welfare_step_schedule": "inverse_sqrt"},
    "maxmin": {"welfare": "maxmin", "oscillation": "ignore"},
    "softmin": {"welfare": "softmin", "welfare_temperature": 0.1},
}


def max_min_value(game: np.ndarray) -> float:
    """The largest smallest expected utility over all policies: `max v` so that `policy @ game >= v`."""
    actions, groups = game.shape
    result = linprog(
        c=[0.0] * actions + [-1.0],
        A_ub=np.hstack([-game.T, np.ones((groups, 1))]),
        b_ub=np.zeros(groups),
        A_eq=[[1.0] * actions + [0.0]],
        b_eq=[1.0],
        bounds=[(0, None)] * actions + [(None, None)],
    )
    return float(result.x[-1])


class Distributions(TrainerCallback):
    """The policy's exact distribution over words before every step."""

    def __init__(self, prompt_ids: list[int]) -> None:
        self.prompt_ids = torch.tensor([prompt_ids])
        self.policies: list[np.ndarray] = []

    @torch.no_grad()
    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        policy = getattr(model, "policy", model)
        self.policies.append(policy(self.prompt_ids).logits[0, -1].float().softmax(-1).numpy().astype(float))

    on_train_end = on_step_begin


def reward(group: int):
    def function(completion_ids, **kwargs):
        return [float(GAME[ids[0], group]) for ids in completion_ids]

    function.__name__ = GROUPS[group]
    return function


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<eos>", unk_token="<unk>"
    )


def play(trainer: str, folder: Path, steps: int, beta: float, seed: int, learning_rate: float, **rule) -> np.ndarray:
    """Distributions over words of the policies before each step and after the last, `(steps + 1, words)`."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(WORDS), n_layer=1, n_head=1, n_embd=16, n_positions=8, bos_token_id=1, eos_token_id=1,
        tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "policy")
    words = tokenizer()
    common = {
        "output_dir": str(folder / "run"), "max_steps": steps, "per_device_train_batch_size": REPLIES, "seed": seed,
        "learning_rate": learning_rate, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0,
        "temperature": 1.0, "utility": "raw",
        "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "disable_tqdm": True, "logging_steps": steps, **rule,
    }  # fmt: skip
    rewards = [reward(k) for k in range(len(GROUPS))]
    objects = {
        "model": GPT2LMHeadModel.from_pretrained(folder / "policy"),
        "processing_class": words,
        "train_dataset": Dataset.from_dict({"prompt": ["say"] * REPLIES}),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if trainer == "ppo":
            args = MaxMinPPOConfig(
                **common, kl_coef=beta, response_length=1, gradient_accumulation_steps=1, num_ppo_epochs=1,
                num_sample_generations=0, vf_coef=0.5,
            )  # fmt: skip
            run = MaxMinPPOTrainer(args=args, ref_model=None, reward_model=rewards, **objects)
        else:
            kind, config_class = (
                (MaxMinGRPOTrainer, MaxMinGRPOConfig) if trainer == "grpo" else (MaxMinRLOOTrainer, MaxMinRLOOConfig)
            )
            args = config_class(**common, beta=beta, num_generations=REPLIES, max_completion_length=1)
            run = kind(args=args, reward_funcs=rewards, **objects)
        recorder = Distributions(words("say")["input_ids"])
        run.remove_callback(PrinterCallback)
        run.add_callback(recorder)
        run.train()
    return np.stack(recorder.policies)


def summary(policies: np.ndarray, value: float) -> dict[str, float]:
    utilities = policies @ GAME
    averaged, last = utilities[len(utilities) // 2 :].mean(0), utilities[-1]
    return {
        "averaged": round(float(averaged.min()) / value, 4),
        "averaged_gap": round(float(averaged.max() - averaged.min()) / value, 4),
        "last": round(float(last.min()) / value, 4),
        "last_gap": round(float(last.max() - last.min()) / value, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", choices=("ppo", "grpo", "rloo"), default="rloo")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rate", type=float, default=0.3)
    parser.add_argument("--rules", nargs="+", choices=tuple(RULES), default=list(RULES))
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 0.02], help="Coefficients of the KL term.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    value = max_min_value(GAME)
    report = {"trainer": options.trainer, "max_min_value": round(value, 6), "steps": options.steps, "results": []}
    for name in options.rules:
        for beta in options.betas:
            for seed in options.seeds:
                start = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    policies = play(
                        options.trainer, Path(folder), options.steps, beta, seed, options.learning_rate, **RULES[name]
                    )
                row = {"rule": name, "beta": beta, "seed": seed, **summary(policies, value)}
                report["results"].append(row)
                print(json.dumps(row), f"{time.perf_counter() - start:.0f} s", flush=True)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
