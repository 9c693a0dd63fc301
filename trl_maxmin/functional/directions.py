# SPDX-License-Identifier: Apache-2.0
"""Principal directions of features, in which linear rewards are fitted."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_directions(
    moment: Tensor, max_directions: int | None = None, floor: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """Directions in which features, or their differences, are uncorrelated. They are orthonormal, not whitened.

    A direction in which nothing differs would get a large weight by whitening, and the reward of a text unlike the
    others (a truncated one, say) would explode along it. Who fits under a ridge brings all directions to one common
    scale instead.

    Args:
        moment (`Tensor` of shape `(D, D)`): mean of the outer products of what is described.
        max_directions (`int`, *optional*): the leading ones of so many are kept.
        floor (`float`): directions with less than this share of the leading mean square are left out.

    Returns:
        `Tensor` of shape `(D, R)` and the mean squares `(R,)`, ascending.

    Raises:
        ValueError: there is no direction in which anything differs.

    Example:

    >>> directions, squares = principal_directions(torch.diag(torch.tensor([4.0, 0.0, 1.0])))
    >>> directions.abs().T.tolist(), squares.tolist()
    ([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [1.0, 4.0])
    """
    values, vectors = torch.linalg.eigh(moment)
    some = values > floor * values[-1].clamp(min=1e-30)
    if not some.any():
        raise ValueError(
            "All texts have the same features, so nothing can tell rewards, or the components, apart. Check that "
            "chosen and rejected differ after tokenisation, or raise max_length."
        )
    kept = slice(-max_directions if max_directions else None, None)
    return vectors[:, some][:, kept], values[some][kept]
