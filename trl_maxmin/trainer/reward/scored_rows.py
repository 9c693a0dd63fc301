# SPDX-License-Identifier: Apache-2.0
"""What the rewards say of pairs and of rankings: likelihood, accuracy and temperature in the same words.

Letters: M texts, N pairs or rankings, n replies of a ranking at most, K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ...functional.preference import fit_temperature, preference_accuracy, preference_log_likelihood
from ...functional.ranking import RankedChoices, fit_ranking_temperature


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs under K rewards.

    Args:
        differences (`torch.Tensor` of shape `(N, K)`): reward of the chosen minus that of the rejected reply.
        margin (`torch.Tensor` of shape `(N,)`, *optional*): Bradley-Terry log-odds.
        share (`torch.Tensor` of shape `(N,)`, *optional*): of the votes for the chosen reply.

    Example:

    >>> pairs = ScoredPairs(torch.tensor([[1.0, -1.0]]), None)
    >>> pairs.accuracy.tolist(), pairs.tau
    ([[1.0, 0.0]], None)
    """

    differences: torch.Tensor
    margin: torch.Tensor | None
    share: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.differences)

    def select(self, rows: torch.Tensor) -> ScoredPairs:
        """Those of a mask or of row numbers."""
        margin, share = (None if of is None else of[rows] for of in (self.margin, self.share))
        return ScoredPairs(self.differences[rows], margin, share)

    def log_likelihood(self, factors: torch.Tensor | None = None) -> torch.Tensor:
        """`(N, K)`, nats, float64; rewards are multiplied by K factors."""
        differences = self.differences.double() if factors is None else self.differences.double() * factors
        return preference_log_likelihood(differences, torch.zeros_like(differences), self.margin, self.share)

    @property
    def accuracy(self) -> torch.Tensor:
        """`(N, K)`: whether each component prefers the chosen reply; a tie counts half."""
        return preference_accuracy(self.differences, torch.zeros_like(self.differences)).double()

    @property
    def tau(self) -> None:
        """Of rankings only."""
        return None

    @property
    def contrast(self) -> torch.Tensor:
        """`(N, K)`: how far each component prefers what was preferred."""
        return self.differences

    def of_mixture(self, log_weights: torch.Tensor, fit: torch.Tensor) -> tuple[torch.Tensor, None]:
        """`(N,)`: whether annotators of `(N, K)` log posterior are predicted to choose what they chose, for
        log-likelihoods `(N, K)`. Of vote shares, whether most of the votes are."""
        if self.share is not None:
            fit = replace(self, share=None).log_likelihood()
        return ((log_weights + fit).logsumexp(-1).exp() > 0.5).double(), None

    def by_chance(self) -> tuple[float, float]:
        """Accuracy and log-likelihood of rewards that say nothing."""
        return 0.5, math.log(0.5)

    def temperature(self, k: int, weights: torch.Tensor) -> float:
        """Of component k, for weights `(N,)` of the pairs."""
        return fit_temperature(self.differences[:, k].double(), weights, self.margin, share=self.share)


@dataclass(frozen=True)
class ScoredRankings:
    """Rankings under K rewards.

    Args:
        rewards (`torch.Tensor` of shape `(M, K)`): of each distinct reply.
        choices ([`RankedChoices`]): N rankings of them.
    """

    rewards: torch.Tensor
    choices: RankedChoices

    def __len__(self) -> int:
        return len(self.choices)

    def select(self, rows: torch.Tensor) -> ScoredRankings:
        """Those of a mask or of row numbers."""
        return ScoredRankings(self.rewards, self.choices.select(rows))

    def log_likelihood(self, factors: torch.Tensor | None = None) -> torch.Tensor:
        """`(N, K)`, nats, float64; rewards are multiplied by K factors."""
        return self.choices.log_likelihood(
            self.rewards.double() if factors is None else self.rewards.double() * factors
        )

    @property
    def accuracy(self) -> torch.Tensor:
        """`(N, K)`: whether each component's best reply is (one of) the best by the ranking."""
        return self.choices.top_accuracy(self.rewards.double())

    @property
    def tau(self) -> torch.Tensor:
        """`(N, K)`: Kendall's tau of each component with the ranking."""
        return self.choices.kendall_tau(self.rewards.double())

    @property
    def contrast(self) -> torch.Tensor:
        """`(N, K)`: reward of a reply on top of the ranking minus that of one in its last place."""
        best, last = self.ends()
        responses = self.choices.responses
        rows = [responses.gather(1, at.unsqueeze(1)).squeeze(1) for at in (best, last)]
        return self.rewards[rows[0]] - self.rewards[rows[1]]

    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`(N,)` each: position of the first reply on top, and of the last one in the last place."""
        ranks, there = self.choices.ranks, self.choices.responses >= 0
        behind = ranks.max() + 1
        place = torch.where(ranks == 0, behind, ranks)
        last = place.masked_fill(~there, -1).flip(1).argmax(1)
        return place.masked_fill(~there, behind + 1).argmin(1), ranks.shape[1] - 1 - last

    def of_mixture(self, log_weights: torch.Tensor, fit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-1 accuracy and tau, `(N,)` each, of what annotators of `(N, K)` log posterior would choose."""
        del fit  # a ranking's likelihood does not say which reply is the most probable
        chance, own = self.choices.blended(self.rewards.double(), log_weights)
        return own.top_accuracy(chance).squeeze(1), own.kendall_tau(chance).squeeze(1)

    def by_chance(self) -> tuple[float, float]:
        """Top-1 accuracy and log-likelihood of rewards that say nothing."""
        nothing = ScoredRankings(torch.zeros(len(self.rewards), 1), self.choices)
        return nothing.accuracy.mean().item(), nothing.log_likelihood().mean().item()

    def temperature(self, k: int, weights: torch.Tensor) -> float:
        """Of component k, for weights `(N,)` of the rankings."""
        return fit_ranking_temperature(self.rewards[:, k], self.choices, weights)
