# SPDX-License-Identifier: Apache-2.0
"""What of a run record may be published, field by field, and which part of it goes with which repository.

A field that is not named here stays on this machine, and so does a setting that is not named here.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any


#: What a public record is of: a repository's part of the run, or the whole run (the Space shows it).
PARTS = ("component", "mixture", "policy", "dataset", "run")

#: Settings by name: trainers record these, and these are published.
TRAINING_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "num_ppo_epochs",
    "num_mini_batches",
    "num_generations",
    "kl_coef",
    "beta",
    "temperature",
    "response_length",
    "max_completion_length",
)
EM_SETTINGS = (
    "kind",
    "chosen_prior_scale",
    "num_starts",
    "num_partitions",
    "n_init",
    "init_steps",
    "annealing_start",
    "annealing_steps",
    "e_step_interval",
    "e_step_scores",
    "dirichlet_concentration",
    "heldout_fraction",
)
#: Of every rule, then of one rule only.
WELFARE_SETTINGS: dict[str, tuple[str, ...]] = {
    "": (
        *("welfare_window", "welfare_floor", "min_group_annotators", "min_group_share", "min_group_pairs"),
        "below_evidence_floor",
    ),
    "softmin": ("welfare_temperature",),
    "mirror": ("welfare_step_size", "welfare_step_schedule"),
    "nash": ("disagreement_point",),
    "pmean": ("welfare_power", "disagreement_point"),
    "gini": ("welfare_order_weights",),
    "leximin": ("leximin_delta",),
    "regret": ("regret_rule", "best_utilities"),
}
_SELECTION = ("mean", "difference", "standard_error", "accuracy", "best", "num_pairs", "num_annotators", "verdict")
_SELECTION += ("gain", "gain_error", "prior_scale", "verdict_kind")
_CURVES = ("maxmin", "objective", "rewards", "em", "kl", "loss", "accuracy", "predictive_log_likelihood")
_PACKAGES: tuple[str, ...] = ("python", "trl_maxmin", "torch", "transformers", "trl", "accelerate", "peft", "datasets")
_PACKAGES += ("huggingface_hub",)

_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{8,}")
# A word that begins as paths and addresses do; a lone slash is none.
_PATH = re.compile(r"(?<![^\s'\"`(=,;])(?:[A-Za-z][\w+.-]*:[/\\]|~|\.{0,2}[/\\])[^\s'\"`,;)]*\w[^\s'\"`,;)]*")
_HOMES = ("home", "users")

_Public = Callable[[Any], Any]


def without_secrets(value: Any) -> Any:
    """The value with the tokens in its texts and names masked.

    Example:

    >>> without_secrets({"note": "pushed with hf_abcdefgh1234"})
    {'note': 'pushed with hf_***'}
    """
    if isinstance(value, dict):
        return {without_secrets(key): without_secrets(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_secrets(entry) for entry in value]
    return _TOKEN.sub(r"\1***", value) if isinstance(value, str) else value


def _last(path: str) -> str | None:
    """`./name` of what lies on this machine; nothing where that is the name of a person."""
    parts = [part for part in re.split(r"[/\\]+", path) if part not in ("", ".", "..") and not part.endswith(":")]
    is_home = bool(parts) and (parts[-1].startswith("~") or parts == ["root"])
    if not parts or is_home or (len(parts) > 1 and parts[-2].lower() in _HOMES):
        return None
    return f"./{parts[-1]}"


def _place(name: str, here: bool) -> str | None:
    """Name of a model or data set: as it is on the Hub, `./name` of what lies on this machine.

    Args:
        name (`str`): an id or a path; several with commas between them.
        here (`bool`): whether a name like `out/model` may be a folder of this machine.
    """
    if "," in name:
        return ",".join(filter(None, (_place(part.strip(), here) for part in name.split(",")))) or None
    local = _PATH.match(name) or "\\" in name or name.count("/") > 1 or name.startswith((".", "~"))
    if local or (here and "/" in name and os.path.exists(name)):
        return _last(name)
    return name


def _text(value: Any) -> Any:
    """A sentence without the paths in it."""
    return _PATH.sub(lambda match: _last(match[0]) or "...", value) if isinstance(value, str) else value


def _same(value: Any) -> Any:
    return value


def _each(item: _Public) -> _Public:
    def public(value: Any) -> Any:
        return [item(entry) for entry in value]

    return public


def _named(item: _Public) -> _Public:
    """Of an object whose keys are names of groups, components or policies."""

    def public(value: Any) -> Any:
        return {key: item(entry) for key, entry in value.items()}

    return public


def _fields(fields: Mapping[str, Any]) -> _Public:
    def public(value: Any) -> Any:
        found = {key: fields[key](entry) for key, entry in value.items() if key in fields}
        return {key: entry for key, entry in found.items() if entry is not None}

    return public


def _all(names: Iterable[str], item: _Public = _same) -> dict[str, _Public]:
    return dict.fromkeys(names, item)


def _setting(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list) and all(isinstance(entry, int | float) for entry in value):
        return value
    return value if isinstance(value, bool | int | float) else None


def _numbers(value: Any) -> Any:
    """What is numbers, at any depth; texts and the names of texts are left out."""
    if isinstance(value, Mapping):
        found = {key: _numbers(entry) for key, entry in value.items()}
        return {key: entry for key, entry in found.items() if entry is not None}
    return value if isinstance(value, int | float) else None


def _curves(value: Any) -> Any:
    return {name: points for name, points in value.items() if name.split("/")[0] in _CURVES}


def _welfare(value: Any) -> Any:
    return _fields(_all(("rule", *welfare_settings(value.get("rule"), value.get("regret_rule"))), _setting))(value)


def welfare_settings(rule: Any, regret_rule: Any = None) -> tuple[str, ...]:
    """Names of the settings that decide under a rule; of `"regret"` also those of the rule that it hands regrets to.

    Example:

    >>> welfare_settings("regret", "softmin")[-3:]
    ('regret_rule', 'best_utilities', 'welfare_temperature')
    """
    rules = ["", rule, *([regret_rule] if rule == "regret" else [])]
    return tuple(name for key in rules if isinstance(key, str) for name in WELFARE_SETTINGS.get(key, ()))


def _assignment_calibration(value: Any) -> Any:
    """Numbers, and the curve, whose bins are numbers."""
    curve = [_numbers(entry) for entry in value.get("curve", []) if isinstance(entry, Mapping)]
    return _numbers({name: entry for name, entry in value.items() if name != "curve"}) | {"curve": curve}


@functools.cache
def _public_fields(here: bool) -> dict[str, _Public]:
    """Stage -> what of it is public."""
    place = functools.partial(_place, here=here)
    dataset = _fields(
        {"name": place, "config": _text, "split": _text, "revision": _text}
        | _all(("num_rows", "num_annotators", "num_prompts", "rows_dropped"))
    )
    named: dict[str, _Public] = {"utility": _text, "reference_policy": place}
    calibration = _fields(named | _all(("temperature", "shift", "scale", "num_prompts", "completions_per_prompt")))
    policy = _fields(
        _all(("by_group", "aggregates", "worst_group")) | {"replies": _numbers}  # checked by the record's schema
    )
    results = _fields(
        _all(("format_version", "reference", "groups", "weights", "num_prompts", "num_replies", "differences"))
        | {"policies": _named(policy), "interval": _numbers, "judges": _numbers, "below_evidence_floor": _same}
    )
    diagnostics = _fields(
        {"dataset": dataset, "verdict": _text, "features": _text, "assumptions": _each(_text)}
        | {"verdict_kind": _text, "evidence": _text, "unit": _text}
        | _all(("num_groups", "known", "num_pairs", "num_annotators", "num_prompts", "feature_bound", "beta"))
        | _all(("epsilon", "diversity", "selection", "by_group", "predicted_order", "measured_order", "curves"))
        | {"assignment_calibration": _assignment_calibration, "below_evidence_floor": _same}
    )
    by_component = ("component_annotators", "component_pairs") + tuple(
        f"component_heldout_{name}" for name in ("accuracy", "pairs", "tau")
    )
    reward = _fields(
        {"model": place, "base_model": place, "dataset": dataset, "calibration": calibration, "curves": _curves}
        | {"em": _fields(_all(EM_SETTINGS, _setting)), "training": _fields(_all(TRAINING_SETTINGS, _setting))}
        | {
            "selection": _fields(_all(_SELECTION, _numbers) | {"verdict": _text, "verdict_kind": _text}),
            "component_kind": _text,
        }
        | _all(("num_components", "component_names", "mixing_weights", "shares", "converged", "heldout_accuracy"))
        | _all(("assignment_accuracy", "adjusted_rand_index", "evidence_weight", *by_component))
        | {"assignment_calibration": _assignment_calibration}
    )
    trained = _fields(
        {"name": _same, "algorithm": _text, "base_model": place, "reward_model": place, "dataset": dataset}
        | {"component": _text, "welfare": _welfare, "training": _fields(_all(TRAINING_SETTINGS, _setting))}
        | {"calibration": calibration, "curves": _curves}
    )
    evaluation = _fields(
        {"dataset": dataset, "utility": _text, "results": results, "diagnostics": diagnostics}
        | _all(("groups", "majority", "minority", "num_prompts", "gold_utility", "win_rate", "samples"))
    )
    return {"reward": reward, "policy": trained, "evaluation": evaluation}


def _of_component(reward: dict[str, Any], name: str) -> dict[str, Any]:
    """Of what is known by component only what is known of this one; how many there are, and their names, stay."""
    reward.pop("heldout_accuracy", None)  # by known group, of the mixture
    if "curves" in reward:
        reward["curves"] = {key: points for key, points in reward["curves"].items() if key == "em/lower_bound"}
    for field in [field for field in reward if field == "shares" or field.startswith("component_")]:
        if isinstance(reward[field], dict):
            reward[field] = {key: value for key, value in reward[field].items() if key == name}
    return reward


def public_facts(facts: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    """What of a record, as `RunRecord.to_dict` gives it, goes with a repository. See [`RunRecord.part`]."""
    if kind not in PARTS:
        raise ValueError(f"unknown part {kind!r} of the run record; parts: {list(PARTS)}")
    here = "kind" not in facts  # a part has been cut already, maybe on another machine
    stages = {stage: public(facts.get(stage, {})) for stage, public in _public_fields(here).items()}
    diagnostics = stages["evaluation"].get("diagnostics")
    if kind in ("policy", "dataset"):
        stages["reward"] = {}
        stages["evaluation"].pop("diagnostics", None)
    if kind in ("mixture", "component"):
        stages["policy"] = {}
        stages["evaluation"] = {"diagnostics": diagnostics} if diagnostics and kind == "mixture" else {}
    if kind == "component":
        stages["reward"] = _of_component(stages["reward"], name)
    if kind == "dataset":
        stages["policy"] = {}
    versions = {
        package: version
        for package, version in facts.get("versions", {}).items()
        if package in _PACKAGES and re.fullmatch(r"[\w.+!-]{1,64}", version)
    }
    kept = {key: facts[key] for key in ("schema_version", "seed", "links") if key in facts}
    return without_secrets(kept | {"kind": kind, "versions": versions} | stages)
