# SPDX-License-Identifier: Apache-2.0
"""Whatever gives rewards - a mixture, a reward model, a function, a list of these - behind one call that returns `(B,
K)`.

A reply is scored as the prompt and the reply up to and including the token that stopped it. Which tokens are real is
said by lengths, never inferred from the pad id: many tokenizers pad with EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.loading import load_tokenizer
from ...models.modeling_mixture_reward import MixtureRewardModel
from .batch import RewardBatch, RewardSource
from .functions import CallableReward, StackedReward, unique_names
from .models import MixtureReward, SequenceClassificationReward


__all__ = [
    "CallableReward",
    "MixtureReward",
    "RewardBatch",
    "RewardSource",
    "SequenceClassificationReward",
    "StackedReward",
    "build_reward_source",
    "unique_names",
]


def build_reward_source(
    reward_model: Any, policy_tokenizer: PreTrainedTokenizerBase | None = None, names: Sequence[str] | None = None
) -> RewardSource:
    """The [`RewardSource`] for whatever a user passes as `reward_model`.

    Args:
        reward_model:
            A [`MixtureRewardModel`], a one-label sequence-classification model, a pair `(model, tokenizer)`, a reward
            function, a [`RewardSource`], a list of these, or a dict of single rewards by the name of their group.
        policy_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer.
        names (`list[str]`, *optional*):
            Names of the columns, instead of the sources' own.

    Returns:
        [`RewardSource`]

    Raises:
        `ValueError`: A model with several labels, an empty list, or `names` that are not one unique name per column.
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
    if tokenizer is None and isinstance(model, PreTrainedModel) and policy_tokenizer is not None:
        tokenizer = _own_tokenizer(model)
    if isinstance(model, MixtureRewardModel):
        return MixtureReward(model, policy_tokenizer, tokenizer)
    if isinstance(model, PreTrainedModel):
        return SequenceClassificationReward(model, policy_tokenizer, tokenizer)
    if callable(reward_model) and not isinstance(reward_model, nn.Module | type):
        return CallableReward(reward_model, policy_tokenizer)
    raise TypeError(
        f"A reward of type {type(reward_model).__name__} cannot score replies. Pass a `MixtureRewardModel`, a "
        "sequence-classification model with one label (loaded, not its name; an adapter merged with "
        "`merge_and_unload()`), a pair `(model, tokenizer)`, a function `f(prompts, completions, **kwargs)`, a list "
        "of these, or a dict of them by group."
    )


def _own_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a reward model that came without: what lies where it was loaded from. Never the policy's: two
    vocabularies of one size give every reply a reward, and a wrong one."""
    attached, name = getattr(model, "processing_class", None), model.config.name_or_path
    if attached is not None:
        return attached
    found = None
    if name:
        try:
            found = load_tokenizer(name, "`reward_model`", optional=True)
        except (OSError, ValueError) as error:
            raise ValueError(_no_tokenizer(model, f" ({error})")) from error
    if found is None:
        raise ValueError(_no_tokenizer(model, f": there is none in {name!r}" if name else ", and has no name"))
    return found


def _no_tokenizer(model: PreTrainedModel, why: str) -> str:
    return (
        f"The reward {type(model).__name__} came without its tokenizer{why}, and nothing shows that it reads the ids "
        "of the policy. Pass the pair `(model, tokenizer)`; with the policy's tokenizer, if that is its own."
    )
