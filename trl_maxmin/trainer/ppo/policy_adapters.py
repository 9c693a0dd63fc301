# SPDX-License-Identifier: Apache-2.0
"""Several adapters on one base: the policy's, its reference's, its critic's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict


REFERENCE_ADAPTER = "trl_maxmin_reference"
CRITIC_ADAPTER = "trl_maxmin_critic"


@contextmanager
def _same_trainable(policy: PeftModel) -> Iterator[None]:
    """What is trainable before is trainable afterwards: PEFT's switches freeze all adapters but the active one, which
    here train together with it."""
    trainable = [(parameter, parameter.requires_grad) for parameter in policy.parameters()]
    try:
        yield
    finally:
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


def activate(policy: PeftModel, name: str) -> None:
    """Make an adapter the active one, and leave what is trainable as it is.

    Args:
        policy (`peft.PeftModel`): changed in place.
        name (`str`): of an adapter it has.
    """
    with _same_trainable(policy):
        policy.set_adapter(name)


@contextmanager
def adapters_off(policy: PeftModel) -> Iterator[None]:
    """The policy without its adapters inside; afterwards they are as they were, what is trainable included.

    Args:
        policy (`peft.PeftModel`): with adapters.
    """
    with _same_trainable(policy), policy.disable_adapter():
        yield


@contextmanager
def active_adapter(policy: PeftModel, name: str) -> Iterator[None]:
    """An adapter is active inside, the one before afterwards.

    Args:
        policy (`peft.PeftModel`): with this adapter.
        name (`str`): of the adapter.
    """
    before = policy.active_adapter
    if before == name:
        yield
        return
    activate(policy, name)
    try:
        yield
    finally:
        activate(policy, before)


def checkpoint_contexts(policy: PeftModel) -> tuple[AbstractContextManager, AbstractContextManager]:
    """For `torch.utils.checkpoint`: a layer is computed again, in the backward pass, with the adapter it ran with.

    Args:
        policy (`peft.PeftModel`): whose layer runs.

    Returns:
        `tuple`: contexts of the forward and of the recomputation.
    """
    return nullcontext(), active_adapter(policy, policy.active_adapter)


def add_reference_adapter(policy: PeftModel) -> str:
    """Keep the adapter as it is now under another name, frozen, as the reference of the KL penalty.

    Args:
        policy (`peft.PeftModel`): with one active adapter; changed in place.

    Returns:
        `str`: the name of the copy.
    """
    active = policy.active_adapter
    if REFERENCE_ADAPTER not in policy.peft_config:
        policy.add_adapter(REFERENCE_ADAPTER, copy.deepcopy(policy.peft_config[active]))
        weights = get_peft_model_state_dict(policy, adapter_name=active)
        set_peft_model_state_dict(policy, weights, adapter_name=REFERENCE_ADAPTER)
        activate(policy, active)
        _set_trainable(policy, REFERENCE_ADAPTER, False)
    return REFERENCE_ADAPTER


def add_critic_adapter(policy: PeftModel) -> str:
    """A new, trainable adapter of the shape of the active one, which starts as the bare base.

    Args:
        policy (`peft.PeftModel`): with one active adapter, which stays active; changed in place.

    Returns:
        `str`: its name.

    Raises:
        `ValueError`: the policy has no adapter.
    """
    if not isinstance(policy, PeftModel):
        raise ValueError(
            "critic_adapter=True needs a policy with an adapter (`peft_config`, or a `PeftModel` as `model`): the "
            "critic then gets an adapter of its own on the same base."
        )
    active = policy.active_adapter
    if CRITIC_ADAPTER not in policy.peft_config:
        # Its own stream, so that a critic more or less changes nothing else that is drawn.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy.add_adapter(CRITIC_ADAPTER, copy.deepcopy(policy.peft_config[active]))
        activate(policy, active)
        _set_trainable(policy, CRITIC_ADAPTER, True)
    return CRITIC_ADAPTER


def _set_trainable(policy: PeftModel, adapter: str, flag: bool) -> None:
    for name, parameter in policy.named_parameters():
        if f".{adapter}." in f"{name}.":
            parameter.requires_grad_(flag)
