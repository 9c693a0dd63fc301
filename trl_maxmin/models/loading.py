# SPDX-License-Identifier: Apache-2.0
"""The one door for models and tokenizers: what is not in the file is an error, never a random weight.

transformers starts what a file lacks at random and says so in a report that nobody reads; PEFT warns. A reward whose
head is random trains a policy all the same. Source of what is checked here: transformers' `from_pretrained`
(`output_loading_info`) and `load_adapter`, 5.17 to 5.23.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, StrictDataclassError
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, find_adapter_config_file

from ..reading import printable, read_header, read_json_object
from .limits import require_enough_weights, require_sane_numbers


#: What the host raises of files that others wrote, whose settings may have any type and value.
_OF_FILES = (ValueError, OSError, RuntimeError, LookupError, ArithmeticError, AttributeError, AssertionError)
_OF_FILES += (SafetensorError, StrictDataclassError)

_PLACE = ("revision", "token", "cache_dir", "subfolder", "local_files_only")

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
#: Heads of other tasks. With embeddings that serve as output, a classifier's file lacks nothing of a language model.
_OTHER_HEADS = ("score", "classifier", "reward_head", "qa_outputs")


def place_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What among the options of `from_pretrained` says where files lie: for configuration and tokenizer too."""
    return {key: options[key] for key in _PLACE if options.get(key) is not None}


def load_pretrained(
    auto_class: Any,
    name: str | os.PathLike,
    *args: Any,
    argument: str,
    new: str | None = None,
    exact: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """A model whose every weight was in its file, or an error; where it is an adapter, on its base.

    Args:
        auto_class: `AutoModelForCausalLM` or the like, or a function that takes what its `from_pretrained` takes.
        name (`str` or path): folder or Hub id.
        argument (`str`): what the user set, for messages: `--reward_model`, "`model`".
        new (`str`, *optional*): regular expression of weights that the caller makes new, or has from elsewhere.
        exact (`bool`): whether the file may hold nothing else, a head of another task for example.
        *args, **kwargs: for `from_pretrained`.

    Returns:
        [`~transformers.PreTrainedModel`] in evaluation mode.

    Raises:
        ValueError: no such folder, a file that is missing or cut off, another kind of model; weights that are missing,
            of another shape, left over, NaN or infinite; code in the repository. The message names argument, place
            and weights.
        OSError: the Hub has no such model, or cannot be reached.
    """
    name = os.fspath(name)
    refuse_remote_code(kwargs.pop("trust_remote_code", None), argument)
    kwargs.pop("ignore_mismatched_sizes", None)
    place = place_of(kwargs)
    if not {"variant", "gguf_file"} & kwargs.keys():
        require_model_folder(name, argument, **place)
        _require_on_hub(name, argument, **place)
    adapter = find_adapter_config_file(name, **place)
    if adapter is not None:
        return _load_with_adapter(auto_class, name, _read_json(Path(adapter), argument), argument, new, kwargs)
    load = auto_class
    if hasattr(auto_class, "from_pretrained"):
        load, kwargs["trust_remote_code"] = auto_class.from_pretrained, False
    with _telling(argument, name):
        # Shapes are compared below, by name; the host would only say that there was something in its report.
        model, found = load(name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    is_new = re.compile(new or r"(?!)").search
    missing = [key for key in found["missing_keys"] if not is_new(key)]
    mismatched = [entry for entry in found["mismatched_keys"] if not is_new(entry[0])]
    extra = found["unexpected_keys"] if exact else left_over(found["unexpected_keys"], model)
    file = _file_of(name, **place)
    require_nothing(argument, file, type(model).__name__, missing, mismatched, extra)
    require_finite(model.state_dict(keep_vars=True).items(), argument, file)
    return model


def load_config(name: str | os.PathLike, argument: str, weights: bool = True, **place: Any) -> PreTrainedConfig:
    """The configuration of a model. To call for all models of a command before the first of them is loaded.

    Args:
        name (`str` or path), argument (`str`), **place: as [`load_pretrained`].
        weights (`bool`): whether a folder has to hold its weights as well.

    Returns:
        [`~transformers.PreTrainedConfig`]: of an adapter, that of its base.

    Raises:
        ValueError, OSError: as [`load_pretrained`].
    """
    name = os.fspath(name)
    require_model_folder(name, argument, weights=weights, **place)
    _require_on_hub(name, argument, weights=False, **place)
    adapter = find_adapter_config_file(name, **place)
    if adapter is not None and not os.path.isfile(os.path.join(name, place.get("subfolder", ""), "config.json")):
        name, place = _require_base(_read_json(Path(adapter), argument), name, argument), {}
    with _telling(argument, name, "config.json of "):
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **place)


def load_tokenizer(
    name: str | os.PathLike, argument: str, optional: bool = False, **place: Any
) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model.

    Args:
        name (`str` or path), argument (`str`), **place: as [`load_pretrained`]; what else `from_pretrained` takes.
        optional (`bool`): whether a model without a tokenizer is complete.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: with `optional`, `None` where there is none.

    Raises:
        ValueError, OSError: there is none, or none that can be read. For a folder without one transformers makes an
            empty one.
    """
    name = os.fspath(name)
    _require_folder(name, argument)
    if (optional or os.path.isdir(name)) and not _has_tokenizer(name, **place_of(place)):
        if optional:
            return None
        raise ValueError(
            f"{argument}: {name} has no tokenizer (neither tokenizer.json nor another vocabulary). Save the one that "
            "the model was trained with there: `tokenizer.save_pretrained(folder)`."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **place)
    except Exception as error:  # `tokenizers` raises plain exceptions
        kind = ValueError if os.path.isdir(name) else OSError
        raise kind(f"{argument}: no tokenizer can be read from {name}: {_first_line(error)}") from error
    if not tokenizer.vocab_size:
        raise ValueError(
            f"{argument}: the tokenizer of {name} has no words: its vocabulary is missing. Copy it again."
        )
    return tokenizer


def require_model_folder(
    name: str | os.PathLike, argument: str, subfolder: str = "", weights: bool = True, **_: Any
) -> None:
    """Raise where a path is no model that can be loaded. Headers are read, weights are not.

    Args:
        name (`str` or path): folder, or a Hub id, of which nothing is asked here.
        argument (`str`): as [`load_pretrained`].
        subfolder (`str`): below it.
        weights (`bool`): whether it has to hold weights, whole.

    Raises:
        ValueError: a path that does not exist, a folder without configuration or weights, a file that is missing, cut
            off or no JSON.
    """
    name = os.fspath(name)
    _require_folder(name, argument)
    if not os.path.isdir(name):
        return
    folder = Path(name, subfolder)
    config = next((f for f in ("config.json", "adapter_config.json") if (folder / f).is_file()), None)
    if config is None:
        below = sorted(
            file.parent for pattern in ("*/config.json", "*/*/config.json") for file in folder.glob(pattern)
        )
        hint = f" Did you mean {below[0]}?" if below else ""
        raise ValueError(
            f"{argument}: the folder {folder} holds no model: neither config.json nor adapter_config.json is "
            f"there.{hint}"
        )
    settings = _read_json(folder / config, argument)
    if not weights:
        return
    is_adapter = (folder / "adapter_config.json").is_file()
    allowed = _ADAPTER_WEIGHTS if is_adapter else _WEIGHTS
    file = next((folder / f for f in allowed if (folder / f).is_file()), None)
    if is_adapter and any((folder / f).is_file() for f in _WEIGHTS):
        raise ValueError(
            f"{argument}: the folder {folder} holds a whole model and an adapter (adapter_config.json), as two runs "
            "leave them that wrote to one folder. Move what is not meant to another folder."
        )
    if file is None:
        raise ValueError(f"{argument}: the folder {folder} holds no weights: there is no {allowed[0]}.")
    files = [file]
    if file.suffix == ".json":
        files = [folder / shard for shard in _shards(file, argument)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{argument}: {file} is missing; {folder} holds {len(files)} files of weights. Copy all.")
    _require_whole(files, settings, f"{folder / config}", argument)


def _require_on_hub(
    name: str, argument: str, weights: bool = True, subfolder: str | None = None, **place: Any
) -> None:
    """Of a Hub id, fetch configuration and weights and look at them as at those in a folder, before the host does.

    What the Hub does not give is not told here: the host asks for it again.
    """
    if os.path.isdir(name):
        return

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, subfolder=subfolder, **place))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None

    with suppress(OSError):
        settings: dict[str, Any] = {}
        for file in ("config.json", "adapter_config.json"):
            if path := fetch(file):
                settings |= _read_json(path, argument)
        for file in (_WEIGHTS[0], _WEIGHTS[1], _ADAPTER_WEIGHTS[0]) if weights else ():
            path = fetch(file)
            if path is None:
                continue
            shards = list(map(fetch, _shards(path, argument))) if path.suffix == ".json" else [path]
            if None in shards:
                raise ValueError(f"{argument}: {file} of {name} names files that are missing. Take another model.")
            _require_whole([shard for shard in shards if shard], settings, f"config.json of {name}", argument)
            return


def _shards(index: Path, argument: str) -> list[str]:
    """Names of the files beside an index that it lists."""
    places = _read_json(index, argument).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any(name != os.path.basename(name) or name.startswith(".") for name in names):
        raise ValueError(
            f"{argument}: {index} has no weight_map of files beside it, but {printable(names or places)}. Save the "
            "model again."
        )
    return names


def read_tensors(file: str | os.PathLike, argument: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Args:
        file (`str` or path), argument (`str`): as [`load_pretrained`].

    Raises:
        ValueError: it is missing or cut off.
    """
    if not os.path.isfile(file):
        raise ValueError(f"{argument}: {file} is missing.")
    _require_whole([Path(file)], {}, "", argument)
    return load_file(file)


def require_tensors(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], argument: str, file: str
) -> None:
    """Raise where tensors read from a file are not exactly those that a model needs.

    Args:
        expected (`Mapping[str, Tensor]`): names and shapes that are needed.
        found (`Mapping[str, Tensor]`): what the file holds.
        argument, file (`str`): for the message.

    Raises:
        ValueError: names that are missing or left over, other shapes, NaN or infinite values.
    """
    both = expected.keys() & found.keys()
    mismatched = [
        (key, tuple(found[key].shape), tuple(expected[key].shape))
        for key in both
        if found[key].shape != expected[key].shape
    ]
    require_nothing(argument, file, "model", expected.keys() - both, mismatched, found.keys() - both)
    require_finite(found.items(), argument, file)


@torch.no_grad()
def require_finite(named_tensors: Iterable[tuple[str, torch.Tensor]], argument: str, file: str) -> None:
    """Raise where a weight is NaN or infinite: one pass over the memory, nothing is allocated.

    Args:
        named_tensors: names and tensors. Integers, which quantised weights are, are finite; of a weight in shards
            (DeepSpeed ZeRO-3) this rank's part is read.
        argument, file (`str`): for the message.

    Raises:
        ValueError: names those that are not finite.
    """
    broken, seen = [], set()
    for name, tensor in named_tensors:
        tensor = getattr(tensor, "ds_tensor", tensor)
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel() or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        # float8 has no minimum.
        values = tensor if tensor.element_size() > 1 else tensor.float()
        # NaN is the minimum and maximum of whatever holds it.
        if not all(end.isfinite() for end in torch.aminmax(values)):
            broken.append(name)
    if broken:
        raise ValueError(
            f"{argument}: {file} holds weights that are NaN or infinite: {_listed(broken)}. The training that wrote "
            "it diverged, or the file was damaged: take an earlier checkpoint."
        )


def refuse_remote_code(trust_remote_code: Any, argument: str) -> None:
    """Raise where somebody asks for code of a repository to be run.

    Raises:
        ValueError: `trust_remote_code` is true.
    """
    if trust_remote_code:
        raise ValueError(
            f"{argument}: trust_remote_code={trust_remote_code!r} is refused: this package never runs code out of a "
            "model's repository. Leave it out and use a model that transformers has a class for, or load the model in "
            "a script of your own and pass it."
        )


def _load_with_adapter(
    auto_class: Any, name: str, adapter: dict[str, Any], argument: str, new: str | None, kwargs: dict[str, Any]
) -> PreTrainedModel:
    """Base and adapter one after the other: in one call transformers reports on the adapter only."""
    whole = [rf"(^|\.){re.escape(module)}\." for module in adapter.get("modules_to_save") or ()]
    rest = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
    model = load_pretrained(
        auto_class,
        _require_base(adapter, name, argument),
        argument=f"{argument}, base of {name}",
        new="|".join([*whole, *([new] if new else [])]) or None,
        revision=adapter.get("revision") or "main",
        **rest,
    )
    return add_adapter(model, name, argument, **place_of(kwargs))


def add_adapter(
    model: PreTrainedModel, name: str, argument: str, adapter_name: str = "default", **place: Any
) -> PreTrainedModel:
    """Put an adapter on a model and switch it on; others that the model has stay beside it (`model.set_adapter`).

    Args:
        model (`PreTrainedModel`): the adapter's base, without adapters or with others.
        name (`str`), argument (`str`), **place: as [`load_pretrained`].
        adapter_name (`str`): what `set_adapter` is to call it.

    Returns:
        `PreTrainedModel`: the model itself, in evaluation mode.

    Raises:
        ValueError: weights that are missing, left over, of another shape, NaN or infinite.
    """
    place = {key: value for key, value in place.items() if key != "local_files_only"}
    options = {"adapter_kwargs": place, "ignore_mismatched_sizes": True, "dtype": model.dtype}
    with _telling(argument, name):
        found = model.load_adapter(name, adapter_name=adapter_name, **options)
        missing, extra = found.missing_keys, found.unexpected_keys
        if not found.mismatched_keys and any(".modules_to_save." in key for key in missing):
            # The oldest supported transformers does not read the modules that PEFT saves whole; PEFT does.
            weights = load_peft_weights(name, "cpu", **place)
            weights = {key.removeprefix("base_model.model."): tensor for key, tensor in weights.items()}
            by_peft = set_peft_model_state_dict(model, weights, adapter_name=adapter_name)
            missing, extra = missing & set(by_peft.missing_keys), by_peft.unexpected_keys
    # Of the adapters that are there already this file holds nothing.
    others = tuple(f".{other}." for other in model.peft_config if other != adapter_name)
    missing = [key for key in missing if not any(other in key for other in others)]
    file, kind = _file_of(name, **place), f"{type(model).__name__} with this adapter"
    require_nothing(argument, file, kind, missing, found.mismatched_keys, extra)
    require_finite(model.state_dict(keep_vars=True).items(), argument, file)
    return model.eval()


def _has_tokenizer(name: str, **place: Any) -> bool:
    for file in _TOKENIZERS:
        with suppress(OSError):
            cached_file(name, file, **place)
            return True
    return False


def _require_base(adapter: dict[str, Any], name: str, argument: str) -> str:
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{argument}: adapter_config.json of {name} names no base (`base_model_name_or_path`).")
    _require_folder(base, f"{argument}, base of {name}")
    return base


def _require_folder(name: str, argument: str) -> None:
    """A Hub id is `name` or `namespace/name`; whatever else is not there was meant as a path."""
    if os.path.isdir(name):
        return
    if os.path.exists(name):
        raise ValueError(f"{argument}: {name} is a file; give the folder that holds the model.")
    if not re.fullmatch(r"[\w.-]*\w(/[\w.-]*\w)?", name) or name.startswith("."):
        raise ValueError(f"{argument}: there is no folder {name}. Give an existing folder or a Hub id.")


def _read_json(file: Path, argument: str) -> dict[str, Any]:
    """A configuration or index, whose numbers a model may have."""
    try:
        found = read_json_object(file)
        require_sane_numbers(found, str(file))
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    return found


def _require_whole(files: Iterable[Path], config: dict[str, Any], name: str, argument: str) -> None:
    """Files of weights are whole, and not of much fewer layers than the configuration (called `name`) has."""
    number = 0
    try:
        for file in files:
            if file.suffix == ".safetensors":
                number += len(read_header(file))
            elif file.stat().st_size == 0:
                raise ValueError(f"{file} is cut off or damaged (it is empty). Copy it again.")
        if number:
            require_enough_weights(config, number, name)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error


def _file_of(name: str, subfolder: str = "", **place: Any) -> str:
    """The file that holds the weights, or lists the files that do."""
    for file in (*_WEIGHTS, *_ADAPTER_WEIGHTS):
        if os.path.isfile(path := os.path.join(name, subfolder, file)):
            return path
        if not os.path.isdir(name):
            where = {key: place[key] for key in ("cache_dir", "revision") if key in place}
            if isinstance(try_to_load_from_cache(name, os.path.join(subfolder, file), **where), str):
                return f"{file} of {name}"
    return name


def left_over(unexpected: Iterable[str], model: PreTrainedModel) -> list[str]:
    """What of a file's weights a model should have taken and did not.

    Weights of a part that the model has, and as it is configured does without: layers beyond its number, biases.
    And the head of another task, of a language model. Heads beside a trunk and old buffers are nothing to miss.

    Args:
        unexpected (`Iterable[str]`): names that the host left out.
        model ([`~transformers.PreTrainedModel`]): it may be without memory.
    """
    known = model.state_dict().keys()
    patterns = {re.sub(r"(?<=\.)\d+(?=\.)", "*", key) for key in known}
    layers = {key.rpartition(".")[0] for key in known}
    return [
        key
        for key in unexpected
        if re.sub(r"(?<=\.)\d+(?=\.)", "*", key) in patterns
        or (key.endswith((".weight", ".bias")) and key.rpartition(".")[0] in layers)
        or (model.can_generate() and key.split(".")[0] in _OTHER_HEADS)
    ]


def require_nothing(
    argument: str, file: str, kind: str, missing: Iterable[str], mismatched: Iterable[tuple], extra: Iterable[str]
) -> None:
    """Raise where a file does not hold exactly the weights of a model.

    Args:
        argument, file, kind (`str`): for the message.
        missing, extra (`Iterable[str]`): names.
        mismatched (`Iterable[tuple]`): name, shape in the file, shape that is needed.

    Raises:
        ValueError: there is something in one of them.
    """
    shapes = [f"{key} {tuple(found)} instead of {tuple(needed)}" for key, found, needed in sorted(mismatched)]
    found = (("missing", sorted(missing)), ("of another shape", shapes), ("not part of it", sorted(extra)))
    parts = [f"{what}: {_listed(keys)}" for what, keys in found if keys]
    if parts:
        raise ValueError(
            f"{argument}: {file} does not hold the weights of a {kind} ({'; '.join(parts)}). What is missing would be "
            "random. Give a model that was trained and saved as what it is used for here."
        )


@contextmanager
def _telling(argument: str, name: str, file: str = "") -> Iterator[None]:
    """Errors name the argument; the host's report of what it started at random is left out: it is judged here."""
    loggers = [logging.getLogger(f"transformers.{part}") for part in ("modeling_utils", "integrations.peft")]
    for logger in loggers:
        logger.addFilter(_is_no_report)
    try:
        yield
    except (torch.OutOfMemoryError, NotImplementedError):
        raise
    except TypeError as error:  # a keyword that no such model takes
        raise ValueError(f"{argument}: {file}{name} cannot be loaded: {_first_line(error)}") from error
    except _OF_FILES as error:
        if os.path.isdir(name):
            raise ValueError(f"{argument}: {file}{name} cannot be loaded: {_first_line(error)}") from error
        raise OSError(
            f"{argument}: there is no folder {name}, and on the Hub: {file and f'{file}{name}: '}{_first_line(error)}"
        ) from error
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in str(record.msg)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # The list of all models that a class of transformers takes is no help.
    return " ".join(lines[:3] if lines[0].endswith(":") else lines[:1])


def _listed(keys: list[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
