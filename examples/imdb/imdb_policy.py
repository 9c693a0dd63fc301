# SPDX-License-Identifier: Apache-2.0
"""The reference policy: its tokenizer, its training on openings of reviews, and sampling from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

from trl_maxmin.data.tokenization import encode_prompt
from trl_maxmin.trainer.common.sampling import sample_completions, sampling_config


PAD, EOS = "<|pad|>", "<|endoftext|>"


@dataclass(frozen=True)
class Replies:
    """N replies: text without special tokens, length in tokens without EOS, and whether each ended by itself."""

    texts: list[str]
    lengths: list[int]
    finished: list[bool]

    def select(self, rows: Sequence[int]) -> Replies:
        """Some of the replies."""
        return Replies(*([values[row] for row in rows] for values in (self.texts, self.lengths, self.finished)))


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer from scratch."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, bos_token=EOS, eos_token=EOS)


def start_with_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the tokenizer put BOS in front of every text, so that policy and reward model both read it there.

    The policy was trained on texts that begin with BOS; without it the first words are out of distribution.
    """
    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    if tokenizer("a")["input_ids"][:1] != [bos_id]:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
        )


def new_policy(tokenizer: PreTrainedTokenizerBase, width: int, layers: int, heads: int, seed: int) -> GPT2LMHeadModel:
    """A small GPT-2 with random weights."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def load_policy(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A causal language model and its tokenizer, as `save_pretrained` wrote them.

    Raises:
        ValueError: a tokenizer that reads EOS as padding, or has no BOS.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.bos_token_id is None or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise ValueError(f"The tokenizer in {folder} needs a BOS token and a pad token of its own.")
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", trust_remote_code=False), tokenizer


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    openings: list[list[int]],
    steps: int,
    batch_size: int,
    learning_rate: float,
    settings: dict[str, Any],
) -> SFTTrainer:
    """A trainer on openings, each between BOS and EOS."""
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in openings]
    args = SFTConfig(
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(steps // 20, 1),
        max_length=None,
        gradient_checkpointing=False,
        train_sampling_strategy="group_by_length",
        **settings,
    )
    return SFTTrainer(model, args, train_dataset=Dataset.from_dict({"input_ids": rows}), processing_class=tokenizer)


def sample(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    seed: int,
    batch_size: int = 256,
) -> Replies:
    """One reply to each prompt at temperature 1."""
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        completions = sample_completions(
            policy,
            [encode_prompt(tokenizer, prompt) for prompt in prompts],
            sampling_config(1.0, max_new_tokens),
            tokenizer.pad_token_id,
            [tokenizer.eos_token_id],
            batch_size,
        )
    texts = tokenizer.batch_decode([ids for ids, _ in completions], skip_special_tokens=True)
    finished = [ended for _, ended in completions]
    return Replies(texts, [len(ids) - ended for ids, ended in completions], finished)


def save_policy(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A folder for `AutoModelForCausalLM` and `AutoTokenizer` that samples as the policy was trained to."""
    policy = copy.copy(policy)
    policy.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
