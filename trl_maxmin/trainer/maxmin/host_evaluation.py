# SPDX-License-Identifier: Apache-2.0
"""An evaluation of TRL's GRPO and RLOO as one set of rows, whatever its batches and ranks.

TRL measures each batch and takes the mean of the batches, though the last one may be smaller, rows from the beginning
fill it up so that all ranks have as many, and a minimum, a spread or a mean over tokens is no mean over batches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from ...distributed import gather_rows, sum_over_ranks


# Of these losses TRL takes the mean over the tokens of a batch, of the others the mean over its rows.
TOKEN_LOSSES = ("bnpo", "dapo", "cispo", "vespo")
# Of the rest TRL logs one number a batch; some of them are no mean.
_EXTREME = re.compile(r"(?:^|[/_])(min|max)(?:_|$)")


def masked_std(values: torch.Tensor) -> torch.Tensor:
    """Spread of the known values of each column, with `n - 1`; NaN where there are fewer than two.

    Args:
        values (`torch.Tensor` of shape `(N, ...)`): NaN: not known.

    Returns:
        `torch.Tensor` of shape `(...)`.

    Example:

    >>> masked_std(torch.tensor([1.0, 3.0, float("nan")]))
    tensor(1.4142)
    """
    count = (~values.isnan()).sum(dim=0)
    squares = (values - values.nanmean(dim=0)).square().nansum(dim=0)
    return torch.where(count > 1, squares / (count - 1).clamp_min(1), torch.nan).sqrt()


class HostEvaluation:
    """What one evaluation adds up. Rows of a batch are those of all ranks in their order, so that the rows which fill
    up the last batches are the last of all.

    Args:
        accelerator ([`~accelerate.Accelerator`]): the trainer's.
        num_rows (`int` or `inf`): replies of the whole set; what comes behind is a repetition.
        group (`int`): replies to one prompt, which are neighbours.
        token_loss (`bool`): whether the host's loss is a mean over tokens.
        kl_in_reward (`bool`): whether the host takes the KL of a reply off its reward (RLOO), and measures it by
            `log pi - log ref`; otherwise (GRPO) by Schulman's `r - log r - 1`.
    """

    def __init__(
        self, accelerator: Accelerator, num_rows: float, group: int, token_loss: bool, kl_in_reward: bool
    ) -> None:
        self.accelerator = accelerator
        self.num_rows, self.group = num_rows, group
        self.token_loss, self.kl_in_reward = token_loss, kl_in_reward
        self.reference: torch.Tensor | None = None  # log-probabilities `(B, T)` of the batch that is worked on
        self._columns: dict[str, list[torch.Tensor]] = {}
        self._own: torch.Tensor | None = None
        self._loss = torch.zeros(2, dtype=torch.float64)
        self._seen = 0
        self._counts: list[int] = []

    def add_replies(self, lengths: list[int], finished: list[bool]) -> None:
        """Begin with a batch: tokens of this rank's replies, and whether each ended by itself."""
        size = len(lengths)
        first = self._seen + self.accelerator.process_index * size
        self._own = torch.arange(first, first + size, device=self.accelerator.device) < self.num_rows
        total = size * self.accelerator.num_processes
        self._counts.append(int(min(max(self.num_rows - self._seen, 0), total)))
        self._seen += total
        self._gather(lengths=torch.tensor(lengths), finished=torch.tensor(finished))

    def add_rewards(self, **columns: torch.Tensor) -> None:
        """What the replies earned: columns `(N, K)` of all ranks."""
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values.detach().cpu().double())

    def without_repetitions(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch whose repeated rows have no tokens and no advantage, for the host's loss."""
        own, inputs = self._own, dict(inputs)
        inputs["completion_mask"] = inputs["completion_mask"] * own[:, None]
        inputs["advantages"] = (inputs["advantages"].T * own).T
        if "old_logps" in inputs:
            inputs["old_logps"] = torch.where(own, inputs["old_logps"], 0.0)
        if "num_items_in_batch" in inputs:
            # TRL divides by what is the share of one rank, so this makes it the mean over this rank's tokens.
            inputs["num_items_in_batch"] = _token_mask(inputs).sum().clamp(min=1) * self.accelerator.num_processes
        return inputs

    def add_loss(
        self, loss: torch.Tensor, inputs: Mapping[str, Any], policy: tuple[torch.Tensor, torch.Tensor | None] | None
    ) -> None:
        """The host's loss of [`~HostEvaluation.without_repetitions`], and what the policy said of its tokens.

        Args:
            loss (`torch.Tensor`): a number.
            inputs (`dict`): the batch.
            policy (`tuple`, *optional*): log-probabilities and entropies `(B, T)`; the host may not tell.
        """
        mask = _token_mask(inputs)
        size, own = (mask.sum(),) * 2 if self.token_loss else (len(mask), self._own.sum())
        self._loss += torch.tensor([float(loss) * float(size), float(own)], dtype=torch.float64)
        if policy is None:
            return
        logprobs, entropies = policy
        sums = {"tokens": mask, "entropy": entropies}
        if self.reference is not None:
            ratio = self.reference - logprobs
            sums["kl"] = -ratio if self.kl_in_reward else ratio.exp() - ratio - 1
        self._gather(**{name: (values * mask).sum(1) for name, values in sums.items() if values is not None})

    def _gather(self, **columns: torch.Tensor) -> None:
        for name, values in columns.items():
            values = values.to(self.accelerator.device, torch.float32)
            self._columns.setdefault(name, []).append(gather_rows(self.accelerator, values).cpu().double())

    def column(self, name: str) -> torch.Tensor | None:
        """What is known of each row, float64 on the CPU, without repetitions."""
        parts = self._columns.get(name)
        if parts is None:
            return None
        whole = torch.cat(parts)
        return whole[: min(len(whole), self.num_rows)]

    def loss(self) -> float:
        """Mean over the tokens or the rows of all ranks."""
        total, weight = sum_over_ranks(self.accelerator, self._loss).tolist()
        return total / weight if weight else math.nan

    def metrics(self, names: list[str], weights: torch.Tensor, beta: float, own_lengths: bool) -> dict[str, float]:
        """By the names of TRL.

        Args:
            names (`list[str]`): of the K rewards.
            weights (`torch.Tensor` of shape `(K,)`): what each counts.
            beta (`float`): what a nat of KL costs.
            own_lengths (`bool`): whether a reply is all that was generated, without the answers of tools.
        """
        rewards, optimised = self.column("rewards"), self.column("optimised")
        weighed = (optimised * weights.cpu().double()).nansum(1)
        weighed = torch.where(optimised.isnan().all(1), torch.nan, weighed)
        found = {f"rewards/{name}/mean": m for name, m in zip(names, rewards.nanmean(0).tolist(), strict=True)}
        found |= {f"rewards/{name}/std": s for name, s in zip(names, masked_std(rewards).tolist(), strict=True)}
        found |= {"reward": weighed.nanmean().item(), "reward_std": masked_std(weighed).item()}
        kl, tokens = self.column("kl"), self.column("tokens")
        paid = weighed - beta * kl if self.kl_in_reward and kl is not None else weighed
        spread = masked_std(paid.unfold(0, self.group, self.group).T) if self.group > 1 else torch.zeros_like(paid)
        found["frac_reward_zero_std"] = (spread.abs() <= 1e-8).double().mean().item()
        for name in ("kl", "entropy"):
            if (values := self.column(name)) is not None:
                found[name] = (values.sum() / tokens.sum().clamp(min=1)).item()
        if own_lengths:
            found |= self._lengths()
        return {name: value for name, value in found.items() if value == value}

    def _lengths(self) -> dict[str, float]:
        lengths, finished = self.column("lengths"), self.column("finished").bool()
        found = {"completions/clipped_ratio": 1 - finished.double().mean().item()}
        terminated = lengths[finished] if finished.any() else torch.zeros(1)
        for kind, values in (("length", lengths), ("terminated_length", terminated)):
            for name in ("mean", "min", "max"):
                found[f"completions/{name}_{kind}"] = getattr(values, name)().item()
        return found

    def of_batches(self, logged: Mapping[str, list[float]]) -> dict[str, float]:
        """What the host alone measures, one number a batch: the smallest, the largest, or the mean weighed by rows.

        Args:
            logged (`dict[str, list[float]]`): NaN: not known.
        """
        found = {}
        for name, values in logged.items():
            counts = self._counts if len(values) == len(self._counts) else [1] * len(values)
            known = [(value, count) for value, count in zip(values, counts, strict=True) if value == value and count]
            if not known:
                continue
            if extreme := _EXTREME.search(name):
                found[name] = {"min": min, "max": max}[extreme[1]](value for value, _ in known)
            else:
                found[name] = sum(value * count for value, count in known) / sum(count for _, count in known)
        return found


def _token_mask(inputs: Mapping[str, Any]) -> torch.Tensor:
    tools = inputs.get("tool_mask")
    return inputs["completion_mask"] if tools is None else inputs["completion_mask"] * tools
