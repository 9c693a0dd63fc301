# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin serve`: what is refused before anything is loaded, and what reaches uvicorn."""

import pytest
import uvicorn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.serve.helpers import call, mixture, served
from trl_maxmin.cli import main
from trl_maxmin.serve import app as serve_app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    model = mixture(["brief", "warm"])
    model.save_pretrained(folder / "mixture")
    GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder / "base")
    model.processing_class.save_pretrained(folder / "base")
    return folder


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ([], 2, "--reward_model is required"),
        (["--reward_model", "mixture", "--host", "0.0.0.0"], 2, "--host 0.0.0.0 is open to other machines"),
        (["--reward_model", "mixture", "--token_variable", "NOT_SET"], 2, "there is no such environment variable"),
        (["--reward_model", "mixture", "--token_variable", "SHORT"], 2, "The token has 3 characters"),
        (["--reward_model", "mixture", "--max_replies", "0"], 2, "max_replies must be at least 1, got 0"),
        (["--reward_model", "base"], 1, "is a gpt2, not a mixture"),
        (["--reward_model", "./nowhere"], 1, "there is no folder ./nowhere"),
        (["--reward_model", "mixture", "--utility", "raw"], 2, "--utility raw is refused"),
        (
            ["--reward_model", "mixture", "--state_dir", "base/config.json"],
            1,
            "--state_dir base/config.json cannot be",
        ),
    ],
)
def test_wrong_calls(folder, monkeypatch, capsys, argv, status, message):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SHORT", "abc")
    assert main(["serve", *argv]) == status
    assert message in capsys.readouterr().err


def test_options_reach_the_server(folder, monkeypatch, capsys, caplog):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOKEN", "a-long-enough-token")
    given, made = {}, []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: given.update(options))
    monkeypatch.setattr(serve_app, "create_app", lambda server: made.append(server))
    argv = ["--reward_model", "mixture", "--host", "0.0.0.0", "--token_variable", "TOKEN", "--port", "9000"]
    more = ["--welfare", "mirror", "--welfare_step_size", "0.5", "--rollout_size", "32", "--max_body_mb", "2"]
    assert main(["serve", *argv, *more, "--state_dir", "sessions"]) == 0, capsys.readouterr().err
    server = made[0]
    assert given["host"] == "0.0.0.0" and given["port"] == 9000
    assert server.settings.token == "a-long-enough-token" and server.settings.max_body == 2 * 2**20
    assert server.sessions.settings.welfare_step_size == 0.5 and server.info()["welfare"] == "mirror"
    assert server.sessions.rollout_size == 32 and server.settings.state_dir.name == "sessions"
    assert "rewards of brief, warm at http://0.0.0.0:9000" in capsys.readouterr().out
    assert "The mixture is not calibrated" in caplog.text
    monkeypatch.undo()
    with served(server) as port:
        good = {"Authorization": "Bearer a-long-enough-token"}
        assert call(port, "POST", "/v1/score", {"texts": ["film"]}, good)[2]["calibration"] == "none"
