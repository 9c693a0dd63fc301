# SPDX-License-Identifier: Apache-2.0
"""What heads read of each distinct text on a trunk as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator

from ... import distributed
from ...data.texts import number_values
from ...models import MixtureRewardModel
from ...models.base import weight_hash
from ...models.families import get_linear
from ...models.scoring import pad_sequences


class TextFeatures:
    """Encodes each distinct text once for as long as the trunk stays as it is; once it has changed, anew.

    Args:
        mixture ([`MixtureRewardModel`]): whose first trunk, without adapters, encodes.
        pad_token_id (`int`): for texts of different length in one forward.
        batch_size (`int`): texts per forward; they are sorted by length.
        accelerator ([`~accelerate.Accelerator`]): ranks share the work, and all hold the result.

    Attributes:
        vectors (`torch.Tensor` of shape `(M, D)`): of the texts met so far, before a `feature_map`; float32, on the
            CPU.
    """

    def __init__(
        self, mixture: MixtureRewardModel, pad_token_id: int, batch_size: int, accelerator: Accelerator
    ) -> None:
        self._mixture, self._pad_token_id = mixture, pad_token_id
        self._batch_size, self._accelerator = batch_size, accelerator
        self._rows: dict[tuple[int, ...], int] = {}  # ids of a text -> its row of `vectors`
        self.vectors = torch.zeros(0)
        self._encoder: tuple[str | int, ...] = ()  # fingerprint of the weights that gave the vectors

    def rows(self, *sides: Iterable[Sequence[int]]) -> list[torch.Tensor]:
        """Rows of `vectors` for texts given as token ids, one tensor a side. All ranks have to call it."""
        encoder = _fingerprint(self._mixture)
        moved = torch.tensor(float(encoder != self._encoder), device=self._accelerator.device)
        # Ranks encode together, so they forget together.
        if distributed.sum_over_ranks(self._accelerator, moved) > 0:
            self._rows, self.vectors, self._encoder = {}, torch.zeros(0), encoder
        found = [torch.tensor(number_values(map(tuple, side), self._rows)) for side in sides]
        if new := list(self._rows)[len(self.vectors) :]:
            vectors = self._encode(new)
            self.vectors = torch.cat([self.vectors, vectors]) if len(self.vectors) else vectors
        return found

    def share(self, other: TextFeatures) -> None:
        """Take over what another run has encoded.

        Raises:
            ValueError: with another trunk or another pooling.
        """
        if len(other.vectors) and other._encoder != _fingerprint(self._mixture):
            raise ValueError(
                "The other run has encoded its texts with a trunk of other weights, or pools in another way, so its "
                "features mean nothing here. Share between runs on the same base, before its trunk is trained."
            )
        self._rows, self.vectors, self._encoder = dict(other._rows), other.vectors, other._encoder

    @torch.no_grad()
    def _encode(self, texts: list[tuple[int, ...]]) -> torch.Tensor:
        mixture, device = self._mixture, self._accelerator.device
        training = mixture.training
        mixture.eval()
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        encoded = None
        for number, start in enumerate(range(0, len(order), self._batch_size)):
            # The first batch tells every rank how wide the features are.
            if number and number % world != rank:
                continue
            part = order[start : start + self._batch_size]
            ids, mask = pad_sequences([texts[row] for row in part], self._pad_token_id)
            features = mixture.trunk_features(ids.to(device), mask.to(device)).float()
            if encoded is None:
                encoded = torch.zeros(len(texts), features.shape[-1], device=device)
            if number % world == rank:
                encoded[torch.tensor(part, device=device)] = features
        mixture.train(training)
        return distributed.sum_over_ranks(self._accelerator, encoded).cpu()


def _fingerprint(mixture: MixtureRewardModel) -> tuple[str | int, ...]:
    """Of all that decides on a text's vector: every weight before the heads, adapters aside, and the pooling.

    From the values, since nothing else shows all that can change them: `.data` that an engine writes to, a checkpoint,
    a table of embeddings that was enlarged. It costs one pass over the weights, less than the shortest forward.
    """
    component = mixture.components[0]
    aside = {id(parameter) for parameter in get_linear(component).parameters()}
    weights = [p for name, p in component.named_parameters() if id(p) not in aside and "lora_" not in name]
    return mixture.config.pooling, *(weight_hash(weight) for weight in weights)
