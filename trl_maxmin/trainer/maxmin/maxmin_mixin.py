# SPDX-License-Identifier: Apache-2.0
"""MaxMin for any trainer that weighs several rewards: after the rewards are known, decide whose count.

The one seam is `_calculate_rewards`, which GRPO and RLOO of TRL and the PPO of this package share: it returns the
rewards of all ranks, `(N, K)`, and what follows optimises `sum_k reward_weights[k] * rewards[:, k]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from ...distributed import gather_objects, gather_rows
from ..common.atomic_checkpoint import AtomicCheckpointMixin
from ..scoring.batch import RewardSource
from ..scoring.reference_statistics import RECORD_FILE, ReferenceStatistics
from ..scoring.sources import refuse_infinite
from .calibration import CALIBRATION_FOLDER, ReferenceReplies, digest, distinct_prompts, report, weights_digest
from .maxmin_config import resolve_utility
from .welfare import Welfare, WelfareState, groups_with_evidence


class MaxMinMixin(AtomicCheckpointMixin):
    """Put before a trainer: `class MaxMinPPOTrainer(MaxMinMixin, PPOTrainer)`.

    At each training rollout the rewards of all ranks become utilities, by what the reference policy's replies are
    worth; their means become weights, by the welfare rule of the arguments; both are logged. Evaluation logs and
    changes nothing. The trainer calls `_init_maxmin` when its rewards have names, and says how its reference policy is
    asked: `_sample_reference` samples, `_score_reference` scores, `_row_key` names a prompt, `_reference_parameters`
    are the reference's weights.

    Attributes:
        welfare ([`Welfare`]): the rule at work.
        utility (`str`): `"zscore"`, `"win_rate"` or `"raw"`.
        reference_statistics ([`ReferenceStatistics`] or `None`): what utilities are measured against; `None` for
            `"raw"` and before the first rollout.
        reward_weights (`torch.Tensor` of shape `(K,)`): in use, set anew at every training rollout.

    Metrics (`self._metrics[mode]`), per rollout:

    | name | meaning |
    |---|---|
    | `rewards/<component>/mean` | mean reward |
    | `maxmin/utility/<component>` | group utility `U[k]`; left out where nothing was scored |
    | `maxmin/weight/<component>` | the weight in use |
    | `maxmin/worst_utility` | `min_k U[k]`, in the log of the means of `U[k]` since the last log |
    | `maxmin/gap` | `max_k U[k] - min_k U[k]`, likewise |
    """

    # TRL's GRPO and RLOO log `rewards/<component>/mean` themselves; a MaxMin trainer on top of them sets this to True.
    _host_logs_component_rewards = False

    def _init_maxmin(
        self,
        mixing_weights: torch.Tensor | None = None,
        welfare_function: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reference_statistics: ReferenceStatistics | None = None,
        source: RewardSource | None = None,
    ) -> None:
        """Called by the constructor when `reward_func_names` is known.

        Raises:
            `ValueError`: as [`Welfare`]; `"regret"` where nobody gives or measures the best utilities.
        """
        enough = groups_with_evidence(self.args, source) if source is not None else None
        if enough is not None and len(enough) < len(self.reward_func_names):
            # A reward that TRL's environment added is no component; it was asked for, so it counts.
            enough = torch.cat([enough, enough.new_ones(len(self.reward_func_names) - len(enough))])
        self.welfare = Welfare(self.args, self.reward_func_names, mixing_weights, welfare_function, enough)
        self.reward_weights = self.welfare.weights
        self.utility = resolve_utility(self.args.utility, len(self.reward_func_names))
        self.reference_statistics = reference_statistics
        self._is_calibrated = False
        if self.welfare.needs_best and self.utility == "raw":
            raise ValueError(
                "`welfare` is 'regret', and with `utility='raw'` no reference replies are scored that would say how "
                "well off each group could be. Give `best_utilities`, or use 'zscore' or 'win_rate'."
            )

    @property
    def welfare_state(self) -> WelfareState:
        """Weights and averages, saved in every checkpoint."""
        return self.welfare.state

    @property
    def component_names(self) -> list[str]:
        """K names, in the order of the columns."""
        return self.welfare.component_names

    # -- the seam -----------------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: list, prompts: list, completions: list, completion_ids_list: list
    ) -> torch.Tensor:
        rewards = self._raw_rewards(inputs, prompts, completions, completion_ids_list)
        refuse_infinite(rewards, self.reward_func_names)
        utilities = self._utilities(rewards, inputs)
        group_utilities = utilities.detach().cpu().double().nanmean(dim=0)
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self.welfare.update(group_utilities)
            self.reward_weights = self.welfare.weights
            if self.welfare.goes_in_circles(utilities, group_utilities):
                self.control.should_training_stop = True
        optimised = self.welfare.optimised_rewards(utilities)
        self._log_welfare(mode, rewards, utilities, optimised)
        return optimised

    def _raw_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> torch.Tensor:
        """Rewards of all ranks, `(N, K)`, by the host trainer."""
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _utilities(self, rewards: torch.Tensor, inputs: list) -> torch.Tensor:
        """Utilities `(N, K)` of all ranks from their rewards and this rank's rows."""
        if self.utility == "raw":
            return rewards
        self.calibrate()
        keys = gather_objects(self.accelerator, [self._row_key(row) for row in inputs])
        return self.reference_statistics.utilities(rewards, keys, self.utility).to(rewards.device)

    def _log_welfare(self, mode: str, rewards: torch.Tensor, utilities: torch.Tensor, optimised: torch.Tensor) -> None:
        """Note what is known of a rollout or an evaluation; all three are `(N, K)`, of all ranks."""
        metrics = self.welfare.metrics(utilities.detach().cpu().double().nanmean(dim=0))
        if not self._host_logs_component_rewards:
            means = rewards.detach().cpu().double().nanmean(dim=0).tolist()
            named = zip(self.component_names, means, strict=True)
            metrics |= {f"rewards/{name}/mean": mean for name, mean in named if mean == mean}
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the host's, which takes the mean over the rollouts since the last log: the worst utility and the gap are
        those of the mean utilities, since neither is a mean."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        named = ((name, metrics.get(f"maxmin/utility/{name}")) for name in self.component_names)
        means = [sum(values) / len(values) if values else math.nan for _, values in named]
        of_means = self.welfare.metrics(torch.tensor(means, dtype=torch.float64))
        metrics.update({name: [of_means[name]] for name in ("maxmin/worst_utility", "maxmin/gap") if name in of_means})
        super().log(logs, start_time)

    # -- calibration --------------------------------------------------------------------------------------------------

    def calibrate(self, refresh: bool = False) -> None:
        """Measure the components on the reference policy's replies to the training and evaluation prompts, once.

        Does nothing for `utility="raw"` and when it was done; the replies are kept, and saved in every checkpoint.
        Statistics that were given to the constructor are compared with this policy and these prompts, and used. All
        ranks have to call it; they share the prompts.

        Args:
            refresh (`bool`, defaults to `False`): sample and measure again, for other prompts or another reference.

        Raises:
            ValueError: more distinct prompts than `args.max_calibration_prompts` with `utility="win_rate"`, which
                needs replies to each; given statistics of other components.
        """
        if self.utility == "raw" or (self._is_calibrated and not refresh):
            return
        evaluation = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        datasets = (self.train_dataset, *evaluation.values())
        distinct = distinct_prompts(datasets, self._row_key, self.args.max_calibration_prompts, self.utility)
        fingerprints = weights_digest(self._reference_parameters()), digest("".join(sorted(distinct)))
        if refresh or self.reference_statistics is None:
            self.reference_statistics = self._measure_reference(list(distinct.values()), fingerprints)
        else:
            self.reference_statistics.check_compatible(self.reward_func_names, *fingerprints)
        self._note_calibration()

    def _note_calibration(self) -> None:
        self._is_calibrated = True
        if self.welfare.needs_best:
            self.welfare.best = self.reference_statistics.best_utilities(self.utility).double()

    def _measure_reference(self, prompts: list[dict[str, Any]], fingerprints: tuple[str, str]) -> ReferenceStatistics:
        count = self.args.num_reference_completions
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        # Every rank has the same number of prompts, or hosts that gather without padding would wait for each other.
        even = islice(cycle(prompts), math.ceil(len(prompts) / world) * world)
        replies = self._sample_reference([row for row in list(even)[rank::world] for _ in range(count)])
        device = self.accelerator.device
        statistics = ReferenceStatistics.from_rewards(
            self.reward_func_names,
            gather_objects(self.accelerator, [self._row_key(row) for row in replies.inputs]),
            gather_rows(self.accelerator, self._score_reference(replies).to(device, torch.float32)),
            gather_objects(self.accelerator, replies.completion_ids),
            *fingerprints,
            finished=gather_rows(self.accelerator, replies.finished.to(device)),
        )
        report(statistics, len(prompts), count)
        return statistics

    def _row_key(self, row: dict[str, Any]) -> str:
        """Key of the prompt of a row, of the data or of a rollout."""
        raise NotImplementedError

    def _sample_reference(self, rows: list[dict[str, Any]]) -> ReferenceReplies:
        """One reply of the reference policy to each row of this rank."""
        raise NotImplementedError

    def _score_reference(self, replies: ReferenceReplies) -> torch.Tensor:
        """Raw rewards `(B, K)` of this rank's replies."""
        raise NotImplementedError

    def _reference_parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        """Names and weights of the reference policy."""
        raise NotImplementedError

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_run_state(self, folder: Path) -> None:
        super()._save_run_state(folder)
        self.welfare.save(folder)
        if self.reference_statistics is not None:
            self.reference_statistics.save(folder / CALIBRATION_FOLDER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_statistics(Path(checkpoint))
            self.welfare.load(checkpoint)
            self.reward_weights = self.welfare.weights

    def _load_statistics(self, checkpoint: Path) -> None:
        folder = checkpoint / CALIBRATION_FOLDER
        if self.utility == "raw" or not (folder / RECORD_FILE).is_file():
            return
        self.reference_statistics = ReferenceStatistics.load(folder)
        self.reference_statistics.check_compatible(self.reward_func_names)
        self._note_calibration()
