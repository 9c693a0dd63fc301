# SPDX-License-Identifier: Apache-2.0
"""Whatever gives rewards - a mixture, a reward model, a function, a list of these - behind one call that returns `(B,
K)`.

A reply is scored as the prompt and the reply up to and including the token that stopped it. Which tokens are real is
said by lengths, never inferred from the pad id: many tokenizers pad with EOS.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenization import encode_reply, same_vocabulary
from ..models.modeling_mixture_reward import MixtureRewardModel
from ..models.scoring import context_length, pad_sequences, pool_last_token


Text = str | list[dict[str, Any]]


@dataclass
class RewardBatch:
    """Replies to be scored, as text, as ids, or as both; every list has one entry per reply.

    Args:
        prompts (`list[str]` or `list[list[dict]]`, *optional*):
            Prompts as text or messages.
        completions (`list[str]` or `list[list[dict]]`, *optional*):
            Replies as text or messages, without special tokens.
        prompt_ids (`list[list[int]]`, *optional*):
            Prompts in the policy's vocabulary, without padding.
        completion_ids (`list[list[int]]`, *optional*):
            Replies in the policy's vocabulary, without padding; they end with the stop token iff the reply finished.
        finished (`list[bool]`, *optional*):
            Whether each reply ended by itself. Default: read from the ids where there are some, else True.
        columns (`dict[str, list]`, *optional*):
            Other columns of the data set, handed to reward functions.

    Raises:
        `ValueError`: Neither text nor ids of the replies, or lists of different lengths.

    Example:

    ```python
    >>> batch = RewardBatch(prompts=["Hi", "Hi"], completions=[" there", " you"], columns={"group": ["a", "b"]})
    >>> len(batch)
    2

    ```
    """

    prompts: list[Text] | None = None
    completions: list[Text] | None = None
    prompt_ids: list[list[int]] | None = None
    completion_ids: list[list[int]] | None = None
    finished: list[bool] | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.completions is None and self.completion_ids is None:
            raise ValueError("A `RewardBatch` needs `completions` (text) or `completion_ids`; both are None.")
        own = ("prompts", "completions", "prompt_ids", "completion_ids", "finished")
        lengths = {name: len(getattr(self, name)) for name in own if getattr(self, name) is not None}
        lengths |= {f"columns[{name!r}]": len(v) for name, v in self.columns.items() if isinstance(v, list)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"A `RewardBatch` needs one entry per reply in every list; the lengths are {lengths}.")

    def __len__(self) -> int:
        return len(self.completions if self.completions is not None else self.completion_ids)

    def as_text(self, tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[Text], list[Text], list[bool]]:
        """Prompts, replies and whether each reply finished, decoded from the ids where there is no text.

        Args:
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                The policy's. Needed where text is missing.

        Returns:
            `tuple`: prompts, completions, finished; N each.

        Raises:
            `ValueError`: Text is missing and so is the tokenizer, or the prompts are missing in both forms.
        """
        prompts = self._decoded("prompts", self.prompts, self.prompt_ids, tokenizer)
        completions = self._decoded("completions", self.completions, self.completion_ids, tokenizer)
        finished = self.finished
        if finished is None and self.completion_ids is not None and tokenizer is not None:
            finished = [bool(ids) and ids[-1] == tokenizer.eos_token_id for ids in self.completion_ids]
        return prompts, completions, [True] * len(self) if finished is None else list(finished)

    @staticmethod
    def _decoded(
        name: str, text: list[Text] | None, ids: list[list[int]] | None, tokenizer: PreTrainedTokenizerBase | None
    ) -> list[Text]:
        if text is not None:
            return text
        if ids is None or tokenizer is None:
            raise ValueError(
                f"This reward reads text, but `{name}` is None and cannot be decoded: "
                f"{'there are no ids' if ids is None else 'the tokenizer of the policy is unknown'}. Give the text, "
                "or ids and `policy_tokenizer`."
            )
        return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class RewardSource(ABC):
    """Anything that scores a [`RewardBatch`].

    Attributes:
        names (`list[str]`): K unique names, in the order of the columns.
        mixing_weights (`torch.Tensor` of shape `(K,)` or `None`): share of annotators behind each column, where known.
    """

    names: list[str]
    mixing_weights: torch.Tensor | None = None

    @abstractmethod
    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        """Score the replies of this rank.

        Args:
            batch ([`RewardBatch`]): B replies.

        Returns:
            `torch.Tensor` of shape `(B, K)`, float32, without gradient; NaN = not scored.
        """

    @property
    def num_components(self) -> int:
        """K, the number of columns."""
        return len(self.names)

    def to(self, device: torch.device | str) -> RewardSource:
        """Move models to `device` and return rewards there from now on. Returns the source itself."""
        return self


class MixtureReward(RewardSource):
    """All K components of a mixture in one pass.

    Args:
        mixture ([`MixtureRewardModel`]):
            The mixture.
        policy_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer. Ids are passed on as they are where both vocabularies agree (and where nothing is
            known about either); otherwise the text is tokenised again.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The mixture's tokenizer, if not its own.
        batch_size (`int`, *optional*, defaults to 64):
            Replies per forward.
    """

    def __init__(
        self,
        mixture: MixtureRewardModel,
        policy_tokenizer: PreTrainedTokenizerBase | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        batch_size: int = 64,
    ) -> None:
        self.mixture = mixture
        self.policy_tokenizer = policy_tokenizer
        self.processing_class = processing_class or mixture.processing_class
        self.batch_size = batch_size
        self.names = list(mixture.component_names)
        self.mixing_weights = mixture.mixing_weights
        # An encoder frames its text with special tokens that ids of a policy do not have.
        frames = self.processing_class is not None and not mixture.family.is_decoder
        self._reads_ids = not frames and same_vocabulary(policy_tokenizer, self.processing_class)

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        """Score the replies, see [`RewardSource`]."""
        if batch.completion_ids is not None and batch.prompt_ids is not None and self._reads_ids:
            return self.mixture.score(
                prompt_ids=batch.prompt_ids, completion_ids=batch.completion_ids, batch_size=self.batch_size
            )
        prompts, completions, finished = batch.as_text(self.policy_tokenizer)
        return self.mixture.score(
            prompts,
            completions,
            finished=finished,
            processing_class=self.processing_class,
            batch_size=self.batch_size,
        )

    def to(self, device: torch.device | str) -> MixtureReward:
        """See [`RewardSource`]."""
        _move(self.mixture, device)
        return self


class SequenceClassificationReward(RewardSource):
    """One plain reward model: a sequence classifier with a single label.

    A decoder's reward is read at the last token of the reply. Its own forward would look for the last token that is
    not the pad token instead, and read one token early wherever the tokenizer pads with EOS.

    Args:
        model (`PreTrainedModel`):
            A model with `config.num_labels == 1`: a decoder with a `score` layer, or an encoder.
        policy_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The model's tokenizer. Without one the model is taken to share the policy's vocabulary.
        name (`str`, *optional*):
            Name of the column. Default: last part of the name that the model was loaded by, or `"reward"`.
        batch_size (`int`, *optional*, defaults to 64):
            Replies per forward; they are sorted by length first.

    Raises:
        `ValueError`: More than one label, an encoder-decoder model, or (when called) a sequence that the model cannot
            read: empty, longer than its context, or with ids beyond its vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        policy_tokenizer: PreTrainedTokenizerBase | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        name: str | None = None,
        batch_size: int = 64,
    ) -> None:
        if model.config.num_labels != 1:
            raise ValueError(
                f"{type(model).__name__} has {model.config.num_labels} labels, but a reward model has 1. For several "
                "rewards pass a `MixtureRewardModel`, or a list of one-label models or functions."
            )
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(
                f"{type(model).__name__} is an encoder-decoder model, which pools at an EOS that a truncated reply "
                "does not have. Use a decoder or an encoder, or wrap the model in a reward function."
            )
        self.model = model
        self.policy_tokenizer = policy_tokenizer
        self.processing_class = processing_class
        self.batch_size = batch_size
        self.names = [name or str(model.config.name_or_path or "reward").rstrip("/").split("/")[-1]]
        # An encoder frames its text with special tokens that ids of a policy do not have.
        frames = processing_class is not None and not hasattr(model, "score")
        self._reads_ids = not frames and same_vocabulary(policy_tokenizer, processing_class)

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        """Score the replies, see [`RewardSource`]."""
        sequences = self._sequences(batch)
        self._require_readable(sequences)
        rewards = torch.zeros(len(sequences), 1, dtype=torch.float32, device=self.model.device)
        order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
        was_training = self.model.training
        self.model.eval()
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            rewards[rows] = self._forward([sequences[row] for row in rows])
        self.model.train(was_training)
        return rewards

    def to(self, device: torch.device | str) -> SequenceClassificationReward:
        """See [`RewardSource`]."""
        _move(self.model, device)
        return self

    def _sequences(self, batch: RewardBatch) -> list[list[int]]:
        if batch.prompt_ids is not None and batch.completion_ids is not None and self._reads_ids:
            return [list(p) + list(c) for p, c in zip(batch.prompt_ids, batch.completion_ids, strict=True)]
        tokenizer = self.processing_class or self.policy_tokenizer
        if tokenizer is None:
            raise ValueError(
                f"{type(self.model).__name__} was given text but no tokenizer; pass the reward model as a pair "
                "`(model, tokenizer)`."
            )
        return [
            encode_reply(tokenizer, prompt, completion, ended)
            for prompt, completion, ended in zip(*batch.as_text(self.policy_tokenizer), strict=True)
        ]

    def _require_readable(self, sequences: list[list[int]]) -> None:
        limit = context_length(self.model.config)
        vocabulary = self.model.get_input_embeddings().num_embeddings
        for row, ids in enumerate(sequences):
            if not ids or (limit is not None and len(ids) > limit):
                raise ValueError(
                    f"Reply {row} has {len(ids)} tokens with its prompt, but {type(self.model).__name__} reads 1 to "
                    f"{limit}; shorten the prompts or the replies."
                )
            if max(ids) >= vocabulary:
                raise ValueError(
                    f"Reply {row} has the token id {max(ids)}, but {type(self.model).__name__} knows ids below "
                    f"{vocabulary}. If it has another tokenizer, pass the pair `(model, tokenizer)`."
                )

    @torch.no_grad()
    def _forward(self, sequences: list[list[int]]) -> torch.Tensor:
        pad_token_id = self.model.config.get_text_config().pad_token_id or 0
        input_ids, attention_mask = (t.to(self.model.device) for t in pad_sequences(sequences, pad_token_id))
        head = getattr(self.model, "score", None)
        if head is None:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :1].float()
        backbone = getattr(self.model, self.model.base_model_prefix)
        # Padding is on the right: the default positions are those of the real tokens.
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        pooled = pool_last_token(hidden, attention_mask)
        return head(pooled.to(next(head.parameters()).dtype)).float()


class CallableReward(RewardSource):
    """A reward function in TRL's convention.

    Args:
        function (`Callable`):
            Called as `function(prompts=, completions=, completion_ids=, **columns)`; returns one number per reply,
            None where it does not apply. May be asynchronous.
        policy_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer, to decode ids where the batch has no text.
        name (`str`, *optional*):
            Name of the column. Default: the function's own.

    Raises:
        `ValueError`: (when called) a result of the wrong length, or with an entry that is not a number.

    Example:

    ```python
    >>> def brevity(completions, **kwargs):
    ...     return [-float(len(text.split())) for text in completions]
    >>> CallableReward(brevity)(RewardBatch(prompts=["Hi", "Hi"], completions=["well met", "yes"]))
    tensor([[-2.],
            [-1.]])

    ```
    """

    def __init__(
        self,
        function: Callable[..., Any],
        policy_tokenizer: PreTrainedTokenizerBase | None = None,
        name: str | None = None,
    ) -> None:
        self.function = function
        self.policy_tokenizer = policy_tokenizer
        self.names = [name or _function_name(function)]
        self.device = torch.device("cpu")

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        """Score the replies, see [`RewardSource`]."""
        result = self.start(batch)
        return self.finish(_run([result])[0] if inspect.isawaitable(result) else result, batch)

    def start(self, batch: RewardBatch) -> Any:
        """Call the function: its result, or for an asynchronous one an awaitable of it."""
        prompts, completions, _ = batch.as_text(self.policy_tokenizer)
        arguments = {**batch.columns, "prompts": prompts, "completions": completions}
        return self.function(**arguments, completion_ids=batch.completion_ids)

    def finish(self, result: Any, batch: RewardBatch) -> torch.Tensor:
        """Turn a result of the function into a column `(B, 1)`, with NaN for None."""
        values = result.tolist() if hasattr(result, "tolist") else result
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(batch):
            shown = f"{len(values)} values" if isinstance(values, Sequence) else repr(values)
            raise ValueError(
                f"The reward function {self.names[0]!r} returned {shown} for {len(batch)} replies; return a list with "
                "one number per reply, or None for a reply that it does not score."
            )
        try:
            column = [float("nan") if value is None else float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The reward function {self.names[0]!r} returned an entry that is not a number ({error}); return one "
                "number per reply. For several rewards pass a list of functions."
            ) from error
        return torch.tensor(column, dtype=torch.float32, device=self.device).unsqueeze(1)

    def to(self, device: torch.device | str) -> CallableReward:
        """See [`RewardSource`]."""
        self.device = torch.device(device)
        return self


class StackedReward(RewardSource):
    """Several sources side by side. Asynchronous functions among them wait together.

    Args:
        sources (`list[RewardSource]`):
            At least one. A name that is taken gets a number: `reward`, `reward_2`.

    Raises:
        `ValueError`: No sources.
    """

    def __init__(self, sources: Sequence[RewardSource]) -> None:
        if not sources:
            raise ValueError("The list of rewards is empty, but at least one reward is needed.")
        self.sources = list(sources)
        self.names = unique_names([name for source in self.sources for name in source.names])
        self.device: torch.device | None = None

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        """Score the replies, see [`RewardSource`]."""
        waiting, columns = {}, []
        for index, source in enumerate(self.sources):
            result = source.start(batch) if isinstance(source, CallableReward) else source(batch)
            if inspect.isawaitable(result):
                waiting[index] = result
            columns.append(result)
        for index, result in zip(waiting, _run(list(waiting.values())), strict=True):
            columns[index] = result
        rewards = [
            source.finish(column, batch) if isinstance(source, CallableReward) else column
            for source, column in zip(self.sources, columns, strict=True)
        ]
        device = rewards[0].device if self.device is None else self.device
        return torch.cat([column.to(device) for column in rewards], dim=1)

    def to(self, device: torch.device | str) -> StackedReward:
        """See [`RewardSource`]."""
        self.device = torch.device(device)
        for source in self.sources:
            source.to(device)
        return self


def build_reward_source(
    reward_model: Any, policy_tokenizer: PreTrainedTokenizerBase | None = None, names: Sequence[str] | None = None
) -> RewardSource:
    """The [`RewardSource`] for whatever a user passes as `reward_model`.

    Args:
        reward_model:
            A [`MixtureRewardModel`], a one-label sequence-classification model, a pair `(model, tokenizer)`, a reward
            function, a [`RewardSource`], or a list of these.
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
    source = _build(reward_model, policy_tokenizer)
    if names is not None:
        if len(names) != source.num_components or len(set(names)) != len(names):
            raise ValueError(
                f"`names` is {list(names)}, but {source.num_components} unique names are needed, in the order of "
                f"{source.names}."
            )
        source.names = list(names)
    return source


def unique_names(names: Sequence[str]) -> list[str]:
    """Number the names that are taken.

    Example:

    ```python
    >>> unique_names(["helpful", "short", "short"])
    ['helpful', 'short', 'short_2']

    ```
    """
    result: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in result:
            number += 1
            candidate = f"{name}_{number}"
        result.append(candidate)
    return result


def _build(reward_model: Any, policy_tokenizer: PreTrainedTokenizerBase | None) -> RewardSource:
    if isinstance(reward_model, RewardSource):
        return reward_model
    if isinstance(reward_model, list):
        sources = [_build(entry, policy_tokenizer) for entry in reward_model]
        return sources[0] if len(sources) == 1 else StackedReward(sources)
    is_pair = isinstance(reward_model, tuple) and len(reward_model) == 2
    model, tokenizer = reward_model if is_pair else (reward_model, None)
    if isinstance(model, MixtureRewardModel):
        return MixtureReward(model, policy_tokenizer, tokenizer)
    if isinstance(model, PreTrainedModel):
        return SequenceClassificationReward(model, policy_tokenizer, tokenizer)
    if callable(reward_model) and not isinstance(reward_model, nn.Module | type):
        return CallableReward(reward_model, policy_tokenizer)
    raise TypeError(
        f"A reward of type {type(reward_model).__name__} cannot score replies. Pass a `MixtureRewardModel`, a "
        "sequence-classification model with one label (loaded, not its name; an adapter merged with "
        "`merge_and_unload()`), a pair `(model, tokenizer)`, a function `f(prompts, completions, **kwargs)`, or a "
        "list of these."
    )


def _move(model: PreTrainedModel, device: torch.device | str) -> None:
    # Quantised and dispatched models were placed when they were loaded and refuse to move.
    if not getattr(model, "is_quantized", False) and getattr(model, "hf_device_map", None) is None:
        model.to(device)


def _function_name(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _run(awaitables: list[Any]) -> list[Any]:
    """Wait for all of them, also where an event loop is already running in this thread (a notebook)."""
    if not awaitables:
        return []

    async def gather() -> list[Any]:
        return await asyncio.gather(*awaitables)

    def run(coroutine: Coroutine) -> list[Any]:
        return asyncio.run(coroutine)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run(gather())
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(run, gather()).result()
