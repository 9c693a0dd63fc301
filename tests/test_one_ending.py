# SPDX-License-Identifier: Apache-2.0
"""A reply gets one score from every path that asks for it, under chat templates as the world has them.

The oracle is the reward of the messages; `tests/data/test_endings.py` holds their ids against those built by hand.
"""

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from tests.chat_templates import TEMPLATES, chat_tokenizer, stop_of
from tests.trainer.trl_helpers import build_trl_trainer, save_base
from trl_maxmin import (
    MaxMinGRPOTrainer,
    MaxMinPPOConfig,
    MaxMinPPOTrainer,
    MaxMinRLOOTrainer,
    MixtureRewardConfig,
    MixtureRewardModel,
    MixtureRewardTrainer,
)
from trl_maxmin.data.tokenization import asked, encode_prompt, encode_reply
from trl_maxmin.evaluation.evaluator import evaluate_policies
from trl_maxmin.evaluation.generation import Sampling
from trl_maxmin.models.families import get_linear
from trl_maxmin.space.config import SpaceConfig
from trl_maxmin.space.policies import Policy, Settings
from trl_maxmin.space.scoring import Answer, Studio
from trl_maxmin.space.votes import vote_rows
from trl_maxmin.trainer.scoring.sources import RewardBatch, build_reward_source


ASKED = ["the film", "a movie story", "plot of the film", "acting"]
SAID = ["great superb", "dull", "very good but long", "weak"]
FINISHED = [True, True, False, True]
PROMPTS = [[{"role": "user", "content": text}] for text in ASKED]
REPLIES = [[{"role": "assistant", "content": text}] for text in SAID]


def gpt2(tokenizer, seed=0):
    """Its generation configuration knows `<eos>` alone, as that of a base model does."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_head=2, n_embd=16, n_positions=64, bos_token_id=1)
    model = GPT2LMHeadModel(config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<eos>")
    return model


def mixture_of(tokenizer, kind="head"):
    mixture = MixtureRewardModel.from_base(gpt2(tokenizer, 1), 2, kind, processing_class=tokenizer).eval()
    with torch.no_grad():
        for component in mixture.components:
            get_linear(component).weight.mul_(50)
        for name, parameter in mixture.named_parameters():
            if "lora_B" in name:  # as made, an adapter changes nothing
                parameter.normal_(std=0.3)
    return mixture


def batch_of(tokenizer, stop, options=None, **kwargs):
    content = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SAID]
    return RewardBatch(
        prompts=PROMPTS,
        completions=REPLIES,
        prompt_ids=[encode_prompt(tokenizer, prompt, options) for prompt in PROMPTS],
        completion_ids=[ids + [stop] * done for ids, done in zip(content, FINISHED, strict=True)],
        finished=FINISHED,
        **kwargs,
    )


def round_trips(tokenizer, ids):
    """Whether the text of a sampled reply says all that its ids do; the last may be its stop token."""
    special = set(tokenizer.all_special_ids)
    return not special & set(ids[:-1]) and (ids[-1] not in special or ids[-1] in _stops(tokenizer))


def _stops(tokenizer):
    name = next(name for name, (template, *_) in TEMPLATES.items() if template == tokenizer.chat_template)
    return {stop_of(tokenizer, name), tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<eos>")}


@pytest.mark.parametrize("kind", ["head", "lora", "full"])
@pytest.mark.parametrize("name", TEMPLATES)
class TestReplies:
    def test_messages_text_and_ids(self, name, kind):
        tokenizer = chat_tokenizer(name)
        mixture = mixture_of(tokenizer, kind)
        expected = mixture.score(PROMPTS, REPLIES, finished=FINISHED)
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(mixture.score(PROMPTS, SAID, finished=FINISHED), expected, **close)
        ids = batch_of(tokenizer, stop_of(tokenizer, name))
        by_ids = mixture.score(prompt_ids=ids.prompt_ids, completion_ids=ids.completion_ids)
        torch.testing.assert_close(by_ids, expected, **close)
        # A policy may stop at another of its tokens than reward training ends with.
        for stop in _stops(tokenizer):
            source = build_reward_source(mixture, policy_tokenizer=tokenizer)
            torch.testing.assert_close(source(batch_of(tokenizer, stop)), expected, **close)
        foreign = chat_tokenizer(name, reverse=True)
        source = build_reward_source(mixture, policy_tokenizer=foreign)
        torch.testing.assert_close(source(batch_of(foreign, stop_of(foreign, name))), expected, **close)
        plain = build_reward_source([(mixture.component(k), tokenizer) for k in range(2)], policy_tokenizer=tokenizer)
        torch.testing.assert_close(plain(batch_of(tokenizer, tokenizer.eos_token_id)), expected, **close)
        functions = mixture.reward_functions(tokenizer)
        for k, function in enumerate(functions):
            said = function(PROMPTS, REPLIES, ids.completion_ids)
            torch.testing.assert_close(torch.tensor(said), expected[:, k], **close)
        # Finished and truncated replies are different texts.
        assert not torch.allclose(mixture.score(PROMPTS, REPLIES, finished=False)[0], expected[0])


@pytest.mark.parametrize("kind", ["head", "lora", "full"])
def test_what_the_template_was_told(kind):
    name, options = "qwen3", {"enable_thinking": False}
    tokenizer, foreign = chat_tokenizer(name), chat_tokenizer(name, reverse=True)
    mixture = mixture_of(tokenizer, kind)
    expected = mixture.score(PROMPTS, REPLIES, finished=FINISHED, chat_options=[options] * 4)
    assert not torch.allclose(expected, mixture.score(PROMPTS, REPLIES, finished=FINISHED))
    for policy in (tokenizer, foreign):
        source = build_reward_source(mixture, policy_tokenizer=policy)
        stop = stop_of(policy, name)
        for given in ({"chat_template_kwargs": options}, {"columns": {"chat_template_kwargs": [options] * 4}}):
            found = source(batch_of(policy, stop, options, **given))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def preferences(options=None):
    rows = []
    for annotator in range(4):
        for i, prompt in enumerate(PROMPTS):
            pair = REPLIES[i], REPLIES[(i + 1) % 4]
            chosen, rejected = pair if (annotator + i) % 2 else pair[::-1]
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator_id": f"a{annotator}"})
            rows[-1] |= {"chat_template_kwargs": options} if options else {}
    return Dataset.from_list(rows)


@pytest.mark.parametrize(("kind", "train_trunk"), [("head", True), ("head", False), ("lora", True), ("full", True)])
@pytest.mark.parametrize("name", TEMPLATES)
def test_reward_training_reads_what_scoring_reads(name, kind, train_trunk, tmp_path):
    tokenizer = chat_tokenizer(name)
    options = {"enable_thinking": False} if name == "qwen3" else None
    args = MixtureRewardConfig(
        output_dir=str(tmp_path), num_components=2, component_type=kind, train_trunk=train_trunk, max_steps=2,
        report_to=[], use_cpu=True,
        bf16=False, disable_tqdm=True, save_strategy="no", gradient_checkpointing=False, heldout_fraction=0.25,
    )  # fmt: skip
    trainer = MixtureRewardTrainer(gpt2(tokenizer), args, preferences(options), processing_class=tokenizer)
    trainer.train()
    mixture, row = trainer.mixture.eval(), {"chat_options": [options] * 4} if options else {}
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        chosen = mixture.score(dataset["prompt"], dataset["chosen"], **_repeated(row, len(dataset)))
        rejected = mixture.score(dataset["prompt"], dataset["rejected"], **_repeated(row, len(dataset)))
        found = trainer.reward_differences(dataset)
        torch.testing.assert_close(found, (chosen - rejected).cpu(), atol=1e-5, rtol=1e-5)
    likelihood = mixture.preference_log_likelihood(trainer.train_dataset)
    expected = torch.nn.functional.logsigmoid(trainer.reward_differences(trainer.train_dataset))
    torch.testing.assert_close(likelihood, expected, atol=1e-5, rtol=1e-5)


def _repeated(row, count):
    return {name: values[:1] * count for name, values in row.items()}


@pytest.mark.parametrize("name", TEMPLATES)
def test_ppo(name, tmp_path):
    tokenizer = chat_tokenizer(name)
    options = {"enable_thinking": False} if name == "qwen3" else None
    mixture = mixture_of(tokenizer)
    args = MaxMinPPOConfig(
        output_dir=str(tmp_path), report_to=[], disable_tqdm=True, per_device_train_batch_size=16, max_steps=1,
        response_length=12, temperature=1.0, gradient_checkpointing=False, use_cpu=True, bf16=False,
        num_sample_generations=0, gradient_accumulation_steps=1, chat_template_kwargs=options, utility="raw",
    )  # fmt: skip
    trainer = MaxMinPPOTrainer(
        args, tokenizer, gpt2(tokenizer), None, mixture, Dataset.from_dict({"prompt": PROMPTS * 8})
    )
    # What reward training ends with stops the policy, too, and whoever loads it.
    assert stop_of(tokenizer, name) in trainer.stop_token_ids
    assert stop_of(tokenizer, name) in _as_list(trainer.policy_model.generation_config.eos_token_id)
    rollout = trainer._sample([{"prompt": prompt} for prompt in PROMPTS * 16], "test")
    rewards = trainer._calculate_rewards(*rollout.replies)
    _agree(mixture, tokenizer, rollout.replies, rewards, rollout.finished.tolist(), options)


def _as_list(ids):
    return [ids] if isinstance(ids, int) else list(ids)


def _agree(mixture, tokenizer, replies, rewards, finished, options=None):
    _, prompts, completions, completion_ids = replies
    rows = [i for i, ids in enumerate(completion_ids) if round_trips(tokenizer, ids)]
    assert {finished[i] for i in rows} == {True, False}, "a test without both tests half"
    expected = mixture.score(
        [prompts[i] for i in rows],
        [completions[i] for i in rows],
        finished=[finished[i] for i in rows],
        chat_options=[options] * len(rows) if options else None,
    )
    torch.testing.assert_close(rewards[rows], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trainer_class", [MaxMinGRPOTrainer, MaxMinRLOOTrainer])
@pytest.mark.parametrize("name", TEMPLATES)
def test_grpo_and_rloo(name, trainer_class, tmp_path):
    tokenizer = chat_tokenizer(name)
    options = {"enable_thinking": False} if name == "qwen3" else None
    mixture, base = mixture_of(tokenizer), tmp_path / "base"
    gpt2(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    trainer = build_trl_trainer(
        trainer_class, str(base), tokenizer, tmp_path / "run", reward_funcs=mixture, max_steps=1, utility="raw",
        per_device_train_batch_size=64, max_completion_length=12, chat_template_kwargs=options, learning_rate=0.0,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 8}),
    )  # fmt: skip
    assert stop_of(tokenizer, name) in trainer.stop_token_ids
    seen = []
    host = trainer._raw_rewards

    def watched(*replies):
        seen.append((replies, host(*replies)))
        return seen[-1][1]

    trainer._raw_rewards = watched
    trainer.train()
    replies, rewards = seen[0]
    finished = [ids[-1] in trainer.stop_token_ids for ids in replies[3]]
    _agree(mixture, tokenizer, replies, rewards, finished, options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_evaluation_and_the_space(name, tmp_path):
    tokenizer = chat_tokenizer(name)
    options = {"enable_thinking": False} if name == "qwen3" else None
    mixture, models = mixture_of(tokenizer), {"reference": gpt2(tokenizer), "other": gpt2(tokenizer, 3)}
    seen = []
    score = mixture.score

    def watched(*args, **kwargs):
        seen.append((kwargs, score(*args, **kwargs)))
        return seen[-1][1]

    mixture.score = watched
    found = evaluate_policies(
        {key: (model, tokenizer) for key, model in models.items()}, PROMPTS, reference="reference", num_resamples=100,
        reward_model=mixture, accelerator=Accelerator(cpu=True),
        sampling=Sampling(12, 1.0, 16, chat_template_kwargs=options),
    )  # fmt: skip
    for (key, own), (_, rewards) in zip(found.replies.items(), seen, strict=True):
        completions = [[{"role": "assistant", "content": text}] for text in own.completions]
        replies = (None, own.prompts, completions, own.completion_ids)
        mixture.score = score
        _agree(mixture, tokenizer, replies, rewards, own.finished, options)
        assert own.prompt_ids[0] == encode_prompt(tokenizer, PROMPTS[0], options), key

    config = SpaceConfig(
        policies=dict.fromkeys(models, "x"), baseline_replies=8, prompts=ASKED, chat_template_kwargs=options
    )
    policies = {key: Policy(key, "x", model, tokenizer, options) for key, model in models.items()}
    studio = Studio(config, policies, mixture)
    studio.prepare()
    checked = 0
    for seed in range(30):
        *_, answers = studio.compare(ASKED[0], list(models), Settings(seed=seed, length=12))
        for answer in answers:
            if round_trips(tokenizer, list(answer.ids)):
                text = [{"role": "assistant", "content": answer.text}]
                given = {"chat_options": [options]} if options else {}
                expected = mixture.score([PROMPTS[0]], [text], finished=[answer.finished], **given)
                rewards = studio._rewards(ASKED[0], [answer])
                torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=1e-5)
                checked += 1
    assert checked >= 4


def test_votes_are_preferences_over_the_prompts_that_were_answered(tmp_path):
    """Reward training reads of a vote what the policies of the page were given and wrote."""
    tokenizer, options = chat_tokenizer("qwen3"), {"enable_thinking": False}
    policy = Policy("reference", "x", gpt2(tokenizer), tokenizer, options)
    answers = [Answer("a", "great superb", True), Answer("b", "dull", True)]
    (row,) = vote_rows(ASKED[0], answers, 0, "visitor", None, False, True, options)
    (prompt, given), *_ = asked(Dataset.from_list([row]))
    ids = encode_reply(tokenizer, prompt, row["chosen"], options=given)
    content = tokenizer("great superb", add_special_tokens=False)["input_ids"]
    assert ids == [*policy.encode(ASKED[0]), *content, stop_of(tokenizer, "qwen3")]


def test_a_saved_policy_stops_where_it_did(tmp_path):
    """The base knows `<eos>` alone; trained on a conversation, its generation configuration knows the turn's end."""
    tokenizer = chat_tokenizer("gemma")
    base = save_base(tmp_path / "base", tokenizer, vocab_size=len(tokenizer), n_positions=64)
    trainer = build_trl_trainer(
        MaxMinGRPOTrainer, str(base), tokenizer, tmp_path / "run", reward_funcs=mixture_of(tokenizer), utility="raw",
        max_steps=1, train_dataset=Dataset.from_dict({"prompt": PROMPTS * 2}),
    )  # fmt: skip
    trainer.save_model(str(tmp_path / "saved"))
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "saved")
    assert stop_of(tokenizer, "gemma") in _as_list(loaded.generation_config.eos_token_id)
