# SPDX-License-Identifier: Apache-2.0
"""Group Gap: difference and ratio between the best-off and the worst-off group."""

# One import a line: the loader of `evaluate` reads them with a parser of its own.
import datasets
import evaluate

from trl_maxmin.evaluation import difference, ratio


_DESCRIPTION = """
How far apart groups are: the best-off group's mean minus the worst-off group's (fairlearn's `difference`), and the
worst over the best (`ratio`).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of float): a score of each row; higher is better.
    groups (`list` of str): the group of that row.

Returns:
    difference: best-off group's mean minus worst-off group's, 0 = all get the same.
    ratio: worst-off over best-off, in [0, 1]; absent if a group's mean is negative.
    by_group: group -> mean.

Example:

    >>> import evaluate
    >>> metric = evaluate.load("metrics/group_gap")
    >>> metric.compute(predictions=[1.0, 1.0, 0.0, 1.0], groups=["a", "a", "b", "b"])["difference"]
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


class GroupGap(evaluate.Metric):
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
        result = {"difference": difference(means), "by_group": means}
        # A ratio of numbers that may be negative says nothing.
        return result if min(means.values()) < 0 else {**result, "ratio": ratio(means)}
