# SPDX-License-Identifier: Apache-2.0
"""Does switching between groups still help anybody?"""

import torch

from .preference import require_shape


# Ours: a quarter of the rollouts switch; a tenth of the gap is gained in half a window; twice the noise.
MIN_SWITCH_SHARE = 0.25
MIN_PROGRESS = 0.1
MIN_GAP_ERRORS = 2.0


def switching_stalls(
    worst: torch.Tensor, worst_utility: torch.Tensor, gap: torch.Tensor, gap_error: torch.Tensor
) -> bool:
    """Whether hard switching goes in circles: the worst-off component alternates, and none of them gains by it.

    Three things have to hold over the rollouts: (1) the worst-off component changes in at least a quarter of them;
    (2) from the first half to the second the worst utility gains less than a tenth of the mean gap, so the gap would
    not be closed within several such windows; (3) the mean gap is above twice its sampling error: groups that are
    equal up to noise also alternate, and that is convergence.

    Args:
        worst (`torch.Tensor` of shape `(W,)`): index of the worst-off component in W rollouts, oldest first.
        worst_utility (`torch.Tensor` of shape `(W,)`): its group utility.
        gap (`torch.Tensor` of shape `(W,)`): largest minus smallest group utility.
        gap_error (`torch.Tensor` of shape `(W,)`): standard error of the gap.

    Raises:
        ValueError: shapes that differ, or fewer than four rollouts.

    Example:

    >>> worst, gap = torch.tensor([0, 1] * 4), torch.ones(8)
    >>> switching_stalls(worst, torch.zeros(8), gap, 0.1 * gap)
    True
    >>> switching_stalls(worst, torch.arange(8.0), gap, 0.1 * gap)
    False
    """
    require_shape("worst", worst, (None,), "one rollout an entry, (W,)")
    size = worst.numel()
    for name, values in (("worst_utility", worst_utility), ("gap", gap), ("gap_error", gap_error)):
        require_shape(name, values, (size,), "that of `worst`, (W,)")
    if size < 4:
        raise ValueError(f"`worst` has {size} rollouts, but at least 4 are needed to see a trend.")
    switches = (worst[1:] != worst[:-1]).double().mean()
    progress = worst_utility[size // 2 :].double().mean() - worst_utility[: size // 2].double().mean()
    mean_gap = gap.double().mean()
    alternates = switches >= MIN_SWITCH_SHARE
    stalls = progress < MIN_PROGRESS * mean_gap
    matters = mean_gap > MIN_GAP_ERRORS * gap_error.double().mean()
    return bool(alternates & stalls & matters)
