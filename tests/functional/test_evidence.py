# SPDX-License-Identifier: Apache-2.0
"""The weight of an annotator's evidence where the right one is known."""

import math

import numpy as np
import pytest
import torch

from trl_maxmin.functional.em import annotator_log_likelihood, log_responsibilities
from trl_maxmin.functional.evidence import MIN_EVIDENCE_WEIGHT, fit_evidence_weight


SHARES = {2: (0.6, 0.4), 3: (0.5, 0.3, 0.2)}


def people(components=2, annotators=400, pairs=16, seed=0, strength=0.8, own=0.0):
    """Scores (N, K) under the TRUE components, annotators (N,), component of each, halves (N, 2). `own`: standard
    deviation of what a person adds to the log-odds of all their pairs' topics, which no component knows."""
    rng = np.random.default_rng(seed)
    group = rng.choice(components, annotators, p=SHARES[components])
    who = np.repeat(np.arange(annotators), pairs)
    odds = strength * rng.normal(size=(len(who), components))
    topic = rng.integers(4, size=len(who))
    odds_of_person = odds[np.arange(len(who)), group[who]] + own * rng.normal(size=(annotators, 4))[who, topic]
    sign = np.where(rng.random(len(who)) < 1 / (1 + np.exp(-odds_of_person)), 1, -1)
    scores = torch.nn.functional.logsigmoid(torch.tensor(sign[:, None] * odds))
    halves = torch.tensor(np.tile(np.arange(pairs) % 2, annotators))
    return scores, torch.tensor(who), group, halves.unsqueeze(1).repeat(1, 2)


@pytest.mark.parametrize("components", [2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_true_posterior_is_left_alone(components, seed):
    scores, who, _, halves = people(components, seed=seed)
    found = fit_evidence_weight(scores, who, [halves], torch.tensor(SHARES[components]))
    assert found.weight > 0.75 and not found.says_nothing and found.num_annotators == 400
    assert found.expected == pytest.approx(found.observed, abs=2 * math.sqrt(0.25 / 400))


@pytest.mark.parametrize("times", [2, 4, 8])
def test_pairs_that_are_counted_several_times_count_less(times):
    """The right weight of evidence that was multiplied is one over the factor, whatever the posterior's shape."""
    scores, who, group, halves = people(annotators=1500)
    found = fit_evidence_weight(times * scores, who, [halves], torch.tensor(SHARES[2]))
    assert found.weight == pytest.approx(1 / times, rel=0.2)
    assert found.expected == pytest.approx(found.observed, abs=0.02) and found.excess > 4 * found.standard_error
    assert found.expected_unweighted > found.observed_unweighted + 0.03
    sums = annotator_log_likelihood(times * scores, who, 1500)
    posterior = log_responsibilities(sums, torch.tensor(SHARES[2]).log(), found.weight).exp()
    sure, right = posterior.amax(1).mean().item(), (posterior.argmax(1).numpy() == group).mean()
    assert sure == pytest.approx(right, abs=0.02), "who was planted, whom the weight never saw"


def test_people_who_differ_within_a_component():
    """What the weight is for: the plain product is sure of people whom their component describes badly."""
    scores, who, group, halves = people(annotators=1200, own=1.5, strength=0.5)
    scores = 2.5 * scores  # and the rewards are surer than they may be
    found = fit_evidence_weight(scores, who, [halves], torch.tensor(SHARES[2]))
    assert 0.1 < found.weight < 0.6 and found.expected == pytest.approx(found.observed, abs=0.02)
    for entry in found.curve:
        if entry["num_annotators"] >= 50:
            assert entry["expected"] == pytest.approx(entry["observed"], abs=4 * entry["standard_error"])
    assert sum(entry["num_annotators"] for entry in found.curve) == pytest.approx(1200, abs=10)


def test_components_that_are_nobodys_say_nothing():
    """Every pair tells at random for one or the other component."""
    generator = torch.Generator().manual_seed(0)
    scores = -torch.rand(6000, 2, generator=generator, dtype=torch.float64).mul(3)
    halves = (torch.arange(6000) % 2).unsqueeze(1).repeat(1, 2)
    found = fit_evidence_weight(scores, torch.arange(6000) // 20, [halves], torch.tensor([0.5, 0.5]))
    assert found.says_nothing and found.weight < 0.3 and found.weight >= MIN_EVIDENCE_WEIGHT
    assert found.to_dict()["says_nothing"] is True


def test_what_needs_no_weight():
    scores, who, _, halves = people(annotators=60)
    one = fit_evidence_weight(scores[:, :1], who, [halves], torch.ones(1))
    assert (one.weight, one.expected, one.observed, one.says_nothing) == (1.0, 1.0, 1.0, True)
    apart = torch.tensor([0, 1]).repeat(len(who), 1)
    assert fit_evidence_weight(scores, who, [apart], torch.tensor([0.5, 0.5])) is None, "every pair is of both halves"
    assert fit_evidence_weight(scores[:16], who[:16], [halves[:16]], torch.tensor([0.5, 0.5])) is None, "one person"


def test_impossible_and_missing_pairs():
    scores, who, _, halves = people(annotators=200)
    plain = fit_evidence_weight(scores, who, [halves], torch.tensor(SHARES[2]))
    more = torch.cat([scores, torch.full((3, 2), torch.nan).double(), torch.full((1, 2), -math.inf).double()])
    index = torch.cat([who, torch.tensor([0, 1, 2, 3])])
    fold = torch.cat([halves, torch.zeros(4, 2).long()])
    found = fit_evidence_weight(more, index, [fold], torch.tensor(SHARES[2]))
    assert found.expected == pytest.approx(plain.expected, abs=0.02) and math.isfinite(found.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": []}, "`folds` is empty"),
        ({"mixing_weights": torch.tensor([0.5, -0.5])}, "non-negative and not all 0"),
        ({"mixing_weights": torch.ones(3)}, r"`mixing_weights` has shape \(3,\)"),
        ({"scores": torch.zeros(4)}, "pairs by components"),
        ({"folds": [torch.zeros(3, 2)]}, "halves of the two texts"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {
        "scores": torch.zeros(4, 2),
        "annotator_index": torch.tensor([0, 0, 1, 1]),
        "folds": [torch.tensor([0, 1, 0, 1]).unsqueeze(1).repeat(1, 2)],
        "mixing_weights": torch.tensor([0.5, 0.5]),
    }
    with pytest.raises(ValueError, match=message):
        fit_evidence_weight(**good | change)
