# SPDX-License-Identifier: Apache-2.0
"""Large files through Xet, which is what every user's machine does: upload, download, refusals."""

import pytest
from huggingface_hub import HfApi, constants, snapshot_download

from tests.hub.artefacts import make_output
from tests.hub.test_fault_matrix import build, check_matrix
from tests.hub_xet import read_shards
from trl_maxmin.hub import HubError, plan_output_folder, publish, pull


pytest.importorskip("hf_xet", reason="hf_xet is not installed, so large files go by LFS")


@pytest.fixture(scope="module")
def server():
    from tests.hub_server import HubServer

    with HubServer(xet=True) as server:
        yield server


def test_round_trip(hub, tmp_path):
    publish(plan_output_folder(make_output(tmp_path / "out"), "me/film").repos)
    assert any("xet-write-token" in path for _, path, _ in hub.log)
    assert not any(path.endswith("objects/batch") for _, path, _ in hub.log), "nothing went by LFS"
    blob = hub.store.repos["model", "me/film-mixture"].commit("main").files["model.safetensors"]
    assert blob.data is None and read_shards(hub.xet_folder)[blob.sha256] == (blob.xet, blob.size)
    folder = snapshot_download("me/film-mixture", local_dir=tmp_path / "again")
    original = (tmp_path / "out" / "mixture" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == original and folder


def test_without_xet_the_same_bytes_come(hub, tmp_path, monkeypatch):
    publish(plan_output_folder(make_output(tmp_path / "out"), "me/film").repos)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    pulled = pull("me/film-mixture", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "mixture" / "model.safetensors"
    ).read_bytes()
    assert pulled[0].left_out == []


@pytest.mark.parametrize("fault", [401, 403, 404, "drop"])
def test_refusals(hub, tmp_path, fault):
    hub.inject(fault, path="xet-write-token")
    with pytest.raises(HubError, match=r"storage of large files \(Xet\).*HF_HUB_DISABLE_XET=1"):
        build("mixture", tmp_path, 0)()
    assert set(hub.store.repos["model", "me/film-mixture"].commit("main").files) == {".gitattributes"}
    hub.heal()
    assert build("mixture", tmp_path, 0)()[0].status == "updated"


def test_the_other_way_works(hub, tmp_path, monkeypatch):
    hub.inject(403, path="xet-write-token")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert build("mixture", tmp_path, 0)()[0].status == "created"
    assert HfApi().model_info("me/film-mixture").sha


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "policy"])
def test_matrix(hub, tmp_path, kind):
    faults = (401, 403, 404, 409, 412, 429, 500, "drop", "lost", "cut", "garbage")
    sequence, cases, failed = check_matrix(hub, kind, tmp_path, faults, first=True)
    print(f"\nXet {kind}: {sequence} requests, {cases} cases, {failed} failed pushes")
    assert cases == sequence * len(faults) and failed > 0
