# SPDX-License-Identifier: Apache-2.0
"""Publishing: what goes into which repository, and one commit for each.

A repository gets all of its files in one commit on top of the commit that was looked at, or none of them. What is
already there is not sent again, so that a push can be repeated after any failure, and repeated once more without a
trace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from .card_keeping import keep, what_is_lost
from .contents import CARD, is_stale_in_model, is_stale_in_space
from .evaluation_files import is_stale_in_dataset
from .faults import HubError, HubInterrupted, ask, keep_secret
from .files import check_repo_id, digests, size_of


logger = logging.getLogger(__name__)

#: Order of publication: nothing names a repository that comes after it.
KINDS = ("base", "component", "mixture", "dataset", "policy", "space")
_REPO_TYPE = {"dataset": "dataset", "space": "space"}


@dataclass
class RepoPlan:
    """One repository: what it is, and the files it shall consist of.

    Args:
        repo_id (`str`): `namespace/name`.
        kind (`str`): one of `KINDS`.
        name (`str`): name of the component or policy.
        files (`dict`): path in the repository -> file on disk, or bytes.
        private (`bool`, *optional*): visibility of a new repository; `None` leaves it to the Hub's default. With
            `True`, an existing repository that is public is refused.
        space_sdk (`str`), space_hardware (`str`): of a new Space.

    Raises:
        ValueError: an id that is not full.
    """

    repo_id: str
    kind: str
    name: str = ""
    files: dict[str, Path | bytes] = field(default_factory=dict)
    private: bool | None = None
    space_sdk: str = "gradio"
    space_hardware: str | None = None

    def __post_init__(self) -> None:
        check_repo_id(self.repo_id)

    @property
    def repo_type(self) -> str:
        """`"model"`, `"dataset"` or `"space"`."""
        return _REPO_TYPE.get(self.kind, "model")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size_of(content) for content in self.files.values())

    @property
    def visibility(self) -> str:
        """In words."""
        return {True: "private", False: "public", None: "default"}[self.private]

    @property
    def title(self) -> str:
        """Kind and id, for messages."""
        return f"{self.kind} {self.repo_id}"


@dataclass(frozen=True)
class Published:
    """What became of one repository.

    Args:
        plan ([`RepoPlan`]): what was wanted.
        url (`str`): where to look at it.
        commit (`str`): hash of its newest commit.
        status (`str`): `"created"`, `"updated"` or `"unchanged"`.
    """

    plan: RepoPlan
    url: str
    commit: str
    status: str


@dataclass(frozen=True)
class _Remote:
    sha: str
    private: bool
    files: Mapping[str, str]  # path -> sha256 of a large file, git's name of a small one


def publish_repo(
    plan: RepoPlan, *, token: str | bool | None = None, revision: str | None = None, commit_message: str | None = None
) -> Published:
    """Bring one repository to the state of the plan, in one commit.

    Args:
        plan ([`RepoPlan`]): files and visibility.
        token (`str`, *optional*): default: that of `hf auth login` or HF_TOKEN.
        revision (`str`, *optional*): an existing branch; default `main`.
        commit_message (`str`, *optional*)

    Raises:
        HubError: the Hub refused or was not reached; the repository is as it was before, or complete.
        ValueError: `private=True` for a repository that exists and is public.
    """
    keep_secret(token)
    api = HfApi(token=token)
    remote = _look(api, plan, revision)
    status = "updated"
    if remote is None:
        space = {"space_sdk": plan.space_sdk, "space_hardware": plan.space_hardware} if plan.kind == "space" else {}
        options = {"repo_type": plan.repo_type, "private": plan.private, "exist_ok": True, **space}
        ask(f"Creating {plan.title}", lambda: api.create_repo(plan.repo_id, **options))
        status, remote = "created", _look(api, plan, revision)
        if remote is None:
            raise HubError("it was created but is not shown", "Try again in a minute.", f"Creating {plan.title}")
    if plan.private and not remote.private:
        raise ValueError(
            f"{plan.repo_id} exists and is public, but private=True was asked for, so nothing was uploaded. Make it "
            "private in its settings, choose another id, or leave private out."
        )
    url = f"{api.endpoint}/{'' if plan.repo_type == 'model' else plan.repo_type + 's/'}{plan.repo_id}"
    plan = _with_earlier_card(api, plan, remote)
    operations = _operations(plan, remote)
    if not operations:
        return Published(plan, url, remote.sha, "unchanged")
    after = None
    try:
        commit = ask(
            f"Uploading {plan.title}",
            lambda: api.create_commit(
                plan.repo_id,
                operations,
                commit_message=commit_message or f"Push {plan.kind} {plan.name}".strip() + " with trl-maxmin",
                repo_type=plan.repo_type,
                revision=revision,
                parent_commit=remote.sha,
            ),
        )
    except HubError:
        # The answer may have been lost on its way back, after the commit was made.
        with suppress(HubError):
            after = _look(api, plan, revision)
        if after is None or _operations(plan, after):
            raise
        return Published(plan, url, after.sha, status)
    return Published(plan, url, commit.oid, status)


def _look(api: HfApi, plan: RepoPlan, revision: str | None) -> _Remote | None:
    """What the Hub holds, `None` where it has no such repository."""

    def look() -> Any:
        try:
            return api.repo_info(plan.repo_id, repo_type=plan.repo_type, revision=revision, files_metadata=True)
        except RepositoryNotFoundError:
            return None

    info = ask(f"Looking at {plan.title}", look)
    if info is None:
        return None
    names = {entry.rfilename: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in info.siblings or ()}
    return _Remote(info.sha, bool(info.private), names)


def _with_earlier_card(api: HfApi, plan: RepoPlan, remote: _Remote) -> RepoPlan:
    """The plan, with what the card on the Hub says beyond the record: somebody may have written it there."""
    card, there = plan.files.get(CARD), remote.files.get(CARD)
    if not isinstance(card, bytes) or plan.kind == "space" or there is None or there in digests(card):
        return plan
    options = {"repo_type": plan.repo_type, "revision": remote.sha}
    path = ask(f"Reading the card of {plan.title}", lambda: api.hf_hub_download(plan.repo_id, CARD, **options))
    earlier = Path(path).read_text(encoding="utf-8", errors="replace")
    if (lost := what_is_lost(earlier)) is not None:
        logger.warning(f"{CARD} of {plan.repo_id}: {lost} It stays in the history, at commit {remote.sha[:8]}.")
    return replace(plan, files={**plan.files, CARD: keep(card.decode(), earlier).encode()})


def _operations(plan: RepoPlan, remote: _Remote) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What turns the remote files into the planned ones."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for name, content in sorted(plan.files.items()):
        if remote.files.get(name) not in digests(content):
            source = content if isinstance(content, bytes) else str(content)
            operations.append(CommitOperationAdd(name, source))
    is_stale = {"model": is_stale_in_model, "dataset": is_stale_in_dataset, "space": is_stale_in_space}[plan.repo_type]
    stale = sorted(name for name in remote.files if name not in plan.files and is_stale(name))
    operations += [CommitOperationDelete(name) for name in stale]
    return operations


def publish(
    plans: Sequence[RepoPlan],
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    command: str = "repeat the same call; what is complete is not sent again",
    on_done: Callable[[Published], None] | None = None,
) -> list[Published]:
    """Publish several repositories in the order of `KINDS`.

    Args:
        plans (`Sequence[RepoPlan]`): the repositories.
        token, revision, commit_message: as [`publish_repo`].
        command (`str`): what to tell the user to run after a failure.
        on_done (`Callable`, *optional*): called after each repository.

    Returns:
        `list[Published]`: one a plan, in the order of publication.

    Raises:
        HubError: with what is complete, what is not, and how to continue.
        HubInterrupted: on Ctrl-C, with the same.
        ValueError: two plans for one repository, or as [`publish_repo`].
    """
    plans = in_order(plans)
    done: list[Published] = []
    for number, plan in enumerate(plans):
        try:
            published = publish_repo(plan, token=token, revision=revision, commit_message=commit_message)
        except HubError as error:
            complete, missing = [p.plan.repo_id for p in done], [p.repo_id for p in plans[number:]]
            raise error.placed(complete, missing, command) from error.__cause__
        except KeyboardInterrupt:
            complete, missing = [p.plan.repo_id for p in done], [p.repo_id for p in plans[number:]]
            raise HubInterrupted(complete, missing, command) from None
        done.append(published)
        if on_done is not None:
            on_done(published)
    return done


def in_order(plans: Sequence[RepoPlan]) -> list[RepoPlan]:
    """The plans in order of publication.

    Raises:
        ValueError: two plans for one repository.
    """
    seen: dict[tuple[str, str], RepoPlan] = {}
    for plan in plans:
        other = seen.setdefault((plan.repo_type, plan.repo_id.lower()), plan)
        if other is not plan:
            raise ValueError(
                f"{other.kind} {other.name!r} and {plan.kind} {plan.name!r} would both go to {plan.repo_id}. Rename "
                "one of them."
            )
    return sorted(plans, key=lambda plan: KINDS.index(plan.kind))
