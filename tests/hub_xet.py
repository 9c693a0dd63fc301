# SPDX-License-Identifier: Apache-2.0
"""The part of Xet that our own Hub needs: what a `local://` store holds, and its bytes."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path


_ROW = 48
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30


def _hex(words: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", words))


def read_shards(folder: Path) -> dict[str, tuple[str, int]]:
    """sha256 -> (Xet hash, size) of every file in the store.

    A shard is a header of 48 bytes and rows of 48: for each file a row with its hash, flags and the number n of
    segments, n rows of segments (their bytes at offset 36), n rows of verification and one row with the sha256.
    """
    found = {}
    for path in folder.rglob("*.mdb"):
        data = path.read_bytes()
        at = _ROW
        while data[at : at + 32] not in (b"\xff" * 32, b""):
            name = _hex(data[at : at + 32])
            flags, count = struct.unpack("<II", data[at + 32 : at + 40])
            size = sum(struct.unpack_from("<I", data, at + _ROW * (1 + i) + 36)[0] for i in range(count))
            at += _ROW * (1 + count + (count if flags & _WITH_VERIFICATION else 0))
            if flags & _WITH_METADATA:
                found[_hex(data[at : at + 32])] = (name, size)
                at += _ROW
    return found


def read_file(folder: Path, xet_hash: str, size: int) -> bytes:
    """The bytes of one file of the store."""
    import hf_xet

    with tempfile.TemporaryDirectory() as target:
        out = Path(target) / "file"
        session = hf_xet.XetSession()
        with session.new_file_download_group(
            endpoint=f"local://{folder}", token="x", token_expiry_unix_secs=9_999_999_999
        ) as group:
            group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(out))
        return out.read_bytes()
