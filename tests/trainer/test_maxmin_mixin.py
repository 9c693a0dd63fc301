# SPDX-License-Identifier: Apache-2.0
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, TrainingArguments
from trl import GRPOConfig

from trl_maxmin.trainer.maxmin.maxmin_config import WELFARE_CHOICES, MaxMinConfigMixin, resolve_utility
from trl_maxmin.trainer.maxmin.maxmin_mixin import MaxMinMixin
from trl_maxmin.trainer.maxmin.welfare import WELFARE_STATE_FILE, Welfare, WelfareState, groups_with_evidence


NAN = float("nan")
NAMES = ["short", "kind"]


@dataclass
class Arguments(MaxMinConfigMixin, TrainingArguments):
    pass


@dataclass
class GRPOArguments(MaxMinConfigMixin, GRPOConfig):
    pass


class Host:
    """What the mixin needs of a trainer: the rewards of all ranks, a mode, metrics."""

    def __init__(self, matrices, **config):
        self.args = MaxMinConfigMixin(**{"utility": "raw"} | config)
        self.model = torch.nn.Linear(1, 1)
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self.reward_func_names = NAMES
        self.matrices = iter(matrices)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        return torch.tensor(next(self.matrices))


class MaxMinHost(MaxMinMixin, Host):
    def __init__(self, matrices, mixing_weights=None, welfare_function=None, **config):
        super().__init__(matrices, **config)
        self._init_maxmin(mixing_weights, welfare_function)

    def rollout(self):
        """The matrix and the reward that a trainer would optimise, as TRL aggregates it."""
        matrix = self._calculate_rewards(None, None, None, None)
        weighted = (matrix * self.reward_weights).nansum(dim=1)
        return matrix, torch.where(matrix.isnan().all(dim=1), torch.nan, weighted)


def with_utilities(utilities, **config):
    """A host whose rollouts have these group utilities."""
    return MaxMinHost([[row] for row in utilities], **config)


class TestWeights:
    def test_maxmin_follows_the_worst_group_of_each_rollout(self):
        host = MaxMinHost([[[1.0, 0.0], [0.0, 0.8]], [[0.0, 0.0], [0.0, 3.0]]])
        _, reward = host.rollout()
        # Means 0.5 and 0.4: the second group counts, then the first.
        assert host.reward_weights.tolist() == [0.0, 1.0]
        assert reward.tolist() == pytest.approx([0.0, 0.8])
        host.rollout()
        assert host.reward_weights.tolist() == [1.0, 0.0]

    def test_the_minimum_is_over_group_means_and_not_over_samples(self):
        host = MaxMinHost([[[2.0, -1.0], [-1.0, 2.5]]])
        matrix, reward = host.rollout()
        assert reward.tolist() == [2.0, -1.0]
        assert matrix.tolist() == [[2.0, -1.0], [-1.0, 2.5]]

    def test_weights_are_uniform_before_the_first_rollout(self):
        host = with_utilities([])
        assert host.reward_weights.tolist() == [0.5, 0.5]

    def test_softmin_by_hand(self):
        host = with_utilities([[0.0, math.log(9)]], welfare="softmin", welfare_temperature=2.0)
        host.rollout()
        torch.testing.assert_close(host.reward_weights, torch.tensor([0.75, 0.25]))

    def test_mirror_multiplies_up_over_the_rollouts(self):
        host = with_utilities([[0.0, math.log(2)], [0.0, math.log(4)]], welfare="mirror", welfare_step_size=1.0)
        host.rollout()
        torch.testing.assert_close(host.reward_weights, torch.tensor([2 / 3, 1 / 3]))
        host.rollout()
        torch.testing.assert_close(host.reward_weights, torch.tensor([8 / 9, 1 / 9]))
        mean = host.welfare_state.cumulative_weights / host.welfare_state.step
        torch.testing.assert_close(mean, torch.tensor([7 / 9, 2 / 9], dtype=torch.float64))

    def test_nash_uses_the_disagreement_point(self):
        host = with_utilities([[2.0, 3.0]], welfare="nash", disagreement_point=[1.0, 0.0])
        host.rollout()
        torch.testing.assert_close(host.reward_weights, torch.tensor([0.75, 0.25]))

    def test_gini_leximin_and_pmean_take_their_settings(self):
        for welfare, setting, expected in (
            ("gini", {"welfare_order_weights": [3.0, 1.0]}, [0.25, 0.75]),
            ("gini", {}, [0.25, 0.75]),
            ("leximin", {"leximin_delta": 0.25}, [0.2, 0.8]),
            ("pmean", {"welfare_power": 0.0, "disagreement_point": [0.0, -1.0]}, [0.5, 0.5]),
        ):
            host = with_utilities([[3.0, 2.0]], welfare=welfare, **setting)
            host.rollout()
            torch.testing.assert_close(host.reward_weights, torch.tensor(expected), msg=welfare)

    def test_regret_where_maxmin_would_serve_the_other_group(self):
        best = {"best_utilities": [1.0, 0.3]}
        host = with_utilities([[0.25, 0.2]], welfare="regret", **best)
        host.rollout()
        assert host.reward_weights.tolist() == [1.0, 0.0]  # regrets 0.75 and 0.1
        plain = with_utilities([[0.25, 0.2]])
        plain.rollout()
        assert plain.reward_weights.tolist() == [0.0, 1.0]
        mirror = with_utilities([[0.25, 0.2]], welfare="regret", regret_rule="mirror", welfare_step_size=2.0, **best)
        mirror.rollout()
        ratio = (mirror.reward_weights[0] / mirror.reward_weights[1]).item()
        assert ratio == pytest.approx(math.exp(2.0 * (0.75 - 0.1)), rel=1e-5)

    def test_regret_without_anybody_who_measures_it_is_refused(self):
        with pytest.raises(ValueError, match="Give `best_utilities`, or use 'zscore'"):
            with_utilities([[0.0, 1.0]], welfare="regret")

    def test_mixing_weights(self):
        host = MaxMinHost([[[0.0, 5.0]]], mixing_weights=[0.8, 0.2], welfare="mixing")
        torch.testing.assert_close(host.reward_weights, torch.tensor([0.8, 0.2]))
        host.rollout()
        torch.testing.assert_close(host.reward_weights, torch.tensor([0.8, 0.2]))

    def test_floor(self):
        host = with_utilities([[0.0, 1.0]], welfare_floor=0.1)
        host.rollout()
        torch.testing.assert_close(host.reward_weights, torch.tensor([0.9, 0.1]))

    def test_a_function_of_the_user(self):
        host = MaxMinHost([[[0.0, 1.0]]], welfare_function=lambda u: u)
        host.rollout()
        assert host.reward_weights.tolist() == [0.0, 1.0]

    def test_window_averages_over_rollouts(self):
        # A span of 3 is a rate of 1/2: the averages are (0, 1) and then (1, 0.5).
        host = with_utilities([[0.0, 1.0], [2.0, 0.0]], welfare_window=3)
        host.rollout()
        assert host.reward_weights.tolist() == [1.0, 0.0]
        host.rollout()
        assert host.welfare_state.utility_average.tolist() == [1.0, 0.5]
        assert host.reward_weights.tolist() == [0.0, 1.0]
        # A span of 9 is a rate of 1/5: the averages end at (0.18, 0.8); the last rollout alone would decide otherwise.
        slow = with_utilities([[0.0, 1.0], [0.9, 0.0]], welfare_window=9)
        slow.rollout()
        slow.rollout()
        assert slow.reward_weights.tolist() == [1.0, 0.0]

    def test_without_a_window_the_average_is_the_last_rollout_exactly(self):
        host = with_utilities([[0.1, 0.7], [1e-9, 0.3]])
        host.rollout()
        host.rollout()
        assert host.welfare_state.utility_average.tolist() == [torch.tensor(1e-9).item(), torch.tensor(0.3).item()]

    def test_evaluation_changes_nothing(self):
        host = with_utilities([[0.0, 1.0], [5.0, -5.0]], welfare="mirror")
        host.rollout()
        before, state = host.reward_weights.clone(), host.welfare_state.state_dict()
        host.model.eval()
        host.rollout()
        assert torch.equal(host.reward_weights, before) and host.welfare_state.state_dict() == state
        assert host._metrics["eval"]["maxmin/worst_utility"] == [-5.0]
        assert host._metrics["eval"]["maxmin/weight/short"] == [before[0].item()]


class TestUnscored:
    def test_a_row_that_a_weighted_component_missed_is_lost_as_a_whole(self):
        host = MaxMinHost([[[1.0, NAN], [1.0, 0.0], [NAN, 0.5]]])
        matrix, reward = host.rollout()
        assert host.reward_weights.tolist() == [0.0, 1.0]
        assert matrix.isnan().tolist() == [[True, True], [False, False], [True, False]]
        # The third row lacks only a component without weight.
        assert reward.isnan().tolist() == [True, False, False] and reward[2].item() == 0.5

    def test_a_component_that_scored_nothing_gets_no_weight_and_loses_no_row(self):
        host = with_utilities([[NAN, 3.0]])
        matrix, reward = host.rollout()
        assert host.reward_weights.tolist() == [0.0, 1.0]
        assert reward.tolist() == [3.0]

    def test_it_comes_back_with_the_weight_it_had(self):
        host = with_utilities([[0.0, math.log(3)], [NAN, 1.0], [0.0, 0.0]], welfare="mirror", welfare_step_size=1.0)
        host.rollout()
        torch.testing.assert_close(host.reward_weights, torch.tensor([0.75, 0.25]))
        host.rollout()
        assert host.reward_weights.tolist() == [0.0, 1.0]
        host.rollout()
        torch.testing.assert_close(host.reward_weights, torch.tensor([0.75, 0.25]))

    def test_its_average_is_kept_but_does_not_decide(self):
        host = with_utilities([[-9.0, 1.0], [NAN, 1.0], [0.0, 1.0]], welfare_window=3)
        host.rollout()
        host.rollout()
        assert host.reward_weights.tolist() == [0.0, 1.0]
        host.rollout()
        assert host.welfare_state.utility_average.tolist() == [-4.5, 1.0]
        assert host.reward_weights.tolist() == [1.0, 0.0]

    def test_nothing_scored_at_all_keeps_the_weights(self, caplog):
        host = with_utilities([[0.0, 1.0], [NAN, NAN]])
        host.rollout()
        state = host.welfare_state.state_dict()
        _, reward = host.rollout()
        assert host.reward_weights.tolist() == [1.0, 0.0] and reward.isnan().all()
        assert host.welfare_state.state_dict() == state
        assert "No reward scored any reply" in caplog.text

    def test_metrics_hold_no_nan(self):
        host = with_utilities([[NAN, 3.0], [NAN, NAN]])
        host.rollout()
        host.rollout()
        metrics = host._metrics["train"]
        assert not any(math.isnan(value) for values in metrics.values() for value in values)
        assert metrics["maxmin/utility/kind"] == [3.0] and "maxmin/utility/short" not in metrics


class Counted:
    """A source of rewards that says on how many people and pairs each column stands."""

    def __init__(self, annotators, pairs, names=("many", "some", "few")):
        self.names, self.num_annotators, self.num_pairs = list(names), annotators, pairs
        self.counts_missing = annotators is None or pairs is None


class TestFloorOfEvidence:
    """`few` is worst off in every rollout, and is three people of 326."""

    def weigh(self, rollouts, source=None, welfare_function=None, **config):
        source = source or Counted([200, 123, 3], [6000, 3700, 90])
        args = MaxMinConfigMixin(**config)
        shares = torch.tensor([0.6, 0.39, 0.01][: len(source.names)], dtype=torch.float64)
        welfare = Welfare(args, source.names, shares, welfare_function, groups_with_evidence(args, source))
        for utilities in rollouts:
            welfare.update(torch.tensor(utilities, dtype=torch.float64))
        return welfare

    @pytest.mark.parametrize("welfare", [w for w in WELFARE_CHOICES if w not in ("mixing", "sample_min")])
    def test_a_handful_of_people_is_not_the_worst_off_group(self, welfare, caplog):
        best = {"best_utilities": [0.2, 0.2, 0.2]} if welfare == "regret" else {}
        found = self.weigh([[0.2, 0.1, -5.0]] * 3, welfare=welfare, **best)
        assert found.weights[2] == 0 and found.weights.sum() == pytest.approx(1)
        if welfare == "maxmin":
            assert found.weights.tolist() == [0, 1, 0]
        assert "few stands on 3 annotators and 90 pairs, below the floor of 10 annotators and 30 pairs" in caplog.text
        logged = found.metrics(torch.tensor([0.2, 0.1, -5.0]))
        assert logged["maxmin/utility/few"] == -5 and logged["maxmin/worst_utility"] == pytest.approx(0.1)
        assert logged["maxmin/gap"] == pytest.approx(0.1), "the gap is among those who count"

    def test_before_the_first_rollout_and_where_others_were_not_scored(self):
        assert self.weigh([]).weights.tolist() == [0.5, 0.5, 0]
        assert self.weigh([[NAN, NAN, -5.0]]).weights.tolist() == [0.5, 0.5, 0], "its score alone decides nothing"

    def test_a_function_of_the_user_and_shares(self):
        assert self.weigh([[0.2, 0.1, -5.0]], welfare_function=lambda u: -u).weights[2] == 0
        shares = self.weigh([[0.2, 0.1, -5.0]], welfare="mixing").weights.tolist()
        assert shares == pytest.approx([0.6, 0.39, 0.01]), "who is few weighs little there"

    def test_the_minimum_of_a_sample(self):
        found = self.weigh([[0.2, 0.1, -5.0]], welfare="sample_min")
        reward = (found.optimised_rewards(torch.tensor([[1.0, 2.0, -9.0]])) * found.weights).sum()
        assert reward.item() == pytest.approx(1.0)

    def test_it_is_lowered_by_the_config(self):
        lowered = self.weigh([[0.2, 0.1, -5.0]], min_group_annotators=3)
        assert lowered.weights.tolist() == [0, 0, 1] and lowered.enough.all()
        assert self.weigh([[0.2, 0.1, -5.0]], min_group_annotators=3, min_group_pairs=91).weights[2] == 0

    def test_it_does_not_go_in_circles_with_somebody_below(self):
        source = Counted([40, 1], [800, 40], names=("many", "few"))
        found = self.weigh([[0.1, -1.0]] * 30, source, oscillation="stop")
        assert not any(found.goes_in_circles(torch.randn(8, 2), torch.tensor([0.1, -1.0])) for _ in range(30))

    def test_where_nothing_is_known_that_is_said_and_everybody_counts(self, caplog):
        found = self.weigh([[0.2, 0.1, -5.0]], Counted(None, None))
        assert found.weights.tolist() == [0, 0, 1]
        assert "does not say on how many annotators and pairs" in caplog.text
        caplog.clear()
        assert self.weigh([[0.2, 0.1, -5.0]], Counted([200, 123, 3], None)).weights[2] == 0, "what is known counts"
        assert "is not applied" in caplog.text


class TestSampleMin:
    def test_the_reward_is_the_minimum_of_each_reply(self):
        host = MaxMinHost([[[2.0, -1.0], [-1.0, 2.5]]], welfare="sample_min")
        matrix, reward = host.rollout()
        assert matrix.tolist() == [[-1.0, -1.0], [-1.0, -1.0]]
        assert host.reward_weights.tolist() == [0.5, 0.5]
        assert reward.tolist() == [-1.0, -1.0]
        # The utilities are logged as they were: 0.5 and 0.75.
        assert host._metrics["train"]["maxmin/worst_utility"] == [0.5]

    def test_unscored(self):
        host = MaxMinHost([[[2.0, NAN], [1.0, 3.0]], [[2.0, NAN], [1.0, NAN]]], welfare="sample_min")
        _, reward = host.rollout()
        assert reward.isnan().tolist() == [True, False]
        _, reward = host.rollout()  # one component scored nothing: the minimum is over the other
        assert reward.tolist() == [2.0, 1.0]
        assert host.reward_weights.tolist() == [0.5, 0.5]


class TestMetrics:
    def test_names_and_values(self):
        host = MaxMinHost([[[1.0, 0.0], [0.0, 0.8]]])
        host.rollout()
        assert {name: values[0] for name, values in host._metrics["train"].items()} == pytest.approx(
            {
                "rewards/short/mean": 0.5,
                "rewards/kind/mean": 0.4,
                "maxmin/utility/short": 0.5,
                "maxmin/utility/kind": 0.4,
                "maxmin/weight/short": 0.0,
                "maxmin/weight/kind": 1.0,
                "maxmin/worst_utility": 0.4,
                "maxmin/gap": 0.1,
            }
        )

    def test_rewards_are_logged_as_they_are_and_utilities_as_they_are_compared(self):
        class Calibrated(MaxMinHost):
            def _utilities(self, rewards, inputs):
                return rewards / 10

        host = Calibrated([[[10.0, 5.0]]])
        host.rollout()
        assert host._metrics["train"]["rewards/short/mean"] == [10.0]
        assert host._metrics["train"]["maxmin/utility/short"] == [1.0]

    def test_a_host_that_logs_its_rewards_is_not_doubled(self):
        class Logging(MaxMinHost):
            _host_logs_component_rewards = True

        host = Logging([[[1.0, 0.5]]])
        host.rollout()
        assert not any(name.startswith("rewards/") for name in host._metrics["train"])


class TestState:
    def test_json_keeps_every_digit_and_nan(self):
        state = WelfareState.initial(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
        state.step, state.cumulative_weights = 3, torch.tensor([0.1, 2.9], dtype=torch.float64)
        text = json.dumps(state.state_dict(), allow_nan=False)
        other = WelfareState.initial(torch.tensor([0.5, 0.5]))
        other.load_state_dict(json.loads(text))
        assert other.state_dict() == state.state_dict()
        assert torch.equal(other.weights, state.weights) and other.utility_average.isnan().all()

    def test_wrong_size(self):
        with pytest.raises(ValueError, match="of 2 components, but this run has 3"):
            WelfareState.initial(torch.ones(3) / 3).load_state_dict(
                WelfareState.initial(torch.ones(2) / 2).state_dict()
            )

    def test_resumed_run_equals_uninterrupted_run(self, tmp_path):
        utilities = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).tolist()
        config = {"welfare": "mirror", "welfare_window": 3, "welfare_step_size": 0.7, "welfare_floor": 0.05}
        whole = with_utilities(utilities, **config)
        for _ in range(8):
            whole.rollout()
        first, second = with_utilities(utilities[:5], **config), with_utilities(utilities[5:], **config)
        for _ in range(5):
            first.rollout()
        first.welfare.save(tmp_path)
        second.welfare.load(tmp_path)
        second.reward_weights = second.welfare.weights
        assert torch.equal(second.reward_weights, first.reward_weights)
        for _ in range(3):
            second.rollout()
        assert torch.equal(second.reward_weights, whole.reward_weights)
        assert second.welfare_state.state_dict() == whole.welfare_state.state_dict()

    def test_what_was_measured_for_regret_is_in_the_checkpoint_and_what_is_given_holds(self, tmp_path):
        config = {"welfare": "regret"}
        measured = Welfare(MaxMinConfigMixin(**config), NAMES)
        assert measured.needs_best and measured.best is None
        measured.best = torch.tensor([0.5, 0.25], dtype=torch.float64)
        measured.save(tmp_path)
        resumed = Welfare(MaxMinConfigMixin(**config), NAMES)
        resumed.load(tmp_path)
        assert resumed.best.tolist() == [0.5, 0.25]
        given = Welfare(MaxMinConfigMixin(best_utilities=[1.0, 2.0], **config), NAMES)
        given.load(tmp_path)
        assert given.best.tolist() == [1.0, 2.0] and not given.needs_best

    def test_checkpoint_of_other_components_is_refused_and_a_missing_one_reported(self, tmp_path, caplog):
        host = with_utilities([[0.0, 1.0]])
        host.welfare.load(tmp_path)
        assert f"has no {WELFARE_STATE_FILE}" in caplog.text
        host.welfare.save(tmp_path)
        other = Welfare(MaxMinConfigMixin(), ["kind", "short"])
        with pytest.raises(ValueError, match=r"weighs the components \['short', 'kind'\]"):
            other.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "names", "kwargs", "message"),
    [
        ({"welfare": "mixing"}, NAMES, {}, "carry no mixing weights"),
        ({"welfare": "mixing"}, NAMES, {"mixing_weights": [1.0]}, "`mixing_weights` has 1 entries"),
        ({"welfare": "nash", "disagreement_point": [0.0]}, NAMES, {}, "`disagreement_point` has 1 entries"),
        ({"welfare_floor": 0.6}, NAMES, {}, "2 components allow at most 0.5"),
        ({"welfare": "regret", "best_utilities": [0.0]}, NAMES, {}, "`best_utilities` has 1 entries"),
        ({"best_utilities": [0.0, NAN]}, NAMES, {}, r"`best_utilities` is \[0.0, nan\], but needs 2 finite numbers"),
        ({"disagreement_point": [0.0, NAN]}, NAMES, {}, "`disagreement_point` is"),
        ({"welfare_order_weights": [1.0]}, NAMES, {}, "`welfare_order_weights` has 1 entries"),
        ({"welfare_order_weights": [1.0, 2.0]}, NAMES, {}, "none above the one before it"),
    ],
)
def test_init_refusals(config, names, kwargs, message):
    with pytest.raises(ValueError, match=message):
        Welfare(MaxMinConfigMixin(**config), names, **kwargs)


class TestConfig:
    def test_defaults_and_choices(self):
        config = MaxMinConfigMixin()
        assert (config.welfare, config.utility, config.welfare_window) == ("maxmin", None, 1)
        for welfare in WELFARE_CHOICES:
            assert MaxMinConfigMixin(welfare=welfare).welfare == welfare

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("welfare", "max-min", "`welfare` is 'max-min'.*'maxmin'.*'sample_min'"),
            ("utility", "rank", "`utility` is 'rank'.*'zscore'"),
            ("welfare_temperature", 0.0, "`welfare_temperature` is 0.0"),
            ("welfare_step_size", float("inf"), "`welfare_step_size` is inf"),
            ("welfare_window", 0, "`welfare_window` is 0"),
            ("welfare_floor", -0.1, "`welfare_floor` is -0.1"),
            ("min_group_annotators", 0, "`min_group_annotators` is 0.*at least 1"),
            ("min_group_share", 1.5, r"`min_group_share` is 1.5.*in \[0, 1\]"),
            ("min_group_pairs", -1, "`min_group_pairs` is -1"),
            ("welfare_power", 2.0, "`welfare_power` is 2.0.*at most 1"),
            ("leximin_delta", 0.0, r"`leximin_delta` is 0.0.*in \(0, 1\]"),
            ("regret_rule", "nash", "`regret_rule` is 'nash'.*'mirror'"),
            ("num_reference_completions", 3, "`num_reference_completions` is 3.*at least 4"),
            ("max_calibration_prompts", 0, "`max_calibration_prompts` is 0"),
        ],
    )
    def test_refusals(self, field, value, message):
        with pytest.raises(ValueError, match=message):
            MaxMinConfigMixin(**{field: value})

    def test_fixed_weights_are_refused(self):
        @dataclass
        class Fixed(MaxMinConfigMixin):
            reward_weights: list[float] | None = None

        assert Fixed().reward_weights is None
        with pytest.raises(ValueError, match=r"`reward_weights` is \[1.0, 2.0\]"):
            Fixed(reward_weights=[1.0, 2.0])

    def test_beside_training_arguments_on_a_command_line(self, tmp_path):
        command = f"--output_dir {tmp_path} --welfare nash --disagreement_point 0.5 -0.5 --welfare_window 4"
        (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(command.split())
        assert (args.welfare, args.disagreement_point, args.welfare_window) == ("nash", [0.5, -0.5], 4)
        assert args.utility is None and args.train_batch_size == 8
        with pytest.raises(ValueError, match="'fair'"):
            Arguments(output_dir=str(tmp_path), welfare="fair")

    def test_help_says_something_about_every_field(self, capsys):
        with pytest.raises(SystemExit):
            HfArgumentParser(Arguments).parse_args(["--help"])
        shown = capsys.readouterr().out
        for name in MaxMinConfigMixin.__dataclass_fields__:
            assert f"--{name}" in shown
            assert MaxMinConfigMixin.__dataclass_fields__[name].metadata["help"]

    def test_utility_by_number_of_components(self):
        assert [resolve_utility(None, k) for k in (1, 2, 5)] == ["raw", "zscore", "zscore"]
        assert resolve_utility("raw", 5) == "raw"


class TestOnRealGRPO:
    """The seam and the checkpoints on TRL's own trainer."""

    @staticmethod
    def trainer(tokenizer, output_dir, max_steps, log):
        from datasets import Dataset
        from trl import GRPOTrainer

        class Trainer(MaxMinMixin, GRPOTrainer):
            _host_logs_component_rewards = True

        def short(completions, **kwargs):
            return [-float(len(text)) for text in completions]

        def kind(completions, **kwargs):
            return [float("good" in text or "superb" in text) for text in completions]

        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=64, n_layer=1, n_head=2, n_embd=16, n_positions=32, eos_token_id=2, bos_token_id=1)
        )
        args = GRPOArguments(
            output_dir=str(output_dir), max_steps=max_steps, save_steps=1, per_device_train_batch_size=4,
            num_generations=4, max_completion_length=4, report_to=[], use_cpu=True, bf16=False, logging_steps=1,
            welfare="mirror", welfare_step_size=0.5, utility="raw", gradient_checkpointing=False, disable_tqdm=True,
        )  # fmt: skip
        dataset = Dataset.from_dict({"prompt": ["the film is", "a movie"] * 4})
        trainer = Trainer(
            model=model, reward_funcs=[short, kind], args=args, train_dataset=dataset, processing_class=tokenizer
        )
        trainer._init_maxmin()
        log.append(trainer)
        return trainer

    def test_weights_move_are_logged_saved_and_restored(self, tmp_path, word_tokenizer):
        trainers = []
        trainer = self.trainer(word_tokenizer, tmp_path, 2, trainers)
        trainer.train()
        assert trainer.welfare_state.step == 2
        assert trainer.reward_weights[0] > 0.5  # lengths are negative, so the first component is worse off
        assert trainer.reward_weights.sum().item() == pytest.approx(1.0)
        logged = [entry for entry in trainer.state.log_history if "maxmin/weight/short" in entry]
        assert len(logged) == 2
        assert logged[-1]["maxmin/weight/short"] == pytest.approx(trainer.reward_weights[0].item())
        assert {"maxmin/gap", "maxmin/worst_utility", "maxmin/utility/kind", "rewards/kind/mean"} <= set(logged[0])
        saved = json.loads((tmp_path / "checkpoint-1" / WELFARE_STATE_FILE).read_text())
        assert saved["step"] == 1 and saved["component_names"] == ["short", "kind"]

        resumed = self.trainer(word_tokenizer, tmp_path, 2, trainers)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        assert resumed.welfare_state.step == 2
        torch.testing.assert_close(resumed.welfare_state.weights, trainer.welfare_state.weights)


def test_only_the_process_that_saves_writes_the_state(tmp_path):
    class Base:
        accelerator = SimpleNamespace(wait_for_everyone=lambda: None)

        def _get_output_dir(self, trial):
            return str(tmp_path)

        def is_world_process_zero(self):
            return self.args.should_save

        is_local_process_zero = is_world_process_zero

        def _save_checkpoint(self, model, trial):
            (tmp_path / "host_saved").touch()

    class Trainer(MaxMinMixin, Base):
        pass

    for should_save in (False, True):
        trainer = Trainer()
        trainer.args = SimpleNamespace(
            **vars(MaxMinConfigMixin(utility="raw")), should_save=should_save, push_to_hub=False, save_total_limit=None
        )
        trainer.state = SimpleNamespace(global_step=7, best_model_checkpoint=None)
        trainer.reward_func_names = NAMES
        trainer._init_maxmin()
        trainer._save_checkpoint(None, None)
        assert (tmp_path / "host_saved").exists()
        assert (tmp_path / "checkpoint-7" / WELFARE_STATE_FILE).exists() is should_save


class TestStepSchedule:
    def test_the_step_size_falls_with_the_square_root_of_the_rollout(self):
        # log-weight ratios: ln 2 / sqrt(1), then + ln 2 / sqrt(2), and so on
        utilities = [[0.0, math.log(2)]] * 3
        host = with_utilities(utilities, welfare="mirror", welfare_step_size=1.0, welfare_step_schedule="inverse_sqrt")
        exponent = 0.0
        for step in (1, 2, 3):
            host.rollout()
            exponent += 1 / math.sqrt(step)
            assert (host.reward_weights[0] / host.reward_weights[1]).item() == pytest.approx(2**exponent, rel=1e-5)

    def test_refusal(self):
        with pytest.raises(ValueError, match="`welfare_step_schedule` is 'linear'.*'inverse_sqrt'"):
            MaxMinConfigMixin(welfare_step_schedule="linear")


class TestOscillation:
    """Seen by the mixin alone; on real trainers in `test_maxmin_trl_trainers.py`."""

    @staticmethod
    def host(rows, **config):
        host = MaxMinHost(rows, oscillation_window=4, **config)
        host.control = SimpleNamespace(should_training_stop=False)
        return host

    ALTERNATING = [[[0.0, 1.0], [0.01, 1.0]], [[1.0, 0.0], [1.0, 0.01]]] * 3

    def test_stop_is_asked_for_once_the_window_is_full(self):
        host = self.host(self.ALTERNATING, oscillation="stop")
        for expected in (False, False, False, True):
            host.rollout()
            assert host.control.should_training_stop is expected

    def test_the_window_is_in_the_checkpoint(self, tmp_path):
        first, second = (
            self.host(self.ALTERNATING, oscillation="stop"),
            self.host(self.ALTERNATING[3:], oscillation="stop"),
        )
        for _ in range(3):
            first.rollout()
        first.welfare.save(tmp_path)
        second.welfare.load(tmp_path)
        second.reward_weights = second.welfare.weights
        second.rollout()
        assert second.control.should_training_stop

    def test_evaluation_does_not_count(self):
        host = self.host(self.ALTERNATING, oscillation="stop")
        host.model.eval()
        for _ in range(6):
            host.rollout()
        assert not host.control.should_training_stop and host.welfare_state.recent == []

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("oscillation", "halt", "`oscillation` is 'halt'.*'stop'"),
            ("oscillation_window", 3, "`oscillation_window` is 3.*at least 4"),
        ],
    )
    def test_refusals(self, field, value, message):
        with pytest.raises(ValueError, match=message):
            MaxMinConfigMixin(**{field: value})
