# SPDX-License-Identifier: Apache-2.0
import csv
import io
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml
from huggingface_hub import HfApi

from tests.hub.artefacts import make_adapter, make_output
from tests.hub_server import HubServer, client_of
from trl_maxmin.cli import main
from trl_maxmin.hub import Published
from trl_maxmin.run_record import RunRecord
from trl_maxmin.space import wheel
from trl_maxmin.space.config import SpaceConfig
from trl_maxmin.space.publish import push_space, read_secrets, space_files
from trl_maxmin.space.run_data import RunData
from trl_maxmin.space.wheel import build_wheel


@pytest.fixture
def run_folder(tmp_path):
    return make_output(tmp_path / "run")


def write(files, folder):
    """The files as the Hub would have them."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def test_the_wheel_is_one(tmp_path):
    name, content = build_wheel()
    assert (name, content) == build_wheel()
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        names = wheel.namelist()
        (info,) = {n.split("/")[0] for n in names if ".dist-info/" in n}
        record = {row[0] for row in csv.reader(wheel.read(f"{info}/RECORD").decode().splitlines())}
    assert record == set(names) and {"trl_maxmin/space/style.css", "trl_maxmin/space/deployed/app.py"} <= record
    path = tmp_path / name
    path.write_bytes(content)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        "--target",
        str(tmp_path / "t"),
    ]
    subprocess.run([*command, str(path)], check=True)
    assert (tmp_path / "t" / "trl_maxmin" / "space" / "app.py").is_file()


def test_small_models_go_along_and_annotators_do_not(run_folder):
    config = SpaceConfig(run=str(run_folder), votes_dataset="me/votes", title="ours")
    files = space_files(config)
    settings = yaml.safe_load(files["space.yaml"])
    assert settings["policies"] == {"reference": "run/policies/reference", "maxmin": "run/policies/maxmin"}
    assert settings["mixture"] == "run/mixture" and settings["record"] == "run" and settings["title"] == "ours"
    assert {"app.py", "README.md", "requirements.txt", "run/mixture/model.safetensors"} <= set(files)
    assert not [name for name in files if "assignments" in name or name.endswith(".bin")]
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["datasets"] == ["me/votes"]
    assert len(front["short_description"]) <= 60
    assert b"torch>=2.11,<2.12" in files["requirements.txt"]


def test_what_is_deployed_can_be_started_from(run_folder, tmp_path):
    write(space_files(SpaceConfig(run=str(run_folder))), tmp_path / "space")
    config = SpaceConfig.load(tmp_path / "space" / "space.yaml", {}).check()
    assert config.policies["maxmin"] == str(tmp_path / "space" / "run" / "policies" / "maxmin")
    assert config.record == str(tmp_path / "space" / "run")


def test_hub_models_are_named_and_not_carried():
    config = SpaceConfig(policies={"maxmin": "me/maxmin"}, mixture="me/mixture")
    files = space_files(config)
    assert yaml.safe_load(files["space.yaml"])["policies"] == {"maxmin": "me/maxmin"}
    assert yaml.safe_load(files["README.md"].decode().split("---")[1])["models"] == ["me/maxmin", "me/mixture"]


def test_folders_that_do_not_exist_and_models_too_large(run_folder, monkeypatch):
    with pytest.raises(ValueError, match="There is no folder './gone', and it is no Hub id"):
        space_files(SpaceConfig(policies={"a": "./gone"}))
    monkeypatch.setattr("trl_maxmin.space.publish._MAX_BUNDLED", 10)
    with pytest.raises(ValueError, match="Publish them with `trl-maxmin push`, then name their Hub ids"):
        space_files(SpaceConfig(run=str(run_folder)))


def test_the_template_has_to_be_there(monkeypatch, tmp_path):
    monkeypatch.setattr("trl_maxmin.space.wheel.PACKAGE", tmp_path / "trl_maxmin")
    with pytest.raises(FileNotFoundError, match="reinstall trl-maxmin"):
        space_files(SpaceConfig(policies={"a": "me/a"}))


def test_secrets_come_from_the_environment():
    assert read_secrets(["A"], {"A": "1", "B": "2"}) == {"A": "1"}
    with pytest.raises(ValueError, match="--secrets B: set the environment variable"):
        read_secrets(["A", "B"], {"A": "1"})


def test_what_is_published(run_folder, monkeypatch):
    seen = {}

    def publish_repo(plan, token=None):
        seen["plan"] = plan
        return Published(plan, "https://hub/spaces/me/space", "0", "created")

    def add_space_secret(self, repo_id, name, value):
        seen["secret"] = (repo_id, name, value)

    monkeypatch.setattr("trl_maxmin.hub.publish_repo", publish_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.add_space_secret", add_space_secret)
    config = SpaceConfig(run=str(run_folder))
    url = push_space(config, "me/space", hardware="zero-a10g", secrets={"HF_TOKEN": "hf_x"})
    plan = seen["plan"]
    assert url.endswith("me/space") and plan.kind == "space" and plan.space_hardware == "zero-a10g"
    assert "app.py" in plan.files and seen["secret"] == ("me/space", "HF_TOKEN", "hf_x")


@pytest.fixture
def hub(tmp_path):
    """The real client, pointed at our own Hub."""
    with HubServer(xet=False) as server, client_of(server, tmp_path / "cache"):
        yield server


def test_a_space_on_a_hub_of_our_own(hub, run_folder, monkeypatch, capsys):
    monkeypatch.setenv("VOTES_TOKEN", "a secret")
    words = ["space", "--run", str(run_folder), "--push", "me/space", "--secrets", "VOTES_TOKEN"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "402" in said and "free accounts" in said and "zero-a10g" in said
    assert main([*words, "--hardware", "zero-a10g"]) == 0
    repo = hub.store.repos["space", "me/space"]
    assert repo.secrets == {"VOTES_TOKEN": "a secret"} and len(repo.branches["main"]) == 2
    files = repo.branches["main"][-1].files
    assert {"app.py", "README.md", "requirements.txt", "space.yaml", "run/mixture/model.safetensors"} <= set(files)
    assert any(name.startswith("trl_maxmin-") and name.endswith(".whl") for name in files)
    assert main([*words, "--hardware", "zero-a10g"]) == 0
    assert len(hub.store.repos["space", "me/space"].branches["main"]) == 2
    # A later version with fewer policies: the old wheel and the old models go, what others added stays.
    api = HfApi()
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.md", repo_id="me/space", repo_type="space")
    shutil.rmtree(run_folder / "policies" / "maxmin")
    monkeypatch.setattr(
        "trl_maxmin.space.publish.build_wheel", lambda: ("trl_maxmin-9.0-py3-none-any.whl", build_wheel()[1])
    )
    assert main([*words, "--hardware", "zero-a10g"]) == 0
    files = hub.store.repos["space", "me/space"].commit("main").files
    assert [name for name in files if name.endswith(".whl")] == ["trl_maxmin-9.0-py3-none-any.whl"]
    assert not [name for name in files if "maxmin/" in name] and "notes.md" in files


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Nothing to show: no policies are named. Make a run with `trl-maxmin demo`"),
        (["--run", "/nowhere"], "There is no folder '/nowhere'"),
        (["--policies", "a=x", "--preferences", "p.jsonl"], "--preferences needs a mixture and a local folder"),
        (["--policies", "a=x", "--push", "me/s", "--secrets", "NO_SUCH_NAME"], "--secrets NO_SUCH_NAME"),
    ],
)
def test_mistakes_on_the_command_line(words, said, capsys):
    assert main(["space", *words]) == 1
    assert said in capsys.readouterr().err


def test_preferences_must_be_a_file(run_folder, capsys):
    assert main(["space", "--run", str(run_folder), "--preferences", "gone.jsonl"]) == 1
    assert "--preferences gone.jsonl: give an existing .jsonl or .parquet file" in capsys.readouterr().err


class TestWhatTravels:
    def test_a_record_file(self, run_folder, tmp_path):
        path = tmp_path / "elsewhere" / "my-record.json"
        RunRecord.load(run_folder).update("policy", training={"output_dir": "/home/ann"}).save(path)
        files = space_files(SpaceConfig(run=str(run_folder), record=str(path)))
        assert yaml.safe_load(files["space.yaml"])["record"] == "run"
        write(files, tmp_path / "space")
        data, problems = RunData.load(SpaceConfig.load(tmp_path / "space" / "space.yaml", {}))
        assert not problems and data.win_rate["maxmin"]["positive"]["mean"] == 0.91
        assert b"/home" not in files["run/run_record.json"] and "run/evaluation/completions.jsonl" not in files

    def test_a_record_on_the_hub_is_named(self):
        files = space_files(SpaceConfig(policies={"a": "me/a"}, record="me/a"))
        assert yaml.safe_load(files["space.yaml"])["record"] == "me/a" and "run/run_record.json" not in files

    def test_no_path_of_this_machine(self, run_folder, tmp_path, monkeypatch):
        """However the folders are named: absolute, relative, or below one's home."""
        monkeypatch.chdir(run_folder.parent)
        config = {"policies": {"a": "run/policies/maxmin"}, "mixture": "./run/mixture", "record": "run"}
        for votes in ("", "/data/votes"):
            files = space_files(SpaceConfig(**config, votes_dir=votes))
            settings = yaml.safe_load(files["space.yaml"])
            assert settings["policies"] == {"a": "run/policies/a"} and settings["mixture"] == "run/mixture"
            assert settings["record"] == "run" and settings["votes_dir"] in ("", "votes")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"record": "/gone/run_record.json"},
                "There is no run record '/gone/run_record.json', and it is no Hub id",
            ),
            ({"record": "./gone"}, "There is no run record './gone'"),
            ({"mixture": "/gone"}, "There is no folder '/gone', and it is no Hub id"),
            ({"mixture": "~/gone"}, "There is no folder '~/gone'"),
            ({"mixture": "a/b/c"}, "There is no folder 'a/b/c'"),
        ],
    )
    def test_what_is_nowhere(self, settings, message):
        with pytest.raises(ValueError, match=message):
            space_files(SpaceConfig(**{"policies": {"a": "me/a"}} | settings))

    def test_two_policies_of_one_place(self, run_folder):
        source = str(run_folder / "policies" / "maxmin")
        with pytest.raises(ValueError, match="'a-b' and another would both be run/policies/a-b"):
            space_files(SpaceConfig(policies={"a b": source, "a-b": source}))

    def test_a_policy_behind_a_link(self, run_folder, tmp_path):
        (run_folder / "policies" / "maxmin").rename(tmp_path / "elsewhere")
        (run_folder / "policies" / "maxmin").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match="policies/maxmin is a link"):
            space_files(SpaceConfig(run=str(run_folder)))

    def test_an_adapter_of_a_path(self, run_folder):
        make_adapter(run_folder / "policies" / "adapter", base="/home/ann/base")
        with pytest.raises(ValueError, match="'adapter' is an adapter of '/home/ann/base', which is not on the Hub"):
            space_files(SpaceConfig(run=str(run_folder)))

    @pytest.mark.parametrize("name", ["report.json", "evaluation.json", "groups.json", "completions.parquet"])
    def test_results_of_others(self, run_folder, name):
        (run_folder / name).write_text('{"annotators": {"ann": 1}}' if name != "report.json" else '{"groups": 3}')
        with pytest.raises(ValueError, match=f"{name} is not what this package writes"):
            space_files(SpaceConfig(run=str(run_folder)))

    def test_files_that_nobody_listed(self, tmp_path, monkeypatch):
        (tmp_path / "trl_maxmin").mkdir()
        monkeypatch.setattr(wheel, "PACKAGE", tmp_path / "trl_maxmin")
        with pytest.raises(ValueError, match="Which files of .*trl_maxmin belong to the package is not known.*git"):
            wheel.package_files()
