# SPDX-License-Identifier: Apache-2.0
"""MaxMin on TRL's GRPO and RLOO: reference replies, whoever makes them, with adapters too."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.trainer.ppo_helpers import PROMPTS, sevens
from tests.trainer.trl_helpers import (
    build_trl_trainer,
    history,
    nines,
    save_base,
)
from trl_maxmin import MaxMinGRPOTrainer


class TestCalibration:
    def test_the_reference_has_utility_zero_and_spread_one(self, trl_make):
        trainer = trl_make(
            num_reference_completions=64, learning_rate=0.0, max_steps=12, per_device_train_batch_size=24
        )
        trainer.train()
        for name in ("sevens", "nines"):
            values = torch.tensor(history(trainer, f"maxmin/utility/{name}"))
            assert values.mean().abs() < 3 / (12 * 24) ** 0.5

    def test_statistics_are_those_of_the_kept_replies(self, trl_make):
        trainer = trl_make(num_reference_completions=16)
        trainer.calibrate()
        statistics = trainer.reference_statistics
        assert statistics.rewards.shape == (len(PROMPTS), 16, 2)
        replies = [ids for prompt in statistics.completions for ids in prompt]
        finished = torch.tensor([ids[-1] == 2 for ids in replies]).view(6, 16)
        by_hand = torch.tensor(sevens(replies)).view(6, 16)
        expected = by_hand if finished.float().mean() <= 0.5 else torch.where(finished, by_hand, torch.nan)
        torch.testing.assert_close(statistics.rewards[..., 0], expected, equal_nan=True)

    def test_replies_are_the_references_also_after_training(self, trl_make):
        """Refreshed after the policy has moved: the very same replies, from the reference model."""
        trainer = trl_make(max_steps=4, learning_rate=5e-2)
        trainer.train()
        first = trainer.reference_statistics
        trainer.calibrate()
        assert trainer.reference_statistics is first, "once only"
        trainer.calibrate(refresh=True)
        assert trainer.reference_statistics is not first
        assert trainer.reference_statistics.completions == first.completions
        assert torch.equal(trainer.reference_statistics.rewards, first.rewards)

    def test_without_a_reference_model_it_must_happen_at_the_start(self, trl_make):
        trainer = trl_make(beta=0.0, max_steps=1)
        trainer.train()
        with pytest.raises(ValueError, match="at step 1 for a policy without a reference model"):
            trainer.calibrate(refresh=True)

    def test_happens_once_and_only_where_it_is_needed(self, trl_make):
        raw = trl_make(utility="raw", max_steps=1)
        raw.train()
        assert raw.reference_statistics is None
        given = trl_make(max_steps=1)
        given.train()
        again = trl_make(max_steps=1, reference_statistics=given.reference_statistics)
        again.train()
        assert again.reference_statistics is given.reference_statistics

    def test_another_reference_is_said(self, trl_make, tmp_path, word_tokenizer):
        first = trl_make(max_steps=1)
        first.calibrate()
        other = AutoModelForCausalLM.from_pretrained(save_base(tmp_path / "other", word_tokenizer, seed=5))
        with pytest.warns(UserWarning, match="another reference policy"):
            trl_make(model=other, reference_statistics=first.reference_statistics).calibrate()

    def test_it_leaves_the_random_state_and_the_metrics_alone(self, trl_make):
        def log(completion_ids, log_metric, **kwargs):
            log_metric("seen", float(len(completion_ids)))
            return sevens(completion_ids)

        trainer = trl_make(reward_funcs=[log, nines], max_steps=1)
        state = torch.get_rng_state()
        trainer.calibrate()
        assert torch.equal(torch.get_rng_state(), state)
        trainer.train()
        assert history(trainer, "seen") == [8.0]

    def test_win_rate_covers_evaluation_prompts_and_is_in_its_range(self, trl_make):
        trainer = trl_make(utility="win_rate", eval_dataset=Dataset.from_dict({"prompt": ["story was", "great plot"]}))
        trainer.train()
        assert 0 <= trainer.evaluate()["eval_maxmin/utility/nines"] <= 1
        assert len(trainer.reference_statistics.prompt_keys) == len(PROMPTS) + 2
        with pytest.raises(ValueError, match="max_calibration_prompts=2"):
            trl_make(utility="win_rate", max_calibration_prompts=2).train()

    def test_replies_made_by_the_host(self, trl_base, word_tokenizer, tmp_path):
        """A rollout function (as tools and environments do) makes the reference replies too."""
        calls = []

        def rollout(prompts, trainer):
            calls.append(len(prompts))
            ids = [[7, 2] if i % 2 else [9, 8, 2] for i in range(len(prompts))]
            logprobs = [[0.0] * len(reply) for reply in ids]
            return {"prompt_ids": [[5]] * len(prompts), "completion_ids": ids, "logprobs": logprobs}

        trainer = build_trl_trainer(
            MaxMinGRPOTrainer, trl_base, word_tokenizer, tmp_path / "run", rollout_func=rollout, max_steps=1,
            num_reference_completions=5,
        )  # fmt: skip
        trainer.train()
        statistics = trainer.reference_statistics
        # 30 reference replies, filled up to whole groups of 4, and the 8 of the step.
        assert sum(calls) == 32 + 8 and statistics.rewards.shape == (6, 5, 2)
        assert {tuple(ids) for prompt in statistics.completions for ids in prompt} == {(7, 2), (9, 8, 2)}
        torch.testing.assert_close(statistics.rewards[0, :2], torch.tensor([[0.0, 1 / 3], [0.5, 0.0]]))
        assert trainer._recorded is None and len(trainer._logs["prompt"]) == 8


class TestAdapters:
    CONFIG = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], r=2, fan_in_fan_out=True)

    def test_a_new_adapter(self, trl_make):
        trainer = trl_make(peft_config=self.CONFIG, max_steps=4)
        trainer.train()
        first = trainer.reference_statistics
        trainer.calibrate(refresh=True)
        assert trainer.reference_statistics.completions == first.completions, "the base model is the reference"
        assert len(history(trainer, "maxmin/worst_utility")) == 4

    def test_an_adapter_that_was_trained_before_is_its_own_reference(self, trl_make, trl_base):
        torch.manual_seed(0)
        policy = get_peft_model(AutoModelForCausalLM.from_pretrained(trl_base), self.CONFIG)
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        trainer = trl_make(model=policy, max_steps=4, learning_rate=1e-1)
        trainer.train()
        first = trainer.reference_statistics
        trainer.calibrate(refresh=True)
        assert trainer.reference_statistics.completions == first.completions
        base_only = trl_make(peft_config=self.CONFIG)
        base_only.calibrate()
        assert base_only.reference_statistics.completions != first.completions
        assert any("default" in name and p.requires_grad for name, p in policy.named_parameters())
