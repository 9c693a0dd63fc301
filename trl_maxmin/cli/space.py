# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin space`: the page in which people compare policies, group by group, here or as a Space on the Hub."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        from .parser import UsageError

        raise UsageError(f"{message}. `{self.prog} --help` lists the options.")


def parser() -> argparse.ArgumentParser:
    """Options. Not TRL's parser: the page should be up in seconds, and nothing here trains."""
    result = _Parser(
        prog="trl-maxmin space",
        description="Show, group by group, what each policy answers: on this machine, or as a Space on the Hub.",
        epilog="examples:\n  trl-maxmin space --run maxmin-demo\n"
        "  trl-maxmin space --run maxmin-demo --more_policies mine=me/my-policy\n"
        "  trl-maxmin space --policies reference=gpt2 maxmin=me/maxmin --mixture me/mixture\n"
        "  trl-maxmin space --run maxmin-demo --push me/my-space --hardware zero-a10g\n\n"
        "Fields of a --config file can also be set by environment variables:\nTRL_MAXMIN_SPACE_MIXTURE=me/mixture.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = result.add_argument_group("what to show")
    what.add_argument("--run", metavar="FOLDER", help="output folder of a run, as `trl-maxmin demo` writes it")
    what.add_argument("--policies", nargs="+", metavar="NAME=SOURCE", help="policies: folders or Hub ids")
    what.add_argument("--more_policies", nargs="+", metavar="NAME=SOURCE", help="policies beside those of the run")
    what.add_argument("--mixture", metavar="SOURCE", help="reward mixture: folder or Hub id")
    what.add_argument("--reference", metavar="NAME", help="policy whose answers are the zero (default: reference)")
    what.add_argument("--record", metavar="SOURCE", help="run record: folder, file or Hub id")
    what.add_argument("--preferences", metavar="FILE", help="preference pairs: describe the groups in groups.json")
    what.add_argument("--title", metavar="TEXT", help="title of the page")
    what.add_argument("--config", metavar="FILE.yaml", help="read settings from a file")
    here = result.add_argument_group("on this machine")
    here.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    here.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    here.add_argument("--open", action="store_true", help="open a browser")
    votes = result.add_argument_group("votes")
    votes.add_argument("--votes_dir", metavar="FOLDER", help="where votes are stored (default: votes; '' for none)")
    votes.add_argument("--votes_dataset", metavar="ID", help="Hub dataset that votes are also sent to")
    hub = result.add_argument_group("on the Hub")
    hub.add_argument("--push", metavar="ID", help="create or update this Space instead of starting a page")
    hub.add_argument("--private", action="store_true", default=None, help="a new Space is private")
    hub.add_argument("--hardware", metavar="NAME", help="of a new Space, such as zero-a10g")
    hub.add_argument("--secrets", nargs="+", default=[], metavar="NAME", help="secrets, values from the environment")
    return result


def run(argv: Sequence[str]) -> None:
    """Serve the page until it is interrupted, or publish it.

    Args:
        argv (`Sequence[str]`): see [`parser`].

    Raises:
        ValueError: options that do not exist, or settings that do not fit together.
        OSError: a file, port or Hub that cannot be used.
    """
    from .options import refusal
    from .parser import UsageError

    words = list(argv)
    arguments = parser().parse_args(words)
    given = [word[2:].split("=")[0] for word in words if word.startswith("--")]
    if problem := refusal("space", given, vars(arguments)):
        raise UsageError(problem)
    from ..space.config import SpaceConfig, parse_policies

    names = ("run", "mixture", "reference", "record", "title", "votes_dir", "votes_dataset")
    given = {name: getattr(arguments, name) for name in names}
    for name in ("policies", "more_policies"):
        if getattr(arguments, name):
            given[name] = parse_policies(getattr(arguments, name))
    config = SpaceConfig.load(arguments.config, **given).check()
    if arguments.preferences:
        _describe(config, arguments.preferences)
    if arguments.push:
        from ..space.publish import push_space, read_secrets

        secrets = read_secrets(arguments.secrets)
        url = push_space(
            config, arguments.push, private=arguments.private, hardware=arguments.hardware, secrets=secrets
        )
        print(f"The Space is at {url}; the Hub now builds it, which takes a few minutes.")
        return
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("The page needs Gradio: pip install 'trl-maxmin[space]'.")
    print("loading the models ...", flush=True)
    from ..space.startup import end_in_order, without_garbage_collection

    with without_garbage_collection():
        from ..space.app import create

        app, settings = create(config)
    end_in_order()
    app.launch(
        **settings,
        server_name=arguments.host,
        server_port=arguments.port,
        inbrowser=arguments.open,
        quiet=bool(os.environ.get("TRL_MAXMIN_QUIET")),
    )


def _describe(config: object, preferences: str) -> None:
    """Write `groups.json` beside the run record: numbers and examples, no annotator ids."""
    from datasets import Dataset

    from ..models import MixtureRewardModel
    from ..models.base import pick_device, place
    from ..space.groups import describe_groups, write_group_facts

    record, mixture = getattr(config, "record", None), getattr(config, "mixture", None)
    if not mixture or not record or not Path(record).is_dir():
        raise ValueError("--preferences needs a mixture and a local folder for groups.json: give --run.")
    path = Path(preferences)
    read = {".jsonl": Dataset.from_json, ".json": Dataset.from_json, ".parquet": Dataset.from_parquet}.get(path.suffix)
    if read is None or not path.is_file():
        raise ValueError(f"--preferences {preferences}: give an existing .jsonl or .parquet file.")
    model = MixtureRewardModel.from_pretrained(mixture, use_safetensors=True, argument="--mixture")
    place(model, pick_device())
    facts = describe_groups(model, read(str(path)))
    print(f"wrote {write_group_facts(facts, record)}")
