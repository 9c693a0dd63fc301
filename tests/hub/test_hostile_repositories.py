# SPDX-License-Identifier: Apache-2.0
"""What is damaged or made to do harm is refused by its file: nothing runs, nothing is written, nothing takes long."""

import re
import time

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.hub.broken import BROKEN, CODE, make_files
from tests.hub_store import Blob, Commit, make_blob, now
from trl_maxmin import MixtureRewardModel
from trl_maxmin.hub import pull
from trl_maxmin.hub.integrity import require_whole
from trl_maxmin.hub.mirror import LIST
from trl_maxmin.models.loading import load_pretrained


#: Seconds for what takes a tenth of one on a machine with nothing else to do.
LONGEST = 5.0
KINDS = ("mixture", "component", "policy", "adapter")
LOADERS = {"policy": AutoModelForCausalLM, "component": AutoModelForSequenceClassification}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return {kind: make_files(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def broken(intact, name):
    kind, edit, words, _ = BROKEN[name]
    files = dict(intact[kind])
    edit(files)
    return kind, files, words


def put(hub, files, repo_id="me/broken"):
    """A repository of these files, whatever their names."""
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, exist_ok=True)
    history = hub.store.repos["model", repo_id].branches["main"]
    blobs = {name: data if isinstance(data, Blob) else make_blob(data) for name, data in files.items()}
    history.append(Commit(f"{len(history):040x}", "broken", "", blobs, now(), "me"))


def tree(folder, *without):
    """Every file below a folder."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {name for name in found if not name.startswith(without)}


class Refused:
    """Whatever is refused is refused at once, by its file, and nothing has happened."""

    def __init__(self, folder, words):
        self.folder, self.words = folder, words

    def __enter__(self):
        self.before, self.start = tree(self.folder, "hf-cache"), time.monotonic()

    def __exit__(self, kind, error, _):
        assert error is not None, "it was taken"
        assert isinstance(error, ValueError | OSError), f"{kind}: {error}"
        assert "broken" in str(error) and re.search(self.words, str(error), re.DOTALL), str(error)
        assert str(error).isprintable() and len(str(error)) < 1500, str(error)
        assert time.monotonic() - self.start < LONGEST
        assert tree(self.folder, "hf-cache") == self.before, "something was written"
        return True


def test_there_are_forty():
    assert len(BROKEN) >= 40


@pytest.mark.parametrize("kind", KINDS)
def test_intact_ones_are_taken(hub, intact, tmp_path, kind):
    require_whole(intact[kind], "me/intact")
    put(hub, intact[kind])
    (entry,) = pull("me/broken", tmp_path / "in")
    assert entry.left_out == [] and tree(tmp_path / "in") == {LIST, *intact[kind]}


@pytest.mark.parametrize("name", BROKEN)
def test_pull(hub, intact, tmp_path, monkeypatch, name):
    _, files, words = broken(intact, name)
    put(hub, files)
    monkeypatch.chdir(tmp_path)
    with Refused(tmp_path, f"^me/broken.*({words})"):
        pull("me/broken", tmp_path / "deep" / "in")


@pytest.mark.parametrize("where", ["folder", "hub"])
@pytest.mark.parametrize("name", [name for name, entry in BROKEN.items() if entry[3]])
def test_from_pretrained(hub, intact, tmp_path, monkeypatch, name, where):
    kind, files, words = broken(intact, name)
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "broken"
    source.mkdir()
    if where == "folder":
        for file, content in files.items():
            (source / file).write_bytes(content)
    else:
        put(hub, files)
        source = "me/broken"
    with Refused(tmp_path, words):
        if kind == "mixture":
            MixtureRewardModel.from_pretrained(source)
        else:
            load_pretrained(LOADERS[kind], source, argument="--model")


def test_an_older_pull_stays_as_it_is(hub, intact, tmp_path):
    put(hub, intact["mixture"])
    pull("me/broken", tmp_path / "in")
    before = {name: (tmp_path / "in" / name).read_bytes() for name in tree(tmp_path / "in")}
    put(hub, broken(intact, "no trunk")[1])
    with Refused(tmp_path, "me/broken: .*missing"):
        pull("me/broken", tmp_path / "in")
    assert {name: (tmp_path / "in" / name).read_bytes() for name in tree(tmp_path / "in")} == before
    put(hub, intact["mixture"])
    pull("me/broken", tmp_path / "in")


def test_a_size_that_is_announced_is_enough(hub, intact, tmp_path):
    blob = make_blob(b"{}")
    put(hub, intact["policy"] | {"config.json": Blob(10**9, blob.sha256, blob.git_oid, blob.data)})
    hub.log.clear()
    with Refused(tmp_path, r"config.json has 1,000,000,000 bytes; up to 134,217,728 are taken"):
        pull("me/broken", tmp_path / "in")
    assert not [path for _, path, _ in hub.log if "/resolve/" in path]


def test_code_stays_on_the_hub_and_does_not_run(hub, intact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(hub, intact["mixture"] | {"modeling.py": CODE, "tokenization.py": CODE, "x.pkl": b"\x80\x04"})
    (entry,) = pull("me/broken", tmp_path / "in")
    assert entry.left_out == ["modeling.py", "tokenization.py", "x.pkl"]
    MixtureRewardModel.from_pretrained("me/broken")
    assert not (tmp_path / "executed").exists()


class TestLinks:
    """A folder may hold links; a pull neither writes nor removes through them."""

    @pytest.fixture
    def outside(self, tmp_path):
        folder = tmp_path / "outside"
        folder.mkdir()
        (folder / "config.json").write_text("mine")
        return folder

    def test_a_file(self, hub, intact, tmp_path, outside):
        put(hub, intact["policy"])
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "config.json").symlink_to(outside / "config.json")
        (entry,) = pull("me/broken", tmp_path / "in")
        assert entry.kept == ["config.json.yours"] and (outside / "config.json").read_text() == "mine"
        assert not (tmp_path / "in" / "config.json").is_symlink()

    @pytest.mark.parametrize("name", ["additional_chat_templates", ".trl_maxmin_pull.part"])
    def test_a_folder(self, hub, intact, tmp_path, outside, name):
        put(hub, intact["policy"] | {"additional_chat_templates/a.jinja": b"{{ x }}"})
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / name).symlink_to(outside, target_is_directory=True)
        if name.startswith("."):
            pull("me/broken", tmp_path / "in")
        else:
            with pytest.raises(ValueError, match="additional_chat_templates is a link.*Remove the link"):
                pull("me/broken", tmp_path / "in")
        assert tree(outside) == {"config.json"}

    def test_a_list_that_leads_out(self, hub, intact, tmp_path, outside):
        """The list beside the files is only as good as the folder it came in."""
        put(hub, intact["policy"])
        pull("me/broken", tmp_path / "in")
        text = (tmp_path / "in" / LIST).read_text()
        (tmp_path / "in" / LIST).write_text(text.replace('"config.json"', '"../outside/config.json"'))
        with pytest.raises(ValueError, match="'../outside/config.json' is no name.*Delete .*pull again"):
            pull("me/broken", tmp_path / "in")
        assert tree(outside) == {"config.json"}
