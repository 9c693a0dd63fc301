# SPDX-License-Identifier: Apache-2.0
"""The rule for K on scores made by hand, and on planted worlds, with its three answers."""

import math

import pytest
import torch

from trl_maxmin.functional import num_components
from trl_maxmin.functional.feature_pairs import FeaturePairs
from trl_maxmin.functional.num_components import RELEVANT_GAIN, choose_components, decide, needed
from trl_maxmin.functional.planted import plant_two_groups, who_is_small, worth_of_knowing


def rising(annotators, gain, spread, pairs=10):
    """Scores of a second component that gains so much, more for some annotators than for others."""
    people = torch.arange(annotators).repeat_interleave(pairs)
    one = torch.full((len(people),), -0.5, dtype=torch.float64)
    return {1: one, 2: one + gain + spread * (2.0 * (people % 2) - 1)}, people


@pytest.mark.parametrize(
    ("gain", "spread", "kind"),
    [
        (0.1, 0.1, "groups"),
        (0.03, 0.2, "cannot_tell"),  # within two standard errors of 0.2 / sqrt(40)
        (-0.01, 0.2, "cannot_tell"),  # both signs, and it may be worth more than matters
        (-0.01, 0.01, "one"),
        (1e-3, 1e-4, "one"),  # seen, but next to nothing
        (0.0, 0.0, "one"),
    ],
)
def test_three_answers(gain, spread, kind):
    choice = decide(*rising(40, gain, spread))
    assert choice.verdict_kind == kind
    assert choice.num_components == (2 if kind == "groups" else 1)
    assert choice.gain == pytest.approx({1: 0.0, 2: gain})


def test_one_reward_that_knows_nothing_does_not_suffice():
    people = torch.arange(40).repeat_interleave(10)
    coin = torch.full((400,), math.log(0.5)) + 1e-3 * (2.0 * (people % 2) - 1)
    assert decide({1: coin, 2: coin - 0.01}, people).verdict_kind == "cannot_tell"


def test_what_predicts_worse_than_a_coin_is_no_group():
    scores, people = rising(40, 0.1, 0.1)
    assert decide({k: value - 1 for k, value in scores.items()}, people).verdict_kind == "cannot_tell"


def test_two_annotators_who_gain_alike_by_chance_show_nothing():
    """Their spread is next to nothing, but that of their few pairs is not."""
    generator = torch.Generator().manual_seed(0)
    people = torch.tensor([0] * 8 + [1] * 8)
    noise = torch.randn(8, generator=generator).double().repeat(2)
    one = torch.full((16,), -0.5, dtype=torch.float64)
    choice = decide({1: one, 2: one + noise - noise.mean() + 0.2}, people)
    assert choice.gain_error[2] > 0.2 and choice.verdict_kind == "cannot_tell"


def test_what_gains_next_to_nothing_adds_no_group():
    """An empty third component, or two that are alike, gain 1e-11 with a smaller standard error yet."""
    annotator, one = torch.arange(40) // 4, torch.full((40,), -0.5, dtype=torch.float64)
    two = one + 0.2 * (annotator % 5 < 2)
    assert decide({1: one, 2: two, 3: two + 1e-11 * (1 + annotator % 2)}, annotator).num_components == 2


def test_without_one_component_nothing_is_said_of_one():
    scores, people = rising(40, 0.1, 0.1)
    choice = decide({2: scores[1], 3: scores[2]}, people)
    assert choice.verdict_kind == "cannot_tell" and choice.num_components == 3 and needed(choice)[1] == 1.0


@pytest.mark.parametrize(("gain", "spread"), [(0.03, 0.2), (-0.01, 0.2)])
def test_as_many_annotators_as_are_asked_for_decide(gain, spread):
    choice = decide(*rising(40, gain, spread))
    what, factor = needed(choice)
    assert what == "annotators" and factor > 1
    more = decide(*rising(2 * math.ceil(factor * 20) + 2, gain, spread))
    assert more.verdict_kind == ("groups" if gain > 0 else "one")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="Of 4 pairs 4 can be held out, of fewer than 2 annotators"):
        decide({1: torch.zeros(4), 2: torch.zeros(4)}, torch.zeros(4).long())


def world(groups, people, pairs, seed=0, width=8):
    """Votes of people whose rewards are `groups[h % len(groups)]` times one direction."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 * people * pairs, width, generator=generator)
    annotator = torch.arange(people).repeat_interleave(pairs)
    sign = torch.tensor(groups)[annotator % len(groups)]
    first, second = torch.arange(people * pairs) * 2, torch.arange(people * pairs) * 2 + 1
    odds = 2 * sign * (features[first, 0] - features[second, 0])
    keeps = torch.rand(len(odds), generator=generator) < torch.sigmoid(odds)
    return FeaturePairs(features, torch.where(keeps, first, second), torch.where(keeps, second, first), annotator)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("people", [2, 4])
def test_few_annotators_half_of_them_opposed_never_suffice_with_one(people, seed):
    choice = choose_components(world([1.0, -1.0], people, 60, seed), people, (1, 2), seed=seed)
    assert choice.verdict_kind != "one"


@pytest.mark.slow
def test_one_reward_suffices_only_where_groups_would_have_been_seen():
    few, many = (choose_components(world([1.0], 40, pairs), 40, (1, 2), seed=0) for pairs in (8, 60))
    assert few.verdict_kind == "cannot_tell" and many.verdict_kind == "one"
    assert min(gain for gain, _ in many.simulated.values()) > RELEVANT_GAIN / 4
    assert many.prior_scale[1] and many.num_components == 1


@pytest.mark.parametrize(("gain", "kind"), [(-0.004, "cannot_tell"), (0.001, "cannot_tell"), (0.015, "one")])
def test_simulated_groups_that_gain_nothing_would_not_have_been_seen(monkeypatch, gain, kind):
    """Not even where the second component of the data does yet more harm: it says how many pairs there are."""
    scores, people = rising(40, -0.0145, 0.001)
    found = iter(scores.values())
    monkeypatch.setattr(num_components, "cross_validate", lambda *_, **__: {1: [], 2: []})
    monkeypatch.setattr(num_components, "heldout_scores", lambda *_: next(found))
    monkeypatch.setattr(num_components, "_simulate", lambda *_: {0.5: (gain, 0.001)})
    choice = choose_components(world([1.0], 40, 10), 40, (1, 2), seed=0)
    assert choice.verdict_kind == kind and choice.simulated == {0.5: (gain, 0.001)}
    # By hand: with f times as many pairs 0.02 - (0.02 - gain) / f is gained, and has to be more than 0.002.
    assert kind == "one" or needed(choice) == ("pairs", 1.5)


def test_simulated_groups_are_worth_what_they_should_be():
    """The likelihoods are those of the planted rewards, counted here once more from the drawn votes."""
    pairs = world([1.0], 60, 60)
    small = who_is_small(60, 0.5, torch.Generator().manual_seed(1))
    weight = torch.zeros(8)
    weight[0] = 2.0
    votes = plant_two_groups(pairs, weight, small, 0.05, torch.Generator().manual_seed(2))
    assert small.sum() == 30 and len(votes) == len(pairs)
    same = {tuple(sorted(p)) for p in zip(votes.chosen.tolist(), votes.rejected.tolist(), strict=True)}
    assert same == {tuple(sorted(p)) for p in zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)}
    # The larger group keeps its reward: its votes are right as often as a logistic of that reward says.
    mine = ~small[votes.annotator_index]
    odds = ((votes.features[votes.chosen] - votes.features[votes.rejected]) @ weight)[mine]
    assert (odds > 0).double().mean().item() == pytest.approx(torch.sigmoid(odds.abs()).mean().item(), abs=0.03)


def test_two_equal_rewards_are_worth_nothing():
    generator = torch.Generator().manual_seed(0)
    odds, people = torch.randn(200, 1, generator=generator).double().repeat(1, 2), torch.arange(200) // 20
    uniform, fold = torch.rand(200, generator=generator), torch.arange(200) % 5
    assert worth_of_knowing(odds, people, torch.arange(10) < 5, 0.5, uniform, fold) == pytest.approx(0.0, abs=1e-12)
    odds[:, 1] *= -1
    assert worth_of_knowing(3 * odds, people, torch.arange(10) < 5, 0.5, uniform, fold) > 0.1
