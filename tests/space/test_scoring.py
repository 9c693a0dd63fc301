# SPDX-License-Identifier: Apache-2.0
import html as standard
import re

import pytest
import torch

from tests.space.fakes import FakeMixture, FakePolicy, studio
from trl_maxmin.space import html
from trl_maxmin.space.limits import Refused
from trl_maxmin.space.policies import Reply, Settings
from trl_maxmin.space.scoring import Answer, compare_words


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
    assert compare_words(answers) == [] and "Compared" not in html.comparison_line(answers)


def test_a_component_without_people_is_no_group():
    mixture = FakeMixture(("long", "nobody", "longer"))
    mixture.described_components = [0, 2]
    made = studio(mixture=mixture, prompts=["p"])
    made.prepare()
    assert made.groups == ["long", "longer"]
    (answer,) = made.with_utilities("p", [Answer("maxmin", "a long answer", True)])
    # Both like length; `nobody` would not, and would be the worst-off group.
    assert set(answer.utilities) == {"long", "longer"} and min(answer.utilities.values()) > 0


def test_a_mixtures_own_scale_serves_where_none_can_be_measured():
    """As in evaluation: what the reference policy's answers say comes first."""
    for prompts, spread in (([], 2.0), (["p"], (1 / 3) ** 0.5)):
        mixture = FakeMixture()
        mixture.reward_scale = mixture.reward_scale * 2
        made = studio(mixture=mixture, prompts=prompts)
        answer = last(made.compare("p", ["reference", "maxmin"], Settings()))[0]
        assert answer.utilities == pytest.approx({"long": 0.5 / spread, "short": -0.5 / spread})


def test_the_sentence_of_the_issue():
    single = Answer("single", "a", utilities={"concise": 1.0, "positive": 0.2})
    maxmin = Answer("maxmin", "b", utilities={"concise": 0.9, "positive": 1.0})
    expected = (
        "Compared with Single reward, MaxMin is better for positive (+0.8) and slightly worse for concise (-0.1)."
    )
    assert expected in re.sub("<[^>]*>", "", html.comparison_line([single, maxmin]))


@pytest.mark.parametrize(
    ("prompt", "names", "settings", "said"),
    [
        ("  ", ["reference", "maxmin"], {}, "write a prompt"),
        ("x" * 1001, ["reference", "maxmin"], {}, "1,001 characters; please shorten it to 1,000"),
        ("a\ud800b", ["reference", "maxmin"], {}, "a part of a character that is no text. Please type it again"),
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


class Wordy(FakePolicy):
    """Asked once, it answers `ok`; asked for the zero, it uses the whole length, and remembers it."""

    def __init__(self):
        super().__init__("reference", lambda prompt, settings: "ok")
        self.lengths = []

    def sample(self, prompt_ids, settings, count):
        self.lengths.append(settings.length)
        return [Reply([], "x" * (settings.length - i % 2), False, True) for i in range(count)]


def with_wordy_reference(**settings):
    made = studio(**settings)
    made.policies["reference"] = Wordy()
    return made


def test_answers_have_no_utilities_where_the_zero_cannot_be_scored():
    made = with_wordy_reference(mixture=FakeMixture(context=50), max_new_tokens=40)
    # 9 + 40 fits into 50 tokens; 19 + 40 does not, though the visitor's answers do.
    fits = last(made.compare("p" * 9, ["reference", "single"], Settings(length=5)))
    assert fits[0].utilities["long"] == pytest.approx(2 - 39.5)
    none = last(made.compare("p" * 19, ["reference", "single"], Settings(length=5)))
    assert [answer.utilities for answer in none] == [None, None]
    assert "No utilities here" in html.comparison_line(none) and html.comparison_line(none, expected=False) == ""
    assert made.recorded is None and made.policies["reference"].lengths == [40, 40]


def test_the_scale_is_measured_on_the_prompts_that_can_be_scored():
    made = studio(mixture=FakeMixture(context=10), prompts=["p", "p" * 50, "q"])
    # The fake reference's answers x, xx, x, xx: unbiased variance 1/3, mean 1.5.
    (answer,) = made.with_utilities("p", [Answer("maxmin", "xxx", True)])
    assert answer.utilities["long"] == pytest.approx(1.5 * 3**0.5) and answer.scale.unit
    assert made.problems == []


@pytest.mark.parametrize("broken", [ValueError("too long"), RuntimeError("out of memory"), float("inf")])
def test_the_page_starts_where_the_scale_cannot_be_measured(broken):
    class Broken(FakeMixture):
        def score(self, prompts, completions, **options):
            if isinstance(broken, Exception):
                raise broken
            return super().score(prompts, completions) * broken

    made = studio(mixture=Broken(), prompts=["p"])
    assert not made.scale.unit
    assert [problem.split(",")[0] for problem in made.problems] == [
        "The spread of the reference policy's answers could not be measured"
    ]


CALIBRATED = {"reward_shift": torch.tensor([3.0, -3.0]), "reward_scale": torch.tensor([2.0, 2.0])}


@pytest.mark.parametrize(
    ("settings", "stored", "long", "line", "caption", "marks"),
    [
        # Reference 2 characters, single 4, the zero 1.5; spread of the zero's answers sqrt(1/3), so 2 are 3.46.
        ({"prompts": ["p"]}, {}, 2.5 * 3**0.5, "much better for long (+3.5)", "1 is one standard deviation of its", 2),
        ({}, CALIBRATED, 1.25, "better for long (+1.0)", "1 is one standard deviation of its answers", 2),
        ({}, {}, 2.5, "better for long (+2.0)", "on average, 1 is one log-odds of the learned rewards", 2),
        ({"baseline_replies": 0}, CALIBRATED, 0.5, "better for long (+1.0)", "was calibrated on get on average", 2),
        ({"baseline_replies": 0}, {}, 4.0, "better for long (+2.0)", "Groups have no zero in common", 0),
        ({"reference": "nobody", "prompts": ["p"]}, {}, 4.0, "better for long (+2.0)", "Groups have no zero", 0),
    ],
)
def test_the_page_says_what_zero_and_one_are(settings, stored, long, line, caption, marks):
    mixture = FakeMixture()
    vars(mixture).update(stored)
    made = studio(mixture=mixture, **settings)
    answers = last(made.compare("p", ["reference", "single"], Settings()))
    assert answers[1].utilities["long"] == pytest.approx(long)
    said = html.comparison_line(answers)
    assert re.sub("<[^>]*>", "", said).startswith(f"Compared with Reference, Single reward is {line}")
    assert caption in standard.unescape(said)
    assert html.answers_panel(answers).count("mm-worst-mark") == marks


def test_there_must_be_room_for_the_reference_policy_too():
    made = with_wordy_reference()
    reference = made.policies["reference"]
    reference.context = 40
    with pytest.raises(Refused, match="has 39 tokens; with answers of 5 tokens the models here read at most 35"):
        next(made.compare("p" * 39, ["single", "maxmin"], Settings(length=5)))
    answers = last(made.compare("p" * 35, ["single", "maxmin"], Settings(length=5)))
    assert answers[0].utilities["long"] == pytest.approx(4 - 4.5) and reference.lengths == [5]
    # Recorded prompts are not asked for; where they leave no room there is no zero.
    made.run.replies = {"p" * n: [("maxmin", "x", True)] for n in (40, 48)}
    assert made.score_recorded() == {} and reference.lengths == [5]
    made.mixture = None
    assert len(last(made.compare("p" * 39, ["single", "maxmin"], Settings(length=5)))) == 2
