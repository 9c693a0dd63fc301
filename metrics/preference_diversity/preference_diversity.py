# SPDX-License-Identifier: Apache-2.0
"""Preference Diversity: total-variation distance between two groups' preferences."""

# One import a line: the loader of `evaluate` reads them with a parser of its own.
import datasets
import evaluate
import numpy as np

from trl_maxmin.evaluation.diversity import total_variation


_DESCRIPTION = """
How much two groups (or two reward models) disagree about the same pairs of replies: the total-variation distance of
their preference distributions, the quantity in the impossibility result of MaxMin-RLHF.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of float): probability that one group prefers the first reply of each pair, in [0, 1].
    references (`list` of float): the same of the other group.

Returns:
    diversity: mean total-variation distance, in [0, 1]; 0 = they agree about every pair.
    largest: the largest distance of a single pair.
    disagreement: share of pairs of which they prefer different replies.

Example:

    >>> import evaluate
    >>> metric = evaluate.load("metrics/preference_diversity")
    >>> round(metric.compute(predictions=[0.9, 0.5], references=[0.1, 0.5])["diversity"], 3)
    0.4
"""

_CITATION = """
@inproceedings{chakraborty2024maxmin,
  title = {MaxMin-RLHF: Alignment with Diverse Human Preferences},
  author = {Chakraborty, Souradip and others},
  booktitle = {International Conference on Machine Learning},
  year = {2024}
}
"""


class PreferenceDiversity(evaluate.Metric):
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
                }
            ),
            reference_urls=["https://arxiv.org/abs/2402.08925"],
        )

    def _compute(self, predictions, references):
        if len(predictions) == 0:
            raise ValueError("There are no rows; give at least one pair.")
        distance = total_variation(np.array(predictions), np.array(references))
        opposed = [(a - 0.5) * (b - 0.5) < 0 for a, b in zip(predictions, references, strict=True)]
        return {
            "diversity": float(distance.mean()),
            "largest": float(distance.max()),
            "disagreement": sum(opposed) / len(opposed),
        }
