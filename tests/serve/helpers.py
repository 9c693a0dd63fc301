# SPDX-License-Identifier: Apache-2.0
"""A server on loopback, and a mixture for it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from contextlib import contextmanager

import torch
import uvicorn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.conftest import build_word_tokenizer
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.serve.app import RewardServer, ServeSettings, create_app
from trl_maxmin.serve.scorer import Scorer
from trl_maxmin.trainer.maxmin.maxmin_config import MaxMinConfigMixin


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def mixture(names=("brief", "warm", "kind")):
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=48)
    base = GPT2LMHeadModel(config)
    found = MixtureRewardModel.from_base(
        base, len(names), component_names=list(names), processing_class=tokenizer
    ).eval()
    with torch.no_grad():
        found.components[0].score.weight.mul_(20.0)
    return found


def reward_server(model, welfare=None, **settings):
    return RewardServer(Scorer(model, batch_size=16), welfare or MaxMinConfigMixin(), ServeSettings(**settings))


@contextmanager
def served(server):
    """The port of a server that runs in a thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(server), log_level="error", timeout_graceful_shutdown=2)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    started = threading.Event()
    while not running.started and thread.is_alive():
        started.wait(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(10)


def call(port, method, path, body=None, headers=None):
    """Status, headers and JSON of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())
    finally:
        connection.close()
