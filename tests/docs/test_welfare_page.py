# SPDX-License-Identifier: Apache-2.0
"""The example of docs/welfare.md: the page says what the script computes, and the script computes what is right."""

import runpy
from pathlib import Path

import numpy as np
import pytest


DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(DOCS / "welfare_rules.py"))


def test_the_page_has_the_numbers_of_the_script(example):
    page = (DOCS / "welfare.md").read_text()
    for name, *numbers in example["table"]():
        assert f"| {name} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |" in page


def test_the_saddle_point_is_the_largest_worst_utility_on_a_grid(example):
    """Max-min with the KL term, by trying policies: 231 mixtures of short, praise and both."""
    utilities, reference, beta = example["UTILITIES"], example["REFERENCE"], example["BETA"]

    def objective(policy):
        kl = float((policy * np.log(np.maximum(policy, 1e-12) / reference)).sum())
        return float((policy @ utilities).min()) - beta * kl

    solved = objective(example["settled"]("maxmin"))
    grid = [np.array([i, j, 20 - i - j, 0.0]) / 20 * 0.999 + 0.00025 for i in range(21) for j in range(21 - i)]
    best = max(objective(policy) for policy in grid)
    assert solved >= best and solved - best < 0.01


def test_the_utilitarian_policy_is_the_closed_form_for_equal_weights(example):
    exponents = np.exp(example["UTILITIES"].mean(axis=1) / example["BETA"])
    assert example["settled"]("utilitarian") == pytest.approx(exponents / exponents.sum(), abs=1e-6)


def test_sample_min_is_at_least_as_good_at_its_own_objective_and_worse_at_max_min(example):
    policies, minimum = example["policies"](), example["expected_minimum"]
    worst = {name: float(example["utilities"](policy).min()) for name, policy in policies.items()}
    assert max(policies, key=lambda name: minimum(policies[name])) == "sample_min"
    assert max(worst, key=worst.get) == "maxmin = mirror = leximin"


def test_leximin_and_the_rule_with_the_gini_s_own_weights_settle_where_maxmin_does(example):
    expected = example["settled"]("maxmin")
    assert example["settled"]("leximin", delta=0.05) == pytest.approx(expected, abs=1e-6)
    assert example["settled"]("gini") == pytest.approx(expected, abs=1e-6)


def test_regret_is_equal_and_smaller_than_under_maxmin_on_a_grid(example):
    """The largest loss against one's own best, both computed by trying policies of the frontier."""
    best_policy, gold = example["best_policy"], example["UTILITIES"]
    frontier = [best_policy(gold @ np.array([w, 1 - w])) @ gold for w in np.linspace(0, 1, 2001)]
    best = np.array([frontier[-1][0], frontier[0][1]])
    smallest = min((best - point).max() for point in frontier)
    found = best - example["utilities"](example["settled"]("regret"))
    assert found[0] == pytest.approx(found[1], abs=1e-6) and found.max() == pytest.approx(smallest, abs=1e-3)
    assert (best - example["utilities"](example["settled"]("maxmin"))).max() > smallest + 0.05


def test_mirror_comes_to_rest_where_hard_switching_does_not(example):
    value = example["utilities"](example["settled"]("maxmin")).min()
    half = example["STEPS"] // 2
    mirror, maxmin = (example["trajectory"](rule)[half:].min(axis=1) for rule in ("mirror", "maxmin"))
    assert mirror.mean() > 0.98 * value and mirror.min() > 0.95 * value
    assert maxmin.mean() < 0.9 * value and maxmin.min() < 0.7 * value


def test_the_figure(example, tmp_path):
    example["draw"](tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    assert (DOCS / "welfare_rules.png").is_file()
