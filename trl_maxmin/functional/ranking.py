# SPDX-License-Identifier: Apache-2.0
"""The Plackett-Luce likelihood of rankings under K reward components: best of n, full, partial, with ties.

Replies are placed one after the other, each with the odds of its reward against all that are not placed yet:
`log P = sum_i log sigmoid(r_i - logsumexp_{j placed later} r_j)`. With two replies that is Bradley and Terry's pair.

What a ranking leaves open is summed over. Replies of equal rank are placed side by side in an order that nobody told,
and replies without a rank behind all others; the probability is that of any order which agrees. This is the marginal
likelihood that Kalbfleisch and Prentice gave for ties in a regression on ranks. Davidson's and Luce's model has
parameters of its own for the share of ties (Turner et al.); it was not chosen because those would have to be learned
for each component, and because a pair that is no tie would no longer have Bradley and Terry's probability. The price:
a tie says that two replies beat the rest, and nothing of how alike the two are.

Letters: M texts, N rankings of at most n replies each, K components.

Source: Luce, "Individual choice behavior" (1959); Plackett, "The analysis of permutations" (1975); Kalbfleisch and
Prentice, "Marginal likelihoods based on Cox's regression and life model" (1973); Turner, van Etten, Firth and
Kosmidis, "Modelling rankings in R: the PlackettLuce package" (2020), for the alternative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .preference import TEMPERATURE_BOUNDS, require_shape


#: Replies of one rank before the last; the sum over their orders has `2 ** MAX_TIED` terms.
MAX_TIED = 8
#: A rank of this value is none: the reply stands behind all that have one.
UNRANKED = 0
#: Stands for a reply in a row that has fewer than n.
PADDING = -1


@dataclass(frozen=True)
class Block:
    """Rankings of one structure, so that they are computed together without padding.

    Args:
        rows (`Tensor` of shape `(R,)`): which rankings.
        responses (`Tensor` of shape `(R, m)`): rows of the texts in order of placement.
        sizes (`tuple[int, ...]`): how many replies share each place; `(1, 3)` is best of four, `(1, 1)` a pair.
    """

    rows: Tensor
    responses: Tensor
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class RankedChoices:
    """Rankings over a table of texts. A preference pair is the ranking of two.

    Args:
        responses (`Tensor` of shape `(N, n)`, integer): row of each reply's text, -1 where a ranking has fewer.
        ranks (`Tensor` of shape `(N, n)`, integer): 1 = best; equal ranks are a tie; 0 = not ranked, behind all that
            are. Only their order counts: 1, 1, 4 is 1, 1, 2.
        annotator_index (`Tensor` of shape `(N,)`, integer): annotator 0..H-1.
        margin (`Tensor` of shape `(N,)`, *optional*): Bradley-Terry log-odds by which the better of two should win; 0
            for rankings of more.

    Raises:
        ValueError: shapes that do not fit, fewer than two replies in a ranking, a negative rank, more than 8 replies
            tied before the last place, or a margin for a ranking of more than two.

    Example:

    >>> best_of_three = RankedChoices(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 0]]), torch.tensor([0]))
    >>> best_of_three.log_likelihood(torch.zeros(3, 1)).exp()
    tensor([[0.3333]])
    """

    responses: Tensor
    ranks: Tensor
    annotator_index: Tensor
    margin: Tensor | None = None

    def __post_init__(self) -> None:
        require_shape("responses", self.responses, (None, None), "replies by rankings, (N, n)")
        count = len(self.responses)
        require_shape("ranks", self.ranks, tuple(self.responses.shape), "that of `responses`, (N, n)")
        require_shape("annotator_index", self.annotator_index, (count,), "one annotator per ranking, (N,)")
        if self.margin is not None:
            require_shape("margin", self.margin, (count,), "one margin per ranking, (N,)")
        lengths = (self.responses >= 0).sum(1)
        faults = {
            "fewer than two replies; leave it out": lengths < 2,
            "a negative rank; ranks begin at 1, and 0 is for replies without one": (self.ranks < 0).any(1),
            "a margin, which is for rankings of two; leave it at 0": (
                (self.margin != 0) & (lengths > 2) if self.margin is not None else lengths < 0
            ),
        }
        for fault, rows in faults.items():
            if rows.any():
                raise ValueError(f"Ranking {int(rows.nonzero()[0])} has {fault}.")
        for block in self.blocks:
            if max(block.sizes[:-1], default=0) > MAX_TIED:
                raise ValueError(
                    f"Ranking {int(block.rows[0])} ties {max(block.sizes[:-1])} replies before the last place, but at "
                    f"most {MAX_TIED} can be: all their orders are summed over. Break ties, or leave replies out."
                )

    def __len__(self) -> int:
        return len(self.responses)

    @classmethod
    def from_pairs(
        cls, chosen: Tensor, rejected: Tensor, annotator_index: Tensor, margin: Tensor | None = None
    ) -> RankedChoices:
        """Pairs, given as rows `(N,)` of the preferred and of the other text."""
        responses = torch.stack([chosen, rejected], dim=1)
        return cls(responses, torch.tensor([1, 2]).to(responses).expand_as(responses), annotator_index, margin)

    def select(self, rows: Tensor) -> RankedChoices:
        """The rankings of a mask or of row numbers; the texts stay."""
        margin = None if self.margin is None else self.margin[rows]
        return RankedChoices(self.responses[rows], self.ranks[rows], self.annotator_index[rows], margin)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The rankings by structure. Rows whose replies are all tied are in none: they say nothing."""
        if len(self) == 0:
            return ()
        last = self.ranks.max() + 1
        place = torch.where(self.ranks == UNRANKED, last, self.ranks)
        place = torch.where(self.responses == PADDING, last + 1, place)
        place, order = place.sort(dim=1, stable=True)
        responses = self.responses.gather(1, order)
        opens = F.pad(place[:, 1:] != place[:, :-1], (1, 0), value=True)
        structure = opens.long() + 2 * (responses == PADDING).long()
        kinds, kind = torch.unique(structure, dim=0, return_inverse=True)
        found = []
        for number, signature in enumerate(kinds.tolist()):
            length = sum(mark < 2 for mark in signature)
            starts = [position for position in range(length) if signature[position] == 1]
            sizes = tuple(end - start for start, end in zip(starts, [*starts[1:], length], strict=True))
            if len(sizes) > 1:
                rows = (kind == number).nonzero().flatten()
                found.append(Block(rows, responses[rows, :length], sizes))
        return tuple(found)

    def log_likelihood(self, rewards: Tensor) -> Tensor:
        """Log-probability of each ranking under each component.

        It is concave in the rewards: the orders that agree with a ranking are a convex cone of rewards plus Gumbel
        noise, whose density is log-concave (Prékopa, 1973).

        Args:
            rewards (`Tensor` of shape `(M, K)`): of every text of the table, Bradley-Terry log-odds.

        Returns:
            `Tensor` of shape `(N, K)`, nats, at most 0; 0 where all replies are tied. A NaN reward makes its rankings
            NaN in its own column.

        Raises:
            ValueError: rewards that are no `(M, K)`, or too few.
        """
        return self._in_rows(rewards, 0.0, lambda r, block: _log_likelihood(r, block.sizes, self._margin_of(block, r)))

    def top_accuracy(self, rewards: Tensor) -> Tensor:
        """Whether each component's best reply is (one of) the best by the ranking.

        Args:
            rewards (`Tensor` of shape `(M, K)`): of every text.

        Returns:
            `Tensor` of shape `(N, K)`: 1 or 0; where replies share the highest reward, the share of them that the
            ranking has on top; NaN where a reward is NaN or the ranking ties everything.

        Raises:
            ValueError: rewards that are no `(M, K)`, or too few.

        Example:

        >>> choice = RankedChoices(torch.tensor([[0, 1, 2]]), torch.tensor([[1, 0, 0]]), torch.tensor([0]))
        >>> choice.top_accuracy(torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
        tensor([[1.0000, 0.5000]])
        """
        return self._in_rows(rewards, math.nan, lambda r, block: _top_accuracy(r, block.sizes))

    def kendall_tau(self, rewards: Tensor) -> Tensor:
        """Kendall's tau between each component's rewards and each ranking, over the pairs that the ranking orders.

        Args:
            rewards (`Tensor` of shape `(M, K)`): of every text.

        Returns:
            `Tensor` of shape `(N, K)` in [-1, 1]: pairs that agree minus pairs that do not, by all pairs whose order
            the ranking tells; equal rewards count for neither. NaN where a reward is NaN or the ranking ties
            everything.

        Raises:
            ValueError: rewards that are no `(M, K)`, or too few.
        """
        return self._in_rows(rewards, math.nan, lambda r, block: _kendall_tau(r, block.sizes))

    def comparisons(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every two replies whose order a ranking tells.

        Returns:
            `Tensor` of shape `(C,)` each: the ranking, row of the better text, row of the other.

        Example:

        >>> choice = RankedChoices(torch.tensor([[4, 7, 5]]), torch.tensor([[0, 1, 0]]), torch.tensor([0]))
        >>> [part.tolist() for part in choice.comparisons()]
        [[0, 0], [7, 7], [4, 5]]
        """
        found = [torch.zeros(3, 0, dtype=torch.long)]
        for block in self.blocks:
            better, worse = _ordered(block.sizes)
            rows = block.rows.repeat_interleave(len(better))
            found.append(torch.stack([rows, *(block.responses[:, at].flatten() for at in (better, worse))]))
        rows, better, worse = torch.cat(found, dim=1)
        order = rows.argsort(stable=True)
        return rows[order], better[order], worse[order]

    def drawn(self, rewards: Tensor, noise: Tensor) -> RankedChoices:
        """The same replies shown to the same people, ranked anew by Luce's rule: rewards plus Gumbel noise, in order.
        As much is told as before: of a best of four the best.

        Args:
            rewards (`Tensor` of shape `(N, n)`): of each reply of each ranking, Bradley-Terry log-odds.
            noise (`Tensor` of shape `(N, n)`): of the standard Gumbel distribution. It goes with the texts in order of
                their rows, so that who was preferred before says nothing.

        Returns:
            [`RankedChoices`] without margins.

        Example:

        >>> choice = RankedChoices(torch.tensor([[4, 7, 5]]), torch.tensor([[0, 1, 0]]), torch.tensor([0]))
        >>> drawn = choice.drawn(torch.tensor([[0.0, 0.0, 9.0]]), torch.zeros(1, 3))
        >>> drawn.responses[0, drawn.ranks[0].argmin()].item()
        5
        """
        texts, order = self.responses.sort(dim=1)
        value = (rewards.gather(1, order) + noise).masked_fill(texts == PADDING, -math.inf)
        behind = self.ranks.max() + 1
        place = torch.where(self.ranks == UNRANKED, behind, self.ranks).masked_fill(
            self.responses == PADDING, behind + 1
        )
        anew = texts.gather(1, value.argsort(dim=1, descending=True))
        return RankedChoices(anew, place.sort(dim=1).values, self.annotator_index)

    def apart(self) -> tuple[Tensor, RankedChoices]:
        """Each reply of each ranking as a text of its own, so that rewards may differ from ranking to ranking.

        Returns:
            `Tensor` of shape `(N * n,)`: row of each such text in this table (0 for padding), and the rankings of
            them.

        Example:

        >>> choice = RankedChoices(torch.tensor([[2, 0, -1], [0, 1, 2]]), torch.ones(2, 3).long(), torch.zeros(2))
        >>> rows, own = choice.apart()
        >>> rows.tolist(), own.responses.tolist()
        ([2, 0, 0, 0, 1, 2], [[0, 1, -1], [3, 4, 5]])
        """
        padding = self.responses == PADDING
        number = torch.arange(padding.numel(), device=padding.device).view_as(padding)
        own = replace(self, responses=number.masked_fill(padding, PADDING))
        return self.responses.clamp(min=0).flatten(), own

    def blended(self, rewards: Tensor, log_weights: Tensor) -> tuple[Tensor, RankedChoices]:
        """What somebody who is of several minds would choose: the chance of each reply to be the best of its ranking.

        Args:
            rewards (`Tensor` of shape `(M, K)`): of every text.
            log_weights (`Tensor` of shape `(N, K)`): log posterior of the annotator of each ranking.

        Returns:
            `Tensor` of shape `(N * n, 1)`: logarithms of the chances, and the rankings of them, see [`apart`]. Their
            `top_accuracy` and `kendall_tau` are those of the mixture.

        Example:

        >>> choice = RankedChoices(torch.tensor([[0, 1]]), torch.tensor([[1, 2]]), torch.tensor([0]))
        >>> chance, own = choice.blended(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.5, 0.5]]).log())
        >>> own.top_accuracy(chance)
        tensor([[0.]])
        """
        rows, own = self.apart()
        each = rewards[rows].view(*self.responses.shape, -1)
        each = each.masked_fill((self.responses == PADDING).unsqueeze(2), -math.inf).log_softmax(1)
        return (each + log_weights.to(each).unsqueeze(1)).logsumexp(2).view(-1, 1), own

    def _margin_of(self, block: Block, like: Tensor) -> Tensor | float:
        if self.margin is None or len(block.sizes) != 2 or block.responses.shape[1] != 2:
            return 0.0
        return self.margin[block.rows].to(like).unsqueeze(1)

    def _in_rows(self, rewards: Tensor, empty: float, measure: Callable[[Tensor, Block], Tensor]) -> Tensor:
        require_shape("rewards", rewards, (None, None), "texts by components, (M, K)")
        if len(self) and int(self.responses.max()) >= len(rewards):
            raise ValueError(
                f"`rewards` has {len(rewards)} texts, but the rankings name text {int(self.responses.max())}; give "
                "the rewards of the whole table."
            )
        result = rewards.new_full((len(self), rewards.shape[1]), empty)
        for block in self.blocks:
            result = result.index_copy(0, block.rows, measure(rewards[block.responses], block))
        return result


def ranking_log_likelihood(rewards: Tensor, responses: Tensor, ranks: Tensor, margin: Tensor | None = None) -> Tensor:
    """Log-probability of rankings under each component, see [`RankedChoices`].

    Args:
        rewards (`Tensor` of shape `(M, K)`): of every text, Bradley-Terry log-odds.
        responses (`Tensor` of shape `(N, n)`): row of each reply's text, -1 = padding.
        ranks (`Tensor` of shape `(N, n)`): 1 = best, equal = tied, 0 = behind all that have one.
        margin (`Tensor` of shape `(N,)`, *optional*): of rankings of two.

    Returns:
        `Tensor` of shape `(N, K)`, nats.

    Raises:
        ValueError: as [`RankedChoices`].

    Example:

    >>> rewards = torch.tensor([[2.0], [1.0], [0.0]])
    >>> full = ranking_log_likelihood(rewards, torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, 3]]))
    >>> [round(value, 4) for value in full.exp().flatten().tolist()]
    [0.4863]
    """
    nobody = torch.zeros(len(responses), dtype=torch.long, device=responses.device)
    return RankedChoices(responses, ranks, nobody, margin).log_likelihood(rewards)


def fit_ranking_temperature(rewards: Tensor, choices: RankedChoices, weights: Tensor | None = None) -> float:
    """Temperature `T` that calibrates one component: its rewards divided by `T` fit held-out rankings best.

    The likelihood is concave in `1 / T`, so its slope has one root, which is found by bisection.

    Args:
        rewards (`Tensor` of shape `(M,)`): of every text, Bradley-Terry log-odds.
        choices ([`RankedChoices`]): held-out rankings.
        weights (`Tensor` of shape `(N,)`, *optional*): non-negative, such as the annotators' responsibilities.

    Returns:
        `float` in `[0.01, 100]`, a bound where the best lies beyond it, and 1.0 where no temperature changes anything:
        as [`fit_temperature`] has it for pairs.

    Raises:
        ValueError: no rankings, rewards or weights that are not finite, weights that are negative or all 0.

    Example:

    >>> rows = torch.tensor([[0, 1]] * 4)
    >>> right_in_three = RankedChoices(rows, torch.tensor([[1, 2]] * 3 + [[2, 1]]), torch.zeros(4))
    >>> round(fit_ranking_temperature(torch.tensor([4.0, 0.0]), right_in_three), 4) == round(4 / math.log(3), 4)
    True
    """
    require_shape("rewards", rewards, (None,), "one reward per text, (M,)")
    if len(choices) == 0:
        raise ValueError("There are no held-out rankings, but at least one is needed; hold out more.")
    weights = torch.ones(len(choices)) if weights is None else weights
    require_shape("weights", weights, (len(choices),), "one weight per ranking, (N,)")
    values, weight = rewards.detach().double().unsqueeze(1), weights.detach().double()
    if not values.isfinite().all() or not weight.isfinite().all() or (weight < 0).any() or not weight.any():
        raise ValueError(
            "`rewards` and `weights` must be finite, and weights not negative nor all 0; leave out the others."
        )

    if not any(
        weight[block.rows].any() and (values[block.responses] != values[block.responses[:, :1]]).any()
        for block in choices.blocks
    ):
        return 1.0

    def slope(inverse: float) -> float:
        scale = torch.tensor(inverse, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            loss = -(weight * choices.log_likelihood(values * scale).squeeze(1)).sum()
            (gradient,) = torch.autograd.grad(loss, scale)
        return gradient.item()

    low, high = 1 / TEMPERATURE_BOUNDS[1], 1 / TEMPERATURE_BOUNDS[0]
    if slope(low) >= 0.0:
        return 1 / low
    if slope(high) <= 0.0:
        return 1 / high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return 1 / math.sqrt(low * high)


def _log_likelihood(rewards: Tensor, sizes: tuple[int, ...], margin: Tensor | float) -> Tensor:
    """`(R, K)` for rewards `(R, m, K)` in order of placement; from the last place to the first."""
    end = rewards.shape[1] - sizes[-1]
    rest = rewards[:, end:].logsumexp(1)
    total = torch.zeros_like(rest)
    for size in reversed(sizes[:-1]):
        placed = rewards[:, end - size : end]
        total = total + _placed_before(placed, rest + margin)
        rest, end = torch.logaddexp(rest, placed.logsumexp(1)), end - size
    return total


def _placed_before(tied: Tensor, rest: Tensor) -> Tensor:
    """Log-probability `(R, K)` that `t` replies `(R, t, K)` come in any order before the others, of log-weight `rest`:
    a sum of positive terms over which of the tied ones are placed already."""
    rewards = tied.unbind(1)
    if len(rewards) == 1:
        return F.logsigmoid(rewards[0] - rest)
    everyone = range(len(rewards))
    placed = {0: torch.zeros_like(rest)}
    for subset in range(1, 1 << len(rewards)):
        # Numbers grow with their subsets, so those without one member are there.
        later = torch.stack([rest, *(rewards[i] for i in everyone if not subset >> i & 1)]).logsumexp(0)
        members = [i for i in everyone if subset >> i & 1]
        last = [placed[subset ^ 1 << i] + F.logsigmoid(rewards[i] - later) for i in members]
        placed[subset] = torch.stack(last).logsumexp(0)
    return placed[(1 << len(rewards)) - 1]


def _top_accuracy(rewards: Tensor, sizes: tuple[int, ...]) -> Tensor:
    highest = rewards == rewards.amax(1, keepdim=True)
    share = highest[:, : sizes[0]].sum(1) / highest.sum(1)
    return torch.where(rewards.isnan().any(1), torch.nan, share.to(rewards))


def _ordered(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Positions, in order of placement, of every two replies that stand in different places."""
    place = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    better, worse = (place.unsqueeze(1) < place).nonzero().T
    return better, worse


def _kendall_tau(rewards: Tensor, sizes: tuple[int, ...]) -> Tensor:
    better, worse = _ordered(sizes)
    agreement = torch.sign(rewards[:, better] - rewards[:, worse]).mean(1)
    return torch.where(rewards.isnan().any(1), torch.nan, agreement)
