# SPDX-License-Identifier: Apache-2.0
"""The contract of docs/serve.md over real HTTP; what is right is what the mixture itself says."""

import json
import socket
import threading

import pytest
import torch

from tests.serve.helpers import call, mixture, reward_server, served
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.serve.app import ServeSettings
from trl_maxmin.serve.scorer import Scorer
from trl_maxmin.trainer.maxmin.maxmin_config import MaxMinConfigMixin
from trl_maxmin.trainer.scoring.reference_statistics import ReferenceStatistics


PROMPTS = ["the film is", "a movie", "review of the plot :", "the film is"]
REPLIES = ["great", "very dull and weak", "superb", "good"]


@pytest.fixture(scope="module")
def model():
    found = mixture()
    found.config.reward_shift, found.config.reward_scale = [0.1, -0.2, 0.3], [0.5, 1.0, 2.0]
    return found


@pytest.fixture(scope="module")
def port(model):
    with served(reward_server(model, max_replies=8, max_body=20_000, rollout_size=4, max_sessions=3)) as port:
        yield port


def expected(model, finished=True):
    rewards = model.score(PROMPTS, REPLIES, finished=finished).double()
    return (rewards - torch.tensor([0.1, -0.2, 0.3])) / torch.tensor([0.5, 1.0, 2.0])


def test_scores_are_the_mixtures_own(model, port):
    status, _, found = call(port, "POST", "/v1/score", {"prompts": PROMPTS, "completions": REPLIES})
    assert status == 200 and found["components"] == ["brief", "warm", "kind"]
    torch.testing.assert_close(
        torch.tensor(found["utilities"], dtype=torch.float64), expected(model), atol=1e-5, rtol=0
    )
    # No session: equal weights.
    assert found["weights"] == pytest.approx([1 / 3] * 3) and found["calibration"] == "stored" and found["step"] == 0
    assert found["rewards"] == pytest.approx(expected(model).mean(dim=1).tolist(), abs=1e-5)


def test_a_truncated_reply_and_messages(model, port):
    flags = [True, False, True, False]
    _, _, found = call(port, "POST", "/v1/score", {"prompts": PROMPTS, "completions": REPLIES, "finished": flags})
    wanted = expected(model, flags)
    torch.testing.assert_close(torch.tensor(found["utilities"], dtype=torch.float64), wanted, atol=1e-5, rtol=0)
    assert (wanted - expected(model)).abs().max() > 1e-3, "the case tells them apart"
    chat = [[{"role": "user", "content": "good film"}]]
    _, _, found = call(port, "POST", "/v1/score", {"prompts": chat, "completions": ["very good"]})
    rewards = model.score(chat, [[{"role": "assistant", "content": "very good"}]])[0].double()
    assert found["utilities"][0][0] == pytest.approx(((rewards[0] - 0.1) / 0.5).item(), abs=1e-5)


def test_whole_texts_are_read_as_they_stand(model, port):
    texts = [f"{prompt} {reply} <eos>" for prompt, reply in zip(PROMPTS, REPLIES, strict=True)]
    padded = [texts[0] + " <pad> <pad>", texts[1] + " <eos> <eos>", *texts[2:]]
    for given in (texts, padded):
        _, _, found = call(port, "POST", "/v1/score", {"texts": given})
        torch.testing.assert_close(
            torch.tensor(found["utilities"], dtype=torch.float64), expected(model), atol=1e-5, rtol=0
        )


def test_weights_move_from_rollout_to_rollout(model, port):
    """Four replies are a rollout; max-min puts all weight on the component that is worst off in it."""
    utilities = expected(model)
    worst = int(utilities.mean(dim=0).argmin())
    halves = [{"prompts": PROMPTS[a : a + 2], "completions": REPLIES[a : a + 2], "session": "m"} for a in (0, 2)]
    for half in halves:
        found = call(port, "POST", "/v1/score", half)[2]
        assert found["weights"] == pytest.approx([1 / 3] * 3) and found["step"] == 0
    found = call(port, "POST", "/v1/score", halves[0] | {"count": False})[2]
    assert found["step"] == 1 and found["weights"] == [float(k == worst) for k in range(3)]
    assert found["rewards"] == pytest.approx(utilities[:2, worst].tolist(), abs=1e-5)
    facts = call(port, "GET", "/v1/sessions/m")[2]
    assert facts["step"] == 1 and facts["replies_of_the_next_rollout"] == 0 and not facts["calibrated"]
    assert facts["utilities"]["warm"] == pytest.approx(utilities[:, 1].mean().item(), abs=1e-5)
    # A rollout of its own decides before it is weighed, as in our trainers.
    found = call(port, "POST", "/v1/score", halves[1] | {"session": "w", "whole": True})[2]
    own = int(utilities[2:].mean(dim=0).argmin())
    assert found["step"] == 1 and found["weights"][own] == 1.0
    assert call(port, "DELETE", "/v1/sessions/m")[2] == {"ended": True}
    assert call(port, "DELETE", "/v1/sessions/w")[0] == 200
    assert call(port, "GET", "/v1/sessions/m")[0] == 404 and call(port, "DELETE", "/v1/sessions/m")[0] == 404


def test_a_session_is_measured_against_its_own_reference(model, port):
    prompts = [prompt for prompt in PROMPTS[:2] for _ in range(4)]
    replies = ["good", "bad", "very good", "a dull film"] * 2
    body = {"session": "c", "prompts": prompts, "completions": replies}
    status, _, found = call(port, "POST", "/v1/calibrate", body)
    assert status == 200 and found["prompts"] == 2
    _, _, scored = call(
        port, "POST", "/v1/score", {"prompts": PROMPTS, "completions": REPLIES, "session": "c", "count": False}
    )
    reference = model.score(prompts, replies).double().view(2, 4, 3)
    scale = reference.var(dim=1).mean(dim=0).sqrt()
    zero = reference.mean(dim=1)
    rewards = model.score(PROMPTS, REPLIES).double()
    # The third prompt has no reference replies of its own.
    wanted = (rewards - torch.stack([zero[0], zero[1], zero.mean(dim=0), zero[0]])) / scale
    torch.testing.assert_close(torch.tensor(scored["utilities"], dtype=torch.float64), wanted, atol=1e-4, rtol=1e-4)
    assert scored["calibration"] == "session"
    few = call(port, "POST", "/v1/calibrate", body | {"prompts": prompts[:2], "completions": replies[:2]})
    assert few[0] == 422 and "at least 4" in few[2]["error"]
    assert call(port, "DELETE", "/v1/sessions/c")[0] == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "JSON decode error"),
        (b"", "Field required"),
        ([], "Input should be"),
        ({}, "Give either `prompts` with `completions`, or `texts`"),
        ({"texts": ["a"], "completions": ["b"]}, "Give either"),
        ({"texts": ["a"], "finished": [True]}, "leave `prompts` and `finished` out"),
        ({"prompts": ["a"], "completions": ["b", "c"]}, "2 completions and 1 prompts"),
        ({"completions": ["b"]}, "1 completions and none prompts"),
        ({"prompts": ["a"], "completions": ["b"], "finished": [True] * 2}, "1 completions and 2 finished"),
        ({"prompts": [], "completions": []}, "There are 0 replies; give 1 to 8"),
        ({"texts": ["film"] * 9}, "There are 9 replies; give 1 to 8"),
        ({"texts": ["film " * 60]}, "has 60 tokens with its prompt, the reward model reads 48"),
        ({"texts": [""]}, "Reply 0 is empty"),
        ({"texts": ["film", 3]}, "texts.1: Input should be a valid string"),
        ({"texts": ["film"], "weight": 1}, "weight: Extra inputs are not permitted"),
        ({"texts": ["film"], "session": "../x"}, "session is '../x', but must be 1 to 64 letters"),
        ({"texts": ["film"], "session": "s", "whole": True, "count": False}, "leave one of them out"),
        (b'{"texts": ["\\ud800"]}', "texts.0: Input should be a valid string"),
        (
            b'{"prompts": [[{"role": "user", "content": "\\ud800"}]], "completions": ["a"]}',
            "Reply 0 cannot be read: 'utf-8' codec",
        ),
        ({"prompts": ["a"], "completions": [[{"role": "assistant"}]]}, "Reply 0 cannot be read"),
    ],
)
def test_bad_bodies_are_refused_in_words(port, body, message):
    status, _, found = call(port, "POST", "/v1/score", body if isinstance(body, bytes) else json.dumps(body).encode())
    assert status == 422 and message in found["error"], found


def test_what_is_too_large_is_refused_while_it_arrives(port):
    status, _, found = call(port, "POST", "/v1/score", b"x" * 30_000)
    assert status == 413 and "larger than 20000 bytes" in found["error"]
    # Nobody said how long it would be: the answer comes after the limit, and not after the end, which never comes.
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        line.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        for _ in range(5):
            line.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        assert b" 413 " in line.recv(4096).split(b"\r\n")[0]


def test_other_paths_and_methods(port):
    status, _, found = call(port, "GET", "/v1/score")
    assert status == 405 and "POST /v1/score" in found["error"]
    assert call(port, "POST", "/nothing", {})[0] == 404
    status, _, found = call(port, "GET", "/health")
    assert (status, found["status"]) == (200, "ok")
    status, _, found = call(port, "GET", "/v1/info")
    assert found["components"] == ["brief", "warm", "kind"] and found["limits"]["max_replies"] == 8
    assert found["context"] == 48 and found["welfare"] == "maxmin"
    paths = call(port, "GET", "/openapi.json")[2]["paths"]
    assert {"/v1/score", "/v1/calibrate", "/get_reward", "/llamafactory", "/health"} <= set(paths)


def test_sessions_are_bounded_and_none_is_dropped(port):
    names = ["a", "b", "c"]
    for name in names:
        assert call(port, "POST", "/v1/score", {"texts": ["film"], "session": name})[0] == 200
    status, headers, found = call(port, "POST", "/v1/score", {"texts": ["film"], "session": "d"})
    assert status == 429 and "There are 3 sessions, the most" in found["error"] and int(headers["retry-after"]) > 0
    assert all(call(port, "DELETE", f"/v1/sessions/{name}")[0] == 200 for name in names)


def test_a_token_is_asked_for(model):
    token = "correct-horse-battery"
    with served(reward_server(model, token=token)) as port:
        assert call(port, "GET", "/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
            status, found, body = call(port, "POST", "/v1/score", {"texts": ["film"]}, headers)
            assert status == 401 and found["www-authenticate"] == "Bearer" and "Authorization" in body["error"]
        assert call(port, "GET", "/docs".replace("docs", "openapi.json"))[0] == 401
        good = {"Authorization": f"Bearer {token}"}
        assert call(port, "POST", "/v1/score", {"texts": ["film"]}, good)[0] == 200


def test_a_body_that_does_not_come_is_not_waited_for(model):
    with served(reward_server(model, body_seconds=1.0)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            line.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert call(port, "POST", "/v1/score", {"texts": ["film"]})[0] == 200, "others are served meanwhile"
            assert b" 408 " in line.recv(4096).split(b"\r\n")[0]


def test_under_load_the_server_says_when_to_come_back(model):
    """One client fills its share, then all fill the queue; what was let in is answered."""
    server = reward_server(model, max_waiting=8, max_batch=1)
    free, score = threading.Event(), server.scorer.score
    server.queue.score = lambda rows: (free.wait(30), score(rows))[1]
    answers = {}

    def ask(name, session):
        answers[name] = call(port, "POST", "/v1/score", {"texts": ["film"] * 4, "session": session})

    def waiting(count):
        for _ in range(1000):
            if server.queue.waiting == count:
                return True
            threading.Event().wait(0.01)
        return False

    with served(server) as port:
        threads = [threading.Thread(target=ask, args=(name, name)) for name in ("a", "b")]
        threads[0].start()
        assert waiting(4)
        ask("own share", "a")
        threads[1].start()
        assert waiting(8)
        ask("all", "c")
        free.set()
        for thread in threads:
            thread.join()
    assert answers["own share"][0] == 429 and "its share is 4" in answers["own share"][2]["error"]
    assert answers["all"][0] == 503 and "8 replies are waiting" in answers["all"][2]["error"]
    assert all(int(answers[name][1]["retry-after"]) >= 1 for name in ("own share", "all"))
    assert [answers[name][0] for name in ("a", "b")] == [200, 200]


def test_weights_outlive_the_server(model, tmp_path):
    """Killed in the midst of a rollout: what was decided stays, and what was not is lost."""
    welfare = MaxMinConfigMixin(welfare="mirror", welfare_step_size=1.0)
    body = {"prompts": PROMPTS, "completions": REPLIES, "session": "run-1"}
    reference = {"session": "run-1", "prompts": PROMPTS[:1] * 4, "completions": REPLIES}
    options = {"state_dir": tmp_path, "rollout_size": 4}
    with served(reward_server(model, welfare, **options)) as port:
        assert call(port, "POST", "/v1/calibrate", reference)[0] == 200
        call(port, "POST", "/v1/score", body)
        before = call(port, "POST", "/v1/score", body | {"prompts": PROMPTS[:3], "completions": REPLIES[:3]})[2]
        facts = call(port, "GET", "/v1/sessions/run-1")[2]
    assert before["step"] == 1 and facts["replies_of_the_next_rollout"] == 3
    with served(reward_server(model, welfare, **options)) as port:
        assert call(port, "GET", "/v1/sessions/run-1")[2] == facts | {"replies_of_the_next_rollout": 0}
        again = call(port, "POST", "/v1/score", body | {"count": False})[2]
        assert again["weights"] == before["weights"] and again["calibration"] == "session"
        assert call(port, "DELETE", "/v1/sessions/run-1")[0] == 200
    assert not list(tmp_path.iterdir())


def test_regret_needs_something_to_regret(model):
    with served(reward_server(model, MaxMinConfigMixin(welfare="regret"))) as port:
        body = {"prompts": PROMPTS, "completions": REPLIES, "session": "r", "whole": True}
        status, _, found = call(port, "POST", "/v1/score", body)
        assert status == 422 and "calibrate the session first" in found["error"]
        reference = {"session": "r", "prompts": PROMPTS[:1] * 4, "completions": REPLIES}
        assert call(port, "POST", "/v1/calibrate", reference)[0] == 200
        found = call(port, "POST", "/v1/score", body)[2]
        assert found["step"] == 1 and max(found["weights"]) == 1.0


def test_a_reward_that_is_no_number_fails_alone(model, monkeypatch):
    server = reward_server(model)
    score, asked = MixtureRewardModel.score, []

    def broken(self, **kwargs):
        asked.append(len(kwargs["completion_ids"]))
        found = score(self, **kwargs)
        bad = torch.tensor([4 in ids for ids in kwargs["completion_ids"]])  # "the"
        return torch.where(bad.unsqueeze(1), torch.nan, found)

    monkeypatch.setattr(MixtureRewardModel, "score", broken)
    with served(server) as port:
        assert call(port, "POST", "/v1/score", {"texts": ["the film"]})[0] == 500
        assert call(port, "POST", "/v1/score", {"texts": ["a film"]})[0] == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_replies": 0}, "max_replies must be at least 1, got 0"), ({"token": "short"}, "has 5 characters")],
)
def test_limits_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        ServeSettings(**options)


def test_a_mixture_without_a_tokenizer_is_refused(model):
    bare = MixtureRewardModel(model.config)
    with pytest.raises(ValueError, match="without its tokenizer"):
        Scorer(bare)


def test_what_is_kept_is_of_these_components(model, tmp_path):
    statistics = ReferenceStatistics.from_rewards(["x"], ["k"] * 4, torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    statistics.save(tmp_path / "run-1")
    with pytest.raises(ValueError, match=r"are of the components \['x'\]"):
        reward_server(model, state_dir=tmp_path)


def test_requests_at_the_same_time_are_bounded(model):
    with served(reward_server(model, max_requests=1)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            line.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            for _ in range(1000):
                status, headers, found = call(port, "POST", "/v1/score", {"texts": ["film"]})
                if status == 503:
                    break
                threading.Event().wait(0.01)
            assert "1 requests are open, the most" in found["error"] and headers["retry-after"] == "1"
            assert call(port, "GET", "/health")[0] == 200
        for _ in range(1000):
            if call(port, "POST", "/v1/score", {"texts": ["film"]})[0] == 200:
                break
            threading.Event().wait(0.01)
        assert call(port, "POST", "/v1/score", {"texts": ["film"]})[0] == 200, "the place of who hung up is free"
