# SPDX-License-Identifier: Apache-2.0
"""Principal directions against numpy's singular values."""

import numpy as np
import pytest
import torch

from trl_maxmin.functional.directions import principal_directions


def test_against_the_singular_value_decomposition():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 5] = x[:, 0] - x[:, 1]  # one direction in which nothing differs
    directions, squares = principal_directions(x.T @ x / 40)
    _, singular, right = np.linalg.svd(x.numpy() / np.sqrt(40))
    np.testing.assert_allclose(squares.numpy()[::-1], singular[:5] ** 2)
    np.testing.assert_allclose(np.abs(directions.numpy().T[::-1]), np.abs(right[:5]), atol=1e-8)
    leading, most = principal_directions(x.T @ x / 40, max_directions=2)
    assert torch.equal(leading, directions[:, -2:]) and torch.equal(most, squares[-2:])


def test_nothing_differs():
    with pytest.raises(ValueError, match="same features"):
        principal_directions(torch.zeros(3, 3))
