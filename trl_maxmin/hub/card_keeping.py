# SPDX-License-Identifier: Apache-2.0
"""What a new card keeps of an earlier one: licence, language, data sets, base, tags, and what somebody wrote into it.

The part made from the run record stands between two marks that no reader sees. What is written above or below them is
kept; the first mark carries a digest, so that a change between them is noticed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub.utils import yaml_dump

from ..run_record import without_secrets


LIBRARY = "trl-maxmin"
#: The paper, as the Hub links it.
PAPER_TAG = "arxiv:2402.08925"
#: Tags that cards of this package have by themselves; others are somebody's own.
OUR_TAGS = (
    *("trl", LIBRARY, PAPER_TAG, "reward-model", "mixture-reward", "reward-component", "evaluation", "lora"),
    *("ppo", "grpo", "rloo", "dpo", "maxmin-rlhf"),
)
_GIVEN = ("license", "license_name", "license_link", "language", "datasets")
#: Fields of somebody else's card that a push takes over, and of a card of ours.
_KEPT = (
    *(*_GIVEN, "base_model", "base_model_relation", "metrics", "widget", "thumbnail", "inference", "new_version"),
    *("pretty_name", "size_categories", "task_categories", "task_ids", "source_datasets", "annotations_creators"),
    *("extra_gated_heading", "extra_gated_prompt", "extra_gated_fields", "extra_gated_description"),
    *("extra_gated_button_content", "co2_eq_emissions"),
)
_FIRST = (*_GIVEN[:4], "library_name", "pipeline_tag", "base_model", "base_model_relation", "datasets", "tags")
_LONGEST_CARD = 2**20

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_BEGIN = (
    "<!-- {library} {digest} {made}: made from run_record.json; what stands above or below these marks is kept -->"
)
_END = f"<!-- {LIBRARY} end -->"
_SECTION = re.compile(
    rf"^<!-- {LIBRARY} (?P<digest>[0-9a-f]{{12}}) (?P<made>[a-z_,-]+): [^\n]*-->\n(?P<body>.*?)^{_END}[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


def _digest(body: str) -> str:
    lines = "\n".join(line.rstrip() for line in body.strip().splitlines())
    return hashlib.sha256(lines.encode("utf-8", "replace")).hexdigest()[:12]


def marked(body: str, made: Iterable[str]) -> str:
    """The body of a card between its marks.

    Args:
        body (`str`): Markdown.
        made (`Iterable[str]`): fields of the metadata that come from the record or from the model's files: a later
            card that does not have them does not keep them.
    """
    begin = _BEGIN.format(library=LIBRARY, digest=_digest(body), made=",".join(sorted(made)) or "-")
    return f"{begin}\n\n{body.strip()}\n\n{_END}"


def is_edited(card: str) -> bool:
    """Whether somebody changed a card of ours between its marks.

    Example:

    >>> is_edited(marked("# Film", [])), is_edited(marked("# Film", []).replace("Film", "Films"))
    (False, True)
    """
    found = _SECTION.search(_parsed(card)[1])
    return found is not None and _digest(found["body"]) != found["digest"]


def what_is_lost(earlier: str) -> str | None:
    """What of a card that is there a new one does not keep, in words; `None` where it keeps all."""
    if is_edited(earlier):
        return (
            "it was changed between its marks, where it is made from the run record, and that change is not kept. "
            "What is written above or below the marks is."
        )
    text = _parsed(earlier)[1]
    if text.strip() and _SECTION.search(text) is None:
        return (
            "it was not made by this package, so of what it says only licence, language and data sets are kept. What "
            "is written above or below the marks of the new one will be kept."
        )
    return None


def _parsed(card: str | None) -> tuple[dict[str, Any], str]:
    """Metadata and text; what cannot be read is no metadata."""
    if not card or len(card) > _LONGEST_CARD:
        return {}, ""
    card = card.replace("\r\n", "\n")
    found = _FRONT_MATTER.match(card)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        data = {}
    return data if isinstance(data, dict) else {}, card[found.end() :] if found else card


def _is_id(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name, re.ASCII) is not None


def _kept_fields(earlier: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    kept = {name: earlier[name] for name in names if name in earlier and earlier[name] not in (None, "", [])}
    for name in ("base_model", "datasets"):
        ids = kept.get(name)
        if ids is not None and not all(map(_is_id, ids if isinstance(ids, list) else [ids])):
            kept.pop(name)  # a path of somebody's machine
    if "base_model" not in kept:
        kept.pop("base_model_relation", None)
    return kept


def keep(card: str, earlier: str | None) -> str:
    """A new card with what an earlier one says beyond it.

    Of an earlier card of this package: its licence, language, data sets, base, tags of somebody's own, and the text
    above and below the marks, as far as the new card does not give them anew. Of any other README: licence, language
    and data sets. Keeping twice changes nothing.

    Args:
        card (`str`): as the functions of `cards` make it.
        earlier (`str`, *optional*): the README that is there.

    Returns:
        `str`: the card, its fields in the order in which all of our cards have them.
    """
    data, text = _parsed(card)
    before, old_text = _parsed(earlier)
    ours, section = _SECTION.search(old_text), _SECTION.search(text)
    made = ours["made"].split(",") if ours else ()
    fields = [name for name in (_KEPT if ours else _GIVEN) if name not in made]
    if "base_model" in data or "base_model" in made:
        fields = [name for name in fields if not name.startswith("base_model")]
    kept = {name: value for name, value in _kept_fields(before, fields).items() if name not in data}
    data |= without_secrets(kept)
    tags, old_tags = _words(data.get("tags")), _words(before.get("tags")) if ours else []
    own = [tag for tag in old_tags if tag not in OUR_TAGS and not tag.startswith("base_model:")]
    given = [tag for tag in tags if tag not in OUR_TAGS]
    data["tags"] = list(dict.fromkeys([*(tag for tag in tags if tag in OUR_TAGS), *without_secrets(own), *given]))
    if ours and section:
        above, below = (without_secrets(part).strip() for part in (old_text[: ours.start()], old_text[ours.end() :]))
        text = "\n\n".join(filter(None, (above, section[0], below)))
    return f"---\n{yaml_dump(_in_order(data), sort_keys=False).rstrip()}\n---\n\n{text.strip()}\n"


def _words(value: Any) -> list[str]:
    value = [value] if isinstance(value, str) else value
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _in_order(data: Mapping[str, Any]) -> dict[str, Any]:
    last = ("configs", "model-index")
    names = [*_FIRST, *sorted(set(data) - set(_FIRST) - set(last)), *last]
    return {name: data[name] for name in names if name in data and data[name] not in (None, [], "")}
