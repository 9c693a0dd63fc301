# SPDX-License-Identifier: Apache-2.0
"""A policy and its critic as files: a folder that `from_pretrained` opens as the policy (or its adapter), with the
critic beside it. What is read is whole and of this run, or it is refused: nothing random is a critic or a policy."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ...models.lora import without_reward_adapters
from .policy import PolicyWithCritic


VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_MODEL_FOLDER = "value_model"
ADAPTER_FILE = "adapter_model.safetensors"
REMEDY = (
    "Resume from a checkpoint that this trainer wrote with the same model, adapters, rewards, `value_model`, `critic` "
    "and `critic_adapter`."
)
StateDict = dict[str, torch.Tensor]


def save_policy(root: PolicyWithCritic, folder: Path, state_dict: StateDict | None = None) -> None:
    """Write the policy, without its critic and without the copy of its adapter that serves as the reference.

    Args:
        root ([`PolicyWithCritic`]): holds the policy.
        folder (`Path`): exists.
        state_dict (`dict`, *optional*): of the root, gathered, where the weights are sharded.
    """
    weights, adapters = _part(state_dict, "policy."), {}
    if isinstance(root.policy, PeftModel):
        weights = without_reward_adapters(weights or root.policy.state_dict())
        adapters["selected_adapters"] = [root.policy.active_adapter]
    root.policy.save_pretrained(folder, state_dict=weights, **adapters)


def save_critic(root: PolicyWithCritic, folder: Path, state_dict: StateDict | None = None) -> None:
    """Write the critic beside a saved policy: `value_head.safetensors`, or `value_model/` where the critic has a trunk
    or an adapter of its own.

    Args:
        root ([`PolicyWithCritic`]), folder (`Path`), state_dict (`dict`, *optional*): as for [`save_policy`].
    """
    if root.value_head is not None:
        weights = _part(state_dict, "value_head.") or root.value_head.state_dict()
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}
        save_file(weights, folder / VALUE_HEAD_FILE, metadata={"format": "pt"})
    if root.critic_adapter is not None:
        # PEFT writes an adapter of this name into a folder of this name.
        weights = without_reward_adapters(_part(state_dict, "policy.") or root.policy.state_dict())
        options = {"selected_adapters": [root.critic_adapter], "state_dict": weights}
        root.policy.save_pretrained(folder / VALUE_MODEL_FOLDER, **options)
    if root.value_model is not None:
        weights = _part(state_dict, "value_model.")
        root.value_model.save_pretrained(_value_model_folder(root, folder), state_dict=weights)


def load_policy_weights(root: PolicyWithCritic, folder: str | Path) -> None:
    """Read what [`save_policy`] wrote.

    Args:
        root ([`PolicyWithCritic`]): gets the weights.
        folder (`str` or `Path`): of a checkpoint.

    Raises:
        `FileNotFoundError`: the folder has no policy of this kind.
        `ValueError`: weights that are cut off, missing, unexpected, of another shape, NaN or infinite.
    """
    _load(root.policy, Path(folder), "the folder holds a policy of another kind (adapter or whole model), or none")


def load_critic(root: PolicyWithCritic, folder: str | Path) -> None:
    """Read what [`save_critic`] wrote.

    Args:
        root ([`PolicyWithCritic`]), folder (`str` or `Path`): as for [`load_policy_weights`].

    Raises:
        `FileNotFoundError`, `ValueError`: as [`load_policy_weights`]; a critic of another number of channels.
    """
    folder = Path(folder)
    if root.value_head is not None:
        lacks = "the folder holds a policy without its critic (or with one of another kind)"
        weights = _read(folder / VALUE_HEAD_FILE, lacks)
        _require_keys(folder / VALUE_HEAD_FILE, root.value_head.state_dict(), weights)
        root.value_head.load_state_dict(weights)
    if root.critic_adapter is not None:
        lacks = "the folder holds a critic without an adapter of its own; set critic_adapter=False"
        _load_adapter(root.policy, root.critic_adapter, folder / VALUE_MODEL_FOLDER / root.critic_adapter, lacks)
    if root.value_model is not None:
        _load(
            root.value_model, _value_model_folder(root, folder), "the folder holds a critic of another kind, or none"
        )


def copy_critic(source: Path, target: Path) -> None:
    """Put the critic of a checkpoint into the folder of the run.

    Args:
        source, target (`Path`): folders.
    """
    for name in (VALUE_HEAD_FILE, VALUE_MODEL_FOLDER):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
        elif (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)


def load_pretrained(auto_class: Any, name: str | Path, *, argument: str, **kwargs: Any) -> PreTrainedModel:
    """`from_pretrained`, which fills what a folder lacks with random numbers, but refuses where it would.

    Args:
        auto_class: an Auto class or a model class of transformers.
        name (`str` or `Path`): Hub id or folder.
        argument (`str`): what the user calls it.
        kwargs: for `from_pretrained`.

    Returns:
        [`~transformers.PreTrainedModel`].

    Raises:
        `ValueError`: weights that cannot be read, or are missing, unexpected, of another shape, NaN or infinite.
    """
    options = {"trust_remote_code": False, **kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, report = auto_class.from_pretrained(name, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{argument} {str(name)!r} cannot be loaded: {error}") from error
    shapes = [f"{key} {tuple(found)}, not {tuple(wanted)}" for key, found, wanted in report["mismatched_keys"]]
    _refuse(f"{argument} {str(name)!r}", report["missing_keys"], report["unexpected_keys"], shapes, model.state_dict())
    return model


def _load(model: PreTrainedModel | PeftModel, folder: Path, lacks: str) -> None:
    if isinstance(model, PeftModel):
        _load_adapter(model, model.active_adapter, folder, lacks)
        return
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is missing or has no config.json: {lacks}. {REMEDY}")
    # The widest type there is, so that nothing is rounded on its way.
    dtype = reduce(torch.promote_types, {p.dtype for p in model.parameters() if p.is_floating_point()})
    loaded = load_pretrained(type(model), folder, argument="checkpoint", config=model.config, dtype=dtype)
    model.load_state_dict(loaded.state_dict())


def _load_adapter(model: PeftModel, name: str, folder: Path, lacks: str) -> None:
    weights = _read(folder / ADAPTER_FILE, lacks)
    _require_keys(folder / ADAPTER_FILE, get_peft_model_state_dict(model, adapter_name=name), weights)
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _read(file: Path, lacks: str) -> StateDict:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {lacks}. {REMEDY}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read, it may be cut off ({error}). {REMEDY}") from error


def _require_keys(file: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    pairs = [(key, tuple(found[key].shape), tuple(wanted[key].shape)) for key in wanted.keys() & found.keys()]
    shapes = [f"{key} {theirs}, not {ours}" for key, theirs, ours in pairs if theirs != ours]
    _refuse(str(file), wanted.keys() - found.keys(), found.keys() - wanted.keys(), shapes, found)


def _refuse(where: str, missing: Any, unexpected: Any, shapes: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise where a file and a module differ, or where a weight is no number."""
    bad = [key for key, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "NaN or infinite": bad}
    named = [
        f"{len(keys)} {fault} ({', '.join(sorted(keys)[:3])}{', ...' if len(keys) > 3 else ''})"
        for fault, keys in faults.items()
        if keys
    ]
    if named:
        raise ValueError(f"The weights of {where} are not those of this model: {'; '.join(named)}. {REMEDY}")


def _part(state_dict: StateDict | None, prefix: str) -> StateDict | None:
    """Weights of one part of the root, under the part's own names."""
    named = (state_dict or {}).items()
    return {name.removeprefix(prefix): tensor for name, tensor in named if name.startswith(prefix)} or None


def _value_model_folder(root: PolicyWithCritic, folder: Path) -> Path:
    # One level deeper for an adapter: transformers takes every sub-folder with adapter weights for the policy's.
    return folder / VALUE_MODEL_FOLDER / ("adapter" if isinstance(root.value_model, PeftModel) else "")
