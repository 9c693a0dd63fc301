# SPDX-License-Identifier: Apache-2.0
"""MaxMin-PPO end to end on a tiny policy: calibration, whom it serves, K = 1 as conventional RLHF, resuming."""

import logging
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel

from trl_maxmin.data.tokenization import encode_prompt
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.models.families import get_linear
from trl_maxmin.trainer import MaxMinPPOConfig, MaxMinPPOTrainer, PPOConfig, PPOTrainer
from trl_maxmin.trainer.scoring.reference_statistics import ReferenceStatistics


PROMPTS = ["the film", "a movie story is", "plot", "acting very good but", "review of the film", "bad ending"]


def gpt2(seed=0, size=36, **kwargs):
    torch.manual_seed(seed)
    settings = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32} | kwargs
    return GPT2LMHeadModel(GPT2Config(vocab_size=size, bos_token_id=1, eos_token_id=2, **settings))


def sevens(completion_ids, **kwargs):
    """Nearly nothing at the start, and soon full: the share of token 7, times 100 + 10 so that scales differ."""
    return [10 + 100 * sum(token == 7 for token in ids) / max(len(ids), 1) for ids in completion_ids]


def nines(completion_ids, **kwargs):
    return [sum(token == 9 for token in ids) / max(len(ids), 1) for ids in completion_ids]


@pytest.fixture
def make(tmp_path, word_tokenizer):
    def build(trainer_class=MaxMinPPOTrainer, **kwargs):
        settings = {
            "output_dir": str(tmp_path / "run"),
            "report_to": [],
            "disable_tqdm": True,
            "per_device_train_batch_size": 12,
            "gradient_accumulation_steps": 1,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "response_length": 6,
            "temperature": 1.0,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "num_ppo_epochs": 2,
        }
        config_class = MaxMinPPOConfig if issubclass(trainer_class, MaxMinPPOTrainer) else PPOConfig
        fields = config_class.__dataclass_fields__
        settings |= {name: value for name, value in kwargs.items() if name in fields}
        objects = {
            "processing_class": word_tokenizer,
            "reward_model": [sevens, nines],
            "train_dataset": Dataset.from_dict({"prompt": PROMPTS * 4}),
        }
        objects |= {name: value for name, value in kwargs.items() if name not in fields}
        if "model" not in objects:
            objects["model"] = gpt2()
        return trainer_class(args=config_class(**settings), **objects)

    return build


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer._root.state_dict().items()}


class TestCalibration:
    def test_the_reference_policy_has_utility_zero_and_spread_one(self, make):
        trainer = make(num_reference_completions=64, learning_rate=0.0, max_steps=12, per_device_train_batch_size=24)
        trainer.train()
        for name in ("sevens", "nines"):
            values = torch.tensor(history(trainer, f"maxmin/utility/{name}"))
            # 12 x 24 replies of the reference itself: unit variance, within three standard errors
            assert values.mean().abs() < 3 / (12 * 24) ** 0.5

    def test_scales_are_measured_on_the_reference_replies(self, make):
        trainer = make(num_reference_completions=16)
        trainer.calibrate()
        statistics = trainer.reference_statistics
        assert statistics.component_names == ["sevens", "nines"]
        assert statistics.rewards.shape == (6, 16, 2)
        # by hand from the kept replies
        replies = [ids for prompt in statistics.completions for ids in prompt]
        by_hand = torch.tensor(sevens(replies)).view(6, 16)
        finished = torch.tensor([ids[-1] == 2 for ids in replies]).view(6, 16)
        expected = by_hand if finished.float().mean() <= 0.5 else torch.where(finished, by_hand, torch.nan)
        torch.testing.assert_close(statistics.rewards[..., 0], expected, equal_nan=True)

    def test_happens_once_and_only_for_utilities_that_need_it(self, make):
        trainer = make()
        trainer.calibrate()
        first = trainer.reference_statistics
        trainer.calibrate()
        assert trainer.reference_statistics is first
        raw = make(utility="raw")
        raw.calibrate()
        assert raw.reference_statistics is None

    def test_regret_is_measured_against_the_favourites_among_the_reference_replies(self, make):
        trainer = make(welfare="regret")
        trainer.train()
        rewards, scale = trainer.reference_statistics.rewards, trainer.reference_statistics.scale
        favourite = torch.where(rewards.isnan(), -torch.inf, rewards).amax(dim=1)
        by_hand = ((favourite - rewards.nanmean(dim=1)) / scale).mean(dim=0)
        torch.testing.assert_close(trainer.welfare.best, by_hand.double())
        assert (trainer.welfare.best > 0).all()
        last = trainer.state.log_history[-2]
        utilities = torch.tensor([last[f"maxmin/utility/{name}"] for name in trainer.component_names])
        assert trainer.reward_weights[(by_hand - utilities).argmax()] == 1

    def test_truncated_replies_do_not_set_the_scale_where_most_finish(self, make):
        def level(completion_ids, **kwargs):
            return [1e6 if ids[-1] != 2 else float(len(ids)) for ids in completion_ids]

        class MostlyFinished(MaxMinPPOTrainer):
            def _sample_reference(self, rows):
                rollout = super()._sample_reference(rows)
                for i in range(len(rows)):
                    rollout.completion_ids[i] = [7] * (i % 3 + 1) + ([2] if i % 8 else [])
                rollout.finished[:] = torch.tensor([i % 8 != 0 for i in range(len(rows))])
                return rollout

        trainer = make(MostlyFinished, reward_model=[level, nines])
        trainer.calibrate()
        assert trainer.reference_statistics.scale[0] < 2

    def test_given_statistics_are_used_and_a_mismatch_is_said(self, make):
        first = make()
        first.calibrate()
        again = make(reference_statistics=first.reference_statistics)
        again.calibrate()
        assert again.reference_statistics is first.reference_statistics
        with pytest.warns(UserWarning, match="another reference policy"):
            make(model=gpt2(seed=5), reference_statistics=first.reference_statistics).calibrate()
        with pytest.raises(ValueError, match="sevens"):
            make(reward_model=[nines, sevens], reference_statistics=first.reference_statistics).calibrate()

    def test_few_reference_replies_are_warned_about(self, make, caplog):
        """The same prompt again and again is one prompt."""
        rows = Dataset.from_dict({"prompt": ["the film is"] * 64})
        with caplog.at_level(logging.WARNING):
            make(num_reference_completions=25, train_dataset=rows).calibrate()
        assert "25 reference replies in all (1 distinct prompts)" in caplog.text
        assert "by 0.20 standard deviations" in caplog.text and "num_reference_completions to 100" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            make(num_reference_completions=100, train_dataset=rows).calibrate()
        assert "reference replies in all" not in caplog.text

    def test_max_calibration_prompts_limits_the_work(self, make):
        trainer = make(max_calibration_prompts=2)
        trainer.calibrate()
        assert len(trainer.reference_statistics.prompt_keys) == 2
        with pytest.warns(UserWarning, match="max_calibration_prompts"):
            trainer.train()


class TestWinRate:
    def test_evaluation_prompts_are_calibrated_too(self, make):
        trainer = make(utility="win_rate", eval_dataset=Dataset.from_dict({"prompt": ["story was", "great plot"]}))
        trainer.train()
        metrics = trainer.evaluate()
        assert 0 <= metrics["eval_maxmin/utility/nines"] <= 1
        assert len(trainer.reference_statistics.prompt_keys) == len(PROMPTS) + 2

    def test_prompts_beyond_the_limit_are_refused_before_training(self, make):
        with pytest.raises(ValueError, match="max_calibration_prompts=2"):
            make(utility="win_rate", max_calibration_prompts=2).train()


class TestWhomItServes:
    def test_the_worst_group_is_lifted(self, make):
        """Two rewards that compete for the same tokens, one on a hundred times the scale: both are served."""
        trainer = make(max_steps=30, learning_rate=2e-2, kl_coef=0.0, num_reference_completions=16)
        trainer.train()
        first, last = history(trainer, "maxmin/worst_utility")[0], history(trainer, "maxmin/worst_utility")[-5:]
        assert min(last) > first + 0.7
        assert {0.0, 1.0} == set(history(trainer, "maxmin/weight/nines")), "the worst group changes"

    def test_raw_rewards_serve_only_the_small_scale(self, make):
        """Why utilities are standardised: the minimum of raw rewards is always the reward with the lower level."""
        trainer = make(max_steps=3, utility="raw")
        trainer.train()
        assert set(history(trainer, "maxmin/weight/nines")) == {1.0}

    def test_logs_name_every_component(self, make):
        trainer = make(max_steps=1, num_reference_completions=16)
        trainer.train()
        entry = trainer.state.log_history[0]
        for name in ("sevens", "nines"):
            assert {f"rewards/{name}/mean", f"maxmin/utility/{name}", f"maxmin/weight/{name}"} <= entry.keys()
        assert entry["rewards/sevens/mean"] >= 10, "raw rewards are logged, not utilities"
        assert entry["maxmin/gap"] >= 0

    def test_a_rule_of_ones_own(self, make):
        trainer = make(welfare_function=lambda utilities: torch.tensor([0.25, 0.75]))
        trainer.train()
        assert trainer.reward_weights.tolist() == [0.25, 0.75]


def test_one_component_is_conventional_rlhf_exactly(make):
    """K = 1 with raw rewards: the same weights as PPOTrainer, to the last bit."""
    maxmin, plain = make(reward_model=sevens), make(PPOTrainer, reward_model=sevens)
    assert maxmin.utility == "raw"
    maxmin.train()
    plain.train()
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(maxmin)[name]), name


def test_evaluation_leaves_the_weights_alone(make):
    trainer = make(eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:5]}))
    trainer.train()
    before = trainer.reward_weights.clone(), trainer.welfare_state.state_dict()
    metrics = trainer.evaluate()
    assert {"eval_rewards/sevens/mean", "eval_objective/kl"} <= metrics.keys()
    assert torch.equal(trainer.reward_weights, before[0]) and trainer.welfare_state.state_dict() == before[1]


@pytest.mark.parametrize("worst", [[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
def test_the_best_checkpoint_is_the_best_for_the_worst_group(make, worst):
    """Chosen by the smallest group utility on the evaluation prompts, though the score would choose another."""

    class Planned(MaxMinPPOTrainer):
        def _log_welfare(self, mode, rewards, utilities, optimised):
            if mode == "eval":
                value = worst[self.state.global_step - 1]
                utilities = torch.tensor([[value, 10.0 * self.state.global_step]])
            super()._log_welfare(mode, rewards, utilities, optimised)

    trainer = make(
        Planned, eval_dataset=Dataset.from_dict({"prompt": PROMPTS}), eval_strategy="steps", eval_steps=1, max_steps=3,
        save_strategy="steps", save_steps=1, metric_for_best_model="eval_maxmin/worst_utility", greater_is_better=True,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    best = 1 + worst.index(max(worst))
    assert trainer.state.best_metric == 3.0
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    chosen = GPT2LMHeadModel.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    for name, tensor in trainer.policy_model.state_dict().items():
        assert torch.equal(tensor, chosen[name]), name


def test_every_evaluation_set_has_its_own_group_utilities(make):
    sets = {"short": Dataset.from_dict({"prompt": ["plot"]}), "long": Dataset.from_dict({"prompt": PROMPTS})}
    trainer = make(eval_dataset=sets)
    trainer.train()
    metrics = trainer.evaluate()
    for name in sets:
        utilities = [metrics[f"eval_{name}_maxmin/utility/{component}"] for component in ("sevens", "nines")]
        assert metrics[f"eval_{name}_maxmin/worst_utility"] == min(utilities)
        assert metrics[f"eval_{name}_maxmin/gap"] == pytest.approx(max(utilities) - min(utilities))
    assert metrics["eval_short_maxmin/utility/nines"] != metrics["eval_long_maxmin/utility/nines"]


def test_c19_resumed_run_is_the_uninterrupted_one_group_weights_included(make, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "welfare": "mirror"}
    whole = make(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert ReferenceStatistics.load(checkpoint / "calibration").component_names == ["sevens", "nines"]
    assert (checkpoint / "welfare_state.json").is_file()
    shutil.copytree(checkpoint, tmp_path / "cut" / "checkpoint-2")
    resumed = make(output_dir=str(tmp_path / "cut"), **settings)
    resumed.train(resume_from_checkpoint=True)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(tensor, weights(resumed)[name])
    assert resumed.welfare_state.state_dict() == whole.welfare_state.state_dict()


class TestMixture:
    @staticmethod
    def mixture(tokenizer):
        torch.manual_seed(0)
        mixture = MixtureRewardModel.from_base(gpt2(size=len(tokenizer)), 2, processing_class=tokenizer)
        with torch.no_grad():
            get_linear(mixture.components[0]).weight.mul_(50)
        return mixture

    def test_ppo_and_text_give_the_same_reply_the_same_score(self, make, word_tokenizer):
        mixture = self.mixture(word_tokenizer)
        trainer = make(reward_model=mixture, utility="raw", response_length=10)
        rows = [{"prompt": prompt} for prompt in PROMPTS * 2]
        rollout = trainer._sample(rows, "test")
        assert rollout.finished.any(), "a test without a finished reply tests half"
        by_ids = trainer._calculate_rewards(
            rollout.inputs, rollout.prompts, rollout.completions, rollout.completion_ids
        )
        # A text cannot say that a special token was sampled; those replies are left to the ids.
        special = set(word_tokenizer.all_special_ids) - {word_tokenizer.eos_token_id}
        plain = [i for i, ids in enumerate(rollout.completion_ids) if not special & set(ids)]
        assert len(plain) >= 4
        by_text = mixture.score(
            [rollout.prompts[i] for i in plain],
            [rollout.completions[i] for i in plain],
            finished=[bool(rollout.finished[i]) for i in plain],
        )
        torch.testing.assert_close(by_ids[plain], by_text, atol=1e-5, rtol=1e-4)
        assert encode_prompt(word_tokenizer, rollout.prompts[0]) == rollout.prompt_ids[0]

    def test_pad_equal_to_eos_changes_nothing(self, make, word_tokenizer):
        def scores(tokenizer):
            trainer = make(reward_model=self.mixture(word_tokenizer), utility="raw", processing_class=tokenizer)
            rollout = trainer._sample([{"prompt": prompt} for prompt in PROMPTS], "test")
            return trainer._calculate_rewards(
                rollout.inputs, rollout.prompts, rollout.completions, rollout.completion_ids
            )

        import copy

        same = copy.deepcopy(word_tokenizer)
        same.pad_token = same.eos_token
        torch.testing.assert_close(scores(word_tokenizer), scores(same))

    def test_trains_on_a_mixture_and_knows_its_shares(self, make, word_tokenizer):
        mixture = self.mixture(word_tokenizer)
        mixture.config.mixing_weights = [0.8, 0.2]
        trainer = make(reward_model=mixture, welfare="mixing")
        trainer.train()
        torch.testing.assert_close(trainer.reward_weights, torch.tensor([0.8, 0.2]))

    def test_the_mixture_itself_is_not_trained(self, make, word_tokenizer):
        mixture = self.mixture(word_tokenizer)
        before = [p.clone() for p in mixture.parameters()]
        make(reward_model=mixture).train()
        assert all(torch.equal(a, b) for a, b in zip(before, mixture.parameters(), strict=True))


class Reached(Exception):
    pass


@pytest.mark.parametrize("call", ["evaluate", "generate_completions", "train"])
def test_the_policy_is_where_its_inputs_are_before_training(make, monkeypatch, call):
    """`Trainer` leaves it on the CPU for `bf16_full_eval`, as it does for DeepSpeed and FSDP."""
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], r=2, fan_in_fan_out=True)
    trainer = make(
        bf16_full_eval=True, use_cpu=True, peft_config=lora, eval_dataset=Dataset.from_dict({"prompt": PROMPTS})
    )
    assert not trainer.place_model_on_device
    devices = set()

    def sample_from(model, rows, *stream):
        devices.update(parameter.device.type for parameter in model.parameters())
        raise Reached

    monkeypatch.setattr(trainer, "_sample_from", sample_from)
    monkeypatch.setattr("accelerate.Accelerator.device", torch.device("meta"))
    with pytest.raises(Reached):
        getattr(trainer, call)()
    assert devices == {"meta"}


class TestErrors:
    def test_unknown_welfare(self, make):
        with pytest.raises(ValueError, match="'minmax'.*maxmin"):
            make(welfare="minmax")

    def test_unknown_utility(self, make):
        with pytest.raises(ValueError, match="'percentile'.*zscore"):
            make(utility="percentile")

    def test_mixing_without_shares(self, make):
        with pytest.raises(ValueError, match="mixing weights"):
            make(welfare="mixing")

    def test_floor_above_one_kth(self, make):
        with pytest.raises(ValueError, match=r"0\.6.*at most 0\.5"):
            make(welfare_floor=0.6)

    def test_prompt_longer_than_the_context(self, make):
        data = Dataset.from_dict({"prompt": PROMPTS * 4 + [" ".join(["film"] * 40)]})
        with pytest.raises(ValueError, match="Row 24.*40 tokens.*32 tokens"):
            make(train_dataset=data)

    def test_tokenizer_without_a_pad_token_needs_none(self, make, word_tokenizer_without_pad, caplog):
        with caplog.at_level(logging.ERROR):
            make(processing_class=word_tokenizer_without_pad).train()
