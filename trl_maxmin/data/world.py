# SPDX-License-Identifier: Apache-2.0
"""The embedded world: short film reviews whose gold utilities are known, so that every claim can be checked.

A grammar writes reviews; a tiny GPT-2 pretrained on them is the reference policy; annotators with a planted group
compare replies with Bradley-Terry noise on their group's gold utility. Nothing is downloaded and everything follows
from a seed.

The world is built so that one reward for everybody must fail somebody. Who likes a film writes longer, so on the
reference's own replies conciseness and praise are in conflict; most reviews are net positive, so the shortest reply
loses on praise; yet a reply of a few words that are all praise beats the reference on both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trl_maxmin.data.film_reviews import (
    GENRES,
    GOLD_UTILITIES,
    MAX_COMPLETION_LENGTH,
    NOUNS,
    VOCABULARY,
    Uniforms,
    split_words,
    write_review,
)


__all__ = ["GOLD_UTILITIES", "MAX_COMPLETION_LENGTH", "FilmReviewWorld"]

Seed = int | np.random.Generator


class FilmReviewWorld:
    """Prompts, writers, gold utilities, annotators and a reference policy, all from one seed.

    Prompts read `horror film with robots and pirates :`, replies `superb film and the robots feel great`.

    Args:
        seed (`int`, *optional*, defaults to `0`): decides which prompts are held out, and, with the seed each method
            takes, everything that is drawn.
        groups (`Sequence[str]`, *optional*, defaults to `("concise", "positive")`): the groups annotators can belong
            to, the majority first; keys of [`GOLD_UTILITIES`].

    Raises:
        ValueError: fewer than one group, a repeated group, or one without a gold utility.

    Example:

    >>> world = FilmReviewWorld(seed=0)
    >>> world.gold_utility("positive", ["superb film but dull plot", "very great cast"]).tolist()
    [0.0, 0.25]
    >>> world.gold_utility("concise", ["superb film", ""]).tolist()
    [0.9166666666666666, 1.0]
    """

    max_completion_length: int = MAX_COMPLETION_LENGTH

    def __init__(self, seed: int = 0, groups: Sequence[str] = ("concise", "positive")):
        self.seed = seed
        self.groups = tuple(groups)
        if not self.groups or len(set(self.groups)) != len(self.groups):
            raise ValueError(f"groups must name at least one group, each once; got {list(groups)}")
        for group in self.groups:
            self._check_group(group)
        self.tokenizer = _build_tokenizer()
        self._prompts = self._split_prompts()

    @property
    def majority(self) -> str:
        """The first group."""
        return self.groups[0]

    @property
    def minority(self) -> str:
        """The last group."""
        return self.groups[-1]

    def _rng(self, purpose: str, seed: Seed) -> np.random.Generator:
        # The purpose is part of the seed: prompts and reviews drawn with the same number must not be correlated.
        if isinstance(seed, np.random.Generator):
            return seed
        return np.random.default_rng([self.seed, seed, *purpose.encode()])

    @staticmethod
    def _check_group(group: str) -> None:
        if group not in GOLD_UTILITIES:
            raise ValueError(f"unknown group {group!r}; groups with a gold utility: {sorted(GOLD_UTILITIES)}")

    # --- prompts and reviews ---

    def _split_prompts(self) -> dict[str, tuple[str, ...]]:
        topics = [(genre, a, b) for genre in GENRES for i, a in enumerate(NOUNS) for b in NOUNS[i + 1 :]]
        # Not the split on which the grammar was chosen: no evaluation prompt has informed it.
        order = self._rng("held-out topics", 0).permutation(len(topics))
        # Split by topic, not by text: `robots and pirates` and `pirates and robots` belong to the same part.
        parts = {"eval": order[: len(topics) // 4], "train": order[len(topics) // 4 :]}
        return {
            split: tuple(
                f"{genre} film with {first} and {second} :"
                for genre, a, b in (topics[i] for i in sorted(part))
                for first, second in ((a, b), (b, a))
            )
            for split, part in parts.items()
        }

    def prompts(self, split: str = "train") -> tuple[str, ...]:
        """All prompts of a split: 540 for `"train"`, 180 for `"eval"`, none in both.

        Raises:
            ValueError: an unknown split.
        """
        if split not in self._prompts:
            raise ValueError(f"unknown split {split!r}; splits: {sorted(self._prompts)}")
        return self._prompts[split]

    def sample_prompts(self, n: int, seed: Seed = 0, split: str = "train") -> list[str]:
        """`n` prompts, without repetition until the split is used up, then again from the whole split.

        Raises:
            ValueError: an unknown split or a negative `n`.

        Example:

        >>> len(set(FilmReviewWorld().sample_prompts(100, split="eval")))
        100
        """
        pool = self.prompts(split)
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        rng = self._rng(f"prompts-{split}", seed)
        rounds = [rng.permutation(len(pool)) for _ in range(math.ceil(n / len(pool)))]
        return [pool[index] for permutation in rounds for index in permutation][:n]

    def sample_reviews(self, prompts: Sequence[str], seed: Seed = 0) -> list[str]:
        """One review for each of this world's prompts, as the writers write them: 2 to 22 words, 14 on average."""
        draw = Uniforms(self._rng("reviews", seed))
        return [write_review(draw, prompt) for prompt in prompts]

    # --- gold utilities ---

    def gold_utility(
        self, group: str, completions: Sequence[str], finished: Sequence[bool] | bool | None = None
    ) -> np.ndarray:
        """What `group` truly thinks of each reply.

        Args:
            group (`str`): A key of [`GOLD_UTILITIES`].
            completions (`Sequence[str]` of length N): replies as text without special tokens; messages are accepted
                too.
            finished (`Sequence[bool]` of length N, `bool` or `None`, *optional*): whether each reply ended by itself;
                `None` means all did. An unfinished reply has conciseness 0.

        Returns:
            `np.ndarray` of shape (N,), float64, never NaN. Higher is better.

        Raises:
            ValueError: an unknown group, or a `finished` of another length.
        """
        self._check_group(group)
        if finished is None or isinstance(finished, bool):
            finished = [finished is not False] * len(completions)
        if len(finished) != len(completions):
            raise ValueError(f"{len(completions)} completions but {len(finished)} values of finished")
        utility = GOLD_UTILITIES[group]
        return np.array(
            [utility(split_words(reply), bool(ended)) for reply, ended in zip(completions, finished, strict=True)],
            dtype=np.float64,
        )

    def gold_reward_functions(self, groups: Sequence[str] | None = None) -> list[Callable[..., list[float]]]:
        """The gold utilities as reward functions of TRL's convention, named by group: what an oracle would train on.

        Each is called as `f(prompts=..., completions=..., completion_ids=...)`. A reply is finished as `finished`
        says, or else if its ids hold the end-of-sequence token, or, with neither, always.

        Raises:
            ValueError: an unknown group.
        """

        def reward_of(group: str) -> Callable[..., list[float]]:
            self._check_group(group)

            def reward(prompts=None, completions=(), completion_ids=None, finished=None, **kwargs) -> list[float]:
                if finished is None and completion_ids is not None:
                    finished = [self.tokenizer.eos_token_id in list(ids) for ids in completion_ids]
                return self.gold_utility(group, completions, finished).tolist()

            reward.__name__ = reward.__qualname__ = group
            return reward

        return [reward_of(group) for group in (self.groups if groups is None else groups)]

    # --- annotators ---

    def annotators(self, num_annotators: int = 50, minority_share: float = 0.2, seed: Seed = 0) -> list[str]:
        """The planted group of each annotator, in random order.

        Every group but the first has exactly `round(minority_share * num_annotators)` members, the first has the rest;
        a share of 0 plants no groups.

        Raises:
            ValueError: no annotators, or shares that leave the majority without members.

        Example:

        >>> FilmReviewWorld().annotators(50, 0.2).count("positive")
        10
        """
        members = round(minority_share * num_annotators)
        rest = num_annotators - members * (len(self.groups) - 1)
        if num_annotators < 1 or minority_share < 0 or rest < 1:
            raise ValueError(
                f"{num_annotators} annotators with a share of {minority_share} for each of {len(self.groups) - 1} "
                "minorities leave no majority; take more annotators or a share between 0 and 1"
            )
        planted = [self.majority] * rest + [group for group in self.groups[1:] for _ in range(members)]
        return [planted[index] for index in self._rng("annotators", seed).permutation(num_annotators)]

    def collect_preferences(
        self,
        prompts: Sequence[str],
        completions: Sequence[Sequence[str]],
        annotators: Sequence[str],
        pairs_per_annotator: int = 60,
        temperature: float = 0.25,
        seed: Seed = 0,
        finished: Sequence[Sequence[bool]] | None = None,
    ) -> Dataset:
        """Let annotators compare pairs of replies to the same prompt.

        An annotator of group g prefers reply a to b with probability `sigmoid((u_g(a) - u_g(b)) / (s_g *
        temperature))`, where `s_g` is the standard deviation of the gold utility over all replies given: every group
        is equally sure of itself. At the default temperature a preference agrees with the gold order about 89 % of
        the time (equal utilities counted half).

        Args:
            prompts (`Sequence[str]` of length P): prompts.
            completions (P sequences of at least two `str`): replies to each prompt, usually of the reference policy. A
                pair never holds the same text twice, so prompts whose replies are all alike are not asked about.
            annotators (`Sequence[str]` of length H): planted group of each annotator, as
                [`~FilmReviewWorld.annotators`] returns them.
            pairs_per_annotator (`int`, *optional*, defaults to `60`): pairs each annotator compares.
            temperature (`float`, *optional*, defaults to `0.25`): Bradley-Terry noise in standard deviations of the
                utility; smaller is surer.
            seed (`int` or `np.random.Generator`, *optional*, defaults to `0`): source of randomness.
            finished (P sequences of `bool`, *optional*): which replies ended by themselves; the others are left out.
                `None` means all did.

        Returns:
            `datasets.Dataset` of H * pairs_per_annotator rows in random order with the columns `prompt`, `chosen`,
            `rejected`, `annotator_id` (`"annotator_07"`) and `group` (planted: for evaluation, never for training).

        Raises:
            ValueError: lengths that differ, no annotators, a temperature that is not positive, or no prompt with two
                different replies.
        """
        if not annotators or pairs_per_annotator < 1 or temperature <= 0:
            raise ValueError(
                "needs at least one annotator, one pair each and a positive temperature; got "
                f"{len(annotators)}, {pairs_per_annotator} and {temperature}"
            )
        if len(prompts) != len(completions) or (finished is not None and len(finished) != len(prompts)):
            raise ValueError(f"{len(prompts)} prompts but {len(completions)} lists of completions, or of finished")
        if finished is not None:
            completions = [
                [reply for reply, ended in zip(replies, ends, strict=True) if ended]
                for replies, ends in zip(completions, finished, strict=True)
            ]
        distinct = [(prompt, sorted(set(replies))) for prompt, replies in zip(prompts, completions, strict=True)]
        askable = [(prompt, replies) for prompt, replies in distinct if len(replies) > 1]
        if not askable:
            raise ValueError("no prompt has two different finished replies; sample more replies for each prompt")
        pool = [reply for replies in completions for reply in replies]
        scale = {group: float(self.gold_utility(group, pool).std()) or 1.0 for group in set(annotators)}

        rng = self._rng("preferences", seed)
        width = len(str(len(annotators) - 1))
        rows = []
        for number, group in enumerate(annotators):
            for index in rng.integers(len(askable), size=pairs_per_annotator):
                prompt, replies = askable[index]
                pair = [replies[i] for i in rng.choice(len(replies), size=2, replace=False)]
                utility = self.gold_utility(group, pair)
                log_odds = (utility[0] - utility[1]) / (scale[group] * temperature)
                # A logistic draw above -log_odds has probability sigmoid(log_odds).
                chosen = 0 if rng.logistic() < log_odds else 1
                row = {"prompt": prompt, "chosen": pair[chosen], "rejected": pair[1 - chosen]}
                rows.append(row | {"annotator_id": f"annotator_{number:0{width}d}", "group": group})
        return Dataset.from_list([rows[index] for index in rng.permutation(len(rows))])

    # --- the reference policy ---

    @property
    def _special_ids(self) -> dict[str, int]:
        return {f"{kind}_token_id": getattr(self.tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}

    def reference_config(self) -> GPT2Config:
        """Configuration of the reference policy: GPT-2 of 3 layers, width 96, 4 heads, without dropout."""
        return GPT2Config(
            vocab_size=len(self.tokenizer),
            n_positions=48,
            n_embd=96,
            n_layer=3,
            n_head=4,
            # The function of GPT-2's "gelu_new" in one fused kernel: a fifth faster at this size.
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **self._special_ids,
        )

    def pretrain(
        self,
        steps: int = 300,
        batch_size: int = 64,
        seed: int = 0,
        callback: Callable[[int, float], None] | None = None,
        learning_rate: float = 3e-3,
    ) -> GPT2LMHeadModel:
        """Train the reference policy on the writers' reviews of training prompts, from scratch.

        Args:
            steps (`int`, *optional*, defaults to `300`): optimizer steps.
            batch_size (`int`, *optional*, defaults to `64`): reviews in a step.
            seed (`int`, *optional*, defaults to `0`): decides initial weights, prompts and reviews; the global random
                state is left as it was.
            callback (`Callable[[int, float], None]`, *optional*): called after each step with the number of steps done
                and the loss (nats per token of the review).
            learning_rate (`float`, *optional*, defaults to `3e-3`): peak of AdamW's learning rate: 20 steps of
                warm-up, then a cosine to 0.

        Returns:
            `GPT2LMHeadModel` in evaluation mode on the CPU, whose generation config samples at temperature 1.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = GPT2LMHeadModel(self.reference_config())
        prompts = self.sample_prompts(steps * batch_size, self._rng("pretrain-prompts", seed))
        reviews = self.sample_reviews(prompts, self._rng("pretrain-reviews", seed))
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        )
        model.train()
        for step in range(steps):
            rows = slice(step * batch_size, (step + 1) * batch_size)
            input_ids, labels = self._language_model_batch(prompts[rows], reviews[rows])
            # No real token attends to padding on its right, so a mask of ones is exact, and faster than a ragged one.
            logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if callback is not None:
                callback(step + 1, loss.item())
        model.eval()
        model.generation_config = self.generation_config()
        return model

    def generation_config(self) -> GenerationConfig:
        """Plain sampling at temperature 1 (no top-k: it would cut into a vocabulary of 50 words)."""
        return GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_COMPLETION_LENGTH,
            **self._special_ids,
        )

    def _language_model_batch(self, prompts: list[str], reviews: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels (B, T): prompt, review, <eos>; labels are -100 on the prompt and the padding."""
        prompt_ids = self.tokenizer(prompts)["input_ids"]
        reply_ids = [[*ids, self.tokenizer.eos_token_id] for ids in self.tokenizer(reviews)["input_ids"]]
        shape = (len(prompts), max(len(p) + len(r) for p, r in zip(prompt_ids, reply_ids, strict=True)))
        input_ids = torch.full(shape, self.tokenizer.pad_token_id)
        labels = torch.full(shape, -100)
        for row, (prompt, reply) in enumerate(zip(prompt_ids, reply_ids, strict=True)):
            start, end = len(prompt), len(prompt) + len(reply)
            input_ids[row, :end] = torch.tensor(prompt + reply)
            labels[row, start:end] = torch.tensor(reply)
        return input_ids, labels


def _build_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    # Splits `:superb` in two as well, so that text glued together without a space still reads right.
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=48,
        clean_up_tokenization_spaces=False,
    )
