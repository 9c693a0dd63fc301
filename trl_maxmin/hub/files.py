# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder go to the Hub, and which are taken from it: a list of what is allowed, never of what is
not."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
#: What a model repository of ours consists of. Nothing in it is a pickle, code, or names an annotator.
MODEL_FILES = (*WEIGHTS, *CONFIGS, *TOKENIZER, "README.md", "run_record.json", "*.png")
#: What a later push removes where it is no longer part of the model: left behind, it would be loaded instead.
STALE_FILES = (*WEIGHTS, *CONFIGS, "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
#: Of a Space: the package of an older push, and the run that it carried.
STALE_IN_SPACE = ("trl_maxmin-*.whl", "run/*")
DATASET_FILES = ("*.jsonl", "*.parquet", "*.csv", "*.json", "README.md", "*.png")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file name matches one of the patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def model_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Files of a model folder that are published: weights in safetensors, configuration, tokenizer.

    Args:
        folder (`str` or `os.PathLike`): what `save_pretrained` or a trainer wrote.

    Returns:
        `dict[str, Path]`: name in the repository -> file, without card, record and pictures, which are made anew.

    Raises:
        ValueError: the folder holds no weights, or only pickled ones.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. Give the output folder of a training.")
    patterns = (*WEIGHTS, *CONFIGS, *TOKENIZER)
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and matches(path.name, patterns)}
    if not any(name.endswith(".safetensors") for name in files):
        pickled = sorted(path.name for path in folder.iterdir() if matches(path.name, _PICKLES))
        found = f"only pickled files ({', '.join(pickled)})" if pickled else "no weights"
        raise ValueError(
            f"{folder} holds {found}. Save the model with `save_pretrained`, which writes .safetensors, and push it."
        )
    if not ("config.json" in files or "adapter_config.json" in files):
        raise ValueError(f"{folder} holds weights but neither config.json nor adapter_config.json.")
    return files


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
