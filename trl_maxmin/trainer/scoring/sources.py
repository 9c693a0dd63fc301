# SPDX-License-Identifier: Apache-2.0
"""Whatever gives rewards - a mixture, a reward model, a function, a list of these - behind one call that returns `(B,
K)`.

A reply is scored as the prompt and the reply up to and including the token that stopped it. Which tokens are real is
said by lengths, never inferred from the pad id: many tokenizers pad with EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.base import base_model
from ...models.loading import load_tokenizer
from ...models.modeling_mixture_reward import MixtureRewardModel
from .batch import RewardBatch, RewardSource, refuse_infinite
from .functions import CallableReward, StackedReward, unique_names
from .models import MixtureReward, SequenceClassificationReward, is_scorer


__all__ = [
    "CallableReward",
    "MixtureReward",
    "RewardBatch",
    "RewardSource",
    "SequenceClassificationReward",
    "StackedReward",
    "build_reward_source",
    "models_of",
    "refuse_infinite",
    "unique_names",
]


def build_reward_source(
    reward_model: Any, policy_tokenizer: PreTrainedTokenizerBase | None = None, names: Sequence[str] | None = None
) -> RewardSource:
    """The [`RewardSource`] for whatever a user passes as `reward_model`.

    Args:
        reward_model:
            A [`MixtureRewardModel`], a one-label sequence-classification model (with its tokenizer in the folder that
            it was loaded from, or as its attribute `processing_class`), a pair `(model, tokenizer)`, a reward
            function, a [`RewardSource`], a list of these, or a dict of single rewards by the name of their group.
        policy_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer.
        names (`list[str]`, *optional*):
            Names of the columns, instead of the sources' own.

    Returns:
        [`RewardSource`]

    Raises:
        `ValueError`: A model with several labels, a model without its tokenizer, an empty list, or `names` that are
            not one unique name per column.
        `TypeError`: Anything else that cannot score replies.

    Example:

    ```python
    >>> def brevity(completions, **kwargs):
    ...     return [-float(len(text)) for text in completions]
    >>> build_reward_source([brevity, brevity]).names
    ['brevity', 'brevity_2']

    ```
    """
    if isinstance(reward_model, dict):
        names, reward_model = list(reward_model) if names is None else names, list(reward_model.values())
    source = _build(reward_model, policy_tokenizer)
    if names is not None:
        if len(names) != source.num_components or len(set(names)) != len(names):
            raise ValueError(
                f"`names` is {list(names)}, but {source.num_components} unique names are needed, in the order of "
                f"{source.names}."
            )
        source.names = list(names)
    return source


def _build(reward_model: Any, policy_tokenizer: PreTrainedTokenizerBase | None) -> RewardSource:
    if isinstance(reward_model, RewardSource):
        return reward_model
    if isinstance(reward_model, list):
        sources = [_build(entry, policy_tokenizer) for entry in reward_model]
        return sources[0] if len(sources) == 1 else StackedReward(sources)
    is_pair = isinstance(reward_model, tuple) and len(reward_model) == 2
    model, tokenizer = reward_model if is_pair else (reward_model, None)
    if tokenizer is None and isinstance(model, PreTrainedModel | PeftModel) and policy_tokenizer is not None:
        tokenizer = _own_tokenizer(model)
    if isinstance(model, MixtureRewardModel):
        return MixtureReward(model, policy_tokenizer, tokenizer)
    if is_scorer(model):
        return SequenceClassificationReward(model, policy_tokenizer, tokenizer)
    if callable(reward_model) and not isinstance(reward_model, nn.Module | type):
        return CallableReward(reward_model, policy_tokenizer)
    raise TypeError(
        f"A reward of type {type(reward_model).__name__} cannot score replies. Pass a `MixtureRewardModel`, a "
        "sequence-classification model with one label (loaded, not its name; with or without an adapter), a module "
        "with a `score` layer and the name of its trunk in `base_model_prefix`, a pair `(model, tokenizer)`, a "
        "function `f(prompts, completions, **kwargs)`, a list of these, or a dict of them by group."
    )


def _own_tokenizer(model: PreTrainedModel | PeftModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a reward model that came without: what lies where it was loaded from. Two vocabularies of one
    size give every reply a reward, and a wrong one, so the policy's is never taken by chance.

    Raises:
        `ValueError`: there is none.
    """
    attached, name = getattr(model, "processing_class", None), base_model(model).config.name_or_path
    if attached is not None:
        return attached
    found, where = None, f"there is none in {name!r}" if name else "it was loaded from nowhere"
    try:
        found = load_tokenizer(name, "`reward_model`", optional=True) if name else None
    except (OSError, ValueError) as error:  # a folder that has gone, a Hub id that nobody answers for, a broken file
        where = str(error).rstrip(".")
    if found is None:
        raise ValueError(
            f"The reward {type(model).__name__} came without its tokenizer: {where}, and nothing shows that it reads "
            "the ids of the policy. Pass the pair `(model, tokenizer)`; with the policy's tokenizer, if that is its "
            "own."
        )
    return found


def models_of(source: RewardSource) -> list[nn.Module]:
    """The models that a source holds; those inside users' functions are theirs.

    Args:
        source ([`RewardSource`]): of [`build_reward_source`].

    Returns:
        `list[nn.Module]`
    """
    parts = [source, *getattr(source, "sources", ())]
    return [value for part in parts for value in vars(part).values() if isinstance(value, nn.Module)]
