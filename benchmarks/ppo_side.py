# SPDX-License-Identifier: Apache-2.0
"""One run of `ppo_vs_trl.py`, in a process of its own: `python benchmarks/ppo_side.py SIDE FOLDER SETTINGS OUT`.

SIDE is `trl` (the environment has TRL 1.12 in front), `ours`, or `k1` and `k8`: MaxMin-PPO on a mixture of so many
heads.
"""

import json
import re
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    TrainerCallback,
)


def resident(what: str) -> float:
    """`VmRSS` (now) or `VmHWM` (peak since the last reset) of this process, MiB. Linux only."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


class Meter(TrainerCallback):
    """Time, peak memory of rollout and update, optimizer steps. An update begins with the first backward pass after
    a rollout, for either trainer."""

    def __init__(self):
        self.phase, self.peaks, self.times, self.steps = "rollout", {"rollout": [], "update": []}, [], 0

    def watch(self, trainer):
        """Hook in; memory above this point is above the weights."""
        backward = trainer.accelerator.backward

        def watched(*args, **kwargs):
            self.enter("update")
            return backward(*args, **kwargs)

        trainer.accelerator.backward = watched
        self.base = resident("VmRSS")
        self.reset()
        self.times.append(time.perf_counter())

    @staticmethod
    def reset():
        Path("/proc/self/clear_refs").write_text("5")

    def enter(self, phase):
        """The peak of the phase that ends."""
        if phase != self.phase:
            self.peaks[self.phase].append(resident("VmHWM") - self.base)
            self.phase = phase
            self.reset()

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        getattr(optimizer, "optimizer", optimizer).register_step_post_hook(self.count)

    def count(self, *_):
        self.steps += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.enter("rollout")
        self.times.append(time.perf_counter())


def build(side, folder, s):
    """The trainer of a side on the same policy, prompts and reward."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    settings = {
        "output_dir": str(folder / "run"), "report_to": [], "disable_tqdm": True, "save_strategy": "no",
        "seed": s["seed"],
        "per_device_train_batch_size": s["micro_batch"], "gradient_accumulation_steps": s["batch"] // s["micro_batch"],
        "total_episodes": s["batch"] * s["updates"], "num_ppo_epochs": s["epochs"], "response_length": s["limit"],
        "stop_token": "eos", "temperature": 1.0, "learning_rate": s["lr"], "lr_scheduler_type": "constant",
        "logging_steps": 1, "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "kl_coef": 0.01,
        "num_sample_generations": 0, "local_rollout_forward_batch_size": s["batch"],
    }  # fmt: skip
    generator = torch.Generator().manual_seed(s["seed"])
    # More prompts than are used: in 1.12 the last batch of a pass makes other steps.
    lengths = torch.randint(8, 17, (s["batch"] * (s["updates"] + 2),), generator=generator).tolist()
    rows = [torch.randint(2, 2 + s["words"], (n,), generator=generator).tolist() for n in lengths]
    objects = {"processing_class": tokenizer, "model": policy, "train_dataset": Dataset.from_dict({"input_ids": rows})}
    if side in ("k1", "k8"):
        from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer, MixtureRewardModel

        torch.manual_seed(0)
        width = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": s["vocabulary"], "pad_token_id": 1}
        base = GPT2ForSequenceClassification(GPT2Config(**width, num_labels=1))
        mixture = MixtureRewardModel.from_base(base, int(side[1:]), processing_class=tokenizer)
        args = MaxMinPPOConfig(**settings, utility="raw")
        return MaxMinPPOTrainer(args, ref_model=None, reward_model=mixture, **objects)
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1)
    if side == "ours":
        from trl_maxmin import PPOConfig, PPOTrainer

        return PPOTrainer(PPOConfig(**settings), ref_model=None, reward_model=reward, **objects)
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.manual_seed(0)
    # 1.12 needs a critic with a trunk of its own: one like the policy's.
    critic = GPT2ForSequenceClassification(GPT2Config(**policy.config.to_dict() | {"num_labels": 1}))
    args = PPOConfig(**settings)
    return PPOTrainer(args, ref_model=None, reward_model=reward, value_model=critic, **objects)


def main() -> None:
    """Run a side, write what was measured."""
    side, folder, settings, out = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(settings["threads"])
    trainer, meter = build(side, folder, settings), Meter()
    trainer.add_callback(meter)
    meter.watch(trainer)
    trainer.train()
    history = trainer.state.log_history
    # The first update warms caches and allocates the optimizer's state.
    seconds = meter.times[-1] - meter.times[1]
    result = {
        "side": side,
        "seed": settings["seed"],
        "episodes_per_second": settings["batch"] * (len(meter.times) - 2) / seconds,
        "peak_rollout_mib": max(meter.peaks["rollout"]),
        "peak_update_mib": max(meter.peaks["update"]),
        "optimizer_steps": meter.steps,
        "scores": [entry["objective/scores"] for entry in history if "objective/scores" in entry],
        "lengths": [entry["completions/mean_length"] for entry in history if "completions/mean_length" in entry],
        "module": type(trainer).__module__,
    }
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
