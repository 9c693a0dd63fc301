# SPDX-License-Identifier: Apache-2.0
"""What the reference policy's replies are worth to each component, and the utilities that follow from it.

A minimum over components means something only after every component is measured on the same scale: against the replies
of the reference policy to the same prompt. The arithmetic is in `functional/utility.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...data.tokenization import Prompt, plain_messages
from ...functional.utility import win_rate_utility, within_prompt_scale, zscore_utility
from ...reading import JSON_LIMIT, read_json_object
from .batch import refuse_infinite


UTILITY_KINDS = ("zscore", "win_rate", "raw")
TENSORS_FILE = "reference_statistics.safetensors"
RECORD_FILE = "reference_statistics.json"
FORMAT_VERSION = 1


def prompt_key(prompt: Prompt | Sequence[int]) -> str:
    """Name of a prompt under which its reference replies are kept: the same for equal prompts, on every machine.

    Args:
        prompt (`str`, `list[dict]` or `list[int]`):
            Text, messages or token ids. The three forms of one prompt have different keys.

    Returns:
        `str`: 32 hexadecimal digits.

    Example:

    ```python
    >>> prompt_key("The film") == prompt_key("The film"), prompt_key("The film") == prompt_key("the film")
    (True, False)

    ```
    """
    plain = plain_messages(prompt if isinstance(prompt, str) else list(prompt))
    canonical = json.dumps(plain, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def truncated_are_left_out(finished: torch.Tensor) -> bool:
    """Whether truncated reference replies do not count: where most finish.

    Reward training sees finished replies only, so the level of a truncated one is arbitrary, and a single one can make
    up most of the variance.

    Args:
        finished (`torch.Tensor` of shape `(N,)`): bool; whether each reply ended by itself.
    """
    return bool(finished.float().mean() > 0.5)


class ReferenceStatistics:
    """Rewards of the reference policy's replies, by prompt, and what follows from them.

    Use [`~ReferenceStatistics.from_rewards`] to make one.

    Args:
        component_names (`list[str]`):
            K names of the components.
        prompt_keys (`list[str]`):
            P distinct keys of prompts, see [`prompt_key`].
        rewards (`torch.Tensor` of shape `(P, M, K)`):
            Rewards of M reference replies to each prompt, in Bradley-Terry log-odds. NaN: not scored, or no such
            reply.
        shift (`torch.Tensor` of shape `(K,)`):
            Mean reward over all prompts, for prompts without reference replies.
        scale (`torch.Tensor` of shape `(K,)`):
            Positive spread within prompts.
        completions (`list[list]`, *optional*):
            For each prompt its reference replies, as text, messages or ids.
        policy_fingerprint (`str`, *optional*):
            What identifies the reference policy to the caller.
        prompts_fingerprint (`str`, *optional*):
            What identifies the set of prompts to the caller.

    Raises:
        `ValueError`: Tensors that do not fit together, or duplicate keys.
    """

    def __init__(
        self,
        component_names: Sequence[str],
        prompt_keys: Sequence[str],
        rewards: torch.Tensor,
        shift: torch.Tensor,
        scale: torch.Tensor,
        completions: list[list[Any]] | None = None,
        policy_fingerprint: str | None = None,
        prompts_fingerprint: str | None = None,
    ) -> None:
        self.component_names = list(component_names)
        self.prompt_keys = list(prompt_keys)
        self.rewards, self.shift, self.scale = (_real(tensor).cpu() for tensor in (rewards, shift, scale))
        self.completions = completions
        self.policy_fingerprint = policy_fingerprint
        self.prompts_fingerprint = prompts_fingerprint
        count, size = len(self.prompt_keys), len(self.component_names)
        if self.rewards.dim() != 3 or (self.rewards.shape[0], self.rewards.shape[2]) != (count, size):
            raise ValueError(f"`rewards` has shape {tuple(self.rewards.shape)}, but ({count}, any, {size}) is needed.")
        if self.shift.shape != (size,) or self.scale.shape != (size,):
            raise ValueError(
                f"`shift` and `scale` have shapes {tuple(self.shift.shape)} and {tuple(self.scale.shape)}, but both "
                f"need ({size},): one entry for each of {self.component_names}."
            )
        self._row = {key: row for row, key in enumerate(self.prompt_keys)}
        if len(self._row) != count:
            raise ValueError("`prompt_keys` has duplicates; give each prompt once, with all its reference replies.")
        self._baseline = self.rewards.nanmean(dim=1)
        self._warned = False

    @classmethod
    def from_rewards(
        cls,
        component_names: Sequence[str],
        prompt_keys: Sequence[str],
        rewards: torch.Tensor,
        completions: Sequence[Any] | None = None,
        policy_fingerprint: str | None = None,
        prompts_fingerprint: str | None = None,
        finished: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
    ) -> ReferenceStatistics:
        """Statistics from scored reference replies, one row each, in any order.

        Truncated replies do not count where most finish, see [`truncated_are_left_out`].

        Args:
            component_names (`list[str]`):
                K names.
            prompt_keys (`list[str]`):
                N keys: for each reply that of its prompt. Prompts keep the order of first appearance.
            rewards (`torch.Tensor` of shape `(N, K)`):
                Rewards of the replies, in Bradley-Terry log-odds. NaN: not scored, does not count.
            completions (`list`, *optional*):
                N replies, as text, messages or ids.
            policy_fingerprint (`str`, *optional*):
                What identifies the reference policy.
            prompts_fingerprint (`str`, *optional*):
                What identifies the set of prompts.
            finished (`torch.Tensor` of shape `(N,)`, *optional*):
                Bool; whether each reply ended by itself. Default: all did.
            scale (`torch.Tensor` of shape `(K,)`, *optional*):
                Spread to divide by where it is known from elsewhere and cannot be measured here.

        Returns:
            [`ReferenceStatistics`] with `shift` the mean over prompts of each prompt's mean, and `scale`, where none
            is given, from [`~functional.utility.within_prompt_scale`].

        Raises:
            `ValueError`: Shapes that do not fit, an infinite reward, no replies, fewer than four replies to every
                prompt, or a component that scored no prompt at least twice.

        Example:

        ```python
        >>> import torch
        >>> key = prompt_key("The film")
        >>> rewards = torch.tensor([[0.0], [2.0], [0.0], [2.0]])
        >>> statistics = ReferenceStatistics.from_rewards(["helpful"], [key] * 4, rewards)
        >>> statistics.shift, statistics.scale
        (tensor([1.]), tensor([1.1547]))
        >>> statistics.utilities(torch.tensor([[1.0], [2.1547]]), [key, key], "zscore").flatten().round(decimals=3)
        tensor([0., 1.])

        ```
        """
        count, size = len(prompt_keys), len(component_names)
        if rewards.shape != (count, size) or not count:
            raise ValueError(
                f"`rewards` has shape {tuple(rewards.shape)}, but ({count or 'at least 1'}, {size}) is needed: one "
                "row per reference reply, one column per component."
            )
        if completions is not None and len(completions) != count:
            raise ValueError(f"There are {len(completions)} `completions` for {count} rewards; give one each.")
        if finished is not None and truncated_are_left_out(finished):
            rewards = torch.where(finished.to(rewards.device).unsqueeze(1), rewards, torch.nan)
        refuse_infinite(rewards, component_names)
        rows: dict[str, list[int]] = {}
        for index, key in enumerate(prompt_keys):
            rows.setdefault(key, []).append(index)
        width = max(len(indices) for indices in rows.values())
        rewards = _real(rewards)
        table = torch.full((len(rows), width, size), torch.nan, dtype=rewards.dtype)
        for row, indices in enumerate(rows.values()):
            table[row, : len(indices)] = rewards[indices].cpu()
        if scale is None:
            scale = within_prompt_scale(table)
            _warn_if_constant(table, component_names)
        grouped = None if completions is None else [[completions[i] for i in indices] for indices in rows.values()]
        shift = table.nanmean(dim=1).nanmean(dim=0)
        return cls(component_names, list(rows), table, shift, scale, grouped, policy_fingerprint, prompts_fingerprint)

    @property
    def num_components(self) -> int:
        """K."""
        return len(self.component_names)

    def missing(self, prompt_keys: Sequence[str]) -> list[str]:
        """Those of the keys that have no reference replies, each once."""
        return [key for key in dict.fromkeys(prompt_keys) if key not in self._row]

    def check_compatible(
        self,
        component_names: Sequence[str],
        policy_fingerprint: str | None = None,
        prompts_fingerprint: str | None = None,
    ) -> None:
        """Refuse statistics of other components; warn about those of another policy or other prompts.

        Args:
            component_names (`list[str]`):
                Names of the components that are to be measured.
            policy_fingerprint (`str`, *optional*):
                That of the present reference policy; None is not compared.
            prompts_fingerprint (`str`, *optional*):
                That of the present prompts; None is not compared.

        Raises:
            `ValueError`: Other names, another number or another order of components.
        """
        if list(component_names) != self.component_names:
            raise ValueError(
                f"The reference statistics are of the components {self.component_names}, but the rewards are "
                f"{list(component_names)}; calibrate again on these rewards, or give them in the same order."
            )
        given = (
            ("policy", policy_fingerprint, self.policy_fingerprint),
            ("prompts", prompts_fingerprint, self.prompts_fingerprint),
        )
        for what, now, then in given:
            if now is not None and now != then:
                warnings.warn(
                    f"The reference statistics were made with another reference {what} ({then}, now {now}), so 0 is "
                    "not the present reference's utility; calibrate again to be exact.",
                    stacklevel=2,
                )

    def utilities(self, rewards: torch.Tensor, prompt_keys: Sequence[str], kind: str = "zscore") -> torch.Tensor:
        """Utilities of replies, comparable between components.

        Args:
            rewards (`torch.Tensor` of shape `(N, K)`):
                Rewards of the replies, in Bradley-Terry log-odds. NaN stays NaN.
            prompt_keys (`list[str]`):
                N keys of their prompts.
            kind (`str`, *optional*, defaults to `"zscore"`):
                `"zscore"`: spreads above the reference policy's mean on the prompt; a prompt without reference replies
                uses the mean over all prompts, with one warning. `"win_rate"`: probability of beating a reference
                reply to the prompt. `"raw"`: the rewards as they are.

        Returns:
            `torch.Tensor` of shape `(N, K)`, float32 (float64 where `rewards` are), on the device of `rewards`.

        Raises:
            `ValueError`: An unknown kind, shapes that do not fit, or `"win_rate"` for a prompt without reference
            replies.
        """
        if kind not in UTILITY_KINDS:
            raise ValueError(f"Unknown utility {kind!r}; choose one of {', '.join(map(repr, UTILITY_KINDS))}.")
        if rewards.shape != (len(prompt_keys), self.num_components):
            raise ValueError(
                f"`rewards` has shape {tuple(rewards.shape)}, but ({len(prompt_keys)}, {self.num_components}) is "
                f"needed: one row per prompt key, one column for each of {self.component_names}."
            )
        rewards = _real(rewards)
        if kind == "raw":
            return rewards
        missing = self.missing(prompt_keys)
        if kind == "win_rate":
            if missing:
                raise ValueError(
                    f"{len(missing)} prompts have no reference replies to be compared with, which 'win_rate' needs; "
                    "calibrate on these prompts (see `max_calibration_prompts`), or use 'zscore'."
                )
            references = self.rewards[[self._row[key] for key in prompt_keys]]
            return win_rate_utility(rewards, references.to(rewards.device))
        if missing and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(missing)} prompts have no reference replies; their replies are measured against the mean over "
                "all prompts, which mixes the difficulty of a prompt into the utility. Raise "
                "`max_calibration_prompts` to cover them. (Said once.)",
                stacklevel=2,
            )
        return zscore_utility(rewards, self._baselines(prompt_keys).to(rewards.device), self.scale.to(rewards.device))

    def best_utilities(self, kind: str = "zscore") -> torch.Tensor:
        """What each component has where always its own favourite among the reference replies is given: best of M.

        For M replies that policy is `log M - (M - 1) / M` nats from the reference.

        Args:
            kind (`str`, *optional*, defaults to `"zscore"`): `"zscore"` or `"win_rate"`.

        Returns:
            `torch.Tensor` of shape `(K,)`: means over prompts; those without a scored reply do not count.

        Raises:
            `ValueError`: An unknown kind.

        Example:

        ```python
        >>> import torch
        >>> rewards = torch.tensor([[0.0], [2.0], [0.0], [2.0]])
        >>> ReferenceStatistics.from_rewards(["helpful"], [prompt_key("The film")] * 4, rewards).best_utilities()
        tensor([0.8660])

        ```
        """
        best = self.rewards.nan_to_num(nan=-torch.inf).amax(dim=1)
        best = torch.where(best.isinf(), torch.nan, best)
        return self.utilities(best, self.prompt_keys, kind).nanmean(dim=0)

    def save(self, directory: str | os.PathLike) -> None:
        """Write `reference_statistics.safetensors` and `reference_statistics.json` into a folder, made if missing."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"rewards": self.rewards, "shift": self.shift, "scale": self.scale}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS_FILE)
        record = {
            "version": FORMAT_VERSION,
            "component_names": self.component_names,
            "prompt_keys": self.prompt_keys,
            "policy_fingerprint": self.policy_fingerprint,
            "prompts_fingerprint": self.prompts_fingerprint,
            "completions": self.completions,
        }
        (folder / RECORD_FILE).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | os.PathLike) -> ReferenceStatistics:
        """Read what [`~ReferenceStatistics.save`] wrote.

        Raises:
            `FileNotFoundError`: The folder has no statistics.
            `ValueError`: They were written by a later version of this package.
        """
        folder = Path(directory)
        if not (folder / RECORD_FILE).is_file():
            raise FileNotFoundError(f"There is no {RECORD_FILE} in {folder}; give the folder passed to `save`.")
        record = read_json_object(folder / RECORD_FILE, JSON_LIMIT)
        version = record.pop("version", None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{folder / RECORD_FILE} has format version {version}, but this release reads {FORMAT_VERSION}; "
                "upgrade trl-maxmin, or calibrate again."
            )
        return cls(**record, **load_file(folder / TENSORS_FILE))

    def _baselines(self, prompt_keys: Sequence[str]) -> torch.Tensor:
        """`(N, K)`: each prompt's mean, the global one where the prompt or a component has none."""
        rows = torch.tensor([self._row.get(key, -1) for key in prompt_keys], dtype=torch.long)
        table = torch.cat([self._baseline, self.shift.unsqueeze(0)])
        baseline = table[rows]
        return torch.where(baseline.isnan(), self.shift, baseline)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """Without gradient, in float32 at least."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _warn_if_constant(table: torch.Tensor, component_names: Sequence[str]) -> None:
    spread = table.nan_to_num(-torch.inf).amax(dim=1) - table.nan_to_num(torch.inf).amin(dim=1)
    constant = (spread.clamp_min(0.0) == 0.0).all(dim=0)
    if constant.any():
        names = [name for name, flag in zip(component_names, constant.tolist(), strict=True) if flag]
        warnings.warn(
            f"The components {names} give every reference reply to a prompt the same reward; their utilities are on "
            "an arbitrary scale. Train them longer, or leave them out.",
            stacklevel=3,
        )
