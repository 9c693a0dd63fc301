# SPDX-License-Identifier: Apache-2.0
"""The real client, pointed at our own Hub."""

import os
from types import SimpleNamespace

import pytest


# Read when hf_xet starts its first session: its own repetitions would otherwise wait for minutes.
os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
os.environ.setdefault("HF_XET_CLIENT_RETRY_BASE_DELAY", "1ms")

from huggingface_hub import constants, hf_api  # noqa: E402
from huggingface_hub.utils import _http, disable_progress_bars, enable_progress_bars  # noqa: E402
from transformers.utils import hub as transformers_hub  # noqa: E402

from tests.hub_server import WRITE, HubServer  # noqa: E402


@pytest.fixture(scope="module", params=[False], ids=["lfs"])
def server(request):
    """A Hub for the tests of one file; `@pytest.mark.parametrize("server", [True], indirect=True)` for Xet storage."""
    with HubServer(xet=request.param) as server:
        yield server


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The client talks to an empty Hub, as the user `me`, and does not wait between repetitions."""
    empty = server.store.snapshot()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
    # transformers keeps one client per process, with the Hub of the module that asked first. Older ones keep none.
    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not server.xet)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setenv("HF_TOKEN", WRITE)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None, time=_http.time.time))
    disable_progress_bars()
    server.log.clear()
    yield server
    enable_progress_bars()
    server.heal()
    server.store.restore(empty)
