# SPDX-License-Identifier: Apache-2.0
"""What leaves this machine, and what is taken from the Hub: one list of exact names, and no link is followed.

A name that is not here stays, whatever it looks like: who is assigned to which component (`em_state.safetensors`,
`assignments.json`), reference statistics, states of optimizers and trainers, notes, keys, other people's JSON. What
an evaluation folder gives is in `evaluation_files.py`, and how paths leave the files in `local_paths.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..reading import JSON_LIMIT, printable, read_json_object


CARD, FIGURE = "README.md", "comparison.png"
_STEMS = ("model", "adapter_model")
CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
#: Every name under which a tokenizer or processor of transformers writes a file (a test reads them there).
TOKENIZER = (
    *"tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json".split(),
    *"chat_template.jinja chat_template.json processor_config.json preprocessor_config.json".split(),
    *"vocab.json vocab.txt merges.txt bpe.codes dict.txt normalizer.json byte_maps.json tekken.json".split(),
    *"tokenizer.model spiece.model spm.model spm_char.model sentencepiece.model sentencepiece.bpe.model".split(),
    *"source.spm target.spm target_vocab.json vocab-src.json vocab-tgt.json entity_vocab.json".split(),
    *"prophetnet.tokenizer emoji.json word_shape.json word_pronunciation.json".split(),
)
TEMPLATES_FOLDER = "additional_chat_templates"
#: Of adapters whose base has no name to load it by.
BASE_FOLDER = "base"
#: PPO's critic, published on request only.
VALUE_HEAD, VALUE_MODEL_FOLDER = "value_head.safetensors", "value_model"
CRITIC_ADAPTER = "trl_maxmin_critic"

_SHARD = re.compile(r"(model|adapter_model)-(\d{5})-of-(\d{5})\.safetensors")
# A template's name is its author's; what lies there under such a name is what `AutoTokenizer` loads.
_TEMPLATE = re.compile(rf"{TEMPLATES_FOLDER}/[A-Za-z0-9][\w-]*\.jinja", re.ASCII)
_WEIGHTS = tuple(f"{stem}.safetensors{end}" for stem in _STEMS for end in ("", ".index.json"))
_PICKLED = re.compile(
    r"(pytorch_model|adapter_model)(-\d{5}-of-\d{5})?\.bin(\.index\.json)?|training_args\.bin|"
    r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth"
)
# Left by pushes of other tools, or of this one before it had a list.
_PRIVATE = (
    *"em_state.safetensors assignments.json trainer_state.json ppo_state.json welfare_state.json".split(),
    *"reference_statistics.safetensors reference_statistics.json".split(),
)


def plain_file(folder: Path, name: str) -> Path | None:
    """A file below a folder, `None` where there is none.

    Links are not followed: under a listed name they would carry away what lies elsewhere. The exception is a snapshot
    in the Hub's own cache, whose files are links to the `blobs` beside it.

    Args:
        folder (`Path`): what the user named; it may be reached by links.
        name (`str`): below it, with `/`.

    Raises:
        ValueError: the name, or a folder on the way to it, is a link.
    """
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink() and not _is_cached(folder, path):
            target = printable(os.readlink(path))
            raise ValueError(
                f"{path} is a link (to {target}). Links are not published, as they may lead to anything. Put the file "
                "itself there, or give the folder that it lies in."
            )
    return path if path.is_file() else None


def plain_folder(folder: Path, name: str) -> Path | None:
    """A folder below a folder that is no link, `None` where there is none.

    Raises:
        ValueError: it is a link, as [`plain_file`].
    """
    plain_file(folder, name)
    return folder / name if (folder / name).is_dir() else None


def _is_cached(folder: Path, link: Path) -> bool:
    """Whether a link in a snapshot of the Hub's cache leads to the blobs of the same repository."""
    real = folder.resolve()
    for snapshot in (real, *real.parents):
        repo = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and re.match(r"(models|datasets|spaces)--", repo.name):
            return link.resolve().parent == repo / "blobs"
    return False


def model_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Files of a model's folder that are published: weights in safetensors, configuration, tokenizer.

    The same for a mixture, a component, a policy, a base and a checkpoint.

    Args:
        folder (`str` or `os.PathLike`): what `save_pretrained` or a trainer wrote.

    Returns:
        `dict[str, Path]`: name in the repository -> file, without card, record and pictures, which are made anew.

    Raises:
        ValueError: the folder holds no weights, or only pickled ones; no configuration; a shard of the index is
            missing or of another set; a link has a name of the list.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. Give the output folder of a training.")
    weights = list(_weight_names(folder))
    if not weights:
        pickled = sorted(path.name for path in folder.iterdir() if _PICKLED.fullmatch(path.name))
        found = f"only pickled files ({', '.join(pickled)})" if pickled else "no weights"
        raise ValueError(
            f"{folder} holds {found}. Save the model with `save_pretrained`, which writes .safetensors, and push it."
        )
    names = [*weights, *CONFIGS, *TOKENIZER, *_template_names(folder)]
    files = {name: path for name in names if (path := plain_file(folder, name)) is not None}
    if not ("config.json" in files or "adapter_config.json" in files):
        raise ValueError(f"{folder} holds weights but neither config.json nor adapter_config.json.")
    return files


def _weight_names(folder: Path) -> Iterator[str]:
    """One file, or an index and the shards that it names; where both lie there, the one file is what is loaded."""
    for stem in _STEMS:
        whole, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        if plain_file(folder, whole) is not None:
            yield whole
        elif (path := plain_file(folder, index)) is not None:
            yield index
            yield from _shards(path, stem)


def _shards(index: Path, stem: str) -> list[str]:
    try:
        names = sorted(set(read_json_object(index, JSON_LIMIT)["weight_map"].values()))
        found = [_SHARD.fullmatch(name) for name in names]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights ({type(error).__name__}). Save the model anew.") from error
    if not names or not all(match and match[1] == stem for match in found):
        named = printable(", ".join(map(str, names))) or "no shard"
        raise ValueError(f"{index} names {named}; shards are called {stem}-00001-of-00002.safetensors.")
    if len({match[3] for match in found if match}) != 1:
        raise ValueError(
            f"{index} names shards of two sets ({', '.join(names)}). Save the model into an empty folder."
        )
    if missing := [name for name in names if plain_file(index.parent, name) is None]:
        raise ValueError(f"{index} names {', '.join(missing)}, which is missing. Save the model anew.")
    return names


def _template_names(folder: Path) -> list[str]:
    if plain_folder(folder, TEMPLATES_FOLDER) is None:
        return []
    names = sorted(f"{TEMPLATES_FOLDER}/{path.name}" for path in (folder / TEMPLATES_FOLDER).iterdir())
    return [name for name in names if _TEMPLATE.fullmatch(name)]


def mixture_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """[`model_files`] of a mixture, and of the base beside its adapters where that is known by no name."""
    files = model_files(folder)
    if plain_folder(Path(folder), BASE_FOLDER) is not None:
        files |= {f"{BASE_FOLDER}/{name}": path for name, path in model_files(Path(folder) / BASE_FOLDER).items()}
    return files


def critic_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """PPO's critic beside a policy: a head, or a model or adapter of its own in `value_model/`.

    Raises:
        ValueError: there is none, or as [`model_files`].
    """
    folder = Path(folder)
    head = plain_file(folder, VALUE_HEAD)
    files = {VALUE_HEAD: head} if head is not None else {}
    for name in (VALUE_MODEL_FOLDER, f"{VALUE_MODEL_FOLDER}/adapter", f"{VALUE_MODEL_FOLDER}/{CRITIC_ADAPTER}"):
        own = plain_folder(folder, name)
        if own is not None and list(_weight_names(own)):
            files |= {f"{name}/{file}": path for file, path in model_files(own).items()}
    if not files:
        raise ValueError(
            f"{folder} holds no critic ({VALUE_HEAD}, {VALUE_MODEL_FOLDER}/). PPO writes one with save_critic=True; "
            "or leave value_head out."
        )
    return files


def is_model_name(name: str) -> bool:
    """Whether a path in a repository is that of a model's file, its card, record and figure included.

    Example:

    >>> [is_model_name(name) for name in ("model-00001-of-00002.safetensors", "base/config.json", "notes.safetensors")]
    [True, True, False]
    """
    below = name.partition("/")
    if below[0] == BASE_FOLDER and below[1]:
        return _is_weight_or_config(below[2])
    if below[0] == VALUE_MODEL_FOLDER and below[1]:
        return _is_weight_or_config(re.sub(rf"^(adapter|{CRITIC_ADAPTER})/", "", below[2]))
    return _is_weight_or_config(name) or name in (VALUE_HEAD, CARD, "run_record.json", FIGURE)


def _is_weight_or_config(name: str) -> bool:
    listed = name in (*_WEIGHTS, *CONFIGS, *TOKENIZER)
    return listed or bool(_SHARD.fullmatch(name) or _TEMPLATE.fullmatch(name))


def is_stale_in_model(name: str) -> bool:
    """Whether a file that a push no longer brings is removed by it: left behind, it would be loaded instead, or it
    should never have been there."""
    if name in (CARD, "run_record.json"):
        return False
    return is_model_name(name) or bool(_PICKLED.fullmatch(name)) or name in _PRIVATE


def is_stale_in_space(name: str) -> bool:
    """The same in a Space: the package of an older push, and the run that it carried."""
    return bool(re.fullmatch(r"trl_maxmin-[^/]+\.whl", name)) or name.startswith("run/")
