# SPDX-License-Identifier: Apache-2.0
"""What a mixture of reward models returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers.utils import ModelOutput


LOGITS_REMEDY = (
    "A mixture of reward models has no `.logits`: it returns `.rewards` of shape (B, K), one column per component, "
    "and reading one column would silently serve one group only. Pass `mixture.reward_functions()` as "
    "`reward_funcs`, train with a MaxMin trainer, or use one component: `mixture.component(k)`."
)


@dataclass
class MixtureRewardOutput(ModelOutput):
    """Output of [`MixtureRewardModel`].

    Args:
        rewards (`torch.Tensor` of shape `(B, K)`): reward of each sequence under each component, Bradley-Terry
            log-odds. Differences between two replies to the same prompt have meaning; the level has none.
    """

    rewards: torch.Tensor | None = None

    @property
    def logits(self) -> torch.Tensor:
        """Raises: the error says what to use instead.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(LOGITS_REMEDY)


class AnnotatorPosterior(NamedTuple):
    """Which component describes which annotator.

    Args:
        annotator_ids (`tuple`): H annotators in order of first appearance.
        probabilities (`torch.Tensor` of shape `(H, K)`): posterior of the component given the annotator's pairs.
        num_pairs (`torch.Tensor` of shape `(H,)`, *optional*): how many pairs it rests on.
    """

    annotator_ids: tuple[str | int, ...]
    probabilities: torch.Tensor
    num_pairs: torch.Tensor | None = None

    @property
    def entropy(self) -> torch.Tensor:
        """`(H,)`: how undecided the posterior is, nats; 0 = sure, `log K` = knows nothing."""
        return torch.special.entr(self.probabilities).sum(-1)

    @property
    def best(self) -> torch.Tensor:
        """`(H,)`: the most probable component."""
        return self.probabilities.argmax(-1)
