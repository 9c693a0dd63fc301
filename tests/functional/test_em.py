# SPDX-License-Identifier: Apache-2.0
"""EM on a toy problem whose M-step is exact: every pair asks one of J questions, a component answers each with its own
probability, and the maximum-likelihood probability is the weighted share of "yes"."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from trl_maxmin.functional.em import (
    annealed_beta,
    annotator_log_likelihood,
    assign_annotators,
    classification_log_likelihood,
    hard_assignment,
    log_responsibilities,
    lower_bound,
    mixing_weights_of,
    posterior_entropy,
    predictive_log_likelihood,
    select_num_components,
    update_mixing_weights,
)


NUM_ANNOTATORS, NUM_QUESTIONS, NUM_COMPONENTS = 12, 4, 3


def survey(seed):
    """Answers (N,) in {0, 1}, question (N,), annotator (N,): planted groups with opposite leanings."""
    rng = np.random.default_rng(seed)
    group = np.arange(NUM_ANNOTATORS) % NUM_COMPONENTS
    leaning = rng.uniform(0.1, 0.9, size=(NUM_COMPONENTS, NUM_QUESTIONS))
    annotator = np.repeat(np.arange(NUM_ANNOTATORS), 3 * NUM_QUESTIONS)
    question = np.tile(np.arange(NUM_QUESTIONS), 3 * NUM_ANNOTATORS)
    answer = rng.uniform(size=annotator.size) < leaning[group[annotator], question]
    return torch.tensor(answer).double(), torch.tensor(question), torch.tensor(annotator)


def pair_log_likelihood(probability, answer, question):
    """(N, K) log-likelihood of the answers under each component's table `probability` (K, J)."""
    p = probability[:, question].T.clamp(1e-9, 1 - 1e-9)
    return answer.unsqueeze(1) * p.log() + (1 - answer).unsqueeze(1) * (1 - p).log()


def exact_m_step(pair_weights, answer, question):
    """Weighted share of "yes" for each component and question; `pair_weights` is (N, K)."""
    yes = torch.zeros(NUM_QUESTIONS, NUM_COMPONENTS, dtype=torch.float64)
    total = torch.zeros_like(yes)
    yes.index_add_(0, question, pair_weights * answer.unsqueeze(1))
    total.index_add_(0, question, pair_weights)
    return torch.where(total > 0, yes / total.clamp_min(1e-300), 0.5).T


def run_em(seed, beta=1.0, concentration=1.0, hard=False, iterations=25):
    answer, question, annotator = survey(seed)
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand(NUM_COMPONENTS, NUM_QUESTIONS, generator=generator, dtype=torch.float64)
    log_pi = torch.full((NUM_COMPONENTS,), 1.0 / NUM_COMPONENTS, dtype=torch.float64).log()
    assignment, curve = None, []
    for _ in range(iterations):
        sums = annotator_log_likelihood(pair_log_likelihood(probability, answer, question), annotator, NUM_ANNOTATORS)
        if hard:
            assignment = hard_assignment(sums, assignment)
            curve.append(classification_log_likelihood(sums, assignment).item())
            responsibilities = torch.nn.functional.one_hot(assignment, NUM_COMPONENTS).double()
        else:
            curve.append(lower_bound(sums, log_pi, beta, concentration).item())
            log_resp = log_responsibilities(sums, log_pi, beta)
            responsibilities = log_resp.exp()
            log_pi = update_mixing_weights(log_resp, concentration).log()
        probability = exact_m_step(responsibilities[annotator], answer, question)
    return curve, probability, log_pi, sums


def assert_never_falls(curve):
    assert all(later >= earlier - 1e-9 for earlier, later in zip(curve, curve[1:], strict=False)), curve


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("concentration", [1.0, 2.5])
def test_soft_em_never_lowers_the_penalised_likelihood(seed, concentration):
    curve = run_em(seed, concentration=concentration)[0]
    assert_never_falls(curve)
    assert curve[-1] > curve[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.05, 0.4])
def test_annealed_em_never_lowers_the_free_energy_at_a_fixed_beta(seed, beta):
    assert_never_falls(run_em(seed, beta=beta)[0])


@pytest.mark.parametrize("seed", range(5))
def test_hard_em_never_lowers_the_classification_likelihood(seed):
    curve = run_em(seed, hard=True)[0]
    assert_never_falls(curve)
    assert curve[-1] == pytest.approx(curve[-2])  # hard EM stops after finitely many changes


def test_soft_em_with_an_exact_logistic_m_step():
    # Linear rewards on features: the M-step is a weighted logistic regression, solved by scipy.
    rng = np.random.default_rng(3)
    annotator = np.repeat(np.arange(8), 12)
    feature = rng.normal(size=(96, 2))
    wish = np.array([[2.0, -1.0], [-1.5, 1.0]])[np.arange(8) % 2]
    prefers = rng.uniform(size=96) < 1 / (1 + np.exp(-(feature * wish[annotator]).sum(1)))
    difference = np.where(prefers[:, None], feature, -feature)
    phi = rng.normal(size=(2, 2))
    log_pi = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    curve = []
    for _ in range(8):
        log_likelihood = torch.tensor(-np.logaddexp(0.0, -difference @ phi.T))
        sums = annotator_log_likelihood(log_likelihood, torch.tensor(annotator), 8)
        curve.append(lower_bound(sums, log_pi).item())
        log_resp = log_responsibilities(sums, log_pi)
        log_pi = update_mixing_weights(log_resp).log()
        weight = log_resp.exp().numpy()[annotator]
        for k in range(2):
            phi[k] = minimize(lambda p, w=weight[:, k]: (w * np.logaddexp(0.0, -difference @ p)).sum(), phi[k]).x
    assert_never_falls([round(value, 6) for value in curve])


def test_bound_equals_complete_likelihood_plus_entropy():
    # The identity that makes EM work, at any beta: F = sum gamma (log pi + beta L) + H(gamma).
    generator = torch.Generator().manual_seed(1)
    sums = 5 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    log_pi = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    gamma = np.exp(log_responsibilities(sums, log_pi, 0.7).numpy())
    free_energy = (gamma * (log_pi.numpy() + 0.7 * sums.numpy())).sum() - (gamma * np.log(gamma)).sum()
    assert lower_bound(sums, log_pi, 0.7).item() == pytest.approx(free_energy)


def test_lower_bound_with_prior_by_hand():
    # One annotator, likelihoods 1/2 and 1/4, equal shares: p = 3/8; prior (a - 1) * 2 log(1/2) with a = 3.
    sums = torch.tensor([[0.5, 0.25]], dtype=torch.float64).log()
    log_pi = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    bound = lower_bound(sums, log_pi, dirichlet_concentration=3.0)
    assert bound.item() == pytest.approx(math.log(3 / 8) + 2 * 2 * math.log(0.5))


def test_lower_bound_of_an_emptied_component():
    sums = torch.tensor([[-1.0, -2.0]])
    log_pi = torch.tensor([1.0, 0.0]).log()
    assert lower_bound(sums, log_pi).item() == pytest.approx(-1.0)
    assert lower_bound(sums, log_pi, dirichlet_concentration=2.0).item() == -math.inf


def test_relabelling_components_permutes_everything_and_changes_nothing_else():
    generator = torch.Generator().manual_seed(2)
    log_likelihood = -torch.rand(30, 3, generator=generator, dtype=torch.float64)
    annotator = torch.arange(30) % 5
    log_pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    order = torch.tensor([2, 0, 1])

    def everything(log_likelihood, log_pi):
        sums = annotator_log_likelihood(log_likelihood, annotator, 5)
        log_resp = log_responsibilities(sums, log_pi, 0.8)
        return sums, log_resp, update_mixing_weights(log_resp, 1.5), hard_assignment(sums)

    sums, log_resp, pi, assignment = everything(log_likelihood, log_pi)
    sums_p, log_resp_p, pi_p, assignment_p = everything(log_likelihood[:, order], log_pi[order])
    torch.testing.assert_close(sums_p, sums[:, order])
    torch.testing.assert_close(log_resp_p, log_resp[:, order])
    torch.testing.assert_close(pi_p, pi[order])
    assert order[assignment_p].tolist() == assignment.tolist()
    torch.testing.assert_close(posterior_entropy(log_resp_p), posterior_entropy(log_resp))
    torch.testing.assert_close(lower_bound(sums_p, log_pi[order], 0.8, 1.5), lower_bound(sums, log_pi, 0.8, 1.5))
    torch.testing.assert_close(
        classification_log_likelihood(sums_p, assignment_p), classification_log_likelihood(sums, assignment)
    )
    torch.testing.assert_close(
        predictive_log_likelihood(log_likelihood[:, order], log_resp_p, annotator),
        predictive_log_likelihood(log_likelihood, log_resp, annotator),
    )


def test_sums_by_hand_and_an_annotator_without_pairs():
    sums = annotator_log_likelihood(torch.tensor([[-1.0, -2.0], [-0.5, -3.0]]), torch.tensor([2, 2]), 3)
    assert sums.tolist() == [[0.0, 0.0], [0.0, 0.0], [-1.5, -5.0]]
    log_pi = torch.tensor([0.25, 0.75]).log()
    torch.testing.assert_close(log_responsibilities(sums, log_pi)[0].exp(), torch.tensor([0.25, 0.75]).double())


def test_responsibilities_are_on_the_simplex_even_where_they_saturate():
    sums = torch.tensor([[-1e5, -2e5], [-3.0, -1e9], [0.0, 0.0]], dtype=torch.float64)
    log_resp = log_responsibilities(sums, torch.tensor([0.5, 0.5]).log())
    assert (log_resp <= 0).all() and log_resp.isfinite().all()
    torch.testing.assert_close(log_resp.exp().sum(1), torch.ones(3, dtype=torch.float64))


def test_responsibilities_follow_bayes_rule():
    # Likelihoods 0.2 and 0.1 with shares 1/4 and 3/4: posterior 0.05 : 0.075 = 2 : 3.
    sums = torch.tensor([[0.2, 0.1]]).log()
    torch.testing.assert_close(
        log_responsibilities(sums, torch.tensor([0.25, 0.75]).log()).exp(), torch.tensor([[0.4, 0.6]])
    )


def test_hard_assignment_is_the_limit_of_soft():
    generator = torch.Generator().manual_seed(5)
    sums = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    log_pi = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64).log()
    soft = log_responsibilities(sums, log_pi, beta=1e6).exp()
    hard = torch.nn.functional.one_hot(hard_assignment(sums), 4).double()
    torch.testing.assert_close(soft, hard)


def test_hard_assignment_ties():
    sums = torch.tensor([[-1.0, -1.0, -2.0], [-1.0, -1.0, -2.0], [-1.0, -1.0, -2.0], [-1.0, -1.0, -2.0]])
    assert hard_assignment(sums).tolist() == [0, 0, 0, 0]
    assert hard_assignment(sums, torch.tensor([0, 1, 2, -1])).tolist() == [0, 1, 0, 0]


def test_dirichlet_prior_revives_an_empty_component():
    # All annotators fit component 0 a little better and component 1 has lost its whole share.
    log_resp = torch.tensor([[1.0, 0.0]] * 4).log()
    assert update_mixing_weights(log_resp).tolist() == [1.0, 0.0]
    revived = update_mixing_weights(log_resp, dirichlet_concentration=2.0)
    torch.testing.assert_close(revived, torch.tensor([5 / 6, 1 / 6]))
    # With a share, an annotator whom it suits can move over; without, nobody ever could.
    suits = torch.tensor([[-20.0, -1.0]])
    assert log_responsibilities(suits, revived.log()).exp()[0, 1] > 0.99
    assert log_responsibilities(suits, torch.tensor([1.0, 0.0]).log()).exp()[0, 1] == 0.0


def test_mixing_weights_are_on_the_simplex():
    generator = torch.Generator().manual_seed(0)
    log_resp = torch.randn(9, 5, generator=generator).log_softmax(1)
    for concentration in (1.0, 1.3, 10.0):
        pi = update_mixing_weights(log_resp, concentration)
        assert (pi >= 0).all() and pi.sum().item() == pytest.approx(1.0)


def test_annealed_beta_is_geometric():
    betas = [annealed_beta(step, 10, 0.01) for step in range(13)]
    assert betas[0] == pytest.approx(0.01) and betas[10:] == [1.0, 1.0, 1.0]
    ratios = [later / earlier for earlier, later in zip(betas[:10], betas[1:11], strict=True)]
    assert ratios == pytest.approx([100 ** (1 / 10)] * 10)
    assert annealed_beta(0, 0, 0.5) == 1.0


def test_posterior_entropy_bounds():
    log_resp = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]]).log()
    assert posterior_entropy(log_resp).tolist() == pytest.approx([0.0, math.log(3), math.log(2)])


def test_predictive_log_likelihood_mixes_probabilities():
    pairs = torch.tensor([[0.8, 0.3], [0.8, 0.3]]).log()
    gamma = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()
    predicted = predictive_log_likelihood(pairs, gamma, torch.tensor([1, 0])).exp()
    torch.testing.assert_close(predicted, torch.tensor([0.55, 0.8]))


def clustered_standard_error(values, annotator):
    """Sandwich variance of a mean with an explicit sum over all pairs of pairs of the same person."""
    values, annotator = np.asarray(values, dtype=float), np.asarray(annotator)
    deviation = values - values.mean()
    same = annotator[:, None] == annotator[None, :]
    groups = len(set(annotator.tolist()))
    return math.sqrt(groups / (groups - 1) * (np.outer(deviation, deviation) * same).sum()) / len(values)


@pytest.mark.parametrize("seed", range(3))
def test_selection_numbers_against_numpy(seed):
    rng = np.random.default_rng(seed)
    annotator = rng.integers(0, 9, size=80) * 7  # indices with gaps
    person = rng.normal(size=64)
    scores = {k: rng.normal(-0.6, 0.2, size=80) + 0.1 * k + 0.2 * k * person[annotator % 64] for k in (1, 2, 3)}
    found = select_num_components({k: torch.tensor(v) for k, v in scores.items()}, torch.tensor(annotator))
    means = {k: float(v.mean()) for k, v in scores.items()}
    assert found.best == max(means, key=means.get)
    for k, values in scores.items():
        paired = scores[found.best] - values
        assert found.mean[k] == pytest.approx(means[k])
        assert found.difference[k] == pytest.approx(paired.mean())
        assert found.standard_error[k] == pytest.approx(clustered_standard_error(paired, annotator), abs=1e-12)
    eligible = [k for k in scores if found.difference[k] <= found.standard_error[k]]
    assert found.num_components == min(eligible)


def test_selection_by_hand():
    # Annotator A: K=2 better by 1 on both pairs; annotator B: by 0 on both. Mean 1/2.
    # Residual sums +1 and -1: variance = (2 / 1) * (1 + 1) / 16 = 1/4, standard error 1/2: one component is enough.
    scores = {1: torch.tensor([-2.0, -2.0, -1.0, -1.0]), 2: torch.tensor([-1.0, -1.0, -1.0, -1.0])}
    found = select_num_components(scores, torch.tensor([0, 0, 1, 1]))
    assert (found.best, found.num_components) == (2, 1)
    assert found.difference == pytest.approx({1: 0.5, 2: 0.0})
    assert found.standard_error == pytest.approx({1: 0.5, 2: 0.0})
    # The same numbers with four annotators: residuals +-1/2, variance (4 / 3) * 4 * (1 / 4) / 16 = 1 / 12.
    found = select_num_components(scores, torch.tensor([0, 1, 2, 3]))
    assert found.standard_error[1] == pytest.approx(math.sqrt(1 / 12))
    assert found.num_components == 2


def test_selection_keeps_a_consistent_gain_that_an_unpaired_rule_would_drop():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(200, generator=generator)  # spread of the pairs themselves, about 1
    scores = {1: common, 2: common + 0.02 + 0.01 * torch.randn(200, generator=generator)}
    annotator = torch.arange(200) // 10
    found = select_num_components(scores, annotator)
    assert found.num_components == 2
    unpaired_error = float(common.std()) / math.sqrt(200)
    assert found.difference[1] < unpaired_error


def test_selection_prefers_the_smaller_of_equals_and_one_candidate():
    equal = torch.tensor([-0.5, -0.7])
    found = select_num_components({3: equal, 2: equal.clone()}, torch.tensor([0, 1]))
    assert (found.best, found.num_components) == (2, 2)
    assert select_num_components({4: equal}, torch.tensor([0, 1])).num_components == 4


PAIRS, SUMS, PI = torch.zeros(3, 2), torch.zeros(2, 2), torch.tensor([0.5, 0.5]).log()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: annotator_log_likelihood(torch.zeros(3), torch.zeros(3).long(), 1), "`log_likelihood` has shape"),
        (lambda: annotator_log_likelihood(PAIRS, torch.zeros(2).long(), 1), "`annotator_index` has shape"),
        (
            lambda: annotator_log_likelihood(PAIRS, torch.tensor([0, 1, 2]), 2),
            r"ranges from 0 to 2, but must be in \[0, 2\)",
        ),
        (lambda: annotator_log_likelihood(PAIRS, torch.tensor([0, -1, 1]), 2), "ranges from -1"),
        (lambda: annotator_log_likelihood(PAIRS, torch.zeros(3), 2), "dtype torch.float32, but must be integer"),
        (lambda: annotator_log_likelihood(PAIRS * math.nan, torch.zeros(3).long(), 2), "NaN in pairs"),
        (lambda: log_responsibilities(SUMS, torch.zeros(3)), "`log_mixing_weights` has shape"),
        (lambda: log_responsibilities(SUMS, PI, beta=-1.0), "`beta` is -1.0"),
        (lambda: log_responsibilities(SUMS, PI, beta=math.inf), "`beta` is inf"),
        (lambda: hard_assignment(torch.zeros(2)), "`annotator_ll` has shape"),
        (lambda: hard_assignment(SUMS, torch.tensor([0])), "`previous` has shape"),
        (lambda: hard_assignment(SUMS, torch.tensor([0, 2])), r"`previous` ranges from 0 to 2"),
        (lambda: update_mixing_weights(torch.zeros(2)), "`log_resp` has shape"),
        (lambda: update_mixing_weights(torch.zeros(0, 2)), "0 annotators"),
        (lambda: update_mixing_weights(SUMS, 0.5), "`dirichlet_concentration` is 0.5"),
        (lambda: lower_bound(SUMS, torch.zeros(1)), "`log_mixing_weights` has shape"),
        (lambda: lower_bound(SUMS, PI, beta=math.nan), "`beta` is nan"),
        (lambda: lower_bound(SUMS, PI, dirichlet_concentration=0.0), "`dirichlet_concentration` is 0.0"),
        (lambda: classification_log_likelihood(SUMS, torch.tensor([0, -1])), "`assignment` ranges from -1"),
        (lambda: classification_log_likelihood(SUMS, torch.tensor([0])), "`assignment` has shape"),
        (lambda: annealed_beta(-1, 10, 0.1), "`step` is -1"),
        (lambda: annealed_beta(1, 10, 0.0), "`start` is 0.0"),
        (lambda: annealed_beta(1, 10, 1.5), "`start` is 1.5"),
        (lambda: posterior_entropy(torch.zeros(2)), "`log_resp` has shape"),
        (lambda: predictive_log_likelihood(PAIRS, torch.zeros(2, 3), torch.zeros(3).long()), "`log_resp` has shape"),
        (lambda: predictive_log_likelihood(PAIRS, SUMS, torch.tensor([0, 1, 5])), "ranges from 0 to 5"),
        (lambda: select_num_components({}, torch.zeros(0).long()), "at least one K"),
        (lambda: select_num_components({0: torch.zeros(2)}, torch.tensor([0, 1])), r"keys \[0\]"),
        (
            lambda: select_num_components({1: torch.zeros(2), 2: torch.zeros(3)}, torch.tensor([0, 1])),
            r"`scores\[2\]`",
        ),
        (lambda: select_num_components({1: torch.tensor([0.0, math.nan])}, torch.tensor([0, 1])), "must be finite"),
        (lambda: select_num_components({1: torch.zeros(2)}, torch.tensor([3, 3])), "1 annotator"),
        (lambda: select_num_components({1: torch.zeros(2)}, torch.tensor([0.0, 1.0])), "must be integer"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class TestDegenerateEvidence:
    """Finite where the answer is, against enumeration in Python's own integers and floats."""

    def posterior(self, rows, weights, beta=1.0):
        """By the definition, with exact sums of Python floats and the largest term taken out."""
        terms = [math.log(w) + beta * math.fsum(row) if w else -math.inf for w, row in zip(weights, rows, strict=True)]
        top = max(terms)
        return [math.exp(t - top) / math.fsum(math.exp(u - top) for u in terms) for t in terms]

    @pytest.mark.parametrize("beta", [0.0, 0.05, 1.0])
    def test_a_hundred_thousand_pairs_of_one_person(self, beta):
        generator = torch.Generator().manual_seed(0)
        pairs = -torch.rand(100_000, 2, generator=generator, dtype=torch.float64)
        pairs[:, 1] = pairs[:, 0] - 3e-6  # 0.3 nats in all
        sums = annotator_log_likelihood(pairs, torch.zeros(100_000).long(), 2)
        found = log_responsibilities(sums, torch.tensor([0.3, 0.7], dtype=torch.float64).log(), beta)
        expected = self.posterior(pairs.T.tolist(), [0.3, 0.7], beta)
        assert found.exp()[0].tolist() == pytest.approx(expected, rel=1e-9)
        assert found.exp()[1].tolist() == pytest.approx([0.3, 0.7]), "who gave no pair"
        assert posterior_entropy(found).isfinite().all()
        single = annotator_log_likelihood(pairs.float(), torch.zeros(100_000).long(), 1)
        assert single[0].tolist() == pytest.approx(
            [math.fsum(c) for c in pairs.float().double().T.tolist()], rel=1e-12
        )

    def test_a_pair_that_no_component_thinks_possible(self):
        pairs = torch.tensor([[-math.inf, -math.inf], [-1.0, -2.0], [-math.inf, -1.0]])
        sums = annotator_log_likelihood(pairs, torch.tensor([0, 0, 1]), 2)
        assert sums.isfinite().all()
        log_mixing = torch.tensor([0.5, 0.5]).double().log()
        found = log_responsibilities(sums, log_mixing)
        # The impossible pair speaks against both alike, so the other one decides; float64 keeps it to 1e-7.
        assert found.exp()[0].tolist() == pytest.approx(self.posterior([[-1.0], [-2.0]], [0.5, 0.5]), abs=1e-6)
        assert found.exp()[1].tolist() == [0.0, 1.0]
        assert lower_bound(sums, log_mixing).isfinite()
        assert hard_assignment(sums, torch.tensor([1, 0])).tolist() == [0, 1]

    @pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
    def test_sums_that_are_impossible_say_nothing(self, beta):
        sums, weights = torch.tensor([[-math.inf, -math.inf], [-1.0, -math.inf]]).double(), torch.tensor([0.2, 0.8])
        found = log_responsibilities(sums, weights.log(), beta).exp()
        assert found[0].tolist() == pytest.approx([0.2, 0.8], rel=1e-6)
        assert found[1].tolist() == pytest.approx([0.2, 0.8] if beta == 0 else [1.0, 0.0], rel=1e-6)
        assert update_mixing_weights(found.log()).isfinite().all()

    @pytest.mark.parametrize("em", ["soft", "hard"])
    def test_components_without_a_share(self, em):
        """Also where the only component that thinks the evidence possible has none."""
        sums = torch.tensor([[-5.0, -1.0], [-math.inf, -1.0]]).double()
        found = assign_annotators(sums, torch.tensor([1.0, 0.0]).log(), em).exp()
        assert not found.isnan().any() and found.sum(1).tolist() == [1.0, 1.0]
        if em == "soft":
            assert found.tolist() == [[1.0, 0.0], [1.0, 0.0]]
        assert mixing_weights_of(found.log(), em, 2.0).isfinite().all()
        assert posterior_entropy(found.log()).tolist() == [0.0, 0.0]

    def test_one_annotator_and_one_component(self):
        sums = annotator_log_likelihood(torch.tensor([[-1.0], [-3.0]]), torch.tensor([0, 0]), 1)
        found = log_responsibilities(sums, torch.zeros(1))
        assert found.tolist() == [[0.0]] and update_mixing_weights(found, 2.0).tolist() == [1.0]
        assert lower_bound(sums, torch.zeros(1), dirichlet_concentration=2.0).item() == -4.0
        pair = torch.tensor([[-0.5]])
        assert predictive_log_likelihood(pair, found.float(), torch.tensor([0])).tolist() == [-0.5]
        two = annotator_log_likelihood(torch.tensor([[-1.0, -2.0]]), torch.tensor([0]), 1)
        weights = update_mixing_weights(log_responsibilities(two, torch.tensor([0.5, 0.5]).log()))
        assert weights.tolist() == pytest.approx(self.posterior([[-1.0], [-2.0]], [0.5, 0.5]))
