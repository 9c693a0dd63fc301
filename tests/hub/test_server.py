# SPDX-License-Identifier: Apache-2.0
"""Our own Hub against the real client: what it accepts, what it refuses, and as what the client reports it."""

import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import OTHER, READ, HubServer
from tests.hub_store import lfs_pointer_oid


def add(**files):
    return [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()]


def test_users(hub):
    assert HfApi().whoami()["name"] == "me" and HfApi(token=OTHER).whoami()["name"] == "other"
    with pytest.raises(HfHubHTTPError):
        HfApi(token="hf_nobodyknows").whoami()


@pytest.mark.parametrize("type", ["model", "dataset"])
def test_commit_and_download(hub, type, tmp_path):
    api = HfApi()
    api.create_repo("me/x", repo_type=type)
    large = bytes(range(256)) * 40
    api.create_commit("me/x", add(a__txt=b"small", m__safetensors=large), commit_message="one", repo_type=type)
    tree = {entry.path: entry for entry in api.list_repo_tree("me/x", repo_type=type)}
    assert tree["m.safetensors"].lfs.size == len(large) and tree["a.txt"].lfs is None
    assert tree["m.safetensors"].blob_id == lfs_pointer_oid(tree["m.safetensors"].lfs.sha256, len(large))
    folder = snapshot_download("me/x", repo_type=type, local_dir=tmp_path)
    assert (tmp_path / "m.safetensors").read_bytes() == large and (tmp_path / "a.txt").read_text() == "small"
    assert folder and [c.title for c in api.list_repo_commits("me/x", repo_type=type)] == ["one", "initial commit"]


def test_git_names_blobs_as_git_does(hub, tmp_path):
    api = HfApi()
    api.create_repo("me/x")
    api.create_commit("me/x", add(a__txt=b"what git says\n"), commit_message="m")
    (tmp_path / "a.txt").write_bytes(b"what git says\n")
    name = subprocess.run(["git", "hash-object", tmp_path / "a.txt"], capture_output=True, text=True, check=True)
    assert next(e.blob_id for e in api.list_repo_tree("me/x") if e.path == "a.txt") == name.stdout.strip()


def test_a_large_file_comes_in_parts(hub):
    api = HfApi()
    api.create_repo("me/x")
    data = bytes(range(256)) * 20_000  # 5 MB
    api.create_commit("me/x", add(m__safetensors=data), commit_message="m")
    parts = [path for method, path, _ in hub.log if method == "PUT"]
    assert len(parts) == 5
    with open(hf_hub_download("me/x", "m.safetensors"), "rb") as file:
        assert file.read() == data


def test_the_storage_gets_no_token(hub):
    api = HfApi()
    api.create_repo("me/x", private=True)
    api.create_commit("me/x", add(m__safetensors=b"12345"), commit_message="m")
    hf_hub_download("me/x", "m.safetensors")
    url = next(path for method, path, status in hub.log if method == "GET" and path.startswith("/_storage"))
    request = urllib.request.Request(hub.cdn + url, headers={"Authorization": "Bearer x"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


class TestRefusals:
    def test_private_is_unseen(self, hub):
        HfApi().create_repo("me/x", private=True)
        for api in (HfApi(token=OTHER), HfApi(token=False)):
            with pytest.raises(RepositoryNotFoundError):
                api.model_info("me/x")

    @pytest.mark.parametrize("token", [READ, OTHER])
    def test_who_may_not_write(self, hub, token):
        HfApi().create_repo("me/x")
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi(token=token).create_commit("me/x", add(a=b"1"), commit_message="m")
        assert caught.value.response.status_code == 403

    def test_names(self, hub):
        api = HfApi()
        api.create_repo("me/x")
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_repo("me/x")
        assert caught.value.response.status_code == 409 and api.create_repo("me/x", exist_ok=True).repo_id == "me/x"
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_repo("other/x")
        assert caught.value.response.status_code == 403

    def test_a_stale_parent(self, hub):
        api = HfApi()
        api.create_repo("me/x")
        parent = api.model_info("me/x").sha
        api.create_commit("me/x", add(a=b"1"), commit_message="m", parent_commit=parent)
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_commit("me/x", add(a=b"2"), commit_message="m", parent_commit=parent)
        assert caught.value.response.status_code == 412

    def test_what_is_missing(self, hub):
        HfApi().create_repo("me/x")
        with pytest.raises(RevisionNotFoundError):
            HfApi().model_info("me/x", revision="dev")
        with pytest.raises(EntryNotFoundError):
            hf_hub_download("me/x", "nothing.txt")
        with pytest.raises(RepositoryNotFoundError):
            HfApi().model_info("me/y")

    def test_a_bad_card_in_a_commit(self, hub):
        HfApi().create_repo("me/x")
        with pytest.raises(ValueError, match="Invalid metadata in README.md"):
            HfApi().create_commit("me/x", add(README__md=b"---\nlicense: mine\n---\n"), commit_message="m")
        with pytest.raises(ValueError, match="license"):
            ModelCard("---\nlicense: mine\n---\n").validate()
        assert "README.md" not in hub.store.repos["model", "me/x"].commit("main").files

    def test_a_pointer_to_nothing(self, hub):
        repo = HfApi().create_repo("me/x").repo_id
        body = b'{"key":"header","value":{"summary":"m"}}\n'
        body += b'{"key":"lfsFile","value":{"path":"m.bin","algo":"sha256","oid":"' + b"0" * 64 + b'","size":3}}\n'
        url, headers = f"{hub.endpoint}/api/models/{repo}/commit/main", {"Authorization": "Bearer hf_meWrite0000"}
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers, method="POST"))

    def test_paths_out_of_the_repository(self, hub):
        HfApi().create_repo("me/x")
        operation = CommitOperationAdd("a", b"1")
        operation.path_in_repo = "../a"
        with pytest.raises(BadRequestError):
            HfApi().create_commit("me/x", [operation], commit_message="m")

    def test_texts_of_collections(self, hub):
        with pytest.raises(HfHubHTTPError):
            HfApi().create_collection("t" * 60, namespace="me")
        with pytest.raises(HfHubHTTPError):
            HfApi().create_collection("t", namespace="me", description="d" * 151)
        slug = HfApi().create_collection("t", namespace="me").slug
        with pytest.raises(HfHubHTTPError):
            HfApi().add_collection_item(slug, "me/nothing", "model")
        assert HfApi().create_collection("t", namespace="me", exists_ok=True).slug == slug


def test_collections(hub):
    api = HfApi()
    api.create_repo("me/x")
    slug = api.create_collection("Films", namespace="me", private=True).slug
    api.add_collection_item(slug, "me/x", "model", note="a note")
    (item,) = api.get_collection(slug).items
    assert (item.item_id, item.item_type, item.note) == ("me/x", "model", "a note")
    with pytest.raises(HfHubHTTPError):
        HfApi(token=OTHER).get_collection(slug)
    api.update_collection_metadata(slug, private=False)
    assert HfApi(token=OTHER).get_collection(slug).title == "Films"
    assert [c.slug for c in api.list_collections(owner="me")] == [slug]
    api.delete_collection(slug)
    assert not list(api.list_collections(owner="me"))


def test_spaces(hub):
    api = HfApi()
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("me/s", repo_type="space", space_sdk="gradio")
    assert caught.value.response.status_code == 402
    api.create_repo("me/s", repo_type="space", space_sdk="gradio", space_hardware="zero-a10g")
    api.add_space_secret("me/s", "KEY", "value")
    api.add_space_variable("me/s", "NAME", "x")
    assert api.get_space_variables("me/s")["NAME"].value == "x"
    assert hub.store.repos["space", "me/s"].secrets == {"KEY": "value"}
    assert api.get_space_runtime("me/s").stage == "RUNNING"
    assert api.space_info("me/s").sdk == "gradio"


def test_tags_come_from_the_card(hub):
    api = HfApi()
    api.create_repo("me/x")
    text = b"---\nlibrary_name: peft\nbase_model: o/b\nbase_model_relation: adapter\ntags: [t]\n---\n"
    api.create_commit("me/x", add(README__md=text), commit_message="m")
    info = api.model_info("me/x")
    assert {"t", "peft", "base_model:o/b", "base_model:adapter:o/b"} <= set(info.tags)
    assert info.library_name == "peft" and [m.id for m in api.list_models(author="me")] == ["me/x"]


class TestFaults:
    def test_one_request_and_its_repetitions(self, hub):
        hub.inject(403, at=1)
        assert HfApi().whoami()["name"] == "me"
        for _ in range(2):
            with pytest.raises(HfHubHTTPError):
                HfApi().create_repo("me/x")
        assert not HfApi().repo_exists("me/x"), "another request is not hit"
        hub.heal()
        HfApi().create_repo("me/x")

    def test_lost_is_handled_and_drop_is_not(self, hub):
        for kind, there in (("drop", False), ("lost", True)):
            hub.inject(kind, path="create")
            with pytest.raises(Exception, match="disconnected"):
                HfApi().create_repo(f"me/{kind}")
            hub.heal()
            assert HfApi().repo_exists(f"me/{kind}") is there

    def test_snapshots(self, hub):
        state = hub.store.snapshot()
        HfApi().create_repo("me/x")
        hub.store.restore(state)
        assert not HfApi().repo_exists("me/x")


@pytest.mark.slow
def test_command_line(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from huggingface_hub import HfApi; HfApi().create_repo('me/x'); raise SystemExit(3)",
    ]
    run = subprocess.run([sys.executable, "-m", "tests.hub_server", "--", *command], capture_output=True, text=True)
    assert run.returncode == 3 and "model    me/x  public  1 files" in run.stdout


def test_two_hubs_at_once():
    with HubServer(xet=False) as one, HubServer(xet=False) as two:
        assert one.port != two.port
