# SPDX-License-Identifier: Apache-2.0
"""The fields of the run record, and what each of them may hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any


SCHEMA_VERSION = 1
STAGES = ("reward", "policy", "evaluation")

# --- what a value may be: each check raises ValueError with the place, what was expected and what was there ----------

_Check = Callable[[Any, str], None]


def _scalar(expected: str, *types: type) -> _Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{where} must be {expected}, got {value!r}")

    return check


def _list_of(item: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r}")
        for index, entry in enumerate(value):
            item(entry, f"{where}[{index}]")

    return check


def _dict_of(item: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {value!r}")
        for key, entry in value.items():
            item(entry, f"{where}.{key}")

    return check


def _record(fields: Mapping[str, _Check], required: tuple[str, ...] = ()) -> _Check:
    def check(value: Any, where: str) -> None:
        _dict_of(_anything)(value, where)
        if unknown := sorted(set(value) - set(fields)):
            raise ValueError(f"{where} has the unknown fields {unknown}; known fields: {sorted(fields)}")
        if missing := [name for name in required if name not in value]:
            raise ValueError(f"{where} lacks {missing}")
        for name, entry in value.items():
            fields[name](entry, f"{where}.{name}")

    return check


def _either(expected: str, *checks: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        for own in checks:
            try:
                return own(value, where)
            except ValueError:
                continue
        raise ValueError(f"{where} must be {expected}, got {value!r}")

    return check


def _anything(value: Any, where: str) -> None:
    return None


def _hub_id(value: Any, where: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", value, re.ASCII):
        raise ValueError(f"{where} must be the id of a repository, namespace/name, got {value!r}")


def _point(value: Any, where: str) -> None:
    _list_of(_number)(value, where)
    if len(value) != 2:
        raise ValueError(f"{where} must be a pair [step, value], got {value!r}")


_text = _scalar("text", str)
_flag = _scalar("true or false", bool)
_whole = _scalar("a whole number", int)
_number = _scalar("a number", int, float)
_by_name = _dict_of(_number)
_by_name_twice = _dict_of(_by_name)
_settings = _dict_of(_anything)
_curves = _dict_of(_list_of(_point))
_dataset = _record(
    {
        "name": _text,
        "config": _text,
        "split": _text,
        "revision": _text,
        "num_rows": _whole,
        "num_annotators": _whole,
        "num_prompts": _whole,
        "annotator_column": _text,
        "rows_dropped": _whole,
        "annotators_lost": _list_of(_text),
    }
)
_calibration = _record(
    {
        "utility": _text,
        "temperature": _list_of(_number),
        "shift": _list_of(_number),
        "scale": _list_of(_number),
        "reference_policy": _text,
        "num_prompts": _whole,
        "completions_per_prompt": _whole,
    }
)
_interval = _record({"mean": _number, "low": _number, "high": _number}, required=("mean", "low", "high"))
_measured = _record(
    {"mean": _number, "low": _number, "high": _number, "p_value": _number}, required=("mean", "low", "high")
)
# Group, or kind of groups, or policy -> measure -> number with interval; see docs/evaluation.md.
_by_measure = _dict_of(_dict_of(_measured))
_results = _record(
    {
        "format_version": _whole,
        "reference": _text,
        "groups": _dict_of(_text),
        "below_evidence_floor": _list_of(_text),
        "weights": _by_name,
        "num_prompts": _whole,
        "num_replies": _whole,
        "interval": _settings,
        "policies": _dict_of(
            _record(
                {
                    "by_group": _by_measure,
                    "aggregates": _dict_of(_by_measure),
                    "worst_group": _dict_of(_dict_of(_text)),
                    "replies": _settings,
                },
                required=("by_group", "aggregates"),
            )
        ),
        "differences": _list_of(
            _record(
                {"policy": _text, "baseline": _text, "by_group": _by_measure, "aggregates": _dict_of(_by_measure)},
                required=("policy", "baseline", "by_group"),
            )
        ),
        "judges": _settings,
    },
    required=("format_version", "groups", "policies"),
)
_number_or_interval = _either("a number or a number with interval", _number, _interval)
# See docs/diagnose.md.
_diagnostics = _record(
    {
        "dataset": _dataset,
        "verdict": _text,
        "verdict_kind": _text,
        "evidence": _text,
        "unit": _text,
        "num_groups": _whole,
        "known": _flag,
        "num_pairs": _whole,
        "num_annotators": _whole,
        "num_prompts": _whole,
        "features": _text,
        "feature_bound": _number,
        "beta": _number,
        "epsilon": _number,
        "diversity": _list_of(_list_of(_number)),
        "selection": _by_name_twice,
        "by_group": _dict_of(_dict_of(_number_or_interval)),
        "predicted_order": _list_of(_text),
        "measured_order": _list_of(_text),
        "curves": _curves,
        "assignment_calibration": _settings,
        "below_evidence_floor": _list_of(_text),
        "assumptions": _list_of(_text),
    },
    required=("verdict", "num_groups", "by_group", "assumptions"),
)
_sample = _record(
    {"prompt": _text, "completions": _dict_of(_text), "utility": _by_name_twice}, required=("prompt", "completions")
)

FIELDS: dict[str, dict[str, _Check]] = {
    "reward": {
        "model": _text,
        "base_model": _text,
        "dataset": _dataset,
        "component_kind": _text,
        "num_components": _whole,
        "component_names": _list_of(_text),
        "em": _settings,
        "training": _settings,
        "curves": _curves,
        "mixing_weights": _list_of(_number),
        "shares": _by_name,
        "converged": _flag,
        "selection": _settings,
        "assignment_accuracy": _number,
        "adjusted_rand_index": _number,
        "heldout_accuracy": _by_name_twice,
        "component_annotators": _by_name,
        "component_pairs": _by_name,
        "component_heldout_accuracy": _by_name,
        "component_heldout_pairs": _by_name,
        "component_heldout_tau": _by_name,
        "evidence_weight": _number,
        "assignment_calibration": _settings,
        "calibration": _calibration,
    },
    "policy": {
        "name": _text,
        "algorithm": _text,
        "base_model": _text,
        "reward_model": _text,
        "component": _text,
        "dataset": _dataset,
        "welfare": _settings,
        "training": _settings,
        "calibration": _calibration,
        "curves": _curves,
    },
    "evaluation": {
        "dataset": _dataset,
        "groups": _list_of(_text),
        "majority": _text,
        "minority": _text,
        "num_prompts": _whole,
        "utility": _text,
        "gold_utility": _by_name_twice,
        "win_rate": _dict_of(_dict_of(_interval)),
        "metrics": _settings,
        "results": _results,
        "diagnostics": _diagnostics,
        "samples": _list_of(_sample),
    },
}
"""Stage -> field -> check. `em`, `welfare`, `training`, `selection`, `metrics` hold names and JSON values as given."""

_FILE: dict[str, _Check] = {
    "schema_version": _whole,
    "kind": _text,
    "seed": _whole,
    "versions": _dict_of(_text),
    "links": _record({"base_model": _hub_id, "mixture": _hub_id, "dataset": _hub_id, "components": _dict_of(_hub_id)}),
    **{stage: _record(fields) for stage, fields in FIELDS.items()},
}


def check_stage(stage: str, facts: dict[str, Any]) -> None:
    """Raises:
    ValueError: unknown fields, or values of the wrong kind.
    """
    _FILE[stage](facts, stage)


def check_file(facts: dict[str, Any]) -> None:
    """Raises:
    ValueError: no or an unsupported schema version, unknown fields, or values of the wrong kind.
    """
    version = facts.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"schema_version must be a whole number from 1 to {SCHEMA_VERSION}, got {version!r}")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {version} is newer than this package reads ({SCHEMA_VERSION}); upgrade trl-maxmin"
        )
    _record(_FILE)(facts, "run_record")
