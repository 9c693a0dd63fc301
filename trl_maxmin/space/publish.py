# SPDX-License-Identifier: Apache-2.0
"""The Space as a repository: app, settings, the package as a wheel and, where it is small, the run itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ..hub.cards import CardContext, policy_card
from ..hub.contents import CARD, plain_file, plain_folder
from ..hub.evaluation_files import (
    checked_completions,
    public_evaluation,
    public_groups,
    public_record_file,
    public_report,
)
from ..hub.files import is_hub_id, size_of, slug
from ..hub.plan import model_contents
from ..run_record import RUN_RECORD_NAME, RunRecord
from .config import CONFIG_NAME, SpaceConfig
from .groups import GROUP_FACTS_NAME
from .run_data import COMPLETIONS_LINES, COMPLETIONS_NAME
from .wheel import build_wheel, template_folder


_MAX_BUNDLED = 100 * 2**20
Files = dict[str, Path | bytes]
#: Of a run's folder: name -> what of it is public.
_RUN_FILES: dict[str, Callable[[Path], Path | bytes]] = {
    RUN_RECORD_NAME: public_record_file,
    "report.json": public_report,
    "evaluation.json": public_evaluation,
    COMPLETIONS_NAME: checked_completions,
    COMPLETIONS_LINES: checked_completions,
    GROUP_FACTS_NAME: public_groups,
}


def space_files(config: SpaceConfig) -> Files:
    """What the Space's repository consists of.

    Local folders of models go along when they are small, by the door of every model (`hub/plan.py`); of a run its
    public record and the results that this package wrote. Annotator ids and votes never do. The package goes along as
    a wheel, which `app.py` unpacks. The requirements do not name it: a Space installs them from a mounted
    `requirements.txt` before its other files are there, so a path would not be found; an address on the Hub could not
    be read of a private Space, would be taken from the build's cache after an update, and would point to the original
    from a duplicate.

    Args:
        config ([`SpaceConfig`]): as for a local start.

    Returns:
        `dict`: path in the repository -> file, or its content.

    Raises:
        ValueError: a local folder or record that does not exist, models too large to go along, an adapter whose base
            is not on the Hub, or a file that is damaged, a link, or not what this package writes under its name.
    """
    import yaml

    config.check()
    files: Files = {}
    template = template_folder()
    files["app.py"] = (template / "app.py").read_bytes()
    name, wheel = build_wheel()
    files[name] = wheel
    files["requirements.txt"] = (template / "requirements.txt").read_bytes()
    settings = {key: value for key, value in vars(config).items() if value != getattr(SpaceConfig(), key)}
    settings["policies"] = {
        policy: _place_policy(policy, source, config, files) for policy, source in config.policies.items()
    }
    if config.mixture:
        settings["mixture"] = _place_mixture(config.mixture, config, files)
    if config.record:
        settings["record"] = _place_record(config.record, files)
    for name in ("run", "more_policies"):  # both have become policies
        settings.pop(name, None)
    settings["votes_dir"] = "votes" if config.votes_dir else ""
    total = sum(map(size_of, files.values()))
    if total > _MAX_BUNDLED:
        raise ValueError(
            f"The models are {total / 2**20:.0f} MiB, more than a Space carries ({_MAX_BUNDLED / 2**20:.0f} MiB). "
            "Publish them with `trl-maxmin push`, then name their Hub ids: --policies maxmin=me/maxmin ... --mixture "
            "me/mixture."
        )
    files[CONFIG_NAME] = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode()
    files["README.md"] = readme(config, (template / "README.md").read_text(encoding="utf-8")).encode()
    return files


def _local(source: str, config: SpaceConfig) -> Path | None:
    """A folder on this machine, `None` for a Hub id.

    Raises:
        ValueError: it is neither, or a link in the folder of the run.
    """
    folder = Path(source)
    if folder.is_dir():
        if config.run and folder.is_relative_to(config.run):
            plain_folder(Path(config.run), folder.relative_to(config.run).as_posix())
        return folder
    if not is_hub_id(source) and ("/" in source or folder.exists() or source.startswith((".", "~"))):
        raise ValueError(f"There is no folder {source!r}, and it is no Hub id.")
    return None


def _place_policy(name: str, source: str, config: SpaceConfig, files: Files) -> str:
    """A Hub id as it is; a local policy is added to the files, with its public record and the card made from it."""
    folder = _local(source, config)
    if folder is None:
        return source
    where = f"run/policies/{slug(name)}"
    if any(file.startswith(f"{where}/") for file in files):
        raise ValueError(f"The policy {name!r} and another would both be {where}; give one of them another name.")
    model = model_contents(folder, f"The policy {name!r}")
    files |= {f"{where}/{file}": content for file, content in model.files.items()}
    if (path := plain_file(folder, RUN_RECORD_NAME)) is not None:
        card = policy_card(
            RunRecord.load(path), CardContext(f"policies/{name}", base_model=model.base), peft=model.peft
        )
        files |= {
            f"{where}/{RUN_RECORD_NAME}": public_record_file(path, "policy"),
            f"{where}/{CARD}": str(card).encode(),
        }
    return where


def _place_mixture(source: str, config: SpaceConfig, files: Files) -> str:
    folder, where = _local(source, config), "run/mixture"
    if folder is None:
        return source
    files |= {
        f"{where}/{f}": content for f, content in model_contents(folder, "The mixture", mixture=True).files.items()
    }
    return where


def _place_record(source: str, files: Files) -> str:
    """A Hub id as it is; of a folder what is public of a run, of a file the public record."""
    path = Path(source)
    if not path.exists():
        if not is_hub_id(source):
            raise ValueError(f"There is no run record {source!r}, and it is no Hub id.")
        return source
    if path.is_file():
        files[f"run/{RUN_RECORD_NAME}"] = public_record_file(path)
        return "run"
    for name, public in _RUN_FILES.items():
        if (own := plain_file(path, name)) is not None:
            files[f"run/{name}"] = public(own)
    return "run"


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

    plan = RepoPlan(
        repo_id, "space", "", space_files(config), private=private, space_sdk="gradio", space_hardware=hardware
    )
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
