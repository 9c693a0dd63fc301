# SPDX-License-Identifier: Apache-2.0
"""A folder that holds what the Hub holds: what earlier pulls wrote there goes when the Hub lets it go, nothing else.

Beside the files lies a list of what was pulled, with hashes. It never leaves the machine: no list of published names
has it. A file that is not as it was pulled is the user's, and is kept under another name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..reading import CONFIG_LIMIT, printable, read_json_object
from .files import digests


#: What a pull wrote into a folder, and where files wait until all of them have arrived.
LIST, WAITING = ".trl_maxmin_pull.json", ".trl_maxmin_pull.part"
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def require_names(names: Iterable[str], what: str) -> None:
    r"""Raise where a repository's files have names that are no files below a folder, on any system.

    Args:
        names (`Iterable[str]`): with `/`.
        what (`str`): whose, for the message.

    Raises:
        ValueError: absolute, with `..`, `\`, a drive or control characters, or two that differ in case alone.

    Example:

    >>> require_names(["config.json", "a [1].jinja"], "me/film")
    >>> require_names(["base/../../x"], "me/film")
    Traceback (most recent call last):
    ...
    ValueError: me/film: 'base/../../x' is no name of a file below a folder. Take nothing from this repository.
    """
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        odd = any(part in ("", ".", "..") or part.endswith((".", " ")) or _RESERVED.fullmatch(part) for part in parts)
        if odd or not name.isprintable() or re.search(r"[\\:]", name) or len(name) > 255:
            raise ValueError(
                f"{what}: '{printable(name)}' is no name of a file below a folder. Take nothing from this repository."
            )
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if seen.setdefault(path.casefold(), path) != path:
                raise ValueError(
                    f"{what}: {path!r} and {seen[path.casefold()]!r} differ in case alone, which is one file on some "
                    "disks. Ask its owner to rename one."
                )


class Mirror:
    """One repository in one folder.

    Args:
        folder (`Path`): what the user named; it may be reached by links, nothing in it is.
        repo_id (`str`), repo_type (`str`): what is pulled into it.

    Raises:
        ValueError: the folder holds a pull of something else, or a list that cannot be read.
    """

    def __init__(self, folder: Path, repo_id: str, repo_type: str) -> None:
        self.folder, self.waiting = folder, folder / WAITING
        self.about = {"repo_id": repo_id, "repo_type": repo_type}
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; give a folder for {repo_id}.")
        written = read_list(folder)
        if written and {key: written.get(key) for key in self.about} != self.about:
            other = printable(written.get("repo_id") or written.get("collection"))
            raise ValueError(f"{folder} holds what was pulled of {other}. Name another folder for {repo_id}.")
        #: name -> hashes that a pull wrote there; of an interrupted one, those before and after.
        self.known: dict[str, set[str]] = {}
        for field in ("files", "before"):
            for name, digest in (written.get(field) or {}).items():
                self.known.setdefault(name, set()).update(digest.split())
        if self.waiting.is_symlink() or any(path.is_symlink() for path in self.waiting.rglob("*")):
            self.clear()

    def require_own(self, wanted: Iterable[str], is_listed: Any) -> None:
        """Raise where files of another model lie there that no pull wrote: together they would be a third one.

        Raises:
            ValueError: names them.
        """
        present = {path.relative_to(self.folder).as_posix() for path in _walk(self.folder)}
        other = sorted(name for name in present - set(wanted) - self.known.keys() if is_listed(name))
        if other:
            raise ValueError(
                f"{self.folder} holds files that no pull wrote ({', '.join(map(printable, other[:5]))}). Together "
                f"with {self.about['repo_id']} they would be another model: pull into an empty folder."
            )

    def find(self, name: str, expected: str) -> Path | None:
        """A file that is there already, arrived or in its place, with the content that the Hub announces."""
        for folder in (self.waiting, self.folder):
            path = folder / name
            if not _through_link(folder, name) and path.is_file() and expected in digests(path):
                return path
        return None

    def put(self, files: Mapping[str, Path], commit: str) -> tuple[list[str], list[str]]:
        """Bring files to their places, and remove what a pull wrote and the Hub no longer has.

        Args:
            files (`Mapping[str, Path]`): name -> file, of [`~Mirror.find`].
            commit (`str`): that they are of.

        Returns:
            `tuple[list[str], list[str]]`: names under which the user's own files were kept, and what was removed.

        Raises:
            ValueError: a folder on the way to a file is a link.
        """
        kept: list[str] = []
        removed: list[str] = []
        new = {name: digests(path)[1] for name, path in files.items()}
        gone = sorted(self.known.keys() - new.keys())
        for name in [*new, *gone]:
            self._require_no_link(name)
        # Whatever happens from here on, a later pull knows both states for its own.
        before = {name: " ".join(sorted(hashes)) for name, hashes in self.known.items()}
        self._write({"commit": "", "files": new, "before": before})
        for name in gone:
            aside = self._aside(name, set())
            kept += aside
            removed += [] if aside else [name]
            self._remove(name)
        for name, path in files.items():
            target = self.folder / name
            if path != target:
                kept += self._aside(name, {new[name]})
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        self._write({"commit": commit, "files": new})
        self.clear()
        return kept, removed

    def clear(self) -> None:
        """Remove what waits."""
        if self.waiting.is_symlink():
            self.waiting.unlink()
        shutil.rmtree(self.waiting, ignore_errors=True)

    def _aside(self, name: str, same: set[str]) -> list[str]:
        """Rename a file that no pull wrote, so that nothing of the user's is lost; a link is renamed, not followed."""
        path = self.folder / name
        for above in reversed([parent for parent in PurePosixPath(name).parents if parent.name]):
            if (self.folder / above).exists() and not (self.folder / above).is_dir():
                return self._rename(above.as_posix())
        if not path.is_symlink():
            if not path.exists():
                return []
            if path.is_file() and digests(path)[1] in self.known.get(name, set()) | same:
                return []
        return self._rename(name)

    def _rename(self, name: str) -> list[str]:
        number, other = 1, f"{name}.yours"
        while os.path.lexists(self.folder / other):
            number, other = number + 1, f"{name}.yours{number + 1}"
        os.rename(self.folder / name, self.folder / other)
        return [other]

    def _remove(self, name: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self.folder or not parent.is_dir() or any(parent.iterdir()):
                return
            parent.rmdir()

    def _require_no_link(self, name: str) -> None:
        if link := _through_link(self.folder, name):
            raise ValueError(f"{link} is a link; a pull writes into its own folder only. Remove the link.")

    def _write(self, facts: dict[str, Any]) -> None:
        write_list(self.folder, {**self.about, **facts})


def read_list(folder: Path) -> dict[str, Any]:
    """What earlier pulls wrote into a folder; empty where there was none.

    Raises:
        ValueError: the list is damaged, or names what is not below the folder.
    """
    path = folder / LIST
    if not path.is_file() or path.is_symlink():
        return {}
    remedy = f"Delete {path} and what was pulled, and pull again."
    try:
        facts = read_json_object(path, CONFIG_LIMIT)
        for field in ("files", "before", "folders"):
            entries = facts.get(field) or {}
            if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
                raise ValueError(f"{field} is no list of names")
            require_names(entries, str(path))
    except ValueError as error:
        raise ValueError(f"{path} is not what a pull wrote: {error} {remedy}") from error
    return facts


def write_list(folder: Path, facts: dict[str, Any]) -> None:
    """Replace the list; a reader sees the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{LIST}.{os.getpid()}"
    temporary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, folder / LIST)


def remove_pulled(folder: Path, place: str) -> tuple[list[str], list[str]]:
    """Remove what pulls wrote into the folder of a repository, and the folder where nothing else is in it.

    Args:
        folder (`Path`): of the whole pull.
        place (`str`): of the repository below it.

    Returns:
        `tuple[list[str], list[str]]`: names under which the user's own files were kept, and what was removed.

    Raises:
        ValueError: as [`read_list`] and [`Mirror.put`].
    """
    if link := _through_link(folder, f"{place}/{LIST}"):
        raise ValueError(f"{link} is a link; a pull writes into its own folder only. Remove the link.")
    own = folder / place
    written = read_list(own)
    if not written.get("repo_id"):
        return [], []
    kept, removed = Mirror(own, written["repo_id"], written.get("repo_type", "")).put({}, "")
    (own / LIST).unlink(missing_ok=True)
    for path in (own, *own.parents):
        if path == folder or any(path.iterdir()):
            break
        path.rmdir()
    return kept, removed


def _through_link(folder: Path, name: str) -> Path | None:
    """The first folder on the way to a file that is a link."""
    path = folder
    for part in PurePosixPath(name).parts[:-1]:
        path = path / part
        if path.is_symlink():
            return path
    return None


def _walk(folder: Path) -> Iterable[Path]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == WAITING:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path
