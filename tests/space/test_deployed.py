# SPDX-License-Identifier: Apache-2.0
"""What a push puts on the Hub, started as a Space starts it: its own wheel, and nothing but its requirements."""

import importlib.metadata
import json
import signal
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.space.conftest import page_process
from trl_maxmin.space.config import SpaceConfig
from trl_maxmin.space.publish import space_files
from trl_maxmin.space.wheel import template_folder


ROOT = Path(__file__).resolve().parents[2]


def requirements():
    lines = (template_folder() / "requirements.txt").read_text().splitlines()
    return {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}


def test_requirements_agree_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = [*project["dependencies"], *project["optional-dependencies"]["space"]]
    lower = {r.name: {s.version for s in r.specifier} for r in map(Requirement, ours)}
    theirs = requirements()
    torch = theirs.pop("torch")
    assert torch.specifier.contains("2.11.0") and not torch.specifier.contains("2.12.0")  # ZeroGPU's newest
    assert lower["torch"] == {"2.11"}
    assert theirs.pop("spaces").specifier == ""
    assert {name: {s.version for s in r.specifier} for name, r in theirs.items()} == {n: lower[n] for n in theirs}


def test_the_gradio_of_the_space_is_the_tested_one():
    readme = (template_folder() / "README.md").read_text()
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("gradio=="))
    assert f"sdk_version: {pinned.removeprefix('gradio==')}" in readme


def closure(names):
    """Distributions that pip would bring along, by the metadata of what is installed here."""
    found, todo = set(), list(names)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        environments = [{"extra": extra} for extra in ("", *requirement.extras)]
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in needed:
            more = Requirement(line)
            if more.marker is None or any(more.marker.evaluate(environment) for environment in environments):
                if canonicalize_name(more.name) not in found:
                    todo.append(more)
        found.add(name)
    return found


# A Space has what its requirements bring, and this environment more: the rest is made invisible.
HIDE = """
import json, os, sys

HIDDEN = set(json.loads(os.environ["HIDDEN"]))

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        here = path is None and name.split(".")[0] in HIDDEN
        return None if here else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

# Stands in for the package that lends GPUs by the call.
SPACES = """
import json, os, sys

FACTS = {"torch_first": "torch" in sys.modules, "functions": []}

def GPU(duration=None):
    def decorate(function):
        import trl_maxmin
        FACTS["package"] = trl_maxmin.__file__
        FACTS["loaded"] = list(function.__self__.policies)
        FACTS["functions"].append([function.__name__, duration])
        with open(os.environ["FACTS"], "w") as file:
            json.dump(FACTS, file)
        return function
    return decorate
"""


@pytest.mark.slow
def test_the_pushed_folder_starts(run_folder, tmp_path):
    gradio_client = pytest.importorskip("gradio_client", reason="Gradio is not installed")
    for name, content in space_files(SpaceConfig(run=str(run_folder))).items():
        path = tmp_path / "space" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    for name, text in (("sitecustomize", HIDE), ("spaces", SPACES)):
        (tmp_path / "path").mkdir(exist_ok=True)
        (tmp_path / "path" / f"{name}.py").write_text(text)
    brought = closure([*requirements().values(), Requirement("gradio[oauth,mcp]")])
    modules = importlib.metadata.packages_distributions()
    hidden = [
        module
        for module, names in modules.items()
        if not brought & {canonicalize_name(name) for name in names} and module not in ("trl_maxmin", "pip")
    ]
    assert {"trl", "matplotlib", "pytest"} <= set(hidden) and not {"torch", "peft", "gradio"} & set(hidden)
    environ = {
        "PYTHONPATH": str(tmp_path / "path"),
        "HIDDEN": json.dumps(hidden),
        "FACTS": str(tmp_path / "facts.json"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "TRL_MAXMIN_SPACE_TITLE": "A title from a variable",
        "TRL_MAXMIN_SPACE_MAX_PROMPT_CHARACTERS": "77",
    }
    command = [sys.executable, str(tmp_path / "space" / "app.py")]
    with page_process(command, tmp_path, **environ) as (url, process):
        client = gradio_client.Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 300})
        names = ["reference", "single", "maxmin"]
        shown = client.predict("war film with dogs and ghosts :", names, 1.0, 0, 8, False, api_name="/compare")
        assert shown[0].count('<p class="mm-answer"') == 3 and "worst-off" in shown[0]
        refused = client.predict("x" * 78, names, 1.0, 0, 8, False, api_name="/compare")
        assert "78 characters; please shorten it to 77" in refused[2]
        assert "A title from a variable" in json.dumps(client.config)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert "could not" not in log and "Traceback" not in log
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert not facts["torch_first"] and facts["loaded"] == names
    assert facts["functions"] == [["compare", 60], ["score_recorded", 120]]
    assert "trl_maxmin-" in facts["package"] and str(ROOT) not in facts["package"]
