# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch

from trl_maxmin.functional.utility import win_rate_utility, within_prompt_scale, zscore_utility


NAN = float("nan")


def test_scale_ignores_the_spread_between_prompts():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(6, 5, 3)) * [1.0, 2.0, 0.5] + 100 * rng.normal(size=(6, 1, 3))
    expected = np.sqrt(rewards.var(axis=1, ddof=1).mean(axis=0))
    torch.testing.assert_close(within_prompt_scale(torch.tensor(rewards)), torch.tensor(expected))


def test_scale_by_hand():
    # Variances with n - 1: [1, 1, 3, 3] -> 4/3 and [0, 0, 0, 4] -> 4; mean 8/3.
    rewards = torch.tensor([[[1.0], [1.0], [3.0], [3.0]], [[0.0], [0.0], [0.0], [4.0]]])
    assert within_prompt_scale(rewards).item() == pytest.approx(math.sqrt(8 / 3))


def test_constant_component_has_scale_one():
    rewards = torch.stack([torch.full((3, 4), 0.3), torch.tensor([[7.0], [-2.0], [1.0]]).expand(3, 4)], dim=-1)
    assert within_prompt_scale(rewards).tolist() == [1.0, 1.0]


def test_scale_leaves_out_what_was_not_scored():
    rewards = torch.tensor([[[1.0], [1.0], [3.0], [3.0], [NAN]], [[50.0], [NAN], [NAN], [NAN], [NAN]]])
    assert within_prompt_scale(rewards).item() == pytest.approx(math.sqrt(4 / 3))


def test_zscore_by_hand_and_nan():
    rewards = torch.tensor([[2.0, NAN], [4.0, 1.0]])
    utility = zscore_utility(rewards, torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([2.0, 0.5]))
    assert utility[:, 0].tolist() == [0.0, 2.0]
    assert utility[1, 1].item() == -4.0 and utility[0, 1].isnan()


def test_zscore_does_not_see_a_shift_per_prompt_or_a_scale():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(4, 8, 2, generator=generator)
    rewards = torch.randn(4, 2, generator=generator)
    shift, factor = 10 * torch.randn(4, 1, 2, generator=generator), torch.tensor([3.0, 0.2])

    def utility(rewards, reference):
        return zscore_utility(rewards, reference.mean(dim=1), within_prompt_scale(reference))

    changed = utility(rewards * factor + shift[:, 0], reference * factor + shift)
    torch.testing.assert_close(changed, utility(rewards, reference), rtol=1e-4, atol=1e-4)


def test_reference_replies_have_mean_zero_and_unit_spread():
    generator = torch.Generator().manual_seed(0)
    reference = 3 * torch.randn(5, 6, 2, generator=generator, dtype=torch.float64) + 7
    scale = within_prompt_scale(reference)
    utilities = torch.stack([zscore_utility(reference[:, m], reference.mean(dim=1), scale) for m in range(6)], dim=1)
    torch.testing.assert_close(utilities.mean(dim=1), torch.zeros(5, 2, dtype=torch.float64))
    torch.testing.assert_close(utilities.var(dim=1).mean(dim=0), torch.ones(2, dtype=torch.float64))


def test_win_rate_by_hand():
    # Odds 3 : 1 against one reference, even against the other: (3/4 + 1/2) / 2.
    rewards = torch.tensor([[math.log(3.0)]])
    references = torch.tensor([[[0.0], [math.log(3.0)]]])
    assert win_rate_utility(rewards, references).item() == pytest.approx(0.625)
    references[0, 1] = NAN
    assert win_rate_utility(rewards, references).item() == pytest.approx(0.75)


def test_win_rate_of_unscored_replies_and_references():
    rewards = torch.tensor([[0.0, NAN], [0.0, 0.0]])
    references = torch.tensor([[[0.0, 0.0], [NAN, 0.0]], [[NAN, 0.0], [NAN, 0.0]]])
    utility = win_rate_utility(rewards, references)
    assert utility.isnan().tolist() == [[False, True], [True, False]]
    assert utility[0, 0].item() == 0.5 and utility[1, 1].item() == 0.5


def test_win_rate_stays_between_zero_and_one_and_against_itself_is_half():
    generator = torch.Generator().manual_seed(0)
    references = 50 * torch.randn(6, 4, 3, generator=generator)
    rates = torch.stack([win_rate_utility(references[:, m], references) for m in range(4)], dim=1)
    assert (rates >= 0).all() and (rates <= 1).all()
    torch.testing.assert_close(rates.mean(dim=1), torch.full((6, 3), 0.5))


def test_win_rate_passes_gradients_without_nan():
    rewards = torch.zeros(1, 1, requires_grad=True)
    win_rate_utility(rewards, torch.tensor([[[0.0], [NAN]]])).sum().backward()
    assert rewards.grad.item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: within_prompt_scale(torch.zeros(2, 4)), "`rewards` has shape"),
        (lambda: within_prompt_scale(torch.zeros(2, 3, 1)), "3 reference replies a prompt, but at least 4"),
        (lambda: within_prompt_scale(torch.full((2, 4, 1), NAN)), r"Components \[0\] scored no prompt"),
        (lambda: zscore_utility(torch.zeros(2), torch.zeros(2), torch.ones(2)), "`rewards` has shape"),
        (lambda: zscore_utility(torch.zeros(2, 2), torch.zeros(3), torch.ones(2)), "`baseline` has shape"),
        (lambda: zscore_utility(torch.zeros(2, 2), torch.zeros(3, 2), torch.ones(2)), "`baseline` has shape"),
        (lambda: zscore_utility(torch.zeros(2, 2), torch.zeros(2), torch.ones(1)), "`scale` has shape"),
        (lambda: zscore_utility(torch.zeros(2, 2), torch.zeros(2), torch.tensor([1.0, 0.0])), "finite and positive"),
        (lambda: win_rate_utility(torch.zeros(2), torch.zeros(2, 1, 1)), "`rewards` has shape"),
        (lambda: win_rate_utility(torch.zeros(2, 1), torch.zeros(3, 1, 1)), "`reference_rewards` has shape"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
