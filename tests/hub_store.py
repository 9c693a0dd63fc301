# SPDX-License-Identifier: Apache-2.0
"""What our own Hub keeps: users, repositories with their commits, collections, uploaded objects; all in memory.

It accepts and refuses what the real Hub accepts and refuses as far as it is known; `HubRefusal` carries the status.
"""

from __future__ import annotations

import copy
import datetime
import fnmatch
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from tests.hub_cards import card_errors, read_front_matter


REPO_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}$")
#: What the default .gitattributes of a new repository sends to large-file storage.
LFS_PATTERNS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.pkl",
    "*.model",
    "*.parquet",
    "*.arrow",
    "*.h5",
    "*.onnx",
)
LFS_PATTERNS += ("*.zip", "*.npz", "*.npy", "*.gz", "*.msgpack", "*.ckpt", "*tfevents*")
MAX_REGULAR = 10 * 2**20
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()


class HubRefusal(Exception):
    """The Hub says no: status, words, and the `X-Error-Code` that clients tell errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class Blob:
    """One file of one commit. Bytes of a file in Xet storage are not here: `xet` names them."""

    size: int
    sha256: str
    git_oid: str
    data: bytes | None = None
    lfs: bool = False
    xet: str | None = None


@dataclass(frozen=True)
class Commit:
    """A commit: its files are the whole tree, not a difference."""

    oid: str
    title: str
    message: str
    files: dict[str, Blob]
    date: str
    author: str


@dataclass
class Repo:
    """A repository of one of the three types."""

    id: str
    type: str
    private: bool
    sdk: str | None = None
    hardware: str = "cpu-basic"
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    variables: dict[str, dict[str, str]] = field(default_factory=dict)

    def commit(self, revision: str) -> Commit:
        """The commit that a branch, tag or hash names."""
        if revision in self.branches:
            return self.branches[revision][-1]
        if revision in self.tags:
            return self.tags[revision]
        for commits in self.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        raise HubRefusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    @property
    def card_data(self) -> dict[str, Any]:
        """Front matter of README.md, as the API shows it."""
        readme = self.commit("main").files.get("README.md")
        return read_front_matter((readme.data or b"").decode()) if readme else {}


def git_blob(data: bytes) -> str:
    """Git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def make_blob(data: bytes) -> Blob:
    """A file that is stored in git itself."""
    return Blob(len(data), hashlib.sha256(data).hexdigest(), git_blob(data), data)


def now() -> str:
    """A time in the Hub's spelling."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class HubStore:
    """Users, repositories, collections and objects.

    Args:
        users (`dict`): token -> `{"name", "role": "write" or "read", "orgs": [...], "pro": bool}`.
    """

    def __init__(self, users: dict[str, dict[str, Any]]) -> None:
        self.users = users
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.xet_hashes: dict[str, tuple[str, int]] = {}
        self.counter = 0

    def snapshot(self) -> dict[str, Any]:
        """Everything that requests can change."""
        names = ("repos", "collections", "objects", "xet_hashes", "counter")
        return {name: copy.deepcopy(getattr(self, name)) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Back to a snapshot."""
        for name, value in state.items():
            setattr(self, name, copy.deepcopy(value))

    def unique(self) -> str:
        """A number that looks like a commit hash."""
        self.counter += 1
        return hashlib.sha1(f"unique {self.counter}".encode()).hexdigest()

    # -- who may do what ----------------------------------------------------------------------------------------------

    def user(self, token: str | None) -> dict[str, Any] | None:
        """The user of a token; `None` without one."""
        if token is None:
            return None
        if token not in self.users:
            raise HubRefusal(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def check_write(self, user: dict[str, Any] | None, namespace: str) -> None:
        """Refuse who may not write below a namespace."""
        if user is None:
            raise HubRefusal(401, "Invalid username or password.")
        if namespace not in (user["name"], *user.get("orgs", ())):
            raise HubRefusal(403, f"You don't have the rights to create or change anything under {namespace}.")
        if user["role"] != "write":
            raise HubRefusal(403, "Your token has the role 'read'; a token with write access is needed.")

    def repo(self, type: str, id: str, user: dict[str, Any] | None, write: bool = False) -> Repo:
        """A repository that the user may read (or write)."""
        repo = self.repos.get((type, id))
        namespace = id.split("/")[0]
        mine = user is not None and namespace in (user["name"], *user.get("orgs", ()))
        if repo is None or (repo.private and not mine):
            raise HubRefusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self.check_write(user, namespace)
        return repo

    # -- repositories -------------------------------------------------------------------------------------------------

    def create_repo(self, user: dict[str, Any] | None, body: dict[str, Any], endpoint: str) -> Repo:
        """As POST /api/repos/create."""
        type = body.get("type") or "model"
        namespace = body.get("organization") or (user or {}).get("name", "")
        id = f"{namespace}/{body['name']}"
        self.check_write(user, namespace)
        if not REPO_ID.match(id) or ".." in id or "--" in id:
            raise HubRefusal(400, f"Invalid repository name {id!r}")
        sdk = body.get("sdk")
        free_cpu = body.get("hardware", "cpu-basic") == "cpu-basic"
        # The real Hub answers 402 even where the Space exists already.
        if type == "space" and sdk in ("gradio", "docker") and free_cpu and not user.get("pro"):
            raise HubRefusal(402, "Payment required: Gradio and Docker Spaces on cpu-basic need a PRO account.")
        if (type, id) in self.repos:
            raise HubRefusal(409, "You already created this repo", url=repo_url(endpoint, type, id))
        repo = Repo(id, type, body.get("visibility") == "private", sdk, body.get("hardware") or "cpu-basic")
        files = {".gitattributes": make_blob(GITATTRIBUTES)}
        if type == "space":
            files["README.md"] = make_blob(f"---\ntitle: {body['name']}\nsdk: {sdk}\n---\n".encode())
        repo.branches["main"] = [Commit(self.unique(), "initial commit", "", files, now(), user["name"])]
        repo.secrets = {secret["key"]: secret["value"] for secret in body.get("secrets", [])}
        self.repos[type, id] = repo
        return repo

    def upload_mode(self, repo: Repo, path: str, size: int, sample: bytes) -> str:
        """`"lfs"` or `"regular"`."""
        large = size > MAX_REGULAR or b"\0" in sample
        return "lfs" if large or any(fnmatch.fnmatch(path.split("/")[-1], p) for p in LFS_PATTERNS) else "regular"

    def commit(self, repo: Repo, revision: str, lines: list[dict[str, Any]], author: str) -> Commit:
        """All operations of one commit, or none."""
        if revision not in repo.branches:
            raise HubRefusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = repo.branches[revision][-1]
        header = lines[0]["value"]
        parent = header.get("parentCommit")
        if parent is not None and not head.oid.startswith(parent):
            raise HubRefusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            self._operation(files, line["key"], line["value"])
        if "README.md" in files:
            errors = card_errors((files["README.md"].data or b"").decode(), repo.type)
            if errors:
                raise HubRefusal(400, f"Invalid metadata in README.md: {errors[0]}")
        commit = Commit(self.unique(), header.get("summary", ""), header.get("description", ""), files, now(), author)
        repo.branches[revision].append(commit)
        return commit

    def _operation(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if path.startswith("/") or ".." in path.split("/") or path.split("/")[0] == ".git":
            raise HubRefusal(400, f"Invalid path {path!r}")
        if key == "file":
            data = value["content"]
            if len(data) > MAX_REGULAR:
                raise HubRefusal(413, f"{path}: files above 10 MB must go to large-file storage")
            files[path] = make_blob(data)
        elif key == "lfsFile":
            oid = value["oid"]
            if oid in self.objects:
                data = self.objects[oid]
                files[path] = Blob(len(data), oid, lfs_pointer_oid(oid, len(data)), data, lfs=True)
            elif oid in self.xet_hashes:
                xet, size = self.xet_hashes[oid]
                files[path] = Blob(size, oid, lfs_pointer_oid(oid, size), None, lfs=True, xet=xet)
            else:
                raise HubRefusal(400, f"LFS pointer of {path} points to the object {oid}, which is not there")
            if value.get("size", files[path].size) != files[path].size:
                raise HubRefusal(400, f"{path}: the size announced is not that of the object")
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HubRefusal(404, f"{path} does not exist", "EntryNotFound")
        elif key == "deletedFolder":
            inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
            for name in inside:
                del files[name]
        else:
            raise HubRefusal(400, f"Unknown operation {key!r}")


def lfs_pointer_oid(sha256: str, size: int) -> str:
    """Git's name of the pointer file that stands for a large file."""
    return git_blob(f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode())


def repo_url(endpoint: str, type: str, id: str) -> str:
    """Address of a repository's page."""
    prefix = "" if type == "model" else f"{type}s/"
    return f"{endpoint}/{prefix}{id}"
