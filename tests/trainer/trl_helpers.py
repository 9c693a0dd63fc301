# SPDX-License-Identifier: Apache-2.0
"""What the tests of the trainers on TRL share: a tiny policy in a folder, and a trainer on small defaults."""

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.trainer.ppo_helpers import PROMPTS, gpt2, sevens
from trl_maxmin import (
    MaxMinGRPOConfig,
    MaxMinGRPOTrainer,
    MaxMinRLOOConfig,
    MaxMinRLOOTrainer,
    MixtureRewardModel,
)
from trl_maxmin.models.families import get_linear


CONFIG_OF = {MaxMinGRPOTrainer: MaxMinGRPOConfig, MaxMinRLOOTrainer: MaxMinRLOOConfig}
SMALL = {
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 6,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1,
}


def nines(completion_ids, **kwargs):
    return [sum(token == 9 for token in ids) / max(len(ids), 1) for ids in completion_ids]


def save_base(folder, tokenizer, **kwargs):
    """TRL loads the reference by the name of the policy, so the policy needs a folder."""
    gpt2(**kwargs).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_trl_trainer(trainer_class, base, tokenizer, output_dir, config_class=None, **kwargs):
    """Keywords that the configuration knows go there, the others to the trainer."""
    for known, config in CONFIG_OF.items():
        if issubclass(trainer_class, known):
            config_class = config_class or config
    settings = SMALL | {"output_dir": str(output_dir)}
    fields = config_class.__dataclass_fields__
    settings |= {name: value for name, value in kwargs.items() if name in fields}
    objects = {
        "processing_class": tokenizer,
        "reward_funcs": [sevens, nines],
        "train_dataset": Dataset.from_dict({"prompt": PROMPTS * 4}),
    }
    objects |= {name: value for name, value in kwargs.items() if name not in fields}
    if "model" not in objects:
        objects["model"] = AutoModelForCausalLM.from_pretrained(base)
    return trainer_class(args=config_class(**settings), **objects)


def mixture_of(tokenizer, components=2):
    """Two heads on a tiny trunk, far apart."""
    torch.manual_seed(0)
    mixture = MixtureRewardModel.from_base(gpt2(vocab_size=len(tokenizer)), components, processing_class=tokenizer)
    with torch.no_grad():
        get_linear(mixture.components[0]).weight.mul_(50)
    return mixture


def policy_weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]
