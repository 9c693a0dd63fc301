# SPDX-License-Identifier: Apache-2.0
"""Names of repositories, and names of contents."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def is_hub_id(name: str | None) -> bool:
    """Whether a name is `namespace/name` on the Hub and not something on this machine.

    Example:

    >>> is_hub_id("Qwen/Qwen3-0.6B"), is_hub_id("/home/ann/model"), is_hub_id("prefs.jsonl"), is_hub_id(None)
    (True, False, False, False)
    """
    if not name or name.count("/") != 1 or name[0] in "./~" or os.path.exists(name):
        return False
    if Path(name).suffix in (".json", ".jsonl", ".csv", ".parquet"):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def slug(name: str) -> str:
    """A name as part of a repository id.

    Example:

    >>> slug("likes films, long"), slug("component_0")
    ('likes-films-long', 'component_0')

    Raises:
        ValueError: nothing is left of it.
    """
    cleaned = re.sub(r"[-.]{2,}|\s+", "-", re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)).strip("-.")
    if not cleaned:
        raise ValueError(f"The name {name!r} has no letter or digit that a repository id may hold. Rename it.")
    return cleaned


def check_repo_id(repo_id: str) -> str:
    """The id, if it is a full one.

    Raises:
        ValueError: not `namespace/name`, or characters that the Hub does not take.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is not a full repository id. Write it as `namespace/name`.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a repository id: {error}") from error
    return repo_id


def size_of(content: Path | bytes) -> int:
    """Bytes of a planned file."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def digests(content: Path | bytes) -> tuple[str, str]:
    """Git's blob name and the sha256 of a planned file, read once in pieces.

    Returns:
        `tuple[str, str]`: the Hub names a small file by the first and a large one by the second.
    """
    git, sha256 = hashlib.sha1(b"blob %d\0" % size_of(content)), hashlib.sha256()
    if isinstance(content, bytes):
        git.update(content)
        sha256.update(content)
    else:
        with open(content, "rb") as file:
            while piece := file.read(2**22):
                git.update(piece)
                sha256.update(piece)
    return git.hexdigest(), sha256.hexdigest()
