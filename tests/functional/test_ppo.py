# SPDX-License-Identifier: Apache-2.0
"""PPO arithmetic against values worked out on paper, numpy and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_maxmin.functional.ppo import (
    adaptive_kl_coef,
    combine_advantages,
    generalized_advantage_estimate,
    kl_estimate,
    masked_mean,
    masked_moments,
    masked_var,
    moments_to_mean_var,
    place_terminal_rewards,
    policy_loss_terms,
    value_loss_terms,
    whiten,
)


def close(tensor, expected, **kwargs):
    torch.testing.assert_close(tensor, torch.tensor(expected), **({"atol": 1e-6, "rtol": 1e-5} | kwargs))


class TestMaskedStatistics:
    values = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.nan, math.inf]])
    mask = torch.tensor([[True, True, False], [True, False, False]])

    def test_against_numpy(self):
        kept = np.array([1.0, 2.0, 6.0])
        close(masked_mean(self.values, self.mask), kept.mean().item(), check_dtype=False)
        close(masked_var(self.values, self.mask), kept.var(ddof=1).item(), check_dtype=False)

    def test_empty_is_zero(self):
        nothing = torch.zeros(2, 3, dtype=torch.bool)
        assert masked_mean(self.values, nothing) == 0
        assert masked_var(self.values, nothing) == 0
        assert [value.item() for value in moments_to_mean_var(masked_moments(self.values, nothing))] == [0, 0]

    def test_a_single_entry_has_no_variance(self):
        one = torch.tensor([[True, False]])
        assert masked_var(torch.tensor([[3.0, 5.0]]), one) == 0
        assert moments_to_mean_var(masked_moments(torch.tensor([[3.0, 5.0]]), one))[1] == 0

    def test_moments_add_up_over_ranks(self):
        parts = masked_moments(self.values[:1], self.mask[:1]) + masked_moments(self.values[1:], self.mask[1:])
        mean, var = moments_to_mean_var(parts)
        assert mean.item() == pytest.approx(3.0)
        assert var.item() == pytest.approx(7.0)

    def test_moments_do_not_cancel(self):
        values = torch.tensor([[1000.0, 1000.1, 999.9]])
        _, var = moments_to_mean_var(masked_moments(values, torch.ones(1, 3, dtype=torch.bool)))
        assert var.item() == pytest.approx(np.var(values.numpy().astype(np.float64), ddof=1), rel=1e-5)


class TestWhiten:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 1000), st.floats(0.1, 100.0), st.floats(-10.0, 10.0))
    def test_mean_zero_variance_one(self, seed, scale, shift):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(4, 6, generator=generator) * scale + shift
        mask = torch.rand(4, 6, generator=generator) < 0.7
        mask[0, :2] = True
        whitened = whiten(values, mask)
        kept = whitened[mask].double().numpy()
        assert kept.mean() == pytest.approx(0.0, abs=1e-4)
        assert kept.var(ddof=1) == pytest.approx(1.0, rel=1e-3)
        assert (whitened[~mask] == 0).all()

    def test_the_mean_may_stay(self):
        values = torch.tensor([[1.0, 3.0, 8.0]])
        kept = whiten(values, torch.tensor([[True, True, False]]), shift_mean=False)
        close(kept, [[2 - 0.5**0.5, 2 + 0.5**0.5, 0.0]])

    def test_given_statistics_are_used(self):
        values = torch.tensor([[1.0, 3.0]])
        out = whiten(values, torch.ones(1, 2, dtype=torch.bool), torch.tensor(1.0), torch.tensor(4.0))
        close(out, [[0.0, 1.0]])

    def test_equal_values_become_zero(self):
        assert (whiten(torch.full((2, 2), 5.0), torch.ones(2, 2, dtype=torch.bool)) == 0).all()


class TestKl:
    def test_by_hand(self):
        new, old = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
        close(kl_estimate(new, old, "k1"), [[math.log(2)]])
        close(kl_estimate(new, old, "k2"), [[0.5 * math.log(2) ** 2]])
        close(kl_estimate(new, old, "k3"), [[0.5 - 1 + math.log(2)]])

    @pytest.mark.parametrize("estimator", ["k1", "k3"])
    def test_unbiased(self, estimator):
        p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3])
        exact = (p * (p / q).log()).sum()
        expected = (p * kl_estimate(p.log(), q.log(), estimator)).sum()
        torch.testing.assert_close(expected, exact)

    def test_k3_is_never_negative(self):
        difference = torch.linspace(-5, 5, 101)
        assert (kl_estimate(difference, torch.zeros(101), "k3") >= 0).all()

    def test_unknown(self):
        with pytest.raises(ValueError, match="'k4'.*k1, k2, k3"):
            kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


class TestTerminalRewards:
    def test_last_real_token_of_ragged_rows(self):
        mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
        placed = place_terminal_rewards(torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]), mask)
        close(placed[..., 0], [[0.0, 0.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        close(placed[..., 1], [[0.0, 0.0, -1.0], [-2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    def test_no_tokens_at_all(self):
        assert place_terminal_rewards(torch.ones(2, 3), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0, 3)

    def test_shapes(self):
        with pytest.raises(ValueError, match="one row per reply"):
            place_terminal_rewards(torch.ones(2, 1), torch.ones(3, 4, dtype=torch.bool))


class TestAdvantages:
    """gamma 0.9 and lambda 0.5, so A_t = delta_t + 0.45 A_{t+1}."""

    mask = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    # Rows x tokens x two channels; 99 and 77 stand on padding and must not matter.
    rewards = torch.tensor(
        [
            [[0.0, -1.0], [0.0, 2.0], [1.0, 0.0]],
            [[0.0, 1.0], [3.0, 0.0], [99.0, 99.0]],
            [[99.0, 99.0], [99.0, 99.0], [99.0, 99.0]],
        ]
    )
    values = torch.tensor(
        [
            [[0.5, 0.0], [0.4, 1.0], [0.2, -1.0]],
            [[1.0, 0.0], [2.0, 0.0], [77.0, 77.0]],
            [[77.0, 77.0], [77.0, 77.0], [77.0, 77.0]],
        ]
    )

    def test_by_hand(self):
        advantages, returns = generalized_advantage_estimate(self.rewards, self.values, self.mask, 0.9, 0.5)
        # Row 0, channel 0: deltas -0.14, -0.22, 0.8. Row 0, channel 1: -0.1, 0.1, 1. Row 1: 0.8, 1 and 1, 0.
        close(advantages[0], [[-0.077, 0.1475], [0.14, 0.55], [0.8, 1.0]])
        close(returns[0], [[0.423, 0.1475], [0.54, 1.55], [1.0, 0.0]])
        close(advantages[1], [[1.25, 1.0], [1.0, 0.0], [0.0, 0.0]])
        close(returns[1], [[2.25, 1.0], [3.0, 0.0], [0.0, 0.0]])
        assert not advantages[2].any() and not returns[2].any()

    def test_monte_carlo_and_one_step_limits(self):
        _, returns = generalized_advantage_estimate(self.rewards, self.values, self.mask, 1.0, 1.0)
        close(returns[0, :, 0], [1.0, 1.0, 1.0])
        advantages, _ = generalized_advantage_estimate(self.rewards, self.values, self.mask, 1.0, 0.0)
        close(advantages[0, :, 0], [0.4 - 0.5, 0.2 - 0.4, 1.0 - 0.2])

    def test_channels_are_linear(self):
        """The advantage of the weighted reward with the weighted value is the weighted advantage."""
        weights = torch.tensor([0.3, -2.0])
        vector, _ = generalized_advantage_estimate(self.rewards, self.values, self.mask, 0.9, 0.8)
        scalar, _ = generalized_advantage_estimate(
            (self.rewards @ weights).unsqueeze(-1), (self.values @ weights).unsqueeze(-1), self.mask, 0.9, 0.8
        )
        torch.testing.assert_close(combine_advantages(vector, weights), scalar.squeeze(-1))

    def test_no_tokens_at_all(self):
        advantages, returns = generalized_advantage_estimate(
            torch.zeros(2, 0, 3), torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.bool), 1.0, 0.95
        )
        assert advantages.shape == returns.shape == (2, 0, 3)

    def test_shapes(self):
        with pytest.raises(ValueError, match="`values`"):
            generalized_advantage_estimate(self.rewards, self.values[..., :1], self.mask, 1.0, 1.0)
        with pytest.raises(ValueError, match="`mask`"):
            generalized_advantage_estimate(self.rewards, self.values, self.mask[:, :2], 1.0, 1.0)
        with pytest.raises(ValueError, match="one weight per channel"):
            combine_advantages(self.rewards, torch.ones(3))


class TestLosses:
    def test_policy_by_hand(self):
        # Ratios 2, 0.5, 2, 1.1, and one on padding that would be infinite; the clip is at 0.8 and 1.2.
        new = torch.tensor([[2.0, 0.5, 2.0, 1.1, 1.0]]).log()
        new[0, 4] = 1000.0
        old = torch.zeros(1, 5)
        advantages = torch.tensor([[1.0, -1.0, -1.0, 3.0, 5.0]])
        mask = torch.tensor([[True, True, True, True, False]])
        losses, clipped = policy_loss_terms(new.requires_grad_(), old, advantages, mask, 0.2)
        close(losses.detach(), [[-1.2, 0.8, 2.0, -3.3, 0.0]])
        assert clipped.tolist() == [[True, True, False, False, False]]
        losses.sum().backward()
        # Nothing flows through an active clip; elsewhere -A r.
        close(new.grad, [[0.0, 0.0, 2.0, -3.3, 0.0]])

    def test_value_by_hand(self):
        # Two channels. First token: 3 is held at 1.2 while the return is 4, and 0.1 lies within the range.
        values = torch.tensor([[[3.0, 0.1], [9.0, 9.0]]])
        old = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        returns = torch.tensor([[[4.0, 1.0], [0.0, 0.0]]])
        losses, clipped = value_loss_terms(values, old, returns, torch.tensor([[True, False]]), 0.2)
        # ((4 - 1.2)^2 + (1 - 0.1)^2) / 2 channels / 2
        close(losses, [[(7.84 + 0.81) / 4, 0.0]])
        assert clipped.tolist() == [[[True, False], [False, False]]]


class TestAdaptiveKl:
    def test_by_hand(self):
        assert adaptive_kl_coef(0.2, 6.6, 6.0, 1000, 100) == pytest.approx(0.2 * 1.01)
        assert adaptive_kl_coef(0.2, 60.0, 6.0, 1000, 100) == pytest.approx(0.2 * 1.02)
        assert adaptive_kl_coef(0.2, -3.0, 6.0, 1000, 100) == pytest.approx(0.2 * 0.98)

    @pytest.mark.parametrize(("target", "horizon"), [(0.0, 10.0), (6.0, 0.0)])
    def test_ranges(self, target, horizon):
        with pytest.raises(ValueError, match="above 0"):
            adaptive_kl_coef(0.2, 1.0, target, horizon, 1)
