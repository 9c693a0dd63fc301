# SPDX-License-Identifier: Apache-2.0
"""Reading what somebody else wrote: JSON within limits, and headers of safetensors files, without their weights.

A file from the Hub, or in a folder that a user names, may be anything. Whatever is wrong with it is a `ValueError`
that names the file, at once and without much memory.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


#: Largest JSON file that is read: a tokenizer of 262,144 tokens has 33 MB.
JSON_LIMIT = 128 * 2**20
#: Largest configuration: one with a name for each of a hundred thousand labels has 5 MB.
CONFIG_LIMIT = 16 * 2**20
#: Brackets within brackets; ours and those of transformers stay below 20.
DEPTH_LIMIT = 100

_BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16}
_BITS |= {"I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}


def printable(text: object, longest: int = 200) -> str:
    r"""Text of others as a terminal may show it: no control characters, no marks that turn the direction of writing.

    Example:

    >>> printable("a\x1b[2Jb\u202ec")
    'a\\x1b[2Jb\\u202ec'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def read_json(
    source: str | os.PathLike[str] | bytes,
    limit: int = JSON_LIMIT,
    name: str | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """What a JSON file holds.

    Args:
        source (`str`, path or `bytes`): the file, or what it holds.
        limit (`int`): largest size, bytes.
        name (`str`, *optional*): for messages; defaults to the path.
        parse_constant (`Callable`, *optional*): what to make of NaN and infinite numbers, as `json.loads`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, too deep, not UTF-8, not JSON, or says a key twice.

    Example:

    >>> read_json(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> read_json(b"[" * 100_000, name="config.json")
    Traceback (most recent call last):
    ...
    ValueError: config.json has brackets within brackets to more than 100 levels. Copy it again, or take another.
    """
    name = printable(name or (source if not isinstance(source, bytes) else "the file"), 1000)
    size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
    if size > limit:
        raise ValueError(f"{name} has {size:,} bytes; up to {limit:,} are read. Copy it again, or take another.")
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    too_deep = ValueError(
        f"{name} has brackets within brackets to more than {DEPTH_LIMIT} levels. Copy it again, or take another."
    )
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=parse_constant, object_pairs_hook=_once)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise ValueError(
            f"{name} is no JSON ({printable(error)}); it was cut off or damaged. Copy it again."
        ) from error
    level = [value]
    for _ in range(DEPTH_LIMIT):
        inner = (v for v in level for v in (v.values() if isinstance(v, dict) else v))
        level = [v for v in inner if isinstance(v, dict | list)] if isinstance(value, dict | list) else []
        if not level:
            return value
    raise too_deep


def read_json_object(
    source: str | os.PathLike[str] | bytes, limit: int = CONFIG_LIMIT, name: str | None = None
) -> dict[str, Any]:
    """A JSON file that holds an object, as configurations do. See [`read_json`].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as [`read_json`], or it holds something else.
    """
    value = read_json(source, limit, name)
    if not isinstance(value, dict):
        name = printable(name or (source if not isinstance(source, bytes) else "the file"), 1000)
        raise ValueError(f"{name} holds a {type(value).__name__}, not an object {{...}}. Copy it again.")
    return value


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a safetensors file.

    Args:
        dtype (`str`): in safetensors' spelling, `F32`.
        shape (`tuple[int, ...]`): its sizes.
        start (`int`), end (`int`): its bytes, counted from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(source: str | os.PathLike[str] | bytes, name: str | None = None) -> dict[str, TensorInfo]:
    """The tensors that a safetensors file announces, held against its size. No tensor is read.

    Args:
        source (`str`, path or `bytes`): the file, or what it holds.
        name (`str`, *optional*): for messages; defaults to the path.

    Returns:
        `dict[str, TensorInfo]`: by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, cut off or too long, its header is no header, or its tensors overlap, leave gaps, or
            do not have the bytes that their shapes need. Source of the format:
            https://github.com/huggingface/safetensors#format.
    """
    name = printable(name or (source if not isinstance(source, bytes) else "the file"), 1000)
    try:
        if isinstance(source, bytes):
            size, length, header = len(source), int.from_bytes(source[:8], "little"), source[8:]
        else:
            size = os.stat(source).st_size
            with open(source, "rb") as file:
                length, header = _header_bytes(file, size)
        if size == 0:
            raise ValueError("it is empty")
        if size < 8 or length > size - 8:
            raise ValueError(f"its header would have {length:,} bytes, and the whole file has {size:,}")
        entries = read_json_object(header[:length], JSON_LIMIT, "its header")
        return _tensors(entries, 8 + length, size)
    except FileNotFoundError:
        raise
    except ValueError as error:
        raise ValueError(f"{name} is cut off or damaged ({error}). Copy it again.") from error


def _header_bytes(file: BinaryIO, size: int) -> tuple[int, bytes]:
    length = int.from_bytes(file.read(8), "little")
    if length > JSON_LIMIT:
        raise ValueError(f"its header would have {length:,} bytes; up to {JSON_LIMIT:,} are read")
    return length, file.read(min(length, size))


def _tensors(entries: dict[str, Any], first: int, size: int) -> dict[str, TensorInfo]:
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not an object of strings")
    tensors = {key: _tensor(key, entry, first) for key, entry in entries.items()}
    reached = first
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != reached:
            problem = "overlaps the one before it" if tensor.start < reached else "leaves a gap before it"
            raise ValueError(f"{printable(key)} {problem}")
        reached = tensor.end
    if reached != size:
        raise ValueError(f"its tensors end at byte {reached:,}, and the file at {size:,}")
    return tensors


def _tensor(key: str, entry: Any, first: int) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        bits = _BITS[dtype]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{printable(key)} has no known dtype, shape and data_offsets") from None
    if any(not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 2**63 for n in (*shape, start, end)):
        raise ValueError(f"{printable(key)} has sizes that are none: {printable([*shape, start, end])}")
    if len(shape) > 16 or (end - start) * 8 != math.prod(shape) * bits:
        raise ValueError(f"{printable(key)} is {dtype} of shape {printable(shape)}, in {end - start} bytes")
    return TensorInfo(dtype, shape, first + start, first + end)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it says '{printable(twice)}' twice")
    return made
