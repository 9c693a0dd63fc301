# SPDX-License-Identifier: Apache-2.0
"""From what a client sent to sequences of ids, and from rewards to utilities: no HTTP here."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ..data.tokenization import Prompt, encode_reply
from ..models.base import context_length
from ..models.modeling_mixture_reward import MixtureRewardModel
from ..trainer.scoring.models import MixtureReward
from ..trainer.scoring.reference_statistics import ReferenceStatistics, prompt_key


class Unusable(ValueError):
    """Replies that cannot be scored, in words for the client."""


class Scorer:
    """A mixture behind a door: checks and tokenises in any thread, scores in one.

    Args:
        mixture ([`MixtureRewardModel`]): on its device, in evaluation mode, with its tokenizer.
        batch_size (`int`): sequences a forward.

    Raises:
        ValueError: a mixture without a tokenizer.
    """

    def __init__(self, mixture: MixtureRewardModel, batch_size: int = 64) -> None:
        if mixture.processing_class is None:
            raise ValueError("The mixture came without its tokenizer; save it beside the weights.")
        self.mixture, self.batch_size = mixture, batch_size
        self.source = MixtureReward(mixture)
        self.tokenizer = mixture.processing_class
        self.context = context_length(mixture.components[0])
        # Tokenizers of transformers change their padding and truncation in place.
        self._lock = threading.Lock()
        columns = self.source.components
        self.shift, self.scale = mixture.reward_shift[columns].double(), mixture.reward_scale[columns].double()
        #: Whether rewards of different components can be compared without a calibration of the session's own.
        self.calibrated = bool((self.shift != 0).any() or (self.scale != 1).any())

    @property
    def names(self) -> list[str]:
        """K names of the components that describe anybody."""
        return self.source.names

    def encode(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], finished: Sequence[bool]
    ) -> list[list[int]]:
        """Ids of prompts with their replies, as in reward training.

        Raises:
            Unusable: text that is none, messages without a template, or a sequence longer than the context.
        """
        rows = []
        for row, (prompt, completion, done) in enumerate(zip(prompts, completions, finished, strict=True)):
            try:
                _require_text((prompt, completion))
                with self._lock:
                    rows.append(encode_reply(self.tokenizer, prompt, completion, done))
            except (ValueError, TypeError, KeyError) as error:
                raise Unusable(f"Reply {row} cannot be read: {error}") from error
        return self._checked(rows)

    def encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts, prompt and reply with their special tokens written out, as trainers decode them.

        Padding at the end is taken off. A text that ends with the stop token is a finished reply, any other a
        truncated one, and neither is changed.

        Raises:
            Unusable: as [`~Scorer.encode`].
        """
        pad, eos, rows = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, []
        for row, text in enumerate(texts):
            try:
                _require_text(text)
                with self._lock:
                    ids = self.tokenizer(text, add_special_tokens=False).input_ids
            except (ValueError, TypeError) as error:
                raise Unusable(f"Text {row} cannot be read: {error}") from error
            while ids and ids[-1] == pad and pad != eos:
                ids.pop()
            # A trainer whose pad token is EOS pads with it: of several the first ends the reply.
            while len(ids) > 1 and ids[-1] == ids[-2] == eos:
                ids.pop()
            rows.append(ids)
        return self._checked(rows)

    def _checked(self, rows: list[list[int]]) -> list[list[int]]:
        for row, ids in enumerate(rows):
            if not ids:
                raise Unusable(f"Reply {row} is empty: there is nothing to score.")
            if self.context is not None and len(ids) > self.context:
                raise Unusable(
                    f"Reply {row} has {len(ids)} tokens with its prompt, the reward model reads {self.context}; "
                    "shorten prompt or reply."
                )
        return rows

    def score(self, rows: list[list[int]]) -> torch.Tensor:
        """Rewards `(N, K)` of sequences of ids, for one thread.

        Raises:
            ValueError: the model gave what is no finite number.
        """
        rewards = self.mixture.score(prompt_ids=[[]] * len(rows), completion_ids=rows, batch_size=self.batch_size)[
            :, self.source.components
        ].cpu()
        if not rewards.isfinite().all():
            row = int((~rewards.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"The reward model gave {rewards[row].tolist()} for sequence {row}: no finite numbers.")
        return rewards

    def utilities(
        self, rewards: torch.Tensor, prompts: Sequence[Any] | None, statistics: ReferenceStatistics | None
    ) -> torch.Tensor:
        """Utilities `(N, K)`: by the session's reference replies, or by what the mixture was calibrated with, or the
        rewards as they are.

        Args:
            rewards (`torch.Tensor` of shape `(N, K)`): of [`~Scorer.score`].
            prompts (`Sequence`, *optional*): N; where one has no reference replies, the mean over all prompts counts.
            statistics ([`ReferenceStatistics`], *optional*): of the session.
        """
        if statistics is None:
            return (rewards.double() - self.shift) / self.scale
        keys = ["" if prompt is None else prompt_key(prompt) for prompt in prompts or [None] * len(rewards)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of prompts without reference replies, which the contract speaks of
            return statistics.utilities(rewards.double(), keys)

    def measure(
        self, rewards: torch.Tensor, prompts: Sequence[Prompt], finished: Sequence[bool]
    ) -> ReferenceStatistics:
        """What reference replies are worth.

        Raises:
            Unusable: fewer than four replies to every prompt.
        """
        try:
            return ReferenceStatistics.from_rewards(
                self.names, [prompt_key(prompt) for prompt in prompts], rewards.double(),
                finished=torch.tensor(list(finished)),
            )  # fmt: skip
        except ValueError as error:
            raise Unusable(f"These replies cannot calibrate a session: {error}") from error


def _require_text(value: Any) -> None:
    """Lone surrogates come out of JSON's escapes and are no text."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        _require_text(list(value.values()))
    elif isinstance(value, list | tuple):
        for entry in value:
            _require_text(entry)
