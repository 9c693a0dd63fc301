# SPDX-License-Identifier: Apache-2.0
"""A policy and its critic as files: a folder that `from_pretrained` opens as the policy (or its adapter), with the
critic beside it. What is read is whole and of this run, or it is refused: nothing random is a critic or a policy."""

from __future__ import annotations

import shutil
from functools import reduce
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ...models.loading import load_pretrained, read_tensors, require_tensors
from ...models.lora import without_reward_adapters
from .policy import PolicyWithCritic


VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_MODEL_FOLDER = "value_model"
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
    _load(root.policy, Path(folder), "policy")


def load_critic(root: PolicyWithCritic, folder: str | Path) -> None:
    """Read what [`save_critic`] wrote.

    Args:
        root ([`PolicyWithCritic`]), folder (`str` or `Path`): as for [`load_policy_weights`].

    Raises:
        `FileNotFoundError`, `ValueError`: as [`load_policy_weights`]; a critic of another number of channels.
    """
    folder = Path(folder)
    if root.value_head is not None:
        head = root.value_head.state_dict()
        root.value_head.load_state_dict(_read(folder / VALUE_HEAD_FILE, head, "critic"))
    if root.critic_adapter is not None:
        where = folder / VALUE_MODEL_FOLDER / root.critic_adapter
        _load_adapter(root.policy, root.critic_adapter, where, "critic with an adapter of its own")
    if root.value_model is not None:
        _load(root.value_model, _value_model_folder(root, folder), "critic")


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


def _load(model: PreTrainedModel | PeftModel, folder: Path, what: str) -> None:
    if isinstance(model, PeftModel):
        _load_adapter(model, model.active_adapter, folder, what)
        return
    _require_there(folder / "config.json", what)
    # In the widest type of its weights, so that none is rounded on its way.
    dtype = reduce(torch.promote_types, {p.dtype for p in model.parameters() if p.is_floating_point()})
    argument = f"{what} of the checkpoint"
    loaded = load_pretrained(type(model), folder, argument=argument, exact=True, config=model.config, dtype=dtype)
    model.load_state_dict(loaded.state_dict())


def _load_adapter(model: PeftModel, name: str, folder: Path, what: str) -> None:
    weights = _read(folder / "adapter_model.safetensors", get_peft_model_state_dict(model, adapter_name=name), what)
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _read(file: Path, wanted: StateDict, what: str) -> StateDict:
    """The weights of a file, which are those that are wanted."""
    _require_there(file, what)
    weights = read_tensors(file, f"{what} of the checkpoint")
    require_tensors(wanted, weights, f"{what} of the checkpoint", str(file))
    return weights


def _require_there(file: Path, what: str) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file if file.parent.exists() else file.parent} is missing: the folder holds no {what} (or one of "
            "another kind). Resume from a checkpoint that this trainer wrote with the same `peft_config`, "
            "`value_model` and `critic_adapter` (for one without it, critic_adapter=False)."
        )


def _part(state_dict: StateDict | None, prefix: str) -> StateDict | None:
    """Weights of one part of the root, under the part's own names."""
    named = (state_dict or {}).items()
    return {name.removeprefix(prefix): tensor for name, tensor in named if name.startswith(prefix)} or None


def _value_model_folder(root: PolicyWithCritic, folder: Path) -> Path:
    # One level deeper for an adapter: transformers takes every sub-folder with adapter weights for the policy's.
    return folder / VALUE_MODEL_FOLDER / ("adapter" if isinstance(root.value_model, PeftModel) else "")
