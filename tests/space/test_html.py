# SPDX-License-Identifier: Apache-2.0
import html as standard
import re
from html.parser import HTMLParser

import pytest

from tests.space.fakes import studio
from trl_maxmin.space import figures, html
from trl_maxmin.space.run_data import RunData
from trl_maxmin.space.scoring import Answer


PAYLOAD = "<img src=x onerror=alert(1)>\"'`${alert(1)}{{x}}</p></script><script>"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in ("line", "path", "rect", "circle", "polyline", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "path", "circle", "polyline"):
            assert not self.open or tag == "rect" or self.open.pop() == tag


def check(fragment):
    parser = Tags()
    parser.feed(fragment)
    assert parser.open == [] and not {"img", "script"} & set(parser.seen)
    assert "${" not in fragment and "{{" not in fragment


def numbers(*names):
    return {name: {PAYLOAD: {"mean": 0.5, "low": 0.4, "high": 0.6}, "b": {"mean": -0.25}} for name in names}


def full_run():
    return RunData(
        groups=[PAYLOAD, "b"],
        majority=PAYLOAD,
        minority="b",
        reference=PAYLOAD,
        win_rate=numbers("maxmin", PAYLOAD),
        utility=numbers("maxmin", PAYLOAD),
        utility_kind=PAYLOAD,
        curves={PAYLOAD: [[0, -1.0], [1, 2.0]]},
        replies={PAYLOAD: [("maxmin", PAYLOAD, True), ("maxmin", "b", True)]},
        group_facts={
            PAYLOAD: {
                "share": 0.2,
                "annotators": 3,
                "pairs": 12,
                "accuracy": {PAYLOAD: 0.9},
                "examples": [{"prompt": PAYLOAD, "chosen": PAYLOAD, "rejected": PAYLOAD}],
            }
        },
        cards={"reference": PAYLOAD},
        diagnosis={"verdict": PAYLOAD, "assumptions": [PAYLOAD]},
    )


def test_every_fragment_shows_text_as_text():
    from tests.space.fakes import FakeMixture

    made = studio(mixture=FakeMixture([PAYLOAD, "b"]), run=full_run(), title=PAYLOAD)
    answers = [Answer(PAYLOAD, PAYLOAD, True, True, {PAYLOAD: 1.0, "b": -1.0}), Answer("maxmin", "", False, True)]
    fragments = [
        html.header(made.config, [PAYLOAD]),
        html.notice(PAYLOAD),
        html.answers_panel(answers, PAYLOAD),
        html.answers_panel(answers, hidden=True),
        html.comparison_line([answers[0], Answer("b", "", utilities={PAYLOAD: 0.0, "b": 0.0})]),
        html.group_page(made, PAYLOAD),
        html.group_page(made, "b"),
        html.extremes_page(PAYLOAD, made.extremes(PAYLOAD)),
        html.cards_section(made),
        html.overview_table(made.run),
        html.diagnosis_section(made.run),
        figures.overview(made.run),
    ]
    for fragment in fragments:
        check(fragment)
    assert sum(PAYLOAD in standard.unescape(fragment) for fragment in fragments) >= 10


def test_bars_share_one_scale_and_mark_the_worst_off_group():
    answers = [
        Answer("a", "x", True, True, {"g": 4.0, "h": -1.0}),
        Answer("b", "y", True, True, {"g": 1.5, "h": 2.0}),
    ]
    panel = html.answers_panel(answers)
    # From -1 to 4: 4 is full length, 0 lies at 20 %.
    assert (
        panel.count("left:20.00%") >= 5 and "left:20.00%;width:80.00%" in panel and "left:0.00%;width:20.00%" in panel
    )
    assert "left:20.00%;width:30.00%" in panel and "left:20.00%;width:40.00%" in panel
    assert re.findall(r'aria-label="(\w+: [^"]+)"', panel) == [
        "g: +4.0",
        "h: -1.0, worst-off group",
        "g: +1.5, worst-off group",
        "h: +2.0",
    ]


def test_hidden_answers_carry_neither_names_nor_bars():
    panel = html.answers_panel([Answer("maxmin", "x", True, True, {"g": 4.0})], hidden=True)
    assert "Answer A" in panel and "axMin" not in panel and "maxmin" not in panel and "mm-bar" not in panel


def test_a_run_without_results_says_so():
    assert "No results are recorded" in figures.overview(RunData())
    assert "no groups.json" in html.group_page(studio(), "long")
    assert "No recorded answers" in html.extremes_page("g", {})


def test_cards_of_hub_models_are_links():
    made = studio()
    made.config.policies = {"maxmin": "me/maxmin"}
    assert 'href="https://huggingface.co/me/maxmin"' in html.cards_section(made)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1.0]), ((-1.2, 1.3), [-1, -0.5, 0, 0.5, 1]), ((15, 90), [20, 40, 60, 80])],
)
def test_ticks_are_round(ends, expected):
    assert figures.ticks(*ends) == pytest.approx(expected)


def test_every_policy_has_a_colour_of_its_own_in_all_figures():
    names = ["reference", "mine", "single", "maxmin", "oracle", *(f"more {n}" for n in range(6))]
    row = {"a": {"mean": 0.5}, "b": {"mean": 0.5}}
    # In the figure of both groups the first of the own policies is missing: it has one group only.
    utility = {name: row if name != "mine" else {"a": {"mean": 0.5}} for name in names}
    run = RunData(groups=["a", "b"], majority="a", minority="b", win_rate=dict.fromkeys(names, row), utility=utility)
    legend = re.findall(r'style="background:([^"]+)"></span>([^<]+)<', figures.bars_by_group(run))
    assert len(legend) == len({colour for colour, _ in legend}) == len(names)
    bars = re.findall(r'fill="([^"]+)"><title>([^,]+), a', figures.bars_by_group(run))
    points = re.findall(r'<circle [^>]*fill="([^"]+)"/><text [^>]*>([^<]+)<', figures.pareto(run))
    assert bars == legend and points == [entry for entry in legend if entry[1] != "mine"]
