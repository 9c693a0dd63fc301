# SPDX-License-Identifier: Apache-2.0
"""Welfare rules: group utilities in, weights on the simplex out.

A trainer optimises `sum_k w[k] u[k]`. The rule decides `w` from the group utilities `U[k] = E[u[k]]`, estimated over
the replies of all ranks. The KL penalty is common to all groups and does not enter.

| rule | weights | optimises |
|---|---|---|
| `"maxmin"` | 1 on the smallest `U` | `min_k U[k]`, the paper's Algorithm 1 |
| `"softmin"` | proportional to `exp(-U[k] / tau)` | a smooth minimum |
| `"mirror"` | proportional to `w_prev[k] exp(-eta U[k])` | `min_k U[k]`, by averaging over time |
| `"utilitarian"` | `1 / K` | the mean over groups |
| `"mixing"` | the mixing weights | what single-reward RLHF approximates |
| `"nash"` | proportional to `1 / (U[k] - d[k])` | the product of gains over `d` |
| `"pmean"` | proportional to `(U[k] - d[k]) ** (p - 1)` | the power mean of gains over `d` |
| `"gini"` | by place, the most to the worst off | an ordered weighted average |
| `"leximin"` | by place, falling steeply | the worst off, then the next, ... |
| `"regret"` | another rule's, on `U[k] - U*[k]` | the largest regret, where that rule is `"maxmin"` |

`sample_min` is not a rule but a reward: `E[min_k u[k]]` is a different objective from `min_k E[u[k]]` and at most as
large.

In every function a NaN utility means that nothing was scored for that component; it gets weight 0 and the others share
the 1.
"""

from collections.abc import Callable, Sequence

import torch

from .ordered_welfare import gains, gini_weights, leximin_weights, minus_regret, pmean_weights
from .preference import require_shape
from .simplex import apply_weight_floor, project_to_simplex, require_floor, require_on_simplex, scored_components


WELFARE_RULES = (
    *("maxmin", "softmin", "mirror", "utilitarian", "mixing", "nash"),
    *("pmean", "gini", "leximin", "regret"),
)
#: Rules that can look at regrets instead of utilities.
REGRET_RULES = ("maxmin", "softmin", "mirror", "gini", "leximin")
WelfareRule = str | Callable[[torch.Tensor], torch.Tensor]


def maxmin_weights(utilities: torch.Tensor) -> torch.Tensor:
    """All weight on the worst-off component: the paper's Algorithm 1.

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities, higher is better. NaN: weight 0.

    Returns:
        `torch.Tensor` of shape `(K,)`: one-hot on the smallest utility, on the first one of a tie.

    Raises:
        ValueError: a wrong shape, every utility NaN, or an infinite utility.

    Source: Chakraborty et al., "MaxMin-RLHF" (arXiv 2402.08925), Algorithm 1.

    Example:

    >>> maxmin_weights(torch.tensor([0.5, -0.2, 0.1]))
    tensor([0., 1., 0.])
    """
    scored = scored_components(utilities)
    filled = torch.where(scored, utilities, torch.inf)
    weights = torch.zeros_like(filled)
    weights[(filled == filled.min()).nonzero()[0]] = 1.0
    return weights


def softmin_weights(utilities: torch.Tensor, tau: float) -> torch.Tensor:
    """Weights proportional to `exp(-U / tau)`: between `maxmin` (tau to 0) and `utilitarian` (tau to infinity).

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities, higher is better. NaN: weight 0.
        tau (`float`): positive temperature in units of utility.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, every utility NaN, an infinite utility, or `tau` not finite and positive.

    Example:

    >>> softmin_weights(torch.tensor([0.0, 1.0986]), tau=1.0)
    tensor([0.7500, 0.2500])
    """
    scored = scored_components(utilities)
    if not 0.0 < tau < float("inf"):
        raise ValueError(
            f"`tau` is {tau}, but must be finite and positive; use 'maxmin' or 'utilitarian' for its limits."
        )
    return torch.softmax(torch.where(scored, -utilities.double() / tau, -torch.inf), dim=0).to(utilities.dtype)


def mirror_weights(utilities: torch.Tensor, previous: torch.Tensor, eta: float) -> torch.Tensor:
    """One step of multiplicative weights: proportional to `previous * exp(-eta U)`.

    The AVERAGE of the weights over the steps converges to the saddle point, where one-hot switching keeps oscillating.

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities, higher is better. NaN: weight 0.
        previous (`torch.Tensor` of shape `(K,)`): the weights before, on the simplex; uniform at the start. An entry
            of 0 counts as the smallest positive number of the dtype.
        eta (`float`): non-negative step size, in units of 1 / utility.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, every utility NaN, an infinite utility, `eta` negative or not finite, or `previous`
            not on the simplex.

    Source: Freund and Schapire (1999), "Adaptive game playing using multiplicative weights".

    Example:

    >>> mirror_weights(torch.tensor([0.0, 1.0986]), torch.tensor([0.5, 0.5]), eta=1.0)
    tensor([0.7500, 0.2500])
    """
    scored = scored_components(utilities)
    previous = require_on_simplex("previous", previous, utilities)
    if not 0.0 <= eta < float("inf"):
        raise ValueError(f"`eta` is {eta}, but must be finite and not negative; 0.1 is a common step size.")
    # A weight that has underflowed to 0 could never grow again.
    start = previous.double().clamp_min(torch.finfo(utilities.dtype).tiny).log()
    return torch.softmax(torch.where(scored, start - eta * utilities.double(), -torch.inf), dim=0).to(utilities.dtype)


def utilitarian_weights(utilities: torch.Tensor) -> torch.Tensor:
    """The same weight for every component that was scored.

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities; only which of them are NaN matters.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, every utility NaN, or an infinite utility.

    Example:

    >>> utilitarian_weights(torch.tensor([5.0, float("nan"), -1.0]))
    tensor([0.5000, 0.0000, 0.5000])
    """
    scored = scored_components(utilities)
    return scored.to(utilities.dtype) / scored.sum()


def mixing_weights_rule(utilities: torch.Tensor, mixing_weights: torch.Tensor) -> torch.Tensor:
    """The mixture's own shares as weights: what RLHF on a single reward approximates.

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities; only which of them are NaN matters.
        mixing_weights (`torch.Tensor` of shape `(K,)`): share of each component, on the simplex.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, every utility NaN, an infinite utility, `mixing_weights` not on the simplex, or no
            share left for the components that were scored.

    Example:

    >>> mixing_weights_rule(torch.tensor([0.0, 0.0]), torch.tensor([0.75, 0.25]))
    tensor([0.7500, 0.2500])
    """
    scored = scored_components(utilities)
    shares = torch.where(scored, require_on_simplex("mixing_weights", mixing_weights, utilities), 0.0)
    if shares.sum() <= 0:
        raise ValueError(
            f"`mixing_weights` are {mixing_weights.tolist()}, which leaves nothing for the scored components "
            f"{scored.nonzero().flatten().tolist()}; use another rule, or score the components that have a share."
        )
    return shares / shares.sum()


def nash_weights(utilities: torch.Tensor, disagreement: torch.Tensor, eps: float = 1e-3) -> torch.Tensor:
    """Weights proportional to `1 / (U - d)`: the gradient of the Nash product `prod_k (U[k] - d[k])`, normalised.

    Args:
        utilities (`torch.Tensor` of shape `(K,)`): group utilities, higher is better. NaN: weight 0.
        disagreement (`torch.Tensor` of shape `(K,)`): utility that each component has without an agreement, for
            example 0 for `"zscore"`: the reference policy's.
        eps (`float`, *optional*, defaults to 1e-3): smallest gain that is divided by. A component at or below its
            disagreement point therefore gets nearly all weight.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, every utility NaN, an infinite utility, a disagreement that is not finite, or `eps`
            not finite and positive.

    Source: Nash (1950), "The Bargaining Problem".

    Example:

    >>> nash_weights(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
    tensor([0.7500, 0.2500])
    """
    scored = scored_components(utilities)
    inverse = torch.where(scored, 1.0 / gains(utilities, disagreement, eps), 0.0)
    return inverse / inverse.sum()


def welfare_weights(
    rule: WelfareRule,
    utilities: torch.Tensor,
    *,
    tau: float = 1.0,
    eta: float = 0.1,
    previous: torch.Tensor | None = None,
    mixing_weights: torch.Tensor | None = None,
    disagreement: torch.Tensor | None = None,
    power: float = -1.0,
    order_weights: Sequence[float] | None = None,
    delta: float = 0.05,
    best: torch.Tensor | None = None,
    regret_rule: str = "maxmin",
    floor: float = 0.0,
) -> torch.Tensor:
    """Weights of the components under a rule given by name or by a function.

    Args:
        rule (`str` or `Callable`): one of `WELFARE_RULES`, or a function from utilities `(K,)` to scores `(K,)`; its
            result is projected on the simplex of the components that were scored, because weights that do not sum to 1
            would change what the KL term means.
        utilities (`torch.Tensor` of shape `(K,)`): group utilities over the replies of all ranks, higher is better.
            NaN: nothing was scored, weight 0.
        tau (`float`, *optional*, defaults to 1.0): temperature of `"softmin"`.
        eta (`float`, *optional*, defaults to 0.1): step size of `"mirror"`.
        previous (`torch.Tensor` of shape `(K,)`, *optional*): weights before, for `"mirror"`; uniform if not given.
        mixing_weights (`torch.Tensor` of shape `(K,)`, *optional*): shares, needed for `"mixing"`.
        disagreement (`torch.Tensor` of shape `(K,)`, *optional*): disagreement point of `"nash"` and `"pmean"`; zeros
            if not given.
        power (`float`, *optional*, defaults to -1.0): p of `"pmean"`.
        order_weights (`Sequence[float]` of length K, *optional*): of `"gini"`.
        delta (`float`, *optional*, defaults to 0.05): of `"leximin"`.
        best (`torch.Tensor` of shape `(K,)`, *optional*): utility of each component under its own best policy, needed
            for `"regret"`.
        regret_rule (`str`, *optional*, defaults to `"maxmin"`): one of `REGRET_RULES`, which `"regret"` gives
            `utilities - best`.
        floor (`float`, *optional*, defaults to 0.0): smallest weight of a scored component, in `[0, 1 / K]`.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex, in the dtype of `utilities`.

    Raises:
        ValueError: an unknown name, `"mixing"` without mixing weights, `"regret"` without best utilities or by an
            unknown rule, a function's result of the wrong shape or not finite, a floor outside `[0, 1 / K]`, or
            anything the rule itself refuses.

    Example:

    >>> welfare_weights("maxmin", torch.tensor([0.3, 0.1]))
    tensor([0., 1.])
    >>> welfare_weights("maxmin", torch.tensor([0.3, 0.1]), floor=0.1)
    tensor([0.1000, 0.9000])
    >>> welfare_weights("regret", torch.tensor([0.3, 0.1]), best=torch.tensor([0.9, 0.2]))
    tensor([1., 0.])
    >>> welfare_weights(lambda u: -u, torch.tensor([0.0, 0.5]))
    tensor([0.7500, 0.2500])
    """
    scored = scored_components(utilities)
    if isinstance(rule, str) and rule == "regret":
        rule, utilities = _of_regret(regret_rule), minus_regret(utilities, _require_best(best))
    if callable(rule):
        weights = _custom_weights(rule, utilities, scored)
    elif rule == "maxmin":
        weights = maxmin_weights(utilities)
    elif rule == "softmin":
        weights = softmin_weights(utilities, tau)
    elif rule == "mirror":
        uniform = torch.full_like(utilities, 1.0 / utilities.numel())
        weights = mirror_weights(utilities, uniform if previous is None else previous, eta)
    elif rule == "utilitarian":
        weights = utilitarian_weights(utilities)
    elif rule == "mixing":
        if mixing_weights is None:
            raise ValueError(
                "The rule 'mixing' needs `mixing_weights`, got None; use 'utilitarian' if there are none."
            )
        weights = mixing_weights_rule(utilities, mixing_weights)
    elif rule == "nash":
        weights = nash_weights(utilities, torch.zeros_like(utilities) if disagreement is None else disagreement)
    elif rule == "pmean":
        weights = pmean_weights(utilities, power, disagreement)
    elif rule == "gini":
        weights = gini_weights(utilities, order_weights)
    elif rule == "leximin":
        weights = leximin_weights(utilities, delta)
    else:
        raise ValueError(
            f"Unknown welfare rule {rule!r}; choose one of {', '.join(map(repr, WELFARE_RULES))}, or pass a function. "
            "('sample_min' is a reward, not a rule: see `sample_min`.)"
        )
    require_floor(floor, utilities.numel())
    floored = torch.zeros_like(weights)
    floored[scored] = apply_weight_floor(weights[scored], floor)
    return floored


def _of_regret(regret_rule: str) -> str:
    if regret_rule not in REGRET_RULES:
        raise ValueError(
            f"`regret_rule` is {regret_rule!r}, which cannot look at regrets; choose one of "
            f"{', '.join(map(repr, REGRET_RULES))}."
        )
    return regret_rule


def _require_best(best: torch.Tensor | None) -> torch.Tensor:
    if best is None:
        raise ValueError(
            "The rule 'regret' needs `best`, the utility of each component under its own best policy, got None; use "
            "'maxmin' if nobody knows it."
        )
    return best


def sample_min(utilities: torch.Tensor) -> torch.Tensor:
    """The smallest utility of each reply, whose mean `E[min_k u[k]]` is NOT the MaxMin objective `min_k E[u[k]]`.

    It asks every single reply to please the component that likes it least, where MaxMin lets different replies serve
    different components. The paper's released code optimises this one.

    Args:
        utilities (`torch.Tensor` of shape `(N, K)`): utilities of the replies. NaN: not scored; a minimum over the
            rest would overrate the reply.

    Returns:
        `torch.Tensor` of shape `(N,)`; NaN for a reply that some component did not score.

    Raises:
        ValueError: a wrong shape.

    Example: two replies, each loved by one group. `min_k E[u[k]]` is 0, `E[min_k u[k]]` is -1.

    >>> utilities = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> utilities.mean(dim=0).min().item(), sample_min(utilities).mean().item()
    (0.0, -1.0)
    """
    require_shape("utilities", utilities, (None, None), "replies by components, (N, K)")
    if utilities.shape[1] == 0:
        raise ValueError("`utilities` has 0 components, but at least one is needed.")
    return utilities.amin(dim=1)


def _custom_weights(rule: Callable, utilities: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    result = torch.as_tensor(rule(utilities), dtype=utilities.dtype, device=utilities.device)
    require_shape("the welfare function's result", result, tuple(utilities.shape), "one weight per component, (K,)")
    if not result[scored].isfinite().all():
        raise ValueError(
            f"The welfare function returned {result.tolist()} for the utilities {utilities.tolist()}, but must return "
            "finite numbers for every component that was scored."
        )
    weights = torch.zeros_like(utilities)
    weights[scored] = project_to_simplex(result[scored])
    return weights
