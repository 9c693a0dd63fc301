# SPDX-License-Identifier: Apache-2.0
"""What a Space shows and how much it allows: from a folder of a run, a YAML file, environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


CONFIG_NAME = "space.yaml"
ENVIRONMENT = "TRL_MAXMIN_SPACE_"
"""Prefix of the environment variables: `TRL_MAXMIN_SPACE_MIXTURE`, ...; they win over the file."""

MAX_POLICIES = 4
_KNOWN_ORDER = ("reference", "single", "maxmin")
_MODEL_CONFIGS = ("config.json", "adapter_config.json")
_LISTS = ("prompts",)
_SOURCES = ("policies", "more_policies")


@dataclass
class SpaceConfig:
    """Settings of the Space.

    Args:
        run (`str`, *optional*): folder of a run, as `trl-maxmin demo` writes it. Policies, mixture, results and
            prompts that are not given below are taken from it.
        policies (`dict[str, str]`, *optional*): name -> folder or Hub id.
        more_policies (`dict[str, str]`, *optional*): the same, beside those above or those of the run.
        mixture (`str`, *optional*): folder or Hub id of the reward mixture. Without one, answers have no utilities.
        reference (`str`): name of the policy whose answers are the zero of the utilities.
        record (`str`, *optional*): folder, `.json` file or Hub id with a run record.
        prompts (`list[str]`, *optional*): prompts to pick from; default: those of the evaluation.
        title (`str`): of the page.
        max_prompt_characters (`int`): longer prompts are refused.
        max_new_tokens (`int`): longest answer that can be asked for, in tokens; the models' context may lower it.
        baseline_replies (`int`): answers of the reference policy to the visitor's prompt that set the zero of the
            utilities; 0 uses the mixture's stored mean.
        requests_per_minute (`int`): of one session.
        queue_size (`int`): comparisons that may wait, and votes that may; more are asked to come back.
        votes_dir (`str`): folder of the vote files; an empty text turns voting off.
        votes_dataset (`str`, *optional*): Hub dataset that votes are also sent to (needs a token in `HF_TOKEN`).
        votes_minutes (`float`): how often they are sent.
        votes_public (`bool`): visibility of that dataset if it has to be created.
        dtype (`str`, *optional*), device (`str`, *optional*): of the models; default: their own, and CUDA if present.
        chat_template_kwargs (`dict`, *optional*): what chat templates are given, as in the policies' training.

    Example:

    >>> SpaceConfig(policies={"reference": "gpt2"}, queue_size=0)
    Traceback (most recent call last):
        ...
    ValueError: queue_size must be at least 1, got 0.
    """

    run: str | None = None
    policies: dict[str, str] = field(default_factory=dict)
    more_policies: dict[str, str] = field(default_factory=dict)
    mixture: str | None = None
    reference: str = "reference"
    record: str | None = None
    prompts: list[str] = field(default_factory=list)
    title: str = "MaxMin-RLHF, group by group"
    max_prompt_characters: int = 1000
    max_new_tokens: int = 128
    baseline_replies: int = 8
    requests_per_minute: int = 60
    queue_size: int = 100
    votes_dir: str = "votes"
    votes_dataset: str | None = None
    votes_minutes: float = 5.0
    votes_public: bool = False
    dtype: str | None = None
    device: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("max_prompt_characters", 1),
            ("max_new_tokens", 1),
            ("baseline_replies", 0),
            ("requests_per_minute", 1),
            ("queue_size", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.votes_minutes <= 0:
            raise ValueError(f"votes_minutes must be above 0, got {self.votes_minutes}.")
        if self.votes_dataset and self.votes_dataset.count("/") != 1:
            raise ValueError(f"votes_dataset must be a full id such as me/votes, got {self.votes_dataset!r}.")
        if self.run:
            self._fill_from_run(Path(self.run))
        if taken := sorted(set(self.policies) & set(self.more_policies)):
            raise ValueError(f"more_policies names {taken} again, which are there already; give them other names.")
        self.policies = {**self.policies, **self.more_policies}

    def _fill_from_run(self, run: Path) -> None:
        if not run.is_dir():
            raise ValueError(
                f"There is no folder {str(run)!r}. Give the output folder of a run (`trl-maxmin demo` writes one), or "
                "name policies and mixture."
            )
        if not self.policies:
            found = [path.name for path in run.glob("policies/*") if any((path / n).is_file() for n in _MODEL_CONFIGS)]
            found.sort(key=lambda name: (_KNOWN_ORDER.index(name) if name in _KNOWN_ORDER else 9, name))
            self.policies = {name: str(run / "policies" / name) for name in found}
        if self.mixture is None and (run / "mixture" / "config.json").is_file():
            self.mixture = str(run / "mixture")
        if self.record is None:
            self.record = str(run)

    def check(self) -> SpaceConfig:
        """Whether there is something to show.

        Raises:
            ValueError: no policy, or more than one page can compare.
        """
        if not self.policies:
            where = f"{self.run} has no policies/<name>/config.json" if self.run else "no policies are named"
            raise ValueError(
                f"Nothing to show: {where}. Make a run with `trl-maxmin demo`, or name policies: --policies "
                "reference=FOLDER_OR_HUB_ID maxmin=FOLDER_OR_HUB_ID --mixture FOLDER_OR_HUB_ID."
            )
        return self

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None, **overrides: Any
    ) -> SpaceConfig:
        """Settings from a YAML file, over it environment variables, over them keyword arguments.

        Args:
            path (`str`, *optional*): YAML file; relative folders in it are relative to it.
            environ (`Mapping`, *optional*): default `os.environ`. `TRL_MAXMIN_SPACE_CONFIG` names a file;
                `TRL_MAXMIN_SPACE_POLICIES` is `name=source,name=source`.
            **overrides: fields; `None` is ignored.

        Raises:
            ValueError: an unknown field, a value of the wrong kind, or a file that is not such YAML.
            FileNotFoundError: there is no such file.
        """
        environ = os.environ if environ is None else environ
        path = path or environ.get(f"{ENVIRONMENT}CONFIG") or None
        values: dict[str, Any] = _read_yaml(Path(path)) if path else {}
        for name in _fields():
            if environ.get(f"{ENVIRONMENT}{name.upper()}"):
                values[name] = _from_text(name, environ[f"{ENVIRONMENT}{name.upper()}"])
        values |= {name: value for name, value in overrides.items() if value is not None}
        return cls(**_checked(values, str(path or "the settings of the Space")))


def _fields() -> dict[str, str]:
    return {entry.name: str(entry.type) for entry in fields(SpaceConfig)}


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `field: value` lines, got {type(values).__name__}.")
    values = _checked(values, str(path))
    here = path.parent

    def place(source: str | None) -> str | None:
        # A folder beside the file, or else a Hub id (or an absolute path) as it stands.
        return str(here / source) if source and (here / source).exists() else source

    for name in ("run", "mixture", "record"):
        if name in values:
            values[name] = place(values[name])
    for name in _SOURCES:
        if name in values:
            values[name] = {policy: place(source) for policy, source in values[name].items()}
    return values


def _from_text(name: str, text: str) -> Any:
    kind = _fields()[name]
    try:
        if name in _SOURCES:
            return parse_policies(text.split(","))
        if name in _LISTS:
            return [line.strip() for line in text.splitlines() if line.strip()]
        if kind == "bool":
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        return {"int": int, "float": float}.get(kind, str)(text)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{ENVIRONMENT}{name.upper()}={text!r} is no {kind}.") from error


def parse_policies(words: list[str]) -> dict[str, str]:
    """`NAME=SOURCE`, or a source alone, which is then named by its last part.

    Raises:
        ValueError: an empty or repeated name.

    Example:

    >>> parse_policies(["reference=runs/a", "me/maxmin"])
    {'reference': 'runs/a', 'maxmin': 'me/maxmin'}
    """
    policies: dict[str, str] = {}
    for word in (word.strip() for word in words if word.strip()):
        name, _, source = word.partition("=") if "=" in word else (Path(word).name, "", word)
        if not name or not source or name in policies:
            raise ValueError(f"The policy {word!r} needs a name of its own and a source: NAME=FOLDER_OR_HUB_ID.")
        policies[name] = source
    return policies


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = _fields()
    if unknown := sorted(set(map(str, values)) - set(known)):
        raise ValueError(f"{where} has the unknown fields {unknown}; known fields: {', '.join(known)}.")
    result = {}
    for name, value in values.items():
        if value is None:
            continue
        kind = known[name].split(" |")[0]
        allowed = {"int": int, "float": (int, float), "bool": bool, "str": str}.get(kind.split("[")[0])
        if name in _SOURCES:
            if isinstance(value, list):
                value = parse_policies(value)
            good = isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair)
        elif name in _LISTS:
            good = isinstance(value, list) and all(isinstance(part, str) for part in value)
        else:
            good = isinstance(value, allowed) and (kind == "bool" or not isinstance(value, bool))
        if not good:
            raise ValueError(f"{where}: {name} must be of the kind {known[name]}, got {value!r}.")
        result[name] = value
    return result
