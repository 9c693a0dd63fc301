# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed ZeRO-3, under which transformers loads a model in shards: each rank holds a part of every weight.

A reward model is not trained with the policy, so no engine of the policy's gathers its weights: it has to be whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from transformers.integrations import deepspeed as _deepspeed
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config


@contextmanager
def whole_weights() -> Iterator[None]:
    """What is loaded or built inside is whole on each rank, under DeepSpeed ZeRO-3 too."""
    # Private: the configuration by which `from_pretrained` loads shards, while it lives.
    reference = _deepspeed._hf_deepspeed_config_weak_ref
    config = None if reference is None else reference()
    if config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


def is_in_shards(module: nn.Module) -> bool:
    """Whether DeepSpeed ZeRO-3 has divided weights of a module among the ranks.

    Args:
        module (`nn.Module`): a model.
    """
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def gathered(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """A weight is whole inside, for reading. All ranks have to call it.

    Args:
        parameter (`nn.Parameter`): in shards or not.
    """
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def make_whole(module: nn.Module) -> None:
    """Give every rank all weights of a module that was loaded in shards. All ranks have to call it.

    Args:
        module (`nn.Module`): changed in place; of no engine. One that is whole stays as it is.
    """
    parts = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if not parts:
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts):
        whole = {id(part): nn.Parameter(part.detach().clone(), part.requires_grad) for part in parts}
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if id(parameter) in whole:
                child._parameters[name] = whole[id(parameter)]
