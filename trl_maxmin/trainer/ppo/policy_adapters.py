# SPDX-License-Identifier: Apache-2.0
"""Several adapters on one base: the policy's, its reference's, its critic's."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from ...models.base import forked_rng
from ...models.lora import adapter_state, adapters_as


REFERENCE_ADAPTER = "trl_maxmin_reference"
CRITIC_ADAPTER = "trl_maxmin_critic"


def checkpoint_contexts(policy: PeftModel) -> tuple[AbstractContextManager, AbstractContextManager]:
    """For `torch.utils.checkpoint`: a layer is computed again, in the backward pass, with the adapter it ran with.

    Args:
        policy (`peft.PeftModel`): whose layer runs.

    Returns:
        `tuple`: contexts of the forward and of the recomputation.
    """
    return nullcontext(), adapters_as(adapter_state(policy))


def add_reference_adapter(policy: PeftModel) -> str:
    """Keep the adapter as it is now under another name, frozen, as the reference of the KL penalty.

    Args:
        policy (`peft.PeftModel`): with one active adapter; changed in place.

    Returns:
        `str`: the name of the copy.
    """
    if REFERENCE_ADAPTER not in policy.peft_config:
        _add_adapter(policy, REFERENCE_ADAPTER, trainable=False)
        weights = get_peft_model_state_dict(policy, adapter_name=policy.active_adapter)
        set_peft_model_state_dict(policy, weights, adapter_name=REFERENCE_ADAPTER)
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
    if CRITIC_ADAPTER not in policy.peft_config:
        _add_adapter(policy, CRITIC_ADAPTER, trainable=True)
    return CRITIC_ADAPTER


def _add_adapter(policy: PeftModel, name: str, trainable: bool) -> None:
    """One more adapter like the active one, which stays active; what was trainable stays so, whatever PEFT freezes."""
    active, before = policy.active_adapter, [(p, p.requires_grad) for p in policy.parameters()]
    # Its own stream, so that an adapter more or less changes nothing else that is drawn.
    with forked_rng(torch.device("cpu"), 0):
        policy.add_adapter(name, copy.deepcopy(policy.peft_config[active]))
    policy.set_adapter(active)
    for parameter, flag in before:
        parameter.requires_grad_(flag)
    for full_name, parameter in policy.named_parameters():
        if f".{name}." in f"{full_name}.":
            parameter.requires_grad_(trainable)
