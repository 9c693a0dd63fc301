# SPDX-License-Identifier: Apache-2.0
"""The utility of the same replies is one number, whether a trainer optimises it, evaluation reports it or the Space
draws it; replies that were cut at the length limit are among them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from tests.chat_templates import chat_tokenizer
from tests.test_one_ending import ASKED, gpt2, mixture_of
from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer
from trl_maxmin.data.tokenization import encode_prompt
from trl_maxmin.evaluation.evaluator import evaluate_policies
from trl_maxmin.evaluation.generation import Replies, Sampling
from trl_maxmin.space.config import SpaceConfig
from trl_maxmin.space.policies import Policy, Reply
from trl_maxmin.space.scoring import Answer, Studio


WORDS = "the a film movie story acting plot is was great superb lovely dull awful weak".split()
NUM_REFERENCE = 8


def some_replies(tokenizer, count, cut, seed):
    """Ids of replies, and which finished; one in `cut` was cut, and is longer than the others."""
    rng = np.random.default_rng(seed)
    replies = []
    for number in range(count):
        finished = number % cut != 0
        words = rng.choice(WORDS, size=rng.integers(1, 5) if finished else 11).tolist()
        ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        replies.append((ids + [tokenizer.eos_token_id] * finished, finished))
    return replies


@pytest.mark.parametrize("cut", [4, 2, 10**9], ids=["few_cut", "half_cut", "none_cut"])
def test_trainer_evaluation_and_space(cut, tmp_path, monkeypatch):
    tokenizer = chat_tokenizer("words")
    mixture, reference = mixture_of(tokenizer), gpt2(tokenizer)
    prompts = [[{"role": "user", "content": text}] for text in ASKED]
    rows = [prompt for prompt in prompts for _ in range(NUM_REFERENCE)]
    base, new = (some_replies(tokenizer, len(rows), cut, seed) for seed in (0, 1))

    # 1 the trainer, whose reference policy says what was planned
    args = MaxMinPPOConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, num_sample_generations=0,
        num_reference_completions=NUM_REFERENCE, per_device_train_batch_size=4, gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer = MaxMinPPOTrainer(args, tokenizer, gpt2(tokenizer), None, mixture, Dataset.from_dict({"prompt": prompts}))
    from trl_maxmin.trainer.ppo import ppo_trainer

    planned = iter([base, new])
    monkeypatch.setattr(ppo_trainer, "sample_replies", lambda *args, **kwargs: next(planned))
    trainer.calibrate()
    rollout = trainer._sample([{"prompt": prompt} for prompt in rows], "test")
    trainer.model.eval()
    trained = trainer._calculate_rewards(*rollout.replies)

    # 2 evaluation
    def of(replies):
        ids, finished = zip(*replies, strict=True)
        return Replies(
            prompts=rows,
            completions=tokenizer.batch_decode(ids, skip_special_tokens=True),
            finished=list(finished),
            prompt_ids=[encode_prompt(tokenizer, prompt) for prompt in rows],
            completion_ids=list(map(list, ids)),
        )

    found = evaluate_policies(
        {"reference": of(base), "new": of(new)}, reference="reference", reward_model=mixture, num_resamples=100,
        accelerator=Accelerator(cpu=True), sampling=Sampling(),
    )  # fmt: skip
    evaluated = torch.from_numpy(found.scores.utilities["new"]).float()
    torch.testing.assert_close(trained, evaluated, atol=1e-5, rtol=1e-5)

    # 3 the Space, whose reference policy says the same
    config = SpaceConfig(
        policies={"reference": "x", "new": "x"}, baseline_replies=NUM_REFERENCE, prompts=ASKED, max_new_tokens=24
    )
    policies = {name: Policy(name, "x", reference, tokenizer) for name in config.policies}
    texts = of(base).completions

    def sample(prompt_ids, settings, count):
        start = NUM_REFERENCE * [encode_prompt(tokenizer, prompt) for prompt in prompts].index(list(prompt_ids))
        replies = zip(base[start : start + count], texts[start : start + count], strict=True)
        return [Reply(list(ids), text, finished, True) for (ids, finished), text in replies]

    policies["reference"].sample = sample
    studio = Studio(config, policies, mixture)
    studio.prepare()
    for number, text in enumerate(ASKED):
        part = slice(NUM_REFERENCE * number, NUM_REFERENCE * (number + 1))
        answers = [
            Answer("new", said, finished, True, ids=tuple(ids))
            for (ids, finished), said in zip(new[part], of(new).completions[part], strict=True)
        ]
        drawn = [list(answer.utilities.values()) for answer in studio.with_utilities(text, answers)]
        torch.testing.assert_close(torch.tensor(drawn), trained[part], atol=1e-5, rtol=1e-5)


def test_prompts_that_are_cut_to_the_same_tokens_are_one_prompt(tmp_path):
    """Keys are made of what the policy reads: with `win_rate` every reply finds the replies it is compared with."""
    tokenizer = chat_tokenizer("words")
    texts = ["the film is good", "a film is good", "movie story", "plot", "bad ending", "acting good"] * 4
    for utility in ("zscore", "win_rate"):
        args = MaxMinPPOConfig(
            output_dir=str(tmp_path / utility), report_to=[], disable_tqdm=True, use_cpu=True, bf16=False, max_steps=2,
            per_device_train_batch_size=12, gradient_accumulation_steps=1, response_length=6, save_strategy="no",
            max_prompt_length=3, utility=utility, num_sample_generations=0, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = MaxMinPPOTrainer(
            args, tokenizer, gpt2(tokenizer), None, mixture_of(tokenizer), Dataset.from_dict({"prompt": texts})
        )
        trainer.train()
        assert len(trainer.reference_statistics.prompt_keys) == 5
        assert trainer.state.global_step == 2
