# SPDX-License-Identifier: Apache-2.0
"""MaxMin for any trainer that weighs several rewards: after the rewards are known, decide whose count.

The one seam is `_calculate_rewards`, which GRPO and RLOO of TRL and the PPO of this package share: it returns the
rewards of all ranks, `(N, K)`, and what follows optimises `sum_k reward_weights[k] * rewards[:, k]`.
"""

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

from ...functional.oscillation import switching_stalls
from ...functional.welfare import sample_min, welfare_weights
from ..common.atomic_checkpoint import AtomicCheckpointMixin
from .maxmin_config import MaxMinConfigMixin


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
    args: MaxMinConfigMixin, component_names: Sequence[str], mixing_weights: Any = None, has_function: bool = False
) -> None:
    """Refuse settings that the number of components rules out, before a model is loaded.

    Args:
        args ([`MaxMinConfigMixin`]): settings.
        component_names (`list[str]`): K names.
        mixing_weights (*optional*): K shares, where they are known.
        has_function (`bool`): whether a rule of the user's own takes the place of `args.welfare`.

    Raises:
        `ValueError`: `"mixing"` without mixing weights, a list of the wrong length, or a floor above `1 / K`.
    """
    size = len(component_names)
    if args.welfare == "mixing" and not has_function and mixing_weights is None:
        raise ValueError(
            "`welfare` is 'mixing', but the rewards carry no mixing weights; pass a `MixtureRewardModel`, or use "
            "'utilitarian'."
        )
    for name, values in (("mixing_weights", mixing_weights), ("disagreement_point", args.disagreement_point)):
        if values is not None and len(values) != size:
            raise ValueError(
                f"`{name}` has {len(values)} entries, but there are {size} components: {list(component_names)}."
            )
    if args.welfare_floor > 1.0 / size:
        raise ValueError(
            f"`welfare_floor` is {args.welfare_floor}, but {size} components allow at most {1.0 / size:.4g}."
        )


class MaxMinMixin(AtomicCheckpointMixin):
    """Put before a trainer: `class MaxMinPPOTrainer(MaxMinMixin, PPOTrainer)`.

    At each training rollout it takes the group utilities `U[k]`, the mean over the replies of all ranks, turns them
    into `self.reward_weights` by the welfare rule of the arguments, and logs both. Evaluation logs and changes
    nothing. A reply that some component with weight did not score is NaN in every column: as part of a sum it would
    count as 0.

    Reads from `self.args` the fields of [`MaxMinConfigMixin`]. The trainer calls `_init_welfare` at the end of its
    constructor; otherwise the first rewards do, with the names in `self.reward_func_names`.

    Metrics (`self._metrics[mode]`), per rollout:

    | name | meaning |
    |---|---|
    | `rewards/<component>/mean` | mean of what `_component_rewards` returns |
    | `maxmin/utility/<component>` | group utility `U[k]`; left out where nothing was scored |
    | `maxmin/weight/<component>` | the weight in use |
    | `maxmin/worst_utility` | `min_k U[k]` |
    | `maxmin/gap` | `max_k U[k] - min_k U[k]` |
    """

    # TRL's GRPO and RLOO log `rewards/<component>/mean` themselves; a MaxMin trainer on top of them sets this to True.
    _host_logs_component_rewards = False
    _oscillation_said = False

    def _init_welfare(
        self,
        component_names: Sequence[str],
        mixing_weights: torch.Tensor | Sequence[float] | None = None,
        welfare_function: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Set up the state; no group is preferred before the first rollout.

        Args:
            component_names (`list[str]`):
                K names, in the order of the columns.
            mixing_weights (`torch.Tensor` of shape `(K,)`, *optional*):
                Share of annotators behind each component, for `welfare="mixing"`.
            welfare_function (`Callable`, *optional*):
                A rule of the user's own in place of `args.welfare`: utilities `(K,)` to scores `(K,)`.

        Raises:
            `ValueError`: `"mixing"` without mixing weights, a list of the wrong length, or a floor above `1 / K`.
        """
        size = len(component_names)
        check_welfare(self.args, component_names, mixing_weights, welfare_function is not None)
        self.component_names = list(component_names)
        self.welfare_rule = self.args.welfare if welfare_function is None else welfare_function
        self._mixing_weights = None if mixing_weights is None else torch.as_tensor(mixing_weights, dtype=torch.float64)
        start = torch.full((size,), 1.0 / size) if self.welfare_rule != "mixing" else self._mixing_weights
        self.welfare_state = WelfareState.initial(start)
        self.reward_weights = self.welfare_state.weights.float()

    def _calculate_rewards(
        self, inputs: list, prompts: list, completions: list, completion_ids_list: list
    ) -> torch.Tensor:
        rewards = self._raw_rewards(inputs, prompts, completions, completion_ids_list)
        utilities = self._utilities(rewards, inputs, prompts)
        if not hasattr(self, "welfare_state"):
            self._init_welfare(self.reward_func_names)
        mode = "train" if self.model.training else "eval"
        group_utilities = utilities.detach().double().nanmean(dim=0).cpu()
        if mode == "train":
            self._update_welfare(group_utilities)
            self._watch_switching(utilities, group_utilities)
        self._log_welfare(mode, self._component_rewards(utilities), group_utilities)
        return self._optimised_rewards(utilities)

    def _raw_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> torch.Tensor:
        """What the host trainer makes of the rewards of all ranks, `(N, K)`."""
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _utilities(self, rewards: torch.Tensor, inputs: list, prompts: list) -> torch.Tensor:
        """Utilities `(N, K)` of all ranks from their rewards; the same where rewards are utilities already."""
        return rewards

    def _update_welfare(self, group_utilities: torch.Tensor) -> None:
        """Set `self.reward_weights` from the group utilities `(K,)` of one training rollout."""
        state, scored = self.welfare_state, ~group_utilities.isnan()
        if not scored.any():
            logger.warning("No reward scored any reply of this rollout; the group weights stay as they were.")
            return
        state.utility_average = self._averaged_utilities(group_utilities)
        # A component that nothing was scored for gets no weight now, whatever its average: its rows would be lost.
        utilities = torch.where(scored, state.utility_average, torch.nan)
        if self.welfare_rule == "sample_min":
            weights = torch.full_like(utilities, 1.0 / len(utilities))
        else:
            point = self.args.disagreement_point
            falls = self.args.welfare_step_schedule == "inverse_sqrt"
            weights = welfare_weights(
                self.welfare_rule,
                utilities,
                tau=self.args.welfare_temperature,
                eta=self.args.welfare_step_size / (math.sqrt(state.step + 1) if falls else 1.0),
                previous=state.weights,
                mixing_weights=self._mixing_weights,
                disagreement=None if point is None else torch.tensor(point, dtype=utilities.dtype),
                floor=self.args.welfare_floor,
            )
        kept = torch.where(scored, 0.0, state.weights)
        state.weights = kept + (1.0 - kept.sum()) * weights
        state.cumulative_weights = state.cumulative_weights + weights
        state.step += 1
        self.reward_weights = weights.float()

    def _watch_switching(self, utilities: torch.Tensor, group_utilities: torch.Tensor) -> None:
        """Say (or stop) when hard switching goes in circles. Everything is computed from gathered rewards, so all
        ranks decide alike."""
        if self.welfare_rule != "maxmin" or self.args.oscillation == "ignore" or len(group_utilities) < 2:
            return
        if group_utilities.isnan().any():
            return
        low, high = int(group_utilities.argmin()), int(group_utilities.argmax())
        difference = (utilities[:, high] - utilities[:, low]).detach().double()
        difference = difference[~difference.isnan()]
        error = (difference.var(unbiased=False) / max(len(difference), 1)).sqrt().item()
        gap = (group_utilities[high] - group_utilities[low]).item()
        recent = self.welfare_state.recent
        recent.append([int(self.reward_weights.argmax()), group_utilities[low].item(), gap, error])
        del recent[: -self.args.oscillation_window]
        if len(recent) < self.args.oscillation_window or not switching_stalls(*torch.tensor(recent).T):
            return
        names = " and ".join(repr(self.component_names[int(k)]) for k in sorted({entry[0] for entry in recent}))
        mean_gap = sum(entry[2] for entry in recent) / len(recent)
        message = (
            f"Over the last {len(recent)} rollouts the worst-off group alternated between {names} while the worst "
            f"utility stalled at {recent[-1][1]:.3f} (mean gap {mean_gap:.3f}): hard switching oscillates. Use "
            "`welfare='mirror'`, which moves the weights gradually; or a longer `welfare_window`, or 'softmin'."
        )
        recent.clear()
        if self.args.oscillation == "stop":
            logger.warning("%s Training stops, as `oscillation='stop'` asks.", message)
            self.control.should_training_stop = True
        elif not self._oscillation_said:
            logger.warning(message)
            self._oscillation_said = True

    def _averaged_utilities(self, group_utilities: torch.Tensor) -> torch.Tensor:
        """Exponential average with the span `welfare_window`; a component without a score keeps its average."""
        previous = self.welfare_state.utility_average
        rate = 2.0 / (self.args.welfare_window + 1.0)
        moved = (1.0 - rate) * previous + rate * group_utilities
        moved = torch.where(previous.isnan(), group_utilities, moved)
        return torch.where(group_utilities.isnan(), previous, moved)

    def _optimised_rewards(self, utilities: torch.Tensor) -> torch.Tensor:
        """`(N, K)` whose weighted sum over the columns is the reward of each reply, NaN where it has none."""
        if self.welfare_rule == "sample_min":
            scored = ~utilities.isnan().all(dim=0)
            if not scored.any():
                return utilities
            return sample_min(utilities[:, scored]).unsqueeze(1).expand_as(utilities).contiguous()
        weighted = (self.reward_weights > 0).to(utilities.device)
        lost = (utilities.isnan() & weighted).any(dim=1, keepdim=True)
        return torch.where(lost, torch.nan, utilities)

    def _component_rewards(self, utilities: torch.Tensor) -> torch.Tensor:
        """What `rewards/<component>/mean` averages, `(N, K)`; a trainer that keeps the raw rewards returns those."""
        return utilities

    def _log_welfare(self, mode: str, rewards: torch.Tensor, group_utilities: torch.Tensor) -> None:
        metrics, means = self._metrics[mode], rewards.detach().double().nanmean(dim=0).tolist()
        values = group_utilities.tolist()
        for name, mean, utility, weight in zip(
            self.component_names, means, values, self.reward_weights.tolist(), strict=True
        ):
            if not self._host_logs_component_rewards and not math.isnan(mean):
                metrics[f"rewards/{name}/mean"].append(mean)
            # Hosts average these lists: one NaN would hide all other rollouts.
            if not math.isnan(utility):
                metrics[f"maxmin/utility/{name}"].append(utility)
            metrics[f"maxmin/weight/{name}"].append(weight)
        known = [value for value in values if not math.isnan(value)]
        if known:
            metrics["maxmin/worst_utility"].append(min(known))
            metrics["maxmin/gap"].append(max(known) - min(known))

    def _save_run_state(self, folder: Path) -> None:
        super()._save_run_state(folder)
        if hasattr(self, "welfare_state"):
            self._save_welfare_state(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_welfare_state(checkpoint)

    def _save_welfare_state(self, directory: str | os.PathLike) -> None:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        record = {"component_names": self.component_names, **self.welfare_state.state_dict()}
        (folder / WELFARE_STATE_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")

    def _load_welfare_state(self, directory: str | os.PathLike) -> None:
        path = Path(directory) / WELFARE_STATE_FILE
        if not path.is_file():
            logger.warning("%s has no %s: the group weights start anew.", directory, WELFARE_STATE_FILE)
            return
        record = json.loads(path.read_text(encoding="utf-8"))
        names = record.pop("component_names")
        if not hasattr(self, "welfare_state"):
            self._init_welfare(self.reward_func_names)
        if names != self.component_names:
            raise ValueError(
                f"The checkpoint weighs the components {names}, but this run has {self.component_names}; resume with "
                "the same rewards in the same order."
            )
        self.welfare_state.load_state_dict(record)
        self.reward_weights = self.welfare_state.weights.float()
