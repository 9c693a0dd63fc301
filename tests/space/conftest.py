# SPDX-License-Identifier: Apache-2.0
"""A run in the layout of the demo, and a page in a process of its own."""

import contextlib
import os
import re
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


START_SECONDS = 180  # for a page to answer, on a machine that does much else


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
def page_process(command, folder, **environ):
    """A page in a process, on a free port of its choice; yields its address and the process once it answers."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | environ
    log = Path(folder / "log")
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=file, stderr=file)
        deadline = time.monotonic() + START_SECONDS
        try:
            while (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) is None:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.05)
            urllib.request.urlopen(found[0], timeout=START_SECONDS).close()
            yield found[0], process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def server(run_folder, tmp_path):
    """The command, serving the run; its address and process."""
    command = [sys.executable, "-m", "trl_maxmin.cli", "space", "--run", str(run_folder)]
    with page_process(command, tmp_path) as (url, process):
        yield url, process
