# SPDX-License-Identifier: Apache-2.0
"""Runs a script in several gloo processes on loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
# What is in front of the environment here (`make seam`) is in front of it there.
PYTHONPATH = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))


# A rank must not wait for the interpreter to take gloo down: a mesh keeps its process groups, and destroying their
# worker threads that late aborts now and then (https://github.com/pytorch/pytorch/issues/190489).
EPILOGUE = """
import os as _os, sys as _sys, torch.distributed as _dist
if _dist.is_initialized():
    _dist.barrier()
_sys.stdout.flush()
_sys.stderr.flush()
_os._exit(0)
"""


def launch(script, world, out, *arguments):
    """Run a script in `world` processes and return what each wrote."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".py")
    file.write_text(script + EPILOGUE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
        if world > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, str(file), str(out), *arguments]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(world)]
