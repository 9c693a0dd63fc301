# SPDX-License-Identifier: Apache-2.0
"""Rankings over texts that are known by their features, as the EM engine reads them beside pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .ranking import RankedChoices


@dataclass(frozen=True)
class FeatureRankings:
    """Rankings of texts that are known by their features.

    Args:
        features (`Tensor` of shape `(M, D)`): what a head reads of each distinct text.
        choices ([`RankedChoices`]): N rankings of these texts.
    """

    features: Tensor
    choices: RankedChoices

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def annotator_index(self) -> Tensor:
        """`(N,)`: annotator 0..H-1."""
        return self.choices.annotator_index

    @property
    def sides(self) -> Tensor:
        """`(N, n)`: rows of the texts that each ranking judges; -1 where it has fewer."""
        return self.choices.responses

    def select(self, rows: Tensor) -> FeatureRankings:
        """The rankings of a mask or of row numbers; the texts stay."""
        return FeatureRankings(self.features, self.choices.select(rows))

    def of_annotators(self, annotator_index: Tensor) -> FeatureRankings:
        """The same rankings, given by others."""
        return replace(self, choices=replace(self.choices, annotator_index=annotator_index))

    def log_likelihood(self, weight: Tensor) -> Tensor:
        """`(N, K)` log-likelihood of the rankings under rewards `features @ weight.T`, nats."""
        return self.choices.log_likelihood(self.features.to(weight) @ weight.T)

    @cached_property
    def pairs_per_row(self) -> float:
        """How many pairs of replies a ranking is worth: each placement decides between one reply and those behind it.
        One for pairs, three for the best of four, six for a full ranking of four."""
        worth = sum(
            len(block.rows) * size * (block.responses.shape[1] - start - 1)
            for block in self.choices.blocks
            for start, size in _placements(block.sizes)
        )
        return worth / max(len(self), 1)

    def moment(self, features: Tensor) -> Tensor:
        """`(D, D)`: mean outer product of differences, of a pair's worth of the rankings.

        Of a placement among `m` replies with features `f`, `2 sum_j (f_j - mean)(f_j - mean)^T`, a quarter of which
        bounds the curvature of its likelihood (Böhning, 1992); of a pair the outer product of its difference.
        """
        moment = features.new_zeros(features.shape[1], features.shape[1])
        for block in self.choices.blocks:
            for rows in torch.arange(len(block.rows)).split(4096):
                texts = features[block.responses[rows]]
                for start, size in _placements(block.sizes):
                    behind = texts[:, start:]
                    centred = (behind - behind.mean(1, keepdim=True)).flatten(0, 1)
                    moment += 2 * size * (centred.T @ centred)
        return moment / max(len(self) * self.pairs_per_row, 1)

    def in_directions(self, directions: Tensor) -> FeatureRankings:
        """The rankings with features `(M, R)` in these directions."""
        features = self.features.float()
        return replace(self, features=(features - features.mean(0)) @ directions)


def _placements(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where each place but the last begins among the replies, and how many share it."""
    starts, at = [], 0
    for size in sizes[:-1]:
        starts.append((at, size))
        at += size
    return starts


class RankingFitter:
    """Quasi-Newton steps on the weighted, ridge-penalised likelihood of rankings, for many rewards at once.

    Args:
        curvature (`(R,)`): mean squares of a pair's worth of differences in the principal directions.
        rankings ([`FeatureRankings`]): the rankings, with features in these directions.
    """

    def __init__(self, curvature: Tensor, rankings: FeatureRankings) -> None:
        self.texts, self.curvature, self.pairs = rankings.features, curvature, rankings

    def ridge(self, prior_scale: Tensor) -> Tensor:
        """Precision of the weights, from the standard deviation of a pair's log-odds under the prior."""
        return self.curvature.sum() / prior_scale.to(self.curvature).square()

    def step(
        self, weight: Tensor, momentum: Tensor, responsibilities: Tensor, ridge: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of weights `(C, R)` for row weights `(N, C)` and ridges `(C, 1)`: new weights, new momentum, and
        `(N, C)` log-likelihoods that it started from. The momentum is Nesterov's and restarts where it points uphill.
        """
        ahead = weight + momentum
        with torch.enable_grad():
            rewards = (self.texts @ ahead.T).requires_grad_()
            scores = self.pairs.choices.log_likelihood(rewards)
            (slope,) = torch.autograd.grad((responsibilities * scores).sum(), rewards)
        bound = 0.25 * self.pairs.pairs_per_row * responsibilities.sum(0)
        gradient = -slope.T @ self.texts + ridge * ahead
        new = ahead - gradient / (bound.unsqueeze(1) * self.curvature + ridge)
        moved = new - weight
        uphill = (gradient * moved).sum(1, keepdim=True) > 0
        return new, torch.where(uphill, 0.0, 0.9) * moved, scores.detach()

    @staticmethod
    def log_likelihood_of(scores: Tensor) -> Tensor:
        """Of what `step` returns."""
        return scores

    def annotator_gradients(
        self, weights: Tensor, scores: Tensor, own: Tensor, num_annotators: int
    ) -> tuple[Tensor, float]:
        """`(H, R)`: what each annotator's rankings would change of a reward, and the mean square of a pair's worth.

        Args:
            weights (`Tensor` of shape `(F, R)`): of the reward, without each fold.
            scores (`Tensor` of shape `(N, 1)`): not needed here.
            own (`Tensor` of shape `(N,)`): the fold that each ranking is in.
            num_annotators (`int`): H.
        """
        choices = self.pairs.choices
        there = choices.responses >= 0
        # A table with a row for each reply of each ranking, so that gradients are theirs.
        flat, apart = choices.apart()
        rows = flat.view_as(there)
        rewards = (self.texts @ weights.T)[rows, own.unsqueeze(1)].reshape(-1, 1).requires_grad_()
        with torch.enable_grad():
            value = apart.log_likelihood(rewards).sum()
            (slope,) = torch.autograd.grad(value, rewards)
        slope = slope.view_as(rows) * there
        found, square = torch.zeros(num_annotators, len(self.curvature)), 0.0
        for part in torch.arange(len(choices)).split(8192):
            each = (slope[part].unsqueeze(2) * self.texts[rows[part]]).sum(1)
            found.index_add_(0, choices.annotator_index[part], each)
            square += each.square().sum().item()
        return found, square / len(choices) / self.curvature.sum().item()
