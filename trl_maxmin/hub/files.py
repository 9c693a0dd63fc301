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


#: Kind -> name of its repository, from the base name that the user gives.
NAMES = {
    "base": "{base}-policy-{name}",
    "component": "{base}-reward-{name}",
    "mixture": "{base}-mixture",
    "dataset": "{base}-evaluation",
    "policy": "{base}-policy-{name}",
    "space": "{base}-space",
}
_PLACES = {
    "mixture": "mixture",
    "component": "components/{name}",
    "policy": "policies/{name}",
    "dataset": "evaluation",
}
#: The Hub's limit for the name of a repository, and what of it is left for the base and for a name of its own.
_LONGEST, _LONGEST_BASE, _LONGEST_NAME = 96, 48, 40


def shortened(text: str, longest: int) -> str:
    """A text cut to a length that no other text is cut to.

    Example:

    >>> shortened("film", 20), shortened("film" * 10, 20)
    ('film', 'filmfilmfil-b91e7825')
    """
    if len(text) <= longest:
        return text
    return f"{text[: longest - 9].rstrip('-.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def recut(text: str) -> str:
    """What [`shortened`] made, as long as the base in a repository's name that had to be cut."""
    return f"{text[: _LONGEST_BASE - 9].rstrip('-.')}{text[-9:]}"


def repo_id_of(kind: str, base: str, name: str = "") -> str:
    """Id of a repository of a push; one that would be too long for the Hub is cut, and stays its own.

    Args:
        kind (`str`): a key of `NAMES`.
        base (`str`): `namespace/name` that the user gives.
        name (`str`): of the component or policy.

    Example:

    >>> repo_id_of("component", "me/film", "likes films"), len(repo_id_of("mixture", "me/" + 90 * "f"))
    ('me/film-reward-likes-films', 59)
    """
    namespace, title = base.split("/")
    name = slug(name) if name else ""
    made = NAMES[kind].format(base=title, name=name)
    if len(made) > _LONGEST:
        made = NAMES[kind].format(base=shortened(title, _LONGEST_BASE), name=shortened(name, _LONGEST_NAME))
    return f"{namespace}/{made}"


def place_of_repo(repo_id: str, base: str) -> str:
    """Folder of a repository below the output folder of a pull.

    Args:
        repo_id (`str`): `namespace/name`.
        base (`str`): that of the push; its name may be one that was cut.

    Example:

    >>> place_of_repo("me/film-reward-concise", "me/film"), place_of_repo("you/film-mixture", "me/film")
    ('components/concise', 'others/you/film-mixture')
    """
    namespace, title = base.split("/")
    for text in dict.fromkeys((title, shortened(title, _LONGEST_BASE))):
        for kind, folder in _PLACES.items():
            pattern = re.escape(f"{namespace}/{NAMES[kind].format(base=text, name='@')}").replace("@", "(?P<name>.+)")
            if match := re.fullmatch(pattern, repo_id):
                return folder.format(**match.groupdict())
    return f"others/{repo_id}"


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
