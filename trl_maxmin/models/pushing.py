# SPDX-License-Identifier: Apache-2.0
"""`push_to_hub` of a mixture and of its components: methods of [`MixtureRewardModel`].

The mixture is written to a temporary folder first, and leaves by the same door as one on disk. `trl_maxmin.hub` is
imported only then.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
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

    Weights, configuration, tokenizer, card and record arrive in one commit. A mixture takes its card from the record
    beside the files that it was loaded from, in a folder or on the Hub.

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
    from ..hub.files import check_repo_id
    from ..hub.plan import PushOptions, plan_mixture
    from ..hub.push import publish

    check_repo_id(repo_id)
    options = PushOptions(private=private, license=license, base_model=base_model)
    with tempfile.TemporaryDirectory() as folder:
        mixture.save_pretrained(folder, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
        if (card := _beside(mixture, "README.md", token)) is not None:
            shutil.copyfile(card, Path(folder, "README.md"))  # what it says beyond the record is kept
        plan = plan_mixture(folder, repo_id, record or _record_of(mixture, token), options)
        return publish([plan], token=token, revision=revision, commit_message=commit_message)[0]


def push_components_to_hub(
    mixture: MixtureRewardModel, repo_id: str, *, record: RunRecord | None = None, **options: Any
) -> list[Published]:
    """One repository per component, each loadable without this package: a plain one-label sequence classifier, or
    a standard PEFT adapter.

    Args:
        repo_id (`str`): with `{name}` where the component's name goes, as in `"me/film-reward-{name}"`.
        record: as [`~MixtureRewardModel.push_to_hub`].
        **options: `private`, `token`, `revision`, `commit_message`, `license`, `base_model`, as there.

    Returns:
        `list`: a [`~trl_maxmin.hub.Published`] per component.

    Raises:
        HubError: the Hub refused or was not reached; the message says which components are complete.
        ValueError: no `{name}` in `repo_id`, names that give the same id, or adapters whose base is not on the
            Hub.
    """
    from ..hub.files import check_repo_id, slug
    from ..hub.plan import PushOptions, plan_component
    from ..hub.push import publish
    from ..run_record import RunRecord

    names = mixture.component_names
    if "{name}" not in repo_id:
        raise ValueError(
            f"repo_id={repo_id!r} has no {{name}}, but there are {len(names)} components. Write it as in "
            "'me/film-reward-{name}'."
        )
    where = {key: options.pop(key, None) for key in ("token", "revision", "commit_message")}
    shared = PushOptions(**{key: options.pop(key, None) for key in ("private", "license", "base_model")})
    if options:
        raise TypeError(f"push_components_to_hub() got an unexpected keyword argument {next(iter(options))!r}")
    ids = {name: check_repo_id(repo_id.replace("{name}", slug(name))) for name in names}
    # Of a mixture without a record, the names are still known.
    record = RunRecord.from_dict((record or _record_of(mixture, where["token"])).to_dict())
    record.update("reward", num_components=len(names), component_names=record.reward.get("component_names", names))
    with tempfile.TemporaryDirectory() as parent:
        plans = []
        for name in names:
            folder = Path(parent) / slug(name)
            mixture.save_component(name, folder)
            plans.append(plan_component(folder, ids[name], name, record, shared))
        return publish(plans, **where)


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


def _record_of(mixture: MixtureRewardModel, token: str | bool | None) -> RunRecord:
    """The record beside the files that the mixture was loaded from, an empty one where there is none."""
    from ..run_record import RUN_RECORD_NAME, RunRecord

    path = _beside(mixture, RUN_RECORD_NAME, token)
    return RunRecord.load(path) if path is not None else RunRecord()


def _beside(mixture: MixtureRewardModel, name: str, token: str | bool | None) -> Path | None:
    """A file beside those that the mixture was loaded from, in a folder or on the Hub, of the same commit."""
    from ..hub.faults import ask

    place = dict(mixture._origin)
    source = place.pop("name", None)
    if source is None:
        return None
    if os.path.isdir(source):
        path = Path(source, place.get("subfolder", ""), name)
        return path if path.is_file() else None

    def find() -> Path | None:
        try:
            return Path(hf_hub_download(source, name, token=token, **place))
        except LocalEntryNotFoundError:  # the Hub was not asked
            raise
        except EntryNotFoundError:
            return None

    return ask(f"Reading {name} of {source}", find)
