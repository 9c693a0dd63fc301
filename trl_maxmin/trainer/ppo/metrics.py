# SPDX-License-Identifier: Apache-2.0
"""What PPO logs, by the names of TRL 1.12: means over real tokens, or over replies, of all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter

import torch
from accelerate import Accelerator

from ...distributed import gather_rows, sum_over_ranks
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
# Where the run is, not where it was on average since the last log.
LATEST = ("episode", "eps", "lr")


def loss_metrics(means: torch.Tensor) -> dict[str, float]:
    """From the token means `(steps, len(LOSS_STATISTICS))` of the optimizer steps of a rollout, over all ranks: their
    means over the steps, the variance of the ratio between steps, the number of steps."""
    ratios = means[:, LOSS_STATISTICS.index("val/ratio")]
    return {
        **dict(zip(LOSS_STATISTICS, means.mean(0).tolist(), strict=True)),
        "val/ratio_var": ratios.var().item() if len(ratios) > 1 else 0.0,
        "policy/num_steps": float(len(means)),
    }


def rollout_metrics(
    accelerator: Accelerator, rollout: Rollout, weights: torch.Tensor, kl_coef: float
) -> dict[str, float]:
    """Metrics of one rollout, over the replies of all ranks.

    `weights` `(K,)` are what each reward counts; a nat of KL costs `kl_coef`. Penalties are in the scores already.
    """
    lengths = rollout.completion_mask.sum(1)
    sums = {
        "objective/kl": rollout.kl.sum(),
        "objective/entropy": -rollout.logprobs.sum(),
        "objective/scores": (rollout.scores @ weights.to(rollout.scores)).sum(),
        "val/num_eos_tokens": rollout.finished.sum(),
        "completions/mean_length": lengths.sum(),
        "policy/entropy_avg": rollout.entropy.sum(),
    }
    counts = [lengths.new_tensor(len(rollout)), lengths.sum()]
    totals = sum_over_ranks(accelerator, torch.stack([value.cpu().double() for value in [*sums.values(), *counts]]))
    *values, rows, tokens = totals.tolist()
    means = {name: value / max(rows, 1.0) for name, value in zip(sums, values, strict=True)}
    means["policy/entropy_avg"] *= max(rows, 1.0) / max(tokens, 1.0)
    means["val/num_eos_tokens"] *= max(rows, 1.0)
    means["objective/non_score_reward"] = -kl_coef * means["objective/kl"]
    means["objective/rlhf_reward"] = means["objective/non_score_reward"] + means["objective/scores"]
    means["objective/kl_coef"] = kl_coef
    return means


def sampling_metrics(accelerator: Accelerator, rollout: Rollout) -> dict[str, float]:
    """How far the sampler's probabilities are from the trainer's, over the tokens of all ranks: their ratio's mean,
    1 where the two agree, and its maximum. Empty where the sampler does not tell."""
    if rollout.sampler_logprobs is None:
        return {}
    ratio = (rollout.logprobs - rollout.sampler_logprobs)[rollout.completion_mask].exp()
    own = torch.stack([ratio.sum(), ratio.new_tensor(len(ratio)), ratio.max() if len(ratio) else ratio.new_zeros(())])
    total, count, _ = gather_rows(accelerator, own.unsqueeze(0)).cpu().double().sum(0).tolist()
    largest = gather_rows(accelerator, own[2:]).max().item()
    return {"sampling/ratio_mean": total / max(count, 1.0), "sampling/ratio_max": largest}


def take_means(metrics: dict[str, list[float]]) -> dict[str, float]:
    """Means of what was measured since the last time; `metrics` is empty afterwards.

    Args:
        metrics (`dict[str, list[float]]`): NaN: not known.

    Returns:
        `dict[str, float]`: of the metrics that are known.

    Example:

    >>> take_means({"loss": [1.0, 2.0, float("nan")], "episode": [8.0, 16.0]})
    {'loss': 1.5, 'episode': 16.0}
    """
    known = {name: [value for value in values if not math.isnan(value)] for name, values in metrics.items()}
    metrics.clear()
    return {name: _summary(name)(values) for name, values in known.items() if values}


def _summary(name: str) -> Callable[[list[float]], float]:
    if name in LATEST:
        return itemgetter(-1)
    return max if name == "sampling/ratio_max" else lambda values: sum(values) / len(values)
