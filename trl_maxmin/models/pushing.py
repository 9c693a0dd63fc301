# SPDX-License-Identifier: Apache-2.0
"""`push_to_hub` of a mixture and of its components: methods of [`MixtureRewardModel`].

The work is done in `trl_maxmin.hub`, which is imported only then.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils import CONFIG_NAME


if TYPE_CHECKING:
    from ..hub import Published
    from ..run_record import RunRecord
    from .modeling_mixture_reward import MixtureRewardModel


def push_to_hub(
    mixture: MixtureRewardModel,
    repo_id: str,
    *,
    record: RunRecord | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    max_shard_size: int | str | None = None,
) -> Published:
    """One repository that `MixtureRewardModel.from_pretrained(repo_id)` loads.

    Weights, configuration, tokenizer, card and record arrive in one commit. A mixture that was loaded from a
    folder with a `run_record.json` takes its card from that record.

    Args:
        repo_id (`str`): `namespace/name`.
        record ([`RunRecord`], *optional*): what the card says; without one only what the mixture itself knows.
        private (`bool`, *optional*): visibility of a new repository; an existing public one is refused.
        token (`str`, *optional*): default: that of `hf auth login` or HF_TOKEN.
        revision (`str`, *optional*), commit_message (`str`, *optional*): as in transformers.
        license (`str`, *optional*): for the card.
        base_model (`str`, *optional*): Hub id of the base, where the mixture only knows a path.
        max_shard_size (`int` or `str`, *optional*): as in `save_pretrained`.

    Returns:
        [`~trl_maxmin.hub.Published`]

    Raises:
        HubError: the Hub refused or was not reached; the message says how to continue.
        ValueError: an id that is not full, or adapters whose base is not on the Hub.

    Example:

    ```python
    mixture.push_to_hub("me/film-mixture", private=True)
    mixture.push_components_to_hub("me/film-reward-{name}", private=True)
    ```
    """
    from ..hub.models import push_mixture

    options: dict[str, Any] = {"private": private, "license": license, "base_model": base_model}
    where = {"token": token, "revision": revision, "commit_message": commit_message}
    return push_mixture(mixture, repo_id, record, options, where, max_shard_size)


def push_components_to_hub(
    mixture: MixtureRewardModel,
    repo_id: str,
    *,
    record: RunRecord | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> list[Published]:
    """One repository per component, each loadable without this package: a plain one-label sequence classifier, or
    a standard PEFT adapter.

    Args:
        repo_id (`str`): with `{name}` where the component's name goes, as in `"me/film-reward-{name}"`.
        record, private, token, revision, commit_message, license, base_model: as
            [`~MixtureRewardModel.push_to_hub`].

    Returns:
        `list`: a [`~trl_maxmin.hub.Published`] per component.

    Raises:
        HubError: the Hub refused or was not reached; the message says which components are complete.
        ValueError: no `{name}` in `repo_id`, names that give the same id, or adapters whose base is not on the
            Hub.
    """
    from ..hub.models import push_components

    options: dict[str, Any] = {"private": private, "license": license, "base_model": base_model}
    where = {"token": token, "revision": revision, "commit_message": commit_message}
    return push_components(mixture, repo_id, record, options, where)


def origin(name: str, **place: Any) -> dict[str, Any]:
    """Where the files lie that a mixture was just loaded from, so that its record and card are found beside them.

    Args:
        name (`str`): folder or Hub id.
        **place: `revision`, `subfolder`, `cache_dir` as in `from_pretrained`.

    Returns:
        `dict`: the same; of a branch on the Hub, the commit that was loaded.
    """
    kept = {key: place[key] for key in ("revision", "subfolder", "cache_dir") if place.get(key) is not None}
    if not os.path.isdir(name):
        file = "/".join(filter(None, (kept.get("subfolder"), CONFIG_NAME)))
        cached = try_to_load_from_cache(name, file, kept.get("cache_dir"), kept.get("revision"))
        if isinstance(cached, str):
            kept["revision"] = Path(cached.removesuffix(file)).name
    return {"name": name, **kept}
