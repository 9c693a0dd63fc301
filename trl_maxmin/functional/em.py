# SPDX-License-Identifier: Apache-2.0
"""Expectation-maximisation over annotators: who holds which reward component.

Letters: N preference pairs, H annotators, K components. Log-likelihoods are in nats. The E-step works on sums over an
annotator's pairs, never on single pairs: all pairs of a person share one component.

What never falls, for exact updates only (gradient M-steps need not obey):

| variant | quantity | function |
|---|---|---|
| soft, `beta = 1` | observed-data log-likelihood + log prior | `lower_bound` |
| soft, any fixed `beta` | free energy + log prior | `lower_bound` with that `beta` |
| hard | classification log-likelihood | `classification_log_likelihood` |

Source: Chakraborty et al., "MaxMin-RLHF" (arXiv 2402.08925), Algorithm 2, is the hard variant; Ueda and Nakano,
"Deterministic annealing EM algorithm" (1998), is the annealed one.
"""

from dataclasses import dataclass

import torch

from .preference import require_shape


_CHUNK = 1 << 20
#: What a pair may count against a component, nats: a reply of infinite reward shall not make a sum that means nothing.
_LEAST = -1e9


def annotator_log_likelihood(
    log_likelihood: torch.Tensor, annotator_index: torch.Tensor, num_annotators: int
) -> torch.Tensor:
    """Sum the log-likelihoods of each annotator's pairs: `L[h, k] = sum over pairs n of h of l[n, k]`.

    Args:
        log_likelihood (`torch.Tensor` of shape `(N, K)`): log-likelihood of each pair under each component, in nats.
        annotator_index (`torch.Tensor` of shape `(N,)`, integer): index of the annotator of each pair, in `[0,
            num_annotators)`.
        num_annotators (`int`): H. An annotator without a pair gets a row of zeros, hence responsibilities equal to the
            mixing weights.

    Returns:
        `torch.Tensor` of shape `(H, K)`, float64 and finite: sums of many terms decide the assignment, and float32
        loses the difference. A pair that a component calls impossible (`-inf`) counts -1e9.

    Raises:
        ValueError: a wrong shape, a NaN log-likelihood, a non-integer index, or an index outside `[0,
            num_annotators)`.

    Example:

    >>> annotator_log_likelihood(torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]), torch.tensor([0, 1, 0]), 2)
    tensor([[-6., -8.],
            [-3., -4.]], dtype=torch.float64)
    """
    require_shape("log_likelihood", log_likelihood, (None, None), "pairs by components, (N, K)")
    _require_annotator_index(annotator_index, log_likelihood.shape[0], num_annotators)
    if log_likelihood.isnan().any():
        rows = log_likelihood.isnan().any(dim=1).nonzero().flatten()[:5].tolist()
        raise ValueError(
            f"`log_likelihood` is NaN in pairs {rows}; check these pairs' rewards and margins, or drop them."
        )
    sums = torch.zeros(num_annotators, log_likelihood.shape[1], dtype=torch.float64, device=log_likelihood.device)
    # In chunks: ten million pairs need not exist twice in double precision.
    for start in range(0, len(log_likelihood), _CHUNK):
        part = slice(start, start + _CHUNK)
        index = annotator_index[part].to(log_likelihood.device).long()
        sums.index_add_(0, index, log_likelihood[part].detach().double().clamp(min=_LEAST))
    return sums


def log_responsibilities(
    annotator_ll: torch.Tensor, log_mixing_weights: torch.Tensor, beta: float = 1.0
) -> torch.Tensor:
    """Log posterior probability that an annotator belongs to each component: the soft E-step.

    `log gamma[h, k] = log pi[k] + beta L[h, k] - logsumexp_j(log pi[j] + beta L[h, j])`.

    Args:
        annotator_ll (`torch.Tensor` of shape `(H, K)`): log-likelihood of each annotator's pairs under each component,
            in nats.
        log_mixing_weights (`torch.Tensor` of shape `(K,)`): log share of each component; `-inf` excludes one.
        beta (`float`, *optional*, defaults to 1.0): inverse temperature. Below 1 it keeps the posterior from
            saturating in the first iterations; as it grows beyond 1 the result tends to `hard_assignment`.

    Returns:
        `torch.Tensor` of shape `(H, K)`: log-probabilities; `exp` of each row sums to 1. Evidence that is impossible
        under every component says nothing: such a row is the mixing weights.

    Raises:
        ValueError: a wrong shape, or `beta` is negative or not finite.

    Example:

    >>> log_resp = log_responsibilities(torch.tensor([[0.0, -1.0986]]), torch.tensor([0.5, 0.5]).log())
    >>> [round(p, 2) for p in log_resp.exp()[0].tolist()]
    [0.75, 0.25]
    """
    joint = _joint(annotator_ll, log_mixing_weights, beta)
    impossible = joint.isneginf().all(dim=1, keepdim=True)
    return torch.log_softmax(torch.where(impossible, log_mixing_weights.to(joint), joint), dim=1)


def hard_assignment(annotator_ll: torch.Tensor, previous: torch.Tensor | None = None) -> torch.Tensor:
    """Assign each annotator to the component of highest likelihood: the E-step of the paper's Algorithm 2.

    Args:
        annotator_ll (`torch.Tensor` of shape `(H, K)`): log-likelihood of each annotator's pairs under each component,
            in nats.
        previous (`torch.Tensor` of shape `(H,)`, integer, *optional*): the assignment before; -1 means none.

    Returns:
        `torch.Tensor` of shape `(H,)`, int64: component indices. A tie keeps the previous component if it is among the
        best, and takes the first of the best otherwise.

    Raises:
        ValueError: a wrong shape, or `previous` outside `[-1, K)`.

    Example:

    >>> hard_assignment(torch.tensor([[-2.0, -1.0], [-3.0, -3.0]]), previous=torch.tensor([0, 1]))
    tensor([1, 1])
    """
    require_shape("annotator_ll", annotator_ll, (None, None), "annotators by components, (H, K)")
    best = annotator_ll == annotator_ll.max(dim=1, keepdim=True).values
    # argmax of a boolean need not be the first True on every device; the first is asked for by counting down.
    countdown = torch.arange(annotator_ll.shape[1], 0, -1, device=annotator_ll.device)
    assignment = (best * countdown).argmax(dim=1)
    if previous is None:
        return assignment
    previous = previous.to(assignment.device)
    _require_assignment("previous", previous, annotator_ll, lowest=-1)
    keeps = best.gather(1, previous.clamp_min(0).long().unsqueeze(1)).squeeze(1) & (previous >= 0)
    return torch.where(keeps, previous.long(), assignment)


def with_known(log_resp: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
    """Log responsibilities in which the annotators of known groups are where they belong.

    Args:
        log_resp (`torch.Tensor` of shape `(H, K)`): log responsibilities.
        known (`torch.Tensor` of shape `(H,)`, integer, *optional*): component of each annotator where it is known, -1
            where not.

    Returns:
        `torch.Tensor` of shape `(H, K)`.
    """
    if known is None:
        return log_resp
    one_hot = torch.nn.functional.one_hot(known.clamp(min=0).long(), log_resp.shape[1]).to(log_resp)
    return torch.where((known >= 0).unsqueeze(1), one_hot.log(), log_resp)


def assign_annotators(
    annotator_ll: torch.Tensor,
    log_mixing_weights: torch.Tensor,
    em: str = "soft",
    beta: float = 1.0,
    previous: torch.Tensor | None = None,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    """The E-step of either kind.

    Args:
        annotator_ll (`torch.Tensor` of shape `(H, K)`): log-likelihood of each annotator's pairs under each component,
            in nats.
        log_mixing_weights (`torch.Tensor` of shape `(K,)`): log share of each component (soft).
        em (`str`, *optional*, defaults to `"soft"`): `"soft"`: `log_responsibilities`. `"hard"`: `hard_assignment`,
            each row the log of a one-hot vector.
        beta (`float`, *optional*, defaults to 1.0): inverse temperature (soft).
        previous (`torch.Tensor` of shape `(H,)`, integer, *optional*): the assignment before, which a tie keeps
            (hard).
        known (`torch.Tensor` of shape `(H,)`, integer, *optional*): as in `with_known`.

    Returns:
        `torch.Tensor` of shape `(H, K)`: log responsibilities.

    Example:

    >>> assign_annotators(torch.tensor([[-2.0, -1.0]]), torch.tensor([0.9, 0.1]).log(), em="hard").exp()
    tensor([[0., 1.]])
    """
    if em == "hard":
        best = hard_assignment(annotator_ll, previous)
        log_resp = torch.nn.functional.one_hot(best, annotator_ll.shape[1]).to(annotator_ll).log()
    else:
        log_resp = log_responsibilities(annotator_ll, log_mixing_weights, beta)
    return with_known(log_resp, known)


def mixing_weights_of(log_resp: torch.Tensor, em: str = "soft", dirichlet_concentration: float = 1.0) -> torch.Tensor:
    """Share of each component, `(K,)`: `update_mixing_weights` (soft), or of the annotators without a prior (hard)."""
    return log_resp.exp().mean(0) if em == "hard" else update_mixing_weights(log_resp, dirichlet_concentration)


def update_mixing_weights(log_resp: torch.Tensor, dirichlet_concentration: float = 1.0) -> torch.Tensor:
    """Share of each component given the responsibilities, at the mode of a symmetric Dirichlet prior.

    `pi[k] = (sum_h gamma[h, k] + a - 1) / (H + K (a - 1))`. With `a > 1` an empty component keeps a share and can come
    back.

    Args:
        log_resp (`torch.Tensor` of shape `(H, K)`): log responsibilities.
        dirichlet_concentration (`float`, *optional*, defaults to 1.0): `a >= 1`; 1 is maximum likelihood, each unit
            above adds one annotator to every component.

    Returns:
        `torch.Tensor` of shape `(K,)` on the simplex.

    Raises:
        ValueError: a wrong shape, no annotators, or `dirichlet_concentration` below 1.

    Example:

    >>> update_mixing_weights(torch.tensor([[1.0, 0.0], [1.0, 0.0]]).log(), dirichlet_concentration=2.0)
    tensor([0.7500, 0.2500])
    """
    require_shape("log_resp", log_resp, (None, None), "annotators by components, (H, K)")
    extra = _prior_strength(dirichlet_concentration)
    num_annotators, num_components = log_resp.shape
    if num_annotators == 0:
        raise ValueError("`log_resp` has 0 annotators, but at least one is needed; check the annotator column.")
    return (log_resp.exp().sum(dim=0) + extra) / (num_annotators + num_components * extra)


def lower_bound(
    annotator_ll: torch.Tensor,
    log_mixing_weights: torch.Tensor,
    beta: float = 1.0,
    dirichlet_concentration: float = 1.0,
) -> torch.Tensor:
    """The quantity that soft EM raises: `sum_h logsumexp_k(log pi[k] + beta L[h, k]) + (a - 1) sum_k log pi[k]`.

    At `beta = 1` it is the observed-data log-likelihood plus the log prior of the mixing weights (up to a constant);
    at another fixed `beta` the free energy. Values at different `beta` cannot be compared.

    Args:
        annotator_ll (`torch.Tensor` of shape `(H, K)`): log-likelihood of each annotator's pairs under each component,
            in nats.
        log_mixing_weights (`torch.Tensor` of shape `(K,)`): log share of each component.
        beta (`float`, *optional*, defaults to 1.0): inverse temperature of the E-step.
        dirichlet_concentration (`float`, *optional*, defaults to 1.0): `a >= 1` of `update_mixing_weights`.

    Returns:
        `torch.Tensor`, a scalar in nats; `-inf` where `a > 1` and a component has share 0.

    Raises:
        ValueError: a wrong shape, `beta` negative or not finite, or `dirichlet_concentration` below 1.

    Example:

    >>> lower_bound(torch.tensor([[-1.0, -1.0], [-2.0, -2.0]]), torch.tensor([0.5, 0.5]).log())
    tensor(-3.)
    """
    bound = torch.logsumexp(_joint(annotator_ll, log_mixing_weights, beta), dim=1).sum()
    extra = _prior_strength(dirichlet_concentration)
    # 0 * log(0) would be NaN for a component that maximum likelihood has emptied.
    return bound + extra * log_mixing_weights.to(bound).sum() if extra > 0 else bound


def classification_log_likelihood(annotator_ll: torch.Tensor, assignment: torch.Tensor) -> torch.Tensor:
    """The quantity that hard EM raises: the sum of each annotator's log-likelihood under their own component.

    Args:
        annotator_ll (`torch.Tensor` of shape `(H, K)`): log-likelihood of each annotator's pairs under each component,
            in nats.
        assignment (`torch.Tensor` of shape `(H,)`, integer): component of each annotator, in `[0, K)`.

    Returns:
        `torch.Tensor`, a scalar in nats.

    Raises:
        ValueError: a wrong shape, or an assignment outside `[0, K)`.

    Example:

    >>> classification_log_likelihood(torch.tensor([[-1.0, -5.0], [-7.0, -2.0]]), torch.tensor([0, 1]))
    tensor(-3.)
    """
    require_shape("annotator_ll", annotator_ll, (None, None), "annotators by components, (H, K)")
    assignment = assignment.to(annotator_ll.device)
    _require_assignment("assignment", assignment, annotator_ll, lowest=0)
    return annotator_ll.gather(1, assignment.long().unsqueeze(1)).sum()


def annealed_beta(step: int, annealing_steps: int, start: float) -> float:
    """Inverse temperature of the E-step at `step`: geometric from `start` to 1 over `annealing_steps`, then 1.

    Args:
        step (`int`): steps done so far, from 0.
        annealing_steps (`int`): length of the schedule in steps; 0 turns annealing off.
        start (`float`): value at step 0, in `(0, 1]`.

    Returns:
        `float` in `[start, 1]`.

    Raises:
        ValueError: a negative `step` or `annealing_steps`, or `start` outside `(0, 1]`.

    Example:

    >>> [round(annealed_beta(step, annealing_steps=2, start=0.01), 2) for step in (0, 1, 2, 3)]
    [0.01, 0.1, 1.0, 1.0]
    """
    if step < 0 or annealing_steps < 0:
        raise ValueError(f"`step` is {step} and `annealing_steps` is {annealing_steps}, but neither may be negative.")
    if not 0.0 < start <= 1.0:
        raise ValueError(f"`start` is {start}, but must be in (0, 1]; 1 turns annealing off.")
    if step >= annealing_steps:
        return 1.0
    return float(start ** (1.0 - step / annealing_steps))


def posterior_entropy(log_resp: torch.Tensor) -> torch.Tensor:
    """How undecided the E-step is about each annotator.

    Args:
        log_resp (`torch.Tensor` of shape `(H, K)`): log responsibilities; `-inf` is allowed and contributes 0.

    Returns:
        `torch.Tensor` of shape `(H,)`: entropies in nats, 0 (decided) to `log K` (knows nothing).

    Raises:
        ValueError: a wrong shape.

    Example:

    >>> posterior_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log())
    tensor([0.0000, 0.6931])
    """
    require_shape("log_resp", log_resp, (None, None), "annotators by components, (H, K)")
    return torch.special.entr(log_resp.exp()).sum(dim=1)


def predictive_log_likelihood(
    log_likelihood: torch.Tensor, log_resp: torch.Tensor, annotator_index: torch.Tensor
) -> torch.Tensor:
    """Held-out log-likelihood of pairs of known annotators: `log sum_k gamma[h(n), k] p_k(n)`.

    Args:
        log_likelihood (`torch.Tensor` of shape `(N, K)`): log-likelihood of each pair under each component, in nats.
        log_resp (`torch.Tensor` of shape `(H, K)`): log responsibilities, computed from OTHER pairs of these
            annotators: a pair that chose the component cannot also judge it.
        annotator_index (`torch.Tensor` of shape `(N,)`, integer): annotator of each pair, in `[0, H)`.

    Returns:
        `torch.Tensor` of shape `(N,)` in nats.

    Raises:
        ValueError: a wrong shape, a non-integer index, or an index outside `[0, H)`.

    Example:

    >>> pair = torch.tensor([[0.9, 0.1]]).log()
    >>> gamma = torch.tensor([[0.75, 0.25]]).log()
    >>> round(predictive_log_likelihood(pair, gamma, torch.tensor([0])).exp().item(), 4)
    0.7
    """
    require_shape("log_likelihood", log_likelihood, (None, None), "pairs by components, (N, K)")
    require_shape("log_resp", log_resp, (None, log_likelihood.shape[1]), "annotators by components, (H, K)")
    _require_annotator_index(annotator_index, log_likelihood.shape[0], log_resp.shape[0])
    return torch.logsumexp(log_resp[annotator_index.to(log_resp.device).long()] + log_likelihood, dim=1)


@dataclass(frozen=True)
class NumComponentsSelection:
    """What `select_num_components` decided, and on which numbers. All dictionaries have the candidate K as keys.

    Attributes:
        num_components (`int`): the K to use: the smallest that is not clearly worse than the best.
        best (`int`): the K of highest held-out mean, the smaller one of a tie.
        mean (`dict[int, float]`): mean held-out predictive log-likelihood per pair, in nats.
        difference (`dict[int, float]`): `mean(best) - mean(K)`, at least 0, in nats per pair.
        standard_error (`dict[int, float]`): standard error of that paired difference, clustered by annotator; 0 at
        `best`.
    """

    num_components: int
    best: int
    mean: dict[int, float]
    difference: dict[int, float]
    standard_error: dict[int, float]


def select_num_components(scores: dict[int, torch.Tensor], annotator_index: torch.Tensor) -> NumComponentsSelection:
    """Choose K by held-out likelihood: the smallest K within one standard error of the best, by paired differences.

    The differences are paired (the same pairs under both K) because most of the spread of a pair's likelihood is
    common to all K; the unpaired rule drops a true small group far too often. They are clustered by annotator because
    the pairs of a person succeed or fail together.

    Args:
        scores (`dict[int, torch.Tensor]`, each of shape `(N,)`): for each candidate K the held-out predictive
            log-likelihood of the same N pairs, in nats.
        annotator_index (`torch.Tensor` of shape `(N,)`, integer): annotator of each pair; any non-negative integers.

    Raises:
        ValueError: no candidates, a K below 1, shapes that differ, scores that are not finite, or fewer than two
            annotators (the spread between annotators is unknown then).

    Source: the one-standard-error rule of Breiman et al. (1984); cluster-robust variance of a mean with the `G / (G -
    1)` correction, Cameron and Miller (2015), "A Practitioner's Guide to Cluster-Robust Inference".

    Example:

    >>> scores = {1: torch.tensor([-1.0, -1.0, -1.0, -1.0]), 2: torch.tensor([-0.2, -0.4, -0.3, -0.5])}
    >>> selection = select_num_components(scores, torch.tensor([0, 0, 1, 1]))
    >>> selection.num_components, round(selection.difference[1], 2), round(selection.standard_error[1], 2)
    (2, 0.65, 0.05)
    """
    if not scores or min(scores) < 1:
        raise ValueError(f"`scores` has the keys {sorted(scores)}, but needs at least one K, each 1 or larger.")
    candidates = sorted(scores)
    num_pairs = scores[candidates[0]].numel()
    for k in candidates:
        require_shape(f"scores[{k}]", scores[k], (num_pairs,), "the same held-out pairs for every K, (N,)")
        if not scores[k].isfinite().all():
            raise ValueError(
                f"`scores[{k}]` has NaN or infinite values, but must be finite; drop those pairs for every K."
            )
    _require_annotator_index(annotator_index, num_pairs, None)
    clusters = torch.unique(annotator_index.cpu(), return_inverse=True)[1]
    num_clusters = int(clusters.max()) + 1 if num_pairs else 0
    if num_clusters < 2:
        raise ValueError(
            f"The held-out pairs come from {num_clusters} annotator(s), but at least 2 are needed to estimate a "
            "standard error; hold out pairs of more annotators, or fix the number of components."
        )
    table = {k: scores[k].detach().double().cpu() for k in candidates}
    mean = {k: table[k].mean().item() for k in candidates}
    best = max(candidates, key=lambda k: (mean[k], -k))
    difference, standard_error = {}, {}
    for k in candidates:
        paired = table[best] - table[k]
        difference[k] = paired.mean().item()
        standard_error[k] = clustered_error(paired, clusters, num_clusters)
    chosen = next(k for k in candidates if difference[k] <= standard_error[k])
    return NumComponentsSelection(chosen, best, mean, difference, standard_error)


def clustered_error(values: torch.Tensor, clusters: torch.Tensor, num_clusters: int) -> float:
    """Standard error of the mean of values `(N,)` that succeed or fail together within a cluster, 0..G-1 `(N,)`."""
    residual = torch.zeros(num_clusters, dtype=torch.float64).index_add(0, clusters, values - values.mean())
    return (residual.square().sum() * num_clusters / (num_clusters - 1) / len(values) ** 2).sqrt().item()


def _joint(annotator_ll: torch.Tensor, log_mixing_weights: torch.Tensor, beta: float) -> torch.Tensor:
    require_shape("annotator_ll", annotator_ll, (None, None), "annotators by components, (H, K)")
    require_shape("log_mixing_weights", log_mixing_weights, (annotator_ll.shape[1],), "one entry per component, (K,)")
    if not 0.0 <= beta < float("inf"):
        raise ValueError(f"`beta` is {beta}, but must be finite and not negative; 1 is the posterior.")
    # 0 times -inf is NaN, but evidence without weight says nothing.
    return log_mixing_weights.to(annotator_ll) + (beta * annotator_ll if beta > 0 else torch.zeros_like(annotator_ll))


def _prior_strength(dirichlet_concentration: float) -> float:
    if not 1.0 <= dirichlet_concentration < float("inf"):
        raise ValueError(
            f"`dirichlet_concentration` is {dirichlet_concentration}, but must be finite and at least 1 (below 1 the "
            "mode of the prior empties components); 1 is no prior."
        )
    return dirichlet_concentration - 1.0


def _require_annotator_index(annotator_index: torch.Tensor, num_pairs: int, num_annotators: int | None) -> None:
    require_shape("annotator_index", annotator_index, (num_pairs,), "one annotator per pair, (N,)")
    if annotator_index.is_floating_point() or annotator_index.dtype == torch.bool:
        raise ValueError(f"`annotator_index` has dtype {annotator_index.dtype}, but must be integer; use `.long()`.")
    if num_pairs == 0:
        return
    low, high = int(annotator_index.min()), int(annotator_index.max())
    if low < 0 or (num_annotators is not None and high >= num_annotators):
        allowed = "non-negative" if num_annotators is None else f"in [0, {num_annotators})"
        raise ValueError(
            f"`annotator_index` ranges from {low} to {high}, but must be {allowed}; re-index the annotators."
        )


def _require_assignment(name: str, assignment: torch.Tensor, annotator_ll: torch.Tensor, lowest: int) -> None:
    num_annotators, num_components = annotator_ll.shape
    require_shape(name, assignment, (num_annotators,), "one component per annotator, (H,)")
    if num_annotators and not (lowest <= int(assignment.min()) and int(assignment.max()) < num_components):
        raise ValueError(
            f"`{name}` ranges from {int(assignment.min())} to {int(assignment.max())}, but must be in "
            f"[{lowest}, {num_components}): indices of components."
        )
