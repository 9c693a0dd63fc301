# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, confusion_matrix

from trl_maxmin.evaluation import adjusted_rand_index, assignment_accuracy, match_components


def random_labels(seed, num_components, num_groups, size=60):
    rng = np.random.default_rng(seed)
    return rng.integers(num_components, size=size), rng.integers(num_groups, size=size)


class TestMatching:
    def test_hand_worked(self):
        predicted = [0, 0, 0, 1, 1, 0]
        planted = ["b", "b", "b", "a", "a", "a"]
        assert match_components(predicted, planted) == {0: "b", 1: "a"}
        assert assignment_accuracy(predicted, planted) == pytest.approx(5 / 6)

    def test_the_best_matching_is_not_the_greedy_one(self):
        # Component 0 shares most with "a" (5), but giving "a" to component 1 (4) and "b" to component 0 (4) is better.
        predicted = [0] * 9 + [1] * 4
        planted = ["a"] * 5 + ["b"] * 4 + ["a"] * 4
        assert match_components(predicted, planted) == {0: "b", 1: "a"}
        assert assignment_accuracy(predicted, planted) == pytest.approx(8 / 13)

    def test_more_components_than_groups(self):
        predicted, planted = [0, 0, 0, 1, 2, 2], ["a", "a", "a", "a", "b", "b"]
        assert match_components(predicted, planted) == {0: "a", 2: "b"}
        assert assignment_accuracy(predicted, planted) == pytest.approx(5 / 6)

    def test_one_component_gets_the_share_of_the_largest_group(self):
        assert match_components([0] * 50, ["a"] * 40 + ["b"] * 10) == {0: "a"}
        assert assignment_accuracy([0] * 50, ["a"] * 40 + ["b"] * 10) == 0.8

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize(("num_components", "num_groups"), [(2, 2), (3, 5), (6, 4), (8, 8)])
    def test_agrees_with_scipys_assignment(self, seed, num_components, num_groups):
        predicted, planted = random_labels(seed, num_components, num_groups)
        counts = confusion_matrix(planted, predicted)
        rows, columns = linear_sum_assignment(counts, maximize=True)
        assert assignment_accuracy(predicted, planted) == pytest.approx(counts[rows, columns].sum() / len(planted))

    def test_numbering_and_names_do_not_matter(self):
        predicted, planted = random_labels(0, 3, 3)
        renamed = [("x", "y", "z")[(label + 1) % 3] for label in predicted]
        assert assignment_accuracy(renamed, planted) == assignment_accuracy(predicted, planted)

    def test_takes_tensors(self):
        assert match_components(torch.tensor([1, 0, 1]), ["a", "b", "a"]) == {1: "a", 0: "b"}
        assert assignment_accuracy(torch.tensor([1, 0, 1]), torch.tensor([0, 1, 0])) == 1

    def test_too_many_labels(self):
        with pytest.raises(ValueError, match="at most 8 components or groups, got 9"):
            assignment_accuracy(list(range(9)), list(range(9)))


class TestAdjustedRandIndex:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize(("num_components", "num_groups"), [(1, 3), (2, 2), (3, 5), (12, 4)])
    def test_agrees_with_scikit_learn(self, seed, num_components, num_groups):
        predicted, planted = random_labels(seed, num_components, num_groups)
        assert adjusted_rand_index(predicted, planted) == pytest.approx(adjusted_rand_score(planted, predicted))

    @pytest.mark.parametrize(
        ("predicted", "planted"),
        [
            ([0, 0, 0], ["a", "a", "a"]),
            ([0, 1, 2], ["a", "b", "c"]),
            ([0], ["a"]),
            ([0, 0, 1], ["a", "b", "b"]),
            ([0, 1], [0, 0]),
        ],
    )
    def test_agrees_with_scikit_learn_at_the_edges(self, predicted, planted):
        assert adjusted_rand_index(predicted, planted) == pytest.approx(adjusted_rand_score(planted, predicted))

    def test_a_trivial_partition_agrees_with_nothing(self):
        assert assignment_accuracy([0] * 50, ["a"] * 40 + ["b"] * 10) == 0.8
        assert adjusted_rand_index([0] * 50, ["a"] * 40 + ["b"] * 10) == 0


@pytest.mark.parametrize("measure", [match_components, assignment_accuracy, adjusted_rand_index])
@pytest.mark.parametrize(("predicted", "planted"), [([0], ["a", "b"]), ([], [])])
def test_needs_one_of_each_per_annotator(measure, predicted, planted):
    with pytest.raises(ValueError, match=f"got {len(predicted)} and {len(planted)}"):
        measure(predicted, planted)
