# SPDX-License-Identifier: Apache-2.0
"""Which components have evidence enough to be the worst-off group.

Who is worst off decides what a policy is trained for. A component of a handful of people, or of a handful of pairs,
may be anybody: on real data components of six and of three people of 326 came out of EM. Those below the floor stay in
the mixture, are scored and logged, and have no say in the minimum.
"""

import math
from collections.abc import Sequence

import torch


MIN_GROUP_ANNOTATORS = 10
MIN_GROUP_SHARE = 0.05
MIN_GROUP_PAIRS = 30


def required_annotators(
    total: int, min_annotators: int = MIN_GROUP_ANNOTATORS, min_share: float = MIN_GROUP_SHARE
) -> int:
    """How many people a component needs: so many, or so large a share where people are few; at least one.

    Args:
        total (`int`): annotators of all components.
        min_annotators (`int`): enough of them, whatever their share.
        min_share (`float`): of all, which is enough as well, in [0, 1].

    Example:

    >>> required_annotators(326), required_annotators(50), required_annotators(12)
    (10, 3, 1)
    """
    return max(1, min(min_annotators, math.ceil(min_share * total - 1e-9)))


def has_evidence(
    annotators: Sequence[int] | None,
    pairs: Sequence[int] | None,
    *,
    min_annotators: int = MIN_GROUP_ANNOTATORS,
    min_share: float = MIN_GROUP_SHARE,
    min_pairs: int = MIN_GROUP_PAIRS,
) -> torch.Tensor | None:
    """Which components have people and pairs enough.

    Args:
        annotators (`Sequence[int]` of length K, *optional*): people whom each component describes best.
        pairs (`Sequence[int]` of length K, *optional*): training pairs that they gave.
        min_annotators, min_share: see [`required_annotators`].
        min_pairs (`int`): training pairs of a component; below 30 an accuracy has a standard error above 0.09.

    Returns:
        `torch.Tensor` of shape `(K,)`, boolean; `None` where neither number is known. Where no component has enough,
        all count: somebody has to be served.

    Raises:
        ValueError: lists of different length, or negative numbers.

    Example:

    >>> has_evidence([200, 117, 6, 3], [6000, 3500, 180, 90]).tolist()
    [True, True, False, False]
    """
    known = [list(counts) for counts in (annotators, pairs) if counts is not None]
    if not known:
        return None
    if len({len(counts) for counts in known}) > 1 or any(min(counts) < 0 for counts in known):
        raise ValueError(f"Needs one number a component, none negative; got annotators={annotators}, pairs={pairs}.")
    enough = torch.ones(len(known[0]), dtype=torch.bool)
    if annotators is not None:
        enough &= torch.tensor(list(annotators)) >= required_annotators(sum(annotators), min_annotators, min_share)
    if pairs is not None:
        enough &= torch.tensor(list(pairs)) >= min_pairs
    return enough if enough.any() else torch.ones_like(enough)
