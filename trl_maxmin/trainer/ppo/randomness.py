# SPDX-License-Identifier: Apache-2.0
"""Nothing random between a rollout and its update: the policy that samples has to be the one that is weighed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..common.sampling import seeded


if TYPE_CHECKING:
    from .policy import PolicyWithCritic


#: Rates of dropout, layer dropping and router noise, whatever a family calls them.
RATES = re.compile("drop|jitter|noise")
#: Largest difference of log-probabilities (nats) and values between training and evaluation mode in half precision;
#: 1e-5 otherwise, and ten times what two passes in evaluation mode differ by: not all kernels add up in a fixed order.
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 2e-2}


def switch_off(module: nn.Module) -> None:
    """Set every rate in a module to 0: of dropout layers, and numbers that a family hands to `F.dropout`.

    Args:
        module (`nn.Module`): changed in place.
    """
    for child in module.modules():
        if "dropout" in type(child).__name__.lower() and isinstance(getattr(child, "p", None), float):
            child.p = 0.0
        _zero_rates(child)


def _zero_rates(holder: Any) -> bool:
    rates = [name for name, value in vars(holder).items() if type(value) is float and value and RATES.search(name)]
    for name in rates:
        setattr(holder, name, 0.0)
    return bool(rates)


def make_deterministic(root: PolicyWithCritic) -> None:
    """Switch off all that is random in the policy and its critic, and see that nothing is left.

    Training and evaluation mode have to give the same log-probabilities and values. Where they do not, what a family
    reads from its configuration is set to 0 as well.

    Args:
        root ([`PolicyWithCritic`]): changed in place; not wrapped.

    Raises:
        `ValueError`: something random is left; the message names the modules.
    """
    switch_off(root)
    # In shards the weights are not there to compute with.
    if is_deepspeed_zero3_enabled() or _is_deterministic(root):
        return
    configs = {id(m.config): m.config for m in root.modules() if hasattr(m, "config") and m is not root}
    changed = [_zero_rates(config) for config in configs.values()]
    if any(changed) and _is_deterministic(root):
        return
    raise ValueError(
        "The policy or its critic gives other log-probabilities or values in training mode than in evaluation mode "
        f"with all rates at 0, first in {', '.join(_random_modules(root))}. PPO compares the two, so the first ratio "
        "would not be 1. Set what is random in the model's configuration to 0 before loading it."
    )


@torch.no_grad()
def _forward(root: PolicyWithCritic, draw: int | None) -> torch.Tensor:
    """Log-probabilities and values in evaluation mode (`None`), or in training mode with a random stream."""
    device = root.causal_lm.get_input_embeddings().weight.device
    size = root.causal_lm.get_input_embeddings().num_embeddings
    ids = (torch.arange(16, device=device).reshape(2, 8) * 7 + 3) % size
    mask = torch.ones_like(ids, dtype=torch.bool)
    modes = [(module, module.training) for module in root.modules()]
    root.train(draw is not None)
    with seeded(device, 0, "randomness", draw or 0):
        logprobs, _, values = root(ids, mask, mask[:, 1:], ids[:, 1:])
    for module, mode in modes:
        module.training = mode
    return torch.cat([logprobs.unsqueeze(-1), values], dim=-1)


def _is_deterministic(root: PolicyWithCritic) -> bool:
    still, again, *moving = (_forward(root, draw) for draw in (None, None, 1, 2))
    noise = (still - again).abs().nan_to_num().max().item()
    tolerance = max(TOLERANCE.get(root.causal_lm.dtype, 1e-5), 10 * noise)
    return all(torch.allclose(still, other, atol=tolerance, rtol=tolerance, equal_nan=True) for other in moving)


def _random_modules(root: PolicyWithCritic, count: int = 3) -> list[str]:
    """The innermost modules whose outputs are the first to differ between the two modes."""
    outputs: dict[bool, list[tuple[str, torch.Tensor]]] = {}
    names = {module: name for name, module in root.named_modules()}

    def record(module: nn.Module, args: tuple, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        first = getattr(first, "last_hidden_state", first)
        if isinstance(first, torch.Tensor):
            outputs[training].append((names[module], first.detach().clone()))

    hooks = [module.register_forward_hook(record) for module in root.modules()]
    try:
        for training in (False, True):
            outputs[training] = []
            _forward(root, 1 if training else None)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = zip(outputs[False], outputs[True], strict=False)
    found = [a for (a, x), (b, y) in pairs if a != b or x.shape != y.shape or not torch.allclose(x, y, atol=1e-6)]
    return found[:count] or [type(root.causal_lm).__name__]
