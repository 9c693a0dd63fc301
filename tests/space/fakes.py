# SPDX-License-Identifier: Apache-2.0
"""Models whose answers and rewards are known, and a page around them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from trl_maxmin.space.config import SpaceConfig
from trl_maxmin.space.policies import Reply, Settings
from trl_maxmin.space.run_data import RunData
from trl_maxmin.space.scoring import Studio


# One for policies and mixture, which then share a vocabulary; no one asks what is in it.
TOKENIZER = SimpleNamespace(chat_template=None)


class FakePolicy:
    """Answers with `reply(prompt, settings)`, one character a token; half of it before `gate` opens."""

    def __init__(self, name: str, reply: Callable[[str, Settings], str], context: int | None = None) -> None:
        self.name, self.reply, self.context = name, reply, context
        self.source = name
        self.tokenizer = TOKENIZER
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def stream(self, prompt_ids: Sequence[int], settings: Settings) -> Iterator[Reply]:
        text = self.reply("".join(map(chr, prompt_ids)), settings)
        yield Reply([], text[: len(text) // 2])
        assert self.gate.wait(60)
        yield Reply([], text, finished=True, done=True)

    def sample(self, prompt_ids: Sequence[int], settings: Settings, count: int) -> list[Reply]:
        return [Reply([], "x" * (1 + i % 2), True, True) for i in range(count)]


class FakeMixture:
    """First component: length of the reply; second: minus its length. Reads prompts and replies up to `context`."""

    def __init__(self, names: Sequence[str] = ("long", "short"), context: int | None = None) -> None:
        self.context = context
        self.component_names = list(names)
        self.num_components = len(self.component_names)
        self.described_components = list(range(self.num_components))
        self.processing_class = TOKENIZER
        self.reward_shift, self.reward_scale = torch.zeros(len(names)), torch.ones(len(names))
        self.mixing_weights = torch.full((len(names),), 1 / len(names))
        self.family = SimpleNamespace(is_decoder=True)
        self.config = SimpleNamespace(component_annotators=None, component_pairs=None, evidence_weight=1.0)

    def score(self, prompts: Any, completions: Sequence[str], **options: Any) -> torch.Tensor:
        longest = max(len(prompt) + len(text) for prompt, text in zip(prompts, completions, strict=True))
        if self.context is not None and longest > self.context:
            raise ValueError(f"{longest} tokens, but the model reads {self.context}")
        length = torch.tensor([float(len(text)) for text in completions])
        return torch.stack([length if k % 2 == 0 else -length for k in range(self.num_components)], dim=1)


def studio(
    replies: dict[str, Callable[[str, Settings], str]] | None = None,
    mixture: FakeMixture | None = None,
    run: RunData | None = None,
    **settings: Any,
) -> Studio:
    replies = replies or {
        "reference": lambda prompt, settings: "ok",
        "single": lambda prompt, settings: "fine",
        "maxmin": lambda prompt, settings: f"answer {settings.seed} to {prompt}",
    }
    config = SpaceConfig(policies={name: name for name in replies}, **{"baseline_replies": 4} | settings)
    policies = {name: FakePolicy(name, reply) for name, reply in replies.items()}
    made = Studio(config, policies, mixture or FakeMixture(), run or RunData())
    made.prepare()
    return made


@contextlib.contextmanager
def serving_app(made: Studio) -> Iterator[tuple[Any, str]]:
    """The page on a free port of loopback; yields the app and its address."""
    from trl_maxmin.space.app import create

    app, settings = create(made.config, made)
    _, url, _ = app.launch(**settings, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        yield app, url.rstrip("/")
    finally:
        app.close()


@contextlib.contextmanager
def serving(made: Studio) -> Iterator[str]:
    """The same; yields the address alone."""
    with serving_app(made) as (_, url):
        yield url
