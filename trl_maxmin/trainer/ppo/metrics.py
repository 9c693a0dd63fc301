# SPDX-License-Identifier: Apache-2.0
"""What PPO logs: means over real tokens, or over replies, of all ranks."""

from __future__ import annotations

import math
import time

import torch

from ...distributed import sum_over_ranks
from ...functional.ppo import adaptive_kl_coef
from .rollout import Rollout


# What a micro-batch adds up, token by token; divided by the tokens of the minibatch over all ranks when logged.
LOSS_STATISTICS = (
    "loss/policy_avg",
    "loss/value_avg",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "val/clipfrac_avg",
    "val/ratio",
)


class RolloutMetricsMixin:
    """The metrics of [`PPOTrainer`], by the names that they had in TRL 1.12."""

    def _log_losses(self, means: torch.Tensor) -> None:
        metrics = self._metrics["train"]
        for name, value in zip(LOSS_STATISTICS, means.mean(0).tolist(), strict=True):
            metrics[name].append(value)
        ratios = means[:, LOSS_STATISTICS.index("val/ratio")]
        metrics["val/ratio_var"].append(ratios.var().item() if len(ratios) > 1 else 0.0)
        metrics["policy/num_steps"].append(float(len(means)))

    def _log_rollout(self, rollout: Rollout) -> None:
        """Means over the replies of all ranks; adapts the KL coefficient, where asked, to the KL just measured."""
        means = self._rollout_means(rollout)
        non_score = -self.kl_coef * means["objective/kl"]
        means["objective/non_score_reward"] = non_score
        means["objective/rlhf_reward"] = non_score + means["objective/scores"]
        means["objective/kl_coef"] = self.kl_coef
        episodes = self.args.batch_size * (self.state.global_step + 1)
        start, first_step = self._clock
        means["eps"] = (episodes - self.args.batch_size * first_step) / (time.perf_counter() - start)
        means["episode"] = episodes
        means["lr"] = self._get_learning_rate()
        for name, value in means.items():
            self._metrics["train"][name].append(float(value))
        if self.args.adaptive_kl:
            self.kl_coef = adaptive_kl_coef(
                self.kl_coef, means["objective/kl"], self.args.kl_target, self.args.kl_horizon, self.args.batch_size
            )

    def _rollout_means(self, rollout: Rollout) -> dict[str, float]:
        lengths = rollout.completion_mask.sum(1)
        sums = {
            "objective/kl": rollout.kl.sum(),
            "objective/entropy": -rollout.logprobs.sum(),
            "objective/scores": (rollout.scores @ self.reward_weights.to(rollout.scores)).sum(),
            "val/num_eos_tokens": rollout.finished.sum(),
            "completions/mean_length": lengths.sum(),
            "policy/entropy_avg": rollout.entropy.sum(),
        }
        counts = [lengths.new_tensor(len(rollout)), lengths.sum()]
        totals = sum_over_ranks(self.accelerator, torch.stack([value.double() for value in [*sums.values(), *counts]]))
        *values, rows, tokens = totals.tolist()
        means = {name: value / max(rows, 1.0) for name, value in zip(sums, values, strict=True)}
        means["policy/entropy_avg"] *= max(rows, 1.0) / max(tokens, 1.0)
        means["val/num_eos_tokens"] *= max(rows, 1.0)
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what was measured since the last log.

        Args:
            logs (`dict`): what the loop logs.
            start_time (`float`, *optional*): of the training.
        """
        mode = "train" if self.model.training else "eval"
        prefix = "" if mode == "train" else "eval_"
        for name, values in self._metrics[mode].items():
            known = [value for value in values if not math.isnan(value)]
            if known:
                # Where the run is, not where it was on average since the last log.
                logs[prefix + name] = known[-1] if name in ("episode", "eps", "lr") else sum(known) / len(known)
        self._metrics[mode].clear()
        super().log(logs, start_time)
        if mode == "train" and self._completions is not None:
            self._show_completions(self._completions)
            self._completions = None
