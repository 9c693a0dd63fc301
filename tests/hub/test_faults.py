# SPDX-License-Identifier: Apache-2.0
"""Each fault has words of its own: what happened, what is on the Hub, how to go on."""

import logging
import re
import socket
import traceback
from dataclasses import fields
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, create_branch, hf_api

from tests.hub.artefacts import OTHER_TOKENIZER, TOKENIZER, make_app, make_model, make_output, make_record
from tests.hub_routes import Answer
from tests.hub_server import OTHER, READ, WRITE
from tests.hub_store import Commit, make_blob, now
from trl_maxmin.cli import main
from trl_maxmin.cli.faults import told
from trl_maxmin.cli.push import PushArguments
from trl_maxmin.cli.space import parser
from trl_maxmin.hub import HubError, PushOptions, RepoPlan, plan_output_folder, publish, publish_repo
from trl_maxmin.hub.faults import ask, explain, keep_secret, without_tokens
from trl_maxmin.hub.plan import plan_mixture
from trl_maxmin.hub.plan_app import plan_space


def plan(folder, repo_id="me/film-mixture", **options):
    make_model(folder, model_type="mixture_reward", component_names=["a", "b"], num_components=2)
    return plan_mixture(folder, repo_id, make_record(), PushOptions(**options))


@pytest.mark.parametrize(
    ("fault", "path", "words"),
    [
        (401, None, ("401", "does not know this token", "hf auth login")),
        (402, "/repos/create", ("402", "payment", "plan")),
        (403, "/commit/", ("403", "may not write", "token with write access")),
        (404, "/commit/", ("404", "shows no such repository", "spelling")),
        (409, "/commit/", ("409", "somebody else", "Wait")),
        (412, "/commit/", ("412", "new commit", "nothing of theirs was overwritten")),
        (413, "/commit/", ("413", "larger than", "save_pretrained(folder, max_shard_size")),
        (429, "/commit/", ("429", "limits how often", "Wait 7 s")),
        (400, "/commit/", ("400", "malformed")),
        (500, "/commit/", ("500", "in trouble", "status.huggingface.co")),
        (503, "/preupload/", ("503", "in trouble")),
        (503, "_storage", ("503", "in trouble")),
        ("drop", None, ("cannot be reached", "HF_ENDPOINT")),
        ("garbage", None, ("not understood", "prox")),
    ],
)
def test_words(hub, tmp_path, fault, path, words):
    hub.inject(fault, path=path)
    with pytest.raises(HubError) as caught:
        publish([plan(tmp_path)], command="trl-maxmin push here")
    message = str(caught.value)
    for word in (*words, "me/film-mixture", "To continue: trl-maxmin push here", "Complete on the Hub: nothing yet"):
        assert word in message
    assert isinstance(caught.value, OSError) and caught.value.__cause__ is not None


def test_a_lost_answer_is_no_failure(hub, tmp_path):
    hub.inject("lost", path="/commit/")
    published = publish_repo(plan(tmp_path))
    assert (
        published.status == "created"
        and published.commit == hub.store.repos["model", "me/film-mixture"].commit("main").oid
    )
    assert sum("/commit/" in path for _, path, _ in hub.log) == 1


def test_what_is_complete_and_what_is_not(hub, tmp_path):
    repos = plan_output_folder(make_output(tmp_path), "me/film").repos
    hub.inject(403, path="me/film-mixture/commit")
    with pytest.raises(HubError) as caught:
        publish(repos, command="again")
    assert caught.value.done == ["me/film-policy-reference", "me/film-reward-concise", "me/film-reward-positive"]
    assert caught.value.open == ["me/film-mixture", "me/film-policy-maxmin"]
    assert "Not yet, or as before: me/film-mixture, me/film-policy-maxmin." in str(caught.value)


def test_offline(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is on .HF_HUB_OFFLINE=1.*Unset HF_HUB_OFFLINE"):
        publish_repo(plan(tmp_path))
    assert hub.log == []


def test_no_network(hub, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(hf_api.api, "endpoint", nobody)
    with pytest.raises(HubError, match="the Hub cannot be reached .*Check the network and HF_ENDPOINT"):
        publish_repo(plan(tmp_path))


def test_another_commit_meanwhile(hub, tmp_path, monkeypatch):
    """Somebody commits between the look and the commit: the real 412, and nothing of theirs is lost."""
    publish_repo(plan(tmp_path))
    route, history = hub._route, hub.store.repos["model", "me/film-mixture"].branches["main"]

    def meanwhile(request):
        if "/commit/" in request.path:
            files = {**history[-1].files, "theirs.txt": make_blob(b"hello")}
            history.append(Commit("7" * 40, "theirs", "", files, now(), "other"))
        return route(request)

    monkeypatch.setattr(hub, "_route", meanwhile)
    changed = plan(tmp_path)
    changed.files["tokenizer.json"] = OTHER_TOKENIZER
    with pytest.raises(HubError, match="412.*new commit.*nothing of theirs was overwritten"):
        publish_repo(changed)
    monkeypatch.setattr(hub, "_route", route)
    assert history[-1].title == "theirs" and history[-1].files["tokenizer.json"].data == TOKENIZER
    publish_repo(changed)
    assert history[-1].files["tokenizer.json"].data == OTHER_TOKENIZER and "theirs.txt" in history[-1].files


class TestTokens:
    @pytest.mark.parametrize("token", [READ, OTHER, "hf_unknownToken1"])
    def test_refused(self, hub, tmp_path, monkeypatch, token):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError) as caught:
            publish_repo(plan(tmp_path))
        assert caught.value.what[:3] in ("401", "403") and token not in str(caught.value)

    def test_none(self, hub, tmp_path, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        with pytest.raises(HubError, match="401, the Hub does not know this token, or there is none.*hf auth login"):
            publish_repo(plan(tmp_path / "m"))

    def test_given_in_the_call(self, hub, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", OTHER)
        assert publish_repo(plan(tmp_path), token=WRITE).status == "created"

    def test_never_shown(self, monkeypatch):
        class Echo(Exception):
            response = SimpleNamespace(status_code=403, headers={})
            server_message = f"Bearer {WRITE} is not allowed"

        what, _ = explain(Echo())
        assert WRITE not in what and "403" in what
        monkeypatch.setenv("HF_TOKEN", "of another form")
        keep_secret("given-in-the-call")
        assert str(HubError("of another form, given-in-the-call")) == "hf_***, hf_***."
        assert WRITE not in str(HubError(f"{WRITE} refused", f"use {WRITE}"))
        assert without_tokens("nothing here") == "nothing here"

    @pytest.mark.parametrize("where", ["header", "body"])
    def test_a_server_that_echoes_it(self, hub, tmp_path, monkeypatch, caplog, where):
        """Not in the message, nor in any error behind it, nor in a traceback, nor in a log line."""

        def echo(request):
            answer = Answer.json({"error": f"Bearer {WRITE} may not, {WRITE}"}, 403)
            if where == "header":
                answer.headers["X-Error-Message"] = f"token {WRITE} of another form: secret-of-another-form"
            return answer

        keep_secret("secret-of-another-form")
        monkeypatch.setattr(hub, "_route", echo)
        with caplog.at_level("DEBUG"), pytest.raises(HubError) as caught:
            publish_repo(plan(tmp_path))
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying with %s", f"Bearer {WRITE}")
        shown = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert "403" in shown and WRITE not in shown and "hf_me" not in shown and "another-form" not in shown
        assert "Retrying with hf_***" in caplog.text

    def test_in_a_chain(self):
        def fail():
            try:
                raise OSError(13, f"refused {WRITE}")
            except OSError as error:
                error.add_note(f"sent {WRITE}")
                raise KeyError(f"no {WRITE}") from error

        with pytest.raises(HubError) as caught:
            ask("Asking", fail)
        shown = "".join(traceback.format_exception(caught.value))
        assert WRITE not in shown and shown.count("hf_***") >= 3

    def test_in_the_traceback_of_a_command(self, hub, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(hub, "_route", lambda request: Answer.json({"error": f"Bearer {WRITE}"}, 403))
        with pytest.raises(HubError) as caught:
            main(["push", str(make_output(tmp_path)), "--repo_id", "me/film", "--debug"])
        assert WRITE not in "".join(traceback.format_exception(caught.value))


class TestSpace:
    def test_free_account_cannot_create_a_gradio_space(self, hub, tmp_path):
        space = plan_space(make_app(tmp_path), "me/film-space", PushOptions(), models=[])
        with pytest.raises(HubError, match="402.*free accounts cannot.*zero-a10g.*static"):
            publish([space])
        assert ("space", "me/film-space") not in hub.store.repos

    @pytest.mark.parametrize(
        ("command", "has", "lacks"),
        [("push", "--space_hardware zero-a10g", " --hardware"), ("space", "--hardware zero-a10g", "--space_")],
    )
    def test_a_command_names_its_own_options(self, hub, tmp_path, command, has, lacks):
        space = plan_space(make_app(tmp_path), "me/film-space", PushOptions(), models=[])
        with pytest.raises(HubError) as caught:
            publish([space], command="again")
        text = told(command, [], caught.value)
        assert has in text and lacks not in text and text.endswith("To continue: again")
        options = (
            parser().format_help() if command == "space" else " ".join(f"--{f.name}" for f in fields(PushArguments))
        )
        assert all(word in options for word in re.findall(r"--\w+", text))

    def test_payment_for_something_else(self, hub, tmp_path):
        hub.inject(402, path="/commit/")
        with pytest.raises(HubError) as caught:
            publish([plan(tmp_path)])
        assert "Space" not in told("push", [], caught.value) and "account's plan" in told("push", [], caught.value)

    def test_zero_gpu_is_free(self, hub, tmp_path):
        space = plan_space(make_app(tmp_path), "me/film-space", PushOptions(space_hardware="zero-a10g"), models=[])
        assert publish([space])[0].status == "created"
        assert hub.store.repos["space", "me/film-space"].hardware == "zero-a10g"
        assert ".env" not in hub.store.repos["space", "me/film-space"].commit("main").files


class TestVisibility:
    @pytest.mark.parametrize(("private", "expected"), [(True, True), (False, False), (None, False)])
    def test_of_everything(self, hub, tmp_path, private, expected):
        options = PushOptions(private=private, space_sdk="static")
        folder = make_output(tmp_path / "out")
        repos = plan_output_folder(folder, "me/film", options, dataset=True, space=make_app(tmp_path / "app")).repos
        publish(repos)
        assert {repo.private for repo in hub.store.repos.values()} == {expected} and len(hub.store.repos) == 7

    def test_public_is_not_taken_for_private(self, hub, tmp_path):
        publish_repo(plan(tmp_path / "a", private=False))
        commits = len(hub.store.repos["model", "me/film-mixture"].branches["main"])
        with pytest.raises(ValueError, match="me/film-mixture exists and is public, but private=True was asked for"):
            publish_repo(plan(tmp_path / "b", private=True))
        assert len(hub.store.repos["model", "me/film-mixture"].branches["main"]) == commits


class TestRevision:
    def test_an_existing_branch(self, hub, tmp_path):
        publish_repo(plan(tmp_path))
        create_branch("me/film-mixture", branch="dev/one")
        changed = plan(tmp_path)
        changed.files["tokenizer.json"] = OTHER_TOKENIZER
        publish_repo(changed, revision="dev/one")
        repo = hub.store.repos["model", "me/film-mixture"]
        assert repo.commit("dev/one").files["tokenizer.json"].data == OTHER_TOKENIZER
        assert repo.commit("main").files["tokenizer.json"].data == TOKENIZER

    def test_a_missing_branch(self, hub, tmp_path):
        publish_repo(plan(tmp_path))
        with pytest.raises(HubError, match="404.*create the branch"):
            publish_repo(plan(tmp_path), revision="dev")


def test_stale_weights_go_with_the_same_commit(hub, tmp_path):
    old = RepoPlan("me/x", "policy", files={"model.safetensors": b"1", "notes.md": b"mine", "config.json": b"{}"})
    publish_repo(old)
    publish_repo(RepoPlan("me/x", "policy", files={"adapter_model.safetensors": b"2", "adapter_config.json": b"{}"}))
    history = hub.store.repos["model", "me/x"].branches["main"]
    assert len(history) == 3
    assert set(history[-1].files) == {".gitattributes", "notes.md", "adapter_model.safetensors", "adapter_config.json"}


def test_two_plans_for_one_repository():
    with pytest.raises(ValueError, match="'a' and component 'A' would both go to me/[aA]. Rename"):
        publish([RepoPlan("me/a", "component", "a"), RepoPlan("me/A", "component", "A")])


@pytest.mark.parametrize("repo_id", ["film", "me/film/x", "me/a--b", "me/ä", ""])
def test_ids_are_full_and_valid(repo_id):
    with pytest.raises(ValueError, match="repository id"):
        RepoPlan(repo_id, "policy")
