# SPDX-License-Identifier: Apache-2.0
"""A mixture of K reward models that a policy trainer, a Hub repository and a reader can treat as one model."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from transformers.utils import ModelOutput

from ..data.columns import ANNOTATOR_COLUMN, AnnotatorIndex, prepare_preferences
from ..data.tokenization import Prompt, encode_reply, ensure_pad_token
from ..functional.em import annotator_log_likelihood, log_responsibilities
from ..functional.preference import preference_log_likelihood
from ..functional.utility import within_prompt_scale
from .configuration_mixture_reward import MixtureRewardModelConfig
from .families import get_family, get_linear
from .scoring import SharedRewardFunctions, pool_last_token, position_ids_from_mask, score_sequences


LOGITS_REMEDY = (
    "A mixture of reward models has no `.logits`: it returns `.rewards` of shape (B, K), one column per component, "
    "and reading one column would silently serve one group only. Pass `mixture.reward_functions()` as "
    "`reward_funcs`, train with a MaxMin trainer, or use one component: `mixture.component(k)`."
)


@dataclass
class MixtureRewardOutput(ModelOutput):
    """Output of [`MixtureRewardModel`].

    Args:
        rewards (`torch.Tensor` of shape `(B, K)`): reward of each sequence under each component, Bradley-Terry
            log-odds. Differences between two replies to the same prompt have meaning; the level has none.
    """

    rewards: torch.Tensor | None = None

    @property
    def logits(self) -> torch.Tensor:
        """Raises: the error says what to use instead.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(LOGITS_REMEDY)


class AnnotatorPosterior(NamedTuple):
    """Which component describes which annotator.

    Args:
        annotator_ids (`tuple`): H annotators in order of first appearance.
        probabilities (`torch.Tensor` of shape `(H, K)`): posterior of the component given the annotator's pairs.
    """

    annotator_ids: tuple[str | int, ...]
    probabilities: torch.Tensor


class MixtureRewardModel(PreTrainedModel):
    r"""
    K reward components learned from people who disagree.

    Component kinds: `"head"` (one trunk, K heads: one forward scores all) and `"full"` (K models, the paper's
    setting).

    Args:
        config ([`MixtureRewardModelConfig`]): what to build. Use [`~MixtureRewardModel.from_base`] to start from a
            pretrained model.

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

    def __init__(self, config: MixtureRewardModelConfig) -> None:
        super().__init__(config)
        self.family = get_family(config.base_config.model_type)
        one_trunk = config.component_type == "head"
        base_config = copy.deepcopy(config.base_config)
        base_config.num_labels = config.num_components if one_trunk else 1
        self.components = nn.ModuleList(
            AutoModelForSequenceClassification.from_config(copy.deepcopy(base_config))
            for _ in range(1 if one_trunk else config.num_components)
        )
        self.processing_class: PreTrainedTokenizerBase | None = None
        self.post_init()

    @classmethod
    def from_base(
        cls,
        model: str | os.PathLike | PreTrainedModel,
        num_components: int = 2,
        component_type: str = "head",
        component_names: list[str] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> MixtureRewardModel:
        """A mixture whose trunk(s) start from a pretrained model and whose heads are new.

        Args:
            model (`str`, path or `PreTrainedModel`): base model: a language model, an encoder or a sequence classifier
                of a supported family.
            num_components (`int`): K.
            component_type (`str`): `"head"` or `"full"`.
            component_names (`list[str]`, *optional*): K names.
            processing_class (`PreTrainedTokenizerBase`, *optional*): tokenizer. Without one it is loaded from `model`
                when that is a name. It gets a pad token of its own where it has none, and the embedding is resized.
            **kwargs: passed to `from_pretrained` of the base model (`dtype`, `revision`, ...).

        Returns:
            `MixtureRewardModel`

        Raises:
            ValueError: an unsupported family, or a bad `component_type`, K or name list.
        """
        if isinstance(model, (str, os.PathLike)):
            where = {"revision": kwargs["revision"]} if "revision" in kwargs else {}
            # Before the weights: an unsupported family should not be downloaded first.
            get_family(AutoConfig.from_pretrained(model, **where).model_type)
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(model, **where)
            model = AutoModel.from_pretrained(model, **kwargs)
        base_config = copy.deepcopy(model.config)
        base_config.architectures = None
        config = MixtureRewardModelConfig(
            base_config=base_config,
            component_type=component_type,
            num_components=num_components,
            component_names=component_names,
        )
        config.dtype = model.dtype
        mixture = cls(config).to(model.dtype)
        trunk = getattr(model, model.base_model_prefix, model).state_dict()
        for component in mixture.components:
            backbone = getattr(component, component.base_model_prefix)
            backbone.load_state_dict(trunk, strict=False)
        if processing_class is not None:
            mixture.attach_tokenizer(processing_class)
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
    def reward_shift(self) -> torch.Tensor:
        """`(K,)`: mean reward of the reference policy's replies, Bradley-Terry log-odds."""
        return torch.tensor(self.config.reward_shift, dtype=torch.float32)

    @property
    def reward_scale(self) -> torch.Tensor:
        """`(K,)`: spread of the reference policy's rewards within prompts, Bradley-Terry log-odds."""
        return torch.tensor(self.config.reward_scale, dtype=torch.float32)

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the last linear layer of each component reads.

        Args:
            input_ids (`torch.Tensor` of shape `(B, T)`): token ids, padded on either side (encoders: right).
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*): 1 = real token. Padding is never inferred
                from the pad id.

        Returns:
            `torch.Tensor` of shape `(B, 1, D)` for `"head"` components, `(B, K, D)` for `"full"` ones.
        """
        return torch.stack([self._component_features(c, input_ids, attention_mask) for c in self.components], dim=1)

    def _component_features(
        self, component: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
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

    def rewards_from_features(self, features: torch.Tensor) -> torch.Tensor:
        """Apply the heads: `(B, 1 or K, D)` from [`~MixtureRewardModel.features`] to rewards `(B, K)`."""
        heads = [get_linear(component) for component in self.components]
        return torch.cat([head(features[:, k].to(head.weight.dtype)) for k, head in enumerate(heads)], dim=-1)

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

    def component(self, k: int | str) -> PreTrainedModel:
        """One component as a plain one-label sequence-classification model that any tool loads without this package.

        Args:
            k (`int` or `str`): number or name of the component.

        Returns:
            `PreTrainedModel`: a copy whose single logit equals column k of `rewards`, given the mixture's tokenizer.

        Raises:
            ValueError: no such component.
        """
        k = self._component_number(k)
        if self.config.component_type == "full":
            return copy.deepcopy(self.components[k])
        source = self.components[0]
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
            head = get_linear(self.components[0 if self.config.component_type == "head" else k])
            row = k if self.config.component_type == "head" else 0
            for parameter in (head.weight, head.bias):
                if parameter is not None:
                    parameter[row] /= temperature
        self.config.temperatures = [a * float(b) for a, b in zip(self.config.temperatures, temperatures, strict=True)]

    def score(
        self,
        prompts: Sequence[Prompt] | None = None,
        completions: Sequence[Prompt] | None = None,
        *,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        finished: bool | Sequence[bool] = True,
        processing_class: PreTrainedTokenizerBase | None = None,
        batch_size: int = 64,
    ) -> torch.Tensor:
        """Rewards of replies, given as text or as token ids; the same number either way.

        Args:
            prompts, completions (`Sequence[str]` or of messages, N each): text. It is tokenised as in reward training.
            prompt_ids, completion_ids (`Sequence[Sequence[int]]`, N each): ids without padding, from a tokenizer with
                this model's vocabulary. `completion_ids` hold the stop token iff the reply finished.
            finished (`bool` or N of them, defaults to `True`): for text, whether the reply ended by itself.
            processing_class (`PreTrainedTokenizerBase`, *optional*): tokenizer for text; defaults to the model's own.
            batch_size (`int`): sequences per forward; they are sorted by length first.

        Returns:
            `torch.Tensor` of shape `(N, K)`, float32, on the model's device, without gradient.

        Raises:
            ValueError: neither or both forms given, lengths that differ, no tokenizer for text, a sequence longer than
                the model's context.
        """
        if (completions is None) == (completion_ids is None):
            raise ValueError("Give either `prompts` and `completions` (text) or `prompt_ids` and `completion_ids`.")
        if completion_ids is not None:
            sequences = [list(p) + list(c) for p, c in zip(prompt_ids or [], completion_ids, strict=True)]
        else:
            tokenizer = processing_class or self.processing_class
            if tokenizer is None:
                raise ValueError(
                    "Scoring text needs a tokenizer: pass `processing_class`, or "
                    "`mixture.attach_tokenizer(tokenizer)`."
                )
            flags = [finished] * len(completions) if isinstance(finished, bool) else list(finished)
            sequences = [
                encode_reply(tokenizer, prompt, completion, flag)
                for prompt, completion, flag in zip(prompts or [], completions, flags, strict=True)
            ]
        return score_sequences(self, sequences, batch_size)

    def calibrate(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Prompt]],
        *,
        finished: Sequence[Sequence[bool]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        batch_size: int = 64,
    ) -> None:
        """Measure the components on a reference policy's replies, so that their rewards can be compared.

        Sets `reward_shift` (mean over prompts of each prompt's mean) and `reward_scale` (spread within prompts), which
        are saved with the model. A policy trainer measures its own reference policy anyway, prompt by prompt.

        Args:
            prompts (`Sequence[str]` or of messages, P): prompts.
            completions (P sequences of M replies, M at least 4): replies of the reference policy to each.
            finished (P sequences of M `bool`, *optional*): whether each reply ended by itself; default: all.
            processing_class (`PreTrainedTokenizerBase`, *optional*): defaults to the model's own tokenizer.
            batch_size (`int`): sequences per forward.

        Raises:
            ValueError: fewer than four replies to a prompt, numbers of replies that differ, or as
                [`~MixtureRewardModel.score`].
        """
        num_replies = len(completions[0]) if len(completions) else 0
        if len(prompts) != len(completions) or any(len(replies) != num_replies for replies in completions):
            raise ValueError(
                f"Give the same number of replies to each of the {len(prompts)} prompts, got "
                f"{sorted({len(replies) for replies in completions})} for {len(completions)} prompts."
            )
        rewards = self.score(
            [prompt for prompt in prompts for _ in range(num_replies)],
            [reply for replies in completions for reply in replies],
            finished=True if finished is None else [flag for flags in finished for flag in flags],
            processing_class=processing_class,
            batch_size=batch_size,
        ).view(len(prompts), num_replies, self.num_components)
        self.config.reward_scale = within_prompt_scale(rewards).tolist()
        self.config.reward_shift = rewards.mean(dim=(0, 1)).tolist()

    def assign(
        self,
        preferences: Any,
        *,
        annotator_column: str = ANNOTATOR_COLUMN,
        processing_class: PreTrainedTokenizerBase | None = None,
        batch_size: int = 64,
    ) -> AnnotatorPosterior:
        """Which component describes annotators who were not in the training data.

        Args:
            preferences (`Dataset`): preference pairs with an annotator column, see [`prepare_preferences`].
            annotator_column (`str`): the column that names the annotator.
            processing_class (`PreTrainedTokenizerBase`, *optional*): defaults to the model's own tokenizer.
            batch_size (`int`): sequences per forward.

        Returns:
            [`AnnotatorPosterior`]: `pi_k prod_n p_k(n)` normalised over components, per annotator.

        Raises:
            ValueError: as [`prepare_preferences`] and [`~MixtureRewardModel.score`].
        """
        preferences = prepare_preferences(preferences, annotator_column)
        prompts = preferences["prompt"] if "prompt" in preferences.column_names else [""] * len(preferences)
        prompts, count = list(prompts), len(preferences)
        scores = self.score(
            prompts + prompts,
            list(preferences["chosen"]) + list(preferences["rejected"]),
            processing_class=processing_class,
            batch_size=batch_size,
        ).cpu()
        margin = torch.tensor(preferences["margin"]) if "margin" in preferences.column_names else None
        log_likelihood = preference_log_likelihood(scores[:count], scores[count:], margin)
        index = AnnotatorIndex.from_values(preferences[ANNOTATOR_COLUMN])
        rows = torch.tensor(index.encode(preferences[ANNOTATOR_COLUMN]))
        sums = annotator_log_likelihood(log_likelihood, rows, len(index))
        return AnnotatorPosterior(index.annotator_ids, log_responsibilities(sums, self.mixing_weights.log()).exp())

    def reward_functions(
        self, policy_processing_class: PreTrainedTokenizerBase | None = None
    ) -> list[Callable[..., list[float]]]:
        """K callables in TRL's reward-function convention that share one forward.

        Args:
            policy_processing_class (`PreTrainedTokenizerBase`, *optional*): the policy's tokenizer; needed where its
                vocabulary is not the mixture's.

        Returns:
            `list[Callable]`: pass them as `reward_funcs=` to TRL's trainers. Each is named after its component, takes
            `prompts`, `completions` and `completion_ids` and returns N rewards.
        """
        return SharedRewardFunctions(self, policy_processing_class).callables()

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Save weights, config and tokenizer. See `PreTrainedModel.save_pretrained`."""
        result = super().save_pretrained(save_directory, *args, **kwargs)
        if self.processing_class is not None and kwargs.get("is_main_process", True):
            self.processing_class.save_pretrained(save_directory)
        return result

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights, config and, where it was saved beside them, the tokenizer. See `PreTrainedModel`."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        where = {
            k: kwargs[k] for k in ("revision", "token", "cache_dir", "subfolder", "local_files_only") if k in kwargs
        }
        try:
            model.processing_class = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **where)
        except (OSError, ValueError):
            # Weights without a tokenizer are complete: `score` then asks for one.
            model.processing_class = None
        return loaded

    def save_component(self, k: int | str, save_directory: str | os.PathLike) -> None:
        """Save one component with the tokenizer whose pad token is not EOS, so that it pools right wherever it is
        loaded.

        Args:
            k (`int` or `str`): number or name of the component.
            save_directory: folder for `AutoModelForSequenceClassification.from_pretrained`.
        """
        self.component(k).save_pretrained(save_directory)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(save_directory)


AutoModel.register(MixtureRewardModelConfig, MixtureRewardModel, exist_ok=True)
