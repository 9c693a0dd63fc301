# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin env`: what a bug report needs to say about a machine, and nothing that names it or its user."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence

from .parser import UsageError


#: Packages that a command can stand on, beside those of the run record; what is not installed is said.
OPTIONAL = ("safetensors", "tokenizers", "numpy", "evaluate", "scikit-learn", "gradio", "fastapi", "vllm")
OPTIONAL += ("deepspeed", "bitsandbytes", "flash_attn")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"{len(names)} x {', '.join(sorted(set(names)))} (CUDA {torch.version.cuda})"
    if torch.backends.mps.is_available():
        return "Apple MPS"
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"


def facts() -> dict[str, str]:
    """What `trl-maxmin env` prints.

    Returns:
        `dict[str, str]`: name -> version or description. There is no path, no host name and no variable in it but
        whether a few that change behaviour are set.

    Example:

    >>> sorted(set(facts()) & {"python", "torch", "trl", "devices"})
    ['devices', 'python', 'torch', 'trl']
    """
    from ..run_record import RunRecord

    versions = RunRecord.installed_versions() | {package: _version(package) for package in OPTIONAL}
    variables = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU")
    named = [name for name in variables if name in os.environ]
    return versions | {
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "devices": _devices(),
        "variables that are set": ", ".join(named) or "none",
    }


def run(argv: Sequence[str]) -> None:
    """Print the facts, a line each.

    Args:
        argv (`Sequence[str]`): none.

    Raises:
        UsageError: an argument.
    """
    if "--help" in argv or "-h" in argv:
        print("usage: trl-maxmin env\n\nPrint versions and devices, for a bug report: no paths, no names of yours")
        raise SystemExit(0)
    if argv:
        raise UsageError(f"env takes no options, got {' '.join(argv)!r}. Usage: trl-maxmin env")
    lines = facts()
    width = max(map(len, lines))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))
