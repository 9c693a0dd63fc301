# SPDX-License-Identifier: Apache-2.0
"""Policies that answer token by token, each answer a function of policy, prompt and settings alone."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenization import Prompt, encode_prompt, stop_tokens
from ..models.base import context_length, pick_device
from ..models.loading import load_pretrained, load_tokenizer
from ..trainer.common.drawing import draw_tokens


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How an answer is sampled: `temperature` 0 is greedy; `length` in tokens, the end-of-sequence token included."""

    temperature: float = 1.0
    seed: int = 0
    length: int = 32


@dataclass
class Reply:
    """An answer so far: its token ids, whether it ended by itself, and whether nothing will follow."""

    ids: list[int]
    text: str = ""
    finished: bool = False
    done: bool = False


class Policy:
    """A causal language model with its tokenizer.

    Args:
        name (`str`): as shown.
        source (`str`): folder or Hub id.
        model, tokenizer: loaded.
        chat_template_kwargs (`dict`, *optional*): for the chat template, as in the policy's training.
    """

    def __init__(
        self,
        name: str,
        source: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.source = source
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.chat_template_kwargs = chat_template_kwargs
        own = getattr(model.generation_config, "eos_token_id", None)
        self.stop = set(stop_tokens(tokenizer, own, not isinstance(self.as_prompt("?"), str)))

    @classmethod
    def load(
        cls,
        name: str,
        source: str,
        dtype: str | None = None,
        device: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> Policy:
        """Load weights (safetensors only) and tokenizer; no code of the repository is run.

        Raises:
            OSError, ValueError: as [`load_pretrained`].
        """
        argument = f"policy {name}"
        tokenizer = load_tokenizer(source, argument)
        options = {"use_safetensors": True, **({"dtype": dtype} if dtype else {})}
        model = load_pretrained(AutoModelForCausalLM, source, argument=argument, **options)
        return cls(name, source, model.to(pick_device(device)), tokenizer, chat_template_kwargs)

    @property
    def context(self) -> int | None:
        """Most tokens it reads, or `None` where its configuration sets no limit."""
        return context_length(self.model.config)

    def as_prompt(self, text: str) -> Prompt:
        """See [`as_prompt`]."""
        return as_prompt(self.tokenizer, text)

    def encode(self, text: str) -> list[int]:
        """Token ids of a visitor's prompt."""
        return encode_prompt(self.tokenizer, self.as_prompt(text), self.chat_template_kwargs)

    def stream(self, prompt_ids: Sequence[int], settings: Settings) -> Iterator[Reply]:
        """Yield the answer after each token.

        One row at a time and random numbers of its own: the same request gives the same answer, whoever else is
        asking. The same random numbers serve all policies, so that they are compared on equal luck.
        """
        for (reply,) in self._rows(prompt_ids, settings, 1):
            yield reply

    def sample(self, prompt_ids: Sequence[int], settings: Settings, count: int) -> list[Reply]:
        """So many answers to one prompt, in one batch."""
        rows: list[Reply] = []
        for rows in self._rows(prompt_ids, settings, count):  # noqa: B007  (the last state is the result)
            pass
        return rows

    def _rows(self, prompt_ids: Sequence[int], settings: Settings, count: int) -> Iterator[list[Reply]]:
        generator = torch.Generator().manual_seed(_stream_seed(settings.seed, prompt_ids))
        ids = torch.tensor([list(prompt_ids)] * count, device=self.model.device)
        cache, replies, length = None, [Reply([]) for _ in range(count)], len(prompt_ids)
        while not all(reply.done for reply in replies):
            # Entered anew for every token: the mode is the thread's, and this generator may be left half-way.
            with torch.inference_mode():
                mask = torch.ones(count, length, dtype=torch.long, device=self.model.device)
                output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
                # Drawn where the logits are: a vocabulary a token is too much to carry to the CPU.
                tokens = _draw(output.logits[:, -1], settings.temperature, generator)
            cache = output.past_key_values
            for reply, token in zip(replies, tokens, strict=True):
                if not reply.done:
                    reply.ids.append(token)
                    reply.finished = token in self.stop
                    reply.done = reply.finished or len(reply.ids) >= settings.length
                    reply.text = self.tokenizer.decode(reply.ids, skip_special_tokens=True)
            yield replies
            ids, length = torch.tensor(tokens, device=self.model.device)[:, None], length + 1


def as_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> Prompt:
    """A message where the tokenizer has a chat template, plain text otherwise."""
    return [{"role": "user", "content": text}] if getattr(tokenizer, "chat_template", None) else text


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> list[int]:
    """A token for each row of logits `(B, V)`; the same random numbers are used up at every temperature."""
    places = torch.rand((len(logits), 1), generator=generator, dtype=torch.float64)
    drawn = logits.argmax(-1) if temperature <= 0 else draw_tokens(logits, places, temperature)[:, 0]
    return drawn.tolist()


def _stream_seed(seed: int, prompt_ids: Sequence[int]) -> int:
    text = f"{seed}:{','.join(map(str, prompt_ids))}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def load_or_explain(what: str, source: str, problems: list[str], load: Callable[[], Any]) -> Any:
    """What `load` loads, or `None` and a sentence more for the page; the whole error goes to the log."""
    try:
        return load()
    except Exception as error:  # whatever a damaged or missing model raises, the page must come up
        logger.exception("could not load %s from %s", what, source)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        problems.append(
            f"{what} could not be loaded, so it is not shown here ({reason}). If it lives on the Hub, the Hub may be "
            "down, or the model private: come back later, or tell the owner of this page."
        )
        return None
