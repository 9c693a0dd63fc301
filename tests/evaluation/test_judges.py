# SPDX-License-Identifier: Apache-2.0
"""Judges in both orders, and a real HTTP endpoint on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from trl_maxmin.data.texts import text_of
from trl_maxmin.evaluation.judges import CRITERIA, FAILED, TIE, EndpointJudge, judge_pairs, parse_verdict


class Scripted:
    """Answers what it was told, in turn; remembers what it was asked."""

    def __init__(self, verdicts):
        self.verdicts, self.asked = verdicts, []

    def judge(self, prompts, completions, shuffle_order=True):
        assert shuffle_order is False
        self.asked += zip(prompts, completions, strict=True)
        return self.verdicts


def test_both_orders_are_asked_and_counted():
    # rows: clear win, clear loss, follows the order, says tie, fails once
    judge = Scripted([0, 1, 0, TIE, FAILED, 1, 0, 0, 0.5, 0])
    found = judge_pairs(judge, list("pqrst"), list("abcde"), list("ABCDE"))
    assert found.outcomes[:4].tolist() == [1.0, 0.0, 0.5, 0.5] and np.isnan(found.outcomes[4])
    assert found.counts == {"judged": 4, "ties": 2, "inconsistent": 1, "failed": 1}
    assert judge.asked[0] == ("p", ["a", "A"]) and judge.asked[5] == ("p", ["A", "a"])


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Verdict: A", 0),
        ("verdict: b.", 1),
        ("Reply A is short.\n**Verdict: tie**", TIE),
        ("Verdict: A\nno, on reflection\nVerdict: B", 1),
        ("Verdict: reply_B", 1),
        ("Verdict: Apples", FAILED),
        ("A", FAILED),
        ("", FAILED),
        (None, FAILED),
    ],
)
def test_verdicts_are_read_from_the_last_line_that_has_one(answer, verdict):
    assert parse_verdict(answer) == verdict


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judge_pairs(Scripted([]), ["p"], ["a"], []), "1 prompts, 1 and 0 replies"),
        (lambda: judge_pairs(Scripted([0]), ["p"], ["a"], ["b"]), "1 verdicts for 2 comparisons"),
        (lambda: judge_pairs(Scripted([0, 7]), ["p"], ["a"], ["b"]), "returned 7; allowed: 0, 1, 2"),
        (lambda: EndpointJudge("localhost:1", "m", "P1A"), "must start with http"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_messages_are_shown_with_their_roles():
    assert text_of([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hm"}], True) == (
        "user: Hi\nassistant: Hm"
    )


@pytest.fixture
def endpoint():
    """A server that prefers the shorter reply; a reply that says so makes it answer nonsense, 500 or 400."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers.get("Authorization"), body))
            text = body["messages"][0]["content"]
            first, second = (text.split(f"<reply_{x}>\n")[1].split(f"\n</reply_{x}>")[0] for x in "AB")
            status = next((code for code in (500, 400) if f"status{code}" in text), 200)
            said = "I cannot say" if "nonsense" in text else f"Verdict: {'A' if len(first) < len(second) else 'B'}"
            answer = {"choices": [{"message": {"content": said}}]} if "empty" not in text else {}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer if status == 200 else {"error": "no such model"}).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", requests
    server.shutdown()
    server.server_close()


def test_an_endpoint_judges(endpoint):
    url, requests = endpoint
    judge = EndpointJudge(url, "some-model", "P2A", num_workers=2)
    found = judge_pairs(judge, ["p"] * 5, ["ab", "abcd", "nonsense", "status500", "empty"], ["abc"] * 5)
    assert found.outcomes[:2].tolist() == [1.0, 0.0] and np.isnan(found.outcomes[2:]).all()
    assert found.counts == {"judged": 2, "ties": 0, "inconsistent": 0, "failed": 3}
    path, authorization, body = requests[0]
    assert path == "/v1/chat/completions" and authorization is None
    assert body["model"] == "some-model" and body["temperature"] == 0
    assert CRITERIA["P2A"] in body["messages"][0]["content"]


def test_a_key_is_sent_only_if_there_is_one(endpoint):
    url, requests = endpoint
    EndpointJudge(url, "m", "be kind", api_key="abc").judge(["p"], [["a", "bb"]])
    assert requests[0][1] == "Bearer abc" and "be kind" in requests[0][2]["messages"][0]["content"]


def test_a_refused_request_says_why(endpoint):
    with pytest.raises(ValueError, match=r"refused the request \(400\): .*no such model"):
        EndpointJudge(endpoint[0], "m", "P1A").judge(["status400"], [["a", "b"]])


def test_an_endpoint_that_is_not_there_is_an_oserror():
    with pytest.raises(OSError, match="cannot be reached"):
        EndpointJudge("http://127.0.0.1:9", "m", "P1A", timeout=2).judge(["p"], [["a", "b"]])
