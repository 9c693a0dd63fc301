"""The grid on IMDb: cells, resuming, tables, and that the docs say what the recorded files say."""

import json
import sys

import numpy as np
import pytest

from tests.examples.test_imdb import EXAMPLE, data_dir, miniature  # noqa: F401


ROOT = EXAMPLE.parents[1]
RECORDED = EXAMPLE / "results"
# Folder of recorded cells, and block of the docs -> the recipe that they come from.
RECIPES = {"small": "small.yaml", "shares": "grid.yaml", "grpo": "grpo.yaml"}
# What else stands in a block.
BESIDE = {"shares": ["small"]}
MODULES = ("imdb_", "train_imdb", "run_grid", "report_")


@pytest.fixture
def grid(monkeypatch):
    """The example's modules, importable as they are for the scripts themselves."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    before = set(sys.modules)
    import run_grid

    yield run_grid
    for name in set(sys.modules) - before:
        if name.startswith(MODULES):
            del sys.modules[name]


@pytest.fixture
def report(grid):
    import report_grid

    return report_grid


def cell(policy, seed, concise, positive, **more):
    rates = {"concise": concise, "positive": positive}
    return {
        "trainer": "ppo",
        "minority_share": 0.2,
        "policy": policy,
        "seed": seed,
        "groups": ["concise", "positive"],
        "minority": "positive",
        "win_rate": {g: {"mean": r, "low": r - 0.05, "high": r + 0.05} for g, r in rates.items()},
        "replies": {policy: {"mean_tokens": 4.0, "finished": 1.0}},
        "kl_last": 10.0,
        "em": None,
        "samples": [{"prompt": "This", "completions": {"reference": " was `so`.", policy: ""}}],
        "settings": {"pairs": 6, "kl_coef": 0.02},
        **more,
    }


TWO = [cell("single", 0, 0.98, 0.5), cell("single", 1, 0.96, 0.4), cell("maxmin", 0, 0.94, 0.8)]
TWO += [cell("maxmin", 1, 0.94, 0.9)]


@pytest.mark.slow
def test_grid_in_miniature(grid, report, data_dir, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    output = tmp_path / "out"
    options = [*miniature(data_dir, output), "--policies", "single", "maxmin", "oracle", "--seeds", "3"]
    options += ["--shares", "0.2", "0.4", "--train_trunk", "false", "--pooling", "mean"]
    grid.main(options)
    names = sorted(path.name for path in (output / "cells").iterdir())
    assert len(names) == 6 and names[0] == "ppo_share0.20_maxmin_seed3.json"
    cells = report.read_cells(output / "cells")
    for found in cells:
        assert set(found["win_rate"]) == {"concise", "positive"} and found["num_prompts"] == 20
        assert (found["em"] is None) == (found["policy"] == "oracle")
    by_policy = {c["policy"]: c for c in cells if c["minority_share"] == 0.2}
    # The cells of a seed were measured against the same replies of the reference.
    reference = [c["gold_utility"]["reference"] for c in by_policy.values()]
    assert reference[0] == reference[1] == reference[2]

    # What is there is not run again; what is missing is.
    written = {path: path.stat().st_mtime_ns for path in (output / "cells").iterdir()}
    lost = output / "cells" / names[0]
    before = json.loads(lost.read_text())
    lost.unlink()
    grid.main(options)
    assert {p: p.stat().st_mtime_ns for p in written if p != lost} == {p: t for p, t in written.items() if p != lost}
    again = json.loads(lost.read_text())
    assert again["win_rate"] == before["win_rate"] and again["samples"] == before["samples"]
    capsys.readouterr()
    grid.main(options)
    assert "6 cells, 6 of them are there" in capsys.readouterr().out

    with pytest.raises(SystemExit, match="was made with.*pairs.*--output_dir"):
        grid.main([*options, "--pairs", "5"])

    # The oracle of a seed was trained at one share only; trained at the other one it is the same policy.
    for share in ("0.20", "0.40"):
        (output / "cells" / f"ppo_share{share}_oracle_seed3.json").unlink()
    grid.main([*options[: options.index("--shares")], *options[options.index("--train_trunk") :], "--shares", "0.4"])
    again = json.loads((output / "cells" / "ppo_share0.40_oracle_seed3.json").read_text())
    assert again["minority_share"] == 0.4
    assert again["win_rate"] == by_policy["oracle"]["win_rate"] and again["samples"] == by_policy["oracle"]["samples"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_grid_with_grpo(grid, data_dir, tmp_path):  # noqa: F811
    options = [*miniature(data_dir, tmp_path / "out"), "--policies", "maxmin", "--seeds", "0", "--trainer", "grpo"]
    grid.main([*options, "--train_trunk", "false", "--pooling", "mean", "--reference_completions", "4"])
    found = json.loads((tmp_path / "out" / "cells" / "grpo_share0.20_maxmin_seed0.json").read_text())
    assert found["kl_last"] is None and set(found["win_rate"]) == {"concise", "positive"}


def test_kl_of_a_reply(grid):
    import imdb_grid

    ppo = [{"objective/kl": 1.0}, {"objective/kl": 9.1234}, {"train_runtime": 1.0}]
    assert imdb_grid.last_kl(ppo) == 9.123
    assert imdb_grid.last_kl([{"kl": 0.5, "completions/mean_length": 12.0}]) is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"policies": ["best"]}, "policies must be some of single, maxmin"),
        ({"shares": [0.0]}, r"shares must lie in \(0, 1\)"),
        ({"seeds": [1, 1]}, "seeds must be given, each once"),
        ({"processes": 0}, "processes must be at least 1"),
        ({"trainer": "dpo"}, "trainer must be one of ppo, grpo"),
        ({"matmul_precision": "low"}, "matmul_precision must be one of"),
    ],
)
def test_bad_options(grid, options, message):
    with pytest.raises(ValueError, match=message):
        grid.GridArguments(**options)


def test_recipes_are_read(grid):
    for path in sorted((ROOT / "examples" / "recipes" / "imdb").glob("*.yaml")):
        (arguments,) = grid.TrlParser((grid.GridArguments,)).parse_args_and_config(["--config", str(path)])
        assert arguments.shares and not arguments.train_trunk


def test_failed_seed_is_said(grid, monkeypatch, tmp_path):
    class Failed:
        returncode = 1

        def __init__(self, *args, **kwargs):
            pass

        def poll(self):
            return 1

    monkeypatch.setattr(grid.subprocess, "Popen", Failed)
    monkeypatch.setattr(grid, "make_reference", lambda *args: None)
    with pytest.raises(SystemExit, match="2 of 2 seeds failed"):
        grid.main(["--output_dir", str(tmp_path)])


def test_interrupted_grid_stops_its_workers(grid, monkeypatch, tmp_path, capsys):
    class Worker:
        ended = []

        def __init__(self, *args, **kwargs):
            pass

        def poll(self):
            return None

        def terminate(self):
            self.ended.append(self)

        def wait(self):
            assert self in self.ended

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(grid.subprocess, "Popen", Worker)
    monkeypatch.setattr(grid.time, "sleep", interrupt)
    monkeypatch.setattr(grid, "make_reference", lambda *args: None)
    with pytest.raises(SystemExit) as stopped:
        grid.main(["--output_dir", str(tmp_path), "--processes", "2"])
    assert stopped.value.code == 130 and len(Worker.ended) == 2
    assert "interrupted; finished cells are kept" in capsys.readouterr().err


def test_interval_is_students(report):
    # Two values 0.3 and 0.5: mean 0.4, standard error 0.1, t(0.975, 1) = 12.706 (a table).
    found = report.interval([0.3, 0.5])
    assert found["mean"] == 0.4 and found["high"] == pytest.approx(0.4 + 1.2706, abs=1e-4)
    assert report.interval([0.3])["low"] is None


def test_differences_are_paired(report):
    (block,) = report.summarise(TWO)
    found = block["differences"]["maxmin - single"]
    # Minority +0.3 and +0.5, majority -0.04 and -0.02; the mean over groups +0.13 and +0.24.
    assert found["positive"]["mean"] == 0.4 and found["concise"]["mean"] == pytest.approx(-0.03)
    assert found["mean"]["mean"] == pytest.approx(0.185) and found["worst"]["n"] == 2
    text = report.markdown(TWO)
    assert "| single | 2 | 0.970 |" in text and "| +0.400 |" in text
    # A third seed of +0.3: mean 0.367, standard error 0.2 / 3, t(0.975, 2) = 4.303 (a table); half the width is 0.287.
    three = [*TWO, cell("single", 2, 0.97, 0.5), cell("maxmin", 2, 0.94, 0.8)]
    assert "+0.367 [+0.080, +0.65" in report.markdown(three)
    # The worst group wins 0.5 and 0.4 of the time, and ten nats at 0.02 cost 0.2.
    assert "| 4.0 | 10.0 | 0.250 |" in text
    unknown = report.markdown([cell("single", 0, 0.98, 0.5, kl_last=None)])
    assert "| 4.0 |  |  |" in unknown
    # One prompt was answered, whatever dots an answer has.
    dots = [{**c, "samples": [{"prompt": "This", "completions": {"reference": "...", c["policy"]: ""}}]} for c in TWO]
    assert "the first 1 test prompts" in report.block_of(dots)
    assert "`(ends here)`" in report.block_of(TWO) and "was 'so'." in report.block_of(TWO)


def test_cells_of_different_settings_are_kept_apart(report, tmp_path):
    with pytest.raises(ValueError, match="no cells"):
        report.read_cells(tmp_path)
    for seed, pairs in enumerate((6, 7)):
        path = tmp_path / f"ppo_seed{seed}.json"
        path.write_text(json.dumps(cell("single", seed, 0.9, 0.5, settings={"pairs": pairs})))
    with pytest.raises(ValueError, match="2 different settings"):
        report.read_cells(tmp_path)


def test_disagreement_is_found(report):
    assert report.disagreements(TWO, TWO) == []
    assert report.disagreements(TWO, TWO[2:]) == []
    moved = [cell("maxmin", 1, 0.94, 0.75)]
    (line,) = report.disagreements(moved, TWO)
    # A third recorded seed of 0.75: the mean is 0.817 and the deviation 0.076, so 0.817 +- 4.303 x 0.076 x 1.155.
    three = [*TWO, cell("maxmin", 2, 0.94, 0.75)]
    assert report.disagreements(moved, three) == []
    assert report.disagreements([cell("maxmin", 1, 0.94, 0.49)], three) == []
    assert len(report.disagreements([cell("maxmin", 1, 0.94, 0.35)], three)) == 1
    assert "maxmin" in line and "positive" in line


def test_against_recorded_cells(report, tmp_path, capsys):
    for folder, rate in (("now", 0.8), ("then", 0.82), ("other", 0.6)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ppo_seed0.json").write_text(json.dumps(cell("maxmin", 0, 0.9, rate)))
    report.main(["--cells", str(tmp_path / "now"), "--against", str(tmp_path / "then")])
    assert "1 of 1 cells are recorded" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="differ from the recorded cells"):
        report.main(["--cells", str(tmp_path / "now"), "--against", str(tmp_path / "other")])
    report.main(["--cells", str(tmp_path / "now"), "--against", str(tmp_path / "nowhere")])
    assert "0 of 1 cells are recorded" in capsys.readouterr().out


def test_documents_get_their_block(report, tmp_path):
    for number, each in enumerate(TWO):
        (tmp_path / f"ppo_{number}_seed{number}.json").write_text(json.dumps(each))
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n")
    figure = tmp_path / "pareto.png"
    report.main(["--cells", str(tmp_path), "--docs", str(document), "--name", "x", "--figure", str(figure)])
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "0.850" in text
    assert figure.stat().st_size > 10_000
    with pytest.raises(SystemExit, match="There are no cells of mirror"):
        report.main(["--cells", str(tmp_path), "--policies", "mirror", "single"])
    with pytest.raises(SystemExit, match=r"\('ppo', 0.2, 'single', 0\) is there more than once"):
        report.main(["--cells", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit, match="needs the lines `<!-- y: begin -->`"):
        report.main(["--cells", str(tmp_path), "--docs", str(document), "--name", "y"])


def test_several_shares(report, tmp_path, capsys):
    folders = [tmp_path / "a", tmp_path / "b"]
    em = {"heldout_accuracy": {"mixture": {"positive": 0.75}, "single": {"positive": 0.45}}}
    em |= {"heldout_ceiling": {"positive": 0.9}, "assignment_accuracy": 1.0, "selected_num_components": 1}
    low = [cell("single", 0, 0.99, 0.4, minority_share=0.05), cell("maxmin", 0, 0.9, 0.7, minority_share=0.05, em=em)]
    for folder, cells in zip(folders, (TWO, [*low, cell("mirror", 0, 0.9, 0.65, minority_share=0.05)]), strict=True):
        folder.mkdir()
        for each in cells:
            (folder / f"{each['policy']}_seed{each['seed']}.json").write_text(json.dumps(each))
    figure = tmp_path / "shares.png"
    options = ["--policies", "single", "maxmin", "--figure", str(figure)]
    report.main(["--cells", *map(str, folders), *options])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:15] for line in lines if line.startswith("| 0.")] == [
        *("| 0.05 | maxmin", "| 0.05 | single", "| 0.20 | maxmin", "| 0.20 | single"),
        *("| 0.05 | maxmin", "| 0.20 | maxmin", "| 0.05 | 1 | 0."),
    ]
    # The minority gains 0.3 at the smaller share; nobody chose two components there.
    assert any(line.startswith("| 0.05 | maxmin - single | 1 | -0.090 | +0.300 |") for line in lines)
    assert "| 0.05 | 1 | 0.750 | 0.450 | 0.900 | 1.000 | 0 of 1 |" in lines
    assert figure.stat().st_size > 10_000


def test_documents_are_written_before_anything_is_printed(report, tmp_path, monkeypatch):
    def closed(*args, **kwargs):
        raise BrokenPipeError

    (tmp_path / "ppo_seed0.json").write_text(json.dumps(TWO[0]))
    document = tmp_path / "page.md"
    document.write_text("<!-- x: begin -->\nold\n<!-- x: end -->\n")
    monkeypatch.setattr(report, "print", closed, raising=False)
    with pytest.raises(BrokenPipeError):
        report.main(["--cells", str(tmp_path), "--docs", str(document), "--name", "x"])
    assert "| single | 1 | 0.980 |" in document.read_text()


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"shares/ppo_share0.40_{name}_seed{seed}.json"
            for name in ("maxmin", "mirror", "sample_min")
            for seed in (2, 4)
        ),
        *(f"shares/ppo_share0.10_{name}_seed2.json" for name in ("maxmin", "mirror")),
        *(f"shares/ppo_share0.05_{name}_seed2.json" for name in ("maxmin", "sample_min")),
        "grpo_rates/grpo_rate1e-3_maxmin_seed0.json",
    ],
)
def test_single_runs_that_the_docs_name(report, path):
    rates = report.rates(json.loads((RECORDED / path).read_text()))
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert f"{rates['concise']:.3f} / {rates['positive']:.3f}" in text


def test_runs_below_080_and_ranges_that_the_docs_name(report):
    rate = {
        (share, policy, seed): report.rates(
            json.loads((RECORDED / folder / f"ppo_share{share}_{policy}_seed{seed}.json").read_text())
        )["positive"]
        for share, folder in {"0.05": "shares", "0.10": "shares", "0.20": "small", "0.40": "shares"}.items()
        for policy in ("single", "maxmin", "mirror", "sample_min", "utilitarian")
        for seed in range(5)
    }
    low = {policy: sum(value < 0.8 for (_, p, _), value in rate.items() if p == policy) for _, policy, _ in rate}
    assert (low["maxmin"], low["mirror"], low["sample_min"]) == (2, 4, 1)
    text = " ".join((ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8").split())
    assert "in two with `maxmin`, in four with `mirror`, in one with `sample_min`" in text
    for policies, words in {
        ("maxmin", "mirror", "sample_min"): "worst-off group give them much the same",
        ("utilitarian",): "the sum of the utilities stops half-way",
        ("single",): "leaves them where the reference was",
    }.items():
        means = [
            np.mean([rate[share, policy, seed] for seed in range(5)])
            for share in ("0.05", "0.10", "0.20", "0.40")
            for policy in policies
        ]
        assert f"{words} ({min(means):.2f} to {max(means):.2f})" in text


def test_what_the_majority_has_from_the_smoother_rules(report):
    cells = [
        json.loads(path.read_text()) for name in ("shares", "small") for path in (RECORDED / name).rglob("*.json")
    ]
    majority = {(c["minority_share"], c["policy"], c["seed"]): c["win_rate"]["concise"]["mean"] for c in cells}
    text = " ".join((ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8").split())
    for policy, words in {
        "mirror": "({mean:+.3f} [{low:+.3f}, {high:+.3f}] over hard switching, the four shares averaged seed by seed)",
        "sample_min": "({mean:+.3f} [{low:+.3f}, {high:+.3f}])",
    }.items():
        by_seed = [
            np.mean(
                [majority[share, policy, seed] - majority[share, "maxmin", seed] for share in (0.05, 0.1, 0.2, 0.4)]
            )
            for seed in range(5)
        ]
        mean, margin = np.mean(by_seed), 2.776 * np.std(by_seed, ddof=1) / 5**0.5
        assert words.format(mean=mean, low=mean - margin, high=mean + margin) in text


def test_mirror_against_hard_switching_under_grpo(report):
    runs = {
        policy: [
            report.rates(json.loads((RECORDED / "grpo" / f"grpo_share0.20_{policy}_seed{seed}.json").read_text()))
            for seed in range(5)
        ]
        for policy in ("maxmin", "mirror")
    }
    text = " ".join((ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8").split())
    for group, words in {
        "positive": "the minority gains {mean:.3f} [{low:+.3f}, {high:+.3f}] over it",
        "concise": "the majority's difference is {mean:+.3f} [{low:+.3f}, {high:+.3f}]",
        "worst": "the worst group's {mean:+.3f} [{low:+.3f}, {high:+.3f}] (paired over the five seeds)",
    }.items():
        values = np.subtract(*([run[group] for run in runs[policy]] for policy in ("mirror", "maxmin")))
        margin = 2.776 * values.std(ddof=1) / 5**0.5  # Student's t for four degrees of freedom
        mean = values.mean()
        assert words.format(mean=mean, low=mean - margin, high=mean + margin) in text


@pytest.mark.parametrize("name", RECIPES)
def test_recorded_runs_are_what_the_docs_say(report, name):
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    begin, end = f"<!-- imdb-{name}: begin -->\n", f"<!-- imdb-{name}: end -->"
    block = text.split(begin)[1].split(end)[0].removesuffix("\n")
    # Until a run is recorded the block is empty: no number without its file.
    folder = RECORDED / name
    folders = [folder, *(RECORDED / other for other in BESIDE.get(name, []))]
    assert block == (report.block_of(report.read_cells(*folders)) if folder.is_dir() else "")


@pytest.mark.parametrize("name, recipe", RECIPES.items())
def test_recorded_runs_have_the_recipes_settings(grid, report, name, recipe):
    path = ROOT / "examples" / "recipes" / "imdb" / recipe
    (arguments,) = grid.TrlParser((grid.GridArguments,)).parse_args_and_config(["--config", str(path)])
    for found in report.read_cells(RECORDED / name) if (RECORDED / name).is_dir() else []:
        assert found["settings"] == arguments.settings() and found["trainer"] == arguments.trainer
        assert np.isclose(found["minority_share"], arguments.shares).any()


def test_table_of_levers_is_what_the_docs_say(grid):
    import report_levers

    folder = EXAMPLE / "results" / "levers"
    table = report_levers.table(
        [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    )
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert f"<!-- imdb-levers: begin -->\n{table}\n<!-- imdb-levers: end -->" in text


def test_table_of_levers_by_hand(grid, tmp_path):
    import report_levers

    settings = {"max_new_tokens": 8, "preference_prompts": 9, "pairs": 7, "pooling": "mean", "train_trunk": True}
    settings |= {"prior_scale": 3.0, "kl_coef": 0.1, "policy_learning_rate": 1e-4, "ppo_epochs": 4, "policy_steps": 2}
    em = {"heldout_accuracy": {"mixture": {"concise": 0.9, "positive": 0.75}}}
    cells = [cell("single", 0, 0.98, 0.5, settings=settings), cell("maxmin", 0, 0.9, 0.8, settings=settings, em=em)]
    assert report_levers.table(cells).splitlines()[2:] == [
        "| 8 | 9 | 7 | all blocks, mean, trained | 3.0 | zscore | 0.1 | 0.0001 | 4 | 2 | 0.750 | 0.980 / 0.500 "
        "| 0.900 / 0.800 |  |"
    ]

    with pytest.raises(SystemExit, match="no cells"):
        report_levers.main(["--cells", str(tmp_path)])
    (tmp_path / "a.json").write_text(json.dumps(cells[0]))
    docs = tmp_path / "docs.md"
    docs.write_text("a\n<!-- imdb-levers: begin -->\nold\n<!-- imdb-levers: end -->\nb")
    report_levers.main(["--cells", str(tmp_path), "--docs", str(docs)])
    assert "| 0.980 / 0.500 |  |  |" in docs.read_text() and "old" not in docs.read_text()
