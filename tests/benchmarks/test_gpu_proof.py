# SPDX-License-Identifier: Apache-2.0
"""The proof for a GPU, as far as a CPU can run it: its steps, its table, its refusals."""

import json

import pytest

from benchmarks import gpu_proof
from benchmarks.gpu_proof import STEPS, Step, arguments_of, main, tables


def test_the_steps_fit_ten_minutes_and_their_programs_are_there():
    assert sum(step.limit for step in STEPS.values()) <= 600
    for name, step in STEPS.items():
        words = arguments_of(step, gpu_proof.ROOT / "x.json", tiny=False)
        if words[0] == "-m":
            assert all((gpu_proof.ROOT / word).exists() for word in words if word.startswith("tests/")), name
        else:
            assert (gpu_proof.ROOT / words[0]).is_file() and str(gpu_proof.ROOT / "x.json") in words
        assert "cuda" not in arguments_of(step, gpu_proof.ROOT, tiny=True)[-len(step.tiny) :]


def test_a_step_that_fails_or_takes_too_long_is_told_and_stops_no_other(tmp_path, monkeypatch, capsys):
    write = "import json,sys; json.dump({'commands': {'ppo': {'seconds': 2.0, 'status': 0}}}, open(sys.argv[1], 'w'))"
    steps = {
        "slow": Step("Slow", 1, ["-c", "import time; time.sleep(60)"]),
        "wrong": Step("Wrong", 60, ["-c", "raise SystemExit(3)"]),
        "commands": Step("Commands", 60, ["-c", write, "OUT"]),
    }
    monkeypatch.setattr(gpu_proof, "STEPS", steps)
    monkeypatch.setattr(gpu_proof.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("benchmarks.peak_memory.torch.cuda.get_device_name", lambda: "a fast one")
    assert main(["--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "steps.json").read_text())["steps"]
    assert [record[name]["status"] for name in steps] == [124, 3, 0]
    text = (tmp_path / "tables.md").read_text()
    assert "on a fast one" in text and "| `ppo` | 2 s |" in text and "status 0)" in text
    assert main(["--out", str(tmp_path), "--only", "commands"]) == 0


def test_counts_of_the_tests_come_from_what_pytest_wrote(tmp_path):
    path = tmp_path / "x.xml"
    path.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1"><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure/></testcase><testcase classname="a" name="d"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    assert gpu_proof.read_counts(path) == {"tests": 3, "failures": 1, "errors": 0, "skipped": 1, "failed": ["a::c"]}


def test_tables_say_what_the_files_say(tmp_path):
    (tmp_path / "steps.json").write_text(json.dumps({"machine": {"gpu": None}, "steps": {}}))
    names = ("episodes_per_second", "tokens_per_second", "peak_rollout_mib", "peak_update_mib")
    summary = {f"{name}_ratio": 3.25 for name in names}
    (tmp_path / "ppo_1b.json").write_text(json.dumps({"settings": {"sides": ["trl", "ours"]}, "summary": summary}))
    (tmp_path / "memory_7b.json").write_text(json.dumps({"summary": {"ppo": {"ratio": 1.0214}}}))
    (tmp_path / "backends_1b.json").write_text(
        json.dumps({"rows": [{"prompts": 512, "limit": 512, "mean": 0, "ratio": 0.5}]})
    )
    text = tables(tmp_path)
    assert "a CPU (dry run)" in text and "| episodes_per_second, ours / trl | 3.25 |" in text
    assert "| ppo, K = 4 against one base | 1.021 |" in text and "| 512 x 512, mean the limit | 0.50 |" in text


@pytest.mark.parametrize("options", [["--device", "cpu"], ["--device", "cuda"]])
def test_what_it_cannot_do_is_refused(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_proof.torch.cuda, "is_available", lambda: False)
    assert main([*options, "--out", str(tmp_path)]) == 1
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_of_a_step(tmp_path):
    assert main(["--device", "cpu", "--tiny", "--only", "backends_1b", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "backends_1b.json").read_text())
    assert record["rows"][0]["prompts"] == 4
