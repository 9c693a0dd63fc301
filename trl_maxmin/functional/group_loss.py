# SPDX-License-Identifier: Apache-2.0
"""A loss of rows as a loss of groups, whose weights a welfare rule decides.

Letters: B rows of a batch, N rows in all, K groups. The responsibilities `r` of a row say of which group it is:
one-hot where that is known, a posterior where it is not.
"""

import torch

from .preference import require_shape


def row_factors(responsibilities: torch.Tensor, weights: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """What each row's loss is multiplied by, `sum_k r[k] w[k] / s[k]`: the mean over rows is then `sum_k w[k] L[k]`.

    `L[k] = sum_n r[n, k] l[n] / sum_n r[n, k]` is the mean loss of a group over all data. Of a batch that was drawn
    evenly the mean is an unbiased estimate, whichever groups are in it; with weights equal to the shares every factor
    is 1 and the loss is that of the rows.

    Args:
        responsibilities (`torch.Tensor` of shape `(B, K)`): of the rows, each on the simplex.
        weights (`torch.Tensor` of shape `(K,)`): of the groups, on the simplex.
        shares (`torch.Tensor` of shape `(K,)`): `s[k] = sum_n r[n, k] / N` over all data. 0: a group without rows,
            which counts for nothing.

    Returns:
        `torch.Tensor` of shape `(B,)`, non-negative.

    Raises:
        ValueError: a wrong shape.

    Source: Ramesh et al. (2024), "Group Robust Preference Optimization in Reward-free RLHF" (arXiv 2405.20304),
    Algorithm 1, where a row of group k counts `w[k] N / N[k]`.

    Example: a quarter of the data is of the second group, which has half of the weight.

    >>> row_factors(torch.eye(2), torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))
    tensor([0.6667, 2.0000])
    """
    require_shape("responsibilities", responsibilities, (None, None), "rows by groups, (B, K)")
    for name, values in (("weights", weights), ("shares", shares)):
        require_shape(name, values, (responsibilities.shape[1],), "one entry per group, (K,)")
    scale = torch.where(shares > 0, weights / shares.clamp_min(torch.finfo(shares.dtype).tiny), 0.0)
    return responsibilities @ scale.to(responsibilities)


def group_sums(values: torch.Tensor, responsibilities: torch.Tensor) -> torch.Tensor:
    """Sums by group, to be added over batches and ranks; a sum over a count is a mean.

    Args:
        values (`torch.Tensor` of shape `(B, M)`): M numbers of each row.
        responsibilities (`torch.Tensor` of shape `(B, K)`): of the rows.

    Returns:
        `torch.Tensor` of shape `(K, M + 1)`, float64: the sums, and in the last column the count `sum_b r[b, k]`.

    Raises:
        ValueError: a wrong shape.

    Example:

    >>> group_sums(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([[2.5000, 1.5000],
            [1.5000, 0.5000]], dtype=torch.float64)
    """
    require_shape("values", values, (None, None), "rows by numbers, (B, M)")
    require_shape("responsibilities", responsibilities, (values.shape[0], None), "rows by groups, (B, K)")
    ones = torch.ones_like(values[:, :1], dtype=torch.float64)
    return responsibilities.double().T @ torch.cat([values.double(), ones], dim=1)


def small_group_offset(counts: torch.Tensor, size: float) -> torch.Tensor:
    """`size / sqrt(n[k])`, added to the loss of each group before weights are decided: small groups overfit sooner.

    Args:
        counts (`torch.Tensor` of shape `(K,)`): rows of each group, not negative.
        size (`float`): C, in units of the loss; 0 is no offset.

    Returns:
        `torch.Tensor` of shape `(K,)`; 0 for a group without rows, which has no loss to add to.

    Raises:
        ValueError: `size` negative or not finite.

    Source: Sagawa et al. (2020), "Distributionally Robust Neural Networks for Group Shifts" (arXiv 1911.08731), whose
    group adjustment arXiv 2405.20304 takes over.

    Example:

    >>> small_group_offset(torch.tensor([100.0, 4.0]), 2.0)
    tensor([0.2000, 1.0000])
    """
    if not 0.0 <= size < float("inf"):
        raise ValueError(f"`size` is {size}, but must be finite and not negative; 0 is no offset.")
    return torch.where(counts > 0, size / counts.clamp_min(torch.finfo(counts.dtype).tiny).sqrt(), 0.0)
