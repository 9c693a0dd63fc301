# SPDX-License-Identifier: Apache-2.0
"""The folder of somebody's app as a Space."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import RepoCard

from .cards import CardContext, space_card
from .contents import CARD, plain_file
from .files import is_hub_id
from .plan import PushOptions
from .push import RepoPlan


#: Of an app whose folder is given; other files of it are named one by one.
APP_FILES = (
    *"app.py index.html style.css script.js requirements.txt pre-requirements.txt packages.txt Dockerfile".split(),
)
#: Fields by which a Space is configured; of the app's README these are taken over.
#: https://huggingface.co/docs/hub/spaces-config-reference
_FIELDS = (
    *"title emoji colorFrom colorTo short_description thumbnail pinned license tags models datasets".split(),
    *"sdk sdk_version python_version app_file app_port app_build_command base_path fullWidth header".split(),
    *"suggested_hardware suggested_storage startup_duration_timeout preload_from_hub disable_embedding".split(),
    *"hf_oauth hf_oauth_scopes hf_oauth_expiration_minutes hf_oauth_authorized_org custom_headers".split(),
)


def plan_space(
    folder: str | os.PathLike[str],
    repo_id: str,
    options: PushOptions,
    *,
    models: list[str],
    datasets: list[str] | None = None,
    groups: list[str] | None = None,
) -> RepoPlan:
    """An app's folder as a Space: the files of `APP_FILES`, and those that `options.space_files` names.

    Raises:
        ValueError: there is no `app.py` (of a static Space: no `index.html`), a named file is not there, or one is a
            link.
    """
    folder = Path(folder)
    main = "index.html" if options.space_sdk == "static" else "app.py"
    if not (folder / main).is_file():
        raise ValueError(f"{folder} has no {main}, so it is not an app. Give the folder of the Space with --space.")
    files: dict[str, Path | bytes] = {}
    for name in (*APP_FILES, *options.space_files):
        path = None if PurePosixPath(name).is_absolute() or ".." in name.split("/") else plain_file(folder, name)
        if path is not None:
            files[name] = path
        elif name not in APP_FILES:
            raise ValueError(f"There is no file {name!r} below {folder}. Name files by their paths in that folder.")
    card = space_card(
        CardContext(repo_id, license=options.license),
        models=models,
        datasets=datasets,
        front_matter=_front_matter(folder),
        sdk=options.space_sdk,
        groups=groups,
    )
    files[CARD] = str(card).encode()
    hosting = {"space_sdk": card.data.to_dict()["sdk"], "space_hardware": options.space_hardware}
    return RepoPlan(repo_id, "space", "", files, private=options.private, **hosting)


def _front_matter(folder: Path) -> dict[str, Any]:
    """How the app's README configures the Space; its text is the card's."""
    path = plain_file(folder, CARD)
    if path is None:
        return {}
    data = RepoCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    found = {name: value for name, value in data.items() if name in _FIELDS}
    for name in ("models", "datasets"):
        if isinstance(found.get(name), list):
            found[name] = [entry for entry in found[name] if isinstance(entry, str) and is_hub_id(entry)]
    return {name: value for name, value in found.items() if value not in (None, [])}
