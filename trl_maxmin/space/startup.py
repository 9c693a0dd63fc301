# SPDX-License-Identifier: Apache-2.0
"""How the page's process starts soon and ends well."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Imports and the loading of models make objects that stay: looking for garbage among them takes a fifth of it.

    What is there at the end is left out of later collections too. Where collection was off before, it stays off.

    Example:

    >>> with without_garbage_collection():
    ...     gc.isenabled()
    False
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def end_in_order() -> None:
    """Let a polite stop (SIGTERM, as a Space gets before it is switched off) run what is due at the end, such as
    sending the last votes. Only the main thread may call it."""

    def leave(*_: Any) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
