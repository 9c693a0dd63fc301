# SPDX-License-Identifier: Apache-2.0
"""The `trl-maxmin` command."""

from .main import main


__all__ = ["main"]
