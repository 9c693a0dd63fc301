# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium, watched: console errors, failed scripts, dialogs, requests that leave loopback."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest


WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed (pip install playwright)"
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


class Watched:
    """A page, and everything that should not have happened on it."""

    def __init__(self, opened: Any, url: str, width: str, dark: bool = False) -> None:
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        self.context = opened.new_context(viewport=size, color_scheme="dark" if dark else "light")
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.page.on("console", lambda m: self._note(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self._note(f"script error: {error}"))
        self.page.on("dialog", lambda dialog: (self._note(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("requestfailed", lambda r: self._note(f"failed: {r.url}") if not _streams(r.url) else None)
        self.page.on("request", self._request)
        self.page.goto(url)
        self.page.wait_for_selector("#mm-compare")

    def _note(self, text: str) -> None:
        self.wrong.append(text)

    def _request(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in ("127.0.0.1", "localhost"):
            self._note(f"request off loopback: {request.url}")

    def compare(self, start: Callable[[], None] | None = None) -> None:
        """Start a comparison (by a click, or by `start`) and wait until its answers stand there whole.

        The answers of the comparison before are whole as well, and stay until the first new ones arrive: they are
        marked, and a marked panel does not count.
        """
        self.page.evaluate("document.querySelector('#mm-answers [aria-busy]')?.setAttribute('data-old', '')")
        if start is None:
            self.page.click("#mm-compare")
        else:
            start()
        self.page.wait_for_selector("#mm-answers [aria-busy=false]:not([data-old])")
        self.settle()

    def settle(self) -> None:
        """Wait until what came with the last message is drawn in every part of the page."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def close(self) -> None:
        self.context.close()


def _streams(url: str) -> bool:
    # The page cuts these when it is closed or reloaded.
    return "/queue/data" in url or "/heartbeat/" in url
