# SPDX-License-Identifier: Apache-2.0
"""One component on its own, and a mixture on disk."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .configuration_mixture_reward import MixtureRewardModelConfig
from .families import get_linear
from .lora import adapter_name, merged_classifier, save_adapter_folder
from .quantization import load_as_fitted
from .shards import whole_weights


#: Where the base of `"lora"` components is saved, when it is known by no name.
BASE_FOLDER = "base"


class ComponentsMixin:
    """Methods of [`MixtureRewardModel`] that take it apart, and that save and load it."""

    def component(self, k: int | str) -> PreTrainedModel:
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
        k = self._component_number(k)
        self._require_plain_pooling()
        if self.config.component_type == "full":
            return copy.deepcopy(self.components[k])
        source = self.components[0]
        if self.config.component_type == "lora":
            source = merged_classifier(source, k)
        config = copy.deepcopy(source.config)
        config.num_labels = 1
        plain = AutoModelForSequenceClassification.from_config(config).to(dtype=self.dtype, device=self.device)
        linear = self.family.linear
        state = source.state_dict()
        for name in (f"{linear}.weight", f"{linear}.bias"):
            if name in state:
                state[name] = state[name][k : k + 1].clone()
        plain.load_state_dict(state)
        return plain.eval()

    @property
    def exports_components(self) -> bool:
        """Whether a component can be written as a model that other tools load (mean pooling and kernel features are
        ours alone)."""
        return self.config.pooling == "auto" and not self.config.kernel_features

    def _require_plain_pooling(self) -> None:
        if not self.exports_components:
            raise ValueError(
                f"Components with pooling={self.config.pooling!r}, kernel_features={self.config.kernel_features} "
                "cannot be exported: the sequence classifiers of transformers do not read a text like that. Use the "
                "mixture itself (`score`), or train with pooling='auto' and kernel_features=0."
            )

    def _component_number(self, k: int | str) -> int:
        if isinstance(k, str) and k in self.component_names:
            return self.component_names.index(k)
        if isinstance(k, int) and 0 <= k < self.num_components:
            return k
        raise ValueError(
            f"There is no component {k!r}. Components: {dict(enumerate(self.component_names))}; give a number or a "
            "name."
        )

    @torch.no_grad()
    def scale_heads(self, temperatures: Sequence[float]) -> None:
        """Divide each component's reward by a temperature, for good (the heads are linear, so it goes into their
        weights).

        Args:
            temperatures (`Sequence[float]` of length K): positive; above 1 makes an over-confident component milder.

        Raises:
            ValueError: wrong length or a temperature that is not positive.
        """
        if len(temperatures) != self.num_components or min(temperatures) <= 0:
            raise ValueError(f"Expected {self.num_components} positive temperatures, got {list(temperatures)}.")
        for k, temperature in enumerate(temperatures):
            shared = len(self.components) == 1
            head = get_linear(self.components[0 if shared else k])
            row = k if shared else 0
            for parameter in (head.weight, head.bias):
                if parameter is not None:
                    parameter[row] /= temperature
        self.config.temperatures = [a * float(b) for a, b in zip(self.config.temperatures, temperatures, strict=True)]

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Save weights, config and tokenizer. See `PreTrainedModel.save_pretrained`.

        Of `"lora"` components the adapters and heads are saved, and the base only where it has no name to load it by.
        """
        if self.config.component_type == "lora":
            result = self._save_lora(Path(save_directory), **kwargs)
        else:
            result = super().save_pretrained(save_directory, *args, **kwargs)
        if self.processing_class is not None and kwargs.get("is_main_process", True):
            self.processing_class.save_pretrained(save_directory)
        return result

    def _save_lora(
        self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None, is_main_process: bool = True, **_: Any
    ) -> None:
        if not is_main_process:
            return
        folder.mkdir(parents=True, exist_ok=True)
        state_dict = self.state_dict() if state_dict is None else state_dict
        own = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in state_dict.items()
            if self._is_own_weight(name)
        }
        save_file(own, str(folder / SAFE_WEIGHTS_NAME), {"format": "pt"})
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        config.save_pretrained(folder)
        if self.config.base_model_name_or_path is None:
            self.save_base(folder / BASE_FOLDER)
            self._base_folder = str((folder / BASE_FOLDER).resolve())

    def _is_own_weight(self, name: str) -> bool:
        """Whether a weight of a `"lora"` mixture is not simply that of its base."""
        prefix = f"components.0.{self.components[0].base_model_prefix}."
        adapters = any(f".{adapter_name(k)}." in name for k in range(self.num_components))
        return adapters or not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")

    def save_base(self, folder: str | os.PathLike) -> None:
        """Save the base of `"lora"` components, without adapters, as a one-label sequence classifier.

        Args:
            folder: for `AutoModelForSequenceClassification.from_pretrained`.

        Raises:
            ValueError: the components are no adapters, or the base is quantised.
        """
        if self.config.component_type != "lora":
            raise ValueError(f"Components of type {self.config.component_type!r} have no base of their own to save.")
        classifier = self.components[0]
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
            row = name.rpartition(".")[0] == self.family.linear
            state[name] = (tensor[:1].clone() if row else tensor).detach().cpu().contiguous()
        save_torch_state_dict(state, folder)

    @classmethod
    @whole_weights()
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights, config and, where it was saved beside them, the tokenizer. See `PreTrainedModel`.

        The mixture is whole on each rank, under DeepSpeed ZeRO-3 too: it is not trained with the policy, whose engine
        would gather it.

        Of `"lora"` components the base is loaded by its name; what `PreTrainedModel` takes beyond the place of the
        files (`dtype`, `device_map`, `quantization_config`, ...) is for the base. Without `quantization_config` it is
        quantised as it was when the components were fitted (`config.base_quantization`); a warning says where it is
        not.
        """
        where = {
            k: kwargs[k] for k in ("revision", "token", "cache_dir", "subfolder", "local_files_only") if k in kwargs
        }
        config = kwargs.get("config")
        if not isinstance(config, MixtureRewardModelConfig):
            config = MixtureRewardModelConfig.from_pretrained(pretrained_model_name_or_path, **where)
        if config.component_type == "lora":
            loaded = model = cls._load_lora(config, pretrained_model_name_or_path, where, kwargs)
        else:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
        try:
            model.processing_class = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **where)
        except (OSError, ValueError):
            # Weights without a tokenizer are complete: `score` then asks for one.
            model.processing_class = None
        return loaded

    @classmethod
    def _load_lora(cls, config: MixtureRewardModelConfig, name: Any, where: dict[str, Any], kwargs: dict) -> Any:
        rest = {k: v for k, v in kwargs.items() if k not in (*where, "config", "output_loading_info")}
        rest.setdefault("dtype", config.dtype or "auto")
        if config.base_model_name_or_path is not None:
            base, source = config.base_model_name_or_path, {"revision": config.base_model_revision}
            source |= {k: where[k] for k in ("token", "cache_dir", "local_files_only") if k in where}
        else:
            subfolder = "/".join(filter(None, (where.get("subfolder"), BASE_FOLDER)))
            base, source = name, {**where, "subfolder": subfolder}
        load = partial(
            AutoModelForSequenceClassification.from_pretrained,
            base,
            num_labels=config.num_components,
            ignore_mismatched_sizes=True,
            **source,
        )
        classifier = load_as_fitted(load, str(name), config.base_quantization, rest)
        vocabulary = config.base_config.get_text_config().vocab_size
        if classifier.get_input_embeddings().num_embeddings < vocabulary:
            # The pad token that reward training added. It is masked, so its embedding is never read.
            classifier.resize_token_embeddings(vocabulary, mean_resizing=False)
        model = cls(config, classifier=classifier)
        model._set_pad_token_id(config.get_text_config().pad_token_id)
        if config.base_model_name_or_path is None and os.path.isdir(str(name)):
            model._base_folder = str(Path(name, where.get("subfolder", ""), BASE_FOLDER).resolve())
        state = load_file(cached_file(name, SAFE_WEIGHTS_NAME, **where))
        for key, tensor in state.items():
            # Adapters and heads are kept in full precision on a half-precision base.
            model.get_parameter(key).data = tensor.to(model.get_parameter(key).device)
        return model.eval()

    def save_component(
        self, k: int | str, save_directory: str | os.PathLike, base_model_name_or_path: str | None = None
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
        k = self._component_number(k)
        self._require_plain_pooling()
        if self.config.component_type == "lora":
            base = base_model_name_or_path or self.config.base_model_name_or_path or self._base_folder
            if base is None or (base == self._base_folder and not os.path.isdir(base)):
                self.save_base(Path(save_directory, BASE_FOLDER))
                base = str(Path(save_directory, BASE_FOLDER).resolve())
            save_adapter_folder(self.components[0], k, self.config.lora, save_directory, base)
        else:
            self.component(k).save_pretrained(save_directory)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(save_directory)
