# SPDX-License-Identifier: Apache-2.0
"""What TRL's loss of a batch says of each of its rows.

TRL returns the mean over a batch. The gradient of any weighted mean follows from it: rows do not touch each other
before the mean, so that the gradient that reaches the outputs of the model belongs to one row in each place, and may
be multiplied there. The values follow from TRL's loss of each row alone, on the outputs that are there already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch


#: Through which of its outputs TRL's loss reaches the model, the first that is there: since 1.15 and before.
GRADIENT_OUTPUTS = ("log_probs", "logits")


@contextmanager
def rows_multiplied(model: torch.nn.Module, factors: torch.Tensor) -> Iterator[list[Any]]:
    """While it lasts, the first forward of a model is recorded, and the gradient of each row multiplied.

    Args:
        model (`torch.nn.Module`): as the loss calls it. Its batch holds the chosen replies in the first half, the
            rejected ones in the second.
        factors (`torch.Tensor` of shape `(B,)`): one for each pair.

    Yields:
        `list`: gets the outputs of the model.
    """
    passed: list[Any] = []
    both = torch.cat([factors, factors])

    def watch(module: torch.nn.Module, args: Any, outputs: Any) -> None:
        if passed:
            return
        passed.append(outputs)
        for name in GRADIENT_OUTPUTS:
            tensor = _fields(outputs).get(name)
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(lambda grad: grad * both.view(-1, *[1] * (grad.dim() - 1)).to(grad))
                return

    handle = model.register_forward_hook(watch)
    try:
        yield passed
    finally:
        handle.remove()


def row_of(batch: Mapping[str, torch.Tensor], row: int, size: int) -> dict[str, torch.Tensor]:
    """One pair of a batch, as a batch; views, nothing is copied.

    Args:
        batch (`Mapping`): tensors of `2 size` rows (chosen, then rejected) or of `size`.
        row (`int`): of the pair.
        size (`int`): pairs of the batch.

    Example:

    >>> row_of({"input_ids": torch.arange(4), "ref_chosen_logps": torch.tensor([5.0, 6.0])}, 1, 2)
    {'input_ids': tensor([1, 3]), 'ref_chosen_logps': tensor([6.])}
    """
    return {name: tensor[row::size] for name, tensor in batch.items() if torch.is_tensor(tensor)}


def replay(outputs: Any, row: int, size: int) -> Any:
    """A stand-in for the model, which has computed one pair of the batch already."""
    fields = {
        name: tensor
        for name, tensor in _fields(outputs).items()
        if torch.is_tensor(tensor) and tensor.dim() and len(tensor) == 2 * size
    }
    part = SimpleNamespace(**{name: tensor.detach() for name, tensor in row_of(fields, row, size).items()})
    return lambda **kwargs: part


def alone(accelerator: Any) -> SimpleNamespace:
    """What a loss asks of an accelerator, where the rows of other processes do not matter."""
    return SimpleNamespace(device=accelerator.device, gather=_same, gather_for_metrics=_same)


def _same(value: Any) -> Any:
    return value


def _fields(outputs: Any) -> Mapping[str, Any]:
    return outputs if isinstance(outputs, Mapping) else vars(outputs)
