# SPDX-License-Identifier: Apache-2.0
"""Our own Hub: HTTP on loopback, in memory, with faults on request, for the real client. No mock of the client.

In a test: `with HubServer() as server:`. On the command line it starts a Hub, points the client at it by environment
variables, and runs a command there:

    python -m tests.hub_server -- trl-maxmin push maxmin-demo --repo_id me/film
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_routes import ROUTES, Answer, Request
from tests.hub_store import HubRefusal, HubStore


#: Tokens of the users that exist from the start.
WRITE, READ, OTHER, PRO = "hf_meWrite0000", "hf_meRead00000", "hf_otherWrite0", "hf_proWrite000"
USERS = {
    WRITE: {"name": "me", "role": "write", "orgs": ["film-lab"]},
    READ: {"name": "me", "role": "read", "orgs": ["film-lab"]},
    OTHER: {"name": "other", "role": "write", "orgs": []},
    PRO: {"name": "pro", "role": "write", "orgs": [], "pro": True},
}

#: Bodies that the real Hub sends with a status of its own accord.
_FAULT_BODIES = {
    400: "Bad request",
    401: "Invalid username or password.",
    402: "Payment required",
    403: "Forbidden: you are not allowed to do this",
    404: "Repository not found",
    409: "Conflict",
    412: "Precondition failed: the repository has changed",
    413: "Payload too large",
    429: "We had to rate limit you",
}
FAULTS: tuple[int | str, ...] = (*_FAULT_BODIES, 500, 502, 503, 504, "drop", "lost", "cut", "garbage")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and with which requests.

    Args:
        kind (`int` or `str`): a status; `"drop"`: the connection closes before the request is handled; `"lost"`: the
            request is handled, then the connection closes; `"cut"`: handled, but the answer ends in the middle;
            `"garbage"`: 200 with a page that is not what was asked for, as a captive portal sends it.
        hits (`Callable`): (number of the request from 0, method, path) -> whether it is hit.
    """

    kind: int | str
    hits: Callable[[int, str, str], bool]


class HubServer:
    """A Hub on an ephemeral port of 127.0.0.1, with its large files on `localhost`, another origin.

    Args:
        xet (`bool`): whether large files go to Xet storage; without it the Xet token is answered with 404, and clients
            must have Xet switched off (`HF_HUB_DISABLE_XET=1`).
        folder (`Path`, *optional*): where the Xet store lives.
    """

    def __init__(self, xet: bool = True, folder: Path | None = None) -> None:
        self.store = HubStore({token: dict(user) for token, user in USERS.items()})
        self._temporary = tempfile.TemporaryDirectory(prefix="hub-")
        self.xet_folder = (folder or Path(self._temporary.name)) / "xet"
        self.xet_folder.mkdir(parents=True)
        self.xet = xet
        self.log: list[tuple[str, str, int | str]] = []
        self.faults: list[Fault] = []
        self.uploads: dict[str, dict[int, bytes]] = {}
        self._lock = threading.RLock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        self.port = self._http.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._temporary.cleanup()

    def environment(self, home: str | Path, token: str | None = WRITE) -> dict[str, str]:
        """What a fresh process needs to talk to this Hub and to nothing else."""
        env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")}
        env |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return env | ({"HF_TOKEN": token} if token else {})

    # -- faults -------------------------------------------------------------------------------------------------------

    def inject(self, kind: int | str, at: int = 0, path: str | None = None, lasting: bool = False) -> None:
        """Let a request fail, and its repetitions (same method and path) with it.

        Args:
            kind (`int` or `str`): see [`Fault`].
            at (`int`): number of the request from now on, of those that match `path`.
            path (`str`, *optional*): regular expression; default: any request.
            lasting (`bool`): every request from there on fails: the Hub is gone.
        """
        seen: dict[str, Any] = {"count": -1, "key": None}

        def hits(method: str, where: str) -> bool:
            if path is not None and not re.search(path, where):
                return False
            seen["count"] += 1
            if seen["count"] == at:
                seen["key"] = (method, where)
            return seen["key"] == (method, where) or (lasting and seen["count"] >= at)

        self.faults.append(Fault(kind, lambda _, method, where: hits(method, where)))

    def heal(self) -> None:
        """No faults any more."""
        self.faults.clear()

    # -- requests -----------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Answer | str:
        """One request, or the way in which its connection ends."""
        with self._lock:
            kind = next((f.kind for f in self.faults if f.hits(len(self.log), request.method, request.path)), None)
            if kind == "drop":
                self.log.append((request.method, request.path, "drop"))
                return "drop"
            if isinstance(kind, int):
                answer = _fault_answer(kind)
            elif kind == "garbage":
                answer = Answer(200, b"<html>Please sign in to the network</html>", {"Content-Type": "text/html"})
            else:
                answer = self._route(request)
            self.log.append((request.method, request.path, kind if kind in ("lost", "cut") else answer.status))
            if kind in ("lost", "cut"):
                answer.headers["x-fault"] = str(kind)
            return answer

    def _route(self, request: Request) -> Answer:
        try:
            if request.host.startswith("localhost") and request.token is not None:
                raise HubRefusal(400, "A token was sent to the storage: only one mechanism is allowed")
            for method, pattern, handler in ROUTES:
                match = pattern.fullmatch(request.path) if method == request.method else None
                if match:
                    return handler(self, request, **{k: unquote(v) for k, v in match.groupdict().items() if v})
            raise HubRefusal(404, f"No such page: {request.method} {request.path}")
        except HubRefusal as refusal:
            answer = Answer.json({"error": refusal.message, **refusal.body}, refusal.status)
            answer.headers["X-Error-Message"] = refusal.message
            if refusal.code:
                answer.headers["X-Error-Code"] = refusal.code
            answer.headers |= refusal.body.get("headers", {})
            return answer


def _fault_answer(status: int) -> Answer:
    if status >= 500:
        return Answer(status, b"<html>The server made a mistake</html>", {"Content-Type": "text/html"})
    answer = Answer.json({"error": _FAULT_BODIES[status]}, status)
    if status == 429:
        answer.headers["Retry-After"] = "7"
    if status == 404:
        answer.headers["X-Error-Code"] = "RepoNotFound"
    return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer
    address_family = socket.AF_INET

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the log is a list."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        bearer = self.headers.get("Authorization", "")
        request = Request(
            method=self.command,
            path=parts.path,
            query={name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()},
            headers=dict(self.headers.items()),
            body=self._body(),
            token=bearer.removeprefix("Bearer ") if bearer else None,
            host=self.headers.get("Host", ""),
        )
        answer = self.server.hub.handle(request)
        fault = answer if isinstance(answer, str) else answer.headers.pop("x-fault", None)
        if fault in ("drop", "lost"):
            self.close_connection = True
            return
        length = answer.headers.get("Content-Length", str(len(answer.body)))
        lines = [f"HTTP/1.1 {answer.status} Answer", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items() if name != "Content-Length"]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        body = b"" if self.command == "HEAD" else answer.body
        if fault == "cut":
            self.close_connection = True
            # A body that ends early where there is one, else half of the head.
            self.wfile.write(head + body[: len(body) // 2] if len(body) > 1 else head[: len(head) // 2])
            return
        self.wfile.write(head + body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve


@contextlib.contextmanager
def client_of(server: HubServer, cache: str | Path, token: str = WRITE) -> Iterator[HubServer]:
    """The real client of this process talks to a Hub of ours, as the user `me`, and does not wait between repetitions.

    Args:
        server ([`HubServer`]): the Hub.
        cache (`str` or `Path`): folder for what is downloaded.
        token (`str`, *optional*): who asks.
    """
    import pytest
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import hub as transformers_hub

    had_bars = not are_progress_bars_disabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(hf_api.api, "endpoint", server.endpoint)
        # transformers keeps one client per process, with the Hub of whoever asked first. Older ones keep none.
        patch.setattr(transformers_hub, "_hf_api", None, raising=False)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", not server.xet)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setenv("HF_TOKEN", token)
        patch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None, time=_http.time.time))
        disable_progress_bars()
        try:
            yield server
        finally:
            if had_bars:
                enable_progress_bars()


def run_command(command: list[str]) -> int:
    """Start a Hub, run a command that talks to it, and say what is on it afterwards."""
    with HubServer() as server, tempfile.TemporaryDirectory() as home:
        status = subprocess.run(command, env=server.environment(home)).returncode
        for (type, id), repo in sorted(server.store.repos.items()):
            files = repo.commit("main").files
            size = sum(blob.size for blob in files.values())
            visibility = "private" if repo.private else "public"
            print(f"{type:8} {id}  {visibility}  {len(files)} files  {size:,} bytes")
        for slug, collection in server.store.collections.items():
            print(f"collection {slug}  {len(collection['items'])} items")
        return status


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(run_command(arguments[1:] if arguments[:1] == ["--"] else arguments))
