# SPDX-License-Identifier: Apache-2.0
"""Figures: written, without text over text, and clear about what they cannot draw."""

import numpy as np
import pytest

from trl_maxmin.evaluation import (
    GroupScores,
    plot_diagnosis,
    plot_groups,
    plot_pareto,
    plot_training,
    plots,
    summarise,
)


@pytest.fixture
def results():
    noise = np.random.default_rng(0).normal(size=(40, 4))
    utilities = {"reference": noise, "single": noise + [1, -1, 0.5, 0.5], "maxmin": noise[::-1] + 0.4}
    utilities["a rather long name of a policy"] = noise[::-1]
    groups = {"concise": "gold", "positive": "gold", "component_0": "component", "component_1": "component"}
    return summarise(GroupScores(groups, utilities, range(40), "reference"), num_resamples=200)


@pytest.fixture
def no_overlap(monkeypatch):
    """Every figure that is saved is checked: no two texts may cross, none may leave the canvas."""
    checked, save = [], plots._save

    def check(figure, path):
        renderer = figure.canvas.get_renderer()
        figure.canvas.draw()
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        for axes in figure.axes:
            texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                # Ticks beyond the view exist, but are not drawn.
                texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts = [text for text in texts if text.get_text().strip()]
        boxes = [text.get_window_extent(renderer) for text in texts]
        width, height = figure.canvas.get_width_height()
        for i, box in enumerate(boxes):
            assert -1 <= box.x0 and box.x1 <= width + 1 and -1 <= box.y0 and box.y1 <= height + 1, texts[i].get_text()
            for j in range(i):
                other = boxes[j]
                apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0
                assert apart, (texts[i].get_text(), texts[j].get_text())
        checked.append(len(texts))
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", check)
    return checked


DIAGNOSIS = {
    "num_groups": 2,
    "selection": {k: {"difference": d, "standard_error": 0.01} for k, d in (("1", 0.3), ("2", 0.0), ("3", 0.02))},
    "curves": {f"component_{k}": [[0.1, 3.0 + k], [0.5, 1.5], [0.9, 0.2]] for k in range(2)},
    "by_group": {
        "component_0": {"share": 0.8, "gap": {"mean": 0.6}},
        "component_1": {"share": 0.2, "gap": {"mean": 3}},
    },
}


def many(groups, policies):
    utilities = {f"policy {p}": np.random.default_rng(p).normal(p / 4, 1, size=(30, groups)) for p in range(policies)}
    kinds = {f"a group, number {k} of them": "gold" for k in range(groups)}
    return summarise(GroupScores(kinds, utilities, range(30), "policy 0"), num_resamples=100)


def test_many_groups_go_on_in_further_rows(tmp_path):
    """At the 830 pixels of a README page no text gets smaller than about 9."""
    from PIL import Image

    for groups, policies in ((2, 3), (5, 4), (9, 5)):
        with Image.open(plot_groups(many(groups, policies), tmp_path / "x.png", "utility")) as image:
            assert image.width <= 160 * 9.5, (groups, policies)


def test_every_figure_is_written_without_overlap(results, tmp_path, no_overlap):
    curves = {
        name: [[i, i * k / 40] for i in range(40)] for k, name in enumerate(["single", "maxmin", "softmin", "nash"])
    }
    paths = [
        plot_groups(results, tmp_path / "new" / "wins.png"),
        plot_groups(results, tmp_path / "utility.png", "utility", kind="gold"),
        plot_pareto(results, tmp_path / "pareto.png", "concise", "positive"),
        plot_pareto(results, tmp_path / "pareto2.png", "concise", "positive", measure="win_rate"),
        plot_training(curves, tmp_path / "training.png"),
        plot_training(curves, tmp_path / "bands.png", bands={"maxmin": [[0, -1, 1], [39, 0, 2]]}),
        plot_groups(many(6, 2), tmp_path / "six.png"),
        plot_groups(many(9, 5), tmp_path / "nine.png", "utility"),
        plot_diagnosis(DIAGNOSIS, tmp_path / "diagnosis.png"),
        plot_diagnosis(DIAGNOSIS | {"num_groups": 1, "curves": {}}, tmp_path / "one.png"),
    ]
    assert all(path.stat().st_size > 5000 for path in paths) and len(no_overlap) == len(paths)


def test_fills_differ_in_grey():
    """Of policies without a hatch, no two have nearly the same lightness."""
    from matplotlib.colors import to_rgb

    from trl_maxmin.evaluation.figures import _styles

    plain = [
        style for style in _styles(["reference", "single", "maxmin", "oracle", "x", "y"]).values() if not style.hatch
    ]
    grey = sorted(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (to_rgb(style.fill) for style in plain))
    assert all(later - earlier > 0.15 for earlier, later in zip(grey, grey[1:], strict=False))


def test_ten_policies_have_ten_styles():
    from trl_maxmin.evaluation.figures import _styles

    styles = _styles(["reference", "single", "maxmin", "oracle", *(f"run {i}" for i in range(6))]).values()
    assert len({(style.fill, style.hatch) for style in styles}) == len({style.marker for style in styles}) == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda results, path: plot_groups(results, path, "luck"),
            "Unknown measure 'luck'; measures: win_rate, utility",
        ),
        (lambda results, path: plot_groups(results, path, kind="judge"), "No policy has a win_rate"),
        (lambda results, path: plot_pareto(results, path, "concise", "tall"), "two of the groups"),
        (lambda results, path: plot_training({"a": []}, path), "no curve with a point"),
        (
            lambda results, path: plot_training({"a": [[0, 1]]}, path, bands={"b": [[0, 0, 1]]}),
            r"bands of \['b'\], but curves only of \['a'\]",
        ),
    ],
)
def test_bad_input_is_named(results, tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(results, tmp_path / "x.png")


def test_a_measure_that_nobody_has_for_both_groups(results, tmp_path):
    for entry in results["policies"].values():
        entry["by_group"]["positive"] = {}
    with pytest.raises(ValueError, match="No policy has a utility for both"):
        plot_pareto(results, tmp_path / "x.png", "concise", "positive")
