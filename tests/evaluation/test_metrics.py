# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from trl_maxmin.evaluation import GroupWinRate, by_group, difference, group_min, ratio, win_rate


class TestWinRate:
    def test_ties_count_half(self):
        assert win_rate([2, 1, 0, 1], [1, 1, 1, 1]).mean == 0.5
        assert win_rate([1.0], [1.0]).mean == 0.5

    @pytest.mark.parametrize(("wins", "losses"), [(3, 7), (500, 500), (10, 0), (0, 10), (997, 3)])
    def test_interval_is_scipys_wilson_interval_without_ties(self, wins, losses):
        policy = np.array([1.0] * wins + [-1.0] * losses)
        rate = win_rate(policy, np.zeros(len(policy)))
        expected = binomtest(wins, wins + losses).proportion_ci(0.95, method="wilson")
        assert rate.mean == wins / (wins + losses)
        assert rate.low == pytest.approx(expected.low, abs=1e-9)
        assert rate.high == pytest.approx(expected.high, abs=1e-9)

    def test_interval_is_ordered_and_inside_the_unit_interval(self):
        for policy in ([1.0] * 5, [0.0] * 5, [1.0, 0.0]):
            rate = win_rate(policy, [0.5] * len(policy))
            assert 0 <= rate.low <= rate.mean <= rate.high <= 1
            assert rate.high > rate.low

    def test_swapping_the_policies_mirrors_everything(self):
        rng = np.random.default_rng(0)
        policy, reference = rng.integers(0, 4, 100), rng.integers(0, 4, 100)
        forward, backward = win_rate(policy, reference), win_rate(reference, policy)
        assert forward.mean == pytest.approx(1 - backward.mean)
        assert forward.low == pytest.approx(1 - backward.high)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        rng = np.random.default_rng(1)
        covered = 0
        for _ in range(400):
            rate = win_rate((rng.random(200) < 0.8).astype(float), np.full(200, 0.5))
            covered += rate.low <= 0.8 <= rate.high
        assert 0.92 <= covered / 400 <= 0.985

    def test_only_the_order_of_utilities_matters(self):
        rng = np.random.default_rng(2)
        policy, reference = rng.normal(size=50), rng.normal(size=50)
        assert win_rate(policy, reference) == win_rate(np.exp(policy), np.exp(reference))

    def test_takes_tensors(self):
        assert win_rate(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])).mean == 0.5

    def test_to_dict_is_what_a_report_holds(self):
        assert GroupWinRate(0.5, 0.4, 0.6).to_dict() == {"mean": 0.5, "low": 0.4, "high": 0.6}

    @pytest.mark.parametrize(
        ("policy", "reference", "message"),
        [
            ([1.0], [1.0, 2.0], "1 prompts, reference_utility 2"),
            ([], [], r"shape \(P,\) with P >= 1, got \(0,\)"),
            ([[1.0]], [[1.0]], r"got \(1, 1\)"),
            ([1.0, math.nan], [0.0, 0.0], "policy_utility has 1 NaN of 2"),
            ([1.0, 1.0], [0.0, math.nan], "reference_utility has 1 NaN of 2"),
        ],
    )
    def test_refuses(self, policy, reference, message):
        with pytest.raises(ValueError, match=message):
            win_rate(policy, reference)


class TestClusters:
    def test_copies_of_a_row_add_no_information(self):
        outcome = np.array([1.0, -1.0, 1.0, 1.0, -1.0] * 8)
        single = win_rate(outcome, np.zeros(40))
        copied = win_rate(np.repeat(outcome, 5), np.zeros(200), clusters=np.repeat(np.arange(40), 5).tolist())
        assert copied.mean == single.mean
        # 40 / 39: the clustered variance is unbiased, Wilson's is not.
        assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.02)

    def test_distinct_prompts_change_nothing(self):
        rng = np.random.default_rng(0)
        outcome = np.where(rng.random(300) < 0.7, 1.0, -1.0)
        plain, clustered = win_rate(outcome, np.zeros(300)), win_rate(outcome, np.zeros(300), clusters=range(300))
        assert clustered.low == pytest.approx(plain.low, abs=1e-3)
        assert clustered.high == pytest.approx(plain.high, abs=1e-3)

    def test_never_narrower_than_independent_rows(self):
        # Every prompt is won once and lost once: the mean of a prompt does not vary at all.
        outcome = [1.0, -1.0] * 20
        plain = win_rate(outcome, [0.0] * 40)
        assert win_rate(outcome, [0.0] * 40, clusters=[i // 2 for i in range(40)]) == plain

    def test_all_won_counts_distinct_prompts(self):
        rate = win_rate([1.0] * 100, [0.0] * 100, clusters=[i % 10 for i in range(100)])
        assert rate.low == pytest.approx(binomtest(10, 10).proportion_ci(0.95, method="wilson").low, abs=1e-9)

    def test_needs_one_value_a_row(self):
        with pytest.raises(ValueError, match="clusters has 1 values for 2 prompts"):
            win_rate([1.0, 2.0], [0.0, 0.0], clusters=["a"])


class TestByGroup:
    def test_each_group_by_itself(self):
        rates = by_group({"b": [1.0, 1.0], "a": [0.0, 1.0]}, {"a": [1.0, 1.0], "b": [0.0, 0.0]})
        assert list(rates) == ["b", "a"]
        assert rates["a"] == win_rate([0.0, 1.0], [1.0, 1.0])
        assert rates["b"].mean == 1

    def test_clusters_reach_every_group(self):
        rates = by_group({"a": [1.0, 1.0]}, {"a": [0.0, 0.0]}, clusters=["p", "p"])
        assert rates["a"] == win_rate([1.0], [0.0])

    def test_groups_must_be_the_same(self):
        with pytest.raises(ValueError, match=r"policy \['a'\], reference \['b'\]"):
            by_group({"a": [1.0]}, {"b": [1.0]})


class TestSummaries:
    rates = {"a": GroupWinRate(0.8, 0.7, 0.9), "b": GroupWinRate(0.6, 0.5, 0.7), "c": GroupWinRate(0.75, 0.7, 0.8)}

    def test_of_win_rates(self):
        assert group_min(self.rates) == 0.6
        assert difference(self.rates) == pytest.approx(0.2)
        assert ratio(self.rates) == pytest.approx(0.75)

    def test_of_plain_numbers(self):
        assert group_min({"a": -1.0, "b": 2.0}) == -1
        assert difference({"a": -1.0, "b": 2.0}) == 3
        assert ratio({"a": 0.0, "b": 0.0}) == 1
        assert ratio({"a": 0.0, "b": 1.0}) == 0

    @pytest.mark.parametrize("summary", [group_min, difference, ratio])
    def test_needs_a_group(self, summary):
        with pytest.raises(ValueError, match="no groups"):
            summary({})

    @pytest.mark.parametrize("summary", [group_min, difference, ratio])
    @pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
    def test_refuses_nan_wherever_it_stands(self, summary, order):
        with pytest.raises(ValueError, match=r"the groups \['b'\] have NaN; score them or leave them out"):
            summary({group: {"a": 0.5, "b": float("nan")}[group] for group in order})

    def test_ratio_refuses_negative_values(self):
        with pytest.raises(ValueError, match="-0.5; use difference"):
            ratio({"a": -0.5, "b": 1.0})
