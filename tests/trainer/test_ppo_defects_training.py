# SPDX-License-Identifier: Apache-2.0
"""What TRL 1.12's PPO trained wrongly without a word: C1 to C18 of the list of its defects, as tests of ours."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2ForSequenceClassification

from tests.trainer.ppo_helpers import (
    PROMPTS,
    SIZE,
    GivenReplies,
    Recorded,
    assert_same,
    brevity,
    critic_model,
    differ,
    gpt2,
    history,
    lora,
    unpadded_log_all,
    weights,
)
from trl_maxmin.trainer.ppo.rollout import plan_minibatches


pytestmark = pytest.mark.seam


ROWS = [{"prompt": text} for text in PROMPTS[:4]]


def scored(trainer, rows=ROWS):
    """A rollout up to its advantages."""
    rollout = trainer._rollout(rows)
    trainer._score(rollout)
    rewards, channel_weights = trainer._aggregate(rollout)
    trainer._advantages(rollout, rewards, channel_weights)
    return rollout, rewards


def count_steps(trainer):
    """The rollout of every optimizer step."""
    calls = []
    trainer.create_optimizer().register_step_post_hook(lambda *_: calls.append(trainer.state.global_step))
    trainer.train()
    return calls


@pytest.mark.parametrize(("epochs", "mini_batches"), [(1, 1), (3, 2), (2, 4)])
def test_c01_optimizer_steps_are_updates_times_epochs_times_minibatches(make, epochs, mini_batches):
    trainer = make(num_ppo_epochs=epochs, num_mini_batches=mini_batches, max_steps=3)
    assert len(count_steps(trainer)) == 3 * epochs * mini_batches


def test_c02_the_last_batch_of_a_pass_over_the_data_steps_like_any_other(make):
    """24 prompts, 8 a rollout: rollouts 2 and 5 end a pass."""
    calls = count_steps(make(num_ppo_epochs=3, num_mini_batches=2, max_steps=7))
    assert [calls.count(step) for step in range(7)] == [6] * 7


def test_c03_first_minibatch_has_ratio_one(make):
    trainer = make(Recorded, num_mini_batches=4, max_steps=3)
    trainer.train()
    for step in range(3):
        first = next(means for number, means in trainer.minibatches if number == step)
        assert first["val/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert first["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-9)
    assert trainer.minibatches[-1][1]["policy/approxkl_avg"] > 1e-6
    by_hand = np.mean([means["val/ratio"] for step, means in trainer.minibatches if step == 0])
    assert history(trainer, "val/ratio")[0] == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("given", [[([], False)], [([], False), ([7, 8], False)]])
def test_c04_empty_replies_are_finite(make, given):
    """All of a rollout, and all of a micro-batch of it."""

    class Empty(GivenReplies):
        replies = given

    trainer = make(Empty, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    trainer.train()
    assert all(math.isfinite(value) for value in history(trainer, "loss"))
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer).values())


class TestC05:
    """Which tokens are real is said by masks."""

    turns = Dataset.from_dict({"input_ids": [[5, 6, 2, 7, 8], [9, 2, 10]] * 4})

    @staticmethod
    def reward_model():
        torch.manual_seed(3)
        return GPT2ForSequenceClassification(
            GPT2Config(vocab_size=SIZE, n_layer=1, n_head=2, n_embd=16, n_positions=32, num_labels=1, pad_token_id=0)
        ).eval()

    def test_c05_pad_that_is_eos_or_missing_changes_nothing(self, make, word_tokenizer, word_tokenizer_without_pad):
        runs = []
        for tokenizer, pad in (
            (word_tokenizer, "<pad>"),
            (word_tokenizer, "<eos>"),
            (word_tokenizer_without_pad, None),
        ):
            tokenizer.pad_token = pad
            reward = [(self.reward_model(), tokenizer), brevity]
            trainer = make(processing_class=tokenizer, reward_model=reward, train_dataset=self.turns)
            rollout, _ = scored(trainer, list(self.turns)[:4])
            tensors = {"scores": rollout.scores, "values": rollout.values, "advantages": rollout.advantages}
            trainer.train()
            runs.append((weights(trainer) | tensors, history(trainer, "loss"), history(trainer, "objective/scores")))
        for run in runs[1:]:
            assert run[1:] == runs[0][1:]
            assert_same(run[0], runs[0][0])

    def test_c05_scores_and_logprobs_are_those_of_unpadded_rows(self, make, word_tokenizer):
        word_tokenizer.pad_token = "<eos>"
        model = self.reward_model()
        trainer = make(reward_model=(model, word_tokenizer), train_dataset=self.turns)
        rollout = trainer._rollout(list(self.turns)[:4])
        trainer._score(rollout)
        for i, (prompt, reply) in enumerate(zip(rollout.prompt_ids, rollout.completion_ids, strict=True)):
            assert 2 in prompt, "the EOS of a turn stays in the prompt"
            with torch.no_grad():
                expected = model.score(model.transformer(torch.tensor([prompt + reply])).last_hidden_state[0, -1])
            assert rollout.scores[i].item() == pytest.approx(expected.item(), abs=1e-5)
            log_all = unpadded_log_all(trainer.policy_model, prompt, reply)
            expected = log_all[torch.arange(len(reply)), reply]
            torch.testing.assert_close(rollout.logprobs[i, : len(reply)], expected, atol=1e-5, rtol=1e-5)


def test_c06_generation_config_is_saved_as_given_and_nothing_counts_after_eos(make, tmp_path):
    model = gpt2()
    model.generation_config.update(eos_token_id=[2, 9], do_sample=True, top_k=7)
    given = model.generation_config.to_dict()
    seen = []

    def record(completion_ids, **kwargs):
        seen.extend(completion_ids)
        return [0.0] * len(completion_ids)

    trainer = make(model=model, reward_model=record, response_length=12)
    rollout = trainer._rollout(ROWS)
    assert rollout.completion_mask.sum(1).tolist() == [len(ids) for ids in rollout.completion_ids]
    assert torch.equal(rollout.loss_mask, rollout.completion_mask)
    trainer.train()
    assert any(ids[-1] in (2, 9) for ids in seen)
    assert not any({2, 9} & set(ids[:-1]) for ids in seen)
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.to_dict()
    assert {name: saved[name] for name in ("eos_token_id", "do_sample", "top_k")} == {
        "eos_token_id": [2, 9],
        "do_sample": True,
        "top_k": 7,
    }
    assert model.generation_config.to_dict() == given
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["eos_token_id"] == [2, 9]


def test_c07_bf16_is_autocast(make):
    trainer = make(Recorded, bf16=True, use_cpu=True, max_steps=2)
    seen = []
    trainer._root.policy.transformer.h[0].mlp.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert trainer.minibatches[0][1]["val/ratio"] == pytest.approx(1.0, abs=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in weights(trainer).values())


def test_c08_gradient_checkpointing_reaches_policy_and_critic(make):
    """A block that is checkpointed runs once more in the backward pass."""
    calls = {}
    for on in (False, True):
        trainer = make(value_model=critic_model(1))
        rollout, _ = scored(trainer)
        # An update with a forward of its own, whose calls are counted.
        rollout.outputs = None
        if on:
            trainer._root.activation_checkpointing_enable()
        seen = []
        for model in (trainer._root.policy, trainer._root.value_model):
            model.transformer.h[0].mlp.register_forward_pre_hook(lambda module, *_, seen=seen: seen.append(module))
        trainer._root.train()
        trainer._backward_minibatch(rollout, [0, 1, 2, 3], 12)
        calls[on] = sorted(seen.count(module) for module in set(seen))
    assert calls == {False: [1, 1], True: [2, 2]}
    trainer = make(value_model=critic_model(1), gradient_checkpointing=True, max_steps=1)
    trainer.train()
    for model in (trainer._root.policy, trainer._root.value_model):
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_c09_clipping_reaches_every_step(make):
    trainer = make(max_grad_norm=1e-3, num_mini_batches=2, optim="sgd")
    norms = []

    def before_step(optimizer, *_):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack([grad.norm() for grad in grads]).norm().item())

    trainer.create_optimizer().register_step_pre_hook(before_step)
    trainer.train()
    assert len(norms) == 2 * 2 * 2
    assert all(norm <= 1.001e-3 for norm in norms)
    assert all(value > 1e-3 for value in history(trainer, "grad_norm"))


@pytest.mark.parametrize("given", [None, 0.0])
def test_c09_no_clipping(make, given):
    """`None` is what a configuration file says; the gradient of SGD then is applied as it is."""
    runs = []
    for limit in (given, 1e9):
        trainer = make(max_grad_norm=limit, num_mini_batches=2, optim="sgd")
        trainer.train()
        runs.append(weights(trainer))
    assert_same(*runs, atol=1e-6, rtol=1e-6)


def test_c10_the_seed_fixes_the_run(make):
    runs, orders = [], []
    for seed in (1, 1, 2):
        trainer = make(seed=seed, num_mini_batches=2)
        orders.append(plan_minibatches(8, trainer.args, step=0, rank=0))
        torch.rand(3), np.random.rand(3)
        trainer.train()
        runs.append(weights(trainer))
    assert orders[0] == orders[1] != orders[2]
    assert not differ(runs[0], runs[1])
    assert differ(runs[0], runs[2])


@pytest.mark.parametrize("settings", [{"repetition_penalty": 3.0}, {"min_p": 0.5}])
def test_c11_processors_in_the_models_own_config_do_not_bias_the_ratio(make, settings):
    model = gpt2()
    model.generation_config.update(**settings)
    before = model.generation_config.to_dict()
    trainer = make(Recorded, model=model, num_mini_batches=2, max_steps=3)
    trainer.train()
    for step in range(3):
        first = next(means for number, means in trainer.minibatches if number == step)
        assert first["val/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert first["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-9)
    assert model.generation_config.to_dict() == before
    # Sampled from the policy itself: the same draws as from a model without the setting.
    other = gpt2()
    other.generation_config.update(**settings)
    plain = make()._sample(ROWS, "test")
    assert make(model=other)._sample(ROWS, "test").completion_ids == plain.completion_ids


def test_c12_padding_side_right_is_handled(make, word_tokenizer):
    runs = []
    for side in ("left", "right"):
        tokenizer = copy.deepcopy(word_tokenizer)
        tokenizer.padding_side = side
        model, masks = gpt2(), []
        generate = model.generate

        def record(*args, generate=generate, masks=masks, **kwargs):
            masks.append(kwargs["attention_mask"])
            return generate(*args, **kwargs)

        model.generate = record
        trainer = make(processing_class=tokenizer, model=model)
        trainer.train()
        assert masks and all(mask[:, -1].all() and not mask.all() for mask in masks)
        runs.append(weights(trainer))
    assert not differ(*runs)


def test_c13_the_score_is_on_the_last_real_token(make):
    """Replies of 3, 6, 1 and 2 tokens, two of them without EOS; the KL channel is 0, as policy and reference agree."""
    _, rewards = scored(make(GivenReplies, reward_model=brevity))
    expected = torch.zeros(4, 6)
    for row, length in enumerate((3, 6, 1, 2)):
        expected[row, length - 1] = -length / 8
    torch.testing.assert_close(rewards[..., 0], expected)
    torch.testing.assert_close(rewards[..., 1], torch.zeros(4, 6), atol=1e-5, rtol=0)


def test_c14_the_penalty_tests_what_stops_the_reply(make):
    """The stop token is 9; the tokenizer's EOS, 2, is a token like any other."""
    trainer = make(stop_token_id=9, missing_eos_penalty=0.5, reward_model=lambda prompts, **_: [0.0] * len(prompts))
    rollout, _ = scored(trainer, [{"prompt": "the film"}] * 96)
    stopped = [ids[-1] == 9 for ids in rollout.completion_ids]
    assert 0 < sum(stopped) < 96
    assert any(2 in ids[:-1] for ids in rollout.completion_ids)
    assert rollout.scores[:, 0].tolist() == [0.0 if stop else -0.5 for stop in stopped]


def test_c15_the_limit_is_terminal(make):
    """With gamma = lam = 1 the return of every token is the reward to come: the score, and nothing behind it."""
    rollout, _ = scored(make(GivenReplies, reward_model=brevity, lam=1.0, gamma=1.0))
    assert rollout.values.abs().max() > 1e-3, "a value of 0 could hide a bootstrap"
    for row, length in enumerate((3, 6, 1, 2)):
        assert rollout.returns[row, :length, 0].tolist() == pytest.approx([-length / 8] * length, abs=1e-5)


def test_c15_truncated_replies_can_be_left_out(make):
    trainer = make(GivenReplies, mask_truncated_completions=True)
    rollout, _ = scored(trainer)
    assert rollout.loss_mask.sum(1).tolist() == [3, 0, 1, 0]
    assert not rollout.advantages[~rollout.loss_mask].any()


def test_c17_statistics_are_means_over_real_tokens(make):
    """Micro-batches of one reply each, of 3, 6, 1 and 2 tokens: every token counts the same, padding nothing."""
    trainer = make(GivenReplies, per_device_train_batch_size=1, gradient_accumulation_steps=4, num_ppo_epochs=1)
    rollout, _ = scored(trainer)
    pairs = list(zip(rollout.prompt_ids, rollout.completion_ids, strict=True))
    trainer._clock = (0.0, 0)
    old = [unpadded_log_all(trainer.policy_model, *pair) for pair in pairs]
    generator = torch.Generator().manual_seed(0)
    for parameter in trainer._root.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    new = [unpadded_log_all(trainer.policy_model, *pair) for pair in pairs]
    trainer.create_optimizer_and_scheduler(1)
    trainer._optimise(rollout)
    trainer._log_rollout(rollout)
    change = torch.cat(
        [(n - o)[torch.arange(len(r)), r] for n, o, r in zip(new, old, rollout.completion_ids, strict=True)]
    )
    entropy = torch.cat([torch.distributions.Categorical(logits=o).entropy() for o in old])
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert len(change) == len(entropy) == 12
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.5 * change.square().mean().item(), rel=1e-3)
    assert metrics["val/ratio"] == pytest.approx(change.exp().mean().item(), rel=1e-4)
    assert metrics["policy/entropy_avg"] == pytest.approx(entropy.mean().item(), rel=1e-4)
    assert metrics["eps"] != int(metrics["eps"])


def test_c18_reference_of_a_trained_adapter_is_the_adapter_as_it_was(make, tmp_path):
    policy = get_peft_model(gpt2(), lora())
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    start = copy.deepcopy(policy).eval()
    trainer = make(model=policy, max_steps=2)
    trainer.train()
    assert history(trainer, "objective/kl")[0] == pytest.approx(0.0, abs=1e-5)
    # After training as well: the reference still is the adapter as it was given.
    rollout = trainer._rollout(ROWS)
    for i, (prompt, reply) in enumerate(zip(rollout.prompt_ids, rollout.completion_ids, strict=True)):
        expected = unpadded_log_all(start, prompt, reply)[torch.arange(len(reply)), reply]
        torch.testing.assert_close(rollout.ref_logprobs[i, : len(reply)], expected, atol=1e-5, rtol=1e-5)
    trainer.save_model(str(tmp_path / "adapter"))
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir() if path.is_dir()) == []
    assert list(PeftModel.from_pretrained(gpt2(), tmp_path / "adapter").peft_config) == ["default"]
