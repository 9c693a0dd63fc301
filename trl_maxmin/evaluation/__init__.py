# SPDX-License-Identifier: Apache-2.0
"""Measuring every group: results with intervals, judges, agreement of components with groups, diagnostics, figures.

What needs torch is imported when it is first used, so that the metrics alone load in a moment.
"""

from __future__ import annotations

import importlib
from typing import Any

from trl_maxmin.evaluation.agreement import adjusted_rand_index, assignment_accuracy, match_components
from trl_maxmin.evaluation.bootstrap import Interval, PairedDifference, PromptBootstrap
from trl_maxmin.evaluation.figures import plot_comparison
from trl_maxmin.evaluation.metrics import GroupWinRate, by_group, difference, group_min, ratio, win_rate
from trl_maxmin.evaluation.plots import plot_diagnosis, plot_groups, plot_pareto, plot_training
from trl_maxmin.evaluation.results import GroupScores, results_to_markdown, summarise


_MODULE_OF = {
    "Diagnosis": "diagnosis",
    "diagnose": "diagnosis",
    "Evaluation": "evaluator",
    "Policy": "evaluator",
    "evaluate_policies": "evaluator",
    "Replies": "generation",
    "Sampling": "generation",
    "read_completions": "generation",
    "write_completions": "generation",
    "CRITERIA": "judges",
    "EndpointJudge": "judges",
    "judge_pairs": "judges",
}

__all__ = [
    "GroupScores",
    "GroupWinRate",
    "Interval",
    "PairedDifference",
    "PromptBootstrap",
    "adjusted_rand_index",
    "assignment_accuracy",
    "by_group",
    "difference",
    "group_min",
    "match_components",
    "plot_comparison",
    "plot_diagnosis",
    "plot_groups",
    "plot_pareto",
    "plot_training",
    "ratio",
    "results_to_markdown",
    "summarise",
    "win_rate",
    *_MODULE_OF,
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
