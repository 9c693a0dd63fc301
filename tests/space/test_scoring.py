# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.space.fakes import FakeMixture, studio
from trl_maxmin.space.limits import Refused
from trl_maxmin.space.policies import Settings
from trl_maxmin.space.scoring import Answer, compare_words, sentence


def last(steps):
    return list(steps)[-1]


def test_utilities_are_standardised_on_the_reference_policys_answers_to_the_prompt():
    # The fake reference answers x, xx, x, xx: mean length 1.5, unbiased variance 1/3.
    made = studio(prompts=["p"])
    answers = last(made.compare("p", ["reference", "maxmin"], Settings(seed=7, length=9)))
    spread = (1 / 3) ** 0.5
    assert answers[0].text == "ok" and answers[1].text == "answer 7 to p"
    assert answers[0].utilities == pytest.approx({"long": 0.5 / spread, "short": -0.5 / spread})
    assert answers[1].utilities == pytest.approx({"long": 11.5 / spread, "short": -11.5 / spread})
    assert [answer.worst_group for answer in answers] == ["short", "short"]


def test_answers_grow_and_only_the_last_state_has_utilities():
    steps = list(studio().compare("p", ["reference", "single", "maxmin"], Settings()))
    assert [len(step[2].text) for step in steps] == [6, 13, 13]
    assert [step[0].utilities is not None for step in steps] == [False, False, True]


def test_without_a_mixture_there_are_answers_but_no_bars():
    made = studio()
    made.mixture = None
    answers = last(made.compare("p", ["reference", "maxmin"], Settings()))
    assert [answer.utilities for answer in answers] == [None, None]
    assert compare_words(answers) == [] and sentence(answers) == ""


def test_a_component_without_people_is_no_group():
    mixture = FakeMixture(("long", "nobody", "longer"))
    mixture.described_components = [0, 2]
    made = studio(mixture=mixture, prompts=["p"])
    made.prepare()
    assert made.groups == ["long", "longer"]
    (answer,) = made.with_utilities("p", [Answer("maxmin", "a long answer", True)])
    # Both like length; `nobody` would not, and would be the worst-off group.
    assert set(answer.utilities) == {"long", "longer"} and min(answer.utilities.values()) > 0


def test_a_calibrated_mixture_keeps_its_scale():
    mixture = FakeMixture()
    mixture.reward_scale = mixture.reward_scale * 2
    made = studio(mixture=mixture, prompts=["p"])
    answer = last(made.compare("p", ["reference", "maxmin"], Settings()))[0]
    assert answer.utilities == pytest.approx({"long": 0.25, "short": -0.25})


def test_the_sentence_of_the_issue():
    single = Answer("single", "a", utilities={"concise": 1.0, "positive": 0.2})
    maxmin = Answer("maxmin", "b", utilities={"concise": 0.9, "positive": 1.0})
    expected = (
        "Compared with Single reward, MaxMin is better for positive (+0.8) and slightly worse for concise (-0.1)."
    )
    assert sentence([single, maxmin]) == expected


@pytest.mark.parametrize(
    ("prompt", "names", "settings", "said"),
    [
        ("  ", ["reference", "maxmin"], {}, "write a prompt"),
        ("x" * 1001, ["reference", "maxmin"], {}, "1,001 characters; please shorten it to 1,000"),
        ("p", ["maxmin"], {}, "two to 4 policies"),
        ("p", ["nobody", "maxmin"], {}, "two to 4 policies"),
        ("p", ["reference", "maxmin"], {"length": 0}, "length must be a number from 1 to 128"),
        ("p", ["reference", "maxmin"], {"length": 999}, "length must be a number from 1 to 128"),
        ("p", ["reference", "maxmin"], {"temperature": float("nan")}, "temperature must be a number from 0 to 2"),
        ("p", ["reference", "maxmin"], {"seed": -1}, "seed must be a number from 0"),
    ],
)
def test_requests_that_are_refused_in_words(prompt, names, settings, said):
    with pytest.raises(Refused, match=said):
        next(studio().compare(prompt, names, Settings(**settings)))


def test_a_prompt_longer_than_the_context_is_refused_in_tokens():
    made = studio()
    made.policies["maxmin"].context = 40
    assert made.max_length == 20
    with pytest.raises(Refused, match="has 30 tokens; with answers of 20 tokens the models here read at most 20"):
        next(made.compare("p" * 30, ["reference", "maxmin"], Settings(length=20)))


def test_best_and_worst_answers_are_ranked_within_prompts_and_never_both():
    made = studio()
    made.run.replies = {"p": [("maxmin", "x" * n, True) for n in (3, 1, 2)]}
    (best, worst) = made.extremes("short")["maxmin"]
    assert [text for _, text, _ in best] == ["x"] and [text for _, text, _ in worst] == ["xxx"]
    assert made.extremes("nobody") == {}
