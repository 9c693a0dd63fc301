# SPDX-License-Identifier: Apache-2.0
"""Memory that a benchmark's process holds, and its peak: the allocator's on a GPU, the kernel's elsewhere (Linux)."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch


class PeakMemory:
    """Memory in MiB, now and at the peak since the last [`reset`][PeakMemory.reset].

    Args:
        device (`str`): `"cuda"`, tensors that torch holds on the GPU, or `"cpu"`, resident memory of the process.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = torch.device(device).type == "cuda"

    def now(self) -> float:
        """What is held now."""
        return torch.cuda.memory_allocated() / 2**20 if self.on_gpu else self._resident("VmRSS")

    def peak(self) -> float:
        """The most that was held since the last reset."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else self._resident("VmHWM")

    def reset(self) -> None:
        """The peak begins anew from what is held now."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    @staticmethod
    def _resident(what: str) -> float:
        return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def machine() -> dict[str, str | int | None]:
    """Versions and processor, for the record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "trl_maxmin": version("trl-maxmin"),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
