# SPDX-License-Identifier: Apache-2.0
"""What the server remembers of a training run: the weights of the groups, and what utilities are measured against.

A session is a run of some trainer. Its replies come in pieces, from several processes; every `rollout_size` of them
make a rollout, and a rollout decides the weights of the next one, as [`Welfare`] does in our own trainers.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..trainer.maxmin.maxmin_config import MaxMinConfigMixin
from ..trainer.maxmin.welfare import WELFARE_STATE_FILE, Welfare
from ..trainer.scoring.reference_statistics import RECORD_FILE, ReferenceStatistics


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class SessionError(ValueError):
    """A session that cannot be used, in words for the client."""


class TooManySessions(RuntimeError):
    """There is no room for another session."""


@dataclass
class Weighed:
    """Rewards of some replies.

    Args:
        utilities (`torch.Tensor` of shape `(N, K)`): float64.
        rewards (`torch.Tensor` of shape `(N,)`): the weighted sum, or the smallest utility for `sample_min`.
        weights (`torch.Tensor` of shape `(K,)`): that were used, on the simplex.
        step (`int`): rollouts that have decided weights so far.
    """

    utilities: torch.Tensor
    rewards: torch.Tensor
    weights: torch.Tensor
    step: int


class Session:
    """One run. Safe for several threads.

    Args:
        welfare ([`Welfare`]): its rule, at its start or as it was saved.
        rollout_size (`int`): replies that decide the next weights.
        folder (`Path`, *optional*): where it is kept; nothing but weights, averages and calibration.
    """

    def __init__(self, welfare: Welfare, rollout_size: int, folder: Path | None = None) -> None:
        self.welfare, self.rollout_size, self.folder = welfare, rollout_size, folder
        self.statistics: ReferenceStatistics | None = None
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        size = len(self.welfare.component_names)
        self._sums, self._counts = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        self._seen = 0

    def weigh(self, utilities: torch.Tensor, whole: bool = False) -> Weighed:
        """Rewards of replies, which count towards the next weights.

        Args:
            utilities (`torch.Tensor` of shape `(N, K)`): NaN: not scored.
            whole (`bool`): these are a rollout of their own, which decides the weights before it is weighed.

        Returns:
            [`Weighed`]

        Raises:
            SessionError: `"regret"` without anything to regret.
        """
        utilities = utilities.double()
        with self._lock:
            if self.welfare.needs_best and self.welfare.best is None:
                raise SessionError(
                    "The rule 'regret' has to know how well off each group could be: calibrate the session first "
                    "(POST /v1/calibrate), or give the server --best_utilities."
                )
            if whole:
                self._update(utilities.nanmean(dim=0))
            found = self._weighed(utilities)
            if not whole:
                self._sums += utilities.nansum(dim=0)
                self._counts += (~utilities.isnan()).sum(dim=0)
                self._seen += len(utilities)
                if self._seen >= self.rollout_size:
                    self._update(self._sums / self._counts)  # 0 / 0 is NaN: not scored
            return found

    def _update(self, group_utilities: torch.Tensor) -> None:
        self.welfare.update(group_utilities)
        self._forget()
        if self.folder is not None:
            _replace_by(self.folder, WELFARE_STATE_FILE, self.welfare.save)

    def _weighed(self, utilities: torch.Tensor) -> Weighed:
        weights = self.welfare.weights.double()
        optimised = self.welfare.optimised_rewards(utilities)
        # 0 times NaN is NaN: what has no weight may be missing.
        rewards = torch.where(weights > 0, weights * optimised, 0.0).sum(dim=1)
        return Weighed(utilities, rewards, weights, self.welfare.state.step)

    def peek(self, utilities: torch.Tensor) -> Weighed:
        """As [`~Session.weigh`], but the replies do not count."""
        with self._lock:
            return self._weighed(utilities.double())

    def calibrate(self, statistics: ReferenceStatistics, welfare: Welfare) -> None:
        """Measure against these replies of the reference policy from now on; the weights start anew.

        Args:
            statistics ([`ReferenceStatistics`]): of K components.
            welfare ([`Welfare`]): the rule at its start.
        """
        if welfare.needs_best:
            welfare.best = statistics.best_utilities("zscore").double()
        with self._lock:
            self.statistics, self.welfare = statistics, welfare
            self._forget()
            if self.folder is not None:
                statistics.save(self.folder)
                _replace_by(self.folder, WELFARE_STATE_FILE, self.welfare.save)

    def facts(self) -> dict[str, Any]:
        """Plain numbers for `GET /v1/sessions/ID`."""
        with self._lock:
            state, names = self.welfare.state, self.welfare.component_names
            averages = state.utility_average.tolist()
            return {
                "step": state.step,
                "rollout_size": self.rollout_size,
                "replies_of_the_next_rollout": self._seen,
                "weights": dict(zip(names, self.welfare.weights.tolist(), strict=True)),
                "utilities": {n: v for n, v in zip(names, averages, strict=True) if v == v},
                "calibrated": self.statistics is not None,
            }


class Sessions:
    """All runs of a server.

    Args:
        settings ([`MaxMinConfigMixin`]): the welfare rule of every session.
        component_names (`Sequence[str]`): K names.
        mixing_weights (`torch.Tensor` of shape `(K,)`, *optional*), enough (`torch.Tensor` of shape `(K,)`,
            *optional*): as [`Welfare`] takes them.
        rollout_size (`int`): replies of a rollout, unless a session says otherwise.
        folder (`Path`, *optional*): where sessions are kept over a restart.
        most (`int`): sessions at the same time. None is thrown away by itself: its weights would start anew in the
            midst of a run.
    """

    def __init__(
        self,
        settings: MaxMinConfigMixin,
        component_names: Sequence[str],
        mixing_weights: torch.Tensor | None = None,
        enough: torch.Tensor | None = None,
        rollout_size: int = 256,
        folder: Path | None = None,
        most: int = 64,
    ) -> None:
        self.settings, self.component_names = settings, list(component_names)
        self.mixing_weights, self.enough = mixing_weights, enough
        self.rollout_size, self.folder, self.most = rollout_size, folder, most
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        if folder is not None:
            for own in sorted(folder.iterdir()) if folder.is_dir() else ():
                if own.is_dir() and _ID.fullmatch(own.name):
                    self._sessions[own.name] = self._restored(own)

    def get(self, name: str) -> Session:
        """The session of a name, made where there is none.

        Raises:
            SessionError: a name that is none.
            TooManySessions: there is no room for another.
        """
        if not _ID.fullmatch(name):
            raise SessionError(
                f"session is {name[:80]!r}, but must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter "
                "or digit."
            )
        with self._lock:
            if name not in self._sessions:
                if len(self._sessions) >= self.most:
                    raise TooManySessions(
                        f"There are {self.most} sessions, the most; end one by DELETE /v1/sessions/ID, or raise "
                        "--max_sessions."
                    )
                folder = None if self.folder is None else self.folder / name
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                self._sessions[name] = Session(self.new_welfare(), self.rollout_size, folder)
            return self._sessions[name]

    def find(self, name: str) -> Session | None:
        """The session of a name, if there is one."""
        return self._sessions.get(name)

    def end(self, name: str) -> bool:
        """Forget a session, on the disk too; whether there was one."""
        with self._lock:
            session = self._sessions.pop(name, None)
            if session is not None and session.folder is not None:
                for file in (WELFARE_STATE_FILE, RECORD_FILE, "reference_statistics.safetensors"):
                    (session.folder / file).unlink(missing_ok=True)
                session.folder.rmdir()
            return session is not None

    def __len__(self) -> int:
        return len(self._sessions)

    def new_welfare(self) -> Welfare:
        """The rule at its start."""
        return Welfare(self.settings, self.component_names, self.mixing_weights, enough=self.enough)

    def _restored(self, folder: Path) -> Session:
        session = Session(self.new_welfare(), self.rollout_size, folder)
        if (folder / WELFARE_STATE_FILE).is_file():
            session.welfare.load(folder)
        if (folder / RECORD_FILE).is_file():
            session.statistics = ReferenceStatistics.load(folder)
            session.statistics.check_compatible(self.component_names)
        return session


def _replace_by(folder: Path, name: str, save: Any) -> None:
    """Whoever reads sees the old file or the new one."""
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        save(staging)
        os.replace(Path(staging) / name, folder / name)
