# SPDX-License-Identifier: Apache-2.0
"""Fragments of the page. All text that comes from people, models or files goes through [`escape`]."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .config import SpaceConfig
from .run_data import RunData
from .scoring import Answer, Studio, compare_words, featured, label


# Braces, dollar and backtick too: the component that shows HTML is also a template engine.
_TABLE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\x00": ""})
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

EXPLANATION = (
    "People who compare answers do not all want the same, and training on their average serves the majority. "
    "MaxMin-RLHF first learns one reward for each group from who preferred what, without being told the groups. It "
    "then trains one policy so that the group it serves worst is served as well as possible."
)


def escape(text: Any) -> str:
    """Text as HTML that shows exactly this text.

    Example:

    >>> escape('<b onclick="x">${1}{{y}}')
    '&lt;b onclick=&quot;x&quot;&gt;&#36;&#123;1&#125;&#123;&#123;y&#125;&#125;'
    """
    return html.escape(str(text), quote=True).translate(_TABLE)


def notice(text: str, kind: str = "info") -> str:
    """A sentence for the visitor; `kind` is `info` or `warning`."""
    return f'<div class="mm-notice mm-{kind}">{escape(text)}</div>' if text else ""


def heard(text: str) -> str:
    """A sentence for those who listen to the page; others see it happen."""
    return f'<p class="mm-heard">{escape(text)}</p>'


def header(config: SpaceConfig, problems: Sequence[str]) -> str:
    """Title, explanation in three sentences, and what could not be loaded."""
    warnings = "".join(notice(problem, "warning") for problem in problems)
    return f'<header class="mm-header"><h1>{escape(config.title)}</h1><p>{escape(EXPLANATION)}</p>{warnings}</header>'


# --- answers --------------------------------------------------------------------------------------------------------


def letter(position: int) -> str:
    """Name of a hidden answer: A, B, ..."""
    return f"Answer {chr(ord('A') + position)}"


def scale_of(answers: Sequence[Answer]) -> tuple[float, float]:
    """Ends of the common scale: whole numbers around all utilities and 0.

    Example:

    >>> scale_of([Answer("a", "", utilities={"x": 1.2, "y": -0.1})])
    (-1.0, 2.0)
    """
    values = [value for answer in answers for value in (answer.utilities or {}).values()]
    low, high = min([0.0, *values]), max([0.0, *values])
    low, high = float(int(low) - (low < int(low))), float(int(high) + (high > int(high)))
    return (low, high) if high > low else (low, low + 1.0)


def answers_panel(answers: Sequence[Answer], prompt: str = "", hidden: bool = False, streaming: bool = False) -> str:
    """What was asked, and answers side by side; with utilities, bars on one scale under each.

    Args:
        answers (`Sequence[Answer]`): in the order of the page.
        prompt (`str`): what they answer; the field above may hold the next one already.
        hidden (`bool`): letters instead of policies, and no bars.
        streaming (`bool`): whether more will follow.
    """
    if not answers:
        return '<div class="mm-empty">The answers appear here.</div>'
    low, high = scale_of(answers)
    cards = []
    for position, answer in enumerate(answers):
        name = letter(position) if hidden else label(answer.policy)
        text = escape(answer.text) if answer.text else "<em>(empty answer)</em>" if answer.done else "&hellip;"
        cut = '<p class="mm-small">(cut at the length limit)</p>' if answer.done and not answer.finished else ""
        bars = "" if hidden or answer.utilities is None else _bars(answer, low, high)
        cards.append(
            f'<article class="mm-card" aria-label="{escape(name)}"><h2 dir="auto">{escape(name)}</h2>'
            f'<p class="mm-answer" dir="auto">{text}</p>{cut}{bars}</article>'
        )
    busy = "true" if streaming else "false"
    asked = f'<p class="mm-asked"><span class="mm-tag">Prompt</span> <bdi>{escape(prompt)}</bdi></p>' if prompt else ""
    shown = f'<div class="mm-cards">{"".join(cards)}</div>'
    return f'<section aria-label="Answers" aria-busy="{busy}">{asked}{shown}</section>'


def _bars(answer: Answer, low: float, high: float) -> str:
    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    zero = place(0.0)
    rows = []
    for group, value in (answer.utilities or {}).items():
        worst = group == answer.worst_group
        start, end = sorted((zero, place(value)))
        mark = '<span class="mm-worst-mark">worst-off</span>' if worst else ""
        spoken = f"{group}: {value:+.1f}" + (", worst-off group" if worst else "")
        rows.append(
            f'<div class="mm-bar{" mm-worst" if worst else ""}" role="img" aria-label="{escape(spoken)}">'
            f'<div class="mm-bar-head"><span class="mm-group">{escape(group)}</span>{mark}'
            f'<span class="mm-value">{value:+.1f}</span></div>'
            f'<div class="mm-track"><span class="mm-zero" style="left:{zero:.2f}%"></span>'
            f'<span class="mm-fill" style="left:{start:.2f}%;width:{max(end - start, 0.6):.2f}%"></span></div></div>'
        )
    if answer.left_out:
        rows.append(f'<p class="mm-small">No number came out for {escape(", ".join(answer.left_out))}.</p>')
    near = zero < 12 or zero > 88
    middle = "" if near else f'<span style="left:{zero:.2f}%;transform:translateX(-50%)">0</span>'
    ends = f'<span style="left:0">{low:+.0f}</span>{middle}<span style="right:0">{high:+.0f}</span>'
    ends = ends.replace("+0<", "0<").replace("-0<", "0<")
    return (
        f'<div class="mm-bars"><p class="mm-small">Utility for each group</p>{"".join(rows)}'
        f'<div class="mm-axis" aria-hidden="true">{ends}</div></div>'
    )


def comparison_line(answers: Sequence[Answer], expected: bool = True) -> str:
    """The line in words, and what the scale means.

    Args:
        answers (`Sequence[Answer]`): complete, in the order of the policies.
        expected (`bool`): whether there should be utilities, so that their absence is explained.
    """
    scored = [answer for answer in answers if answer.utilities is not None]
    if not scored:
        why = "No utilities here: with its answers, this prompt is longer than the reward model can read."
        return f'<p class="mm-small">{why}</p>' if expected else ""
    words = f"{scored[0].scale.words} Utilities are those of the learned reward components."
    scale = f'<p class="mm-small">{escape(words)}</p>'
    rows, pair = compare_words(answers), featured([answer.policy for answer in answers])
    if not rows or pair is None:
        return scale
    parts = [f"{words} for <em><bdi>{escape(group)}</bdi></em> ({value:+.1f})" for group, words, value in rows]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    ours, theirs = escape(label(pair[0])), escape(label(pair[1]))
    line = f"Compared with <bdi>{theirs}</bdi>, <strong><bdi>{ours}</bdi></strong> is {listed}."
    return f'<p class="mm-line">{line}</p>{scale}'


# --- tables and groups ----------------------------------------------------------------------------------------------


def _cell(number: Mapping[str, float] | None) -> str:
    if number is None:
        return "&ndash;"
    ends = f" [{number['low']:.2f}, {number['high']:.2f}]" if "low" in number and "high" in number else ""
    return f"{number['mean']:.2f}{ends}"


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; `rows` hold HTML, their first cells are headings."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="mm-scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def group_page(studio: Studio, group: str) -> str:
    """Who a group is, and what each policy gives it."""
    run = studio.run
    facts, parts = run.group_facts.get(group, {}), []
    share = facts.get("share", facts.get("pair_share"))
    known = [f"{facts['annotators']:,} annotators"] if "annotators" in facts else []
    known += [f"{facts['pairs']:,} preference pairs"] if known and "pairs" in facts else []
    if share is not None:
        known.append(f"{100 * share:.0f} % of the {'people' if 'share' in facts or not known else 'pairs'}")
    words = ", ".join(known)
    role = " The majority." if group == run.majority else " The minority." if group == run.minority else ""
    parts.append(
        f"<p>{escape(f'{words[:1].upper()}{words[1:]}.' if words else 'Nothing is recorded of its people.')}{role}</p>"
    )
    accuracy = facts.get("accuracy", {})
    if accuracy:
        listed = ", ".join(f"{escape(model)} {value:.2f}" for model, value in accuracy.items())
        parts.append(f"<p>Accuracy on held-out pairs of this group: {listed}.</p>")
    parts.append(_examples(facts))
    rows = [
        [escape(label(policy)), *(_cell(numbers.get(policy, {}).get(group)) for _, numbers in _measures(run))]
        for policy in dict.fromkeys([*run.utility, *run.win_rate])
        if any(group in numbers.get(policy, {}) for _, numbers in _measures(run))
    ]
    if rows:
        columns = ["policy", *(title for title, _ in _measures(run))]
        parts.append(table(f"What each policy gives {group}", columns, rows))
    return f'<section class="mm-group-page" aria-label="{escape(group)}">{"".join(parts)}</section>'


def _measures(run: RunData) -> list[tuple[str, dict]]:
    against = f"win rate against {label(run.reference)} [95 %]"
    kind = f"{run.utility_kind} utility" if run.utility_kind else "utility"
    return [(title, numbers) for title, numbers in ((against, run.win_rate), (kind, run.utility)) if numbers]


def _examples(facts: Mapping[str, Any]) -> str:
    examples = facts.get("examples", [])
    if not examples:
        return (
            '<p class="mm-small">No examples of their choices: the run has no groups.json (the demo writes one; '
            "<code>--preferences</code> makes one).</p>"
        )
    items = "".join(
        f'<li><p class="mm-small" dir="auto">{escape(example.get("prompt", ""))}</p>'
        f'<p><span class="mm-tag">chosen</span> <bdi>{escape(example.get("chosen", ""))}</bdi></p>'
        f'<p><span class="mm-tag mm-no">rejected</span> <bdi>{escape(example.get("rejected", ""))}</bdi></p></li>'
        for example in examples
    )
    return f'<h2>Typical choices</h2><ul class="mm-list">{items}</ul>'


def extremes_page(group: str, extremes: Mapping[str, tuple[Sequence[tuple], Sequence[tuple]]]) -> str:
    """The best and the worst recorded answers of each policy for a group."""
    if not extremes:
        return notice("No recorded answers to choose from: the run has neither completions.parquet nor samples.")

    def listed(rows: Sequence[tuple]) -> str:
        return "".join(
            f'<li><p class="mm-small" dir="auto">{escape(prompt)}</p>'
            f'<p dir="auto">{escape(text) or "<em>(empty answer)</em>"} '
            f'<span class="mm-value">{value:+.1f}</span></p></li>'
            for prompt, text, value in rows
        )

    cards = "".join(
        f'<article class="mm-card"><h2>{escape(label(policy))}</h2><h3>Best for {escape(group)}</h3>'
        f'<ul class="mm-list">{listed(best)}</ul><h3>Worst for {escape(group)}</h3>'
        f'<ul class="mm-list">{listed(worst) or "<li>only one answer is recorded</li>"}</ul></article>'
        for policy, (best, worst) in extremes.items()
    )
    return f'<section class="mm-cards" aria-label="Best and worst answers">{cards}</section>'


def cards_section(studio: Studio) -> str:
    """Links to the model cards on the Hub, or the text of local ones."""
    items = []
    sources = dict(studio.config.policies)
    if studio.config.mixture:
        sources["reward mixture"] = studio.config.mixture
    for name, source in sources.items():
        if name in studio.run.cards:
            items.append(
                f"<li><details><summary>{escape(label(name))}</summary><pre>{escape(studio.run.cards[name])}</pre>"
                "</details></li>"
            )
        elif _HUB_ID.fullmatch(source) and name not in studio.run.cards:
            url = f"https://huggingface.co/{source}"
            items.append(
                f'<li><a href="{escape(url)}" rel="noreferrer">{escape(label(name))}: {escape(source)}</a></li>'
            )
        else:
            items.append(f"<li>{escape(label(name))}: a local folder without a card</li>")
    return f'<h2>Model cards</h2><ul class="mm-list">{"".join(items)}</ul>' if items else ""


def diagnosis_section(run: RunData) -> str:
    """Whether one reward would have sufficed for the preferences, and what that answer stands on."""
    found = run.diagnosis
    if not found:
        return ""
    assumptions = "".join(f"<li>{escape(text)}</li>" for text in found["assumptions"])
    return (
        f"<h2>Does one reward suffice for these preferences?</h2><p>{escape(found['verdict'])}</p>"
        "<details><summary>Found by trl-maxmin diagnose, with no policy trained, under these assumptions</summary>"
        f'<ul class="mm-list">{assumptions}</ul></details>'
    )


def overview_table(run: RunData) -> str:
    """All numbers of the figures, for those who read rather than look."""
    parts = []
    for title, numbers in _measures(run):
        rows = [[escape(label(p)), *(_cell(row.get(group)) for group in run.groups)] for p, row in numbers.items()]
        parts.append(table(title[:1].upper() + title[1:], ["policy", *run.groups], rows))
    return "".join(parts)
