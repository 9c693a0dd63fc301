# SPDX-License-Identifier: Apache-2.0
"""What reaches a server at all: who may ask, how large a body may be, and how long it may take to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any


#: What is answered without a token: whether the server is up, and nothing else.
_OPEN = ("/health",)
#: Of a body that is too large so many bytes are read and dropped, for so many seconds, before it is refused: a client
#: that is still sending would not read the answer. Who sends more finds the connection closed.
_DROPPED, _DROPPED_SECONDS = 1 << 20, 1.0


class Door:
    """ASGI middleware in front of the application: token, number, size and patience, in this order.

    A body is counted while it arrives, so that one that is too large is refused before it is held in memory.

    Args:
        app (`Callable`): the ASGI application behind it.
        max_body (`int`): bytes.
        body_seconds (`float`): for the whole body.
        max_requests (`int`): at the same time.
        token (`str`, *optional*): what `Authorization: Bearer` has to hold.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        max_body: int,
        body_seconds: float,
        max_requests: int,
        token: str | None = None,
    ) -> None:
        self.app, self.max_body, self.body_seconds, self.max_requests = app, max_body, body_seconds, max_requests
        self._requests = 0
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._expected is not None and scope["path"] not in _OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await refuse(send, 401, "A token is needed: send the header `Authorization: Bearer TOKEN`.")
                return
        if self._requests >= self.max_requests and scope["path"] not in _OPEN:
            await refuse(send, 503, f"{self._requests} requests are open, the most. Try again later.", 1)
            return
        self._requests += 1
        try:
            await self._let_in(scope, receive, send, headers.get(b"content-length", b""))
        finally:
            self._requests -= 1

    async def _let_in(self, scope: Any, receive: Any, send: Any, length: bytes) -> None:
        too_large = f"The body is larger than {self.max_body} bytes; send less in a request."
        if length.isdigit() and int(length) > self.max_body:
            await _drop(receive)
            await refuse(send, 413, too_large)
            return
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return  # the client has gone
                    body += message.get("body", b"")
                    if len(body) > self.max_body or not message.get("more_body"):
                        break
        except TimeoutError:
            await refuse(send, 408, f"The body did not arrive within {self.body_seconds:g} s.")
            return
        if len(body) > self.max_body:
            body.clear()
            if message.get("more_body"):
                await _drop(receive)
            await refuse(send, 413, too_large)
            return
        sent = False

        async def whole() -> Any:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, whole, send)


async def _drop(receive: Any) -> None:
    """Read what a client is sending, and keep nothing of it, up to a limit."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DROPPED_SECONDS):
            while size < _DROPPED:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


async def refuse(send: Any, status: int, message: str, retry_after: int | None = None) -> None:
    """Answer with an error in words, and close the connection: the rest of a body is not read."""
    text = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    headers.append((b"connection", b"close"))
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
