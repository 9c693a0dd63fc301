# SPDX-License-Identifier: Apache-2.0
"""The page's server as clients see it: what lasts, who waits for whom, what is open to others."""

import datetime
import json
from types import SimpleNamespace

import pytest

from tests.space.fakes import serving_app, studio


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
