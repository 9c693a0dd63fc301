# SPDX-License-Identifier: Apache-2.0
"""Getting a published run back: one repository, or all that a collection ties together."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import Collection, HfApi

from .collection import find_collection
from .contents import is_model_name
from .evaluation_files import DATASET_NAMES
from .faults import HubError, ask, keep_secret
from .files import check_repo_id, digests
from .output import NAMES


@dataclass(frozen=True)
class Pulled:
    """One repository on disk.

    Args:
        repo_id (`str`), repo_type (`str`), commit (`str`): what was pulled.
        folder (`Path`): where it is.
        left_out (`list[str]`): files that are neither safetensors, configuration, tokenizer, record nor data.
    """

    repo_id: str
    repo_type: str
    commit: str
    folder: Path
    left_out: list[str]


def pull_repo(
    repo_id: str,
    output_dir: str | os.PathLike[str],
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
) -> Pulled:
    """Download the files of one repository that are safe to load, and check that all of them arrived whole.

    Args:
        repo_id (`str`): `namespace/name`.
        output_dir (`str` or `os.PathLike`): folder for the files.
        repo_type (`str`): `"model"` or `"dataset"`.
        revision (`str`, *optional*): branch, tag or commit.
        token (`str`, *optional*)

    Raises:
        HubError: the Hub refused or was not reached, or a file is not what the Hub said; running it again continues.
        ValueError: an id that is not full, or a model without weights in safetensors.
    """
    check_repo_id(repo_id)
    keep_secret(token)
    api, doing = HfApi(token=token), f"Downloading {repo_id}"
    info = ask(doing, lambda: api.repo_info(repo_id, repo_type=repo_type, revision=revision, files_metadata=True))
    entries = {entry.rfilename: entry for entry in info.siblings or ()}
    wanted = [name for name in entries if (name in DATASET_NAMES if repo_type == "dataset" else is_model_name(name))]
    left_out = sorted(set(entries) - set(wanted) - {".gitattributes"})
    if repo_type == "model" and not any(name.endswith(".safetensors") for name in wanted):
        raise ValueError(
            f"{repo_id} holds no weights in safetensors ({', '.join(left_out) or 'no files at all'}); pickled weights "
            "are not loaded. Ask its owner for safetensors."
        )
    folder = Path(output_dir)
    # At the commit that was looked at: the client would otherwise take an old copy for the new one without a word.
    ask(
        doing,
        lambda: api.snapshot_download(
            repo_id, repo_type=repo_type, revision=info.sha, local_dir=folder, allow_patterns=wanted
        ),
    )
    for name in wanted:
        entry, path = entries[name], folder / name
        expected = entry.lfs.sha256 if entry.lfs else entry.blob_id
        if not path.is_file() or expected not in digests(path):
            raise HubError(
                f"{name} did not arrive as the Hub announced it", "Delete it and run the same command again.", doing
            )
    return Pulled(repo_id, repo_type, info.sha, folder, left_out)


def pull(
    name: str, output_dir: str | os.PathLike[str], *, token: str | bool | None = None, revision: str | None = None
) -> list[Pulled]:
    """Pull what a push published: by a repository's id, by the base id of the push, or by a collection's slug.

    Args:
        name (`str`): `me/film-mixture` (one repository), `me/film` (all of that push) or
            `me/film-64f9a55bb3115b4f513ec026` (a collection).
        output_dir (`str` or `os.PathLike`): gets the files of the one repository, or `mixture/`,
            `components/<name>/`, `policies/<name>/`, `evaluation/` as before the push.
        token (`str`, *optional*), revision (`str`, *optional*): the latter for a single repository only.

    Raises:
        HubError: the Hub refused or was not reached, or shows nothing of that name.
        ValueError: as [`pull_repo`].
    """
    check_repo_id(name)
    keep_secret(token)
    api, folder = HfApi(token=token), Path(output_dir)
    for repo_type in ("model", "dataset"):
        if ask(f"Looking for {name}", lambda t=repo_type: api.repo_exists(name, repo_type=t)):
            return [pull_repo(name, folder, repo_type=repo_type, revision=revision, token=token)]
    namespace, title = name.split("/")

    def look() -> Collection | None:
        if re.search(r"-[0-9a-f]{24}$", name):
            return api.get_collection(name)
        return find_collection(api, namespace, title)

    collection = ask(f"Looking for {name}", look)
    if collection is None:
        raise HubError(
            f"the Hub shows neither a repository nor a collection {name}", "Check the spelling and the token."
        )
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} is of one repository, and {name} is a whole push, whose repositories have "
            "histories of their own. Leave it out, or name one repository."
        )
    pulled = []
    own = [i for i in collection.items if i.item_type in ("model", "dataset") and i.note != "base model"]
    for item in own:
        target = folder / place(item.item_id, f"{namespace}/{collection.title}")
        try:
            pulled.append(pull_repo(item.item_id, target, repo_type=item.item_type, token=token))
        except HubError as error:
            done = [entry.repo_id for entry in pulled]
            rest = [i.item_id for i in own[len(done) :]]
            raise error.placed(done, rest, "repeat the same call; what is complete is not fetched again") from error
    return pulled


def place(repo_id: str, base: str) -> str:
    """Folder of a repository below the output folder.

    Example:

    >>> place("me/film-reward-concise", "me/film"), place("me/film-mixture", "me/film"), place("you/other", "me/film")
    ('components/concise', 'mixture', 'other')
    """
    for kind, folder in (
        ("mixture", "mixture"),
        ("component", "components/{name}"),
        ("policy", "policies/{name}"),
        ("dataset", "evaluation"),
    ):
        pattern = re.escape(NAMES[kind].format(base=base, name="\0")).replace("\0", "(?P<name>[^/]+)")
        if match := re.fullmatch(pattern.replace("\\\x00", "(?P<name>[^/]+)"), repo_id):
            return folder.format(**match.groupdict())
    return repo_id.split("/")[-1]
