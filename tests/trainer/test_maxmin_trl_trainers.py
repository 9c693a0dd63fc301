# SPDX-License-Identifier: Apache-2.0
"""MaxMin on TRL's GRPO and RLOO: the seam, the weights, what is missing, evaluation, resuming, oscillation."""

import math
import shutil

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.trainer.ppo_helpers import PROMPTS, brevity, sevens
from tests.trainer.trl_helpers import (
    history,
    mixture_of,
    nines,
    policy_weights,
)
from trl_maxmin import MaxMinGRPOTrainer
from trl_maxmin.trainer.scoring.reference_statistics import ReferenceStatistics


NAN = float("nan")


class TestSeam:
    """What TRL really does with what the seam returns; these fail if it stops doing so."""

    pytestmark = pytest.mark.seam

    def test_the_gathered_matrix_comes_back_and_the_weights_are_read_afterwards(self, trl_make, trl_class):
        """Weights that are set inside the seam decide the advantages of the same rollout."""
        advantages = {}

        class Spy(trl_class):
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
            trainer = trl_make(Spy, max_steps=1, utility="raw", beta=0.0)
            trainer.column = column
            trainer.train()
        assert advantages[0] == [1.0, -1.0] * 4, "TRL no longer reads `reward_weights` after `_calculate_rewards`"
        assert advantages[1] == [-1.0, 1.0] * 4

    def test_the_names_that_are_used_exist(self, trl_make):
        trainer = trl_make()
        for name in ("_metrics", "_logs", "_pending_metrics", "_pending_extra_logs", "ref_model", "_tokenizer"):
            assert hasattr(trainer, name), name
        assert len(trainer._tokenize_prompts(["the film", "plot"])[0]) == 2
        trainer.train()

    def test_rows_that_are_nan_as_a_whole_get_no_advantage(self, trl_make, trl_class):
        class Spy(trl_class):
            def _raw_rewards(self, inputs, prompts, completions, completion_ids_list):
                rewards = torch.arange(len(prompts)).float().unsqueeze(1).repeat(1, 2)
                rewards[0] = torch.nan
                return rewards

            def _generate_and_score_completions(self, inputs):
                self.advantages = super()._generate_and_score_completions(inputs)["advantages"]
                raise StopIteration

        trainer = trl_make(Spy, utility="raw", beta=0.0)
        with pytest.raises(StopIteration):
            trainer.train()
        assert trainer.advantages[0] == 0 and (trainer.advantages[1:4] != 0).any()


class TestWeights:
    def test_the_worst_group_decides_and_everything_is_logged(self, trl_make):
        trainer = trl_make(max_steps=3, reward_funcs={"seven": sevens, "nine": nines})
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

    @pytest.mark.parametrize(
        "welfare", ["softmin", "mirror", "utilitarian", "nash", "leximin", "regret", "sample_min"]
    )
    def test_every_rule_trains(self, trl_make, welfare):
        trainer = trl_make(welfare=welfare, welfare_floor=0.1, welfare_window=3)
        trainer.train()
        weights = trainer.reward_weights
        assert weights.sum().item() == pytest.approx(1.0) and weights.min() >= 0.1 - 1e-6
        assert trainer.welfare_state.step == 2

    def test_mixing_uses_the_shares_of_the_mixture(self, trl_make, word_tokenizer):
        mixture = mixture_of(word_tokenizer)
        mixture.config.mixing_weights = [0.8, 0.2]
        trainer = trl_make(reward_funcs=mixture, welfare="mixing")
        trainer.train()
        torch.testing.assert_close(trainer.reward_weights, torch.tensor([0.8, 0.2]))
        with pytest.raises(ValueError, match="carry no mixing weights"):
            trl_make(welfare="mixing")

    def test_sample_min_optimises_the_minimum_of_each_reply(self, trl_make, trl_class):
        class Spy(trl_class):
            def _calculate_rewards(self, *args):
                self.matrix = super()._calculate_rewards(*args)
                return self.matrix

        trainer = trl_make(Spy, welfare="sample_min", utility="raw", max_steps=1)
        trainer.train()
        assert torch.equal(trainer.matrix[:, 0], trainer.matrix[:, 1])
        assert trainer.reward_weights.tolist() == [0.5, 0.5]

    def test_a_rule_of_ones_own(self, trl_make):
        trainer = trl_make(welfare_function=lambda utilities: torch.tensor([0.25, 0.75]))
        trainer.train()
        assert trainer.reward_weights.tolist() == [0.25, 0.75]

    def test_one_component_is_the_hosts_run_exactly(self, trl_make, trl_class):
        host, config = (GRPOTrainer, GRPOConfig) if trl_class is MaxMinGRPOTrainer else (RLOOTrainer, RLOOConfig)
        # Of prompts of one length: TRL reads GPT-2's positions wrongly behind padding.
        rows = Dataset.from_dict({"prompt": ["the film", "bad ending", "a story"] * 8})
        same = {"beta": 0.04, "disable_dropout": True, "train_dataset": rows}
        same |= {"scale_rewards": "none"} if host is GRPOTrainer else {}
        maxmin = trl_make(reward_funcs=brevity, **same)
        assert maxmin.utility == "raw"
        maxmin.train()
        plain = trl_make(host, config_class=config, reward_funcs=brevity, **same)
        before = policy_weights(plain)
        plain.train()
        for name, weight in policy_weights(plain).items():
            assert torch.equal(weight, policy_weights(maxmin)[name]), name
        assert any(not torch.equal(weight, before[name]) for name, weight in policy_weights(plain).items())
        assert history(maxmin, "rewards/brevity/mean") == pytest.approx(history(plain, "rewards/brevity/mean"))
        assert history(maxmin, "rewards/brevity/std") == pytest.approx(history(plain, "rewards/brevity/std"), abs=1e-6)

    @pytest.mark.slow
    def test_it_lifts_the_worst_group(self, trl_make):
        trainer = trl_make(
            max_steps=25, learning_rate=2e-2, beta=0.0, num_generations=8, per_device_train_batch_size=24,
            num_reference_completions=16,
        )  # fmt: skip
        trainer.train()
        worst = history(trainer, "maxmin/worst_utility")
        assert min(worst[-5:]) > worst[0] + 0.7
        assert {0.0, 1.0} == set(history(trainer, "maxmin/weight/nines")), "the worst group changes"


class TestUnscored:
    def test_none_and_nan_rows(self, trl_make):
        def some(completion_ids, **kwargs):
            return [None if i % 4 == 0 else (NAN if i % 4 == 1 else float(i)) for i in range(len(completion_ids))]

        trainer = trl_make(reward_funcs=[some, sevens], utility="raw")
        trainer.train()
        # 2, 3, 6, 7 were scored.
        assert history(trainer, "maxmin/utility/some") == [4.5, 4.5]
        assert history(trainer, "rewards/some/mean") == [4.5, 4.5]
        assert all(math.isfinite(loss) for loss in history(trainer, "loss"))

    def test_a_row_that_the_weighted_component_missed_counts_for_nothing(self, trl_make, trl_class):
        def low_or_none(completion_ids, **kwargs):
            return [-1.0 - i if i % 2 else None for i in range(len(completion_ids))]

        class Spy(trl_class):
            def _calculate_rewards(self, *args):
                self.matrix = super()._calculate_rewards(*args)
                return self.matrix

        trainer = trl_make(Spy, reward_funcs=[low_or_none, sevens], utility="raw", max_steps=1)
        trainer.train()
        assert trainer.reward_weights.tolist() == [1.0, 0.0]
        assert trainer.matrix.isnan().tolist() == [[True, True], [False, False]] * 4

    def test_a_component_that_scores_nothing_gets_no_weight(self, trl_make):
        def nothing(completion_ids, **kwargs):
            return [None] * len(completion_ids)

        trainer = trl_make(reward_funcs=[nothing, sevens], utility="raw")
        trainer.train()
        assert trainer.reward_weights.tolist() == [0.0, 1.0]
        assert not history(trainer, "maxmin/utility/nothing")

    def test_a_constant_group_has_utility_zero_and_a_warning(self, trl_make):
        def constant(completion_ids, **kwargs):
            return [3.0] * len(completion_ids)

        trainer = trl_make(reward_funcs=[constant, sevens], max_steps=1)
        with pytest.warns(UserWarning, match=r"\['constant'\] give every reference reply"):
            trainer.train()
        assert history(trainer, "maxmin/utility/constant") == [0.0]
        assert history(trainer, "rewards/constant/mean") == [3.0]

    def test_nothing_scored_at_all_keeps_the_weights(self, trl_make, caplog):
        def nothing(completion_ids, **kwargs):
            return [None] * len(completion_ids)

        trainer = trl_make(reward_funcs={"a": nothing, "b": nothing}, utility="raw", max_steps=1)
        trainer.train()
        assert trainer.reward_weights.tolist() == [0.5, 0.5] and "No reward scored any reply" in caplog.text


def test_evaluation_leaves_the_weights_alone(trl_make):
    trainer = trl_make(eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:4]}), welfare="mirror")
    first = trainer.evaluate()
    assert trainer.reward_weights.tolist() == [0.5, 0.5] and trainer.welfare_state.step == 0
    trainer.train()
    before = trainer.reward_weights.clone(), trainer.welfare_state.state_dict()
    metrics = trainer.evaluate()
    names = {f"eval_maxmin/{name}" for name in ("utility/nines", "weight/sevens", "worst_utility", "gap")}
    assert names | {"eval_rewards/sevens/mean"} <= metrics.keys() & first.keys()
    assert torch.equal(trainer.reward_weights, before[0]) and trainer.welfare_state.state_dict() == before[1]


def test_a_resumed_run_continues_the_weights(trl_make, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "welfare": "mirror", "welfare_window": 3}
    whole = trl_make(output_dir=tmp_path / "whole", **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert ReferenceStatistics.load(checkpoint / "calibration").component_names == ["sevens", "nines"]
    shutil.copytree(checkpoint, tmp_path / "cut" / "checkpoint-2")
    resumed = trl_make(output_dir=tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.welfare_state.state_dict() == whole.welfare_state.state_dict()
    assert resumed.welfare_state.step == 4
    for name, weight in policy_weights(whole).items():
        torch.testing.assert_close(weight, policy_weights(resumed)[name])


@pytest.mark.slow  # the mixin alone is tested in test_maxmin_mixin.py
class TestOscillation:
    @staticmethod
    def planted(host, rows):
        class Planted(host):
            def _raw_rewards(self, inputs, prompts, completions, completion_ids_list):
                low, high = rows(self.welfare_state.step)
                noise = torch.linspace(-0.1, 0.1, len(prompts))
                return torch.stack([low + noise, high - noise], dim=1)

        return Planted

    SETTINGS = {"utility": "raw", "max_steps": 12, "oscillation_window": 8, "learning_rate": 1e-5}

    def test_it_is_said_once_with_the_remedy(self, trl_make, trl_class, caplog):
        planted = self.planted(trl_class, lambda step: (float(step % 2), float(1 - step % 2)))
        trainer = trl_make(planted, max_steps=20, **{k: v for k, v in self.SETTINGS.items() if k != "max_steps"})
        trainer.train()
        said = [record for record in caplog.records if "oscillates" in record.getMessage()]
        assert len(said) == 1 and "welfare='mirror'" in said[0].getMessage()
        assert "'sevens' and 'nines'" in said[0].getMessage()

    def test_stop(self, trl_make, trl_class, caplog):
        planted = self.planted(trl_class, lambda step: (float(step % 2), float(1 - step % 2)))
        trainer = trl_make(planted, oscillation="stop", **self.SETTINGS)
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
    def test_silence(self, trl_make, trl_class, caplog, rows):
        trl_make(self.planted(trl_class, rows), oscillation="stop", **self.SETTINGS).train()
        assert "oscillates" not in caplog.text

    def test_other_rules_and_ignore_say_nothing(self, trl_make, trl_class, caplog):
        planted = self.planted(trl_class, lambda step: (float(step % 2), float(1 - step % 2)))
        trl_make(planted, welfare="mirror", **self.SETTINGS).train()
        trl_make(planted, oscillation="ignore", **self.SETTINGS).train()
        assert "oscillates" not in caplog.text
