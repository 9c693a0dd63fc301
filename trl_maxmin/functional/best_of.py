# SPDX-License-Identifier: Apache-2.0
"""Best of n replies for several groups: one weight vector for a set of prompts, and the replies that it ranks first.

Letters: P prompts, n replies a prompt, K components. A choice takes one reply a prompt, and the utility of component k
is the mean of `u[p, choice[p], k]` over the prompts. Choosing for the worst-off group is a linear program once replies
may be drawn by lot:

    max over lots q of min_k mean_p sum_i q[p, i] u[p, i, k]  =  min over w on the simplex of mean_p max_i w . u[p, i]

Its dual solution `w` is one weight vector for all prompts. Each prompt then takes the reply that `w` ranks first; that
costs about `(K - 1) / P` of the range of utilities against the lots. A minimum per reply (`sample_min`) is a different
objective: it asks each reply to please everybody, where this one lets different prompts serve different groups.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

import torch

from .preference import require_shape
from .welfare import apply_weight_floor, sample_min, welfare_weights


# Rules whose weights are the dual solution itself; the averaged iterate of `mirror` converges to it.
_EXACT = ("maxmin", "mirror")
# Relative to the range of the utilities: what counts as equal.
_TOLERANCE = 1e-9
_MAX_COLUMNS = 2000
_STEPS = 300


@dataclass(frozen=True)
class BestOf:
    """What [`best_of_n`] chose.

    Args:
        choice (`torch.Tensor` of shape `(P,)`): index of the reply to each prompt.
        weights (`torch.Tensor` of shape `(K,)` or `None`): on the simplex, float64; one vector for all prompts. `None`
            for `sample_min`, which has none.
        utilities (`torch.Tensor` of shape `(K,)`): mean utility of the chosen replies, float64.
        kl (`float`): nats, see [`best_of_kl`]; the mean over prompts where their numbers of replies differ.
        bound (`float` or `None`): for `maxmin` and `mirror` without a floor, the worst component's utility (with
            `regret`, what it has above its best) if replies could be drawn by lot: no choice is better.
    """

    choice: torch.Tensor
    weights: torch.Tensor | None
    utilities: torch.Tensor
    kl: float
    bound: float | None = None


def best_of_kl(num_replies: int) -> float:
    """What best-of-n costs: an upper bound of the KL divergence from the policy that was sampled.

    Args:
        num_replies (`int`): n, at least 1.

    Returns:
        `float`: `log n - (n - 1) / n`, nats. It is reached where no two replies are equally good.

    Raises:
        ValueError: n below 1.

    Source: Beirami et al., "Theoretical guarantees on the best-of-n alignment policy" (arXiv 2401.01879).

    Example:

    >>> best_of_kl(1), best_of_kl(16)
    (0.0, 1.835)
    """
    if num_replies < 1:
        raise ValueError(f"`num_replies` is {num_replies}, but best-of-n needs at least 1 reply.")
    return log(num_replies) - (num_replies - 1) / num_replies


def choose_replies(utilities: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The reply to each prompt that given weights rank first; of several, the first.

    Args:
        utilities (`torch.Tensor` of shape `(P, n, K)`): NaN: not scored. A reply that a weighted component did not
            score cannot be chosen.
        weights (`torch.Tensor` of shape `(K,)`): on the simplex, such as those of an earlier [`best_of_n`].
        mask (`torch.Tensor` of shape `(P, n)`, bool, *optional*): `True` where there is a reply. Default: everywhere.

    Returns:
        `torch.Tensor` of shape `(P,)`, int64.

    Raises:
        ValueError: a wrong shape, or a prompt without a reply that could be chosen.

    Example:

    >>> utilities = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    >>> choose_replies(utilities, torch.tensor([0.5, 0.5])), choose_replies(utilities, torch.tensor([0.8, 0.2]))
    (tensor([1]), tensor([0]))
    """
    require_shape("utilities", utilities, (None, None, None), "prompts by replies by components, (P, n, K)")
    require_shape("weights", weights, (utilities.shape[2],), "one entry per component, (K,)")
    values, eligible = _eligible(utilities, weights > 0, mask)
    return _first_best(values @ weights.detach().cpu().double(), eligible)


def best_of_n(
    utilities: torch.Tensor,
    rule: str | Callable[[torch.Tensor], torch.Tensor] = "maxmin",
    *,
    mask: torch.Tensor | None = None,
    among: torch.Tensor | None = None,
    floor: float = 0.0,
    best: torch.Tensor | None = None,
    regret_rule: str | Callable[[torch.Tensor], torch.Tensor] = "maxmin",
    **options: object,
) -> BestOf:
    """Choose one reply a prompt by a welfare rule over the whole set of prompts.

    `"maxmin"` (and `"mirror"`, whose average converges to it) solves the linear program of this module exactly.
    Any other rule is followed by conditional gradients: weights at the mean utilities so far, the best reply by these
    weights, and so on; the weights of the steps are averaged. `"regret"` follows another rule after what each
    component has at best is subtracted. `"sample_min"` takes the reply with the best minimum, prompt by prompt.

    Args:
        utilities (`torch.Tensor` of shape `(P, n, K)`): comparable between components. NaN: not scored; a component
            that scored nothing has weight 0, and a reply that another component did not score is not chosen.
        rule (`str` or `Callable`): a name that [`welfare_weights`] knows, `"regret"`, `"sample_min"`, or a function
            from group utilities `(K,)` to weights `(K,)`.
        mask (`torch.Tensor` of shape `(P, n)`, bool, *optional*): `True` where there is a reply.
        among (`torch.Tensor` of shape `(K,)`, bool, *optional*): components that may have weight. Default: all.
        floor (`float`, *optional*, defaults to 0.0): smallest weight of a component that may have some.
        best (`torch.Tensor` of shape `(K,)`, *optional*): for `"regret"`, what each component has under its own best
            policy. Default: under its own best choice of these replies.
        regret_rule (`str` or `Callable`, *optional*, defaults to `"maxmin"`): the rule of regrets.
        **options: for [`welfare_weights`], such as `tau` and `mixing_weights`.

    Returns:
        [`BestOf`]

    Raises:
        ValueError: a wrong shape, an infinite utility, no component that may count, a prompt without a reply that
            every such component scored, or what the rule refuses.

    Example: two prompts, each with a reply for either group and a compromise. One prompt for each group is best.

    >>> replies = torch.tensor([[[3.0, -1.0], [-1.0, 3.0], [0.5, 0.5]]])
    >>> found = best_of_n(replies.repeat(2, 1, 1))
    >>> found.choice, found.utilities, best_of_n(replies.repeat(2, 1, 1), "sample_min").utilities
    (tensor([1, 0]), tensor([1., 1.], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    require_shape("utilities", utilities, (None, None, None), "prompts by replies by components, (P, n, K)")
    num_components = utilities.shape[2]
    if utilities.isinf().any():
        raise ValueError("`utilities` has infinite entries, but must be finite or NaN; check the reward functions.")
    counting = ~utilities.detach().cpu().isnan().flatten(0, 1).all(dim=0)
    if among is not None:
        require_shape("among", among, (num_components,), "one entry per component, (K,)")
        counting &= among.cpu()
    if not counting.any():
        raise ValueError(
            f"None of the {num_components} components counts: nothing was scored for those of `among`; give replies "
            "that at least one of them scores."
        )
    values, eligible = _eligible(utilities, counting, mask)
    weights, bound = None, None
    if rule == "regret":
        if best is None:
            best = values.masked_fill(~eligible.unsqueeze(2), -torch.inf).amax(dim=1).mean(dim=0)
        require_shape("best", best, (num_components,), "one entry per component, (K,)")
        values, rule = values - best.detach().cpu().double(), regret_rule
    if rule == "sample_min":
        least = sample_min(values[..., counting].flatten(0, 1))
        choice = _first_best(least.view(eligible.shape), eligible)
    else:
        weights = torch.zeros(num_components, dtype=torch.float64)
        part = values[..., counting]
        if rule in _EXACT:
            choice, weights[counting], bound = _exact(part, eligible, floor)
        else:
            weigh = rule if callable(rule) else _named(rule, options)
            choice, weights[counting] = _conditional_gradients(values, counting, eligible, weigh, floor)
    rows = torch.arange(len(choice))
    chosen = utilities.detach().cpu().double()[rows, choice].nanmean(dim=0)
    counts = eligible.shape[1] * torch.ones(len(choice)) if mask is None else mask.cpu().sum(dim=1)
    kl = sum(best_of_kl(int(count)) for count in counts.tolist()) / len(choice)
    return BestOf(choice, weights, chosen, kl, bound)


def _eligible(
    utilities: torch.Tensor, counting: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Utilities `(P, n, K)` in float64 with 0 for NaN, and which replies `(P, n)` can be chosen."""
    values = utilities.detach().cpu().double()
    eligible = ~values[..., counting.cpu()].isnan().any(dim=2)
    if mask is not None:
        require_shape("mask", mask, tuple(values.shape[:2]), "prompts by replies, (P, n)")
        eligible &= mask.cpu().bool()
    lost = (~eligible.any(dim=1)).nonzero().flatten().tolist()
    if lost or not len(values):
        raise ValueError(
            f"No reply can be chosen for the prompts {lost[:10]} of {len(values)}: each needs one that every weighted "
            "component scored."
        )
    return values.nan_to_num(), eligible


def _first_best(scores: torch.Tensor, eligible: torch.Tensor) -> torch.Tensor:
    """Index `(P,)` of the best of the replies that can be chosen, by their scores `(P, n)`."""
    scores = scores.masked_fill(~eligible, -torch.inf)
    return _first(scores == scores.amax(dim=1, keepdim=True))


def _first(flags: torch.Tensor) -> torch.Tensor:
    """Index `(P,)` of the first `True` of each row: `argmax` does not promise which of several it takes."""
    places = torch.arange(flags.shape[1]).expand_as(flags)
    return torch.where(flags, places, flags.shape[1]).amin(dim=1)


def _named(rule: str, options: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda utilities: welfare_weights(rule, utilities, **options)


def _conditional_gradients(
    values: torch.Tensor,
    counting: torch.Tensor,
    eligible: torch.Tensor,
    weigh: Callable[[torch.Tensor], torch.Tensor],
    floor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choice `(P,)` and weights of the counting components, for a rule that is the gradient of a concave welfare.

    Averaging the weights makes rules settle that jump between components, as a minimum does.
    """
    rows, part = torch.arange(len(values)), values[..., counting]
    share = eligible.double() / eligible.sum(dim=1, keepdim=True)
    mean = (values * share.unsqueeze(2)).sum(dim=1).mean(dim=0)
    averaged, previous = torch.zeros(int(counting.sum()), dtype=torch.float64), None
    for step in range(_STEPS):
        group = torch.where(counting, mean, torch.nan)
        own = torch.as_tensor(weigh(group)).detach().cpu().double()[counting]
        weights = apply_weight_floor(own / own.sum(), floor)
        rate = 2.0 / (step + 2.0)
        averaged = averaged + rate * (weights - averaged)
        choice = _first_best(part @ weights, eligible)
        reached = values[rows, choice].mean(dim=0)
        if previous is not None and torch.equal(previous, weights) and torch.equal(reached, mean):
            break
        previous = weights
        mean = mean + rate * (reached - mean)
    averaged = averaged / averaged.sum()
    return _first_best(part @ averaged, eligible), averaged


def _exact(
    values: torch.Tensor, eligible: torch.Tensor, floor: float
) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """Choice `(P,)`, weights and bound of the linear program, by column generation: each column is a whole choice."""
    size = values.shape[2]
    weights, bound = torch.full((size,), 1.0 / size, dtype=torch.float64), torch.inf
    apply_weight_floor(weights, floor)  # refuses a floor above 1 / K
    # The least over weights with a floor is the least over free weights of utilities that are mixed with their sum.
    values = (1.0 - size * floor) * values + floor * values.sum(dim=2, keepdim=True)
    span = max((values.amax() - values.amin()).item(), 1e-12)
    rows = torch.arange(len(values))
    columns: list[torch.Tensor] = []
    choice = _first_best(values @ weights, eligible)
    for _ in range(_MAX_COLUMNS):
        payoff = values[rows, choice].mean(dim=0)
        if columns and (payoff @ weights).item() <= bound + _TOLERANCE * span:
            break
        columns.append(payoff)
        weights, bound = _matrix_game(torch.stack(columns, dim=1))
        choice = _first_best(values @ weights, eligible)
    choice = _settle_ties(values, weights, eligible, span)
    return choice, apply_weight_floor(weights, floor), bound if floor == 0.0 else None


def _settle_ties(values: torch.Tensor, weights: torch.Tensor, eligible: torch.Tensor, span: float) -> torch.Tensor:
    """Of replies that weigh the same at the solution, those that leave the worst component best off; else the first.

    At the solution there are ties by construction: about K - 1 prompts stand between two replies.
    """
    scores = (values @ weights).masked_fill(~eligible, -torch.inf)
    tied = scores >= scores.amax(dim=1, keepdim=True) - 10 * _TOLERANCE * span
    choice = _first(tied)
    rows = torch.arange(len(values))
    total = values[rows, choice].sum(dim=0)
    open_prompts = (tied.sum(dim=1) > 1).nonzero().flatten().tolist()
    for _ in range(len(open_prompts)):
        before = total.clone()
        for row in open_prompts:
            for reply in tied[row].nonzero().flatten().tolist():
                moved = total - values[row, choice[row]] + values[row, reply]
                if moved.min() > total.min() + _TOLERANCE * span:
                    total, choice[row] = moved, reply
        if torch.equal(before, total):
            break
    return choice


def _matrix_game(payoffs: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Weights `(K,)` of the rows of `payoffs` `(K, m)` that make the best column worst, and its value.

    The simplex method by Bland's rule on `max sum y` subject to `payoffs^T y <= 1`, `y >= 0`, after a shift that makes
    all entries positive: `w = y / sum(y)`. (Dantzig 1951, "A proof of the equivalence of the programming problem and
    the game problem".)
    """
    size, count = payoffs.shape
    span = max((payoffs.amax() - payoffs.amin()).item(), 1e-12)
    scaled = (payoffs - payoffs.amin()) / span + 1.0
    table = torch.zeros((count + 1, size + count + 1), dtype=torch.float64)
    table[:count, :size] = scaled.T
    table[:count, size:-1] = torch.eye(count, dtype=torch.float64)
    table[:count, -1] = 1.0
    table[count, :size] = -1.0
    basis = list(range(size, size + count))
    while (enters := (table[count, :-1] < -1e-12).nonzero().flatten()).numel():
        column = int(enters[0])
        entries = table[:count, column]
        ratios = torch.where(entries > 1e-12, table[:count, -1] / entries.clamp_min(1e-12), torch.inf)
        least = (ratios <= ratios.min() + 1e-14).nonzero().flatten().tolist()
        row = min(least, key=basis.__getitem__)
        table[row] /= table[row, column].clone()
        others = torch.arange(count + 1) != row
        table[others] -= table[others, column : column + 1] * table[row]
        basis[row] = column
    solution = torch.zeros(size, dtype=torch.float64)
    for row, column in enumerate(basis):
        if column < size:
            solution[column] = table[row, -1].clamp_min(0.0)
    value = (1.0 / solution.sum().item() - 1.0) * span + payoffs.amin().item()
    return solution / solution.sum(), value
