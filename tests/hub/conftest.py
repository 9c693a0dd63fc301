# SPDX-License-Identifier: Apache-2.0
"""The real client, pointed at our own Hub."""

import os

import pytest


# Read when hf_xet starts its first session: its own repetitions would otherwise wait for minutes.
os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
os.environ.setdefault("HF_XET_CLIENT_RETRY_BASE_DELAY", "1ms")

from tests.hub_server import HubServer, client_of  # noqa: E402


@pytest.fixture(scope="module", params=[False], ids=["lfs"])
def server(request):
    """A Hub for the tests of one file; `@pytest.mark.parametrize("server", [True], indirect=True)` for Xet storage."""
    with HubServer(xet=request.param) as server:
        yield server


@pytest.fixture
def hub(server, tmp_path):
    """The client talks to an empty Hub, as the user `me`, and does not wait between repetitions."""
    empty = server.store.snapshot()
    with client_of(server, tmp_path / "hf-cache"):
        server.log.clear()
        yield server
    server.heal()
    server.store.restore(empty)
