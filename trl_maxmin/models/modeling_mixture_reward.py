# SPDX-License-Identifier: Apache-2.0
"""A mixture of K reward models that a policy trainer, a Hub repository and a reader can treat as one model.

The class is put together from three parts: this file builds it and runs its forward, `components.py` takes it apart,
saves and loads it, `text_interface.py` scores text and assigns annotators.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data.tokenization import ensure_pad_token
from .components import ComponentsMixin
from .configuration_mixture_reward import MixtureRewardModelConfig
from .families import get_family, get_linear
from .feature_map import RandomFourierFeatures
from .heads import Float32Linear, compute_in_float32
from .lora import (
    active_adapter,
    add_adapters,
    carries_adapters,
    drop_adapters,
    keep_adapter_in_checkpoints,
    resolve_lora_config,
)
from .outputs import AnnotatorPosterior, MixtureRewardOutput
from .pushing import HubMixin
from .quantization import quantization_of
from .scoring import pool_last_token, position_ids_from_mask
from .shards import is_in_shards, whole_weights
from .text_interface import TextInterfaceMixin


__all__ = ["AnnotatorPosterior", "MixtureRewardModel", "MixtureRewardOutput"]


class MixtureRewardModel(HubMixin, ComponentsMixin, TextInterfaceMixin, PreTrainedModel):
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

    def __init__(self, config: MixtureRewardModelConfig, classifier: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.family = get_family(config.base_config.model_type)
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
            ValueError: an unsupported family, a `model` in shards (DeepSpeed ZeRO-3), or a bad `component_type`, K,
                name list or `peft_config`.
        """
        name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
        if isinstance(model, PreTrainedModel) and is_in_shards(model):
            raise ValueError(
                f"The {type(model).__name__} was loaded in shards (DeepSpeed ZeRO-3), and a mixture needs whole "
                "weights. Give its name or folder instead of the model: the mixture then loads a base of its own, "
                "whole on each rank."
            )
        if name is not None:
            where = {"revision": kwargs["revision"]} if kwargs.get("revision") else {}
            # Before the weights: an unsupported family should not be downloaded first.
            base_config = AutoConfig.from_pretrained(name, **where)
            get_family(base_config.model_type)
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(name, **where)
        else:
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
            lora=resolve_lora_config(peft_config, base_config.model_type) if component_type == "lora" else None,
            base_model_name_or_path=name if component_type == "lora" else None,
            base_model_revision=kwargs.get("revision") if component_type == "lora" else None,
        )
        if component_type == "lora":
            mixture = cls._on_shared_base(config, model, **kwargs)
        else:
            mixture = cls._with_copied_trunk(
                config, model if name is None else AutoModel.from_pretrained(name, **kwargs)
            )
        if processing_class is not None:
            mixture.attach_tokenizer(processing_class)
        return mixture

    @classmethod
    def _with_copied_trunk(cls, config: MixtureRewardModelConfig, model: PreTrainedModel) -> MixtureRewardModel:
        config.dtype = model.dtype
        mixture = cls(config).to(model.dtype)
        trunk = getattr(model, model.base_model_prefix, model).state_dict()
        for component in mixture.components:
            backbone = getattr(component, component.base_model_prefix)
            backbone.load_state_dict(trunk, strict=False)
        return mixture

    @classmethod
    def _on_shared_base(
        cls, config: MixtureRewardModelConfig, model: str | os.PathLike | PreTrainedModel, **kwargs: Any
    ) -> MixtureRewardModel:
        if not isinstance(model, PreTrainedModel):
            classifier = AutoModelForSequenceClassification.from_pretrained(
                model, num_labels=config.num_components, **kwargs
            )
        else:
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
                # The trunk will be frozen. What else the model has, a language-model head, would go on as trainable
                # under a policy's adapter, which PEFT lets be where there are adapters already.
                model.requires_grad_(False)
        config.dtype = classifier.dtype
        config.base_quantization = quantization_of(classifier)
        if get_family(config.base_config.model_type).is_decoder:
            # A head is trained at a learning rate that bfloat16 cannot follow.
            get_linear(classifier).float()
        return cls(config, classifier=classifier)

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
        config.component_annotators = None

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
        hidden = backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids_from_mask(attention_mask),
            use_cache=False,
        ).last_hidden_state
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


AutoModel.register(MixtureRewardModelConfig, MixtureRewardModel, exist_ok=True)
