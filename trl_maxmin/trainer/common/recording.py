# SPDX-License-Identifier: Apache-2.0
"""What trainers write into the run record. Nothing here talks to other ranks, and no annotator is named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...run_record import EM_SETTINGS, TRAINING_SETTINGS, welfare_settings


_CURVES = ("maxmin/", "objective/", "rewards/", "em/", "predictive_log_likelihood", "accuracy", "kl", "loss")


def recorded(name: str | None) -> str | None:
    """A model's or data set's name as it is recorded: whole where it lies on this machine, which later looks like an
    id on the Hub otherwise (`out/mixture`); what is published of the record holds its last part.

    Example:

    >>> recorded("org/model"), recorded(None)
    ('org/model', None)
    """
    if not name:
        return None
    parts = [part if not os.path.exists(part) else os.path.abspath(part) for part in name.split(",")]
    return ",".join(parts)


def training_settings(args: Any, names: Iterable[str] = TRAINING_SETTINGS) -> dict[str, Any]:
    """The settings that say how long and how fast was trained; what does not apply is absent.

    Args:
        args (`TrainingArguments`): of any trainer.
        names (`Iterable[str]`): which.

    Returns:
        `dict`: name -> number or text.
    """
    values = {name: getattr(args, name, None) for name in names}
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    if values.get("max_steps", 0) and values["max_steps"] > 0:
        values.pop("num_train_epochs", None)  # the number of steps decides
    else:
        values.pop("max_steps", None)
    return {name: value for name, value in values.items() if isinstance(value, int | float | str | list)}


def logged_curves(history: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Metric -> [step, value] points of a trainer's log; those of evaluations (`eval_...`) are left out.

    Example:

    >>> logged_curves([{"step": 1, "maxmin/gap": 0.5, "epoch": 0.1}, {"step": 2, "maxmin/gap": float("nan")}])
    {'maxmin/gap': [[1, 0.5]]}
    """
    curves: dict[str, list[list[float]]] = {}
    for entry in history:
        for name, value in entry.items():
            number = isinstance(value, int | float) and value == value and abs(value) != float("inf")
            if number and "step" in entry and name.startswith(_CURVES):
                curves.setdefault(name, []).append([entry["step"], value])
    return curves


def component_counts(trainer: Any) -> dict[str, dict[str, int]]:
    """Annotators, their shares, and training pairs of each component, by the annotators' most probable component.

    Args:
        trainer ([`MixtureRewardTrainer`])

    Returns:
        `dict`: fields of the record's `reward` stage.
    """
    names, state = trainer.mixture.component_names, trainer.em_state
    best = state.log_responsibilities.argmax(-1).cpu()
    annotators = torch.bincount(best, minlength=len(names)).tolist()
    pairs = torch.bincount(best[state.annotator_index.cpu()], minlength=len(names)).tolist()
    return {
        "component_annotators": dict(zip(names, annotators, strict=True)),
        "shares": {name: count / sum(annotators) for name, count in zip(names, annotators, strict=True)},
        "component_pairs": dict(zip(names, pairs, strict=True)),
    }


def component_heldout(
    trainer: Any, right: torch.Tensor, tau: torch.Tensor | None = None
) -> dict[str, dict[str, float]]:
    """How often each component is right on held-out rows of the annotators that their training rows gave to it.

    Args:
        trainer ([`MixtureRewardTrainer`])
        right (`torch.Tensor` of shape `(N, K)`): whether each component prefers what was preferred in the held-out
            pairs or rankings, see [`ScoredPairs`]; a tie counts in part.
        tau (`torch.Tensor` of shape `(N, K)`, *optional*): Kendall's tau of held-out rankings.

    Returns:
        `dict`: fields of the record's `reward` stage. Rows of annotators without training rows do not count; a
        component without held-out rows is absent.
    """
    annotators = torch.tensor(trainer.eval_dataset["annotator_index"])
    known = annotators >= 0
    best = trainer.em_state.log_responsibilities.argmax(-1).cpu()[annotators[known]]
    accuracy, pairs, agreement = {}, {}, {}
    for k, name in enumerate(trainer.mixture.component_names):
        rows = best == k
        if rows.any():
            accuracy[name] = right[known][rows, k].double().mean().item()
            pairs[name] = int(rows.sum())
            if tau is not None:
                agreement[name] = tau[known][rows, k].double().mean().item()
    found = {"component_heldout_accuracy": accuracy, "component_heldout_pairs": pairs}
    return found if tau is None else found | {"component_heldout_tau": agreement}


def reward_facts(trainer: Any) -> dict[str, Any]:
    """The `reward` stage of a [`MixtureRewardTrainer`]'s run.

    Args:
        trainer ([`MixtureRewardTrainer`]): after training, or in its midst.

    Returns:
        `dict`: fields for [`~trl_maxmin.run_record.RunRecord.update`].
    """
    mixture, args = trainer.mixture, trainer.args
    config = mixture.config
    names, weights = mixture.component_names, trainer.em_state.mixing_weights.tolist()
    em = {"kind": args.em} | training_settings(args, EM_SETTINGS)
    curves = logged_curves(trainer.state.log_history) | logged_curves(trainer.em_history)
    return {
        "base_model": recorded(getattr(config, "base_model_name_or_path", None) or config.base_config.name_or_path),
        "dataset": {"num_rows": len(trainer.train_dataset), "num_annotators": len(trainer.annotators)},
        "component_kind": config.component_type,
        "num_components": mixture.num_components,
        "component_names": names,
        "mixing_weights": weights,
        "em": em | trainer.fit_facts,
        "selection": trainer.selection.facts() if trainer.selection is not None else None,
        "training": training_settings(args),
        "curves": curves,
        "calibration": {"temperature": list(config.temperatures)} if args.calibrate_temperature else None,
        **component_counts(trainer),
        **trainer.final_facts,
    }


def policy_facts(trainer: Any, name: str, base_model: str | None) -> dict[str, Any]:
    """The `policy` stage of a policy trainer's run.

    Args:
        trainer: a policy trainer of this package.
        name (`str`): of the policy.
        base_model (`str`, *optional*): what training started from.

    Returns:
        `dict`: fields for [`~trl_maxmin.run_record.RunRecord.update`].
    """
    args = trainer.args
    welfare = {}
    if hasattr(args, "welfare"):
        names = welfare_settings(args.welfare, args.regret_rule)
        welfare = {"rule": args.welfare, **training_settings(args, names)}
        rule = getattr(trainer, "welfare", None)
        if rule is not None and rule.best is not None:
            welfare["best_utilities"] = rule.best.tolist()
        if rule is not None and not rule.enough.all():
            below = [name for name, enough in zip(rule.component_names, rule.enough, strict=True) if not enough]
            welfare["below_evidence_floor"] = ", ".join(below)
    utility = getattr(trainer, "utility", None)
    return {
        "name": name,
        "algorithm": trainer._name,
        "base_model": recorded(base_model),
        "reward_model": recorded(getattr(trainer, "reward_model_name", None)),
        "component": getattr(trainer, "reward_component", None),
        "dataset": {"num_rows": _length(trainer.train_dataset)},
        "welfare": welfare or None,
        "training": training_settings(args),
        "calibration": {"utility": utility} if isinstance(utility, str) else None,
        "curves": logged_curves(trainer.state.log_history),
    }


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:  # a stream
        return None
