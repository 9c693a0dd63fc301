# SPDX-License-Identifier: Apache-2.0
"""Serving groups without another training: best-of-n by welfare, and a router between policies of components.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` imports them
    from .best_of import BestOfN as BestOfN
    from .best_of import BestOfPolicy as BestOfPolicy
    from .router import PolicyRouter as PolicyRouter
    from .router import Route as Route

_MODULE_OF = {"BestOfN": "best_of", "BestOfPolicy": "best_of", "PolicyRouter": "router", "Route": "router"}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
