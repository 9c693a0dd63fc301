# SPDX-License-Identifier: Apache-2.0
"""The curve over pairs seen: by hand, the same judges at every size, rising when the components differ."""

import pytest
import torch

from trl_maxmin.evaluation.new_annotators import assignment_curve
from trl_maxmin.functional.ranking import RankedChoices


def two_kinds(people=40, pairs=24, seed=0):
    """Component k gives its people's choices 0.8 and the others' 0.3."""
    kind = torch.arange(people) % 2
    annotator = torch.arange(people).repeat_interleave(pairs)
    own = torch.nn.functional.one_hot(kind[annotator], 2).bool()
    return torch.where(own, 0.8, 0.3).log(), annotator


def curve(**kwargs):
    scores, annotator = two_kinds()
    weights = torch.tensor([0.5, 0.5])
    return assignment_curve(scores, annotator, weights, generator=torch.Generator().manual_seed(0), **kwargs)


def test_by_hand():
    points = curve(sizes=(0, 1, 4))
    assert [p.num_seen for p in points] == [0, 1, 4]
    assert {p.num_pairs for p in points} == {40 * 20} and {p.num_annotators for p in points} == {40}
    # Nothing seen: 0.5 * 0.8 + 0.5 * 0.3 = 0.55 for everybody. One pair seen: gamma = 8/11.
    assert points[0].log_likelihood == pytest.approx(torch.tensor(0.55).log().item())
    assert points[1].log_likelihood == pytest.approx(torch.tensor((8 * 0.8 + 3 * 0.3) / 11).log().item())
    assert points[0].entropy == pytest.approx(torch.tensor(2.0).log().item())
    assert points[2].entropy < points[1].entropy < points[0].entropy
    assert all(p.accuracy == 1.0 and p.standard_error == 0.0 for p in points)


def test_pairs_that_share_a_text_with_those_seen_do_not_judge():
    scores, annotator = two_kinds(people=4, pairs=6)
    texts = torch.arange(48).view(24, 2)
    assert curve_of(scores, annotator, texts).num_pairs == 4 * 4
    # One text in all pairs of annotators 0 and 1: nothing of theirs can judge. Of another's pairs, it takes nothing.
    texts[:12, 0] = 0
    point = curve_of(scores, annotator, texts)
    assert (point.num_annotators, point.num_pairs) == (2, 8)
    texts[:18, 0] = 0
    with pytest.raises(ValueError, match="1 annotators have more than 2 pairs and some that share no text with those"):
        curve_of(scores, annotator, texts)


def curve_of(scores, annotator, texts):
    weights, generator = torch.tensor([0.5, 0.5]), torch.Generator().manual_seed(0)
    return assignment_curve(scores, annotator, weights, generator=generator, sizes=(0, 2), texts=texts)[-1]


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="0 annotators have more than 24 pairs"):
        curve(sizes=(0, 24))


def test_rankings_by_top_1_and_tau():
    """Two kinds with opposed rewards of four texts: with nothing seen a coin, with two rankings seen all right."""
    rewards = torch.tensor([[3.0, -3.0], [1.0, -1.0], [-1.0, 1.0], [-3.0, 3.0]])
    people = torch.arange(8).repeat_interleave(4)
    ranks = torch.where((people % 2 == 0).unsqueeze(1), torch.tensor([1, 2, 3, 0]), torch.tensor([4, 3, 2, 1]))
    own = torch.arange(4 * 32).view(32, 4)  # everybody reads texts of their own
    choices = RankedChoices(own, ranks, people)
    scores = choices.log_likelihood(rewards.repeat(32, 1))
    options = {"sizes": (0, 2), "rankings": (rewards.repeat(32, 1), choices), "texts": own}
    generator = torch.Generator().manual_seed(0)
    nothing, two = assignment_curve(scores, people, torch.tensor([0.6, 0.4]), generator=generator, **options)
    assert (nothing.accuracy, nothing.num_pairs) == (0.5, 16) and nothing.tau == pytest.approx(0.0)
    assert two.accuracy == 1.0 and two.tau == pytest.approx(1.0) and two.num_annotators == 8
    padded = torch.cat([own, torch.full((32, 1), -1)], dim=1)
    generator = torch.Generator().manual_seed(0)
    again = assignment_curve(
        scores, people, torch.tensor([0.6, 0.4]), generator=generator, **options | {"texts": padded}
    )
    assert again == [nothing, two], "what is missing is no text that rankings share"
