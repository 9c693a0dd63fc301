# SPDX-License-Identifier: Apache-2.0
"""Getting a published run back: one repository, or all that a collection ties together, as the Hub has it now."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import Collection, HfApi

from ..reading import JSON_LIMIT, printable, read_json
from .collection import BASE_NOTE, base_of, find_collection
from .contents import is_model_name
from .evaluation_files import DATASET_NAMES
from .faults import HubError, HubInterrupted, ask, keep_secret
from .files import check_repo_id, place_of_repo
from .integrity import require_whole
from .mirror import Mirror, read_list, remove_pulled, require_names, write_list


@dataclass(frozen=True)
class Pulled:
    """One repository on disk.

    Args:
        repo_id (`str`), repo_type (`str`), commit (`str`): what was pulled; without a commit, what the collection no
            longer has and was removed.
        folder (`Path`): where it is.
        left_out (`list[str]`): files that are not on the list of what is taken.
        kept (`list[str]`): names under which files of the user's, which were in the way, now lie in the folder.
        removed (`list[str]`): what an earlier pull wrote and the Hub no longer has.
    """

    repo_id: str
    repo_type: str
    commit: str
    folder: Path
    left_out: list[str]
    kept: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def pull_repo(
    repo_id: str,
    output_dir: str | os.PathLike[str],
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
) -> Pulled:
    """Make a folder hold what a repository holds: the files that are safe to load, whole, and nothing of older pulls.

    Nothing in the folder changes until all files have arrived, have the hashes that the Hub announced, and are of one
    model. Files that a user changed, or put there, are kept beside as `<name>.yours`.

    Args:
        repo_id (`str`): `namespace/name`.
        output_dir (`str` or `os.PathLike`): folder for the files: empty, or of an earlier pull of this repository.
        repo_type (`str`): `"model"` or `"dataset"`.
        revision (`str`, *optional*): branch, tag or commit.
        token (`str`, *optional*)

    Raises:
        HubError: the Hub refused or was not reached, or a file is not what the Hub said; running it again continues.
        ValueError: an id that is not full, a model without weights in safetensors, names that are no files of a
            folder, files that do not belong together ([`~trl_maxmin.hub.integrity.require_whole`]), or a folder that
            holds something else.
    """
    check_repo_id(repo_id)
    keep_secret(token)
    api, doing = HfApi(token=token), f"Downloading {repo_id}"
    info = ask(doing, lambda: api.repo_info(repo_id, repo_type=repo_type, revision=revision, files_metadata=True))
    entries = {entry.rfilename: entry for entry in info.siblings or ()}
    # All of them: what has such a file is not what it pretends to be.
    require_names((name for name in entries if name != ".gitattributes"), repo_id)
    is_listed: Callable[[str], bool] = DATASET_NAMES.__contains__ if repo_type == "dataset" else is_model_name
    wanted = sorted(name for name in entries if is_listed(name))
    left_out = sorted(set(entries) - set(wanted) - {".gitattributes"})
    _require_worth(repo_id, repo_type, wanted, left_out, entries)
    folder = Path(output_dir)
    mirror = Mirror(folder, repo_id, repo_type)
    mirror.require_own(wanted, is_listed)
    files = {name: _fetch(api, mirror, name, entries[name], info.sha, doing) for name in wanted}
    try:
        for name in wanted:
            if name.endswith(".json"):
                read_json(files[name], name=f"{repo_id}: {name}")
        if repo_type == "model":
            require_whole(files, repo_id)
    except ValueError:
        mirror.clear()
        raise
    kept, removed = mirror.put(files, info.sha)
    return Pulled(repo_id, repo_type, info.sha, folder, left_out, kept, removed)


def _require_worth(repo_id: str, repo_type: str, wanted: list[str], left_out: list[str], entries: Any) -> None:
    """Before anything is downloaded: there are weights, and nothing is larger than what is read."""
    if repo_type == "model" and not any(name.endswith(".safetensors") for name in wanted):
        raise ValueError(
            f"{repo_id} holds no weights in safetensors ({', '.join(map(printable, left_out)) or 'no files at all'}); "
            "pickled weights are not loaded. Ask its owner for safetensors."
        )
    for name in wanted:
        size = entries[name].size or 0
        if not name.endswith((".safetensors", ".jsonl", ".parquet")) and size > JSON_LIMIT:
            raise ValueError(f"{repo_id}: {name} has {size:,} bytes; up to {JSON_LIMIT:,} are taken of such a file.")


def _fetch(api: HfApi, mirror: Mirror, name: str, entry: Any, commit: str, doing: str) -> Path:
    """A file with the content that the Hub announced; what came out of a damaged cache is fetched once more."""
    expected = entry.lfs.sha256 if entry.lfs else entry.blob_id
    for force in (False, True):
        if (path := mirror.find(name, expected)) is not None:
            return path
        # At the commit that was looked at: the client would otherwise take an old copy for the new one without a word.
        ask(
            doing,
            lambda force=force: api.hf_hub_download(
                mirror.about["repo_id"],
                name,
                repo_type=mirror.about["repo_type"],
                revision=commit,
                local_dir=mirror.waiting,
                force_download=force,
            ),
        )
    if (path := mirror.find(name, expected)) is not None:
        return path
    (mirror.waiting / name).unlink(missing_ok=True)
    raise HubError(f"{name} did not arrive as the Hub announced it", "Run the same command again.", doing)


def pull(
    name: str, output_dir: str | os.PathLike[str], *, token: str | bool | None = None, revision: str | None = None
) -> list[Pulled]:
    """Pull what a push published: by a repository's id, by the base id of the push, or by a collection's slug.

    Args:
        name (`str`): `me/film-mixture` (one repository), `me/film` (all of that push) or
            `me/film-64f9a55bb3115b4f513ec026` (a collection).
        output_dir (`str` or `os.PathLike`): gets the files of the one repository, or `mixture/`,
            `components/<name>/`, `policies/<name>/`, `evaluation/` as before the push, and others that somebody put
            into the collection in `others/<namespace>/<name>/`.
        token (`str`, *optional*), revision (`str`, *optional*): the latter for a single repository only.

    Raises:
        HubError: the Hub refused or was not reached, or shows nothing of that name.
        HubInterrupted: on Ctrl-C; it says what is complete.
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
    return _pull_collection(collection, namespace, folder, token)


def _pull_collection(collection: Collection, namespace: str, folder: Path, token: str | bool | None) -> list[Pulled]:
    about = {"collection": collection.slug}
    written = read_list(folder)
    if written and written.get("collection") != collection.slug:
        other = printable(written.get("repo_id") or written.get("collection"))
        raise ValueError(f"{folder} holds what was pulled of {other}. Name another folder for {collection.slug}.")
    own = [i for i in collection.items if i.item_type in ("model", "dataset") and i.note != BASE_NOTE]
    base = base_of(namespace, collection.title, [check_repo_id(item.item_id) for item in own])
    places = {place_of_repo(item.item_id, base): item for item in own}
    require_names(places, collection.slug)
    before = dict(written.get("folders") or {})
    write_list(folder, {**about, "folders": before | {place: item.item_id for place, item in places.items()}})
    pulled: list[Pulled] = []
    for place, item in places.items():
        if before.get(place, item.item_id) != item.item_id:  # it now is another repository's
            remove_pulled(folder, place)
        try:
            pulled.append(pull_repo(item.item_id, folder / place, repo_type=item.item_type, token=token))
        except (HubError, KeyboardInterrupt) as error:
            done = [entry.repo_id for entry in pulled]
            rest = [i.item_id for i in own[len(done) :]]
            again = "repeat the same call; what is complete is not fetched again"
            if isinstance(error, HubError):
                raise error.placed(done, rest, again) from error.__cause__
            raise HubInterrupted(done, rest, again, where=f"in {folder}") from None
    for place in sorted(before.keys() - places.keys()):
        kept, removed = remove_pulled(folder, place)
        pulled.append(Pulled(before[place], "", "", folder / place, [], kept, removed))
    write_list(folder, {**about, "folders": {place: item.item_id for place, item in places.items()}})
    return pulled
