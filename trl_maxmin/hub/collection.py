# SPDX-License-Identifier: Apache-2.0
"""The collection that ties base, components, mixture, data, policies and Space together. It comes last."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import Collection, HfApi
from huggingface_hub.errors import HfHubHTTPError

from .faults import HubError, ask, keep_secret
from .files import recut, shortened
from .push import Published


DESCRIPTION = "Reward components, their mixture, and policies trained for the worst-off group, with trl-maxmin."
#: Until all items are in, a new collection is private and says this.
UNFINISHED = "Being filled by trl-maxmin; it becomes visible when it is complete."
#: Note of what others made and the push stands on; a pull leaves it.
BASE_NOTE = "base model"
_LONGEST_TITLE = 59


def base_of(namespace: str, title: str, repo_ids: Sequence[str]) -> str:
    """Base id of the push that a collection is of; a long one, cut in the title, is found in its repositories.

    Args:
        namespace (`str`), title (`str`): of the collection.
        repo_ids (`Sequence[str]`): in it.

    Example:

    >>> base_of("me", "film", ["me/film-mixture"])
    'me/film'
    """
    for name in (repo_id.partition("/")[2] for repo_id in repo_ids):
        for end in range(len(title), len(name)):
            if shortened(name[:end], _LONGEST_TITLE) == title:
                return f"{namespace}/{name[:end]}"
    # Where all names of repositories were cut as well, they begin alike.
    cut = len(title) == _LONGEST_TITLE and re.fullmatch(r".+-[0-9a-f]{8}", title)
    return f"{namespace}/{recut(title) if cut and repo_ids else title}"


def collection_items(published: Sequence[Published]) -> list[tuple[str, str, str]]:
    """(id, type, note) of what was published."""
    items = []
    for entry in published:
        plan = entry.plan
        note = {
            "base": "reference policy",
            "component": f"reward component {plan.name}",
            "mixture": "mixture of reward components",
            "dataset": "evaluation prompts and results by group",
            "policy": f"policy {plan.name}",
            "space": "compare the policies group by group",
        }[plan.kind]
        items.append((plan.repo_id, plan.repo_type, note))
    return items


def find_collection(api: HfApi, namespace: str, title: str) -> Collection | None:
    """The collection of a push, with all of its items.

    Args:
        api (`HfApi`): whom to ask.
        namespace (`str`), title (`str`): of the base id; a long one is cut as it was when it was pushed.
    """
    title = shortened(title, _LONGEST_TITLE)
    for found in api.list_collections(owner=namespace):
        if found.title == title:
            return api.get_collection(found.slug)
    return None


def publish_collection(
    namespace: str,
    title: str,
    items: Sequence[tuple[str, str, str]],
    *,
    optional_items: Sequence[tuple[str, str, str]] = (),
    private: bool | None = None,
    token: str | bool | None = None,
) -> tuple[str, str, list[str]]:
    """Make or complete the collection. A new public one stays private until all items are in.

    Args:
        namespace (`str`), title (`str`): of the collection; one with this title is completed. A title that is too
            long for the Hub is cut, and no two are cut to the same.
        items (`Sequence`): (id, type, note); all must exist.
        optional_items (`Sequence`): others' repositories; one that the Hub does not show is left out.
        private (`bool`, *optional*): visibility of a new one. With `True` an existing public one is refused.
        token (`str`, *optional*)

    Returns:
        `tuple[str, str, list[str]]`: its slug, `"created"`, `"updated"` or `"unchanged"`, and ids left out.

    Raises:
        HubError: the Hub refused or was not reached; the repositories are complete.
        ValueError: `private=True` for one that exists and is public.
    """
    keep_secret(token)
    api, title = HfApi(token=token), shortened(title, _LONGEST_TITLE)
    doing = f"Filling the collection {title!r}"
    collection = ask(doing, lambda: find_collection(api, namespace, title))
    status = "updated"
    if collection is None:
        status = "created"
        collection = ask(
            doing,
            lambda: api.create_collection(
                title, namespace=namespace, description=UNFINISHED, private=True, exists_ok=True
            ),
        )
    elif private and not collection.private:
        raise ValueError(
            f"The collection {collection.slug} exists and is public, but private=True was asked for. Make it private "
            "on its page, or leave private out."
        )
    changed, left_out = _add(api, doing, collection, items, optional_items)
    if changed:
        # An item that was answered as a duplicate need not be one: only what is shown counts.
        shown = ask(doing, lambda: api.get_collection(collection.slug)).items
        if missing := [id for id, type, _ in items if (type, id) not in {(i.item_type, i.item_id) for i in shown}]:
            raise HubError(f"the Hub does not show {', '.join(missing)} in it", "Try again in a minute.", doing)
    if collection.description == UNFINISHED:
        ask(
            doing,
            lambda: api.update_collection_metadata(collection.slug, description=DESCRIPTION, private=bool(private)),
        )
    elif not changed:
        status = "unchanged"
    return collection.slug, status, left_out


def _add(api: HfApi, doing: str, collection: Collection, items: Any, optional_items: Any) -> tuple[bool, list[str]]:
    present = {(item.item_type, item.item_id) for item in collection.items}
    changed, left_out = False, []
    for position, (id, type, note) in enumerate([*optional_items, *items]):
        if (type, id) in present:
            continue
        try:
            ask(
                doing,
                lambda id=id, type=type, note=note: api.add_collection_item(
                    collection.slug, id, type, note=note, exists_ok=True
                ),
            )
            changed = True
        except HubError as error:
            status = error.__cause__.response.status_code if isinstance(error.__cause__, HfHubHTTPError) else None
            if position < len(optional_items) and status in (403, 404):
                left_out.append(id)
                continue
            raise
    return changed, left_out
