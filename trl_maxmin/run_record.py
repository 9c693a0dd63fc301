# SPDX-License-Identifier: Apache-2.0
"""The run record: one JSON file that says what was trained on what, and what came out for every group.

Trainers and evaluation write it; cards, figures, the Space and `push` read it and nothing else. A fact that is not
known is absent: it is never null and never a guess.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


SCHEMA_VERSION = 1
RUN_RECORD_NAME = "run_record.json"
STAGES = ("reward", "policy", "evaluation")
_PACKAGES = ("trl_maxmin", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "huggingface_hub")


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
        "evidence_weight": _number,
        "assignment_calibration": _settings,
        "calibration": _calibration,
    },
    "policy": {
        "name": _text,
        "algorithm": _text,
        "base_model": _text,
        "reward_model": _text,
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


def _is_unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any, where: str) -> Any:
    """The value in JSON's types; unknown facts (None, NaN) are left out of objects and refused in lists."""
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        value = value.tolist()
    if isinstance(value, Mapping):
        plain = {str(key): _plain(entry, f"{where}.{key}") for key, entry in value.items()}
        return {key: entry for key, entry in plain.items() if not _is_unknown(entry)}
    if isinstance(value, list | tuple):
        entries = [_plain(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
        if any(_is_unknown(entry) for entry in entries):
            raise ValueError(f"{where} holds None or NaN; a list has no absent places, so leave it out: {value!r}")
        return entries
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{where} is {value!r}, which JSON cannot hold; leave it out or clip it")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ValueError(f"{where} must be text, a number, true or false, a list or an object, not {type(value).__name__}")


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new` laid over `old`: objects are merged, everything else is replaced."""
    merged = dict(old)
    for key, value in new.items():
        both_objects = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_objects else value
    return merged


@dataclass
class RunRecord:
    """What was trained on what, and what came out, in three stages that are filled as they happen.

    Args:
        seed (`int`, *optional*): seed of the run.
        versions (`dict[str, str]`, *optional*): package -> version; [`~RunRecord.installed_versions`] gives those of
            this environment.
        reward (`dict`), policy (`dict`), evaluation (`dict`): The stages; their fields are in `FIELDS`. Use
            [`~RunRecord.update`] to fill them.

    Example:

    >>> import tempfile
    >>> record = RunRecord(seed=0).update("reward", num_components=2, mixing_weights=[0.8, 0.2], converged=None)
    >>> record = record.update("reward", curves={"lower_bound": [[20, -310.5]]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = record.save(folder)
    ...     RunRecord.load(folder).reward
    {'num_components': 2, 'mixing_weights': [0.8, 0.2], 'curves': {'lower_bound': [[20, -310.5]]}}
    """

    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def installed_versions() -> dict[str, str]:
        """Versions of Python, this package and the packages it stands on; what is not installed is absent."""
        versions = {"python": platform.python_version()}
        for package in _PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return versions

    def _stage(self, stage: str) -> dict[str, Any]:
        if stage not in STAGES:
            raise ValueError(f"unknown stage {stage!r} of the run record; stages: {list(STAGES)}")
        return getattr(self, stage)

    def update(self, stage: str, **facts: Any) -> RunRecord:
        """Add facts to a stage: objects are merged with what is there, other values replace it.

        Tensors and arrays become lists. Facts that are None or NaN are unknown and stay absent.

        Args:
            stage (`str`): `"reward"`, `"policy"` or `"evaluation"`.
            **facts: Fields of that stage.

        Returns:
            `RunRecord`: itself.

        Raises:
            ValueError: an unknown stage or field, or a value of the wrong kind; the record is then unchanged.
        """
        current = self._stage(stage)
        plain = {name: _plain(value, f"{stage}.{name}") for name, value in facts.items()}
        merged = _merge(current, {name: value for name, value in plain.items() if not _is_unknown(value)})
        if unknown := sorted(set(facts) - set(FIELDS[stage])):
            raise ValueError(f"{stage} has the unknown fields {unknown}; known fields: {sorted(FIELDS[stage])}")
        _record(FIELDS[stage])(merged, stage)
        setattr(self, stage, merged)
        return self

    def replace(self, stage: str, **facts: Any) -> RunRecord:
        """Set fields of a stage anew: unlike in [`~RunRecord.update`], nothing of a field's old value stays.

        For results, where a policy or group of an earlier measurement would otherwise stand beside the new ones.

        Args:
            stage (`str`): `"reward"`, `"policy"` or `"evaluation"`.
            **facts: Fields of that stage; None removes the field.

        Returns:
            `RunRecord`: itself.

        Raises:
            ValueError: as [`~RunRecord.update`]; the record is then unchanged.
        """
        before = self._stage(stage)
        setattr(self, stage, {name: value for name, value in before.items() if name not in facts})
        try:
            return self.update(stage, **facts)
        except ValueError:
            setattr(self, stage, before)
            raise

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types; empty stages are absent."""
        facts = {"schema_version": SCHEMA_VERSION, "seed": self.seed, "versions": self.versions}
        facts |= {stage: getattr(self, stage) for stage in STAGES}
        return {key: value for key, value in facts.items() if not _is_unknown(value) and value != {}}

    def validate(self) -> RunRecord:
        """Check every stage; for records whose stages were filled by hand.

        Raises:
            ValueError: naming the field, the value and what is allowed.
        """
        _check_file(self.to_dict())
        return self

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> RunRecord:
        """The record that [`~RunRecord.to_dict`] made.

        Raises:
            ValueError: no or an unsupported schema version, unknown fields, or values of the wrong kind.
        """
        facts = dict(facts)
        _check_file(facts)
        facts.pop("schema_version")
        return cls(**facts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record; a reader sees the old file or the new one, never half of one.

        Args:
            path (`str` or `os.PathLike`): A folder (created if missing; the file is then `run_record.json` in it) or a
                file ending in `.json`.

        Raises:
            ValueError: the record is not valid; nothing is written.
        """
        text = json.dumps(self.validate().to_dict(), indent=2, allow_nan=False) + "\n"
        path = _file_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, for only there is the replacement atomic; with the process id, so that two do not meet.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunRecord:
        """Read a record from a folder or a file.

        Raises:
            FileNotFoundError: there is no record.
            ValueError: the file is not JSON, or not a valid record of a supported schema.
        """
        path = _file_path(path)
        try:
            facts = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
            if not isinstance(facts, dict):
                raise ValueError(f"must be an object, got {type(facts).__name__}")
            return cls.from_dict(facts)
        except ValueError as error:
            raise ValueError(f"{path} is not a valid run record: {error}") from error

    @classmethod
    def update_file(
        cls, path: str | os.PathLike[str], stage: str, *, replace: bool = False, **facts: Any
    ) -> RunRecord:
        """Load the record at `path` (a new one if there is none), add facts to a stage, and save it.

        Args:
            path (`str` or `os.PathLike`): as in [`~RunRecord.save`].
            stage (`str`): `"reward"`, `"policy"` or `"evaluation"`.
            replace (`bool`): set the fields anew ([`~RunRecord.replace`]) instead of merging them
                ([`~RunRecord.update`]).
            **facts: Fields of that stage.

        Raises:
            ValueError: as [`~RunRecord.load`] and [`~RunRecord.update`].
        """
        record = cls.load(path) if _file_path(path).exists() else cls(versions=cls.installed_versions())
        (record.replace if replace else record.update)(stage, **facts).save(path)
        return record


def _check_file(facts: dict[str, Any]) -> None:
    version = facts.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"schema_version must be a whole number from 1 to {SCHEMA_VERSION}, got {version!r}")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {version} is newer than this package reads ({SCHEMA_VERSION}); upgrade trl-maxmin"
        )
    stages = {stage: _record(FIELDS[stage]) for stage in STAGES}
    _record({"schema_version": _whole, "seed": _whole, "versions": _dict_of(_text), **stages})(facts, "run_record")
    _no_unknown(facts, "run_record")


def _no_unknown(value: Any, where: str) -> None:
    if _is_unknown(value):
        raise ValueError(f"{where} is {value!r}: an unknown fact must be absent")
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        _no_unknown(entry, f"{where}.{key}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _file_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" else path / RUN_RECORD_NAME
