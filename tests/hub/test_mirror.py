# SPDX-License-Identifier: Apache-2.0
"""A pull into an older pull is a pull into an empty folder, byte for byte; what is the user's stays the user's."""

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load, save

from tests.hub.artefacts import OTHER_TOKENIZER, make_adapter, make_model, make_output, make_record
from tests.hub.broken import shards
from tests.hub.test_hostile_repositories import put, tree
from trl_maxmin.cli import main
from trl_maxmin.hub import HubError, HubInterrupted, plan_output_folder, publish, publish_collection, pull
from trl_maxmin.hub.collection import collection_items
from trl_maxmin.hub.files import repo_id_of
from trl_maxmin.hub.mirror import LIST, WAITING


def contents(folder):
    return {name: (folder / name).read_bytes() for name in tree(folder)}


@pytest.fixture
def policy(tmp_path):
    """Files of a policy's repository, with more than it needs."""
    folder = make_model(tmp_path / "model", 1)
    (folder / "training_args.bin").unlink()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"README.md": b"# A card\n", "run_record.json": json.dumps(make_record().to_dict()).encode()}
    files |= {"comparison.png": b"\x89PNG", "special_tokens_map.json": b"{}"}
    return files | {"additional_chat_templates/a.jinja": b"{{ a }}", "additional_chat_templates/b.jinja": b"{{ b }}"}


def in_shards(files, count):
    """The same weights in this many files."""
    tensors = load(files.pop("model.safetensors"))
    places = {key: f"model-{1 + n % count:05}-of-{count:05}.safetensors" for n, key in enumerate(tensors)}
    for name in set(places.values()):
        files[name] = save({key: tensors[key] for key in tensors if places[key] == name})
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": places}).encode()
    return files


def other_weights(files, tmp_path):
    folder = make_model(tmp_path / "other", 2)
    return files | {"model.safetensors": (folder / "model.safetensors").read_bytes()}


def adapter(files, tmp_path):
    folder = make_adapter(tmp_path / "adapter")
    rest = {name: data for name, data in files.items() if name not in ("model.safetensors", "config.json")}
    return rest | {path.name: path.read_bytes() for path in folder.iterdir()}


def without(*names):
    return lambda files, _: {name: data for name, data in files.items() if not name.startswith(names)}


SAME = lambda files, _: files  # noqa: E731
CHANGES = {
    "new weights": (SAME, other_weights),
    "shards": (SAME, lambda files, _: in_shards(files, 3)),
    "more shards": (lambda files, _: in_shards(files, 2), lambda files, _: in_shards(files, 5)),
    "fewer shards": (lambda files, _: in_shards(files, 5), lambda files, _: in_shards(files, 2)),
    "one file again": (lambda files, _: in_shards(files, 3), SAME),
    "an adapter": (SAME, adapter),
    "a model instead of an adapter": (adapter, SAME),
    "card": (SAME, lambda files, _: files | {"README.md": b"# Another\n"}),
    "record": (SAME, lambda files, _: files | {"run_record.json": json.dumps(make_record(1).to_dict()).encode()}),
    "tokenizer": (SAME, lambda files, _: files | {"tokenizer.json": OTHER_TOKENIZER}),
    "a tokenizer file less": (SAME, without("special_tokens_map")),
    "a folder less": (SAME, without("additional_chat_templates")),
    "a file of a folder less": (SAME, without("additional_chat_templates/a")),
    "no card, no figure": (SAME, without("README", "comparison")),
    "nothing": (SAME, SAME),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_repository(hub, tmp_path, policy, change):
    before, after = CHANGES[change]
    put(hub, before(dict(policy), tmp_path), "me/film")
    pull("me/film", tmp_path / "in [1]* {x}")
    put(hub, after(dict(policy), tmp_path), "me/film")
    (entry,) = pull("me/film", tmp_path / "in [1]* {x}")
    pull("me/film", tmp_path / "empty")
    assert contents(tmp_path / "in [1]* {x}") == contents(tmp_path / "empty")
    assert entry.kept == [] and set(tree(tmp_path / "empty")) == {LIST, *after(dict(policy), tmp_path)}
    hub.log.clear()
    pull("me/film", tmp_path / "in [1]* {x}")
    assert not [path for _, path, _ in hub.log if "/resolve/" in path], "it is fetched again"


def push(folder):
    plan = plan_output_folder(folder, "me/film", dataset=True)
    publish(plan.repos)
    wanted = {repo.repo_id for repo in plan.repos}
    publish_collection("me", "film", collection_items(publish(plan.repos)))
    return wanted


def drop_others(hub, wanted):
    """The owner deletes what the last push does not bring; the Hub takes it out of the collection."""
    for (_, repo_id), repo in list(hub.store.repos.items()):
        if repo_id not in wanted:
            HfApi().delete_repo(repo_id, repo_type=repo.type)
    for collection in hub.store.collections.values():
        collection["items"] = [item for item in collection["items"] if item["id"] in wanted]


def move(folder, old, new):
    os.rename(folder / old, folder / new)


def delete(folder, name):
    for path in (folder / name).iterdir():
        path.unlink()
    (folder / name).rmdir()


FAMILY = {
    "component removed": lambda folder: delete(folder, "components/positive"),
    "component renamed": lambda folder: move(folder, "components/positive", "components/kind"),
    "policy added": lambda folder: make_model(folder / "policies" / "single", 50),
    "policy removed": lambda folder: delete(folder, "policies/maxmin"),
    "new evaluation": lambda folder: (folder / "evaluation" / "completions.jsonl").write_text(
        '{"policy": "maxmin", "prompt": "p", "completion": "c"}\n'
    ),
    "everything new": lambda folder: make_output(folder, 1),
}


@pytest.mark.parametrize("change", FAMILY)
def test_a_whole_push(hub, tmp_path, change):
    folder = make_output(tmp_path / "out")
    push(folder)
    pull("me/film", tmp_path / "in")
    FAMILY[change](folder)
    drop_others(hub, push(folder))
    pull("me/film", tmp_path / "in")
    pull("me/film", tmp_path / "empty")
    assert contents(tmp_path / "in") == contents(tmp_path / "empty")
    assert not [path for path in (tmp_path / "in").rglob("*") if path.is_dir() and not any(path.iterdir())]


class TestWhatIsTheUsers:
    def test_an_edited_card_is_kept_and_said(self, hub, tmp_path, policy, capsys):
        put(hub, policy, "me/film")
        command = ["pull", "me/film", "--output_dir", str(tmp_path / "in")]
        assert main(command) == 0
        (tmp_path / "in" / "README.md").write_text("my notes")
        put(hub, policy | {"README.md": b"# Another\n"}, "me/film")
        capsys.readouterr()
        assert main(command) == 0
        assert "your own, kept as: README.md.yours" in capsys.readouterr().out
        assert (tmp_path / "in" / "README.md.yours").read_text() == "my notes"
        assert (tmp_path / "in" / "README.md").read_text() == "# Another\n"
        (tmp_path / "in" / "README.md").write_text("more notes")
        (entry,) = pull("me/film", tmp_path / "in")
        assert entry.kept == ["README.md.yours2"] and (tmp_path / "in" / "README.md.yours").read_text() == "my notes"

    def test_a_file_that_the_hub_removed(self, hub, tmp_path, policy):
        put(hub, policy, "me/film")
        pull("me/film", tmp_path / "in")
        (tmp_path / "in" / "special_tokens_map.json").write_text('{"mine": 1}')
        put(hub, without("special", "comparison")(policy, None), "me/film")
        (entry,) = pull("me/film", tmp_path / "in")
        assert entry.kept == ["special_tokens_map.json.yours"] and entry.removed == ["comparison.png"]

    def test_files_beside(self, hub, tmp_path, policy):
        put(hub, policy, "me/film")
        pull("me/film", tmp_path / "in")
        (tmp_path / "in" / "notes.md").write_text("mine")
        (tmp_path / "in" / "additional_chat_templates" / "mine.txt").write_text("mine")
        put(hub, without("additional_chat_templates")(policy, None), "me/film")
        pull("me/film", tmp_path / "in")
        assert (tmp_path / "in" / "notes.md").exists() and (
            tmp_path / "in" / "additional_chat_templates" / "mine.txt"
        ).exists()

    def test_a_folder_of_another_model(self, hub, tmp_path, policy):
        put(hub, adapter(policy, tmp_path), "me/film")
        folder = make_model(tmp_path / "mine", 5)
        before = contents(folder)
        with pytest.raises(ValueError, match="no pull wrote .config.json.*pull into an empty folder"):
            pull("me/film", folder)
        assert contents(folder) == before

    def test_a_folder_of_another_pull(self, hub, tmp_path, policy):
        put(hub, policy, "me/film")
        put(hub, policy, "me/other")
        pull("me/film", tmp_path / "in")
        with pytest.raises(ValueError, match="in holds what was pulled of me/film. Name another folder for me/other"):
            pull("me/other", tmp_path / "in")
        push(make_output(tmp_path / "out"))
        with pytest.raises(ValueError, match="is a file"):
            pull("me/other", tmp_path / "model" / "config.json")

    def test_of_a_component_that_is_gone(self, hub, tmp_path):
        folder = make_output(tmp_path / "out")
        push(folder)
        pull("me/film", tmp_path / "in")
        (tmp_path / "in" / "components" / "positive" / "README.md").write_text("my notes")
        delete(folder, "components/positive")
        drop_others(hub, push(folder))
        gone = pull("me/film", tmp_path / "in")[-1]
        assert gone.repo_id == "me/film-reward-positive" and not gone.commit and gone.kept == ["README.md.yours"]
        assert tree(tmp_path / "in" / "components" / "positive") == {"README.md.yours"}


class TestWrongBytes:
    def test_in_the_folder(self, hub, tmp_path, policy):
        put(hub, policy, "me/film")
        pull("me/film", tmp_path / "in")
        good = contents(tmp_path / "in")
        with open(tmp_path / "in" / "model.safetensors", "r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\0\1")
        (entry,) = pull("me/film", tmp_path / "in")
        assert {n: d for n, d in contents(tmp_path / "in").items() if not n.endswith(".yours")} == good
        assert entry.kept == ["model.safetensors.yours"]

    def test_in_the_cache(self, hub, tmp_path, policy):
        put(hub, policy, "me/film")
        for name in ("config.json", "model.safetensors"):
            blob = Path(HfApi().hf_hub_download("me/film", name)).resolve()
            blob.write_bytes(b"x" * blob.stat().st_size)
        pull("me/film", tmp_path / "in")
        assert {n: d for n, d in contents(tmp_path / "in").items() if n != LIST} == policy

    def test_from_the_hub(self, hub, tmp_path, policy, monkeypatch):
        """What does not arrive as announced is not taken, and asked for again at the next try."""
        put(hub, policy, "me/film")
        route = hub._route

        def wrong(request):
            answer = route(request)
            if request.method == "GET" and request.path.endswith("/config.json"):
                answer.body = b"x" * len(answer.body)
            return answer

        monkeypatch.setattr(hub, "_route", wrong)
        with pytest.raises(HubError, match="config.json did not arrive as the Hub announced it. Run the same command"):
            pull("me/film", tmp_path / "in")
        assert tree(tmp_path / "in") - {name for name in tree(tmp_path / "in") if name.startswith(WAITING)} == set()
        monkeypatch.setattr(hub, "_route", route)
        pull("me/film", tmp_path / "in")
        assert {n: d for n, d in contents(tmp_path / "in").items() if n != LIST} == policy


class TestInterrupted:
    def test_what_has_arrived_is_not_fetched_again(self, hub, tmp_path, policy):
        put(hub, policy, "me/film")
        hub.inject("drop", path="resolve/.*/model.safetensors", lasting=True)
        with pytest.raises(HubError):
            pull("me/film", tmp_path / "in")
        assert not (tmp_path / "in" / LIST).exists() and not (tmp_path / "in" / "config.json").exists()
        hub.heal()
        hub.log.clear()
        pull("me/film", tmp_path / "in")
        assert not [path for _, path, _ in hub.log if path.endswith("config.json") and "resolve" in path]
        assert not (tmp_path / "in" / WAITING).exists()

    @pytest.mark.parametrize("at", range(1, 25, 3))
    def test_between_two_states(self, hub, tmp_path, policy, monkeypatch, at):
        """Killed while files are brought to their places: the next pull knows old and new ones for its own."""
        put(hub, policy, "me/film")
        pull("me/film", tmp_path / "in")
        put(hub, in_shards(other_weights(dict(policy), tmp_path), 3), "me/film")
        calls, steps = {"count": 0}, {name: getattr(os, name) for name in ("replace", "rename", "unlink")}

        def stop(name):
            def step(*args, **kwargs):
                if str(tmp_path / "in") in str(args[0]) and WAITING not in str(args[-1]):
                    calls["count"] += 1
                    if calls["count"] == at:
                        raise KeyboardInterrupt
                return steps[name](*args, **kwargs)

            return step

        for name in steps:
            monkeypatch.setattr(os, name, stop(name))
        try:
            pull("me/film", tmp_path / "in")
        except KeyboardInterrupt:
            pass
        for name, step in steps.items():
            monkeypatch.setattr(os, name, step)
        (entry,) = pull("me/film", tmp_path / "in")
        pull("me/film", tmp_path / "empty")
        assert contents(tmp_path / "in") == contents(tmp_path / "empty") and entry.kept == []

    @pytest.mark.parametrize("command", ["push", "pull"])
    def test_ctrl_c_says_where_things_stand(self, hub, tmp_path, monkeypatch, capsys, command):
        folder = make_output(tmp_path / "out")
        argv = ["push", str(folder), "--repo_id", "me/film"]
        if command == "pull":
            main(argv)
            argv = ["pull", "me/film", "--output_dir", str(tmp_path / "in")]
        where = "resolve" if command == "pull" else "preupload"
        client = HfApi.hf_hub_download if command == "pull" else HfApi.create_commit

        def stop(self, repo_id, *args, **kwargs):
            if repo_id == "me/film-reward-positive":
                raise KeyboardInterrupt
            return client(self, repo_id, *args, **kwargs)

        monkeypatch.setattr(HfApi, client.__name__, stop)
        capsys.readouterr()
        assert main(argv) == 130
        err = capsys.readouterr().err
        done = "on the Hub" if command == "push" else f"in {tmp_path / 'in'}"
        assert f"Complete {done}: me/film-policy-reference, me/film-reward-concise." in err, where
        assert "me/film-reward-positive is as before or complete, nothing between. As before: me/film-" in err
        assert f"To continue: trl-maxmin {command} " in err
        monkeypatch.setattr(HfApi, client.__name__, client)
        assert main(argv) == 0

    def test_ctrl_c_while_a_collection_is_filled(self, hub, tmp_path, monkeypatch, capsys):
        folder = make_output(tmp_path / "out")
        monkeypatch.setattr(HfApi, "add_collection_item", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["push", str(folder), "--repo_id", "me/film"]) == 130
        err = capsys.readouterr().err
        assert "me/film-policy-maxmin. collection me/film is as before or complete" in err

    def test_it_is_a_keyboard_interrupt(self):
        stop = HubInterrupted(["me/a"], ["me/b", "me/c"], "again")
        assert isinstance(stop, KeyboardInterrupt) and str(stop) == (
            "interrupted. Complete on the Hub: me/a. me/b is as before or complete, nothing between. As before: me/c. "
            "To continue: again"
        )


class TestLongNames:
    @pytest.mark.parametrize("length", [4, 58, 59, 60, 75, 85, 96])
    def test_push_and_pull(self, hub, tmp_path, length):
        base = "me/" + ("film-of-the-year-" * 6)[: length - 1] + "x"
        folder = make_output(tmp_path / "out")
        os.rename(folder / "components" / "positive", folder / "components" / ("very-" * 9 + "positive"))
        assert main(["push", str(folder), "--repo_id", base, "--dataset"]) == 0
        assert all(len(id.split("/")[1]) <= 96 for _, id in hub.store.repos)
        assert main(["pull", base, "--output_dir", str(tmp_path / "in")]) == 0
        places = {path.parent.relative_to(tmp_path / "in").as_posix() for path in (tmp_path / "in").rglob(LIST)}
        assert {"mixture", "evaluation", "policies/maxmin", "policies/reference", "components/concise"} < places
        assert len(places) == 7 and not (tmp_path / "in" / "others").exists()
        assert main(["push", str(folder), "--repo_id", base, "--dataset"]) == 0
        assert len(hub.store.repos) == 6 and len(hub.store.collections) == 1

    def test_two_never_share_a_collection(self, hub, tmp_path):
        first, second = ("me/" + "film-" * 15 + end for end in "ab")
        for base in (first, second):
            assert main(["push", str(make_output(tmp_path / base[-1])), "--repo_id", base]) == 0
        assert len(hub.store.collections) == 2
        assert all(len(collection["title"]) < 60 for collection in hub.store.collections.values())
        assert {entry.repo_id.split("-")[-1] for entry in pull(second, tmp_path / "in")} >= {"mixture"}
        assert all(entry.repo_id.startswith(second) for entry in pull(second, tmp_path / "in"))

    def test_too_long_for_an_id(self, capsys, tmp_path):
        assert main(["push", str(make_output(tmp_path)), "--repo_id", "me/" + "x" * 97]) == 1
        assert "is not a repository id" in capsys.readouterr().err

    def test_two_long_names_of_components(self):
        ids = {repo_id_of("component", "me/" + "b" * 90, "c" * 70 + end) for end in "ab"}
        assert len(ids) == 2 and all(len(id) <= 99 for id in ids)


def test_others_in_a_collection_have_a_place_of_their_own(hub, tmp_path, policy):
    """Somebody else's repository that is called like ours does not take our folder."""
    push(make_output(tmp_path / "out"))
    put(hub, policy, "me/mixture")
    (slug,) = hub.store.collections
    HfApi().add_collection_item(slug, "me/mixture", "model")
    pull(slug, tmp_path / "in")
    assert (tmp_path / "in" / "others" / "me" / "mixture" / "config.json").exists()
    assert json.loads((tmp_path / "in" / "mixture" / "config.json").read_text())["model_type"] == "mixture_reward"


def test_shards_of_the_table_are_shards(policy):
    """The helper of the broken repositories makes a whole one unless it is told otherwise."""
    from trl_maxmin.hub.integrity import require_whole

    files = dict(policy)
    shards(files)
    require_whole({name: data for name, data in files.items() if "/" not in name}, "me/film")
