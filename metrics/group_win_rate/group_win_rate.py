# SPDX-License-Identifier: Apache-2.0
"""Group Win Rate: win rate of a policy against a reference, group by group."""

# One import a line: the loader of `evaluate` reads them with a parser of its own.
import datasets
import evaluate

from trl_maxmin.evaluation import win_rate


_DESCRIPTION = """
How often each group prefers the policy's reply to the reference's on the same prompt, ties counting half, with a 95
% interval.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of float): utility of the policy's reply for the group of that row; higher is better.
    references (`list` of float): utility of the reference policy's reply to the same prompt, for the same group.
    groups (`list` of str): the group of that row.

Returns:
    win_rate: group -> win rate in [0, 1].
    low: group -> lower end of the 95 % interval (Wilson).
    high: group -> upper end.
    count: group -> number of rows.

Example:

    >>> import evaluate
    >>> metric = evaluate.load("metrics/group_win_rate")
    >>> metric.compute(
    ...     predictions=[3.0, 1.0, 2.0, 2.0], references=[1.0, 1.0, 1.0, 5.0], groups=["a", "a", "b", "b"]
    ... )["win_rate"]
    {'a': 0.75, 'b': 0.5}
"""

_CITATION = """
@inproceedings{chakraborty2024maxmin,
  title = {MaxMin-RLHF: Alignment with Diverse Human Preferences},
  author = {Chakraborty, Souradip and others},
  booktitle = {International Conference on Machine Learning},
  year = {2024}
}
"""


def rows_of(groups):
    """Group -> its rows, in the order of first appearance."""
    rows = {}
    for row, group in enumerate(groups):
        if group is None:
            raise ValueError(f"Row {row} has no group; name one, or leave the row out.")
        rows.setdefault(group, []).append(row)
    return rows


class GroupWinRate(evaluate.Metric):
    """See `_DESCRIPTION`."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                    "references": datasets.Value("float64"),
                    "groups": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2402.08925"],
        )

    def _compute(self, predictions, references, groups):
        if len(groups) == 0:
            raise ValueError("There are no rows; give at least one.")
        rates = {
            group: win_rate([predictions[row] for row in rows], [references[row] for row in rows])
            for group, rows in rows_of(groups).items()
        }
        return {
            "win_rate": {group: rate.mean for group, rate in rates.items()},
            "low": {group: rate.low for group, rate in rates.items()},
            "high": {group: rate.high for group, rate in rates.items()},
            "count": {group: len(rows) for group, rows in rows_of(groups).items()},
        }
