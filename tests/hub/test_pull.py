# SPDX-License-Identifier: Apache-2.0
"""What a push published comes back as it was, and nothing dangerous with it."""

import filecmp

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from tests.hub.artefacts import make_output
from tests.hub_server import OTHER
from trl_maxmin.hub import HubError, PushOptions, plan_output_folder, publish, publish_collection, pull
from trl_maxmin.hub.collection import collection_items
from trl_maxmin.hub.files import place_of_repo as place
from trl_maxmin.hub.mirror import LIST


def push(folder, **options):
    plan = plan_output_folder(make_output(folder), "me/film", PushOptions(**options), dataset=True)
    done = publish(plan.repos)
    return publish_collection("me", "film", collection_items(done), private=options.get("private"))[0]


def same(folder, pulled):
    """Every pulled file but card and record is the one that was pushed."""
    names = [p.relative_to(pulled) for p in pulled.rglob("*") if p.is_file() and ".cache" not in p.parts]
    # A configuration loses what is of this machine alone.
    made = {LIST, "config.json", "README.md", "run_record.json", "results.jsonl", "comparison.png"}
    compared = [name for name in names if name.name not in made]
    return len(compared) >= 2 and all(filecmp.cmp(folder / name, pulled / name, shallow=False) for name in compared)


@pytest.mark.parametrize("by", ["base id", "slug"])
def test_a_whole_push(hub, tmp_path, by):
    slug = push(tmp_path / "out", private=True)
    pulled = pull("me/film" if by == "base id" else slug, tmp_path / "in")
    places = sorted(str(entry.folder.relative_to(tmp_path / "in")) for entry in pulled)
    assert places == [
        "components/concise", "components/positive", "evaluation", "mixture", "policies/maxmin", "policies/reference",
    ]  # fmt: skip
    assert same(tmp_path / "out", tmp_path / "in")
    again = plan_output_folder(tmp_path / "in", "me/again")
    assert {repo.kind for repo in again.repos} == {"base", "component", "mixture", "policy"}


@pytest.mark.seam
def test_one_repository(hub, tmp_path):
    push(tmp_path / "out")
    (entry,) = pull("me/film-mixture", tmp_path / "in")
    assert entry.commit == HfApi().model_info("me/film-mixture").sha
    assert same(tmp_path / "out" / "mixture", tmp_path / "in")


def test_only_what_is_safe(hub, tmp_path):
    push(tmp_path / "out")
    extra = {"pytorch_model.bin": b"\x80\x04", "modeling.py": b"import os", "x.pkl": b"\x80"}
    operations = [CommitOperationAdd(name, data) for name, data in extra.items()]
    HfApi().create_commit("me/film-mixture", operations, commit_message="m")
    (entry,) = pull("me/film-mixture", tmp_path / "in")
    assert entry.left_out == sorted(extra) and not set(extra) & {p.name for p in (tmp_path / "in").iterdir()}
    HfApi().create_repo("me/pickled")
    HfApi().create_commit("me/pickled", [CommitOperationAdd("m.bin", b"\x80")], commit_message="m")
    with pytest.raises(ValueError, match="me/pickled holds no weights in safetensors .m.bin.*pickled weights"):
        pull("me/pickled", tmp_path / "pickled")


def test_an_old_copy_is_not_taken_for_the_new_one(hub, tmp_path):
    """The client falls back to what it has when the Hub is in trouble; a pull must not."""
    push(tmp_path / "out")
    pull("me/film-mixture", tmp_path / "in")
    hub.inject(503, at=0, lasting=True)
    with pytest.raises(HubError, match="503"):
        pull("me/film-mixture", tmp_path / "in")


def test_what_is_there_and_what_is_not(hub, tmp_path):
    push(tmp_path / "out")
    hub.inject(403, path="me/film-reward-positive/revision")
    hub.inject(403, path="api/models/me/film-reward-positive$")
    with pytest.raises(HubError) as caught:
        pull("me/film", tmp_path / "in")
    assert caught.value.done == ["me/film-policy-reference", "me/film-reward-concise"]
    assert caught.value.open[0] == "me/film-reward-positive"


@pytest.mark.parametrize("token", [None, OTHER])
def test_nothing_of_that_name(hub, tmp_path, token, monkeypatch):
    push(tmp_path / "out", private=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="neither a repository nor a collection me/nothing|404"):
        pull("me/nothing", tmp_path / "in")
    if token:
        with pytest.raises(HubError):
            pull("me/film-mixture", tmp_path / "in")


def test_places():
    assert place("me/film-policy-max-min", "me/film") == "policies/max-min"
    assert place("me/film-evaluation", "me/film") == "evaluation"
    assert place("me/other", "me/film") == "others/me/other"
