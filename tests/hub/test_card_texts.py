# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in a record, its card is read as a card, and the record's texts are read as texts."""

import html
import json
import re
from html.parser import HTMLParser

import pytest
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.hub_cards import card_errors, read_front_matter
from trl_maxmin.hub import CardContext, component_card, dataset_card, mixture_card, policy_card
from trl_maxmin.hub.card_keeping import keep
from trl_maxmin.hub.cards import card_files
from trl_maxmin.run_record import RunRecord


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</code></td></tr></table><iframe src=//evil.example>",
    "a|b",
    "a\\|b\\",
    "`` ` `",
    "x\n\n# Heading\n\n---\nlicense: evil\n---\n",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "http://evil.example/ www.evil.example ann@evil.example",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "\x00\x1b[2J\x7f\ud800",
    "- a\n- b",
    ": {a: [b, &c *d]} #",
    "!!python/object/apply:os.system [id]",
    "<!-- trl-maxmin end -->",
    "```\nfence\n```",
    "$$x$$ ~~y~~ **z** __w__",
    "&lt;b&gt; &#60;img&#62;",
    "{{ 7 * 7 }} {% raw %}",
    "'\"",
    " ",
    "",
    "x" * 500,
    "日本語 العربية עברית",
]
ALLOWED = set("h1 h2 h3 p ul li a img code pre strong em table thead tbody tr th td br hr".split())

texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))
numbers = st.floats(-1e6, 1e6, allow_nan=False) | st.integers(0, 10**6)
names = st.lists(texts, min_size=1, max_size=4, unique=True)


@st.composite
def records(draw):
    """A valid record in which every text and every name is anything at all."""
    groups, policies = draw(names), draw(names)

    def by(keys, value=numbers):
        return {key: draw(value) for key in keys}

    rate = st.fixed_dictionaries({end: numbers for end in ("mean", "low", "high")})
    text = lambda: draw(texts)  # noqa: E731
    record = RunRecord(seed=0, versions={text(): text(), "torch": "2.13.0"})
    record.update(
        "reward",
        base_model=text(),
        dataset={"name": text(), "config": text(), "split": text(), "revision": text(), "num_annotators": 5},
        component_kind=text(),
        component_names=groups,
        num_components=len(groups),
        em={"kind": text(), text(): text()},
        training={"lr_scheduler_type": text(), text(): text()},
        curves={"em/lower_bound": [[0, 1.5]], text(): [[0, 1.0]]},
        mixing_weights=[1 / len(groups)] * len(groups),
        component_annotators=by(groups),
        component_pairs=by(groups),
        component_heldout_accuracy=by(groups),
        heldout_accuracy={policy: by(groups) for policy in policies},
        selection={"mean": {"1": 0.1, text(): 0.2}, "difference": {"1": 0.0}, text(): text()},
        calibration={"utility": text(), "temperature": [1.0] * len(groups), "scale": [1.0]},
    )
    record.update(
        "policy",
        name=draw(st.sampled_from(policies)),
        algorithm=text(),
        base_model=text(),
        reward_model=text(),
        welfare={"rule": draw(st.sampled_from(["softmin", "maxmin", text()])), "welfare_temperature": text()},
        training={"lr_scheduler_type": text()},
        calibration={"utility": text()},
        curves={"kl": [[1, 0.5]], f"maxmin/utility/{text()}": [[1, 0.5]], "maxmin/worst_utility": [[1, 0.25]]},
    )
    gold, won = {p: by(groups) for p in policies}, {p: by(groups, rate) for p in policies}
    record.update(
        "evaluation",
        groups=groups,
        minority=draw(st.sampled_from(groups)),
        utility=text(),
        gold_utility=gold,
        win_rate=won,
        samples=[{"prompt": text(), "completions": by(policies, texts), "utility": {p: by(groups) for p in policies}}],
        diagnostics={
            "verdict": text(),
            "num_groups": len(groups),
            "features": text(),
            "assumptions": [text(), text()],
            "by_group": {group: {"share": 0.5, "gap": draw(rate), text(): 1.0} for group in groups},
        },
    )
    return record


class Reader(HTMLParser):
    """Tags, links and text of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.links, self.sources, self.text, self.comments = set(), [], [], [], []
        self.open, self.cells = [], []  # tags that are open, and what stands in code spans of tables
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        self.links += [value for name, value in attrs if name == "href"]
        self.sources += [value for name, value in attrs if name == "src"]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text.append(data)
        if self.open[-2:] in (["td", "code"], ["th", "code"]):
            self.cells.append(data)

    def handle_comment(self, data):
        self.comments.append(data)


def read(card):
    """The page that a reader of the card gets, HTML in it let through, as on the Hub."""
    markdown = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    return Reader(markdown.render(str(card).split("\n---\n", 1)[1]))


def cards(record):
    context = CardContext("me/film", mixture="me/m", dataset="me/d")
    yield mixture_card(record, context)
    yield policy_card(record, context)
    yield policy_card(record, context, peft=True)
    for name in record.reward["component_names"]:
        yield component_card(record, name, context)
    yield dataset_card(record, context, {"results": "results.jsonl"}, {"results": record.evaluation["groups"]})


def check(card):
    text = str(card)
    text.encode()
    kind = "dataset" if isinstance(card, DatasetCard) else "model"
    assert card_errors(text, kind) == [] and read_front_matter(text).get("license") is None
    again = type(card)(text, ignore_metadata_errors=False)
    if kind == "model" and again.data.eval_results:
        assert all(isinstance(result.metric_value, float) for result in again.data.eval_results)
    page = read(card)
    assert page.tags <= ALLOWED, page.tags - ALLOWED
    good = re.compile(r"https://(huggingface\.co/(datasets/)?[\w.-]+/[\w.-]+|arxiv\.org/abs/2402\.08925)", re.ASCII)
    assert all(good.fullmatch(link) for link in page.links), page.links
    assert not page.sources
    assert len(page.comments) == 2 and all(comment.startswith(" trl-maxmin ") for comment in page.comments)
    body = text.split("\n---\n", 1)[1]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]", text)
    assert not re.search(r"^(# Heading|license: evil)", body, flags=re.M)
    assert keep(text, text) == text


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(records())
def test_any_record_makes_a_card(record):
    for card in cards(record):
        check(card)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(records())
def test_the_published_part_makes_the_same_card(record):
    """What is pulled says all that the card said: the same bytes again."""
    for kind in ("mixture", "policy", "dataset", "component"):
        name = record.reward["component_names"][0] if kind == "component" else ""
        options = {"configs": {"results": "results.jsonl"}} if kind == "dataset" else {}
        context = CardContext("me/film", mixture="me/m", dataset="me/d", components={"a": "me/a"}, license="mit")
        once = card_files(kind, name, record, context, **options)
        part = RunRecord.from_dict(json.loads(once["run_record.json"]))
        again = card_files(kind, name, part, CardContext("me/film"), earlier=once["README.md"].decode(), **options)
        assert again == once, kind


@pytest.mark.parametrize("payload", HOSTILE)
def test_every_text_is_shown_as_it_is(payload):
    """Seen by a reader, where it can be seen at all: in a table, in a list and in a sentence."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in payload).split()).replace("`", "'")[:36]
    if not shown.strip() or "\\u" in ascii(payload):
        shown = None  # spelled out or empty
    rates = {"policy": {payload: {"mean": 0.5, "low": 0.4, "high": 0.6}}}
    record = RunRecord().update("evaluation", groups=[payload], win_rate=rates)
    record.update("evaluation", samples=[{"prompt": payload, "completions": {payload: payload}}])
    record.update("policy", name="policy", algorithm=payload)
    card = policy_card(record, CardContext("me/film"))
    check(card)
    page = read(card)
    text = " ".join("".join(page.text).split())
    if shown is not None and "\x1b" not in payload:
        assert text.count(shown[:24]) >= 4, shown
        assert any(cell.startswith(shown[:24]) for cell in page.cells), page.cells


def test_the_check_can_fail():
    """The reader above sees what a browser would run."""
    body = "<!-- trl-maxmin 0 -->\n\n<img src=x onerror=alert(1)>\n\n[x](http://evil.example)\n"
    page = None
    with pytest.raises(AssertionError):
        page = read(f"---\na: 1\n---\n{body}")
    assert page is None
    assert read("---\na: 1\n---\n[x](http://evil.example)").links == ["http://evil.example"]
    assert html.escape("<b>") == "&lt;b&gt;" and "b" in read("---\na: 1\n---\n<b>x</b>").tags


@example("x" * 97)
@given(st.text(max_size=99))
@settings(max_examples=25, deadline=None)
def test_any_name_of_a_folder_makes_a_title_and_a_snippet(name):
    """A trainer's output folder may have any name."""
    record = RunRecord().update("policy", name="x", algorithm="PPO")
    card = policy_card(record, CardContext(name))
    check(card)
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.S)
    compile(snippet, "snippet", "exec")
    assert isinstance(card, ModelCard)
