# SPDX-License-Identifier: Apache-2.0
"""PPO on tiny random models: arithmetic by hand, steps counted, learning, determinism, saving and resuming, errors."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from sklearn.metrics import explained_variance_score
from transformers import (
    AutoModelForCausalLM,
    DataCollatorWithPadding,
    HfArgumentParser,
)

from tests.trainer.ppo_helpers import (
    PROMPTS,
    GivenReplies,
    Recorded,
    assert_same,
    brevity,
    critic_model,
    differ,
    gpt2,
    history,
    lora,
    prompts,
    sevens,
    weights,
)
from trl_maxmin import MaxMinPPOTrainer
from trl_maxmin.trainer.ppo.checkpoint import load_critic
from trl_maxmin.trainer.ppo.policy_adapters import CRITIC_ADAPTER
from trl_maxmin.trainer.ppo.ppo_config import PPOConfig
from trl_maxmin.trainer.ppo.ppo_trainer import PPOTrainer


# ---------------------------------------------------------------------------------------------------- by hand
class TestOneStepByHand:
    """A rollout of four given replies, in numpy: rewards, GAE on three channels, whitening, both losses."""

    gamma, lam, kl_coef, vf_coef = 0.9, 0.8, 0.1, 0.5
    reward_weights = [0.75, 0.25]

    @pytest.fixture
    def trainer(self, make):
        return make(
            GivenReplies,
            reward_model=[sevens, brevity],
            reward_weights=self.reward_weights,
            ref_model=gpt2(seed=9),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_ppo_epochs=1,
            gamma=self.gamma,
            lam=self.lam,
            kl_coef=self.kl_coef,
            vf_coef=self.vf_coef,
            cliprange=0.1,
            cliprange_value=0.05,
            missing_eos_penalty=0.5,
        )

    def passes(self, model, trainer):
        """Per reply: log-probabilities and values, from plain unpadded calls of the model."""
        head = trainer._root.value_head
        result = []
        for row, (reply, _) in zip(self.rows, GivenReplies.replies, strict=True):
            prompt = trainer._tokenizer(row["prompt"])["input_ids"]
            with torch.no_grad():
                output = model(torch.tensor([prompt + reply]), output_hidden_states=True)
            log_all = output.logits[0, len(prompt) - 1 : -1].double().log_softmax(-1).numpy()
            hidden = output.hidden_states[-1][0, len(prompt) - 1 : -1].double().numpy()
            values = hidden @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
            result.append((log_all[np.arange(len(reply)), reply], values))
        return result

    rows = [{"prompt": text} for text in PROMPTS[:4]]

    def advantages(self, old, reference):
        """Lists of per-reply arrays: combined advantages, and returns per channel."""
        channel_weights = np.array([*self.reward_weights, self.kl_coef])
        combined, returns = [], []
        for (logprobs, values), (ref_logprobs, _), (reply, finished) in zip(
            old, reference, GivenReplies.replies, strict=True
        ):
            penalty = 0.0 if finished else 0.5
            rewards = np.zeros((len(reply), 3))
            rewards[-1, 0] = reply.count(7) / len(reply) - penalty
            rewards[-1, 1] = -len(reply) / 8 - penalty
            rewards[:, 2] = -(logprobs - ref_logprobs)
            advantage = np.zeros_like(rewards)
            for t in reversed(range(len(reply))):
                last = t == len(reply) - 1
                delta = rewards[t] + (0 if last else self.gamma * values[t + 1]) - values[t]
                advantage[t] = delta + (0 if last else self.gamma * self.lam * advantage[t + 1])
            combined.append(advantage @ channel_weights)
            returns.append(advantage + values)
        return combined, returns

    def test_against_numpy(self, trainer):
        rollout = trainer._rollout(self.rows)
        trainer._score(rollout)
        trainer._advantages(rollout, *trainer._aggregate(rollout))
        old = self.passes(trainer._root.policy, trainer)
        combined, returns = self.advantages(old, self.passes(trainer.reference.policy, trainer))
        flat = np.concatenate(combined)
        whitened = (flat - flat.mean()) / flat.std(ddof=1)
        mask = rollout.completion_mask
        np.testing.assert_allclose(rollout.advantages[mask].numpy(), whitened, atol=1e-4)
        np.testing.assert_allclose(rollout.returns[mask].numpy(), np.concatenate(returns), atol=1e-5)
        weighted = [
            np.concatenate(part) @ [*self.reward_weights, self.kl_coef] for part in (returns, [v for _, v in old])
        ]
        (foreseen,) = trainer._metrics["train"]["val/explained_variance"]
        assert foreseen == pytest.approx(explained_variance_score(*weighted), abs=1e-4)

        # Move the policy, so that ratios leave 1 and both clips are at work.
        generator = torch.Generator().manual_seed(0)
        for parameter in trainer._root.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        new = self.passes(trainer._root.policy, trainer)
        trainer._clock = (0.0, 0)
        trainer._root.zero_grad()
        loss = trainer._optimise(rollout)

        ratio = np.exp(np.concatenate([n[0] - o[0] for n, o in zip(new, old, strict=True)]))
        policy_loss = np.maximum(-whitened * ratio, -whitened * np.clip(ratio, 0.9, 1.1))
        values, old_values = (np.concatenate([p[1] for p in passes]) for passes in (new, old))
        target = np.concatenate(returns)
        held = np.clip(values, old_values - 0.05, old_values + 0.05)
        value_loss = 0.5 * np.maximum((values - target) ** 2, (held - target) ** 2).mean(1)
        assert loss.item() == pytest.approx(policy_loss.mean() + self.vf_coef * value_loss.mean(), rel=1e-4)
        clipped = -whitened * np.clip(ratio, 0.9, 1.1) > -whitened * ratio
        assert 0 < clipped.mean() < 1
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        assert metrics["policy/clipfrac_avg"] == pytest.approx(clipped.mean(), rel=1e-5)
        assert metrics["policy/approxkl_avg"] == pytest.approx((np.log(ratio) ** 2).mean() / 2, rel=1e-3)
        assert metrics["val/ratio"] == pytest.approx(ratio.mean(), rel=1e-4)

        # The gradient of the value head's bias, through the unclipped entries: (V - R) / channels, averaged over
        # tokens.
        free = (values - target) ** 2 >= (held - target) ** 2
        expected = self.vf_coef * ((values - target) * free).sum(0) / 3 / len(target)
        np.testing.assert_allclose(trainer._root.value_head.bias.grad.numpy(), expected, atol=1e-5)

    def test_metrics_of_the_rollout(self, trainer):
        trainer._clock = (0.0, 0)
        trainer.create_optimizer_and_scheduler(2)
        rollout = trainer._rollout(self.rows)
        trainer._score(rollout)
        trainer._advantages(rollout, *trainer._aggregate(rollout))
        trainer._log_rollout(rollout)
        old = self.passes(trainer._root.policy, trainer)
        reference = self.passes(trainer.reference.policy, trainer)
        kl = np.mean([(o[0] - r[0]).sum() for o, r in zip(old, reference, strict=True)])
        scores = [
            0.75 * (ids.count(7) / len(ids)) - 0.25 * len(ids) / 8 - (0 if finished else 0.5)
            for ids, finished in GivenReplies.replies
        ]
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        expected = {
            "objective/kl": kl,
            "objective/entropy": np.mean([-o[0].sum() for o in old]),
            "objective/scores": np.mean(scores),
            "objective/non_score_reward": -0.1 * kl,
            "objective/rlhf_reward": np.mean(scores) - 0.1 * kl,
            "val/num_eos_tokens": 2,
            "completions/mean_length": 3,
            "rewards/sevens/mean": np.mean([1 / 3, 1 / 3, 0, 0]),
            "rewards/brevity/mean": -12 / 32,
            "episode": 4,
        }
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------------------------------ the step
def test_learns_a_trivial_problem(make):
    trainer = make(
        per_device_train_batch_size=32, gradient_accumulation_steps=1, train_dataset=prompts(96), max_steps=25,
        num_ppo_epochs=4, kl_coef=0.01,
    )  # fmt: skip
    trainer.train()
    scores = history(trainer, "objective/scores")
    assert np.mean(scores[:3]) < 0.1
    assert np.mean(scores[-3:]) > 0.5
    assert history(trainer, "objective/kl")[0] == pytest.approx(0.0, abs=1e-5)


def test_accumulation_and_chunks_change_nothing(make):
    runs = []
    for settings in (
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "logits_chunk_size": 2},
        {"per_device_train_batch_size": 4, "gradient_checkpointing": True},
    ):
        trainer = make(num_mini_batches=2, optim="sgd", **settings)
        trainer.train()
        runs.append(weights(trainer))
    for other in runs[1:]:
        assert_same(runs[0], other, atol=1e-5, rtol=1e-4)


def test_target_kl_ends_the_passes_over_a_rollout(make):
    trainer = make(Recorded, num_ppo_epochs=5, target_kl=1e-4, max_steps=2)
    trainer.train()
    for step in range(2):
        kls = [means["policy/approxkl_avg"] for number, means in trainer.minibatches if number == step]
        assert 1 < len(kls) < 5
        assert kls[-1] > 1e-4 and max(kls[:-1]) <= 1e-4


def test_adaptive_kl_moves_towards_the_target(make):
    trainer = make(adaptive_kl=True, kl_target=100.0, kl_horizon=80.0, kl_coef=0.5, max_steps=3)
    trainer.train()
    assert history(trainer, "objective/kl_coef") == pytest.approx([0.5, 0.5 * 0.98, 0.5 * 0.98**2])


# ------------------------------------------------------------------------------------------------ rewards
def test_tokens_and_a_users_collator(make, word_tokenizer):
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7], [8]] * 4})
    runs = []
    for collator in (None, DataCollatorWithPadding(word_tokenizer)):
        trainer = make(train_dataset=rows, data_collator=collator)
        trainer.train()
        runs.append(weights(trainer))
    assert not differ(*runs)


def test_weights_are_read_after_the_rewards(make):
    class Switch(PPOTrainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            assert rewards.shape == (8, 2)
            assert [row["finished"] for row in inputs] == [ids[-1] == 2 for ids in completion_ids_list]
            self.reward_weights = torch.tensor([0.0, 1.0])
            return rewards

    runs = []
    for trainer_class, settings in ((Switch, {}), (PPOTrainer, {"reward_weights": [0.0, 1.0]})):
        trainer = make(trainer_class, reward_model=[sevens, brevity], **settings)
        trainer.train()
        runs.append(weights(trainer))
    assert not differ(*runs)


def test_scalar_and_vector_critic_start_with_the_same_advantages(make):
    """With values near zero and one reward, collapsing before or after GAE is the same."""
    found = []
    for critic in ("vector", "scalar"):
        trainer = make(GivenReplies, reward_model=[sevens, brevity], critic=critic, ref_model=gpt2(seed=4))
        torch.nn.init.zeros_(trainer._root.value_head.weight)
        rollout = trainer._rollout([{"prompt": text} for text in PROMPTS[:4]])
        trainer._score(rollout)
        trainer._advantages(rollout, *trainer._aggregate(rollout))
        assert rollout.values.shape[-1] == (3 if critic == "vector" else 1)
        found.append(rollout.advantages)
    torch.testing.assert_close(*found)


def test_whitened_rewards(make):
    """The weighted sum of the channels has variance 1 and the mean it had."""
    trainer = make(GivenReplies, reward_model=[sevens, brevity], whiten_rewards=True, ref_model=gpt2(seed=4))
    plain = make(GivenReplies, reward_model=[sevens, brevity], ref_model=gpt2(seed=4))
    sums = []
    for each in (trainer, plain):
        rollout = each._rollout([{"prompt": text} for text in PROMPTS[:4]])
        each._score(rollout)
        rewards, channel_weights = each._aggregate(rollout)
        sums.append((rewards @ channel_weights)[rollout.completion_mask].numpy())
    assert sums[0].var(ddof=1) == pytest.approx(1.0, rel=1e-4)
    np.testing.assert_allclose(sums[0] - sums[0].mean(), (sums[1] - sums[1].mean()) / sums[1].std(ddof=1), atol=1e-4)


def test_a_row_without_a_score_is_left_out(make):
    def sometimes(completion_ids, **kwargs):
        return [None if len(ids) == 1 else 1.0 for ids in completion_ids]

    trainer = make(GivenReplies, reward_model=[sometimes, sevens], reward_weights=[1.0, 0.0])
    with pytest.warns(UserWarning, match="2 of 8 replies have no score"):
        trainer.train()
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer).values())
    ignored = make(GivenReplies, reward_model=[sometimes, sevens], reward_weights=[0.0, 1.0])
    rollout = ignored._rollout([{"prompt": text} for text in PROMPTS[:4]])
    ignored._score(rollout)
    rewards, _ = ignored._aggregate(rollout)
    assert rollout.loss_mask.sum() == rollout.completion_mask.sum() and torch.isfinite(rewards).all()


# ------------------------------------------------------------------------------------------ length and sizes
def test_sizes_are_filled_in(make):
    args = make(num_mini_batches=2, max_steps=-1, total_episodes=20).args
    assert (args.world_size, args.local_batch_size, args.batch_size, args.micro_batch_size) == (1, 8, 8, 4)
    assert (args.mini_batch_size, args.local_mini_batch_size, args.num_total_batches, args.max_steps) == (4, 4, 3, 3)


def test_epochs_count_as_in_trl_1_12(make):
    """Two passes over 20 prompts are 40 replies: five rollouts of 8, though only two whole ones fit into a pass."""
    trainer = make(train_dataset=prompts(20), max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == trainer.args.num_total_batches == 5


def test_prompts_rotate_when_they_do_not_divide(make):
    seen = []

    def record(group, **kwargs):
        seen.append(group)
        return [0.0] * len(group)

    make(train_dataset=prompts(11), reward_model=record, max_steps=8).train()
    assert all(len(set(group)) == 8 for group in seen)
    assert len({name for group in seen for name in group}) == 11


# ------------------------------------------------------------------------------------------------ evaluation
def test_evaluation_of_given_replies(make):
    trainer = make(GivenReplies, reward_model=[sevens, brevity], reward_weights=[1.0, 2.0], missing_eos_penalty=0.1)
    metrics = trainer.evaluate(prompts(6))
    # Batches of 4 and 2, so replies 0 to 3 and again 0 and 1.
    lengths = [3, 6, 1, 2, 3, 6]
    assert metrics["eval_completions/mean_length"] == pytest.approx(np.mean(lengths))
    assert metrics["eval_rewards/sevens/mean"] == pytest.approx(4 * (1 / 3) / 6)
    assert metrics["eval_rewards/brevity/mean"] == pytest.approx(-np.mean(lengths) / 8)
    expected = 4 / 3 / 6 - 2 * np.mean(lengths) / 8 - 0.1 * 3 * 3 / 6
    assert metrics["eval_objective/scores"] == pytest.approx(expected)
    assert metrics["eval_objective/kl"] == pytest.approx(0.0, abs=1e-5)
    both = trainer.evaluate({"one": prompts(4), "two": prompts(5)})
    assert {"eval_one_objective/scores", "eval_two_objective/scores"} <= both.keys()


# --------------------------------------------------------------------------------------- saving and resuming
def test_save_and_load(make, tmp_path):
    model = gpt2()
    model.generation_config.update(eos_token_id=[2, 9], do_sample=True, top_k=7)
    before, use_cache = model.generation_config.to_dict(), model.config.use_cache
    trainer = make(model=model)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_same(dict(loaded.state_dict()), dict(trainer._root.policy.state_dict()))
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [2, 9] and saved["top_k"] == 7
    assert model.generation_config.to_dict() == before
    assert loaded.config.use_cache == use_cache
    assert (tmp_path / "saved" / "value_head.safetensors").is_file()
    assert (tmp_path / "saved" / "tokenizer_config.json").is_file()
    other = make(model=loaded)
    assert not torch.equal(other._root.value_head.weight, trainer._root.value_head.weight)
    load_critic(other._root, tmp_path / "saved")
    assert torch.equal(other._root.value_head.weight, trainer._root.value_head.weight)


def test_best_checkpoint_is_loaded(make):
    class Worse(PPOTrainer):
        def evaluation_loop(self, *args, **kwargs):
            output = super().evaluation_loop(*args, **kwargs)
            output.metrics["eval_objective/scores"] = -float(self.state.global_step)
            return output

    trainer = make(
        Worse, eval_dataset=prompts(4), eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="objective/scores", greater_is_better=True, max_steps=3,
    )  # fmt: skip
    trainer.train()
    first = AutoModelForCausalLM.from_pretrained(f"{trainer.args.output_dir}/checkpoint-1")
    assert_same(dict(first.state_dict()), dict(trainer._root.policy.state_dict()))


@pytest.mark.parametrize("kind", ["head", "value_model"])
def test_the_critic_may_stay_out_of_what_is_published(make, tmp_path, monkeypatch, kind):
    """Checkpoints have it in any case, or a run could not go on."""
    extra = {"value_model": critic_model(1)} if kind == "value_model" else {}
    name = {"head": "value_head.safetensors", "value_model": "value_model"}[kind]
    monkeypatch.setattr("trl_maxmin.trainer.common.hub_push.HubPushMixin._push_from_checkpoint", lambda *_: None)
    for save_critic in (True, False):
        run = tmp_path / f"run-{save_critic}"
        trainer = make(
            output_dir=run, save_critic=save_critic, save_strategy="steps", save_steps=1, max_steps=1, **extra
        )
        trainer.args.push_to_hub = True
        monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
        trainer.train()
        assert (run / "checkpoint-1" / name).exists()
        assert (run / name).exists() is save_critic, "what a push of a checkpoint copies to the run's folder"
        trainer.args.push_to_hub = False
        trainer.save_model(str(run / "saved"))
        assert (run / "saved" / name).exists() is save_critic


# ------------------------------------------------------------------------------------------------- adapters
def test_lora_policy(make, tmp_path):
    base = gpt2()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    trainer = make(model=base, peft_config=lora(), max_steps=3)
    assert trainer.reference is None
    trainer.train()
    assert history(trainer, "objective/kl")[0] == pytest.approx(0.0, abs=1e-5)
    assert abs(history(trainer, "objective/kl")[-1]) > 1e-4
    unwrapped = trainer._root.policy.get_base_model().state_dict()
    for name, tensor in before.items():
        twin = name if name in unwrapped else name.replace("c_attn.", "c_attn.base_layer.")
        assert torch.equal(tensor, unwrapped[twin])
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(gpt2(), tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, trainer._root.policy.eval()(ids).logits)


def test_a_critic_adapter_learns_at_every_rollout(make):
    trainer = make(peft_config=lora(), critic_adapter=True, max_steps=1)
    before = weights(trainer)
    trainer.train()
    moved = {name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])}
    for adapter in ("default", CRITIC_ADAPTER):
        assert any(f"lora_B.{adapter}." in name for name in moved), adapter
    assert all("lora_" in name or "value_head" in name for name in moved)


def test_model_by_name(make, tmp_path, word_tokenizer):
    gpt2().to(torch.bfloat16).save_pretrained(tmp_path / "policy")
    word_tokenizer.save_pretrained(tmp_path / "policy")
    trainer = make(model=str(tmp_path / "policy"), processing_class=None, max_steps=1)
    assert trainer._root.policy.dtype == torch.float32
    trainer.train()


def test_a_reader_of_maxmin_ppo_has_five_classes_of_ours_to_know():
    names = [kind.__name__ for kind in MaxMinPPOTrainer.__mro__ if kind.__module__.startswith("trl_maxmin.")]
    assert names == ["MaxMinPPOTrainer", "MaxMinMixin", "PPOTrainer", "AtomicCheckpointMixin", "HubPushMixin"]


def test_help_says_of_every_option_what_the_docstring_says(capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(PPOConfig).parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, option in PPOConfig.__dataclass_fields__.items():
        assert f"--{name}" in shown and option.metadata["help"], name
    assert "Length limit of a reply, in tokens. The limit is terminal" in shown
    assert "(in nats per token, 0.5 * E[d^2])" in shown and "moves by about 20 % while" in shown


# --------------------------------------------------------------------------------------------------- errors
class TestErrors:
    @pytest.mark.parametrize("name", ["model", "reward_model", "train_dataset"])
    def test_missing(self, make, name):
        with pytest.raises(ValueError, match=f"`{name}` is required"):
            make(**{name: None})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"stop_token": "eos", "stop_token_id": 0}, "not both"),
            ({"stop_token": "period"}, "stop_token='period' is unknown"),
            ({"kl_estimator": "k2"}, "kl_estimator='k2' is unknown"),
            ({"critic": "matrix"}, "critic='matrix' is unknown"),
            ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
            ({"response_length": 0}, "response_length"),
            ({"missing_eos_penalty": -1.0}, "missing_eos_penalty must not be negative"),
            ({"num_mini_batches": 3}, "batch_size=8.*num_mini_batches=3"),
            ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 entries, but there are 1"),
            ({"response_length": 30}, "Row 1 of the training set has a prompt of 4 tokens.*context of 32"),
        ],
    )
    def test_settings(self, make, settings, message):
        with pytest.raises(ValueError, match=message):
            make(**settings)

    def test_long_prompts_can_be_cut(self, make):
        make(response_length=30, max_prompt_length=2, max_steps=1).train()

    def test_no_prompts(self, make):
        with pytest.raises(ValueError, match="0 prompts"):
            make(train_dataset=Dataset.from_dict({"prompt": []}))

    def test_bad_evaluation_set(self, make):
        with pytest.raises(ValueError, match="Row 0 of the evaluation set 'b' has the columns"):
            make(eval_dataset={"a": prompts(2), "b": Dataset.from_dict({"text": ["x"]})})

    def test_reference_is_the_policy(self, make):
        model = gpt2()
        with pytest.raises(ValueError, match="itself"):
            make(model=model, ref_model=model)

    def test_two_adapters(self, make):
        with pytest.raises(ValueError, match="merge"):
            make(model=get_peft_model(gpt2(), lora()), peft_config=lora())

    def test_nothing_to_train(self, make):
        with pytest.raises(ValueError, match="No parameter of the policy is trainable"):
            make(model=gpt2().requires_grad_(False))

    def test_value_model_of_another_size(self, make):
        with pytest.raises(ValueError, match="4 labels, but the critic needs 2"):
            make(value_model=critic_model(4))

    def test_checkpoint_of_another_critic(self, make):
        trainer = make(max_steps=1, save_strategy="steps", save_steps=1)
        trainer.train()
        other = make(max_steps=2, value_model=critic_model(1))
        with pytest.raises(FileNotFoundError, match="value_model is missing"):
            other.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-1")
