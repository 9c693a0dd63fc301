# SPDX-License-Identifier: Apache-2.0
"""Whose rewards count: the utilities of a rollout in, weights of the groups out, and what a rule has to remember."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...functional.group_floor import has_evidence, required_annotators
from ...functional.ordered_welfare import gini_weights
from ...functional.oscillation import switching_stalls
from ...functional.welfare import sample_min, welfare_weights
from ...reading import read_json_object
from ..scoring.batch import RewardSource
from .maxmin_config import WelfareConfigMixin


logger = logging.getLogger(__name__)

WELFARE_STATE_FILE = "welfare_state.json"


@dataclass
class WelfareState:
    """What a welfare rule remembers between rollouts. Tensors are float64 of shape `(K,)`, on the CPU.

    Attributes:
        step (`int`): Training rollouts that have decided weights so far.
        weights (`torch.Tensor`): The weights before, on the simplex. A component that went unscored keeps its weight
            here, so that it can come back.
        utility_average (`torch.Tensor`): Exponential average of the group utilities; NaN for a component never scored.
        cumulative_weights (`torch.Tensor`): Sum of the weights over the steps; by `step` the averaged iterate of
            `"mirror"`.
        recent (`list`): For hard switching, of the last rollouts: the worst-off component, its utility, the gap to
            the best-off one, and the standard error of the gap.
    """

    step: int
    weights: torch.Tensor
    utility_average: torch.Tensor
    cumulative_weights: torch.Tensor
    recent: list[list[float]] = field(default_factory=list)

    @classmethod
    def initial(cls, weights: torch.Tensor) -> WelfareState:
        """The state before the first rollout.

        Args:
            weights (`torch.Tensor` of shape `(K,)`): On the simplex.

        Example:

        ```python
        >>> import torch
        >>> WelfareState.initial(torch.tensor([0.5, 0.5])).state_dict()["utility_average"]
        [None, None]

        ```
        """
        weights = weights.double().cpu()
        return cls(0, weights, torch.full_like(weights, torch.nan), torch.zeros_like(weights))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, NaN as None: valid JSON that keeps every digit."""
        tensors = {
            name: [None if math.isnan(value) else value for value in getattr(self, name).tolist()]
            for name in ("weights", "utility_average", "cumulative_weights")
        }
        return {"step": self.step, **tensors, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what [`~WelfareState.state_dict`] gave.

        Args:
            state (`dict`): As `state_dict` returns it.

        Raises:
            `ValueError`: A state of another number of components.
        """
        if len(state["weights"]) != len(self.weights):
            raise ValueError(
                f"The welfare state is of {len(state['weights'])} components, but this run has {len(self.weights)}; "
                "resume with the same rewards, or start anew."
            )
        self.step = int(state["step"])
        for name in ("weights", "utility_average", "cumulative_weights"):
            values = [math.nan if value is None else value for value in state[name]]
            setattr(self, name, torch.tensor(values, dtype=torch.float64))
        self.recent = [list(entry) for entry in state.get("recent", [])]


def check_welfare(
    args: WelfareConfigMixin, component_names: Sequence[str], mixing_weights: Any = None, has_function: bool = False
) -> None:
    """Refuse settings that the number of components rules out, before a model is loaded.

    Args:
        args ([`WelfareConfigMixin`]): settings.
        component_names (`list[str]`): K names.
        mixing_weights (*optional*): K shares, where they are known.
        has_function (`bool`): whether a rule of the user's own takes the place of `args.welfare`.

    Raises:
        `ValueError`: `"mixing"` without mixing weights, a list of the wrong length or with numbers that make no sense,
            or a floor above `1 / K`.
    """
    size = len(component_names)
    if args.welfare == "mixing" and not has_function and mixing_weights is None:
        raise ValueError(
            "`welfare` is 'mixing', but the rewards carry no mixing weights; pass a `MixtureRewardModel`, or use "
            "'utilitarian'."
        )
    lists = {name: getattr(args, name) for name in ("disagreement_point", "welfare_order_weights", "best_utilities")}
    for name, values in ({"mixing_weights": mixing_weights} | lists).items():
        if values is not None and len(values) != size:
            raise ValueError(
                f"`{name}` has {len(values)} entries, but there are {size} components: {list(component_names)}."
            )
    for name in ("disagreement_point", "best_utilities"):
        if lists[name] is not None and not all(map(math.isfinite, lists[name])):
            raise ValueError(f"`{name}` is {lists[name]}, but needs {size} finite numbers.")
    if lists["welfare_order_weights"] is not None:
        gini_weights(torch.zeros(size), lists["welfare_order_weights"])
    if args.welfare_floor > 1.0 / size:
        raise ValueError(
            f"`welfare_floor` is {args.welfare_floor}, but {size} components allow at most {1.0 / size:.4g}."
        )


def groups_with_evidence(args: WelfareConfigMixin, source: RewardSource) -> torch.Tensor | None:
    """Which columns of rewards stand on people and pairs enough to be the worst-off group; the others are named.

    Args:
        args ([`WelfareConfigMixin`]): the floor.
        source ([`RewardSource`]): the rewards.

    Returns:
        `torch.Tensor` of shape `(K,)`, boolean; `None` where nothing is known, as of rewards that no annotators stand
        behind.
    """
    if source.counts_missing and len(source.names) > 1:
        logger.warning(
            "The mixture does not say on how many annotators and pairs each component stands (it was fitted before "
            "that was recorded), so the floor for what is not known (`min_group_annotators`, `min_group_pairs`) is "
            "not applied. Fit it again, or set `config.component_annotators` and `config.component_pairs`."
        )
    people, pairs = source.num_annotators, source.num_pairs
    floor = {"min_annotators": args.min_group_annotators, "min_share": args.min_group_share}
    enough = has_evidence(people, pairs, **floor, min_pairs=args.min_group_pairs)
    if enough is None or enough.all():
        return enough
    needed = required_annotators(sum(people), **floor) if people else None
    for k, name in enumerate(source.names):
        if not enough[k]:
            has = [f"{counts[k]} {what}" for counts, what in ((people, "annotators"), (pairs, "pairs")) if counts]
            logger.warning(
                "%s stands on %s, below the floor of %s annotators and %d pairs: it is scored and logged, but may not "
                "be the worst-off group. Collect more of its preferences, or lower `min_group_annotators`, "
                "`min_group_share`, `min_group_pairs`.",
                *(name, " and ".join(has), needed or "any number of", args.min_group_pairs),
            )
    return enough


class Welfare:
    """A welfare rule at work. It knows no trainer and no other rank: what it is given is gathered already.

    Args:
        args ([`WelfareConfigMixin`]): settings.
        component_names (`list[str]`): K names, in the order of the columns.
        mixing_weights (`torch.Tensor` of shape `(K,)`, *optional*): share of annotators behind each component, for
            `"mixing"`.
        function (`Callable`, *optional*): a rule of the user's own in place of `args.welfare`: utilities `(K,)` to
            scores `(K,)`.
        enough (`torch.Tensor` of shape `(K,)`, boolean, *optional*): components that may be the worst-off group, from
            [`groups_with_evidence`]; the others have weight 0 under every rule but `"mixing"`. Default: all.

    Attributes:
        weights (`torch.Tensor` of shape `(K,)`): in use, float32, on the simplex; no group is preferred at first.
        state ([`WelfareState`]): what goes into a checkpoint.
        best (`torch.Tensor` of shape `(K,)` or `None`): float64; utilities of the groups under their own best
            policies, for `"regret"`: those of `args.best_utilities`, or set by who measured them.

    Raises:
        `ValueError`: as [`check_welfare`].

    Example:

    ```python
    >>> import torch
    >>> welfare = Welfare(WelfareConfigMixin(), ["short", "kind"])
    >>> welfare.update(torch.tensor([0.5, 0.4]))
    >>> welfare.weights
    tensor([0., 1.])

    ```
    """

    def __init__(
        self,
        args: WelfareConfigMixin,
        component_names: Sequence[str],
        mixing_weights: torch.Tensor | Sequence[float] | None = None,
        function: Callable[[torch.Tensor], torch.Tensor] | None = None,
        enough: torch.Tensor | None = None,
    ) -> None:
        size = len(component_names)
        check_welfare(args, component_names, mixing_weights, function is not None)
        self.args = args
        self.component_names = list(component_names)
        self.rule = args.welfare if function is None else function
        self._mixing_weights = None if mixing_weights is None else torch.as_tensor(mixing_weights, dtype=torch.float64)
        everybody = enough is None or self.rule == "mixing"
        self.enough = torch.ones(size, dtype=torch.bool) if everybody else enough
        start = self.enough / self.enough.sum() if self.rule != "mixing" else self._mixing_weights
        self.state = WelfareState.initial(start)
        self.weights = self.state.weights.float()
        self._oscillation_said = False
        given = args.best_utilities if self.rule == "regret" else None
        self.best = None if given is None else torch.tensor(given, dtype=torch.float64)

    @property
    def needs_best(self) -> bool:
        """Whether somebody has to measure what each group's own best policy would give it, for `"regret"`."""
        return self.rule == "regret" and self.args.best_utilities is None

    def update(self, group_utilities: torch.Tensor) -> None:
        """Decide the weights from one training rollout.

        Args:
            group_utilities (`torch.Tensor` of shape `(K,)`): means over the replies of all ranks; NaN where nothing
                was scored.
        """
        state, scored = self.state, ~group_utilities.isnan()
        if not (scored & self.enough).any():
            logger.warning("No reward scored any reply of this rollout; the group weights stay as they were.")
            return
        state.utility_average = self._averaged(group_utilities)
        # A component that nothing was scored for gets no weight now, whatever its average: its rows would be lost.
        utilities = torch.where(scored & self.enough, state.utility_average, torch.nan)
        if self.rule == "sample_min":
            weights = torch.full_like(utilities, 1.0 / len(utilities))
        else:
            point = self.args.disagreement_point
            falls = self.args.welfare_step_schedule == "inverse_sqrt"
            weights = welfare_weights(
                self.rule,
                utilities,
                tau=self.args.welfare_temperature,
                eta=self.args.welfare_step_size / (math.sqrt(state.step + 1) if falls else 1.0),
                previous=state.weights,
                mixing_weights=self._mixing_weights,
                disagreement=None if point is None else torch.tensor(point, dtype=utilities.dtype),
                power=self.args.welfare_power,
                order_weights=self.args.welfare_order_weights,
                delta=self.args.leximin_delta,
                best=self.best,
                regret_rule=self.args.regret_rule,
                floor=self.args.welfare_floor,
            )
        kept = torch.where(scored, 0.0, state.weights)
        state.weights = kept + (1.0 - kept.sum()) * weights
        state.cumulative_weights = state.cumulative_weights + weights
        state.step += 1
        self.weights = weights.float()

    def _averaged(self, group_utilities: torch.Tensor) -> torch.Tensor:
        """Exponential average with the span `welfare_window`; a component without a score keeps its average."""
        previous = self.state.utility_average
        rate = 2.0 / (self.args.welfare_window + 1.0)
        moved = (1.0 - rate) * previous + rate * group_utilities
        moved = torch.where(previous.isnan(), group_utilities, moved)
        return torch.where(group_utilities.isnan(), previous, moved)

    def goes_in_circles(self, utilities: torch.Tensor, group_utilities: torch.Tensor) -> bool:
        """Say (once) when hard switching oscillates, after [`~Welfare.update`].

        Args:
            utilities (`torch.Tensor` of shape `(N, K)`): of all ranks, so that all ranks decide alike.
            group_utilities (`torch.Tensor` of shape `(K,)`): their means.

        Returns:
            `bool`: whether training is to stop, as `oscillation="stop"` asks.
        """
        among = self.enough.nonzero().flatten()
        if self.rule != "maxmin" or self.args.oscillation == "ignore" or len(among) < 2:
            return False
        if group_utilities[among].isnan().any():
            return False
        low, high = int(among[group_utilities[among].argmin()]), int(among[group_utilities[among].argmax()])
        difference = (utilities[:, high] - utilities[:, low]).detach().double()
        difference = difference[~difference.isnan()]
        error = (difference.var(unbiased=False) / max(len(difference), 1)).sqrt().item()
        gap = (group_utilities[high] - group_utilities[low]).item()
        recent = self.state.recent
        recent.append([int(self.weights.argmax()), group_utilities[low].item(), gap, error])
        del recent[: -self.args.oscillation_window]
        if len(recent) < self.args.oscillation_window or not switching_stalls(*torch.tensor(recent).T):
            return False
        names = " and ".join(repr(self.component_names[int(k)]) for k in sorted({entry[0] for entry in recent}))
        mean_gap = sum(entry[2] for entry in recent) / len(recent)
        message = (
            f"Over the last {len(recent)} rollouts the worst-off group alternated between {names} while the worst "
            f"utility stalled at {recent[-1][1]:.3f} (mean gap {mean_gap:.3f}): hard switching oscillates. Use "
            "`welfare='mirror'`, which moves the weights gradually; or a longer `welfare_window`, or 'softmin'."
        )
        recent.clear()
        stops = self.args.oscillation == "stop"
        if stops:
            logger.warning("%s Training stops, as `oscillation='stop'` asks.", message)
        elif not self._oscillation_said:
            logger.warning(message)
            self._oscillation_said = True
        return stops

    def optimised_rewards(self, utilities: torch.Tensor) -> torch.Tensor:
        """What is weighed: rows that a weighted component could not score are NaN as a whole, since as part of a sum
        they would count as 0.

        Args:
            utilities (`torch.Tensor` of shape `(N, K)`): NaN: not scored.

        Returns:
            `torch.Tensor` of shape `(N, K)`: its weighted sum over the columns is the reward of each reply.
        """
        if self.rule == "sample_min":
            scored = ~utilities.isnan().all(dim=0) & self.enough.to(utilities.device)
            if not scored.any():
                return utilities
            return sample_min(utilities[:, scored]).unsqueeze(1).expand_as(utilities).contiguous()
        weighted = (self.weights > 0).to(utilities.device)
        lost = (utilities.isnan() & weighted).any(dim=1, keepdim=True)
        return torch.where(lost, torch.nan, utilities)

    def metrics(self, group_utilities: torch.Tensor) -> dict[str, float]:
        """The numbers of one rollout by their names in the log; hosts average them, so none is NaN.

        Args:
            group_utilities (`torch.Tensor` of shape `(K,)`): NaN where nothing was scored.
        """
        values, weights = group_utilities.tolist(), self.weights.tolist()
        known = {name: value for name, value in zip(self.component_names, values, strict=True) if value == value}
        metrics = {f"maxmin/utility/{name}": value for name, value in known.items()}
        metrics |= {f"maxmin/weight/{name}": w for name, w in zip(self.component_names, weights, strict=True)}
        counting = [
            known[name]
            for name, enough in zip(self.component_names, self.enough, strict=True)
            if enough and name in known
        ]
        if counting:
            metrics["maxmin/worst_utility"] = min(counting)
            metrics["maxmin/gap"] = max(counting) - min(counting)
        return metrics

    def save(self, directory: str | os.PathLike) -> None:
        """Write `welfare_state.json` into a folder, made if missing."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        record = {"component_names": self.component_names, **self.state.state_dict()}
        if self.best is not None:
            record["best_utilities"] = self.best.tolist()
        (folder / WELFARE_STATE_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")

    def load(self, directory: str | os.PathLike) -> None:
        """Read what [`~Welfare.save`] wrote; without the file the weights start anew, with a warning.

        Raises:
            `ValueError`: The file is of other components.
        """
        path = Path(directory) / WELFARE_STATE_FILE
        if not path.is_file():
            logger.warning("%s has no %s: the group weights start anew.", directory, WELFARE_STATE_FILE)
            return
        record = read_json_object(path)
        names = record.pop("component_names")
        if names != self.component_names:
            raise ValueError(
                f"The checkpoint weighs the components {names}, but this run has {self.component_names}; resume with "
                "the same rewards in the same order."
            )
        if self.needs_best and "best_utilities" in record:
            self.best = torch.tensor(record["best_utilities"], dtype=torch.float64)
        self.state.load_state_dict(record)
        self.weights = self.state.weights.float()
