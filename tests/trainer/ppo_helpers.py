# SPDX-License-Identifier: Apache-2.0
"""What the tests of the PPO trainer share: tiny models, prompts, rewards, and a trainer on small defaults."""

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from tests.conftest import build_word_tokenizer
from trl_maxmin.trainer.ppo.metrics import LOSS_STATISTICS
from trl_maxmin.trainer.ppo.ppo_config import PPOConfig
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer
from trl_maxmin.trainer.ppo.rollout import Rollout


SIZE = 36
PROMPTS = ["the film", "a movie story is", "plot", "acting very good but", "review of the film", "bad ending"]


def gpt2(seed=0, **kwargs):
    torch.manual_seed(seed)
    settings = {"vocab_size": SIZE, "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32} | kwargs
    return GPT2LMHeadModel(GPT2Config(bos_token_id=1, eos_token_id=2, **settings))


def prompts(count=24):
    return Dataset.from_dict(
        {"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(count)], "group": [f"g{i}" for i in range(count)]}
    )


def sevens(completion_ids, **kwargs):
    return [sum(token == 7 for token in ids) / max(len(ids), 1) for ids in completion_ids]


def brevity(completion_ids, **kwargs):
    return [-len(ids) / 8 for ids in completion_ids]


def build_ppo_trainer(output_dir, tokenizer, trainer_class=PPOTrainer, config_class=PPOConfig, **kwargs):
    """A trainer on the defaults below; keywords that the configuration knows go there, the others to the trainer."""
    settings = {
        "output_dir": str(output_dir),
        "report_to": [],
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "response_length": 6,
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "num_ppo_epochs": 2,
    }
    fields = config_class.__dataclass_fields__
    settings |= {name: value for name, value in kwargs.items() if name in fields}
    objects = {"processing_class": tokenizer, "reward_model": sevens, "train_dataset": prompts()}
    objects |= {name: value for name, value in kwargs.items() if name not in fields}
    if "model" not in objects:
        objects["model"] = gpt2()
    return trainer_class(args=config_class(**settings), **objects)


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer._root.state_dict().items()}


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


def differ(first, second):
    return any(not torch.equal(first[name], second[name]) for name in first)


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class GivenReplies(PPOTrainer):
    """Replies come from a list instead of the policy."""

    replies = [([7, 8, 2], True), ([9, 7, 7, 10, 11, 12], False), ([2], True), ([13, 14], False)]

    def _sample(self, rows, *stream):
        ids = [self._read_prompt(row) for row in rows]
        replies = [self.replies[i % len(self.replies)] for i in range(len(rows))]
        return Rollout.build(rows, ids, replies, self._tokenizer, self.pad_token_id, self.accelerator.device)


class Recorded(PPOTrainer):
    """Keeps the means of [`LOSS_STATISTICS`] of every minibatch."""

    def _backward_minibatch(self, rollout, rows, num_tokens):
        sums = super()._backward_minibatch(rollout, rows, num_tokens)
        means = dict(zip(LOSS_STATISTICS, (sums / num_tokens).tolist(), strict=True))
        self.__dict__.setdefault("minibatches", []).append((self.state.global_step, means))
        return sums


def lora():
    return LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], r=2, fan_in_fan_out=True, lora_dropout=0.1)


def critic_model(labels):
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=SIZE, n_layer=1, n_head=2, n_embd=8, n_positions=32, num_labels=labels, pad_token_id=0
    )
    return reading_words(GPT2ForSequenceClassification(config))


def reading_words(model):
    """A reward model in memory that has its tokenizer with it."""
    model.processing_class = build_word_tokenizer()
    return model


@torch.no_grad()
def unpadded_log_all(model, prompt, reply):
    """Log-probabilities `(T, V)` of the states before each token of a reply, from a plain call without padding."""
    logits = model.eval()(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : len(prompt) + len(reply) - 1]
    return logits.float().log_softmax(-1)
