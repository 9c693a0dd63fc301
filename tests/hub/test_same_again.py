# SPDX-License-Identifier: Apache-2.0
"""What was pulled and is pushed again is no change at all."""

import pytest

from tests.hub.artefacts import make_adapter, make_output
from trl_maxmin.cli import main
from trl_maxmin.run_record import RunRecord


pytestmark = pytest.mark.slow


def commits(hub):
    return {id: [c.oid for c in repo.branches["main"]] for (_, id), repo in hub.store.repos.items()}


@pytest.fixture
def run(tmp_path):
    folder = make_output(tmp_path / "run")
    make_adapter(folder / "policies" / "adapter", base="org/base")
    RunRecord.update_file(folder, "reward", base_model="/home/ann/base")
    (folder / "evaluation" / "win_rate.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_a_whole_run(hub, run, tmp_path):
    command = ["--repo_id", "me/film", "--dataset", "--license", "mit"]
    assert main(["push", str(run), *command]) == 0
    before = commits(hub)
    assert main(["pull", "me/film", "--output_dir", str(tmp_path / "pulled")]) == 0
    assert main(["push", str(tmp_path / "pulled"), *command[:3]]) == 0
    assert commits(hub) == before and len(before) == 7
    # And of what was pulled from that.
    assert main(["pull", "me/film", "--output_dir", str(tmp_path / "again")]) == 0
    files = {p.relative_to(tmp_path / "pulled") for p in (tmp_path / "pulled").rglob("*") if p.is_file()}
    files = {p for p in files if not any(part.startswith(".") for part in p.parts)}
    assert files and all(
        (tmp_path / "again" / p).read_bytes() == (tmp_path / "pulled" / p).read_bytes() for p in files
    )


@pytest.mark.parametrize("part", ["mixture", "policies/maxmin", "policies/adapter", "components/concise"])
def test_one_model(hub, run, tmp_path, part):
    assert main(["push", str(run / part), "--repo_id", "me/one", "--exact", "true", "--license", "mit"]) == 0
    before = commits(hub)
    assert main(["pull", "me/one", "--output_dir", str(tmp_path / "pulled")]) == 0
    assert main(["push", str(tmp_path / "pulled"), "--repo_id", "me/one", "--exact", "true"]) == 0
    assert commits(hub) == before
