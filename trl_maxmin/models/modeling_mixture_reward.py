# SPDX-License-Identifier: Apache-2.0
"""A mixture of K reward models that a policy trainer, a Hub repository and a reader can treat as one model.

This file builds it, runs its forward, saves and loads it. The class's other methods are functions that take a mixture
first: `components.py` takes it apart, `text_interface.py` scores text and assigns annotators, `pushing.py` publishes.
"""

from __future__ import annotations

import copy
import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data.tokenization import ensure_pad_token
from . import components, pushing, text_interface
from .configuration_mixture_reward import MixtureRewardModelConfig
from .families import POOLER, check_family, get_family, get_linear
from .feature_map import RandomFourierFeatures
from .heads import Float32Linear, compute_in_float32
from .loading import load_config, load_pretrained, load_tokenizer, place_of, refuse_remote_code, require_finite
from .lora import (
    active_adapter,
    add_adapters,
    carries_adapters,
    drop_adapters,
    keep_adapter_in_checkpoints,
    resolve_lora_config,
)
from .outputs import AnnotatorPosterior, MixtureRewardOutput
from .quantization import quantization_of
from .scoring import pool_last_token, position_ids_from_mask
from .shards import is_in_shards, whole_weights


# What `output_loading_info` lists; here all of it is empty, or an error.
_KINDS_OF_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")

__all__ = ["AnnotatorPosterior", "MixtureRewardModel", "MixtureRewardOutput"]


class MixtureRewardModel(PreTrainedModel):
    r"""
    K reward components learned from people who disagree.

    Component kinds: `"head"` (one trunk, K heads: one forward scores all), `"lora"` (one frozen base, K adapters with
    heads: K forwards of one copy of the weights) and `"full"` (K models, the paper's setting).

    Args:
        config ([`MixtureRewardModelConfig`]): what to build. Use [`~MixtureRewardModel.from_base`] to start from a
            pretrained model.
        classifier (`PreTrainedModel`, *optional*): for `"lora"`, a sequence classifier with K labels that is used as
            it is, not copied. Without one it is made from the configuration.

    Attributes:
        processing_class (`PreTrainedTokenizerBase` or `None`): tokenizer saved beside the weights, whose pad token is
            not its EOS.

    Example:

    >>> import torch
    >>> from transformers import GPT2Config
    >>> base = GPT2Config(vocab_size=20, n_layer=1, n_head=1, n_embd=8, n_positions=16, pad_token_id=0)
    >>> model = MixtureRewardModel(MixtureRewardModelConfig(base_config=base, num_components=3))
    >>> model(torch.tensor([[4, 5, 6]])).rewards.shape
    torch.Size([1, 3])
    """

    config_class = MixtureRewardModelConfig
    base_model_prefix = "mixture"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False
    _keep_in_fp32_modules_strict = ["feature_map"]

    score = text_interface.score
    calibrate = text_interface.calibrate
    assign = text_interface.assign
    preference_log_likelihood = text_interface.preference_log_likelihood
    preference_evidence = text_interface.preference_evidence
    reward_functions = text_interface.reward_functions

    component = components.component
    exports_components = property(components.exports_components)
    keep_component = components.keep_component
    scale_heads = components.scale_heads
    save_component = components.save_component
    save_base = components.save_base

    push_to_hub = pushing.push_to_hub
    push_components_to_hub = pushing.push_components_to_hub

    def __init__(self, config: MixtureRewardModelConfig, classifier: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.family = get_family(config.base_config)
        base_config = copy.deepcopy(config.base_config)
        base_config.num_labels = 1 if config.component_type == "full" else config.num_components
        if classifier is None:
            count = config.num_components if config.component_type == "full" else 1
            self.components = nn.ModuleList(
                AutoModelForSequenceClassification.from_config(copy.deepcopy(base_config)) for _ in range(count)
            )
        else:
            self.components = nn.ModuleList([classifier])
        self.feature_map: RandomFourierFeatures | None = None
        if config.kernel_features:
            self.feature_map = RandomFourierFeatures(
                get_linear(self.components[0]).in_features, config.kernel_features
            )
            self._widen_head(config.kernel_features)
        for component in self.components:
            compute_in_float32(get_linear(component))
        self.processing_class: PreTrainedTokenizerBase | None = None
        self._base_folder: str | None = None
        self._origin: dict[str, Any] = {}
        if config.component_type == "lora":
            add_adapters(self.components[0], config.num_components, config.lora)
            for module in self.components.modules():
                # Weights that came from elsewhere, and adapters that start at zero, must stay as they are.
                module._is_hf_initialized = True
        self.post_init()

    @classmethod
    @whole_weights()
    def from_base(
        cls,
        model: str | os.PathLike | PreTrainedModel,
        num_components: int = 2,
        component_type: str = "head",
        component_names: list[str] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        pooling: str = "auto",
        kernel_features: int = 0,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> MixtureRewardModel:
        """A mixture whose trunk(s) start from a pretrained model and whose heads are new.

        Args:
            model (`str`, path or `PreTrainedModel`): base model: a language model, an encoder or a sequence classifier
                of a supported family. `"head"` and `"full"` copy its weights; `"lora"` uses the very modules of a
                model in memory and puts its adapters into them, so that a policy and its rewards share one base.
            num_components (`int`): K.
            component_type (`str`): `"head"`, `"lora"` or `"full"`.
            component_names (`list[str]`, *optional*): K names.
            processing_class (`PreTrainedTokenizerBase`, *optional*): tokenizer. Without one it is loaded from `model`
                when that is a name. It gets a pad token of its own where it has none, and the embedding is resized.
            pooling (`str`): what the heads read, see [`MixtureRewardModelConfig`].
            kernel_features (`int`): width of a nonlinear map before the heads, see [`MixtureRewardModelConfig`].
            peft_config (`LoraConfig`, *optional*): rank, scale and layers of the adapters of `"lora"`.
            **kwargs: passed to `from_pretrained` of the base model (`dtype`, `revision`, `quantization_config`, ...).

        Returns:
            `MixtureRewardModel`

        Raises:
            ValueError: an unsupported family, a `model` in shards (DeepSpeed ZeRO-3) or with adapters (`"lora"` takes
                those of a policy), weights that are missing, NaN or infinite, or a bad `component_type`, K, name list
                or `peft_config`.
            OSError: the Hub has no such model, or cannot be reached.
        """
        argument = kwargs.pop("argument", "`model`")
        place = place_of(kwargs)
        if isinstance(model, (str, os.PathLike)):
            name = os.fspath(model)
            # Before the weights: an unsupported family should not be downloaded first.
            base_config = load_config(name, argument, **place)
            get_family(base_config)
            if processing_class is None:
                processing_class = load_tokenizer(name, argument, **place)
        else:
            name = None
            _require_base_in_memory(model, component_type)
            base_config = model.config
        base_config = copy.deepcopy(base_config)
        base_config.architectures = None
        config = MixtureRewardModelConfig(
            base_config=base_config,
            component_type=component_type,
            num_components=num_components,
            component_names=component_names,
            pooling=pooling,
            kernel_features=kernel_features,
            lora=resolve_lora_config(peft_config, base_config) if component_type == "lora" else None,
            base_model_name_or_path=name if component_type == "lora" else None,
            base_model_revision=kwargs.get("revision") if component_type == "lora" else None,
        )
        if component_type == "lora":
            if name is None:
                classifier = _classifier_on_trunk_of(model, config)
            else:
                classifier = components.load_for_components(name, num_components, argument, **kwargs)
            config.dtype, config.base_quantization = classifier.dtype, quantization_of(classifier)
            if get_family(base_config).is_decoder:
                # A head is trained at a learning rate that bfloat16 cannot follow.
                get_linear(classifier).float()
            mixture = cls(config, classifier=classifier)
        else:
            if name is not None:
                model = load_pretrained(AutoModel, name, argument=argument, new=POOLER, **kwargs)
            config.dtype = model.dtype
            mixture = cls(config).to(model.dtype)
            _copy_trunk(model, mixture)
        if processing_class is not None:
            mixture.attach_tokenizer(processing_class)
        if mixture.exports_components:
            check_family(mixture)
        return mixture

    def attach_tokenizer(self, processing_class: PreTrainedTokenizerBase) -> None:
        """Set the tokenizer; give it a pad token of its own and resize the embeddings where it has none.

        Args:
            processing_class: tokenizer of the base model. A copy is kept where it has to be changed.
        """
        processing_class = copy.deepcopy(processing_class)
        ensure_pad_token(processing_class)
        processing_class.padding_side = "right"
        self.processing_class = processing_class
        if len(processing_class) > self.config.base_config.get_text_config().vocab_size:
            self.resize_token_embeddings(len(processing_class))
        self._set_pad_token_id(processing_class.pad_token_id)

    def _set_pad_token_id(self, pad_token_id: int) -> None:
        for config in (self.config, self.config.base_config, *(c.config for c in self.components)):
            config.get_text_config().pad_token_id = pad_token_id

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Save weights, config and tokenizer. See `PreTrainedModel.save_pretrained`.

        Of `"lora"` components the adapters and heads are saved, and the base only where it has no name to load it by.
        """
        if self.config.component_type == "lora":
            result = components.save_lora(self, Path(save_directory), **kwargs)
        else:
            result = super().save_pretrained(save_directory, *args, **kwargs)
        if self.processing_class is not None and kwargs.get("is_main_process", True):
            self.processing_class.save_pretrained(save_directory)
        return result

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

        Raises:
            ValueError: a model of another type, weights that are missing, left over, of another shape, NaN or
                infinite, a file that is missing or cut off. The message names what it is about, and calls the place
                `argument` where that is passed.
            OSError: the Hub has no such model, or cannot be reached.
        """
        name = os.fspath(pretrained_model_name_or_path)
        argument = kwargs.pop("argument", "`pretrained_model_name_or_path`")
        wants_info = kwargs.pop("output_loading_info", False)
        refuse_remote_code(kwargs.pop("trust_remote_code", None), argument)
        place = place_of(kwargs)
        config = kwargs.get("config")
        if not isinstance(config, MixtureRewardModelConfig):
            config = load_config(name, argument, **place)
        if not isinstance(config, MixtureRewardModelConfig):
            kind = ", ".join(config.architectures or [config.model_type])
            raise ValueError(
                f"{argument}: {name} is a {kind}, not a mixture of reward models. Give what `trl-maxmin reward` or "
                "`MixtureRewardTrainer` saved."
            )
        if config.component_type == "lora":
            options = {key: value for key, value in kwargs.items() if key not in (*place, "config")}
            model = components.load_lora(cls, config, name, argument, place, options)
        else:
            model = load_pretrained(super().from_pretrained, name, *args, argument=argument, exact=True, **kwargs)
        # Weights without a tokenizer are complete: `score` then asks for one.
        model.processing_class = load_tokenizer(name, argument, optional=True, **place)
        model._origin = pushing.origin(name, **place)
        return (model, dict.fromkeys(_KINDS_OF_KEYS, ())) if wants_info else model

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the first trunk."""
        return self.components[0].get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the first trunk."""
        self.components[0].set_input_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the token embeddings of every trunk (mean-resizing off: rewards of known tokens do not change)."""
        kwargs.setdefault("mean_resizing", False)
        for component in self.components:
            embeddings = component.resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.config.base_config.get_text_config().vocab_size = embeddings.num_embeddings
        return embeddings

    def _widen_head(self, width: int) -> None:
        head = get_linear(self.components[0])
        new = Float32Linear(width, head.out_features, bias=head.bias is not None, dtype=head.weight.dtype)
        self.components[0].set_submodule(self.family.linear, new.to(head.weight.device))

    def drop_feature_map(self) -> None:
        """Make the heads linear in what is pooled; they are new afterwards. Nothing happens where they are already."""
        if self.feature_map is None:
            return
        self._widen_head(len(self.feature_map.center))
        self.feature_map, self.config.kernel_features = None, 0

    def keep_components(self, count: int) -> None:
        """Drop all components but the first `count`, for a K that is chosen after the model was made.

        Args:
            count (`int`): new K, from 1 to the present one; the mixing weights become uniform, and who the components
                describe is open.

        Raises:
            ValueError: another number.
        """
        config = self.config
        if not 1 <= count <= config.num_components:
            raise ValueError(
                f"Cannot keep {count} of {config.num_components} components; give 1 to {config.num_components}."
            )
        if config.component_type == "full":
            self.components = self.components[:count]
        else:
            head = get_linear(self.components[0])
            for name, parameter in list(head.named_parameters()):
                setattr(head, name, nn.Parameter(parameter.detach()[:count].clone()))
            head.out_features = count
            self.components[0].config.num_labels = self.components[0].num_labels = count
        if config.component_type == "lora":
            drop_adapters(self.trunk, range(count, config.num_components))
        config.num_components = count
        for name in ("component_names", "reward_shift", "reward_scale", "temperatures"):
            setattr(config, name, getattr(config, name)[:count])
        config.mixing_weights = [1.0 / count] * count
        config.component_annotators = config.component_pairs = None
        config.evidence_weight = 1.0

    @property
    def num_components(self) -> int:
        """K."""
        return self.config.num_components

    @property
    def component_names(self) -> list[str]:
        """K names, in the order of the columns of `rewards`."""
        return list(self.config.component_names)

    @property
    def mixing_weights(self) -> torch.Tensor:
        """`(K,)`: share of annotators each component describes."""
        return torch.tensor(self.config.mixing_weights, dtype=torch.float64)

    @property
    def described_components(self) -> list[int]:
        """Components that describe at least one annotator: the groups that there are. All where it is not known."""
        counts = self.config.component_annotators or [1] * self.num_components
        return [k for k, count in enumerate(counts) if count > 0]

    @property
    def reward_shift(self) -> torch.Tensor:
        """`(K,)`: mean reward of the reference policy's replies, Bradley-Terry log-odds."""
        return torch.tensor(self.config.reward_shift, dtype=torch.float32)

    @property
    def reward_scale(self) -> torch.Tensor:
        """`(K,)`: spread of the reference policy's rewards within prompts, Bradley-Terry log-odds."""
        return torch.tensor(self.config.reward_scale, dtype=torch.float32)

    @property
    def trunk(self) -> nn.Module:
        """The base model below the first component's head: the only one of `"head"` and `"lora"` components."""
        return getattr(self.components[0], self.components[0].base_model_prefix)

    def freeze_trunk(self) -> None:
        """Keep every weight of the trunk(s); the heads, and what an encoder has before them, stay trainable."""
        for component in self.components:
            getattr(component, component.base_model_prefix).requires_grad_(False)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        if self.config.component_type == "lora":
            keep_adapter_in_checkpoints(self.trunk)

    def trunk_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What is pooled on the first trunk without adapters: one forward for all components.

        Args:
            input_ids, attention_mask (`torch.Tensor` of shape `(B, T)`): as in [`~MixtureRewardModel.features`].

        Returns:
            `torch.Tensor` of shape `(B, D)`: what the heads read, before the `feature_map` where there is one.
        """
        with active_adapter(self.trunk, None):
            return self._pooled(self.components[0], input_ids, attention_mask)

    def map_features(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(..., D)` pooled vectors to what the heads read: themselves, or their `kernel_features`."""
        return pooled if self.feature_map is None else self.feature_map(pooled)

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the last linear layer of each component reads.

        Args:
            input_ids (`torch.Tensor` of shape `(B, T)`): token ids, padded on either side (encoders: right).
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 = real token. Padding is never inferred
                from the pad id.

        Returns:
            `torch.Tensor` of shape `(B, 1, D)` for `"head"` components (D is `kernel_features` where there are some),
            `(B, K, D)` for `"lora"` and `"full"` ones.
        """
        if self.config.component_type == "lora":
            features = []
            for k in range(self.num_components):
                with active_adapter(self.trunk, k):
                    features.append(self._pooled(self.components[0], input_ids, attention_mask))
            return torch.stack(features, dim=1)
        pooled = torch.stack([self._pooled(c, input_ids, attention_mask) for c in self.components], dim=1)
        return self.map_features(pooled)

    def _pooled(
        self, component: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.config.pooling != "auto":
            return self._mean_pooled(component, input_ids, attention_mask)
        if not self.family.is_decoder:
            # An encoder's own forward pools; only what its last linear layer was given is needed here.
            captured: list[torch.Tensor] = []
            hook = get_linear(component).register_forward_pre_hook(lambda _, args: captured.append(args[0]))
            try:
                component(input_ids=input_ids, attention_mask=attention_mask)
            finally:
                hook.remove()
            return captured[0]
        backbone = getattr(component, component.base_model_prefix)
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if "position_ids" in inspect.signature(backbone.forward).parameters:
            arguments["position_ids"] = position_ids_from_mask(attention_mask)
        hidden = backbone(**arguments).last_hidden_state
        return pool_last_token(hidden, attention_mask)

    def _mean_pooled(
        self, component: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        backbone = getattr(component, component.base_model_prefix)
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        length = mask.sum(1).clamp(min=1)
        # The square root is what sentence-transformers calls `mean_sqrt_len_tokens`.
        return (hidden * mask).sum(1) / (length.sqrt() if self.config.pooling == "mean_sqrt_len" else length)

    def rewards_from_features(self, features: torch.Tensor) -> torch.Tensor:
        """Apply the heads: `(B, 1 or K, D)` from [`~MixtureRewardModel.features`] to rewards `(B, K)`, in float32
        whatever the trunk computes in: differences of rewards say who belongs to which group."""
        if self.config.component_type == "lora" and features.shape[1] > 1:
            # Row k of the head reads what the trunk with adapter k gave.
            return get_linear(self.components[0])(features).diagonal(dim1=1, dim2=2)
        heads = [get_linear(component) for component in self.components]
        return torch.cat([head(features[:, k]) for k, head in enumerate(heads)], dim=-1)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MixtureRewardOutput:
        """Rewards of whole sequences under all components.

        Args:
            input_ids (`torch.Tensor` of shape `(B, T)`): prompt and reply; the reply ends with EOS iff it finished.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 = real token.
            **kwargs: accepted and ignored (`use_cache`, `margin`, ...), as trainers pass them.

        Returns:
            [`MixtureRewardOutput`] with `rewards` of shape `(B, K)`.
        """
        return MixtureRewardOutput(rewards=self.rewards_from_features(self.features(input_ids, attention_mask)))


def _copy_trunk(model: PreTrainedModel, mixture: MixtureRewardModel) -> None:
    trunk = getattr(model, model.base_model_prefix, model).state_dict()
    for component in mixture.components:
        found = getattr(component, component.base_model_prefix).load_state_dict(trunk, strict=False)
        # Of the pooler of BERT and its kin: a language model has none, some classifiers read something else.
        wrong = [key for key in (*found.missing_keys, *found.unexpected_keys) if not key.startswith("pooler.")]
        if wrong:
            raise ValueError(
                f"The {type(model).__name__} does not hold the trunk of a {mixture.config.base_config.model_type}: "
                f"{', '.join(wrong[:5])} without a counterpart. Give the model as transformers loads it, or its name."
            )


def _classifier_on_trunk_of(model: PreTrainedModel, config: MixtureRewardModelConfig) -> PreTrainedModel:
    """A classifier with K rows and new heads on the very trunk of a model in memory."""
    base_config = copy.deepcopy(config.base_config)
    base_config.num_labels = config.num_components
    # On the meta device: the trunk that is replaced in the next line must not be held in memory.
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(base_config)
    prefix = classifier.base_model_prefix
    setattr(classifier, prefix, nn.Identity())
    classifier = classifier.to_empty(device=model.device).to(model.dtype)
    classifier.init_weights()
    setattr(classifier, prefix, getattr(model, model.base_model_prefix, model))
    if not carries_adapters(model):
        # The trunk will be frozen. What else the model has, a language-model head, would go on as trainable under a
        # policy's adapter, which PEFT lets be where there are adapters already.
        model.requires_grad_(False)
    return classifier


def _require_base_in_memory(model: Any, component_type: str) -> None:
    """Raise where a model in memory cannot be the base of components."""
    if not isinstance(model, PreTrainedModel) or (component_type != "lora" and carries_adapters(model)):
        raise ValueError(
            f"The base of a mixture is a name, a folder or a model of transformers without adapters, got a "
            f"{type(model).__name__}{' with adapters' if carries_adapters(model) else ''}. Merge them into it first: "
            "`model.merge_and_unload()`."
        )
    if is_in_shards(model):
        raise ValueError(
            f"The {type(model).__name__} was loaded in shards (DeepSpeed ZeRO-3), and a mixture needs whole weights. "
            "Give its name or folder instead of the model: the mixture then loads a base of its own, whole on each "
            "rank."
        )
    require_finite(model.state_dict(keep_vars=True).items(), "`model`", f"the {type(model).__name__}")


AutoModel.register(MixtureRewardModelConfig, MixtureRewardModel, exist_ok=True)
