# SPDX-License-Identifier: Apache-2.0
"""The page's server as clients see it: what lasts, who waits for whom, what is open to others."""

import datetime
import json
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

from tests.space.fakes import FakeMixture, serving_app, studio
from trl_maxmin.space.run_data import RunData


gradio_client = pytest.importorskip("gradio_client", reason="Gradio is not installed (pip install trl-maxmin[space])")
NAMES = ["reference", "single", "maxmin"]
CHOICE = 3


def client_of(url):
    return gradio_client.Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 60})


def compare(client, prompt="p", blind=False):
    return client.predict(prompt, NAMES, 1.0, 0, 5, blind, api_name="/compare")


def test_a_visit_lasts_as_long_as_its_page_is_open(tmp_path, monkeypatch):
    from gradio import state_holder

    def hours_later(hours):
        later = SimpleNamespace(now=lambda: datetime.datetime.now() + datetime.timedelta(hours=hours))
        monkeypatch.setattr(state_holder, "datetime", SimpleNamespace(datetime=later))
        app.app.state_holder.delete_all_expired_state()

    with serving_app(studio(votes_dir=str(tmp_path))) as (app, url):
        client = client_of(url)
        for hours in range(4):
            shown = compare(client)
            hours_later(2 * hours)
            # What Gradio notes when the connection breaks, on a phone that sleeps for instance, and keeps.
            app.app.state_holder.session_data[client.session_hash].is_closed = True
            assert "your vote is stored" in client.predict(shown[CHOICE]["choices"][0][1], None, api_name="/vote")[2]
    rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and len({row["annotator_id"] for row in rows}) == 1


def test_there_is_nothing_to_call_but_comparisons_and_votes(tmp_path):
    with serving_app(studio(votes_dir=str(tmp_path))) as (_, url):
        assert set(client_of(url).view_api(return_format="dict")["named_endpoints"]) == {"/compare", "/vote"}


def post(url, path, body):
    """Status and text of an answer."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def number_of(app, function):
    return next(number for number, known in app.fns.items() if known.fn.__name__ == function)


def ask(app, url, session, function="compare"):
    """Join the queue as a page does."""
    data = {"compare": ["p", NAMES, 1.0, 0, 5, False], "fill_groups": []}[function]
    body = {"data": data, "fn_index": number_of(app, function), "session_hash": session}
    return post(url, "/gradio_api/queue/join", body)


def test_nothing_runs_beside_the_queue(tmp_path):
    made = studio(votes_dir=str(tmp_path), run=RunData(replies={"p": [("maxmin", "a", True)]}))
    with serving_app(made) as (app, url):
        for path, body in (
            ("compare", {"data": ["p", NAMES, 1.0, 0, 5, False]}),
            ("vote", {"data": ["x:0", None]}),
            ("predict", {"data": [], "fn_index": number_of(app, "fill_groups")}),
        ):
            for route in ("run", "api"):
                assert post(url, f"/gradio_api/{route}/{path}", body)[0] == 404
    assert made.recorded is None


@pytest.mark.parametrize("session", ["busy", None])
def test_a_visit_cannot_fill_the_queue(tmp_path, session):
    made = studio(votes_dir=str(tmp_path), queue_size=10)
    with serving_app(made) as (app, url):
        client = client_of(url)
        choice = compare(client)[CHOICE]["choices"][0][1]
        made.policies["maxmin"].gate.clear()
        try:
            if session is None:
                data = {"data": ["p", NAMES, 1.0, 0, 5, False]}
                answers = [post(url, "/gradio_api/call/compare", data) for _ in range(20)]
            else:
                answers = [ask(app, url, session) for _ in range(20)]
            # One runs, three wait; whether the first had begun when the fourth came is up to the machine.
            accepted = [text for status, text in answers if status == 200]
            assert len(accepted) in (3, 4)
            assert {status for status, text in answers if "3 requests waiting already" in text} == {503}
            # All others go on: a comparison, and a vote at once.
            assert ask(app, url, "another")[0] == 200
            assert "your vote is stored" in client.predict(choice, None, api_name="/vote")[2]
        finally:
            made.policies["maxmin"].gate.set()


def test_a_full_queue_of_comparisons_keeps_nobody_from_voting(tmp_path):
    made = studio(votes_dir=str(tmp_path), queue_size=4)
    with serving_app(made) as (app, url):
        client = client_of(url)
        choice = compare(client)[CHOICE]["choices"][0][1]
        made.policies["maxmin"].gate.clear()
        try:
            answers = [ask(app, url, f"visitor {n}") for n in range(10)]
            assert sum(status == 200 for status, _ in answers) in (4, 5)
            assert "Please try again in a minute" in answers[-1][1]
            assert ask(app, url, "one more", "compare")[0] == 503
            assert "your vote is stored" in client.predict(choice, None, api_name="/vote")[2]
        finally:
            made.policies["maxmin"].gate.set()


def test_a_single_group_has_its_page_too():
    made = studio(mixture=FakeMixture(("long",)), run=RunData(replies={"p": [("maxmin", "a", True)]}), votes_dir="")
    with serving_app(made) as (app, url):
        assert ask(app, url, "s", "fill_groups")[0] == 200
        with urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash=s", timeout=60) as stream:
            messages = (json.loads(line[6:]) for line in stream if line.startswith(b"data: "))
            done = next(message for message in messages if message["msg"] == "process_completed")
    (page,) = done["output"]["data"]
    assert isinstance(page, str) and "Best for long" in page
