# SPDX-License-Identifier: Apache-2.0
"""Assignment Agreement: do components found without labels agree with known groups?."""

# One import a line: the loader of `evaluate` reads them with a parser of its own.
import datasets
import evaluate

from trl_maxmin.evaluation import adjusted_rand_index, assignment_accuracy, match_components


_DESCRIPTION = """
How well the components that EM assigned to annotators agree with groups that are known, whichever way components
are numbered: accuracy under the best matching, and the adjusted Rand index.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of str): component of each annotator.
    references (`list` of str): known group of the same annotator.

Returns:
    accuracy: share of annotators in their own group under the best one-to-one matching.
    adjusted_rand_index: agreement corrected for chance: 1 = the same partition, about 0 = unrelated.
    matching: component -> group.

Example:

    >>> import evaluate
    >>> metric = evaluate.load("metrics/assignment_agreement")
    >>> metric.compute(predictions=["1", "1", "0", "1"], references=["a", "a", "b", "b"])["accuracy"]
    0.75
"""

_CITATION = """
@inproceedings{chakraborty2024maxmin,
  title = {MaxMin-RLHF: Alignment with Diverse Human Preferences},
  author = {Chakraborty, Souradip and others},
  booktitle = {International Conference on Machine Learning},
  year = {2024}
}
"""


class AssignmentAgreement(evaluate.Metric):
    """See `_DESCRIPTION`."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2402.08925"],
        )

    def _compute(self, predictions, references):
        for row, pair in enumerate(zip(predictions, references, strict=True)):
            if None in pair:
                raise ValueError(f"Row {row} has no {'group' if pair[0] is not None else 'component'}; leave it out.")
        return {
            "accuracy": assignment_accuracy(predictions, references),
            "adjusted_rand_index": adjusted_rand_index(predictions, references),
            "matching": match_components(predictions, references),
        }
