# SPDX-License-Identifier: Apache-2.0
"""The run record: one JSON file that says what was trained on what, and what came out for every group.

Trainers and evaluation write it; cards, figures, the Space and `push` read it and nothing else. A fact that is not
known is absent: it is never null and never a guess.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..reading import read_json
from .fields import FIELDS, SCHEMA_VERSION, STAGES, check_file, check_stage
from .parts import public_facts


RUN_RECORD_NAME = "run_record.json"
_PACKAGES = ("trl_maxmin", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "huggingface_hub")


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
        kind (`str`, *optional*): of a published part, one of `PARTS`; absent of a whole run on this machine.
        links (`dict`): of a published part, the repositories that its card names: `base_model`, `mixture`, `dataset`,
            `components` (name -> id).

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
    kind: str | None = None
    links: dict[str, Any] = field(default_factory=dict)

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
        check_stage(stage, merged)
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
        facts = {"schema_version": SCHEMA_VERSION, "kind": self.kind, "seed": self.seed, "versions": self.versions}
        facts |= {"links": self.links}
        facts |= {stage: getattr(self, stage) for stage in STAGES}
        return {key: value for key, value in facts.items() if not _is_unknown(value) and value != {}}

    def part(self, kind: str, name: str = "") -> RunRecord:
        """What is published of this record, with one repository or (`"run"`) with the Space.

        A mixture gets the reward stage and the diagnosis of the preferences, a component what of the reward stage
        concerns it, a policy its own stage and the evaluation, a data set the evaluation. Fields and settings are
        those of a list: annotators, posteriors, paths and tokens are in no part. What lies on this machine is called
        `./name`.

        Args:
            kind (`str`): one of `PARTS`.
            name (`str`): of the component.

        Returns:
            `RunRecord`: a copy. The part of a part is the same again.

        Raises:
            ValueError: an unknown part.

        Example:

        >>> record = RunRecord().update("reward", base_model="/home/ann/gpt", dataset={"annotators_lost": ["bob"]})
        >>> record.part("mixture").reward
        {'base_model': './gpt', 'dataset': {}}
        """
        return RunRecord.from_dict(copy.deepcopy(public_facts(self.to_dict(), kind, name)))

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
            facts = read_json(path, parse_constant=_refuse_constant)
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
    check_file(facts)
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
