# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a model belong together, before they are sent and before a pull says that it is done.

Headers are read and held against the configuration, by the host's own loading on a model without memory; of the
weights only small ones (heads, norms) are read, for NaN. Nothing in a file is ever run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..reading import CONFIG_LIMIT, JSON_LIMIT, TensorInfo, printable, read_header, read_json_object
from .contents import BASE_FOLDER


Files = Mapping[str, Path | bytes]
Tensors = dict[str, TensorInfo]

_MODEL, _ADAPTER = "model.safetensors", "adapter_model.safetensors"
_SHARD = re.compile(r"(model|adapter_model)-\d{5,}-of-\d{5,}\.safetensors")
#: A tensor up to this size is read for NaN, and so many bytes in all.
_SMALL, _BUDGET = 4 * 2**20, 64 * 2**20
#: Tensors of PEFT that come in pairs: the rank is the first size of the first and the second of the second.
_PAIRS = ((".lora_A.", ".lora_B."), (".lora_embedding_A", ".lora_embedding_B"))


def require_whole(files: Files, what: str) -> None:
    """Raise where the files of a model repository are not all of one model, each of them whole.

    Args:
        files (`Mapping[str, Path | bytes]`): name in the repository -> file on disk, or what it holds.
        what (`str`): of whom the message speaks: `me/film-mixture`.

    Raises:
        ValueError: a file is missing, empty, cut off, damaged, too large or of another model than `config.json`
            describes; a pair of an adapter is incomplete; small weights are NaN or infinite; ids of the tokenizer
            lie beyond the embedding. The message names `what`, the file, what was found and what to do.

    Example:

    >>> require_whole({"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b""}, "me/film")
    Traceback (most recent call last):
    ...
    ValueError: me/film: model.safetensors is cut off or damaged (it is empty). Copy it again.
    """
    try:
        folders: dict[str, dict[str, Path | bytes]] = {"": {}}
        for name, file in files.items():
            folder, _, own = name.rpartition("/")
            folders.setdefault(f"{folder}/" if folder else "", {})[own] = file
        for folder, inside in folders.items():
            # Others hold templates of chats.
            if not folder or any(name.endswith((".safetensors", ".index.json", "config.json")) for name in inside):
                _require_model(inside, f"{BASE_FOLDER}/" in folders, folder)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{what}: {error}") from error


def _require_model(files: Files, has_base: bool, folder: str = "") -> None:
    adapter = "adapter_config.json" in files
    tensors = _tensors_of(files, folder, "adapter_model" if adapter else "model")
    if adapter:
        config = read_json_object(files["adapter_config.json"], name=f"{folder}adapter_config.json")
        _require_adapter(config, tensors, folder)
    elif "config.json" in files:
        config = read_json_object(files["config.json"], CONFIG_LIMIT, f"{folder}config.json")
        rows = _require_configured(config, tensors, f"{folder}config.json", has_base)
        if rows is not None:
            _require_vocabulary(files, rows, folder)
    else:
        raise ValueError(
            f"neither {folder}config.json nor {folder}adapter_config.json is there. Save the model again."
        )
    _require_finite(files, tensors)


# -- files ------------------------------------------------------------------------------------------------------------


def _tensors_of(files: Files, folder: str, stem: str) -> dict[str, tuple[str, TensorInfo]]:
    """Tensor -> file and place, of the weights; every safetensors file is looked at."""
    headers = {
        name: read_header(file, f"{folder}{name}") for name, file in files.items() if name.endswith(".safetensors")
    }
    whole, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    found = [name for name in headers if name in (_MODEL, _ADAPTER) or _SHARD.fullmatch(name)]
    shards = {name for name in found if name not in (_MODEL, _ADAPTER)}
    if odd := sorted(name for name in found if name.split("-")[0].split(".")[0] != stem):
        kind = "an adapter" if stem == "adapter_model" else "a whole model"
        raise ValueError(f"{folder}{odd[0]} does not belong to {kind}, which the configuration beside it describes.")
    if index in files:
        if whole in headers:
            raise ValueError(f"{folder}{index} lists shards, and {whole} is there too. Keep one of them.")
        return _of_shards(read_json_object(files[index], name=folder + index), headers, shards, folder + index)
    if shards:
        raise ValueError(f"{folder}{min(shards)} is a part of a model, and {index} is missing. Copy all files.")
    if whole not in headers:
        raise ValueError(f"{folder}{whole} is missing. Save the model with `save_pretrained`, or copy all files.")
    return {key: (whole, info) for key, info in headers[whole].items()}


def _of_shards(
    index: dict[str, Any], headers: Mapping[str, Tensors], shards: set[str], name: str
) -> dict[str, tuple[str, TensorInfo]]:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{name} has no weight_map of names. Save the model again.")
    for shard in sorted(set(places.values())):
        if not _SHARD.fullmatch(shard):
            raise ValueError(f"{name} names '{printable(shard)}'; shards are called model-00001-of-00002.safetensors.")
        if shard not in headers:
            raise ValueError(f"{name} names {shard}, which is missing. Copy all files.")
    for shard in sorted(shards):
        named = {key for key, place in places.items() if place == shard}
        if named != set(headers[shard]):
            odd = printable(sorted(named ^ set(headers[shard]))[0])
            raise ValueError(f"{shard} and {name} do not agree on what it holds ({odd}). Copy both again.")
    return {key: (place, headers[place][key]) for key, place in places.items()}


def _require_finite(files: Files, tensors: Mapping[str, tuple[str, TensorInfo]]) -> None:
    """Small tensors, of which heads are, are read; a large one is only as good as its header."""
    import torch

    left = _BUDGET
    for key, (name, info) in sorted(tensors.items(), key=lambda item: item[1][1].end - item[1][1].start):
        size = info.end - info.start
        dtype = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(
            info.dtype
        )
        if size > min(_SMALL, left):
            return
        if dtype is None or not size:
            continue
        left -= size
        if not torch.frombuffer(bytearray(_part(files[name], info)), dtype=dtype).isfinite().all():
            raise ValueError(
                f"{name} holds weights that are NaN or infinite: {printable(key)}. The training that wrote it "
                "diverged, or the file was damaged: take an earlier checkpoint."
            )


def _part(source: Path | bytes, info: TensorInfo) -> bytes:
    if isinstance(source, bytes):
        return source[info.start : info.end]
    with open(source, "rb") as file:
        file.seek(info.start)
        return file.read(info.end - info.start)


# -- against the configuration ----------------------------------------------------------------------------------------


def _require_configured(
    config: dict[str, Any], tensors: Mapping[str, tuple[str, TensorInfo]], name: str, has_base: bool
) -> int | None:
    """Names and shapes are those of the model that the configuration describes.

    Returns:
        `int` or `None`: rows of the embedding, where the model was built.
    """
    import torch
    from transformers import AutoConfig

    from ..models.configuration_mixture_reward import MixtureRewardModelConfig
    from ..models.limits import require_enough_weights, require_sane_numbers

    require_sane_numbers(config, name)
    _refuse_own_code(config, name)
    kind = config.get("model_type")
    try:
        built = AutoConfig.for_model(**config) if isinstance(kind, str) else None
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{name} describes no model that can be made: {_short(error)}. Save the model again."
        ) from error
    if built is None:
        raise ValueError(f"{name} has no model_type. Save the model with `save_pretrained`.")
    if config.get("quantization_config"):
        return None  # names and shapes are those of its quantiser, which need not be installed
    require_enough_weights(config, len(tensors), name)
    mixture = isinstance(built, MixtureRewardModelConfig)
    file = ", ".join(sorted({place for place, _ in tensors.values()})[:3])
    with _quiet(), torch.device("meta"):
        # A header may promise what the machine does not have; on `meta` nothing takes memory.
        shapes = {key: _empty(info) for key, (_, info) in tensors.items()}
        if mixture and built.component_type == "lora":
            return _require_adapters(built, shapes, has_base, name, file)
        return _require_weights(built, shapes, mixture, name, file)


def _require_weights(built: Any, shapes: dict[str, Any], mixture: bool, name: str, file: str) -> int | None:
    from transformers import PreTrainedModel

    from ..models.loading import left_over, require_nothing
    from ..models.shards import whole_weights

    cls = _class_of(built, shapes)
    try:
        with whole_weights():
            # The function of the base class: a mixture's own loads files.
            model, found = PreTrainedModel.from_pretrained.__func__(  # type: ignore[attr-defined]
                cls, None, config=built, state_dict=shapes, device_map={"": "meta"},
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as error:  # whatever a class does with numbers that do not fit each other
        raise ValueError(f"{name} describes no {cls.__name__} that can be made: {_short(error)}.") from error
    unexpected = sorted(found["unexpected_keys"])
    extra = unexpected if mixture else left_over(unexpected, model)
    require_nothing(name, file, cls.__name__, found["missing_keys"], found["mismatched_keys"], extra)
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    return None if embedding is None else embedding.shape[0]


def _require_adapters(config: Any, shapes: dict[str, Any], has_base: bool, name: str, file: str) -> None:
    from ..models.components import is_own_weight
    from ..models.loading import require_nothing
    from ..models.modeling_mixture_reward import MixtureRewardModel
    from ..models.shards import whole_weights

    if not has_base and not config.base_model_name_or_path:
        raise ValueError(
            f"{name}: the adapters have no base: there is no folder {BASE_FOLDER}/, and base_model_name_or_path names "
            "none. Save the mixture again, or name its base."
        )
    try:
        with whole_weights():
            model = MixtureRewardModel(config)
    except Exception as error:  # as above
        raise ValueError(f"{name} describes no mixture that can be made: {_short(error)}.") from error
    own = {key: tensor for key, tensor in model.state_dict().items() if is_own_weight(model, key)}
    both = own.keys() & shapes.keys()
    other = [
        (key, tuple(shapes[key].shape), tuple(own[key].shape)) for key in both if shapes[key].shape != own[key].shape
    ]
    require_nothing(name, file, "mixture of adapters", own.keys() - both, other, shapes.keys() - both)


def _class_of(config: Any, shapes: Mapping[str, Any]) -> Any:
    """The class that the configuration names, or that the names of the weights suggest."""
    import transformers
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        MODEL_MAPPING,
        PreTrainedModel,
    )

    from ..models.configuration_mixture_reward import MixtureRewardModelConfig
    from ..models.modeling_mixture_reward import MixtureRewardModel

    if isinstance(config, MixtureRewardModelConfig):
        return MixtureRewardModel
    for name in config.architectures or ():
        cls = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.config_class is type(config):
            return cls
    has_head = any(key.startswith(("score.", "classifier.")) for key in shapes)
    maps = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING)
    for mapping in (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, *maps) if has_head else maps:
        if type(config) in mapping:
            return mapping[type(config)]
    raise ValueError(f"config.json: transformers has no model of type {config.model_type!r}.")


def _refuse_own_code(config: dict[str, Any], name: str) -> None:
    """Code in the repository is left there, so a model that needs it is not whole."""
    code = config.get("auto_map")
    entries = [entry for value in (code.values() if isinstance(code, dict) else [code] if code else []) for entry in
               (value if isinstance(value, list) else [value]) if entry]  # fmt: skip
    if own := [entry for entry in entries if "--" not in str(entry)]:
        raise ValueError(
            f"{name} names code beside it (auto_map: {printable(own[0])}), which is neither sent, taken nor run. "
            "Where transformers has the class itself, remove auto_map; else take another model."
        )


def _empty(info: TensorInfo) -> Any:
    import torch

    dtypes = {
        "F64": torch.float64,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
    }
    dtypes |= {"U8": torch.uint8, "I8": torch.int8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn}
    return torch.empty(info.shape, dtype=dtypes.get(info.dtype, torch.float32), device="meta")


def _short(error: Exception) -> str:
    return printable((str(error).strip() or type(error).__name__).splitlines()[0], 300).rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """The host says at length what is said here in a line."""
    from transformers.utils import logging as host

    logger = logging.getLogger("transformers")
    level, had_bars = logger.level, host.is_progress_bar_enabled()
    host.disable_progress_bar()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            host.enable_progress_bar()


# -- adapters and tokenizers ------------------------------------------------------------------------------------------


def _require_adapter(config: dict[str, Any], tensors: Mapping[str, tuple[str, TensorInfo]], folder: str) -> None:
    from peft import PeftType

    kind, file, settings = config.get("peft_type"), f"{folder}{_ADAPTER}", f"{folder}adapter_config.json"
    if not isinstance(kind, str) or kind not in set(PeftType):
        raise ValueError(f"{settings}: peft_type is '{printable(kind)}', which this PEFT does not know.")
    if not isinstance(config.get("base_model_name_or_path") or "", str):
        raise ValueError(f"{settings}: base_model_name_or_path is no name. Save the adapter again.")
    if not tensors:
        raise ValueError(f"{file} holds no weights. Save the adapter again.")
    if kind != PeftType.LORA:
        return
    rank, patterns = config.get("r", 8), config.get("rank_pattern") or {}
    ranks = {rank, *(patterns.values() if isinstance(patterns, dict) else [None])}
    if any(not isinstance(r, int) or not 0 < r <= 2**16 for r in ranks):
        raise ValueError(f"{settings}: r is {printable(sorted(map(str, ranks)))}; allowed is 1 to 65,536.")
    found = 0
    for first, second in _PAIRS:
        for key in sorted(key for key in tensors if first in key or second in key):
            other = key.replace(first, second) if first in key else key.replace(second, first)
            if other not in tensors:
                raise ValueError(f"{file} holds {printable(key)} without {printable(other)}. Save it again.")
            shape = tensors[key][1].shape
            place = 0 if first in key else 1
            if len(shape) <= place or shape[place] not in ranks:
                raise ValueError(
                    f"{file}: {printable(key)} has shape {shape}, and r={rank} in {settings}. They are of "
                    "two adapters: save it again."
                )
            found += 1
    if not found:
        raise ValueError(f"{file} holds no pair lora_A, lora_B. Save the adapter again.")
    whole = [module for module in config.get("modules_to_save") or () if isinstance(module, str)]
    if whole and not any(f".{module}." in key for module in whole for key in tensors):
        raise ValueError(f"{file} lacks what {settings} says is saved whole ({', '.join(whole)}).")


def _require_vocabulary(files: Files, rows: int, folder: str) -> None:
    """No token of the tokenizer lies beyond the embedding; special ones that no text holds may (Gemma's images)."""
    name, ids = _token_ids(files, folder)
    if not ids:
        return
    token = max(ids, key=lambda token: ids[token])
    if ids[token] >= rows:
        raise ValueError(
            f"{folder}{name}: the token '{printable(token, 40)}' has id {ids[token]:,}, and the embedding in the "
            f"weights has {rows:,} rows. They are of two models: copy the tokenizer that belongs to the weights."
        )


def _token_ids(files: Files, folder: str) -> tuple[str, dict[str, int]]:
    if "tokenizer.json" in files:
        name = "tokenizer.json"
        found = read_json_object(files[name], JSON_LIMIT, folder + name)
        model = found.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, list):  # a unigram model: pairs of text and score
            vocabulary = {str(entry[0]): place for place, entry in enumerate(vocabulary) if isinstance(entry, list)}
        ids = dict(vocabulary or {})
        added = [entry for entry in found.get("added_tokens") or () if isinstance(entry, dict)]
        spare = {entry.get("content") for entry in added if entry.get("special")} - _in_use(files, folder)
        ids |= {str(entry.get("content")): entry.get("id") for entry in added}
        ids = {token: place for token, place in ids.items() if token not in spare}
    elif "vocab.json" in files:
        name, ids = "vocab.json", read_json_object(files["vocab.json"], JSON_LIMIT, folder + "vocab.json")
    else:
        return "", {}
    if not all(isinstance(place, int) for place in ids.values()):
        raise ValueError(f"{folder}{name}: ids of tokens are not all whole numbers. Copy the tokenizer again.")
    return name, ids


def _in_use(files: Files, folder: str) -> set[str]:
    """Special tokens that texts and batches are made with."""
    if "tokenizer_config.json" not in files:
        return set()
    config = read_json_object(files["tokenizer_config.json"], CONFIG_LIMIT, folder + "tokenizer_config.json")
    named = [config.get(f"{kind}_token") for kind in ("bos", "eos", "pad", "unk", "cls", "sep", "mask")]
    return {entry.get("content") if isinstance(entry, dict) else entry for entry in named if entry}
