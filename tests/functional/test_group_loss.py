# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from trl_maxmin.functional.group_loss import group_sums, row_factors, small_group_offset


def planted(rows=40, groups=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    told = torch.rand(rows, groups, generator=generator, dtype=torch.float64).softmax(-1)
    return told, torch.rand(rows, generator=generator, dtype=torch.float64)


def test_the_mean_over_all_rows_is_the_weighted_sum_of_the_group_losses():
    told, losses = planted()
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    by_group = [(told[:, k] * losses).sum() / told[:, k].sum() for k in range(3)]
    expected = sum(w * loss for w, loss in zip(weights, by_group, strict=True))
    torch.testing.assert_close((row_factors(told, weights, told.mean(0)) * losses).mean(), expected)


def test_weights_equal_to_the_shares_leave_every_row_as_it_is():
    told, _ = planted()
    torch.testing.assert_close(row_factors(told, told.mean(0), told.mean(0)), torch.ones(40, dtype=torch.float64))
    assert row_factors(torch.ones(5, 1), torch.ones(1), torch.ones(1)).tolist() == [1.0] * 5


def test_a_group_without_rows_counts_for_nothing():
    factors = row_factors(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    assert factors.tolist() == [0.5]


def test_sums_by_hand_and_over_parts():
    values, told = torch.tensor([[2.0], [4.0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert group_sums(values, told).tolist() == [[4.5, 1.25], [1.5, 0.75]]
    parts = group_sums(values[:1], told[:1]) + group_sums(values[1:], told[1:])
    torch.testing.assert_close(parts, group_sums(values, told))


def test_the_offset_falls_with_the_root_of_the_size():
    found = small_group_offset(torch.tensor([400.0, 25.0, 0.0]), 3.0)
    torch.testing.assert_close(found, torch.tensor([0.15, 0.6, 0.0]))
    assert small_group_offset(torch.tensor([4.0]), 0.0).tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: row_factors(torch.ones(2), torch.ones(2), torch.ones(2)), "`responsibilities` has shape"),
        (lambda: row_factors(torch.ones(2, 2), torch.ones(3), torch.ones(2)), "`weights` has shape"),
        (lambda: row_factors(torch.ones(2, 2), torch.ones(2), torch.ones(3)), "`shares` has shape"),
        (lambda: group_sums(torch.ones(2), torch.ones(2, 2)), "`values` has shape"),
        (lambda: group_sums(torch.ones(3, 1), torch.ones(2, 2)), "`responsibilities` has shape"),
        (lambda: small_group_offset(torch.ones(2), -1.0), "`size` is -1.0"),
        (lambda: small_group_offset(torch.ones(2), float("nan")), "`size` is nan"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
