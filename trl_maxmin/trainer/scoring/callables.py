# SPDX-License-Identifier: Apache-2.0
"""Rewards as TRL's trainers want them: one callable for each group, however many of them one model answers.

TRL reads column 0 of a model's logits and feeds it text without the stop token. So models, mixtures among them, go in
as callables that score the ids that were sampled; the callables of one mixture share one forward. The user's own
functions go in as they are: asynchronous ones, `log_metric` and the like stay TRL's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import nn
from transformers import AutoModelForSequenceClassification

from ..._compat import prepare_deepspeed
from ...models.loading import load_config, load_pretrained, load_tokenizer
from ...models.modeling_mixture_reward import MixtureRewardModel
from ...models.scoring import SharedRewardFunctions
from ...models.shards import is_in_shards, whole_weights
from .batch import RewardBatch, RewardSource
from .functions import callable_name, unique_names
from .models import is_scorer
from .sources import build_reward_source


@whole_weights()
def load_reward_model(name: str, argument: str = "`reward_model`") -> Any:
    """A mixture, or a pair of a one-label model and its tokenizer, by what a folder or Hub id holds.

    The base of a LoRA mixture is quantised as it was when the mixture was fitted, on this process's device.
    It is whole on each rank, under DeepSpeed ZeRO-3 too.

    Args:
        name (`str`): folder or Hub id.
        argument (`str`): what the user set, for messages.

    Returns:
        [`MixtureRewardModel`] or `tuple`.

    Raises:
        `ValueError`: weights that are missing (a head, above all), of another shape, NaN or infinite, or no tokenizer;
            see [`load_pretrained`].
        `OSError`: the Hub has no such model, or cannot be reached.
    """
    config, tokenizer = load_config(name, argument), load_tokenizer(name, argument)
    if config.model_type == "mixture_reward":
        # A quantised base cannot be moved later.
        where = {"device_map": {"": PartialState().device}} if config.base_quantization else {}
        return MixtureRewardModel.from_pretrained(name, argument=argument, **where)
    model = load_pretrained(AutoModelForSequenceClassification, name, argument=argument, num_labels=1)
    return model, tokenizer


class SourceFunctions(SharedRewardFunctions):
    """Callables in TRL's convention in front of a [`RewardSource`]: the first asked about a batch scores it for all.

    Args:
        reward_model: what [`build_reward_source`] takes: a mixture, a model, or a pair `(model, tokenizer)`.
    """

    def __init__(self, reward_model: Any) -> None:
        self.reward_model = reward_model
        self.source: RewardSource = build_reward_source(reward_model)
        self.names = list(self.source.names)
        self.policy_processing_class = None
        self.chat_template_kwargs: dict[str, Any] | None = None
        self.num_forwards = 0
        self._key: tuple[Any, ...] | None = None
        self._rewards: torch.Tensor | None = None

    def bind(self, tokenizer: Any, accelerator: Accelerator, chat_template_kwargs: dict[str, Any] | None) -> None:
        """Called when the trainer knows its tokenizer and its device.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): the policy's.
            accelerator ([`~accelerate.Accelerator`]): says where the model goes.
            chat_template_kwargs (`dict`, *optional*): what the policy's prompts are given.
        """
        self.policy_processing_class, self.chat_template_kwargs = tokenizer, chat_template_kwargs
        self.source = build_reward_source(self.reward_model, policy_tokenizer=tokenizer)
        model = self.reward_model[0] if isinstance(self.reward_model, tuple) else self.reward_model
        if isinstance(model, nn.Module) and is_in_shards(model):
            # The user loaded it under ZeRO-3: the engine's hooks gather it layer by layer.
            prepare_deepspeed(model, accelerator)
        else:
            self.source.to(accelerator.device)

    def _score(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]] | None,
        columns: dict[str, Any],
    ) -> torch.Tensor:
        # The trainer adds `prompt_ids` and `finished` to the columns; elsewhere the source falls back on text.
        lists = {name: column for name, column in columns.items() if isinstance(column, list)}
        prompt_ids, finished = lists.pop("prompt_ids", None), lists.pop("finished", None)
        known = self.policy_processing_class is not None and completion_ids is not None
        return self.source(
            RewardBatch(
                prompts=prompts,
                completions=completions,
                prompt_ids=prompt_ids if known else None,
                completion_ids=completion_ids if known else None,
                finished=finished,
                columns=lists,
                chat_template_kwargs=self.chat_template_kwargs,
            )
        )


class RewardCallables:
    """What a user gave as rewards, as the K callables that TRL takes.

    Args:
        reward_funcs:
            A [`MixtureRewardModel`], a one-label model, a pair `(model, tokenizer)`, a folder or Hub id of one of
            these, a function in TRL's convention, a list of these, or a dict of single rewards by the name of their
            group.
        reward_processing_classes (`list`, *optional*):
            Tokenizers of the rewards, as in TRL; `None` for functions and for models that carry their own.

    Attributes:
        functions (`list[Callable]`): K callables.
        names (`list[str]`): K unique names.
        mixing_weights (`torch.Tensor` of shape `(K,)` or `None`): of a mixture that is the only reward.
        source ([`RewardSource`] or `None`): that mixture's.

    Raises:
        `ValueError`: nothing given, a number of tokenizers that differs, a mixture under a name of a dict, or a model
            with several labels.
        `TypeError`: what cannot score replies.
    """

    def __init__(self, reward_funcs: Any, reward_processing_classes: Any = None) -> None:
        given_names: list[str] | None = None
        if isinstance(reward_funcs, dict):
            given_names, reward_funcs = list(reward_funcs), list(reward_funcs.values())
        entries = list(reward_funcs) if isinstance(reward_funcs, list) else [reward_funcs]
        tokenizers = reward_processing_classes
        tokenizers = [None] * len(entries) if tokenizers is None else tokenizers
        tokenizers = tokenizers if isinstance(tokenizers, list) else [tokenizers]
        if len(tokenizers) != len(entries):
            raise ValueError(
                f"There are {len(tokenizers)} `reward_processing_classes` for {len(entries)} rewards; give one each, "
                "None for functions."
            )
        self.functions: list[Callable] = []
        self.shared: list[SourceFunctions] = []
        names: list[str] = []
        for entry, tokenizer in zip(entries, tokenizers, strict=True):
            functions, own_names = self._expand(entry, tokenizer)
            self.functions += functions
            names += own_names
        if given_names is not None and len(given_names) != len(names):
            raise ValueError(
                f"The rewards {given_names} have {len(names)} columns; a mixture names its components itself: give it "
                "alone or in a list, and set `mixture.config.component_names`."
            )
        self.names = unique_names(names) if given_names is None else given_names
        alone = len(entries) == 1 and len(self.shared) == 1
        self.source = self.shared[0].source if alone else None
        self.mixing_weights = self.source.mixing_weights if self.source is not None else None

    def _expand(self, entry: Any, tokenizer: Any) -> tuple[list[Callable], list[str]]:
        if isinstance(entry, str):
            entry = load_reward_model(entry, "`reward_funcs`")
        model = entry[0] if isinstance(entry, tuple) else entry
        if isinstance(model, RewardSource) or is_scorer(model):
            pair = (model, tokenizer) if tokenizer is not None and not isinstance(entry, tuple) else entry
            shared = SourceFunctions(pair)
            self.shared.append(shared)
            return shared.callables(), shared.names
        build_reward_source(entry)  # raises where it is no reward
        return [entry], [callable_name(entry)]

    def bind(self, tokenizer: Any, accelerator: Accelerator, chat_template_kwargs: dict[str, Any] | None) -> None:
        """See [`SourceFunctions.bind`]."""
        for shared in self.shared:
            shared.bind(tokenizer, accelerator, chat_template_kwargs)
