# SPDX-License-Identifier: Apache-2.0
"""JSON and headers of others, within limits; the oracle of the header is safetensors itself."""

import json
import struct
import time

import numpy as np
import pytest
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from trl_maxmin.reading import (
    CONFIG_LIMIT,
    DEPTH_LIMIT,
    TensorInfo,
    printable,
    read_header,
    read_json,
    read_json_object,
)


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 10**5, "brackets within brackets"),
        (b"[" * (DEPTH_LIMIT + 2) + b"]" * (DEPTH_LIMIT + 2), "more than 100 levels"),
        (b'{"a": ' * 10**5, "brackets within brackets"),
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b'{"a": 1, "a": 2}', "says 'a' twice"),
        (b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', r"x1b\[2J"),
        (b"1" * 5000, "is no JSON"),
        (b'"' + b"x" * CONFIG_LIMIT + b'"', "has 16,777,218 bytes; up to 16,777,216"),
    ],
)
def test_json_that_is_refused(tmp_path, data, words):
    (tmp_path / "x.json").write_bytes(data)
    start = time.monotonic()
    for source, name in ((tmp_path / "x.json", None), (data, "x.json")):
        with pytest.raises(ValueError, match=f"x.json.*{words}") as caught:
            read_json(source, CONFIG_LIMIT, name)
        assert str(caught.value).isprintable()
    assert time.monotonic() - start < 2


def test_json_that_is_read():
    deep = b"[" * DEPTH_LIMIT + b"]" * DEPTH_LIMIT
    assert read_json(deep) == json.loads(deep) and read_json(b"3") == 3
    with pytest.raises(ValueError, match="the file holds a list, not an object"):
        read_json_object(b"[]")
    with pytest.raises(FileNotFoundError):
        read_json("nowhere.json")
    with pytest.raises(ValueError, match="no number"):
        read_json(b"NaN", parse_constant=lambda name: (_ for _ in ()).throw(ValueError("no number")))


def test_a_header_is_what_safetensors_reads(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.int64), "c": np.float16(1.5)}
    data = save({key: np.asarray(value) for key, value in tensors.items()}, {"format": "pt"})
    (tmp_path / "m.safetensors").write_bytes(data)
    for found in (read_header(data), read_header(tmp_path / "m.safetensors")):
        for key, entry in deserialize(data):
            assert found[key].shape == tuple(entry["shape"]) and found[key].dtype == entry["dtype"]
            assert data[found[key].start : found[key].end] == bytes(entry["data"])
    assert isinstance(found["a"], TensorInfo)


FOUR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        file_of(b"{]"),
        file_of([]),
        file_of({"a": FOUR}),
        file_of({"a": FOUR}, b"\0" * 5),
        file_of({"a": FOUR, "b": FOUR}, b"\0" * 4),
        file_of({"a": FOUR | {"shape": [2]}}, b"\0" * 4),
        file_of({"a": FOUR | {"shape": [-1, -1]}}, b"\0" * 4),
        file_of({"a": FOUR | {"shape": [2**62, 4]}}, b"\0" * 4),
        file_of({"a": FOUR | {"shape": 1}}, b"\0" * 4),
        file_of({"a": FOUR | {"dtype": "F31"}}, b"\0" * 4),
        file_of({"a": FOUR | {"data_offsets": [4, 0]}}, b"\0" * 4),
        file_of({"a": FOUR | {"data_offsets": [1, 5]}}, b"\0" * 5),
        file_of({"a": FOUR | {"data_offsets": [0, 4, 8]}}, b"\0" * 8),
        file_of({"a": [1]}, b"\0" * 4),
        file_of({"__metadata__": {"a": 1}}),
        file_of(b"[" * 10**5),
    ],
    ids=range(20),
)
def test_a_header_that_safetensors_refuses(tmp_path, data):
    with pytest.raises(SafetensorError):
        deserialize(data)
    (tmp_path / "m.safetensors").write_bytes(data)
    for source, name in ((tmp_path / "m.safetensors", None), (data, "m.safetensors")):
        with pytest.raises(ValueError, match="m.safetensors is cut off or damaged .*Copy it again"):
            read_header(source, name)


def test_text_for_a_terminal():
    assert printable("plain ä 漢") == "plain ä 漢" and printable("a\r\nb\u202e\x9b") == "a\\r\\nb\\u202e\\x9b"
    assert printable("x" * 300, 10) == "xxxxxxx..."
