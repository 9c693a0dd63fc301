# SPDX-License-Identifier: Apache-2.0
"""The modules in `metrics/`, loaded as a user loads them, and the pages of their Spaces."""

import importlib.util
import os
import re
import tempfile
from pathlib import Path

import pytest
import yaml


# Read at import; without it the modules would be copied into the user's own cache.
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="trl_maxmin_modules_"))
evaluate = pytest.importorskip("evaluate", reason="needs the optional extra: pip install trl-maxmin[eval]")

FOLDER = Path(__file__).parents[2] / "metrics"
GROUPS = ["a", "a", "b", "b", "b"]
CASES = {
    "group_win_rate": (
        {"predictions": [3.0, 1.0, 2.0, 2.0, 0.0], "references": [1.0, 1.0, 1.0, 5.0, 1.0], "groups": GROUPS},
        {"win_rate": {"a": 0.75, "b": 1 / 3}, "count": {"a": 2, "b": 3}},
    ),
    "worst_group": (
        {"predictions": [1.0, 0.5, 0.0, 1.0, 0.5], "groups": GROUPS},
        {"group_min": 0.5, "worst_group": "b", "by_group": {"a": 0.75, "b": 0.5}, "overall": 0.6},
    ),
    "group_gap": (
        {"predictions": [1.0, 0.5, 0.0, 1.0, 0.5], "groups": GROUPS},
        {"difference": 0.25, "ratio": 2 / 3, "by_group": {"a": 0.75, "b": 0.5}},
    ),
    "preference_diversity": (
        {"predictions": [0.9, 0.5, 0.4], "references": [0.1, 0.5, 0.3]},
        {"diversity": 0.3, "largest": 0.8, "disagreement": 1 / 3},
    ),
    "assignment_agreement": (
        {"predictions": ["1", "1", "0", "1"], "references": ["a", "a", "b", "b"]},
        {"accuracy": 0.75, "adjusted_rand_index": 0.0, "matching": {"1": "a", "0": "b"}},
    ),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    name = request.param
    # A folder, as in a clone; the id of an experiment keeps the caches of tests apart.
    metric = evaluate.load(str(FOLDER / name), experiment_id=tmp_path.name, cache_dir=str(tmp_path))
    return name, metric, *CASES[name]


def same(found, expected):
    for key, value in expected.items():
        assert found[key] == (value if isinstance(value, str) or key == "matching" else pytest.approx(value, abs=1e-9))


def test_compute_gives_hand_worked_values(case):
    _, metric, inputs, expected = case
    same(metric.compute(**inputs), expected)


def test_add_batch_gives_the_same(case):
    _, metric, inputs, expected = case
    for rows in (slice(0, 2), slice(2, None)):
        metric.add_batch(**{name: values[rows] for name, values in inputs.items()})
    same(metric.compute(), expected)


def test_combine():
    both = evaluate.combine([evaluate.load(str(FOLDER / name)) for name in ("worst_group", "group_gap")])
    found = both.compute(**CASES["worst_group"][0])
    assert found["difference"] == pytest.approx(0.25) and found["group_min"] == 0.5


def test_agreement_is_scikit_learns():
    from sklearn.metrics import adjusted_rand_score

    inputs = {"predictions": list("aabbccabca"), "references": list("xxyyzzxyyx")}
    found = evaluate.load(str(FOLDER / "assignment_agreement")).compute(**inputs)
    assert found["adjusted_rand_index"] == pytest.approx(adjusted_rand_score(*inputs.values()))


def test_no_ratio_of_negative_means():
    found = evaluate.load(str(FOLDER / "group_gap")).compute(predictions=[-1.0, 1.0], groups=["a", "b"])
    assert "ratio" not in found and found["difference"] == 2.0


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("worst_group", {"predictions": [1.0, float("nan")], "groups": ["a", "b"]}, r"groups \['b'\] have NaN"),
        ("group_gap", {"predictions": [float("nan"), 1.0], "groups": ["a", "b"]}, r"groups \['a'\] have NaN"),
        ("worst_group", {"predictions": [1.0, 2.0], "groups": ["a", None]}, "Row 1 has no group"),
        ("group_gap", {"predictions": [1.0, 2.0], "groups": ["a", None]}, "Row 1 has no group"),
        (
            "group_win_rate",
            {"predictions": [1.0, 2], "references": [1.0, 2], "groups": ["a", None]},
            "Row 1 has no gr",
        ),
        ("assignment_agreement", {"predictions": ["0", None], "references": ["a", "b"]}, "Row 1 has no component"),
        ("assignment_agreement", {"predictions": ["0", "1"], "references": ["a", None]}, "Row 1 has no group"),
        ("worst_group", {"predictions": [], "groups": []}, "no groups given"),
        ("group_win_rate", {"predictions": [], "references": [], "groups": []}, "no rows"),
        ("preference_diversity", {"predictions": [], "references": []}, "no rows"),
        ("preference_diversity", {"predictions": [0.5, float("nan")], "references": [0.5, 0.5]}, r"lie in \[0, 1\]"),
    ],
)
def test_rows_that_say_nothing_are_refused(name, inputs, message, tmp_path):
    metric = evaluate.load(str(FOLDER / name), experiment_id=tmp_path.name, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        metric.compute(**inputs)


def test_documented_inputs_and_outputs(case):
    name, metric, inputs, expected = case
    readme = (FOLDER / name / "README.md").read_text()
    for word in (*inputs, *expected):
        assert f"`{word}`" in readme
    for word in inputs:
        assert word in metric.inputs_description
    front = yaml.safe_load(readme.split("---")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and {"evaluate", "metric"} <= set(front["tags"])
    assert len(front["short_description"]) <= 60
    snippet = re.search(r"metric.compute\((.*)\)", readme).group(1)
    metric.compute(**eval(f"dict({snippet})"))


@pytest.mark.parametrize("name", CASES)
def test_the_page_of_the_space(name):
    gradio = pytest.importorskip("gradio", reason="needs the optional extra: pip install trl-maxmin[space]")
    spec = importlib.util.spec_from_file_location(f"app_{name}", FOLDER / name / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    assert isinstance(app.demo, gradio.Blocks)
    inputs, expected = CASES[name]
    rows = [list(row) for row in zip(*(inputs[column] for column in app.COLUMNS), strict=True)]
    same(app.compute(rows), expected)
    app.compute([[str(cell) for cell in row] for row in app.EXAMPLE] + [[""] * len(app.COLUMNS)])
    with pytest.raises(gradio.Error, match="at least one row"):
        app.compute([])
    if "number" in app.TYPES:
        with pytest.raises(gradio.Error, match="numbers only"):
            app.compute([["x"] * len(app.COLUMNS)])
