# SPDX-License-Identifier: Apache-2.0
"""Functions as sources of rewards, and several sources side by side."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .batch import RewardBatch, RewardSource


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
        self.names = [name or callable_name(function)]
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


def callable_name(function: Callable[..., Any]) -> str:
    """What to call a reward function: its name, that of the function inside a `partial`, or that of its class.

    Example:

    ```python
    >>> callable_name(functools.partial(sorted, reverse=True))
    'sorted'

    ```
    """
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
