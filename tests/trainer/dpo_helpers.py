# SPDX-License-Identifier: Apache-2.0
"""What the tests of group-robust DPO share: planted preferences of two groups, and a trainer on small defaults."""

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from trl_maxmin import MaxMinDPOConfig, MaxMinDPOTrainer


SMALL = {
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1,
}
PROMPTS = ["the film", "a movie story is", "plot", "review of the film"]
REPLIES = ["good", "bad", "very good acting", "bad ending story"]
#: Each likes replies that the other does not, and length is an issue between them.
LIKES = {"many": "good", "few": "bad"}


def preferences(count=24, few=0.25, seed=0, noise=0.0):
    """Pairs of two groups, `few` of them of the second, four annotators each; with `noise` some are turned round."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(count):
        group = "few" if row % round(1 / few) == 0 else "many"
        liked = [reply for reply in REPLIES if LIKES[group] in reply]
        chosen, rejected = rng.choice(liked), rng.choice([reply for reply in REPLIES if reply not in liked])
        if rng.random() < noise:
            chosen, rejected = rejected, chosen
        rows.append(
            {
                "prompt": str(rng.choice(PROMPTS)),
                "chosen": " " + str(chosen),
                "rejected": " " + str(rejected),
                "annotator_id": f"{group}-person-{row % 4}",
                "group": group,
            }
        )
    return Dataset.from_list(rows)


def build_dpo(base, tokenizer, output_dir, cls=MaxMinDPOTrainer, **kwargs):
    """Keywords that the configuration knows go there, the others to the trainer."""
    config_class = MaxMinDPOConfig if issubclass(cls, MaxMinDPOTrainer) else DPOConfig
    fields = config_class.__dataclass_fields__
    settings = SMALL | {"output_dir": str(output_dir)}
    settings |= {name: value for name, value in kwargs.items() if name in fields}
    objects = {"processing_class": tokenizer, "train_dataset": preferences()}
    objects |= {name: value for name, value in kwargs.items() if name not in fields}
    if issubclass(cls, MaxMinDPOTrainer) and "assignments" not in objects and "group_column" not in settings:
        settings["group_column"] = "group"
    if not issubclass(cls, MaxMinDPOTrainer):
        assert issubclass(cls, DPOTrainer)
    if "model" not in objects:
        objects["model"] = AutoModelForCausalLM.from_pretrained(base)
    return cls(args=config_class(**settings), **objects)


def gradients(trainer, batch):
    """Loss of a batch and its gradient, in the mode of training."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def first_batch(trainer, size=None):
    """The first rows as the trainer's collator batches them; what only MaxMin knows is left out."""
    dataset = trainer.train_dataset
    rows = [dataset[i] for i in range(size or len(dataset))]
    return {name: value for name, value in trainer.data_collator(rows).items() if torch.is_tensor(value)}
