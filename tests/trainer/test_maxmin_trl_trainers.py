# SPDX-License-Identifier: Apache-2.0
"""MaxMin on TRL's GRPO and RLOO: the seam, calibration, what is scored, what is refused."""

import copy
import math
import shutil
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2ForSequenceClassification
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import PROMPTS, brevity, gpt2, sevens
from tests.trainer.trl_helpers import (
    CONFIG_OF,
    build_trl_trainer,
    history,
    mixture_of,
    nines,
    policy_weights,
    save_base,
)
from trl_maxmin import MaxMinGRPOConfig, MaxMinGRPOTrainer, MaxMinPPOTrainer, MaxMinRLOOConfig, MaxMinRLOOTrainer
from trl_maxmin.trainer.calibration import ReferenceStatistics


NAN = float("nan")


@dataclass
class GRPOOnCPU(MaxMinGRPOConfig):
    use_cpu: bool = True


@dataclass
class RLOOOnCPU(MaxMinRLOOConfig):
    use_cpu: bool = True


OnCPU = {MaxMinGRPOConfig: GRPOOnCPU, MaxMinRLOOConfig: RLOOOnCPU}
CHAT = "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant : {% endif %}"


@pytest.fixture(params=[MaxMinGRPOTrainer, MaxMinRLOOTrainer], ids=["grpo", "rloo"])
def trainer_class(request):
    return request.param


@pytest.fixture
def base(tmp_path, word_tokenizer):
    return save_base(tmp_path / "base", word_tokenizer)


@pytest.fixture
def make(tmp_path, base, word_tokenizer, trainer_class):
    def build(cls=None, processing_class=word_tokenizer, output_dir=None, **kwargs):
        return build_trl_trainer(
            cls or trainer_class, base, processing_class, output_dir or tmp_path / "run", **kwargs
        )

    return build


class TestSeam:
    """What TRL really does with what the seam returns; these fail if it stops doing so."""

    pytestmark = pytest.mark.seam

    def test_the_gathered_matrix_comes_back_and_the_weights_are_read_afterwards(self, make, trainer_class):
        """Weights that are set inside the seam decide the advantages of the same rollout."""
        advantages = {}

        class Spy(trainer_class):
            column = 0

            def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
                rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
                assert rewards.shape == (len(prompts), 2), "one process: the gathered matrix has this rank's rows"
                planted = torch.zeros_like(rewards)
                planted[::2, 0], planted[1::2, 1] = 1.0, 1.0
                self.reward_weights = torch.eye(2)[self.column]
                return planted

            def _generate_and_score_completions(self, inputs):
                output = super()._generate_and_score_completions(inputs)
                advantages[self.column] = output["advantages"].sign().tolist()
                return output

        for column in (0, 1):
            trainer = make(Spy, max_steps=1, utility="raw", beta=0.0)
            trainer.column = column
            trainer.train()
        assert advantages[0] == [1.0, -1.0] * 4, "TRL no longer reads `reward_weights` after `_calculate_rewards`"
        assert advantages[1] == [-1.0, 1.0] * 4

    def test_the_names_that_are_used_exist(self, make):
        trainer = make()
        for name in ("_metrics", "_logs", "_pending_metrics", "_pending_extra_logs", "ref_model", "_tokenizer"):
            assert hasattr(trainer, name), name
        assert len(trainer._tokenize_prompts(["the film", "plot"])[0]) == 2
        trainer.train()

    def test_rows_that_are_nan_as_a_whole_get_no_advantage(self, make, trainer_class):
        class Spy(trainer_class):
            def _raw_rewards(self, inputs, prompts, completions, completion_ids_list):
                rewards = torch.arange(len(prompts)).float().unsqueeze(1).repeat(1, 2)
                rewards[0] = torch.nan
                return rewards

            def _generate_and_score_completions(self, inputs):
                self.advantages = super()._generate_and_score_completions(inputs)["advantages"]
                raise StopIteration

        trainer = make(Spy, utility="raw", beta=0.0)
        with pytest.raises(StopIteration):
            trainer.train()
        assert trainer.advantages[0] == 0 and (trainer.advantages[1:4] != 0).any()


class TestWeights:
    def test_the_worst_group_decides_and_everything_is_logged(self, make):
        trainer = make(max_steps=3, reward_funcs={"seven": sevens, "nine": nines})
        trainer.train()
        for entry in trainer.state.log_history[:3]:
            utilities = [entry["maxmin/utility/seven"], entry["maxmin/utility/nine"]]
            weights = [entry["maxmin/weight/seven"], entry["maxmin/weight/nine"]]
            assert weights == [float(utilities[0] <= utilities[1]), float(utilities[0] > utilities[1])]
            assert entry["maxmin/worst_utility"] == min(utilities)
            assert entry["maxmin/gap"] == pytest.approx(max(utilities) - min(utilities))
            # What is optimised is the weighted utility; what is logged by component is its reward, in [0, 1] here.
            assert entry["reward"] == pytest.approx(min(utilities), abs=1e-5)
            assert 0 <= entry["rewards/seven/mean"] <= 1 and entry["rewards/seven/std"] >= 0

    @pytest.mark.parametrize("welfare", ["softmin", "mirror", "utilitarian", "nash", "sample_min"])
    def test_every_rule_trains(self, make, welfare):
        trainer = make(welfare=welfare, welfare_floor=0.1, welfare_window=3)
        trainer.train()
        weights = trainer.reward_weights
        assert weights.sum().item() == pytest.approx(1.0) and weights.min() >= 0.1 - 1e-6
        assert trainer.welfare_state.step == 2

    def test_mixing_uses_the_shares_of_the_mixture(self, make, word_tokenizer):
        mixture = mixture_of(word_tokenizer)
        mixture.config.mixing_weights = [0.8, 0.2]
        trainer = make(reward_funcs=mixture, welfare="mixing")
        trainer.train()
        torch.testing.assert_close(trainer.reward_weights, torch.tensor([0.8, 0.2]))
        with pytest.raises(ValueError, match="carry no mixing weights"):
            make(welfare="mixing")

    def test_sample_min_optimises_the_minimum_of_each_reply(self, make, trainer_class):
        class Spy(trainer_class):
            def _calculate_rewards(self, *args):
                self.matrix = super()._calculate_rewards(*args)
                return self.matrix

        trainer = make(Spy, welfare="sample_min", utility="raw", max_steps=1)
        trainer.train()
        assert torch.equal(trainer.matrix[:, 0], trainer.matrix[:, 1])
        assert trainer.reward_weights.tolist() == [0.5, 0.5]

    def test_a_rule_of_ones_own(self, make):
        trainer = make(welfare_function=lambda utilities: torch.tensor([0.25, 0.75]))
        trainer.train()
        assert trainer.reward_weights.tolist() == [0.25, 0.75]

    def test_one_component_is_the_hosts_run_exactly(self, make, trainer_class):
        host, config = (GRPOTrainer, GRPOConfig) if trainer_class is MaxMinGRPOTrainer else (RLOOTrainer, RLOOConfig)
        same = {"beta": 0.04} | ({"scale_rewards": "none"} if host is GRPOTrainer else {})
        maxmin = make(reward_funcs=brevity, **same)
        assert maxmin.utility == "raw"
        maxmin.train()
        plain = make(host, config_class=config, reward_funcs=brevity, **same)
        before = policy_weights(plain)
        plain.train()
        for name, weight in policy_weights(plain).items():
            assert torch.equal(weight, policy_weights(maxmin)[name]), name
        assert any(not torch.equal(weight, before[name]) for name, weight in policy_weights(plain).items())
        assert history(maxmin, "rewards/brevity/mean") == pytest.approx(history(plain, "rewards/brevity/mean"))
        assert history(maxmin, "rewards/brevity/std") == pytest.approx(history(plain, "rewards/brevity/std"), abs=1e-6)

    def test_it_lifts_the_worst_group(self, make):
        trainer = make(
            max_steps=25, learning_rate=2e-2, beta=0.0, num_generations=8, per_device_train_batch_size=24,
            num_reference_completions=16,
        )  # fmt: skip
        trainer.train()
        worst = history(trainer, "maxmin/worst_utility")
        assert min(worst[-5:]) > worst[0] + 0.7
        assert {0.0, 1.0} == set(history(trainer, "maxmin/weight/nines")), "the worst group changes"


class TestUnscored:
    def test_none_and_nan_rows(self, make):
        def some(completion_ids, **kwargs):
            return [None if i % 4 == 0 else (NAN if i % 4 == 1 else float(i)) for i in range(len(completion_ids))]

        trainer = make(reward_funcs=[some, sevens], utility="raw")
        trainer.train()
        # 2, 3, 6, 7 were scored.
        assert history(trainer, "maxmin/utility/some") == [4.5, 4.5]
        assert history(trainer, "rewards/some/mean") == [4.5, 4.5]
        assert all(math.isfinite(loss) for loss in history(trainer, "loss"))

    def test_a_row_that_the_weighted_component_missed_counts_for_nothing(self, make, trainer_class):
        def low_or_none(completion_ids, **kwargs):
            return [-1.0 - i if i % 2 else None for i in range(len(completion_ids))]

        class Spy(trainer_class):
            def _calculate_rewards(self, *args):
                self.matrix = super()._calculate_rewards(*args)
                return self.matrix

        trainer = make(Spy, reward_funcs=[low_or_none, sevens], utility="raw", max_steps=1)
        trainer.train()
        assert trainer.reward_weights.tolist() == [1.0, 0.0]
        assert trainer.matrix.isnan().tolist() == [[True, True], [False, False]] * 4

    def test_a_component_that_scores_nothing_gets_no_weight(self, make):
        def nothing(completion_ids, **kwargs):
            return [None] * len(completion_ids)

        trainer = make(reward_funcs=[nothing, sevens], utility="raw")
        trainer.train()
        assert trainer.reward_weights.tolist() == [0.0, 1.0]
        assert not history(trainer, "maxmin/utility/nothing")

    def test_a_constant_group_has_utility_zero_and_a_warning(self, make):
        def constant(completion_ids, **kwargs):
            return [3.0] * len(completion_ids)

        trainer = make(reward_funcs=[constant, sevens], max_steps=1)
        with pytest.warns(UserWarning, match=r"\['constant'\] give every reference reply"):
            trainer.train()
        assert history(trainer, "maxmin/utility/constant") == [0.0]
        assert history(trainer, "rewards/constant/mean") == [3.0]

    def test_nothing_scored_at_all_keeps_the_weights(self, make, caplog):
        def nothing(completion_ids, **kwargs):
            return [None] * len(completion_ids)

        trainer = make(reward_funcs={"a": nothing, "b": nothing}, utility="raw", max_steps=1)
        trainer.train()
        assert trainer.reward_weights.tolist() == [0.5, 0.5] and "No reward scored any reply" in caplog.text


class TestCalibration:
    def test_the_reference_has_utility_zero_and_spread_one(self, make):
        trainer = make(num_reference_completions=64, learning_rate=0.0, max_steps=12, per_device_train_batch_size=24)
        trainer.train()
        for name in ("sevens", "nines"):
            values = torch.tensor(history(trainer, f"maxmin/utility/{name}"))
            assert values.mean().abs() < 3 / (12 * 24) ** 0.5

    def test_statistics_are_those_of_the_kept_replies(self, make):
        trainer = make(num_reference_completions=16)
        trainer.calibrate()
        statistics = trainer.reference_statistics
        assert statistics.rewards.shape == (len(PROMPTS), 16, 2)
        replies = [ids for prompt in statistics.completions for ids in prompt]
        finished = torch.tensor([ids[-1] == 2 for ids in replies]).view(6, 16)
        by_hand = torch.tensor(sevens(replies)).view(6, 16)
        expected = by_hand if finished.float().mean() <= 0.5 else torch.where(finished, by_hand, torch.nan)
        torch.testing.assert_close(statistics.rewards[..., 0], expected, equal_nan=True)

    def test_replies_are_the_references_also_after_training(self, make):
        """Refreshed after the policy has moved: the very same replies, from the reference model."""
        trainer = make(max_steps=4, learning_rate=5e-2)
        trainer.train()
        first = trainer.reference_statistics
        trainer.calibrate()
        assert trainer.reference_statistics is first, "once only"
        trainer.calibrate(refresh=True)
        assert trainer.reference_statistics is not first
        assert trainer.reference_statistics.completions == first.completions
        assert torch.equal(trainer.reference_statistics.rewards, first.rewards)

    def test_without_a_reference_model_it_must_happen_at_the_start(self, make):
        trainer = make(beta=0.0, max_steps=1)
        trainer.train()
        with pytest.raises(ValueError, match="at step 1 for a policy without a reference model"):
            trainer.calibrate(refresh=True)

    def test_happens_once_and_only_where_it_is_needed(self, make):
        raw = make(utility="raw", max_steps=1)
        raw.train()
        assert raw.reference_statistics is None
        given = make(max_steps=1)
        given.train()
        again = make(max_steps=1, reference_statistics=given.reference_statistics)
        again.train()
        assert again.reference_statistics is given.reference_statistics

    def test_another_reference_is_said(self, make, tmp_path, word_tokenizer):
        first = make(max_steps=1)
        first.calibrate()
        other = AutoModelForCausalLM.from_pretrained(save_base(tmp_path / "other", word_tokenizer, seed=5))
        with pytest.warns(UserWarning, match="another reference policy"):
            make(model=other, reference_statistics=first.reference_statistics).calibrate()

    def test_it_leaves_the_random_state_and_the_metrics_alone(self, make):
        def log(completion_ids, log_metric, **kwargs):
            log_metric("seen", float(len(completion_ids)))
            return sevens(completion_ids)

        trainer = make(reward_funcs=[log, nines], max_steps=1)
        state = torch.get_rng_state()
        trainer.calibrate()
        assert torch.equal(torch.get_rng_state(), state)
        trainer.train()
        assert history(trainer, "seen") == [8.0]

    def test_win_rate_covers_evaluation_prompts_and_is_in_its_range(self, make):
        trainer = make(utility="win_rate", eval_dataset=Dataset.from_dict({"prompt": ["story was", "great plot"]}))
        trainer.train()
        assert 0 <= trainer.evaluate()["eval_maxmin/utility/nines"] <= 1
        assert len(trainer.reference_statistics.prompt_keys) == len(PROMPTS) + 2
        with pytest.raises(ValueError, match="max_calibration_prompts=2"):
            make(utility="win_rate", max_calibration_prompts=2).train()

    def test_replies_made_by_the_host(self, base, word_tokenizer, tmp_path):
        """A rollout function (as tools and environments do) makes the reference replies too."""
        calls = []

        def rollout(prompts, trainer):
            calls.append(len(prompts))
            ids = [[7, 2] if i % 2 else [9, 8, 2] for i in range(len(prompts))]
            logprobs = [[0.0] * len(reply) for reply in ids]
            return {"prompt_ids": [[5]] * len(prompts), "completion_ids": ids, "logprobs": logprobs}

        trainer = build_trl_trainer(
            MaxMinGRPOTrainer, base, word_tokenizer, tmp_path / "run", rollout_func=rollout, max_steps=1
        )
        trainer.train()
        statistics = trainer.reference_statistics
        assert sum(calls) == len(PROMPTS) * 8 + 8
        assert {tuple(ids) for prompt in statistics.completions for ids in prompt} == {(7, 2), (9, 8, 2)}
        torch.testing.assert_close(statistics.rewards[0, :2], torch.tensor([[0.0, 1 / 3], [0.5, 0.0]]))
        assert trainer._recorded is None and len(trainer._logs["prompt"]) == 8


class TestWhatIsScored:
    def test_the_components_of_a_mixture_share_one_forward(self, make, word_tokenizer):
        trainer = make(reward_funcs=mixture_of(word_tokenizer, 3), utility="raw")
        shared = trainer.reward_funcs[0].__closure__
        functions = next(cell.cell_contents for cell in shared if hasattr(cell.cell_contents, "num_forwards"))
        trainer.train()
        assert functions.num_forwards == 2, "one for each of two rollouts, though three components were asked"
        assert trainer.reward_func_names == ["component_0", "component_1", "component_2"]

    def test_the_score_is_that_of_the_mixture_and_of_ppo(self, make, word_tokenizer, trainer_class, tmp_path):
        mixture, seen = mixture_of(word_tokenizer), []

        class Spy(trainer_class):
            def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
                rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
                seen.append((prompts, completions, completion_ids_list, rewards))
                return rewards

        make(Spy, reward_funcs=mixture, utility="raw", max_completion_length=12, max_steps=4).train()
        special = set(word_tokenizer.all_special_ids) - {word_tokenizer.eos_token_id}
        kinds = set()
        for prompts, completions, ids_list, rewards in seen:
            # A text cannot say that a special token was sampled; those replies are left to the ids.
            rows = [i for i, ids in enumerate(ids_list) if not special & set(ids)]
            finished = [ids_list[i][-1] == word_tokenizer.eos_token_id for i in rows]
            kinds |= set(finished)
            by_text = mixture.score([prompts[i] for i in rows], [completions[i] for i in rows], finished=finished)
            torch.testing.assert_close(rewards[rows], by_text, atol=1e-5, rtol=1e-4)
        assert kinds == {True, False}

    def test_another_tokenizer(self, make, trainer_class):
        foreign = build_word_tokenizer(reverse=True)
        mixture, seen = mixture_of(foreign), []

        class Spy(trainer_class):
            def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
                rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
                finished = [ids[-1] == 2 for ids in completion_ids_list]
                seen.append((rewards, mixture.score(prompts, completions, finished=finished)))
                return rewards

        make(Spy, reward_funcs=mixture, utility="raw").train()
        for rewards, expected in seen:
            torch.testing.assert_close(rewards, expected)

    def test_plain_reward_models_are_groups_and_read_the_stop_token(self, make, word_tokenizer, trainer_class):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=40, n_layer=1, n_head=2, n_embd=16, n_positions=32, num_labels=1, pad_token_id=2
        )
        model, seen = GPT2ForSequenceClassification(config).eval(), []

        class Spy(trainer_class):
            def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
                rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
                for prompt, ids, reward in zip(prompts, completion_ids_list, rewards[:, 0], strict=True):
                    whole = torch.tensor([word_tokenizer(prompt)["input_ids"] + ids])
                    hidden = model.transformer(whole).last_hidden_state[:, -1]
                    seen.append((reward.item(), model.score(hidden).item()))
                return rewards

        make(Spy, reward_funcs=[(model, word_tokenizer), sevens], utility="raw").train()
        given, by_hand = zip(*seen, strict=True)
        assert given == pytest.approx(by_hand, abs=1e-5)
        trainer = make(reward_funcs=[model, sevens], reward_processing_classes=[word_tokenizer, None], utility="raw")
        assert trainer.reward_func_names == ["reward", "sevens"]

    def test_a_folder_is_loaded(self, make, word_tokenizer, tmp_path):
        mixture_of(word_tokenizer).save_pretrained(tmp_path / "mixture")
        trainer = make(reward_funcs=str(tmp_path / "mixture"), max_steps=1)
        trainer.train()
        assert trainer.component_names == ["component_0", "component_1"]

    def test_conversations(self, make, word_tokenizer):
        word_tokenizer.chat_template = CHAT
        mixture = mixture_of(word_tokenizer)
        rows = [[{"role": "user", "content": prompt}] for prompt in PROMPTS * 4]
        trainer = make(reward_funcs=mixture, train_dataset=Dataset.from_dict({"prompt": rows}))
        trainer.train()
        assert len(history(trainer, "maxmin/worst_utility")) == 2
        assert len(trainer.reference_statistics.prompt_keys) == len(PROMPTS)

    def test_asynchronous_functions_stay_the_hosts(self, make):
        async def slow(completion_ids, trainer_state, **kwargs):
            assert trainer_state is not None
            return sevens(completion_ids)

        trainer = make(reward_funcs=[slow, nines])
        trainer.train()
        assert len(history(trainer, "maxmin/utility/slow")) == 2

    def test_the_mixture_is_not_trained(self, make, word_tokenizer):
        mixture = mixture_of(word_tokenizer)
        before = copy.deepcopy(mixture.state_dict())
        make(reward_funcs=mixture).train()
        assert all(torch.equal(tensor, before[name]) for name, tensor in mixture.state_dict().items())


def test_evaluation_leaves_the_weights_alone(make):
    trainer = make(eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:4]}), welfare="mirror")
    first = trainer.evaluate()
    assert trainer.reward_weights.tolist() == [0.5, 0.5] and trainer.welfare_state.step == 0
    trainer.train()
    before = trainer.reward_weights.clone(), trainer.welfare_state.state_dict()
    metrics = trainer.evaluate()
    names = {f"eval_maxmin/{name}" for name in ("utility/nines", "weight/sevens", "worst_utility", "gap")}
    assert names | {"eval_rewards/sevens/mean"} <= metrics.keys() & first.keys()
    assert torch.equal(trainer.reward_weights, before[0]) and trainer.welfare_state.state_dict() == before[1]


def test_a_resumed_run_continues_the_weights(make, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "welfare": "mirror", "welfare_window": 3}
    whole = make(output_dir=tmp_path / "whole", **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert ReferenceStatistics.load(checkpoint / "calibration").component_names == ["sevens", "nines"]
    shutil.copytree(checkpoint, tmp_path / "cut" / "checkpoint-2")
    resumed = make(output_dir=tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.welfare_state.state_dict() == whole.welfare_state.state_dict()
    assert resumed.welfare_state.step == 4
    for name, weight in policy_weights(whole).items():
        torch.testing.assert_close(weight, policy_weights(resumed)[name])


class TestAdapters:
    CONFIG = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], r=2, fan_in_fan_out=True)

    def test_a_new_adapter(self, make):
        trainer = make(peft_config=self.CONFIG, max_steps=4)
        trainer.train()
        first = trainer.reference_statistics
        trainer.calibrate(refresh=True)
        assert trainer.reference_statistics.completions == first.completions, "the base model is the reference"
        assert len(history(trainer, "maxmin/worst_utility")) == 4

    def test_an_adapter_that_was_trained_before_is_its_own_reference(self, make, base):
        torch.manual_seed(0)
        policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base), self.CONFIG)
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        trainer = make(model=policy, max_steps=4, learning_rate=1e-1)
        trainer.train()
        first = trainer.reference_statistics
        trainer.calibrate(refresh=True)
        assert trainer.reference_statistics.completions == first.completions
        base_only = make(peft_config=self.CONFIG)
        base_only.calibrate()
        assert base_only.reference_statistics.completions != first.completions
        assert any("default" in name and p.requires_grad for name, p in policy.named_parameters())


class TestOscillation:
    @staticmethod
    def planted(trainer_class, rows):
        class Planted(trainer_class):
            def _raw_rewards(self, inputs, prompts, completions, completion_ids_list):
                low, high = rows(self.welfare_state.step)
                noise = torch.linspace(-0.1, 0.1, len(prompts))
                return torch.stack([low + noise, high - noise], dim=1)

        return Planted

    SETTINGS = {"utility": "raw", "max_steps": 12, "oscillation_window": 8, "learning_rate": 1e-5}

    def test_it_is_said_once_with_the_remedy(self, make, trainer_class, caplog):
        planted = self.planted(trainer_class, lambda step: (float(step % 2), float(1 - step % 2)))
        trainer = make(planted, max_steps=20, **{k: v for k, v in self.SETTINGS.items() if k != "max_steps"})
        trainer.train()
        said = [record for record in caplog.records if "oscillates" in record.getMessage()]
        assert len(said) == 1 and "welfare='mirror'" in said[0].getMessage()
        assert "'sevens' and 'nines'" in said[0].getMessage()

    def test_stop(self, make, trainer_class, caplog):
        planted = self.planted(trainer_class, lambda step: (float(step % 2), float(1 - step % 2)))
        trainer = make(planted, oscillation="stop", **self.SETTINGS)
        trainer.train()
        assert trainer.state.global_step == 8 and "Training stops" in caplog.text

    @pytest.mark.parametrize(
        "rows",
        [
            lambda step: (0.0, 1.0),  # one group is always the worst
            lambda step: (step + float(step % 2), step + float(1 - step % 2)),  # both gain
            lambda step: (0.01 * (step % 2), 0.01 * (1 - step % 2)),  # equal up to noise: converged
        ],
    )
    def test_silence(self, make, trainer_class, caplog, rows):
        make(self.planted(trainer_class, rows), oscillation="stop", **self.SETTINGS).train()
        assert "oscillates" not in caplog.text

    def test_other_rules_and_ignore_say_nothing(self, make, trainer_class, caplog):
        planted = self.planted(trainer_class, lambda step: (float(step % 2), float(1 - step % 2)))
        make(planted, welfare="mirror", **self.SETTINGS).train()
        make(planted, oscillation="ignore", **self.SETTINGS).train()
        assert "oscillates" not in caplog.text


class TestRefusals:
    def test_no_rewards(self, make):
        for nothing in (None, []):
            with pytest.raises(ValueError, match="`reward_funcs` is empty"):
                make(reward_funcs=nothing)

    def test_arguments_of_the_host(self, base, trainer_class, tmp_path):
        with pytest.raises(TypeError, match=f"needs a {CONFIG_OF[trainer_class].__name__}"):
            trainer_class(
                model=str(base), reward_funcs=sevens, args=GRPOConfig(str(tmp_path), report_to=[], use_cpu=True)
            )

    def test_default_arguments(self, base, trainer_class, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        # TRL's own default is bfloat16 on a GPU.
        monkeypatch.setattr(trainer_class, "_config_class", OnCPU[CONFIG_OF[trainer_class]])
        rows = Dataset.from_dict({"prompt": PROMPTS})
        trainer = trainer_class(model=str(base), reward_funcs=[sevens, nines], train_dataset=rows)
        assert trainer.args.output_dir == f"base-{trainer._name}" and trainer.args.beta > 0

    def test_before_a_model_is_loaded(self, trainer_class, tmp_path):
        args = CONFIG_OF[trainer_class](str(tmp_path), welfare_floor=0.6, report_to=[], use_cpu=True)
        with pytest.raises(ValueError, match=r"0\.6.*at most 0\.5"):
            trainer_class(model="no/such-model", reward_funcs=[sevens, nines], args=args)

    def test_what_is_no_reward(self, make, word_tokenizer):
        with pytest.raises(TypeError, match="cannot score replies"):
            make(reward_funcs=[sevens, 3])
        with pytest.raises(ValueError, match="2 `reward_processing_classes` for 1 rewards"):
            make(reward_funcs=sevens, reward_processing_classes=[None, None])
        with pytest.raises(ValueError, match="a mixture names its components itself"):
            make(reward_funcs={"all": mixture_of(word_tokenizer)})

    def test_fixed_weights(self, trainer_class, tmp_path):
        with pytest.raises(ValueError, match="decides the weights by `welfare`"):
            CONFIG_OF[trainer_class](str(tmp_path), reward_weights=[1.0, 2.0], report_to=[], use_cpu=True)

    def test_statistics_of_other_components(self, make):
        first = make()
        first.calibrate()
        with pytest.raises(ValueError, match="calibrate again on these rewards"):
            make(reward_funcs=[nines, sevens], reference_statistics=first.reference_statistics).calibrate()


class TestConfigs:
    def test_defaults_that_differ_from_trl(self, tmp_path):
        config = MaxMinGRPOConfig(str(tmp_path), report_to=[], use_cpu=True)
        assert config.beta > 0 and config.scale_rewards == "none"
        assert config.multi_objective_aggregation == "sum_then_normalize"
        assert MaxMinRLOOConfig(str(tmp_path), report_to=[], use_cpu=True).beta > 0

    def test_normalize_then_sum_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="'normalize_then_sum', which standardises.*'sum_then_normalize'"):
            MaxMinGRPOConfig(
                str(tmp_path), multi_objective_aggregation="normalize_then_sum", report_to=[], use_cpu=True
            )

    @pytest.mark.parametrize("value", ["group", "batch", True])
    def test_scaling_is_doubtful(self, tmp_path, value):
        with pytest.warns(UserWarning, match="undoes the calibration"):
            MaxMinGRPOConfig(str(tmp_path), scale_rewards=value, report_to=[], use_cpu=True)

    @pytest.mark.parametrize("config", [MaxMinGRPOConfig, MaxMinRLOOConfig])
    def test_no_kl_is_doubtful(self, tmp_path, config):
        with pytest.warns(UserWarning, match="`beta` is 0"):
            config(str(tmp_path), beta=0.0, report_to=[], use_cpu=True)


@pytest.mark.seam
@pytest.mark.parametrize(("host", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_mixture_given_to_trls_own_trainer_raises_the_remedy(host, config, loaded, base, word_tokenizer, tmp_path):
    """Never column 0: the forward runs, and reading `.logits` from it raises."""
    mixture = mixture_of(word_tokenizer)
    if loaded:
        mixture.save_pretrained(tmp_path / "mixture")
        mixture = type(mixture).from_pretrained(tmp_path / "mixture")
    trainer = build_trl_trainer(
        host, base, word_tokenizer, tmp_path / "run", config_class=config, reward_funcs=[mixture],
        reward_processing_classes=None if loaded else [word_tokenizer],
    )  # fmt: skip
    with pytest.raises(AttributeError, match=r"no `\.logits`.*reward_functions\(\).*MaxMin trainer"):
        trainer.train()


@pytest.mark.parametrize(("host", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_trls_own_trainers_take_the_callables(host, config, base, word_tokenizer, tmp_path):
    mixture = mixture_of(word_tokenizer)
    trainer = build_trl_trainer(
        host, base, word_tokenizer, tmp_path / "run", config_class=config, reward_funcs=mixture.reward_functions(),
        reward_weights=[0.3, 0.7],
    )  # fmt: skip
    trainer.train()
    assert len(history(trainer, "rewards/component_1/mean")) == 2


def test_ppo_takes_a_dict_by_group(word_tokenizer, tmp_path):
    from tests.trainer.ppo_helpers import build_ppo_trainer
    from trl_maxmin import MaxMinPPOConfig

    trainer = build_ppo_trainer(
        tmp_path, word_tokenizer, MaxMinPPOTrainer, MaxMinPPOConfig, model=gpt2(),
        reward_model={"seven": sevens, "nine": nines}, max_steps=1,
    )  # fmt: skip
    trainer.train()
    assert trainer.component_names == ["seven", "nine"]
    before = trainer.reference_statistics
    trainer.calibrate(refresh=True)
    assert trainer.reference_statistics.completions == before.completions
