# SPDX-License-Identifier: Apache-2.0
"""What a run found out, as the Space shows it: numbers by group, curves, recorded answers, who the groups are."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.texts import text_of
from ..reading import JSON_LIMIT, read_json, read_json_object
from ..run_record import RUN_RECORD_NAME, RunRecord
from .config import SpaceConfig
from .groups import GROUP_FACTS_NAME, read_group_facts


logger = logging.getLogger(__name__)

COMPLETIONS_NAME = "completions.parquet"
COMPLETIONS_LINES = "evaluation/completions.jsonl"
_MAX_PROMPTS = 200
_MAX_CARD = 20_000

Numbers = dict[str, dict[str, dict[str, float]]]
"""Policy -> group -> `mean` and, where it was measured, `low` and `high`."""


@dataclass
class RunData:
    """Results of a run.

    Args:
        groups (`list[str]`): of the evaluation, the majority first where it is known.
        majority (`str`, *optional*), minority (`str`, *optional*): named groups.
        num_prompts (`int`, *optional*): of the evaluation.
        reference (`str`): the policy that win rates are against.
        win_rate (`Numbers`), utility (`Numbers`): what was measured.
        utility_kind (`str`, *optional*): whose utility that is, such as `gold`.
        curves (`dict`): policy -> [[step, worst utility], ...].
        replies (`dict`): prompt -> [(policy, answer, finished), ...].
        group_facts (`dict`): group -> what is known of its people, see [`describe_groups`].
        cards (`dict[str, str]`): policy -> text of its model card.
        diagnosis (`dict`): what `trl-maxmin diagnose` found in the preferences, see `docs/diagnose.md`.
    """

    groups: list[str] = field(default_factory=list)
    majority: str | None = None
    minority: str | None = None
    num_prompts: int | None = None
    reference: str = "reference"
    win_rate: Numbers = field(default_factory=dict)
    utility: Numbers = field(default_factory=dict)
    utility_kind: str | None = None
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    replies: dict[str, list[tuple[str, str, bool]]] = field(default_factory=dict)
    group_facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    cards: dict[str, str] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)

    @property
    def prompts(self) -> list[str]:
        """Prompts with recorded answers."""
        return list(self.replies)

    @classmethod
    def load(cls, config: SpaceConfig) -> tuple[RunData, list[str]]:
        """Read what is there: a run record, `evaluation.json`, `report.json`, recorded answers, group facts, cards.

        Returns:
            `(RunData, list[str])`: and a sentence for each thing that is there and cannot be read.
        """
        data, problems = cls(), []

        def attempt(what: str, read: Any) -> None:
            try:
                read()
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.exception("could not read %s", what)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                problems.append(f"{what} could not be read, so it is not shown here ({reason}).")

        folder = Path(config.record) if config.record and Path(config.record).is_dir() else None
        if config.record:
            attempt("The record of the run", lambda: data._add_record(_record(config.record), config))
        if folder is not None:
            attempt("The evaluation", lambda: data.win_rate or data._add_results(_json(folder / "evaluation.json")))
            whole = data.win_rate and data.utility
            attempt("The report of the run", lambda: whole or data._add_tables(_json(folder / "report.json")))
            attempt("The recorded answers", lambda: data._add_completions(folder))
            attempt("The facts about the groups", lambda: data._add_group_facts(folder / GROUP_FACTS_NAME))
        for name, source in config.policies.items():
            attempt(f"The record of {name!r}", lambda name=name, source=source: data._add_policy(name, Path(source)))
        attempt("A part of the results", data._keep_numbers)
        return data, problems

    def _add_record(self, record: RunRecord | None, config: SpaceConfig) -> None:
        if record is None:
            return
        evaluation = record.evaluation
        if "results" in evaluation:
            self._add_results(evaluation["results"])
        self._add_tables(evaluation)
        self.diagnosis = evaluation.get("diagnostics", {})
        for sample in evaluation.get("samples", []):
            rows = self.replies.setdefault(sample["prompt"], [])
            rows += [(policy, text, True) for policy, text in sample["completions"].items()]
        if points := _worst_utility(record):
            self.curves.setdefault(record.policy.get("name", "maxmin"), points)
        for name, share in record.reward.get("shares", {}).items():
            self.group_facts.setdefault(name, {}).setdefault("share", share)
        accuracy = record.reward.get("heldout_accuracy", {})
        for model, by_group in accuracy.items():
            for group, value in by_group.items():
                self.group_facts.setdefault(group, {}).setdefault("accuracy", {})[model] = value

    def _add_tables(self, facts: Mapping[str, Any]) -> None:
        """What the demo's evaluation and `report.json` have in common."""
        for name in facts.get("groups", []):
            if name not in self.groups:
                self.groups.append(name)
        self.majority = self.majority or facts.get("majority")
        self.minority = self.minority or facts.get("minority")
        self.num_prompts = self.num_prompts or facts.get("num_prompts")
        if not self.win_rate:
            self.win_rate = {p: dict(by_group) for p, by_group in facts.get("win_rate", {}).items()}
        if not self.utility and "gold_utility" in facts:
            self.utility_kind = "gold"
            self.utility = {p: {g: {"mean": v} for g, v in row.items()} for p, row in facts["gold_utility"].items()}

    def _add_results(self, results: Mapping[str, Any]) -> None:
        """What `trl-maxmin evaluate` writes; known groups before components, as nothing was trained on them."""
        if not results:
            return
        kinds = results["groups"]
        kind = next(kind for kind in ("gold", "component", "judge") if kind in kinds.values())
        groups = [group for group, own in kinds.items() if own == kind]
        weights = results.get("weights", {})
        groups.sort(key=lambda group: -weights.get(group, 0.0))
        self.groups, self.utility_kind = groups, kind
        self.num_prompts = results.get("num_prompts")
        self.reference = results.get("reference", self.reference)
        for measure, table in (("win_rate", self.win_rate), ("utility", self.utility)):
            for policy, entry in results["policies"].items():
                row = {g: entry["by_group"][g][measure] for g in groups if measure in entry["by_group"].get(g, {})}
                if row:
                    table[policy] = row

    def _add_completions(self, folder: Path) -> None:
        """What `trl-maxmin evaluate` (parquet) or the demo (lines of JSON) recorded."""
        replies: dict[str, list[tuple[str, str, bool]]] = {}
        for row in _recorded(folder):
            prompt = text_of(row["prompt"])
            if prompt not in replies and len(replies) >= _MAX_PROMPTS:
                continue
            known = {(policy, text) for policy, text, _ in replies.get(prompt, [])}
            reply = (row["policy"], text_of(row["completion"]), row.get("finished") is not False)
            if reply[:2] not in known:  # the demo draws prompts, so one may come twice
                replies.setdefault(prompt, []).append(reply)
        if replies:
            self.replies = replies

    def _add_group_facts(self, path: Path) -> None:
        if path.is_file():
            for group, facts in read_group_facts(path).items():
                self.group_facts.setdefault(group, {}).update(facts)

    def _add_policy(self, name: str, folder: Path) -> None:
        if (folder / "README.md").is_file():
            self.cards[name] = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:_MAX_CARD]
        if (folder / RUN_RECORD_NAME).is_file():
            if points := _worst_utility(RunRecord.load(folder)):
                self.curves[name] = points

    def _keep_numbers(self) -> None:
        """Drop what is no finite number: figures are computed from these, whoever wrote the file.

        Raises:
            ValueError: something was dropped; it names the first.
        """
        dropped: list[str] = []

        def keep(what: str, good: bool) -> bool:
            dropped.extend([] if good else [what])
            return good

        for table in (self.win_rate, self.utility):
            for policy, row in table.items():
                table[policy] = {g: n for g, n in row.items() if keep(f"{policy}, {g}", _is_measured(n))}
        for policy, points in self.curves.items():
            self.curves[policy] = [p for p in points if keep(f"the curve of {policy}", _is_point(p))]
        self.groups = [group for group in self.groups if keep(f"the group {group!r}", isinstance(group, str))]
        if dropped:
            raise ValueError(f"{dropped[0]}: no number")


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path, JSON_LIMIT) if path.is_file() else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_measured(cell: Any) -> bool:
    return isinstance(cell, dict) and all(_is_number(cell[end]) for end in {"mean", *({"low", "high"} & set(cell))})


def _is_point(point: Any) -> bool:
    return isinstance(point, list | tuple) and len(point) == 2 and all(map(_is_number, point))


def _recorded(folder: Path) -> Iterable[dict[str, Any]]:
    if (folder / COMPLETIONS_NAME).is_file():
        from datasets import Dataset

        return Dataset.from_parquet(str(folder / COMPLETIONS_NAME))
    lines = folder / COMPLETIONS_LINES
    return map(read_json, lines.read_bytes().splitlines()) if lines.is_file() else ()


def _worst_utility(record: RunRecord) -> list[list[float]]:
    """The curve of a policy that was trained on several groups; of a single reward the worst says nothing."""
    curves = record.policy.get("curves", {})
    several = sum(name.startswith("maxmin/utility/") for name in curves) > 1
    return curves.get("maxmin/worst_utility", []) if several else []


def _record(source: str) -> RunRecord | None:
    """From a folder or file, or from a Hub repository; `None` where there is none."""
    path = Path(source)
    if path.exists():
        return RunRecord.load(path) if path.is_file() or (path / RUN_RECORD_NAME).is_file() else None
    from huggingface_hub import hf_hub_download

    return RunRecord.load(hf_hub_download(source, RUN_RECORD_NAME))
