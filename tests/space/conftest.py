# SPDX-License-Identifier: Apache-2.0
"""A run in the layout of the demo, and a page in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from trl_maxmin.data.world import FilmReviewWorld
from trl_maxmin.models import MixtureRewardModel


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """Untrained models in the layout of the demo."""
    folder = tmp_path_factory.mktemp("run")
    world = FilmReviewWorld(seed=0)
    for number, name in enumerate(("reference", "single", "maxmin")):
        torch.manual_seed(number)
        GPT2LMHeadModel(world.reference_config()).save_pretrained(folder / "policies" / name)
        world.tokenizer.save_pretrained(folder / "policies" / name)
    mixture = MixtureRewardModel.from_base(
        str(folder / "policies" / "reference"), 2, component_names=["a", "b"], processing_class=world.tokenizer
    )
    mixture.save_pretrained(folder / "mixture")
    return folder


@contextlib.contextmanager
def page_process(command, folder, port, **environ):
    """A page in a process; yields its address and the process once it answers."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environ
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, Path(folder / "log").read_text()[-3000:]
                    time.sleep(0.05)
            yield url, process
        finally:
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def server(run_folder, tmp_path):
    """The command, serving the run; its address and process."""
    port = free_port()
    command = [sys.executable, "-m", "trl_maxmin.cli", "space", "--run", str(run_folder), "--port", str(port)]
    with page_process(command, tmp_path, port) as (url, process):
        yield url, process
