# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin push`: an output folder onto the Hub, with cards, and a collection that ties it together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..hub.collection import collection_items, publish_collection
from ..hub.faults import HubError, HubInterrupted
from ..hub.files import size_of
from ..hub.output import OutputPlan, plan_output_folder, plan_single_model
from ..hub.plan import PushOptions
from ..hub.plan_app import APP_FILES
from ..hub.push import Published, publish
from ..reading import printable
from .io import print_table
from .parser import CommandParser, UsageError


#: Names of files that stay are shown up to so many.
_SHOWN = 20


@dataclass
class PushArguments:
    r"""
    Options of `trl-maxmin push`.

    Args:
        output_dir (`str`): folder of a training, or of `trl-maxmin demo`.
        repo_id (`str`): base id; repositories are named after it.
        private (`bool`): new repositories and the collection are private.
        dataset (`bool`): also push the evaluation prompts and the results by group.
        space (`str`): folder of an app to push as a Space.
        collection (`bool`): tie everything together in a collection.
        license (`str`), language (`list[str]`): of models and data, for the cards; those of the cards that are there
            are kept.
        datasets (`list[str]`): Hub ids of the training data, where the run record does not name them.
        base_model (`str`): Hub id of the base model, where the files only know a path.
        value_head (`bool`): also push PPO's critic, beside its policy.
        space_sdk (`str`), space_hardware (`str`): of a new Space.
        space_files (`list[str]`): more files of the Space's folder.
        exact (`bool`): the folder is one model, and `repo_id` is its repository; no collection.
        dry_run (`bool`): print the plan and send nothing.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of a training or of `trl-maxmin demo` (or as the first word)."}
    )
    repo_id: str | None = field(
        default=None, metadata={"help": "Base id, namespace/name: me/film gives me/film-mixture and so on."}
    )
    private: bool = field(default=False, metadata={"help": "New repositories and the collection are private."})
    dataset: bool = field(
        default=False, metadata={"help": "Also push the evaluation prompts and the results by group."}
    )
    space: str | None = field(default=None, metadata={"help": "Folder of an app to push as a Space."})
    collection: bool = field(default=True, metadata={"help": "Tie everything together in a collection."})
    license: str | None = field(default=None, metadata={"help": "Licence of models and data, for the cards."})
    language: list[str] | None = field(default=None, metadata={"help": "Languages, such as en de, for the cards."})
    datasets: list[str] | None = field(
        default=None, metadata={"help": "Hub ids of the training data, where the run record does not name them."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id of the base model, where the files only know a path."}
    )
    space_sdk: str = field(default="gradio", metadata={"help": "SDK of a new Space: gradio, docker or static."})
    space_hardware: str | None = field(default=None, metadata={"help": "Hardware of a new Space, such as zero-a10g."})
    space_files: list[str] | None = field(
        default=None, metadata={"help": "Files of the Space's folder beyond app.py, requirements.txt and the like."}
    )
    value_head: bool = field(default=False, metadata={"help": "Also push PPO's critic, beside its policy."})
    exact: bool = field(
        default=False,
        metadata={"help": "The folder is one model, and repo_id is its repository; no collection."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Print repositories, files, sizes; send nothing."})

    def __post_init__(self) -> None:
        if self.space_sdk not in ("gradio", "docker", "static"):
            raise ValueError(f"space_sdk must be gradio, docker or static, got {self.space_sdk!r}.")


def bytes_in_words(size: int) -> str:
    """A size as people read it.

    Example:

    >>> bytes_in_words(999), bytes_in_words(1_500_000)
    ('999 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def print_plan(plan: OutputPlan, private: bool, collection: bool) -> None:
    """The plan of a push: every repository with its files."""
    rows = []
    for repo in plan.repos:
        rows.append([repo.repo_id, repo.repo_type, repo.visibility, str(len(repo.files)), bytes_in_words(repo.size)])
    print_table(
        "Repositories, in the order of publication", ["repository", "type", "visibility", "files", "size"], rows
    )
    for repo in plan.repos:
        print(f"{repo.repo_id}")
        for name, content in sorted(repo.files.items()):
            print(f"  {bytes_in_words(size_of(content)):>9}  {name}")
    if collection:
        visibility = "private" if private else "public"
        print(f"collection {plan.namespace}/{plan.title} ({visibility}), last")
    if not private:
        print("visibility `default`: public, or what the namespace prescribes; --private for private")
    print_left_out(plan)


def print_left_out(plan: OutputPlan) -> None:
    """What stays on this machine, by name: somebody may miss it there."""
    if plan.left_out:
        more = f" and {len(plan.left_out) - _SHOWN} more" if len(plan.left_out) > _SHOWN else ""
        print(f"stays here: {', '.join(map(printable, plan.left_out[:_SHOWN]))}{more}")
    if any(repo.kind == "space" for repo in plan.repos):
        print("of the app's folder go: README.md, " + ", ".join(APP_FILES) + ", and what --space_files names")


def run(argv: Sequence[str]) -> None:
    """Push an output folder.

    Args:
        argv (`Sequence[str]`): the folder, `--repo_id`, and the other options of [`PushArguments`].

    Raises:
        ValueError: no folder or id, or nothing to push.
        HubError: the Hub refused or was not reached; what is complete, and the command that continues.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--output_dir", *words]
    (arguments,) = CommandParser(
        PushArguments, prog="trl-maxmin push", description="Put mixture, components and policies on the Hub."
    ).parse_args_and_config(words)
    if not arguments.output_dir or not arguments.repo_id:
        raise UsageError("Usage: trl-maxmin push OUTPUT_DIR --repo_id namespace/name. See --help.")
    options = PushOptions(
        private=arguments.private or None,
        license=arguments.license,
        language=arguments.language,
        datasets=tuple(arguments.datasets or ()),
        base_model=arguments.base_model,
        value_head=arguments.value_head,
        space_files=tuple(arguments.space_files or ()),
        space_sdk=arguments.space_sdk,
        space_hardware=arguments.space_hardware,
    )
    if arguments.exact:
        plan = plan_single_model(arguments.output_dir, arguments.repo_id, options)
        arguments.collection = False
    else:
        plan = plan_output_folder(
            arguments.output_dir, arguments.repo_id, options, dataset=arguments.dataset, space=arguments.space
        )
    if arguments.dry_run:
        print_plan(plan, arguments.private, arguments.collection)
        print("Nothing was sent (--dry_run).")
        return
    command = "trl-maxmin push " + shlex.join(argv)
    done: list[Published] = []

    def tell(entry: Published) -> None:
        done.append(entry)
        print(f"{entry.status:>9}  {entry.url}", flush=True)

    print_left_out(plan)
    publish(plan.repos, command=command, on_done=tell)
    statuses = [entry.status for entry in done]
    if arguments.collection:
        statuses.append(push_collection(plan, done, arguments.private, command))
    print("Nothing has changed." if set(statuses) == {"unchanged"} else "Done.")


def push_collection(plan: OutputPlan, done: Sequence[Published], private: bool, command: str) -> str:
    """The collection, after everything that it shows; returns what became of it."""
    repos, itself = [entry.plan.repo_id for entry in done], [f"collection {plan.namespace}/{plan.title}"]
    try:
        slug, status, left_out = publish_collection(
            plan.namespace, plan.title, collection_items(done), optional_items=plan.extra, private=private or None
        )
    except HubError as error:
        raise error.placed(repos, itself, command) from error.__cause__
    except KeyboardInterrupt:
        raise HubInterrupted(repos, itself, command) from None
    print(f"{status:>9}  collection {slug}")
    for name in left_out:
        print(f"           without {name}, which the Hub does not show")
    return status
