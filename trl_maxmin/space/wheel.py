# SPDX-License-Identifier: Apache-2.0
"""This package as a wheel, made from what is installed: the files that belong to it, and no other that lies there."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import subprocess
import zipfile
from pathlib import Path


PACKAGE = Path(__file__).resolve().parents[1]
TEMPLATE = ("app.py", "README.md", "requirements.txt")


def template_folder() -> Path:
    """`app.py`, `README.md` and `requirements.txt` of the Space: in the wheel, or in the checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    for folder in (PACKAGE / "space" / "deployed", PACKAGE.parent / "spaces_demo"):
        if (folder / "app.py").is_file():
            return folder
    raise FileNotFoundError("The files of the Space are missing from this installation; reinstall trl-maxmin.")


def package_files() -> list[str]:
    """Names, below the package's folder, of the files that belong to it.

    Those that the installer recorded; of an editable installation those that git knows, as notes, keys and drafts may
    lie between them.

    Raises:
        ValueError: neither list is there.
    """
    names = _recorded() or _tracked()
    if not names:
        raise ValueError(
            f"Which files of {PACKAGE} belong to the package is not known: it was not installed from a wheel, and git "
            "knows none of them. Install trl-maxmin with pip, or run from a git checkout."
        )
    # What somebody has deleted or put a link for is not sent.
    return sorted(name for name in names if (PACKAGE / name).is_file() and not (PACKAGE / name).is_symlink())


def _recorded() -> list[str]:
    distribution = importlib.metadata.distribution("trl-maxmin")
    if Path(str(distribution.locate_file(PACKAGE.name))).resolve() != PACKAGE:
        return []  # another copy is installed
    parts = [path.parts for path in distribution.files or ()]
    return ["/".join(p[1:]) for p in parts if p[0] == PACKAGE.name and "__pycache__" not in p]


def _tracked() -> list[str]:
    command = ["git", "-C", str(PACKAGE), "ls-files", "-z", "--", "."]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        return []
    return [name for name in listed.split("\0") if name]


def build_wheel() -> tuple[str, bytes]:
    """The wheel; the same files give the same bytes.

    Returns:
        `(str, bytes)`: file name and content.

    Raises:
        ValueError: as [`package_files`].
    """
    distribution = importlib.metadata.distribution("trl-maxmin")
    version = distribution.version
    info = f"trl_maxmin-{version}.dist-info"
    files = {f"trl_maxmin/{name}": (PACKAGE / name).read_bytes() for name in package_files()}
    template = template_folder()
    for name in TEMPLATE:
        files.setdefault(f"trl_maxmin/space/deployed/{name}", (template / name).read_bytes())
    files = dict(sorted(files.items()))
    files[f"{info}/METADATA"] = (
        distribution.read_text("METADATA") or f"Name: trl-maxmin\nVersion: {version}\n"
    ).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: trl-maxmin\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\ntrl-maxmin = trl_maxmin.cli:main\n"
    record = "".join(f"{name},{_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            wheel.writestr(entry, content)
    return f"trl_maxmin-{version}-py3-none-any.whl", buffer.getvalue()


def _digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
