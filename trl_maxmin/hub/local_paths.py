# SPDX-License-Identifier: Apache-2.0
"""Configurations without what is of this machine alone: where something lay, and what opens a door."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..reading import JSON_LIMIT, read_json_object
from ..run_record.parts import without_secrets
from .files import is_hub_id


#: Keys whose value says where something lay when it was loaded, and how; nothing is loaded by them.
_NAMES = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
_PATHS = re.compile(r"(^|_)(file|path|dir|folder)$")
_SECRETS = ("token", "use_auth_token", "auth_token", "hub_token", "hf_token", "access_token", "api_key", "password")
#: Below these and in `..._token` stand texts of a vocabulary, which may look like anything.
_TEXTS = (
    *"added_tokens_decoder additional_special_tokens extra_special_tokens model_specific_special_tokens".split(),
    *"chat_template response_template chat_control_tokens weight_map id2label label2id component_names".split(),
)
_ABSOLUTE = re.compile(r"(~[/\\]|/[^/\s]+/|[A-Za-z]:[\\/]|file://|\\\\)")


def is_absolute(text: str) -> bool:
    """Whether a text is a path that means something on one machine only.

    Example:

    >>> [is_absolute(text) for text in ("/home/ann/base", "~/base", "C:\\\\base", "file:///base", "me/base", "/s")]
    [True, True, True, True, False, False]
    """
    return bool(_ABSOLUTE.match(text))


def without_local(value: Any) -> Any:
    """A configuration without paths and tokens, however deep they stand.

    Args:
        value: of JSON.

    Example:

    >>> without_local({"base_config": {"_name_or_path": "/home/ann/base", "n_layer": 2}, "vocab_file": "/tmp/v.txt"})
    {'base_config': {'n_layer': 2}}
    """
    if isinstance(value, Mapping):
        return {key: _kept(key, entry) for key, entry in value.items() if not _is_local(key, entry)}
    if isinstance(value, list):
        return [without_local(entry) for entry in value if not (isinstance(entry, str) and is_absolute(entry))]
    return without_secrets(value)


def _holds_texts(key: str) -> bool:
    return key in _TEXTS or (key.endswith("_token") and key not in _SECRETS)


def _kept(key: str, value: Any) -> Any:
    return value if _holds_texts(key) else without_local(value)


def _is_local(key: str, value: Any) -> bool:
    if key in _NAMES:
        return True
    if not isinstance(value, str) or _holds_texts(key):
        return False
    if key.endswith("name_or_path"):
        return not is_hub_id(value)
    return key in _SECRETS or bool(_PATHS.search(key)) or is_absolute(value)


def for_publication(content: Path | bytes, name: str | None = None, **replaced: Any) -> Path | bytes:
    """A configuration as it is published: the file itself where nothing in it is local.

    Args:
        content (`Path` or `bytes`): a JSON object.
        name (`str`, *optional*): for messages; default: the path.
        **replaced: fields that get another value.

    Raises:
        ValueError: it is no JSON object.
    """
    config = read_json_object(content, JSON_LIMIT, name)
    public = without_local(config | replaced)
    return content if public == config else (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()
