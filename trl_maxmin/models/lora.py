# SPDX-License-Identifier: Apache-2.0
"""K LoRA adapters on one base: inject them, switch between them, and write one as a standard PEFT adapter folder.

The base is held once. Component k is adapter k together with row k of the last linear layer, so scoring K components
is K forwards of one copy of the weights. The adapters sit in the base's own layers: a policy that is trained on the
same base with an adapter of its own shares every weight with them.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .families import get_family, lora_targets


#: Rank, scale and dropout of the reward models in the paper's code.
PAPER_LORA = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1}


def adapter_name(k: int) -> str:
    """Name of component k's adapter inside the base; no other part of a program uses such a name."""
    return f"maxmin_reward_{k}"


def without_reward_adapters(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Weights of a policy without the reward adapters that may stand on the same base: PEFT, which knows its own
    adapters only, would save them with the policy's."""
    return {name: tensor for name, tensor in state_dict.items() if ".maxmin_reward_" not in name}


def freeze_reward_adapters(policy: nn.Module) -> None:
    """Keep the reward adapters that may stand on a policy's base out of its training.

    They take no part in the policy's loss: DDP, which counts on a gradient of every trainable parameter, would stop.
    They stay frozen afterwards: a mixture that is to be trained on needs `requires_grad_(True)` on them first.

    Args:
        policy (`nn.Module`): changed in place.
    """
    for name, parameter in policy.named_parameters():
        if ".maxmin_reward_" in name:
            parameter.requires_grad_(False)


def resolve_lora_config(
    peft_config: LoraConfig | dict[str, Any] | None, base_config: PreTrainedConfig
) -> dict[str, Any]:
    """The fields of a LoRA configuration that rebuild the adapters, as JSON can hold them.

    Args:
        peft_config (`LoraConfig` or `dict`, *optional*): the user's; that of the paper's code without
            one.
        base_config ([`~transformers.PreTrainedConfig`]): of the base.

    Returns:
        `dict`: arguments of [`~peft.LoraConfig`].

    Raises:
        ValueError: layers that are not known by name and not given, another method than LoRA, or one of its variants
            that is more than a pair of matrices per layer.

    Example:

    >>> from transformers import GPT2Config
    >>> resolve_lora_config(None, GPT2Config())["target_modules"]
    ['c_attn']
    """
    if peft_config is None:
        peft_config = LoraConfig(**PAPER_LORA)
    if isinstance(peft_config, dict):
        peft_config = LoraConfig(**peft_config)
    if not isinstance(peft_config, LoraConfig):
        raise ValueError(
            f"Components of type 'lora' take a peft.LoraConfig, got {type(peft_config).__name__}. Leave `peft_config` "
            "out for the defaults."
        )
    if peft_config.bias != "none" or peft_config.layers_to_transform is not None or peft_config.rank_pattern:
        raise ValueError(
            "A LoraConfig of reward components has bias='none', no rank_pattern and no layers_to_transform; choose "
            "layers by `target_modules`."
        )
    targets = peft_config.target_modules or lora_targets(base_config)
    return {
        "r": peft_config.r,
        "lora_alpha": peft_config.lora_alpha,
        "lora_dropout": peft_config.lora_dropout,
        "use_rslora": peft_config.use_rslora,
        "use_dora": peft_config.use_dora,
        "fan_in_fan_out": get_family(base_config).fan_in_fan_out,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
    }


def add_adapters(classifier: PreTrainedModel, num_components: int, lora: dict[str, Any]) -> None:
    """Put K fresh adapters on the trunk of a sequence classifier and freeze the rest of the trunk.

    What lies outside the trunk (the heads, and what an encoder has in front of them) stays trainable: it is new.

    Args:
        classifier (`PreTrainedModel`): changed in place; its last linear layer has K rows.
        num_components (`int`): K.
        lora (`dict`): of [`resolve_lora_config`].
    """
    trunk = getattr(classifier, classifier.base_model_prefix)
    frozen = [parameter for parameter in trunk.parameters()]
    before = {id(module): module._active_adapter for module in _layers(trunk)}
    trainable = {id(parameter) for parameter in frozen if parameter.requires_grad and before}
    for parameter in frozen:
        # A trunk that carries adapters already is shared with a policy, which keeps what it trains.
        parameter.requires_grad_(id(parameter) in trainable)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for k in range(num_components):
            inject_adapter_in_model(LoraConfig(**lora), trunk, adapter_name=adapter_name(k))
    own = tuple(f".{adapter_name(k)}." for k in range(num_components))
    for name, parameter in trunk.named_parameters():
        if any(part in f".{name}." for part in own):
            # As PEFT does for adapters on a half-precision base: their updates are too small for it.
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        elif id(parameter) in trainable:
            parameter.requires_grad_(True)
    for module in _layers(trunk):
        module._active_adapter = before.get(id(module), [])


def drop_adapters(trunk: nn.Module, components: Iterable[int]) -> None:
    """Remove the adapters of some components from the trunk."""
    for k in components:
        for layer in _layers(trunk):
            layer.delete_adapter(adapter_name(k))
        trunk.peft_config.pop(adapter_name(k), None)


@torch.no_grad()
def copy_adapter(trunk: nn.Module, source: int, target: int) -> None:
    """Overwrite the adapter of one component with that of another."""
    named, own = dict(trunk.named_parameters()), f".{adapter_name(target)}."
    for name, parameter in named.items():
        if own in f".{name}.":
            other = f".{name}.".replace(own, f".{adapter_name(source)}.").strip(".")
            parameter.copy_(named[other])


def carries_adapters(model: nn.Module) -> bool:
    """Whether some layer of the model has an adapter, a component's or another's."""
    return bool(_layers(model))


def _layers(trunk: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in trunk.modules() if isinstance(module, BaseTunerLayer)]


#: A module with adapters, the names of those that are on, and whether all are off.
AdapterState = list[tuple[nn.Module, Any, bool]]


def adapter_state(model: nn.Module) -> AdapterState:
    """Which adapters are on in each module that has some, what is trained whole beside them (`modules_to_save`)
    included."""
    switches = (module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper))
    return [(module, module._active_adapter, module._disable_adapters) for module in switches]


@contextmanager
def adapters_as(state: AdapterState) -> Iterator[None]:
    """The modules have the adapters of a state on inside, those from before afterwards."""
    before = [(module, module._active_adapter, module._disable_adapters) for module, _, _ in state]
    _switch(state)
    try:
        yield
    finally:
        _switch(before)


def _switch(state: AdapterState) -> None:
    for module, active, disabled in state:
        module._active_adapter, module._disable_adapters = active, disabled


def active_adapter(model: nn.Module, adapter: int | str | None) -> AbstractContextManager[None]:
    """Run a model with one adapter alone, or (`None`) as it was before there were adapters.

    PEFT's own switch also turns gradients of the other adapters off, but here several are trained together and their
    graphs live side by side; so only the choice of the adapter is set, and set back.

    Args:
        model (`nn.Module`): with adapters of [`add_adapters`] or of PEFT.
        adapter (`int`, `str` or `None`): a component, or an adapter's name.
    """
    names = [] if adapter is None else [adapter if isinstance(adapter, str) else adapter_name(adapter)]
    return adapters_as([(module, names, adapter is None) for module, _, _ in adapter_state(model)])


def keep_adapter_in_checkpoints(trunk: nn.Module) -> None:
    """Make activation checkpointing recompute each layer under the adapter that it ran under.

    The backward pass recomputes a layer long after the forward has moved on to another component; without this it
    would silently recompute it with the wrong adapter.

    Args:
        trunk (`nn.Module`): whose checkpointing has just been turned on.
    """
    for module in trunk.modules():
        original = getattr(module, "_gradient_checkpointing_func", None)
        if original is None or getattr(original, "func", None) is _checkpoint_under_adapter:
            continue
        module._gradient_checkpointing_func = partial(_checkpoint_under_adapter, trunk, original)


def _checkpoint_under_adapter(trunk: nn.Module, original: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    state = adapter_state(trunk)

    def run(*inputs: Any, **options: Any) -> Any:
        with adapters_as(state):
            return function(*inputs, **options)

    return original(run, *args, **kwargs)


def merged_classifier(classifier: PreTrainedModel, k: int) -> PreTrainedModel:
    """A copy of the classifier with adapter k added into the weights and no adapters left.

    Args:
        classifier (`PreTrainedModel`): base with K adapters.
        k (`int`): component.

    Returns:
        `PreTrainedModel`: still with K rows in its last layer.

    Raises:
        ValueError: a quantised base, whose weights cannot take the adapter up without loss.
    """
    if getattr(classifier, "is_quantized", False) or getattr(classifier.config, "quantization_config", None):
        raise ValueError(
            "The base of this mixture is quantised, so an adapter cannot be merged into it exactly. Use "
            "`mixture.save_component(k, folder)`: it writes a PEFT adapter for the base."
        )
    merged = copy.deepcopy(classifier)
    trunk = getattr(merged, merged.base_model_prefix)
    with torch.no_grad():
        for name, layer in list(trunk.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                if adapter_name(k) in layer.lora_A:
                    layer.merge(adapter_names=[adapter_name(k)])
                parent, _, leaf = name.rpartition(".")
                setattr(trunk.get_submodule(parent), leaf, layer.get_base_layer())
    if hasattr(trunk, "peft_config"):
        del trunk.peft_config
    return merged


def saved_modules(classifier: PreTrainedModel) -> list[str]:
    """Modules that a component stores whole beside its adapter: everything outside the trunk, and BERT's pooler, which
    a checkpoint of a language model lacks."""
    names = [
        name
        for name, module in classifier.named_children()
        if name != classifier.base_model_prefix and any(True for _ in module.parameters())
    ]
    trunk = getattr(classifier, classifier.base_model_prefix)
    return names + (["pooler"] if getattr(trunk, "pooler", None) is not None else [])


def save_adapter_folder(
    classifier: PreTrainedModel, k: int, lora: dict[str, Any], folder: str | Path, base_model: str | None
) -> None:
    """Write component k as PEFT writes an adapter, so that PEFT loads it without this package.

    Args:
        classifier (`PreTrainedModel`): base with K adapters and K rows in its last layer.
        k (`int`): component.
        lora (`dict`): of [`resolve_lora_config`].
        folder: gets `adapter_config.json` and `adapter_model.safetensors`.
        base_model (`str`, *optional*): Hub id or folder of the base, for `adapter_config.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    modules = saved_modules(classifier)
    LoraConfig(
        **lora,
        task_type=TaskType.SEQ_CLS,
        modules_to_save=modules,
        base_model_name_or_path=base_model,
        inference_mode=True,
    ).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config.pop("auto_mapping", None)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(adapter_tensors(classifier, k, modules), str(folder / "adapter_model.safetensors"), {"format": "pt"})


def adapter_tensors(classifier: PreTrainedModel, k: int, modules: Sequence[str]) -> dict[str, torch.Tensor]:
    """Adapter k and the whole modules beside it, under the names of PEFT's files; the last layer has row k only."""
    linear = get_family(classifier.config).linear
    prefix, own = "base_model.model.", f".{adapter_name(k)}"
    whole = [name for name, _ in classifier.named_modules() if name.rpartition(".")[2] in modules]
    whole = [name for name in whole if not any(name.startswith(f"{other}.") for other in whole)]
    tensors = {}
    for name, tensor in classifier.state_dict().items():
        if f"{own}." in f"{name}.":
            tensors[prefix + name.replace(own, "")] = tensor.detach().cpu().contiguous()
        elif any(name.startswith(f"{module}.") for module in whole):
            row = tensor[k : k + 1] if name.rpartition(".")[0] == linear else tensor
            tensors[prefix + name] = row.detach().cpu().clone().contiguous()
    return tensors
