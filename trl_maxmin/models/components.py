# SPDX-License-Identifier: Apache-2.0
"""One component on its own, and LoRA components on disk: methods of [`MixtureRewardModel`] and what they need."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .configuration_mixture_reward import MixtureRewardModelConfig
from .families import get_family, get_linear, new_weights
from .loading import load_config, load_pretrained, place_of, read_tensors, require_tensors
from .lora import adapter_name, copy_adapter, merged_classifier, save_adapter_folder
from .quantization import load_as_fitted


if TYPE_CHECKING:
    from .modeling_mixture_reward import MixtureRewardModel


#: Where the base of `"lora"` components is saved, when it is known by no name.
BASE_FOLDER = "base"


def component(mixture: MixtureRewardModel, k: int | str) -> PreTrainedModel:
    """One component as a plain one-label sequence-classification model that any tool loads without this package.

    Args:
        k (`int` or `str`): number or name of the component.

    Returns:
        `PreTrainedModel`: a copy whose single logit equals column k of `rewards`, given the mixture's tokenizer. A
        `"lora"` component comes with its adapter merged; [`~MixtureRewardModel.save_component`] writes the
        adapter.

    Raises:
        ValueError: no such component, mean pooling, kernel features, or a quantised base.
    """
    k = _component_number(mixture, k)
    _require_plain_pooling(mixture)
    own = mixture.component_names[k]
    if mixture.config.component_type == "full":
        return _named(copy.deepcopy(mixture.components[k]), own)
    source = mixture.components[0]
    if mixture.config.component_type == "lora":
        source = merged_classifier(source, k)
    config = copy.deepcopy(source.config)
    config.num_labels = 1
    plain = AutoModelForSequenceClassification.from_config(config).to(dtype=mixture.dtype, device=mixture.device)
    linear = mixture.family.linear
    state = source.state_dict()
    for name in (f"{linear}.weight", f"{linear}.bias"):
        if name in state:
            state[name] = state[name][k : k + 1].clone()
    plain.load_state_dict(state)
    return _named(plain.eval(), own)


def _named(component: PreTrainedModel, name: str) -> PreTrainedModel:
    """What `pipeline("text-classification", ...)` calls the one label."""
    component.config.id2label, component.config.label2id = {0: name}, {name: 0}
    return component


def exports_components(mixture: MixtureRewardModel) -> bool:
    """Whether a component can be written as a model that other tools load (mean pooling and kernel features are
    ours alone)."""
    return mixture.config.pooling == "auto" and not mixture.config.kernel_features


def _require_plain_pooling(mixture: MixtureRewardModel) -> None:
    if not mixture.exports_components:
        raise ValueError(
            f"Components with pooling={mixture.config.pooling!r}, kernel_features={mixture.config.kernel_features} "
            "cannot be exported: the sequence classifiers of transformers do not read a text like that. Use the "
            "mixture itself (`score`), or train with pooling='auto' and kernel_features=0."
        )


def _component_number(mixture: MixtureRewardModel, k: int | str) -> int:
    if isinstance(k, str) and k in mixture.component_names:
        return mixture.component_names.index(k)
    if isinstance(k, int) and 0 <= k < mixture.num_components:
        return k
    raise ValueError(
        f"There is no component {k!r}. Components: {dict(enumerate(mixture.component_names))}; give a number or a "
        "name."
    )


@torch.no_grad()
def keep_component(mixture: MixtureRewardModel, k: int | str) -> None:
    """Drop all components but one: a mixture of K = 1, with its name, calibration and counts.

    What is dropped costs no forward any more. For a policy that serves one group, see `trl-maxmin ppo --component`.

    Args:
        k (`int` or `str`): number or name of the component.

    Raises:
        ValueError: no such component, or one that describes no annotator.
    """
    k, config = _component_number(mixture, k), mixture.config
    if k not in mixture.described_components:
        named = ", ".join(mixture.component_names[j] for j in mixture.described_components)
        raise ValueError(f"The component {mixture.component_names[k]!r} describes no annotator; choose of {named}.")
    if config.component_type == "full":
        mixture.components = mixture.components[k : k + 1]
    elif k > 0:
        head = get_linear(mixture.components[0])
        for parameter in (head.weight, head.bias):
            if parameter is not None:
                parameter[0] = parameter[k].clone()
        if config.component_type == "lora":
            copy_adapter(mixture.trunk, k, 0)
    for name in ("component_names", "reward_shift", "reward_scale", "temperatures"):
        values = list(getattr(config, name))
        setattr(config, name, [values[k], *values[:k], *values[k + 1 :]])
    counts = {name: getattr(config, name) for name in ("component_annotators", "component_pairs")}
    weight = config.evidence_weight
    mixture.keep_components(1)
    config.evidence_weight = weight
    for name, values in counts.items():
        setattr(config, name, None if values is None else [values[k]])


@torch.no_grad()
def scale_heads(mixture: MixtureRewardModel, temperatures: Sequence[float]) -> None:
    """Divide each component's reward by a temperature, for good (the heads are linear, so it goes into their
    weights).

    Args:
        temperatures (`Sequence[float]` of length K): positive; above 1 makes an over-confident component milder.

    Raises:
        ValueError: wrong length or a temperature that is not positive.
    """
    if len(temperatures) != mixture.num_components or min(temperatures) <= 0:
        raise ValueError(f"Expected {mixture.num_components} positive temperatures, got {list(temperatures)}.")
    for k, temperature in enumerate(temperatures):
        shared = len(mixture.components) == 1
        head = get_linear(mixture.components[0 if shared else k])
        row = k if shared else 0
        for parameter in (head.weight, head.bias):
            if parameter is not None:
                parameter[row] /= temperature
    mixture.config.temperatures = [
        a * float(b) for a, b in zip(mixture.config.temperatures, temperatures, strict=True)
    ]


def save_lora(
    mixture: MixtureRewardModel,
    folder: Path,
    state_dict: dict[str, torch.Tensor] | None = None,
    is_main_process: bool = True,
    **_: Any,
) -> None:
    """Adapters and heads, and the base where it has no name to load it by. For `save_pretrained`."""
    if not is_main_process:
        return
    folder.mkdir(parents=True, exist_ok=True)
    state_dict = mixture.state_dict() if state_dict is None else state_dict
    own = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in state_dict.items()
        if is_own_weight(mixture, name)
    }
    save_file(own, str(folder / SAFE_WEIGHTS_NAME), {"format": "pt"})
    config = copy.deepcopy(mixture.config)
    config.architectures = [type(mixture).__name__]
    config.save_pretrained(folder)
    if mixture.config.base_model_name_or_path is None:
        save_base(mixture, folder / BASE_FOLDER)
        mixture._base_folder = str((folder / BASE_FOLDER).resolve())


def is_own_weight(mixture: MixtureRewardModel, name: str) -> bool:
    """Whether a weight of a `"lora"` mixture is not simply that of its base."""
    prefix = f"components.0.{mixture.components[0].base_model_prefix}."
    adapters = any(f".{adapter_name(k)}." in name for k in range(mixture.num_components))
    return adapters or not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")


def save_base(mixture: MixtureRewardModel, folder: str | os.PathLike) -> None:
    """Save the base of `"lora"` components, without adapters, as a one-label sequence classifier.

    Args:
        folder: for `AutoModelForSequenceClassification.from_pretrained`.

    Raises:
        ValueError: the components are no adapters, or the base is quantised.
    """
    if mixture.config.component_type != "lora":
        raise ValueError(f"Components of type {mixture.config.component_type!r} have no base of their own to save.")
    classifier = mixture.components[0]
    if getattr(classifier.config, "quantization_config", None):
        raise ValueError(
            "A quantised base is not saved again. Load it by name (`from_base('org/model', ...)`): the mixture "
            "then refers to it."
        )
    config = copy.deepcopy(classifier.config)
    config.num_labels = 1
    config.architectures = [type(classifier).__name__]
    Path(folder).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    state = {}
    for name, tensor in classifier.state_dict().items():
        if ".lora_" in name:
            continue
        name = name.replace(".base_layer.", ".")
        row = name.rpartition(".")[0] == mixture.family.linear
        state[name] = (tensor[:1].clone() if row else tensor).detach().cpu().contiguous()
    save_torch_state_dict(state, folder)


def load_lora(
    cls: type[MixtureRewardModel],
    config: MixtureRewardModelConfig,
    name: str | os.PathLike,
    argument: str,
    place: dict[str, Any],
    options: dict[str, Any],
) -> MixtureRewardModel:
    """Adapters and heads on their base. For `from_pretrained`.

    Args:
        cls: class of the mixture.
        config ([`MixtureRewardModelConfig`]): of the saved mixture.
        name (`str` or path), argument (`str`): of the mixture, see [`load_pretrained`].
        place (`dict`): where its files lie.
        options (`dict`): what `from_pretrained` of the base takes beyond that.

    Raises:
        ValueError: as [`load_pretrained`], of the base and of the mixture's own file.
    """
    options = {key: value for key, value in options.items() if key not in ("_from_auto", "adapter_kwargs")}
    options.setdefault("dtype", config.dtype or "auto")
    if config.base_model_name_or_path is not None:
        base, source = config.base_model_name_or_path, {"revision": config.base_model_revision or "main"}
        source |= {k: place[k] for k in ("token", "cache_dir", "local_files_only") if k in place}
    else:
        subfolder = "/".join(filter(None, (place.get("subfolder"), BASE_FOLDER)))
        base, source = name, {**place, "subfolder": subfolder}
    load = partial(load_for_components, base, config.num_components, f"{argument}, base of {name}", **source)
    classifier = load_as_fitted(load, str(name), config.base_quantization, options)
    vocabulary = config.base_config.get_text_config().vocab_size
    if classifier.get_input_embeddings().num_embeddings < vocabulary:
        # The pad token that reward training added. It is masked, so its embedding is never read.
        classifier.resize_token_embeddings(vocabulary, mean_resizing=False)
    model = cls(config, classifier=classifier)
    model._set_pad_token_id(config.get_text_config().pad_token_id)
    if config.base_model_name_or_path is None and os.path.isdir(name):
        model._base_folder = str(Path(name, place.get("subfolder", ""), BASE_FOLDER).resolve())
    file = cached_file(name, SAFE_WEIGHTS_NAME, **place)
    state = read_tensors(file, argument)
    own = {key: tensor for key, tensor in model.state_dict().items() if is_own_weight(model, key)}
    require_tensors(own, state, argument, file)
    for key, tensor in state.items():
        # Adapters and heads are kept in full precision on a half-precision base.
        model.get_parameter(key).data = tensor.to(model.get_parameter(key).device)
    return model.eval()


def load_for_components(
    base: str | os.PathLike, num_components: int, argument: str, **options: Any
) -> PreTrainedModel:
    """A base as a sequence classifier with a row for each component, whatever head it was saved with.

    Args:
        base (`str` or path), argument (`str`), **options: as [`load_pretrained`].
        num_components (`int`): K.
    """
    config = load_config(base, argument, **place_of(options))
    get_family(config)
    config.num_labels = num_components
    return load_pretrained(
        AutoModelForSequenceClassification, base, argument=argument, new=new_weights(config), config=config, **options
    )


def save_component(
    mixture: MixtureRewardModel,
    k: int | str,
    save_directory: str | os.PathLike,
    base_model_name_or_path: str | None = None,
) -> None:
    """Save one component with the tokenizer whose pad token is not EOS, so that it pools right wherever it is
    loaded.

    Args:
        k (`int` or `str`): number or name of the component.
        save_directory: folder for `AutoModelForSequenceClassification.from_pretrained`; of a `"lora"` component,
            for `PeftModel.from_pretrained(base, folder)` or `AutoPeftModelForSequenceClassification`.
        base_model_name_or_path (`str`, *optional*): where the base of a `"lora"` component will be found, if not
            where this mixture has it from. A base that is nowhere is saved below the component, in `base/`.

    Raises:
        ValueError: no such component, mean pooling, or kernel features.
    """
    k = _component_number(mixture, k)
    _require_plain_pooling(mixture)
    if mixture.config.component_type == "lora":
        base = base_model_name_or_path or mixture.config.base_model_name_or_path or mixture._base_folder
        if base is None or (base == mixture._base_folder and not os.path.isdir(base)):
            save_base(mixture, Path(save_directory, BASE_FOLDER))
            base = str(Path(save_directory, BASE_FOLDER).resolve())
        save_adapter_folder(mixture.components[0], k, mixture.config.lora, save_directory, base)
    else:
        mixture.component(k).save_pretrained(save_directory)
    if mixture.processing_class is not None:
        mixture.processing_class.save_pretrained(save_directory)
