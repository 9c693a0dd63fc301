# SPDX-License-Identifier: Apache-2.0
"""When switching between groups stalls, on series whose answer is known by construction."""

import pytest
import torch

from trl_maxmin.functional.oscillation import switching_stalls


SIZE = 12
ALTERNATING = torch.arange(SIZE) % 2
ONES = torch.ones(SIZE)


def stalls(worst=ALTERNATING, worst_utility=0 * ONES, gap=ONES, gap_error=0.1 * ONES):
    return switching_stalls(worst, worst_utility, gap, gap_error)


def test_alternating_without_gain():
    assert stalls() is True


def test_a_falling_worst_utility_is_worse_still():
    assert stalls(worst_utility=-torch.arange(SIZE).float())


def test_one_group_that_is_always_the_worst_does_not_oscillate():
    assert not stalls(worst=torch.zeros(SIZE, dtype=torch.long))


@pytest.mark.parametrize(("switches", "expected"), [(2, False), (3, True)])
def test_a_quarter_of_the_rollouts_has_to_switch(switches, expected):
    # 11 transitions: 2 of them are 18 %, 3 are 27 %
    worst = (torch.arange(SIZE).unsqueeze(1) >= torch.tensor([3, 6, 9])[:switches]).sum(1) % 2
    assert stalls(worst=worst) is expected


@pytest.mark.parametrize(("gain", "expected"), [(0.09, True), (0.11, False)])
def test_a_tenth_of_the_gap_in_half_a_window_is_progress(gain, expected):
    assert stalls(worst_utility=torch.where(torch.arange(SIZE) < SIZE // 2, 0.0, gain)) is expected


@pytest.mark.parametrize(("error", "expected"), [(0.4, True), (0.6, False)])
def test_groups_that_are_equal_up_to_noise_have_converged(error, expected):
    assert stalls(gap_error=error * ONES) is expected


def test_three_groups_in_turn():
    assert stalls(worst=torch.arange(SIZE) % 3)


def test_refusals():
    with pytest.raises(ValueError, match="`gap` has shape"):
        stalls(gap=ONES[:-1])
    short = torch.ones(3)
    with pytest.raises(ValueError, match="3 rollouts, but at least 4"):
        switching_stalls(short, short, short, short)
