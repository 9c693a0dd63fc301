# SPDX-License-Identifier: Apache-2.0
"""Worst Group: what the worst-off group gets."""

# One import a line: the loader of `evaluate` reads them with a parser of its own.
import datasets
import evaluate

from trl_maxmin.evaluation import group_min


_DESCRIPTION = """
Mean of a score in every group, the smallest of them and the group that has it: fairlearn's `group_min` of the mean.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of float): a score of each row, such as a utility, a win or a correct answer; higher is better.
    groups (`list` of str): the group of that row.

Returns:
    group_min: the smallest group mean.
    worst_group: the group that has it (the first of a tie).
    by_group: group -> mean.
    overall: mean over all rows.

Example:

    >>> import evaluate
    >>> metric = evaluate.load("metrics/worst_group")
    >>> metric.compute(predictions=[1.0, 1.0, 0.0, 1.0], groups=["a", "a", "b", "b"])["group_min"]
    0.5
"""

_CITATION = """
@inproceedings{chakraborty2024maxmin,
  title = {MaxMin-RLHF: Alignment with Diverse Human Preferences},
  author = {Chakraborty, Souradip and others},
  booktitle = {International Conference on Machine Learning},
  year = {2024}
}
"""


def group_means(values, groups):
    """Group -> mean of its rows, in the order of first appearance."""
    rows = {}
    for row, (value, group) in enumerate(zip(values, groups, strict=True)):
        if group is None:
            raise ValueError(f"Row {row} has no group; name one, or leave the row out.")
        rows.setdefault(group, []).append(value)
    return {group: sum(own) / len(own) for group, own in rows.items()}


class WorstGroup(evaluate.Metric):
    """See `_DESCRIPTION`."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                    "groups": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2402.08925"],
        )

    def _compute(self, predictions, groups):
        means = group_means(predictions, groups)
        return {
            "group_min": group_min(means),
            "worst_group": min(means, key=lambda group: means[group]),
            "by_group": means,
            "overall": sum(predictions) / len(predictions),
        }
