# SPDX-License-Identifier: Apache-2.0
"""Which parameters a trainer moves: its own, nobody else's, and by steps that the weights can hold."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ...models.lora import carries_adapters
from ...models.modeling_mixture_reward import MixtureRewardModel


def check_trained(
    args: Any,
    policy: nn.Module,
    reference: nn.Module | None,
    critic: nn.Module | None,
    rewards: list[nn.Module],
    argument: str = "`reward_model`",
) -> None:
    """Raise or warn where a trainer would move what it should not, or could not move what it should. To call when
    everything that is frozen is frozen.

    Args:
        args (`TrainingArguments`): the learning rate and the engines are read.
        policy, reference, critic (`nn.Module`, *optional*): as they will be used, adapters included.
        rewards (`list[nn.Module]`): the models that give rewards.
        argument (`str`): what the user gave them as, for messages.

    Raises:
        `ValueError`: as [`check_sharing`] and [`check_trainable`].
    """
    check_sharing(policy, reference, critic, rewards, argument)
    check_trainable(policy, critic)
    engines = (os.environ.get(f"ACCELERATE_USE_{name}", "false") == "true" for name in ("DEEPSPEED", "FSDP"))
    if not (args.deepspeed or args.fsdp or any(engines)):
        # These keep a float32 copy to step on.
        for model in (policy, critic):
            if model is not None:
                warn_below_resolution(model, args.learning_rate)


def check_sharing(
    policy: nn.Module,
    reference: nn.Module | None,
    critic: nn.Module | None,
    rewards: list,
    argument: str = "`reward_model`",
) -> None:
    """Raise where one role's training would move another, which nobody sees in the log.

    Adapters of several roles on one base are fine: nobody trains the base, and each role switches the others'
    adapters off.

    Args:
        policy, reference, critic (`nn.Module`, *optional*): as they will be used, adapters included; what is to be
            trained has `requires_grad`.
        rewards (`list[nn.Module]`): the models that give rewards.
        argument (`str`): what the user gave them as, for messages.

    Raises:
        `ValueError`: two roles that share a parameter which one of them trains, or a whole model.
    """
    roles = {"`model` (the policy)": policy, "`ref_model` (the reference)": reference}
    roles["`value_model` (the critic)"] = critic
    named = [(role, module) for role, module in roles.items() if module is not None]
    count = len(named)
    named += [(f"{argument} ({type(module).__name__})", module) for module in rewards]
    trained = {_storage(p) for module in (policy, critic) if module is not None for p in _trainable(module)}
    # Rewards among themselves may share what they like: nobody trains them.
    for (first, one), (second, other) in (pair for pair in combinations(named, 2) if pair[0] in named[:count]):
        shared = _shared(one, other, policy, trained)
        if shared is not None:
            raise ValueError(
                f"{first} and {second} share the parameter {shared!r}, so that training one changes the other, or "
                f"freezing one stops the other. {_remedy(first, second)}"
            )


def _remedy(first: str, second: str) -> str:
    if "reference" in second:
        return (
            "Leave `ref_model=None`: the reference is then the policy as it is now, and of an adapter the model "
            "without it. Or load the reference a second time."
        )
    if "policy" in first and "critic" in second:
        return (
            "Leave `value_model=None` for a critic on the policy's trunk (with an adapter of its own: "
            "`critic_adapter=True`), or load the value model a second time."
        )
    return (
        f"Load {second.partition(' ')[0]} a second time (`from_pretrained`) or copy it (`copy.deepcopy`). To keep one "
        "base for all, give the policy an adapter and make a mixture of `component_type='lora'` on that base."
    )


def _shared(one: nn.Module, other: nn.Module, policy: nn.Module, trained: set[int]) -> str | None:
    """Name of a parameter that both have and that must not be shared, or `None`."""
    own = {_storage(parameter) for _, parameter in _used(one, policy)}
    common = [(name, _storage(parameter)) for name, parameter in _used(other, policy) if _storage(parameter) in own]
    if not common:
        return None
    # A frozen base with adapters, or one without that a role with adapters stands on.
    if carries_adapters(one) or carries_adapters(other):
        common = [(name, key) for name, key in common if key in trained]
    return common[0][0] if common else None


def _used(module: nn.Module, policy: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Parameters that a role computes with: a mixture of adapters switches those of the policy off."""
    named = module.named_parameters()
    if isinstance(module, MixtureRewardModel) and module.config.component_type == "lora":
        adapters = tuple(f".{name}." for name in getattr(policy, "peft_config", ()))
        return [(name, p) for name, p in named if not any(part in f".{name}." for part in adapters)]
    return list(named)


def _storage(parameter: nn.Parameter) -> int:
    # In shards (DeepSpeed ZeRO-3) and on the meta device there is nothing to point at.
    return parameter.data_ptr() if parameter.numel() and parameter.data_ptr() else id(parameter)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def check_trainable(policy: nn.Module, value_model: nn.Module | None) -> None:
    """Raise or warn where a role that has to learn cannot. To call when everything that is frozen is frozen.

    Args:
        policy (`nn.Module`): the policy.
        value_model (`nn.Module`, *optional*): a critic of its own (a head on the policy's trunk is always trained).

    Raises:
        `ValueError`: nothing of the policy is trainable.
    """
    if not _trainable(policy):
        remedy = "Give a `peft_config`, or set `requires_grad_(True)` on what should learn"
        if isinstance(policy, PeftModel):
            remedy = "Load the adapter with `is_trainable=True`"
        raise ValueError(
            f"No parameter of the policy is trainable. {remedy}. (A mixture of adapters freezes the base it is put "
            "on.)"
        )
    if value_model is not None and not _trainable(value_model):
        warnings.warn(
            "No parameter of `value_model` is trainable: the critic will stay as it is, and advantages rest on its "
            "guesses. Set `requires_grad_(True)` on it, or leave `value_model=None`.",
            stacklevel=5,
        )


def warn_below_resolution(model: nn.Module, learning_rate: float) -> None:
    """Warn where an optimizer step is too small to change half-precision weights at all.

    Adam's step is about the learning rate; a weight of bfloat16 has 8 significant bits, so one of 0.02 only knows
    steps of 0.0001, and less than half of that is rounded away.

    Args:
        model (`nn.Module`): its trainable parameters are looked at.
        learning_rate (`float`): the largest of the run.
    """
    half = [p.detach() for p in _trainable(model) if p.dtype in (torch.bfloat16, torch.float16) and p.numel()]
    if not half or learning_rate <= 0:
        return
    sample = torch.cat([p.flatten()[:4096].float().abs().cpu() for p in half])
    sample = sample[sample > 0]
    if not len(sample):
        return
    typical = sample.median().item()
    dtype = half[0].dtype
    # Half the distance to the next number: `eps` is that distance at 1.
    needed = 2.0 ** torch.tensor(typical).log2().floor().item() * torch.finfo(dtype).eps / 2
    if learning_rate < needed:
        warnings.warn(
            f"The weights are {str(dtype).removeprefix('torch.')} and learning_rate is {learning_rate:g}: a typical "
            f"weight ({typical:.2g}) only changes by steps of {needed:.1g} or more, so that most updates are rounded "
            "away. Load the model in float32 (`dtype='float32'`) and set `bf16=True`, which still computes in "
            "bfloat16, or train an adapter.",
            stacklevel=5,
        )
