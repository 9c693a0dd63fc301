# SPDX-License-Identifier: Apache-2.0
"""The likelihood of rankings against the enumeration of all orders, against pairs, and against scipy."""

import itertools
import math

import pytest
import torch
from scipy.stats import kendalltau

from trl_maxmin.functional.preference import fit_temperature, preference_accuracy, preference_log_likelihood
from trl_maxmin.functional.ranking import (
    MAX_TIED,
    RankedChoices,
    fit_ranking_temperature,
    ranking_log_likelihood,
)


def probability_of_order(rewards, order):
    """Luce's rule by the letter, with Python's floats."""
    left, probability = list(order), 1.0
    for reply in order:
        probability *= math.exp(rewards[reply]) / sum(math.exp(rewards[j]) for j in left)
        left.remove(reply)
    return probability


def by_enumeration(rewards, ranks):
    """Sum over all orders that agree with the ranks; 0 = behind everything ranked."""
    place = [rank or 10**6 for rank in ranks]
    return sum(
        probability_of_order(rewards, order)
        for order in itertools.permutations(range(len(rewards)))
        if all(place[a] <= place[b] for a, b in itertools.pairwise(order))
    )


RANKS = [
    (1, 2),
    (2, 1),
    (1, 0),
    (1, 0, 0, 0),
    (0, 0, 1, 0),
    (1, 2, 3, 4),
    (4, 2, 1, 3),
    (1, 2, 0, 0),
    (2, 0, 1, 0, 0),
    (1, 1, 2, 2),
    (1, 1, 1, 2),
    (2, 1, 2, 3),
    (3, 3, 1, 0, 0),
    (1, 1, 2, 2, 0),
    (5, 9, 9, 40, 5, 0),
    (1, 1, 1, 1, 0),
    (1, 1, 1),
    (0, 0, 0),
    (1, 2, 3, 4, 5, 6),
]


@pytest.mark.parametrize("ranks", RANKS)
def test_it_is_the_sum_over_the_orders_that_agree(ranks):
    generator = torch.Generator().manual_seed(len(ranks))
    rewards = 2 * torch.randn(len(ranks), 3, generator=generator, dtype=torch.float64)
    got = ranking_log_likelihood(rewards, torch.arange(len(ranks)).unsqueeze(0), torch.tensor([ranks]))
    expected = [math.log(by_enumeration(column.tolist(), ranks)) for column in rewards.T]
    assert torch.allclose(got, torch.tensor([expected], dtype=torch.float64), atol=1e-12)


def test_all_outcomes_of_a_ranking_sum_to_one():
    rewards = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    orders = torch.tensor(list(itertools.permutations([1, 2, 3, 4])))
    full = ranking_log_likelihood(rewards, torch.arange(4).expand(24, 4), orders)
    best = ranking_log_likelihood(rewards, torch.arange(4).expand(4, 4), torch.eye(4).long())
    assert torch.allclose(full.exp().sum(0), torch.ones(2).double()) and torch.allclose(
        best.exp().sum(0), torch.ones(2).double()
    )
    assert torch.allclose(best, torch.log_softmax(rewards, 0), atol=1e-14), "best of n is softmax"


def mixed(dtype=torch.float64, seed=0):
    """Rankings of every structure above in one padded table over ten texts."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(len, RANKS))
    responses = [
        [*torch.randperm(10, generator=generator)[: len(r)].tolist(), *[-1] * (width - len(r))] for r in RANKS
    ]
    ranks = [[*r, *[7] * (width - len(r))] for r in RANKS]  # what stands at padding does not matter
    choices = RankedChoices(torch.tensor(responses), torch.tensor(ranks), torch.arange(len(RANKS)))
    return torch.randn(10, 2, generator=generator, dtype=dtype), choices


def test_padding_and_mixed_structures_change_nothing():
    rewards, choices = mixed()
    together = choices.log_likelihood(rewards)
    for row, ranks in enumerate(RANKS):
        one = choices.responses[row, : len(ranks)]
        expected = [math.log(by_enumeration(column.tolist(), ranks)) for column in rewards[one].T]
        assert torch.allclose(together[row], torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    part = torch.tensor([5, 2])
    assert torch.equal(choices.select(part).log_likelihood(rewards), together[part])
    assert torch.equal(choices.select(choices.annotator_index > 14).log_likelihood(rewards), together[15:])


def test_gradients():
    rewards, choices = mixed()
    assert torch.autograd.gradcheck(choices.log_likelihood, (rewards.requires_grad_(),))
    weight = torch.rand(len(choices), 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight * choices.log_likelihood(rewards)).sum(), rewards)
    assert torch.allclose(gradient.sum(0), torch.zeros(2).double(), atol=1e-12), "a shift of all rewards is nothing"


def test_pairs_are_rankings_of_two():
    generator = torch.Generator().manual_seed(3)
    rewards = (20 * torch.randn(50, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    chosen = torch.randint(50, (300,), generator=generator)
    rejected = (chosen + torch.randint(1, 50, (300,), generator=generator)) % 50
    margin = torch.randn(300, generator=generator, dtype=torch.float64)
    for given in (None, margin):
        choices = RankedChoices.from_pairs(chosen, rejected, torch.zeros(300), given)
        ranked = choices.log_likelihood(rewards)
        pairs = preference_log_likelihood(rewards[chosen], rewards[rejected], given)
        assert torch.allclose(ranked, pairs, atol=1e-12, rtol=0)
        gradients = [torch.autograd.grad(value.sum(), rewards)[0] for value in (ranked, pairs)]
        assert torch.allclose(*gradients, atol=1e-12, rtol=0)
    swapped = RankedChoices(torch.stack([rejected, chosen], 1), torch.tensor([[0, 1]]).expand(300, 2), chosen)
    assert torch.equal(swapped.log_likelihood(rewards), ranked_without_margin(chosen, rejected, rewards))
    accuracy = preference_accuracy(rewards[chosen], rewards[rejected])
    assert torch.equal(choices.top_accuracy(rewards), accuracy)
    assert torch.equal(choices.kendall_tau(rewards), 2 * accuracy - 1)


def ranked_without_margin(chosen, rejected, rewards):
    return RankedChoices.from_pairs(chosen, rejected, torch.zeros(len(chosen))).log_likelihood(rewards)


def test_large_rewards_stay_finite_in_float32():
    rewards = torch.tensor([[1e4], [0.0], [-1e4], [5e3]], requires_grad=True)
    choices = RankedChoices(
        torch.arange(4).expand(3, 4), torch.tensor([[4, 3, 1, 2], [2, 2, 1, 3], [1, 0, 0, 0]]), torch.arange(3)
    )
    value = choices.log_likelihood(rewards)
    value.sum().backward()
    assert value.isfinite().all() and rewards.grad.isfinite().all() and value[2] == 0


def test_a_tie_of_all_says_nothing():
    rewards = torch.randn(3, 2, requires_grad=True)
    choices = RankedChoices(
        torch.tensor([[0, 1, 2], [0, 1, -1]]), torch.tensor([[1, 1, 1], [3, 3, 0]]), torch.arange(2)
    )
    assert torch.equal(choices.log_likelihood(rewards), torch.zeros(2, 2))
    assert choices.top_accuracy(rewards).isnan().all() and choices.kendall_tau(rewards).isnan().all()
    assert fit_ranking_temperature(rewards[:, 0], choices) == 1.0


def test_top_accuracy_and_tau():
    rewards, choices = mixed()
    accuracy, tau = choices.top_accuracy(rewards), choices.kendall_tau(rewards)
    for row, ranks in enumerate(RANKS):
        place = [rank or 10**6 for rank in ranks]
        own = rewards[choices.responses[row, : len(ranks)]]
        if len(set(place)) == 1:
            assert accuracy[row].isnan().all() and tau[row].isnan().all()
            continue
        for k in range(2):
            column = own[:, k].tolist()
            assert accuracy[row, k] == (place[column.index(max(column))] == min(place))
            if len(set(place)) == len(place):
                assert tau[row, k].item() == pytest.approx(kendalltau(column, [-p for p in place]).statistic)
            signs = [
                math.copysign(1, column[a] - column[b])
                for a, b in itertools.permutations(range(len(ranks)), 2)
                if place[a] < place[b]
            ]
            assert tau[row, k].item() == pytest.approx(sum(signs) / len(signs))


def test_equal_and_missing_rewards():
    rewards = torch.tensor([[1.0, math.nan], [1.0, 1.0], [0.0, 0.0]])
    choices = RankedChoices(
        torch.tensor([[0, 1, 2], [1, 2, -1]]), torch.tensor([[1, 2, 3], [1, 2, 0]]), torch.arange(2)
    )
    assert choices.top_accuracy(rewards)[:, 0].tolist() == [0.5, 1.0]
    assert choices.kendall_tau(rewards)[0, 0].item() == pytest.approx(2 / 3)
    for measure in (choices.top_accuracy, choices.kendall_tau, choices.log_likelihood):
        value = measure(rewards)
        assert value[0, 1].isnan() and value[1, 1].isfinite() and value[:, 0].isfinite().all()


def drawn(rewards, count, size, seed):
    """Full rankings drawn by Luce's rule: rewards plus Gumbel noise, in order."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(len(rewards), generator=generator)[:size] for _ in range(count)])
    noise = -torch.rand(count, size, generator=generator, dtype=torch.float64).log().neg().log()
    order = (rewards[rows] + noise).argsort(1, descending=True)
    return RankedChoices(rows.gather(1, order), torch.arange(1, size + 1).expand(count, size), torch.arange(count))


def test_the_temperature_of_pairs_and_of_rankings():
    rewards = torch.linspace(-2, 2, 12, dtype=torch.float64)
    pairs = drawn(rewards, 400, 2, seed=0)
    weights = torch.rand(400, generator=torch.Generator().manual_seed(1))
    difference = 3 * (rewards[pairs.responses[:, 0]] - rewards[pairs.responses[:, 1]])
    assert fit_ranking_temperature(3 * rewards, pairs, weights) == pytest.approx(
        fit_temperature(difference, weights), rel=1e-9
    )
    found = [fit_ranking_temperature(3 * rewards, drawn(rewards, 2000, 4, seed)) for seed in range(3)]
    assert all(abs(value - 3) < 0.3 for value in found), "rewards three times too sure are seen"
    right = RankedChoices(torch.tensor([[1, 0]]), torch.tensor([[1, 2]]), torch.tensor([0]))
    assert fit_ranking_temperature(torch.tensor([0.0, 1.0]), right) == pytest.approx(0.01)
    assert fit_ranking_temperature(torch.tensor([1.0, 0.0]), right) == pytest.approx(100)
    assert fit_ranking_temperature(torch.tensor([1.0, 1.0]), right) == 1.0


PAIR, ANNOTATOR = torch.tensor([[0, 1]]), torch.tensor([0])
RANKED = torch.tensor([[1, 2]])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RankedChoices(torch.tensor([0, 1]), RANKED, ANNOTATOR), "`responses` has shape"),
        (lambda: RankedChoices(PAIR, torch.tensor([[1, 2, 3]]), ANNOTATOR), "`ranks` has shape"),
        (lambda: RankedChoices(PAIR, RANKED, torch.zeros(2)), "`annotator_index` has shape"),
        (lambda: RankedChoices(PAIR, RANKED, ANNOTATOR, torch.zeros(3)), "`margin` has shape"),
        (lambda: RankedChoices(torch.tensor([[0, -1]]), RANKED, ANNOTATOR), "Ranking 0 has fewer than two replies"),
        (lambda: RankedChoices(PAIR, torch.tensor([[1, -2]]), ANNOTATOR), "Ranking 0 has a negative rank"),
        (
            lambda: RankedChoices(torch.arange(3).unsqueeze(0), torch.tensor([[1, 2, 3]]), ANNOTATOR, torch.ones(1)),
            "Ranking 0 has a margin, which is for rankings of two",
        ),
        (
            lambda: RankedChoices(torch.arange(10).unsqueeze(0), torch.tensor([[1] * 9 + [2]]), ANNOTATOR),
            f"ties 9 replies before the last place, but at most {MAX_TIED}",
        ),
        (lambda: RankedChoices(PAIR, RANKED, ANNOTATOR).log_likelihood(torch.zeros(2)), "`rewards` has shape"),
        (lambda: RankedChoices(PAIR, RANKED, ANNOTATOR).kendall_tau(torch.zeros(1, 1)), "has 1 texts, but .* text 1"),
        (lambda: fit_ranking_temperature(torch.zeros(2, 1), RankedChoices(PAIR, RANKED, ANNOTATOR)), "`rewards`"),
        (
            lambda: fit_ranking_temperature(torch.zeros(2), RankedChoices(PAIR[:0], RANKED[:0], ANNOTATOR[:0])),
            "no held-out rankings",
        ),
        (
            lambda: fit_ranking_temperature(torch.zeros(2), RankedChoices(PAIR, RANKED, ANNOTATOR), -torch.ones(1)),
            "not negative nor all 0",
        ),
        (
            lambda: fit_ranking_temperature(torch.tensor([0, math.nan]), RankedChoices(PAIR, RANKED, ANNOTATOR)),
            "must be finite",
        ),
    ],
)
def test_what_is_no_ranking_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_last_place_may_hold_any_number():
    ranks = torch.tensor([[1, *[0] * 40]])
    best = ranking_log_likelihood(torch.zeros(41, 1).double(), torch.arange(41).unsqueeze(0), ranks)
    assert best.exp().item() == pytest.approx(1 / 41)
