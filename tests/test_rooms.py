# SPDX-License-Identifier: Apache-2.0
"""Who may import whom (CONTRIBUTING.md, "Rooms"), read from the source, imports inside functions included."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trl_maxmin


PACKAGE = Path(trl_maxmin.__file__).parent

# From the ground up; a room may import from the floors below it, and rooms of one floor do not know each other.
FLOORS = (
    ("reading", "door"),
    ("functional", "run_record", "distributed", "_compat"),
    ("data",),
    ("models",),
    ("trainer.common",),
    ("trainer.scoring",),
    ("trainer.reward", "trainer.ppo"),
    ("trainer.maxmin",),
    ("trainer.dpo",),
    ("trainer",),  # names its rooms' classes and does nothing else
    ("evaluation", "hub"),
    ("inference",),
    ("space", "serve"),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Upwards on purpose, and only when it is asked for: (file, room) -> why.
DELIBERATE = {
    (
        "models/pushing.py",
        "hub",
    ): "`mixture.push_to_hub`, as in transformers; loading a model needs no Hub",
    ("trainer/common/hub_push.py", "hub"): "`push_to_hub` and model cards at checkpoints, which `Trainer` asks for",
}


def room_of(names: list[str]) -> str:
    """The room of a module, given as names below the package; a name that is no module belongs to where it stands."""
    inner = ".".join(names[:2])
    return inner if inner in FLOOR else names[0]


def imports(package: Path) -> Iterator[tuple[str, int, bool, str, str]]:
    """(file, line, whether it runs on import, room of the file, imported room) for every import across rooms."""
    for path in sorted(package.rglob("*.py")):
        here = [package.name, *path.relative_to(package).with_suffix("").parts]
        if len(here) == 2 and here[1] == "__init__":
            continue  # the package itself: names of all rooms, imported when they are asked for
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_once = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name.split(".") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = here[: len(here) - node.level] if node.level else []
                start = above + (node.module.split(".") if node.module else [])
                targets = [[*start, alias.name] for alias in node.names]
            else:
                continue
            own = room_of(here[1:])
            for target in targets:
                if target[0] != package.name or len(target) < 2 or target[1] not in {r.split(".")[0] for r in FLOOR}:
                    continue
                if (other := room_of(target[1:])) != own:
                    file = path.relative_to(package).as_posix()
                    yield file, node.lineno, id(node) in at_once, own, other


def upwards(package: Path) -> list[tuple[str, int, bool, str, str]]:
    """Imports from the same floor or one above; `trainer/__init__.py` names the rooms below it."""
    return [found for found in imports(package) if FLOOR[found[4]] >= FLOOR[found[3]]]


def test_every_module_is_in_a_room():
    modules = [path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")]
    assert {parts[0] for parts in modules} - {"__init__"} == {room.split(".")[0] for room in FLOOR}
    assert {f"trainer.{parts[1]}" for parts in modules if parts[0] == "trainer" and len(parts) > 2} < set(FLOOR)


def test_no_room_imports_from_above():
    found = [(file, line, other) for file, line, _, _, other in upwards(PACKAGE) if (file, other) not in DELIBERATE]
    assert not found, "imports from a room above; move what is shared down, or say in DELIBERATE why not"


def test_what_is_deliberate_is_still_there_and_waits_for_its_call():
    found = upwards(PACKAGE)
    assert {(file, other) for file, _, _, _, other in found} == set(DELIBERATE)
    assert not [entry for entry in found if entry[2]], "runs on import; move it into the function that needs it"


def test_the_mathematics_knows_torch_only():
    allowed = sys.stdlib_module_names | {"torch"}
    for path in (PACKAGE / "functional").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, f"{path}:{node.lineno}"
                names = [] if node.level else [node.module]
            assert {name.split(".")[0] for name in names} <= allowed, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("functional/a.py", "from ..data import columns", ("functional", "data")),
        ("data/a.py", "def f():\n    from trl_maxmin.cli.main import run", ("data", "cli")),
        ("trainer/ppo/a.py", "from ..maxmin.welfare import x", ("trainer.ppo", "trainer.maxmin")),
        ("trainer/ppo/a.py", "from ..reward import x", ("trainer.ppo", "trainer.reward")),
        ("trainer/ppo/a.py", "from .. import PPOConfig", ("trainer.ppo", "trainer")),
        ("evaluation/a.py", "import trl_maxmin.space.html", ("evaluation", "space")),
        ("trainer/ppo/a.py", "from ...models.base import x\nfrom .b import y\nimport torch", None),
        ("trainer/__init__.py", "from .maxmin.welfare import x", None),
    ],
)
def test_an_import_from_above_is_found(tmp_path, file, text, expected):
    path = tmp_path / "trl_maxmin" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = upwards(tmp_path / "trl_maxmin")
    assert [entry[3:] for entry in found] == ([expected] if expected else [])
