# SPDX-License-Identifier: Apache-2.0
"""What Gradio's server offers and this page does not need: files in, files out, and fetching what others name."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any


# By family and not by exact route, since releases of Gradio add some: uploads, cached files and addresses of other
# hosts (which `file=` and `proxy=` fetch), streams and recordings, folders of components, and development tools.
_CLOSED = re.compile(
    r"(?:/gradio_api)?/+(?:upload|file|proxy|stream|process_recording|custom_component|component_server|deep_link"
    r"|run-?history|runs|dev|vibe|undo-vibe|monitoring|dataset)\b",
    re.IGNORECASE,
)


def is_closed(path: str) -> bool:
    """Whether a decoded path of the server is not served.

    Example:

    >>> is_closed("/gradio_api/file=/etc/passwd"), is_closed("/gradio_api/queue/join"), is_closed("/")
    (True, False, False)
    """
    return _CLOSED.match(path) is not None


class Guard:
    """ASGI middleware that answers 404 for what [`is_closed`] names.

    Args:
        app (`Callable`): the ASGI application behind it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request; `root_path`, under which a proxy may serve the page, is not part of what is compared."""
        if scope["type"] in ("http", "websocket"):
            path = scope.get("path", "").removeprefix(scope.get("root_path", "").rstrip("/"))
            if is_closed(path):
                if scope["type"] == "http":
                    headers = [(b"content-type", b"text/plain"), (b"content-length", b"9")]
                    await send({"type": "http.response.start", "status": 404, "headers": headers})
                    await send({"type": "http.response.body", "body": b"Not found"})
                else:
                    await send({"type": "websocket.close", "code": 1008})
                return
        await self.app(scope, receive, send)
