# SPDX-License-Identifier: Apache-2.0
import copy
import sys

import matplotlib.image
import pytest

from trl_maxmin.evaluation import figures, plot_comparison


def interval(mean):
    return {"mean": mean, "low": max(0.0, mean - 0.03), "high": min(1.0, mean + 0.03)}


@pytest.fixture
def report():
    return {
        "groups": ["concise", "positive"],
        "minority": "positive",
        "gold_utility": {
            "reference": {"concise": 0.46, "positive": 0.27},
            "single": {"concise": 0.96, "positive": 0.02},
            "maxmin": {"concise": 0.68, "positive": 0.74},
        },
        "win_rate": {
            "single": {"concise": interval(1.0), "positive": interval(0.15)},
            "maxmin": {"concise": interval(0.96), "positive": interval(0.95)},
        },
    }


def size(path):
    return matplotlib.image.imread(path).shape[:2]


def test_two_panels_of_at_least_900_pixels(report, tmp_path):
    path = plot_comparison(report, tmp_path / "made" / "comparison.png")
    height, width = size(path)
    assert width >= 900
    assert 0.4 < height / width < 0.7


def test_the_report_is_not_changed_and_the_picture_depends_on_it(report, tmp_path):
    before = copy.deepcopy(report)
    first = plot_comparison(report, tmp_path / "a.png").read_bytes()
    assert report == before
    assert plot_comparison(report, tmp_path / "b.png").read_bytes() == first
    report["win_rate"]["maxmin"]["positive"] = interval(0.5)
    assert plot_comparison(report, tmp_path / "c.png").read_bytes() != first


@pytest.mark.parametrize("change", [{"minority": None}, {"gold_utility": {}}, {"groups": ["concise"]}])
def test_without_a_minority_or_utilities_there_is_one_panel(report, tmp_path, change):
    narrow = size(plot_comparison({**report, **change}, tmp_path / "one.png"))
    wide = size(plot_comparison(report, tmp_path / "two.png"))
    assert narrow[1] < wide[1]


def test_oracle_and_policies_without_a_style_of_their_own(report, tmp_path):
    for name in ("oracle", "softmin", "nash"):
        report["gold_utility"][name] = {"concise": 0.6, "positive": 0.5}
        report["win_rate"][name] = {"concise": interval(0.9), "positive": interval(0.7)}
    assert plot_comparison(report, tmp_path / "many.png").exists()


def test_policies_differ_without_colour(report):
    styles = figures._styles(["reference", "single", "maxmin", "oracle", "softmin", "nash", "utilitarian"])
    assert len({style.marker for style in styles.values()}) == len(styles)
    assert len({(style.fill, style.hatch) for style in styles.values()}) == len(styles)


def test_nothing_drawn_overlaps(report, tmp_path, monkeypatch):
    """Texts of the finished figure do not cover each other."""
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (drawn.append(self), save(self, *args, **kwargs))
    )
    report["win_rate"]["oracle"] = {"concise": interval(0.97), "positive": interval(0.97)}
    report["gold_utility"]["oracle"] = {"concise": 0.66, "positive": 0.78}
    plot_comparison(report, tmp_path / "comparison.png")
    (figure,) = drawn
    texts = [text for axes in figure.axes for text in axes.texts]
    texts += [item for axes in figure.axes for item in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        # An axis also keeps ticks just outside its limits; they are not drawn.
        low, high = axis.get_view_interval()
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts += figure.legends[0].get_texts()
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    frame = figure.bbox
    for index, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


@pytest.mark.parametrize("missing", ["groups", "win_rate"])
def test_needs_groups_and_win_rates(report, tmp_path, missing):
    del report[missing]
    with pytest.raises(ValueError, match="needs groups and win_rate"):
        plot_comparison(report, tmp_path / "comparison.png")


def test_a_policy_without_a_group(report, tmp_path):
    del report["win_rate"]["maxmin"]["positive"]
    with pytest.raises(ValueError, match=r"win_rate of 'maxmin' lacks the groups \['positive'\]"):
        plot_comparison(report, tmp_path / "comparison.png")


def test_pyplot_is_not_needed():
    import subprocess

    code = "import trl_maxmin.evaluation, sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
