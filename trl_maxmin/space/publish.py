# SPDX-License-Identifier: Apache-2.0
"""The Space as a repository: app, settings, the package as a wheel and, where it is small, the run itself."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .config import CONFIG_NAME, SpaceConfig
from .groups import GROUP_FACTS_NAME
from .run_data import COMPLETIONS_LINES, COMPLETIONS_NAME


PACKAGE = Path(__file__).resolve().parents[1]
_MAX_BUNDLED = 100 * 2**20
_RUN_FILES = (
    "run_record.json",
    "report.json",
    "evaluation.json",
    COMPLETIONS_NAME,
    COMPLETIONS_LINES,
    GROUP_FACTS_NAME,
)
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md")
_LEFT_OUT = ("assignments.json", "training_args.bin")


def template_folder() -> Path:
    """`app.py`, `README.md` and `requirements.txt` of the Space: in the wheel, or in the checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    for folder in (PACKAGE / "space" / "deployed", PACKAGE.parent / "spaces_demo"):
        if (folder / "app.py").is_file():
            return folder
    raise FileNotFoundError("The files of the Space are missing from this installation; reinstall trl-maxmin.")


def build_wheel() -> tuple[str, bytes]:
    """This package as a wheel, made from what is installed; the same files give the same bytes.

    Returns:
        `(str, bytes)`: file name and content.
    """
    distribution = importlib.metadata.distribution("trl-maxmin")
    version = distribution.version
    info = f"trl_maxmin-{version}.dist-info"
    files = {
        f"trl_maxmin/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes()
        for path in sorted(PACKAGE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    for path in sorted(template_folder().iterdir()):
        if path.is_file():
            files.setdefault(f"trl_maxmin/space/deployed/{path.name}", path.read_bytes())
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


def space_files(config: SpaceConfig) -> dict[str, bytes]:
    """What the Space's repository consists of.

    Local folders of models go along when they are small; annotator ids and votes never do. The package goes along as a
    wheel, which `app.py` unpacks. The requirements do not name it: a Space installs them from a mounted
    `requirements.txt` before its other files are there, so a path would not be found; an address on the Hub could not
    be read of a private Space, would be taken from the build's cache after an update, and would point to the original
    from a duplicate.

    Args:
        config ([`SpaceConfig`]): as for a local start.

    Returns:
        `dict[str, bytes]`: path in the repository -> content.

    Raises:
        ValueError: a local folder that does not exist, or models too large to go along.
    """
    import yaml

    config.check()
    files: dict[str, bytes] = {}
    template = template_folder()
    files["app.py"] = (template / "app.py").read_bytes()
    name, wheel = build_wheel()
    files[name] = wheel
    files["requirements.txt"] = (template / "requirements.txt").read_bytes()
    settings = {key: value for key, value in vars(config).items() if value != getattr(SpaceConfig(), key)}
    settings["policies"] = {
        policy: _place(source, f"run/policies/{policy}", files) for policy, source in config.policies.items()
    }
    if config.mixture:
        settings["mixture"] = _place(config.mixture, "run/mixture", files)
    if config.record and Path(config.record).is_dir():
        for part in _RUN_FILES:
            path = Path(config.record) / part
            if path.is_file():
                files[f"run/{part}"] = path.read_bytes()
        settings["record"] = "run"
    for name in ("run", "more_policies"):  # both have become policies
        settings.pop(name, None)
    settings["votes_dir"] = "votes" if config.votes_dir else ""
    total = sum(map(len, files.values()))
    if total > _MAX_BUNDLED:
        raise ValueError(
            f"The models are {total / 2**20:.0f} MiB, more than a Space carries ({_MAX_BUNDLED / 2**20:.0f} MiB). "
            "Publish them with `trl-maxmin push`, then name their Hub ids: --policies maxmin=me/maxmin ... --mixture "
            "me/mixture."
        )
    files[CONFIG_NAME] = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode()
    files["README.md"] = readme(config, (template / "README.md").read_text(encoding="utf-8")).encode()
    return files


def _place(source: str, where: str, files: dict[str, bytes]) -> str:
    """A Hub id as it is; a local folder is added to the files."""
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or source.startswith(".") or source.count("/") > 1:
            raise ValueError(f"There is no folder {source!r}, and it is no Hub id.")
        return source
    for pattern in _MODEL_FILES:
        for path in sorted(folder.glob(pattern)):
            if path.name not in _LEFT_OUT:
                files[str(PurePosixPath(where) / path.name)] = path.read_bytes()
    return where


def readme(config: SpaceConfig, template: str) -> str:
    """The Space's README: front matter of the template, and the Hub models that it shows."""
    from huggingface_hub import RepoCard

    card = RepoCard(template)
    shown = [*config.policies.values(), *([config.mixture] if config.mixture else [])]
    models = [source for source in shown if source.count("/") == 1 and not Path(source).exists()]
    if models:
        card.data["models"] = list(dict.fromkeys(models))
    if config.votes_dataset:
        card.data["datasets"] = [config.votes_dataset]
    return str(card)


def push_space(
    config: SpaceConfig,
    repo_id: str,
    *,
    private: bool | None = None,
    hardware: str | None = None,
    secrets: Mapping[str, str] | None = None,
) -> str:
    """Create or update the Space, in one commit, and set its secrets.

    Args:
        config ([`SpaceConfig`]): what it shows.
        repo_id (`str`): `namespace/name`.
        private (`bool`, *optional*): visibility of a new Space.
        hardware (`str`, *optional*): of a new Space, such as `zero-a10g`.
        secrets (`dict[str, str]`, *optional*): name -> value, such as the `HF_TOKEN` that sends votes.

    Returns:
        `str`: address of the Space.

    Raises:
        HubError: the Hub refused or was not reached; a 402 says what free accounts can do.
        ValueError: an incomplete id, or as [`space_files`].
    """
    from huggingface_hub import HfApi

    from ..hub import RepoPlan, publish_repo
    from ..hub.faults import ask

    files: dict[str, Any] = dict(space_files(config))
    plan = RepoPlan(repo_id, "space", "", files, private=private, space_sdk="gradio", space_hardware=hardware)
    published = publish_repo(plan)
    api = HfApi()
    for name, value in (secrets or {}).items():
        ask(f"Setting the secret {name} of {repo_id}", lambda n=name, v=value: api.add_space_secret(repo_id, n, v))
    return published.url


def read_secrets(names: list[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Secrets by name, their values from the environment, so that they stand in no command line.

    Raises:
        ValueError: a name that the environment does not have.
    """
    environ = os.environ if environ is None else environ
    if missing := [name for name in names if not environ.get(name)]:
        raise ValueError(f"--secrets {' '.join(missing)}: set the environment variable(s) of that name to the value.")
    return {name: environ[name] for name in names}
