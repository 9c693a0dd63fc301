# SPDX-License-Identifier: Apache-2.0
"""EM for a mixture of linear Bradley-Terry rewards on frozen features.

With the trunk frozen, a component is a linear reward, its M-step is a concave problem that Newton's method solves, and
many annealed restarts cost less than one forward of the trunk. For few features, as the diagnosis has them;
`em_features` is for thousands of features and texts that occur in many pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .directions import principal_directions
from .em import annealed_beta, annotator_log_likelihood, log_responsibilities, update_mixing_weights


_MAX_DIRECTIONS = 128
_NUM_STEPS = 40  # of EM in each start; the first half of them anneals
_ANNEALING_START = 0.02  # first inverse temperature of the posterior


@dataclass(frozen=True)
class LinearMixture:
    """A fitted mixture of linear rewards.

    Args:
        weight (`Tensor` of shape `(K, D)`): rewards are `features @ weight.T`, Bradley-Terry log-odds.
        log_responsibilities (`Tensor` of shape `(H, K)`): from pairs scored out of fold.
        mixing_weights (`Tensor` of shape `(K,)`): on the simplex.
        score (`float`): mean log-likelihood (nats) per pair by which restarts were compared.
        scores (`Tensor` of shape `(N, K)`, *optional*): out-of-fold log-likelihood of each pair, nats.
    """

    weight: Tensor
    log_responsibilities: Tensor
    mixing_weights: Tensor
    score: float
    scores: Tensor | None = None


def fit_weighted_logistic(
    feature_difference: Tensor, weights: Tensor, margin: Tensor, ridge: float, start: Tensor, num_steps: int = 4
) -> Tensor:
    """Newton steps on the ridge-penalised, weighted Bradley-Terry likelihood of K linear rewards.

    Args:
        feature_difference (`Tensor` of shape `(N, D)`): features of the chosen minus those of the rejected reply.
        weights (`Tensor` of shape `(N, K)`): weight of each pair in each component's likelihood, non-negative.
        margin (`Tensor` of shape `(N,)`): Bradley-Terry log-odds.
        ridge (`float`): penalty `ridge / 2 * |w|^2`, positive.
        start (`Tensor` of shape `(K, D)`): where to begin.
        num_steps (`int`): Newton steps; each is halved until the objective does not get worse.

    Returns:
        `Tensor` of shape `(K, D)`.
    """
    solution = start.clone()
    # Newton's direction bears rounding; the gradient, which says where to stop, does not.
    single = feature_difference.float()
    identity = torch.eye(feature_difference.shape[1], dtype=start.dtype, device=start.device) * ridge
    for k in range(start.shape[0]):
        w, weight = solution[k], weights[:, k]

        def objective(w: Tensor, weight: Tensor = weight) -> Tensor:
            """Weighted negative log-likelihood of one component's pairs, plus the ridge."""
            return -(weight * F.logsigmoid(feature_difference @ w - margin)).sum() + ridge / 2 * w.dot(w)

        value = objective(w)
        for _ in range(num_steps):
            p = torch.sigmoid(feature_difference @ w - margin)
            gradient = -feature_difference.T @ (weight * (1 - p)) + ridge * w
            curvature = (weight * p * (1 - p)).float().unsqueeze(1)
            hessian = ((single * curvature).T @ single).to(identity) + identity
            step = torch.linalg.solve(hessian, gradient)
            size = 1.0
            while size > 1e-3 and (candidate := objective(w - size * step)) > value:
                size /= 2
            if size <= 1e-3:
                break
            w, value = w - size * step, candidate
        solution[k] = w
    return solution


def _reduce(feature_difference: Tensor) -> tuple[Tensor, Tensor]:
    """Leading principal directions `(D, d)` of the differences on one common scale, and the differences in them."""
    moment = feature_difference.T @ feature_difference / len(feature_difference)
    projection = principal_directions(moment, _MAX_DIRECTIONS)[0] / moment.diagonal().mean().sqrt()
    return projection, feature_difference @ projection


def fit_linear_rewards(feature_difference: Tensor, weights: Tensor, margin: Tensor) -> Tensor:
    """K linear rewards for given responsibilities: the M-step alone, with a prior of precision 1 on features of mean
    square 1.

    Args:
        feature_difference (`Tensor` of shape `(N, D)`): features of the chosen minus those of the rejected reply.
        weights (`Tensor` of shape `(N, K)`): weight of each pair in each component's likelihood, non-negative.
        margin (`Tensor` of shape `(N,)`): Bradley-Terry log-odds.

    Returns:
        `Tensor` of shape `(K, D)`: rewards are `features @ weight.T`, Bradley-Terry log-odds.
    """
    projection, reduced = _reduce(feature_difference.double())
    start = torch.zeros(weights.shape[1], reduced.shape[1], dtype=torch.float64)
    return fit_weighted_logistic(reduced, weights.double(), margin.double(), 1.0, start, num_steps=8) @ projection.T


def fit_linear_mixture(
    feature_difference: Tensor,
    annotator_index: Tensor,
    num_annotators: int,
    num_components: int,
    *,
    generator: torch.Generator,
    margin: Tensor | None = None,
    num_init: int = 4,
    ridge: float = 1.0,
) -> LinearMixture:
    """Annealed EM from several random starts; pairs are scored by the half of the data they are not in.

    Args:
        feature_difference (`Tensor` of shape `(N, D)`): features of the chosen minus those of the rejected reply.
        annotator_index (`Tensor` of shape `(N,)`): annotator 0..H-1 of each pair.
        num_annotators (`int`): H.
        num_components (`int`): K.
        generator (`torch.Generator`): of the random starts, on the CPU.
        margin (`Tensor` of shape `(N,)`, *optional*): Bradley-Terry log-odds.
        num_init (`int`): number of starts; the best out-of-fold likelihood wins.
        ridge (`float`): prior precision of the weights, with features of unit mean square.

    Returns:
        [`LinearMixture`]: the best start, refitted on all pairs.

    Raises:
        ValueError: no pairs, or features that are the same in every pair.
    """
    if len(feature_difference) == 0:
        raise ValueError("There are no pairs to fit rewards to. Give at least one.")
    differences = feature_difference.double()
    margin = torch.zeros(len(differences), dtype=torch.float64) if margin is None else margin.double()
    projection, reduced = _reduce(differences)
    fold = torch.rand(len(reduced), generator=generator) < 0.5
    best: LinearMixture | None = None
    for _ in range(num_init):
        noise = torch.randn(num_annotators, num_components, generator=generator, dtype=torch.float64)
        log_resp = torch.log_softmax(2 * noise, dim=-1)
        mixing = torch.full((num_components,), 1 / num_components, dtype=torch.float64)
        weights = torch.zeros(2, num_components, reduced.shape[1], dtype=torch.float64)
        for step in range(_NUM_STEPS):
            scores = torch.empty(len(reduced), num_components, dtype=torch.float64)
            responsibilities = log_resp.exp()[annotator_index]
            for half, own in enumerate((fold, ~fold)):
                weights[half] = fit_weighted_logistic(
                    reduced[~own], responsibilities[~own], margin[~own], ridge, weights[half], num_steps=1
                )
                scores[own] = F.logsigmoid(reduced[own] @ weights[half].T - margin[own].unsqueeze(1))
            mixing = update_mixing_weights(log_resp)
            beta = annealed_beta(step, _NUM_STEPS // 2, _ANNEALING_START)
            sums = annotator_log_likelihood(scores, annotator_index, num_annotators)
            log_resp = log_responsibilities(sums, mixing.log(), beta)
        weight = fit_weighted_logistic(
            reduced, log_resp.exp()[annotator_index], margin, ridge, weights.mean(0), num_steps=8
        )
        score = torch.logsumexp(mixing.log() + sums, dim=-1).sum().item() / len(reduced)
        if best is None or score > best.score:
            best = LinearMixture(weight @ projection.T, log_resp, mixing, score)
    assert best is not None
    return best
