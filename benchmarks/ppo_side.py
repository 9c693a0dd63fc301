# SPDX-License-Identifier: Apache-2.0
"""One run of `ppo_vs_trl.py`, in a process of its own: `python benchmarks/ppo_side.py SIDE FOLDER SETTINGS OUT`.

SIDE is `trl` (the environment has TRL 1.12 in front), `ours`, or `k1`, `k4` and `k8`: MaxMin-PPO on a mixture of so
many heads.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peak_memory import PeakMemory
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    TrainerCallback,
)


OPENINGS = [
    "This movie was",
    "I watched this film last night and",
    "The acting in this",
    "What a story:",
    "If you like old comedies,",
    "My wife and I",
    "After the first ten minutes",
    "The book is better than the film, but",
]


class Meter(TrainerCallback):
    """Time, tokens, peak memory of rollout and update, optimizer steps. An update begins with the first forward of the
    policy and its critic under gradient, for either trainer; tokens are those of prompts and replies that the reward
    model reads."""

    def __init__(self, device):
        self.memory = PeakMemory(device)
        self.phase, self.peaks, self.times, self.steps = "rollout", {"rollout": [], "update": []}, [], 0
        self.tokens, self.tokens_before, self.cpu = 0, [], []

    def watch(self, trainer, reward):
        """Hook in; memory above this point is above the weights."""
        trainer.model.register_forward_pre_hook(self.train)
        reward.base_model.register_forward_pre_hook(self.read, with_kwargs=True)
        self.base = self.memory.now()
        self.memory.reset()
        self.lap()

    def lap(self):
        """Time and tokens up to here, once a GPU has done what it was given."""
        if self.memory.on_gpu:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.tokens_before.append(int(self.tokens))
        self.cpu.append(time.process_time())

    def train(self, *_):
        if torch.is_grad_enabled():
            self.enter("update")

    def read(self, module, args, kwargs):
        self.tokens += kwargs["attention_mask"].sum()

    def enter(self, phase):
        """The peak of the phase that ends."""
        if phase != self.phase:
            self.peaks[self.phase].append(self.memory.peak() - self.base)
            self.phase = phase
            self.memory.reset()

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        getattr(optimizer, "optimizer", optimizer).register_step_post_hook(self.count)

    def count(self, *_):
        self.steps += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.enter("rollout")
        self.lap()


def trainer_settings(folder, s):
    """What both trainers are told."""
    return {
        "output_dir": str(folder / "run"), "report_to": [], "disable_tqdm": True, "save_strategy": "no",
        "seed": s["seed"],
        "per_device_train_batch_size": s["micro_batch"], "gradient_accumulation_steps": s["batch"] // s["micro_batch"],
        "total_episodes": s["batch"] * s["updates"], "num_ppo_epochs": s["epochs"], "response_length": s["limit"],
        "temperature": 1.0, "learning_rate": s["lr"], "lr_scheduler_type": "constant",
        "logging_steps": 1, "gradient_checkpointing": s["checkpointing"], "bf16": s["bf16"],
        "use_cpu": s["device"] == "cpu", "kl_coef": 0.01, "num_sample_generations": 0,
        "local_rollout_forward_batch_size": s["batch"],
    }  # fmt: skip


def build_pretrained(side, folder, s):
    """A pretrained policy that continues openings of reviews. The reward is two layers of its architecture with random
    weights; TRL's critic a trunk of its own with the policy's weights. With LoRA the critic has an adapter as well."""
    tokenizer = AutoTokenizer.from_pretrained(s["model"], padding_side="left", trust_remote_code=False)
    load = partial(AutoModelForCausalLM.from_pretrained, s["model"], dtype=torch.float32, trust_remote_code=False)
    policy = load()
    config = AutoConfig.from_pretrained(s["model"], num_labels=1, trust_remote_code=False)
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    torch.manual_seed(1)
    reward = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    settings = trainer_settings(folder, s)
    if s["stop"]:
        settings["stop_token_id"] = tokenizer(s["stop"], add_special_tokens=False)["input_ids"][-1]
    else:
        settings["stop_token"] = "eos"
    openings = [tokenizer(text)["input_ids"] for text in OPENINGS]
    rows = [openings[(i + s["seed"]) % len(openings)] for i in range(s["batch"] * (s["updates"] + 2))]
    objects = {"processing_class": tokenizer, "model": policy, "train_dataset": Dataset.from_dict({"input_ids": rows})}
    lora = LoraConfig(r=16, target_modules="all-linear", exclude_modules=["score"]) if s["lora"] else None
    if side == "ours":
        from trl_maxmin import PPOConfig, PPOTrainer

        return PPOTrainer(
            PPOConfig(**settings), ref_model=None, reward_model=(reward, tokenizer), peft_config=lora, **objects
        ), reward
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    critic = AutoModelForSequenceClassification.from_pretrained(
        s["model"], num_labels=1, dtype=torch.float32, trust_remote_code=False
    )
    if lora is not None:
        # Layers without a wrapper: 1.12 looks for the trunk by its name.
        critic = inject_adapter_in_model(lora, critic)
        for name, parameter in critic.named_parameters():
            parameter.requires_grad_("lora_" in name or name.startswith("score"))
    args = PPOConfig(**settings)
    reference = None if s["lora"] else load()
    return PPOTrainer(
        args, ref_model=reference, reward_model=reward, value_model=critic, peft_config=lora, **objects
    ), reward


def build(side, folder, s):
    """The trainer of a side on the same policy, prompts and reward; and the model that reads the replies."""
    if s["model"]:
        return build_pretrained(side, folder, s)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left", trust_remote_code=False)
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32, trust_remote_code=False)
    settings = trainer_settings(folder, s) | {"stop_token": "eos"}
    generator = torch.Generator().manual_seed(s["seed"])
    # More prompts than are used: in 1.12 the last batch of a pass makes other steps.
    lengths = torch.randint(8, 17, (s["batch"] * (s["updates"] + 2),), generator=generator).tolist()
    rows = [torch.randint(2, 2 + s["words"], (n,), generator=generator).tolist() for n in lengths]
    objects = {"processing_class": tokenizer, "model": policy, "train_dataset": Dataset.from_dict({"input_ids": rows})}
    if side in ("k1", "k4", "k8"):
        from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer, MixtureRewardModel

        torch.manual_seed(0)
        width = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": s["vocabulary"], "pad_token_id": 1}
        base = GPT2ForSequenceClassification(GPT2Config(**width, num_labels=1))
        mixture = MixtureRewardModel.from_base(base, int(side[1:]), processing_class=tokenizer)
        args = MaxMinPPOConfig(**settings, utility="raw")
        trainer = MaxMinPPOTrainer(args, ref_model=None, reward_model=mixture, **objects)
        return trainer, mixture.components[0]
    reward = AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", num_labels=1, trust_remote_code=False
    )
    if side == "ours":
        from trl_maxmin import PPOConfig, PPOTrainer

        # A folder without a tokenizer: only the pair says that the reward reads the policy's ids.
        pair = (reward, tokenizer)
        return PPOTrainer(PPOConfig(**settings), ref_model=None, reward_model=pair, **objects), reward
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.manual_seed(0)
    # 1.12 needs a critic with a trunk of its own: one like the policy's.
    critic = GPT2ForSequenceClassification(GPT2Config(**policy.config.to_dict() | {"num_labels": 1}))
    args = PPOConfig(**settings)
    return PPOTrainer(args, ref_model=None, reward_model=reward, value_model=critic, **objects), reward


def main() -> None:
    """Run a side, write what was measured."""
    side, folder, settings, out = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(settings["threads"])
    (trainer, reward), meter = build(side, folder, settings), Meter(settings["device"])
    trainer.add_callback(meter)
    meter.watch(trainer, reward)
    trainer.train()
    history = trainer.state.log_history
    # The first update warms caches and allocates the optimizer's state; where it is the only one, it counts.
    first = min(1, settings["updates"] - 1)
    seconds, updates = meter.times[-1] - meter.times[first], len(meter.times) - 1 - first
    cpu_seconds = meter.cpu[-1] - meter.cpu[first]
    result = {
        "side": side,
        "seed": settings["seed"],
        "episodes_per_second": settings["batch"] * updates / seconds,
        "episodes_per_cpu_second": settings["batch"] * updates / cpu_seconds,
        "tokens_per_second": (meter.tokens_before[-1] - meter.tokens_before[first]) / seconds,
        "held_before_mib": meter.base,
        "peak_rollout_mib": max(meter.peaks["rollout"]),
        "peak_update_mib": max(meter.peaks["update"]),
        "peak_mib": meter.base + max(peak for peaks in meter.peaks.values() for peak in peaks),
        "optimizer_steps": meter.steps,
        "scores": [entry["objective/scores"] for entry in history if "objective/scores" in entry],
        "lengths": [entry["completions/mean_length"] for entry in history if "completions/mean_length" in entry],
        "module": type(trainer).__module__,
    }
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
