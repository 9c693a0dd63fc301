# SPDX-License-Identifier: Apache-2.0
"""Replies, preferences and annotators in; rewards and posteriors out: methods of [`MixtureRewardModel`]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..data.columns import ANNOTATOR_COLUMN, AS_TOKENS, VOTE_SHARE, AnnotatorIndex, without_ties
from ..data.rankings import choices_of, is_ranked, prepare_either
from ..data.texts import distinct_replies, distinct_texts
from ..data.tokenization import ChatOptions, Prompt, asked, encode_reply
from ..functional.em import annotator_log_likelihood, log_responsibilities
from ..functional.preference import preference_log_likelihood as pair_log_likelihood
from ..functional.ranking import RankedChoices
from ..functional.utility import within_prompt_scale
from .outputs import AnnotatorPosterior
from .scoring import SharedRewardFunctions, score_sequences


if TYPE_CHECKING:
    from .modeling_mixture_reward import MixtureRewardModel


def score(
    mixture: MixtureRewardModel,
    prompts: Sequence[Prompt] | None = None,
    completions: Sequence[Prompt] | None = None,
    *,
    prompt_ids: Sequence[Sequence[int]] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    finished: bool | Sequence[bool] = True,
    processing_class: PreTrainedTokenizerBase | None = None,
    chat_options: Sequence[ChatOptions] | None = None,
    batch_size: int = 64,
) -> torch.Tensor:
    """Rewards of replies, given as text or as token ids; the same number either way.

    Args:
        prompts, completions (`Sequence[str]` or of messages, N each): text. It is tokenised as in reward training.
        prompt_ids, completion_ids (`Sequence[Sequence[int]]`, N each): ids without padding, from a tokenizer with
            this model's vocabulary. `completion_ids` hold the stop token iff the reply finished.
        finished (`bool` or N of them, defaults to `True`): for text, whether the reply ended by itself.
        processing_class (`PreTrainedTokenizerBase`, *optional*): tokenizer for text; defaults to the model's own.
        chat_options (`Sequence[dict]`, N, *optional*): for text, what the chat template is given for each row beside
            the messages: `tools`, and keywords such as `enable_thinking`.
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
        tokenizer = _require_tokenizer(mixture, processing_class)
        flags = [finished] * len(completions) if isinstance(finished, bool) else list(finished)
        options = [None] * len(flags) if chat_options is None else chat_options
        rows = zip(prompts or [], completions, flags, options, strict=True)
        sequences = [encode_reply(tokenizer, *row) for row in rows]
    return score_sequences(
        mixture, lambda ids, mask: mixture(ids, mask).rewards, sequences, mixture.num_components, batch_size
    )


def calibrate(
    mixture: MixtureRewardModel,
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
    rewards = (
        mixture.score(
            [prompt for prompt in prompts for _ in range(num_replies)],
            [reply for replies in completions for reply in replies],
            finished=True if finished is None else [flag for flags in finished for flag in flags],
            processing_class=processing_class,
            batch_size=batch_size,
        )
        .cpu()
        .view(len(prompts), num_replies, mixture.num_components)
    )
    mixture.config.reward_scale = within_prompt_scale(rewards).tolist()
    mixture.config.reward_shift = rewards.mean(dim=(0, 1)).tolist()


def assign(
    mixture: MixtureRewardModel,
    preferences: Any,
    *,
    annotator_column: str = ANNOTATOR_COLUMN,
    processing_class: PreTrainedTokenizerBase | None = None,
    batch_size: int = 64,
) -> AnnotatorPosterior:
    """Which component describes annotators who were not in the training data.

    Args:
        preferences (`Dataset`): pairs or rankings with an annotator column, see [`prepare_either`].
        annotator_column (`str`): the column that names the annotator.
        processing_class (`PreTrainedTokenizerBase`, *optional*): defaults to the model's own tokenizer.
        batch_size (`int`): sequences per forward.

    Returns:
        [`AnnotatorPosterior`]: `pi_k exp(evidence_weight * sum_n log p_k(n))` normalised over components, per
        annotator, with `evidence_weight` of the configuration.

    Raises:
        ValueError: as [`prepare_either`] and [`~MixtureRewardModel.score`].
    """
    preferences = prepare_either(preferences, annotator_column)
    if not is_ranked(preferences):
        sequences, rows = _tokenised(mixture, preferences, processing_class)
        sides = ([sequences[row] for row in side] for side in rows.T)
        preferences = without_ties(preferences, *sides, AS_TOKENS)
    evidence = mixture.preference_evidence(preferences, processing_class=processing_class, batch_size=batch_size)
    index = AnnotatorIndex.from_values(preferences[ANNOTATOR_COLUMN])
    rows = torch.tensor(index.encode(preferences[ANNOTATOR_COLUMN]))
    sums = annotator_log_likelihood(evidence, rows, len(index))
    return AnnotatorPosterior(
        index.annotator_ids,
        log_responsibilities(sums, mixture.mixing_weights.log(), mixture.config.evidence_weight).exp(),
        torch.bincount(rows, minlength=len(index)),
    )


def preference_evidence(
    mixture: MixtureRewardModel,
    preferences: Any,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    batch_size: int = 64,
) -> torch.Tensor:
    """What each pair or ranking says of who gave it: its log-likelihood under the rewards as they were fitted.

    A temperature says how sure a reward may be of a reply that nobody judged. How sure pairs make us of a person is
    another question, which `evidence_weight` answers for rewards without temperatures.

    Args:
        preferences, processing_class, batch_size: as in [`~MixtureRewardModel.preference_log_likelihood`].

    Returns:
        `torch.Tensor` of shape `(N, K)`, nats, on the CPU.
    """
    return _log_likelihood(mixture, preferences, processing_class, batch_size, mixture.config.temperatures)


def scored_rankings(
    mixture: MixtureRewardModel,
    rankings: Any,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    batch_size: int = 64,
) -> tuple[torch.Tensor, RankedChoices]:
    """Rewards of the distinct replies of rankings, each scored once, for top-1 accuracy and Kendall's tau.

    Args:
        rankings (`Dataset`): N rows of [`prepare_rankings`].
        processing_class, batch_size: as in [`preference_log_likelihood`].

    Returns:
        `torch.Tensor` of shape `(M, K)`, Bradley-Terry log-odds, on the CPU, and [`RankedChoices`] over them, all of
        annotator 0.
    """
    sequences, rows = _tokenised(mixture, rankings, processing_class)
    rewards = mixture.score(prompt_ids=[[]] * len(sequences), completion_ids=sequences, batch_size=batch_size).cpu()
    return rewards, choices_of(rankings, rows, torch.zeros(len(rows), dtype=torch.long))


def preference_log_likelihood(
    mixture: MixtureRewardModel,
    preferences: Any,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    batch_size: int = 64,
) -> torch.Tensor:
    """Log-likelihood of pairs or rankings under each component; a text that stands in many of them is scored once.

    Args:
        preferences (`Dataset`): N rows of [`prepare_either`].
        processing_class (`PreTrainedTokenizerBase`, *optional*): defaults to the model's own tokenizer.
        batch_size (`int`): sequences per forward.

    Returns:
        `torch.Tensor` of shape `(N, K)`, nats, on the CPU.
    """
    return _log_likelihood(mixture, preferences, processing_class, batch_size)


def _log_likelihood(
    mixture: MixtureRewardModel,
    preferences: Any,
    processing_class: PreTrainedTokenizerBase | None,
    batch_size: int,
    factors: Sequence[float] | None = None,
) -> torch.Tensor:
    """`(N, K)`; rewards are multiplied by K factors."""
    scale = torch.ones(1) if factors is None else torch.tensor(factors)
    if is_ranked(preferences):
        rewards, choices = scored_rankings(
            mixture, preferences, processing_class=processing_class, batch_size=batch_size
        )
        return choices.log_likelihood(rewards * scale)
    sequences, rows = _tokenised(mixture, preferences, processing_class)
    rewards = mixture.score(prompt_ids=[[]] * len(sequences), completion_ids=sequences, batch_size=batch_size).cpu()
    rewards = rewards * scale
    margin, share = (
        torch.tensor(preferences[name][:]) if name in preferences.column_names else None
        for name in ("margin", VOTE_SHARE)
    )
    return pair_log_likelihood(rewards[rows[:, 0]], rewards[rows[:, 1]], margin, share)


def _tokenised(
    mixture: MixtureRewardModel, preferences: Any, processing_class: PreTrainedTokenizerBase | None
) -> tuple[list[list[int]], np.ndarray]:
    """Ids of the M distinct replies behind their prompts, and the rows `(N, n)` of each pair or ranking among them."""
    tokenizer = _require_tokenizer(mixture, processing_class)
    if is_ranked(preferences):
        replies, rows = distinct_replies(asked(preferences), preferences["responses"])
    else:
        replies, rows = distinct_texts(asked(preferences), preferences["chosen"], preferences["rejected"])
    return [encode_reply(tokenizer, prompt, reply, options=options) for (prompt, options), reply in replies], rows


def _require_tokenizer(
    mixture: MixtureRewardModel, processing_class: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    tokenizer = processing_class or mixture.processing_class
    if tokenizer is None:
        raise ValueError(
            "Scoring text needs a tokenizer: pass `processing_class`, or `mixture.attach_tokenizer(tokenizer)`."
        )
    return tokenizer


def reward_functions(
    mixture: MixtureRewardModel, policy_processing_class: PreTrainedTokenizerBase | None = None
) -> list[Callable[..., list[float]]]:
    """K callables in TRL's reward-function convention that share one forward.

    Args:
        policy_processing_class (`PreTrainedTokenizerBase`, *optional*): the policy's tokenizer; needed where its
            vocabulary is not the mixture's.

    Returns:
        `list[Callable]`: pass them as `reward_funcs=` to TRL's trainers. Each is named after its component, takes
        `prompts`, `completions` and `completion_ids` and returns N rewards.
    """
    return SharedRewardFunctions(mixture, policy_processing_class).callables()
