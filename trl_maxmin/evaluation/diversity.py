# SPDX-License-Identifier: Apache-2.0
"""What a single reward must get wrong: diversity of preferences, mismatch, and the alignment gap with its bounds.

The impossibility result of MaxMin-RLHF (arXiv 2402.08925, section 3) is about groups with linear rewards
`r_u(x, y) = <phi_u, psi(x, y)>` on bounded features, `|psi| <= D`, and preferences after Bradley and Terry. Here are
its quantities, computed on pairs of replies, and what of it can be checked without training a policy.

Letters: N pairs, P prompts, M candidate replies, K groups (known, or components that EM learned), D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


ASSUMPTIONS = (
    "Rewards are linear in the features, |features| <= D.",
    "Each group's preferences follow Bradley and Terry under its own reward.",
    "Every annotator belongs to one group; the shares of the bounds are shares of the preference pairs.",
)
"""What every number of this module stands on; reports repeat it."""

GAP_ASSUMPTIONS = (
    "The alignment gap is that of the exact KL-regularised optimum among the replies in the data, taken as equally "
    "likely under the reference policy; nothing is trained.",
)


def preference_probability(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Probability that a group prefers the first reply of each pair: `sigmoid(first - second)`.

    Args:
        first (`np.ndarray` of shape `(N,)` or `(N, K)`): rewards of the first replies, Bradley-Terry log-odds.
        second (`np.ndarray` of the same shape): rewards of the second replies.

    Returns:
        `np.ndarray` of the same shape, in (0, 1).

    Example:

    >>> preference_probability(np.array([0.0]), np.array([0.0])).tolist()
    [0.5]
    """
    return 1 / (1 + np.exp(-np.clip(np.asarray(first, dtype=np.float64) - second, -700, 700)))


def total_variation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Total-variation distance of two preference distributions, pair by pair.

    A preference is one of two outcomes, so the distance is `|p_1 - p_2|`. Its mean over the pairs is the distance of
    the two joint distributions of pair and outcome: what the paper calls the diversity of two groups.

    Args:
        first (`np.ndarray` of shape `(N,)`): probability that one group prefers the first reply of each pair.
        second (`np.ndarray` of shape `(N,)`): the same of another group.

    Returns:
        `np.ndarray` of shape `(N,)`, in [0, 1].

    Raises:
        ValueError: shapes that differ, or numbers that are not probabilities.

    Example:

    >>> total_variation(np.array([0.9, 0.5]), np.array([0.1, 0.5])).round(2).tolist()
    [0.8, 0.0]
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Both need shape (N,), one probability a pair; got {first.shape} and {second.shape}.")
    for values in (first, second):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("Probabilities must lie in [0, 1]; see `preference_probability` for rewards.")
    return np.abs(first - second)


def diversity_matrix(probabilities: np.ndarray) -> np.ndarray:
    """Mean total-variation distance between every two groups.

    Args:
        probabilities (`np.ndarray` of shape `(N, K)`): probability that each group prefers the first reply.

    Returns:
        `np.ndarray` of shape `(K, K)`, symmetric, 0 on the diagonal.

    Raises:
        ValueError: a wrong shape, no pairs, or numbers that are not probabilities.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or len(probabilities) == 0:
        raise ValueError(f"probabilities must have shape (N, K) with N >= 1, got {probabilities.shape}.")
    size = probabilities.shape[1]
    return np.array(
        [[total_variation(probabilities[:, i], probabilities[:, j]).mean() for j in range(size)] for i in range(size)]
    )


def diversity_margins(matrix: np.ndarray) -> np.ndarray:
    """Epsilon of each group: how much farther it lies from some other group than all the rest do.

    `epsilon_u = max_j [TV(u, j) - max_{k != u} TV(k, j)]_+`. The preferences p of all people together are a mixture of
    the groups', so `TV(p, j) <= share_u TV(u, j) + (1 - share_u) max_{k != u} TV(k, j)`, and the triangle inequality
    leaves `TV(p, u) >= epsilon_u (1 - share_u)`.

    departs from the paper: its epsilon is the margin of the most diverse pair of groups over the next, the same for
    every group. With three groups or more that holds for these two at most: a group in the middle is far from nobody,
    and a single reward may cost it nothing.

    Args:
        matrix (`np.ndarray` of shape `(K, K)`): from [`diversity_matrix`].

    Returns:
        `np.ndarray` of shape `(K,)`, in [0, 1]; of two groups their diversity, 0 for a single group. Where it is 0 the
        bounds say nothing of that group; the measured gap still does.

    Example:

    >>> diversity_margins(np.array([[0.0, 0.6, 0.3], [0.6, 0.0, 0.3], [0.3, 0.3, 0.0]])).round(2).tolist()
    [0.3, 0.3, 0.0]
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    margins = np.zeros(len(matrix))
    for u in range(len(matrix)):
        others = np.arange(len(matrix)) != u
        if others.any():
            farther = matrix[u, others] - matrix[np.ix_(others, others)].max(axis=0)
            margins[u] = max(0.0, float(farther.max()))
    return margins


def mismatch_bound(epsilon: float, share: float, feature_bound: float) -> float:
    """Least distance of the single reward's parameters from a group's: `epsilon (1 - share) / (4 D)` (Lemma 1).

    Args:
        epsilon (`float`): of the group, from [`diversity_margins`], in [0, 1].
        share (`float`): of the group, in [0, 1].
        feature_bound (`float`): D, positive.

    Returns:
        `float`: lower bound of `|phi_single - phi_u|`, Bradley-Terry log-odds per unit of the features.

    Raises:
        ValueError: an argument outside its range.

    Example:

    >>> mismatch_bound(0.4, share=0.2, feature_bound=1.0)
    0.08
    """
    if not (0 <= epsilon <= 1 and 0 <= share <= 1 and feature_bound > 0):
        raise ValueError(
            f"Needs epsilon and share in [0, 1] and a positive feature bound; got {epsilon}, {share}, {feature_bound}."
        )
    return epsilon * (1 - share) / (4 * feature_bound)


def gap_bound(epsilon: float, share: float, feature_bound: float, beta: float, curvature: float) -> float:
    """Least alignment gap that follows from Lemma 1 and strong concavity: `curvature / (2 beta) * mismatch_bound^2`.

    departs from the paper: its Theorem 1 has `epsilon (1 - share)` to the first power, over `64 beta^2 L_pi D^2` with
    a Lipschitz constant of the policy class that no data reveal. Composing Lemma 1 with strong concavity squares it;
    this form has no unknown constant.

    Args:
        epsilon (`float`): of the group, from [`diversity_margins`].
        share (`float`): of the group.
        feature_bound (`float`): D.
        beta (`float`): KL coefficient, positive.
        curvature (`float`): least eigenvalue of the feature covariance under the policies between the group's own
            and the single reward's optimum, see [`feature_curvature`]; not negative.

    Returns:
        `float`: lower bound of the group's gap, Bradley-Terry log-odds.

    Raises:
        ValueError: an argument outside its range.
    """
    if beta <= 0 or curvature < 0:
        raise ValueError(f"Needs a positive beta and a curvature that is not negative; got {beta} and {curvature}.")
    return curvature / (2 * beta) * mismatch_bound(epsilon, share, feature_bound) ** 2


def optimal_policy(rewards: Sequence[float], beta: float) -> np.ndarray:
    """The KL-regularised optimum among candidate replies, all equally likely under the reference: `exp(r / beta)`.

    Args:
        rewards (`Sequence[float]` of length M): of the candidates to one prompt.
        beta (`float`): KL coefficient, positive.

    Returns:
        `np.ndarray` of shape `(M,)`: probabilities.

    Raises:
        ValueError: no candidates, or a beta that is not positive.

    Example:

    >>> import math
    >>> optimal_policy([math.log(3), 0.0], beta=1.0).round(2).tolist()
    [0.75, 0.25]
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or not len(values) or beta <= 0:
        raise ValueError(f"Needs rewards of shape (M,), M >= 1, and a positive beta; got {values.shape} and {beta}.")
    weights = np.exp((values - values.max()) / beta)
    return weights / weights.sum()


def alignment_gap(
    group_rewards: Sequence[Sequence[float]], single_rewards: Sequence[Sequence[float]], beta: float = 1.0
) -> np.ndarray:
    """What a group loses, prompt by prompt, when the policy is optimal for another reward than its own.

    With `F(pi) = E_pi[r_u] - beta KL(pi || pi_ref)` the gap is `F(pi_u) - F(pi_single)`, and for these optima it
    equals `beta KL(pi_single || pi_u)`.

    Args:
        group_rewards (P sequences of rewards): the group's own, of the candidate replies to each prompt.
        single_rewards (P sequences of rewards): of the same candidates under the single reward.
        beta (`float`, *optional*, defaults to 1.0): KL coefficient, positive.

    Returns:
        `np.ndarray` of shape `(P,)`: gaps, Bradley-Terry log-odds, never negative.

    Raises:
        ValueError: as [`optimal_policy`], or candidates that do not match.

    Example:

    >>> alignment_gap([[1.0, 0.0]], [[1.0, 0.0]]).tolist()
    [0.0]
    """
    gaps = []
    for own, single in zip(group_rewards, single_rewards, strict=True):
        if len(own) != len(single):
            raise ValueError(f"A prompt has {len(own)} rewards of the group and {len(single)} single ones.")
        ours, theirs = optimal_policy(own, beta), optimal_policy(single, beta)
        # 0 log 0 = 0, and a ratio of underflows is not information.
        log_ratio = np.log(np.maximum(theirs, 1e-300)) - np.log(np.maximum(ours, 1e-300))
        gaps.append(max(0.0, beta * float((theirs * log_ratio).sum())))
    return np.array(gaps)


def feature_curvature(
    features: Sequence[np.ndarray], group: np.ndarray, single: np.ndarray, beta: float = 1.0
) -> float:
    """Least eigenvalue of the within-prompt feature covariance under the optimal policies between two rewards.

    It is the modulus of strong convexity that [`gap_bound`] needs: the gap is the Bregman divergence of the mean
    log-partition function, whose Hessian is this covariance over `beta^2`.

    Args:
        features (P arrays of shape `(M, D)`): of the candidates to each prompt.
        group (`np.ndarray` of shape `(D,)`): the group's parameters.
        single (`np.ndarray` of shape `(D,)`): the single reward's.
        beta (`float`, *optional*, defaults to 1.0): KL coefficient.

    Returns:
        `float`, not negative; 0 where some direction of the features never varies within a prompt.
    """
    least = np.inf
    for position in np.linspace(0, 1, 9):
        parameters = (1 - position) * group + position * single
        covariance = np.zeros((len(parameters), len(parameters)))
        for psi in features:
            policy = optimal_policy(psi @ parameters, beta)
            centred = psi - policy @ psi
            covariance += (policy[:, None] * centred).T @ centred / len(features)
        least = min(least, float(np.linalg.eigvalsh(covariance)[0]))
    return max(0.0, least)
