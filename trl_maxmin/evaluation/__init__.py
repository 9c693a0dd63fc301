# SPDX-License-Identifier: Apache-2.0
"""Measuring every group: win rates with intervals, agreement of components with groups, figures."""

from trl_maxmin.evaluation.agreement import adjusted_rand_index, assignment_accuracy, match_components
from trl_maxmin.evaluation.figures import plot_comparison
from trl_maxmin.evaluation.metrics import GroupWinRate, by_group, difference, group_min, ratio, win_rate


__all__ = [
    "GroupWinRate",
    "adjusted_rand_index",
    "assignment_accuracy",
    "by_group",
    "difference",
    "group_min",
    "match_components",
    "plot_comparison",
    "ratio",
    "win_rate",
]
