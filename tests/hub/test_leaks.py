# SPDX-License-Identifier: Apache-2.0
"""Nothing leaves but what is meant: plants in every folder, every way to push, and what is then on the Hub."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.hub.artefacts import make_adapter, make_app, make_model, make_output
from tests.hub.leaks import FORBIDDEN, MARK, TENSORS, leaks, plant, plant_paths, plant_record
from tests.hub.test_trainers import mixture_trainer, ppo
from tests.trainer.ppo_helpers import gpt2
from tests.trainer.trl_helpers import build_trl_trainer, mixture_of, save_base
from trl_maxmin import MaxMinGRPOTrainer, MaxMinRLOOTrainer, MixtureRewardModel
from trl_maxmin.cli import main
from trl_maxmin.run_record import RunRecord
from trl_maxmin.space import wheel
from trl_maxmin.space.config import SpaceConfig
from trl_maxmin.space.groups import write_group_facts
from trl_maxmin.space.publish import push_space


pytestmark = pytest.mark.slow


def planted_run(folder, version=0):
    """A whole run with plants in all of its folders and records, and a policy that is an adapter."""
    make_output(folder, version)
    make_adapter(folder / "policies" / "adapter", version, base="org/base")
    for place in (folder, folder / "policies" / "maxmin"):
        plant_record(RunRecord.load(place)).save(place)
    plant(folder)
    return folder


class TestTheOracle:
    def test_it_finds_what_is_there(self, hub, tmp_path):
        """Whoever uploads the folder as it is, as other tools do, leaks all of it, and the tests below would see."""
        from huggingface_hub import HfApi

        folder = planted_run(tmp_path / "run")
        api = HfApi()
        api.create_repo("me/film-all")
        api.upload_folder(repo_id="me/film-all", folder_path=folder, ignore_patterns=["README.md"])
        found = leaks(hub, tmp_path)
        for name in (*TENSORS, "trainer_state.json", "link.txt", ".env", "optimizer.pt"):
            assert any(f": {name}" in line or f"/{name}" in line for line in found), name
        for mark in (MARK, "ann-5c1e", "leakLeakLeak5c1e"):
            assert any(line.endswith(f"holds {mark}") for line in found)


class TestCommands:
    def test_a_whole_run_and_its_update(self, hub, tmp_path):
        app = make_app(tmp_path / "app")
        plant(app)
        for version in (0, 1):
            folder = planted_run(tmp_path / f"run-{version}", version)
            words = ["push", str(folder), "--repo_id", "me/film", "--dataset", "--space", str(app)]
            assert main([*words, "--space_sdk", "static"]) == 0
            plant(folder)
            assert main([*words, "--space_sdk", "static"]) == 0
        assert len(hub.store.repos) == 8 and leaks(hub, tmp_path) == []

    @pytest.mark.parametrize("part", ["mixture", "policies/maxmin", "policies/reference", "components/concise"])
    def test_one_model(self, hub, tmp_path, part):
        folder = planted_run(tmp_path / "run")
        assert main(["push", str(folder / part), "--repo_id", "me/one", "--exact", "true"]) == 0
        assert leaks(hub, tmp_path) == []

    def test_what_an_older_push_left_is_removed(self, hub, tmp_path):
        from huggingface_hub import CommitOperationAdd, HfApi

        folder = planted_run(tmp_path / "run") / "mixture"
        HfApi().create_repo("me/one")
        names = ("em_state.safetensors", "training_args.bin", "assignments.json", "value_head.safetensors", "mine.txt")
        HfApi().create_commit("me/one", [CommitOperationAdd(n, b"x") for n in names], commit_message="old")
        assert main(["push", str(folder), "--repo_id", "me/one", "--exact", "true"]) == 0
        left = set(hub.store.repos["model", "me/one"].commit("main").files)
        assert not left & set(names[:-1]) and "mine.txt" in left

    @pytest.mark.parametrize("kind", ["run", "record"])
    def test_a_space(self, hub, tmp_path, kind):
        folder = planted_run(tmp_path / "run")
        shutil.rmtree(folder / "policies" / "adapter")
        example = {"prompt": "a", "chosen": "b", "rejected": "c"}
        write_group_facts({"concise": {"annotators": 4, "pairs": 9, "pair_share": 0.4, "examples": [example]}}, folder)
        words = ["space", "--run", str(folder), "--push", "me/page", "--hardware", "zero-a10g"]
        if kind == "record":
            words += ["--record", str(shutil.copy(folder / "run_record.json", tmp_path / "my-record.json"))]
        assert main([*words, "--votes_dir", str(tmp_path / "votes"), "--title", "films"]) == 0
        files = hub.store.repos["space", "me/page"].commit("main").files
        assert {"run/run_record.json", "run/mixture/model.safetensors", "run/policies/maxmin/README.md"} <= set(files)
        assert ("run/groups.json" in files) == (kind == "run")
        assert b"record: run\n" in files["space.yaml"].data
        assert leaks(hub, tmp_path) == []

    def test_votes(self, hub, tmp_path):
        from tests.space.test_uplink import ANSWERS
        from trl_maxmin.space.votes import Ballot

        votes = tmp_path / "votes"
        votes.mkdir()
        ballot = Ballot(votes, "me/votes", minutes=60)
        plant(votes)
        assert ballot.cast("a prompt", ANSWERS, 1, "visitor", None) == 1
        assert ballot.uplink.connect()
        ballot.uplink.scheduler.trigger().result()
        ballot.uplink.stop()
        names = set(hub.store.repos["dataset", "me/votes"].commit("main").files) - {".gitattributes"}
        assert len(names) == 1 and leaks(hub, tmp_path) == []


class TestModels:
    @pytest.mark.parametrize("kind", ["head", "full", "lora"])
    def test_a_mixture(self, hub, tmp_path, word_tokenizer, kind):
        base = gpt2(vocab_size=len(word_tokenizer))
        base.save_pretrained(tmp_path / "base")
        mixture = MixtureRewardModel.from_base(
            str(tmp_path / "base") if kind != "lora" else base, 2, kind, processing_class=word_tokenizer
        )
        mixture.save_pretrained(tmp_path / "mixture")
        plant_record(RunRecord()).save(tmp_path / "mixture")
        plant(tmp_path / "mixture")
        mixture = MixtureRewardModel.from_pretrained(tmp_path / "mixture")
        mixture.push_to_hub("me/mixture")
        if kind != "lora":
            mixture.push_components_to_hub("me/mixture-{name}")
        assert leaks(hub, tmp_path) == []
        again = MixtureRewardModel.from_pretrained("me/mixture")
        assert again.push_to_hub("me/mixture").status == "unchanged"

    def test_by_transformers_and_peft(self, hub, tmp_path, word_tokenizer):
        """Their own `push_to_hub` writes the model to an empty folder, and so takes nothing that lies elsewhere."""
        gpt2().push_to_hub("me/base")
        save_base(tmp_path / "policy", word_tokenizer)
        plant(tmp_path / "policy")
        AutoModelForCausalLM.from_pretrained(tmp_path / "policy").push_to_hub("me/policy")
        word_tokenizer.push_to_hub("me/policy")
        base = AutoModelForCausalLM.from_pretrained("me/base")
        get_peft_model(base, LoraConfig(target_modules=["c_attn"])).push_to_hub("me/adapter")
        names = {name for repo in hub.store.repos.values() for c in repo.branches["main"] for name in c.files}
        assert not names & FORBIDDEN


def grpo(tmp_path, tokenizer, trainer_class=MaxMinGRPOTrainer, **kwargs):
    base = save_base(tmp_path / "base", tokenizer)
    settings = {"reward_funcs": mixture_of(tokenizer), "num_reference_completions": 4} | kwargs
    return build_trl_trainer(trainer_class, base, tokenizer, tmp_path / "aligned", **settings)


def rloo(tmp_path, tokenizer, **kwargs):
    return grpo(tmp_path, tokenizer, MaxMinRLOOTrainer, **kwargs)


def rewards(tmp_path, tokenizer, **kwargs):
    kwargs.pop("max_steps")
    return mixture_trainer(tmp_path, tokenizer, **kwargs)


TRAINERS = {"reward": rewards, "ppo": ppo, "grpo": grpo, "rloo": rloo}
STRATEGIES = ("every_save", "checkpoint", "all_checkpoints", "end")


class TestTrainers:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("name", TRAINERS)
    def test_every_strategy(self, hub, tmp_path, word_tokenizer, name, strategy, monkeypatch):
        trainer = TRAINERS[name](
            tmp_path, word_tokenizer, hub_model_id="me/run", push_to_hub=True, hub_strategy=strategy, max_steps=2,
            **({} if name == "reward" else {"save_strategy": "steps", "save_steps": 1}), hub_always_push=True,
            **({"save_critic": True} if name == "ppo" else {}),
        )  # fmt: skip
        if name == "reward":
            trainer.args.save_strategy, trainer.args.save_steps = "steps", 1
            trainer.args.__post_init__()
        output = Path(trainer.args.output_dir)
        written = trainer._save_run_state

        def save_and_plant(folder):
            written(folder)
            plant(folder, value_head=name != "ppo")  # PPO writes one, which has to be read again

        monkeypatch.setattr(trainer, "_save_run_state", save_and_plant)
        output.mkdir(exist_ok=True)
        plant(output, value_head=False)
        trainer.train()
        if trainer.push_in_progress is not None:
            trainer.push_in_progress.wait_until_done()
        in_training = len(hub.store.repos["model", "me/run"].branches["main"])
        assert in_training == (1 if strategy == "end" else 3)
        trainer.save_model()
        trainer.push_to_hub(dataset_name=str(tmp_path / "prefs.jsonl"))
        checkpoints = sorted(output.glob("checkpoint-*"))
        assert len(checkpoints) == 2 and (checkpoints[0] / "optimizer.pt").exists()
        if name == "reward":
            assert (checkpoints[0] / "em_state.safetensors").exists()
        plant_paths(checkpoints[0] / "config.json")
        assert main(["push", str(checkpoints[0]), "--repo_id", "me/checkpoint", "--exact", "true"]) == 0
        assert main(["push", str(output), "--repo_id", "me/whole"]) == 0
        assert leaks(hub, tmp_path) == []

    def test_the_critic_on_request(self, hub, tmp_path, word_tokenizer):
        trainer = ppo(tmp_path, word_tokenizer, hub_model_id="me/run", save_critic=True)
        trainer.train()
        trainer.push_to_hub()
        files = hub.store.repos["model", "me/run"].commit("main").files
        assert "value_head.safetensors" not in files and b"critic" not in files["README.md"].data
        trainer.push_to_hub(value_head=True)
        files = hub.store.repos["model", "me/run"].commit("main").files
        assert "value_head.safetensors" in files and b"PPO's critic lies beside it" in files["README.md"].data
        command = ["push", str(tmp_path / "aligned"), "--repo_id", "me/run", "--exact", "true"]
        assert main([*command, "--value_head", "true"]) == 0
        assert len(hub.store.repos["model", "me/run"].branches["main"]) == 3
        assert main(command) == 0
        assert "value_head.safetensors" not in hub.store.repos["model", "me/run"].commit("main").files


class TestWheel:
    def test_of_a_checkout(self, hub, tmp_path, monkeypatch):
        """What git does not know stays: notes, keys and drafts between the modules of an editable installation."""
        copy = tmp_path / "checkout" / "trl_maxmin"
        shutil.copytree(wheel.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(wheel.PACKAGE.parent / "spaces_demo", copy.parent / "spaces_demo")
        for words in (["init", "-q"], ["add", "."]):
            subprocess.run(["git", *words], cwd=copy.parent, check=True)
        plant(copy, value_head=True)
        (copy / "draft.py").write_text(f"# {MARK}")
        plant(copy.parent / "spaces_demo")
        monkeypatch.setattr(wheel, "PACKAGE", copy)
        make_model(tmp_path / "policy")
        push_space(SpaceConfig(policies={"a": str(tmp_path / "policy")}), "me/page", hardware="zero-a10g")
        assert leaks(hub, tmp_path, names=FORBIDDEN | {"draft.py"}) == []

    def test_of_an_installation(self, tmp_path):
        """The list is the installer's; what was put between its files later is not on it."""
        name, content = wheel.build_wheel()
        (tmp_path / name).write_bytes(content)
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target"]
        subprocess.run([*command, str(tmp_path / "site"), str(tmp_path / name)], check=True)
        plant(tmp_path / "site" / "trl_maxmin")
        code = "from trl_maxmin.space import wheel; n, c = wheel.build_wheel(); open('again.whl', 'wb').write(c)"
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        with zipfile.ZipFile(tmp_path / "again.whl") as again, zipfile.ZipFile(tmp_path / name) as first:
            assert again.namelist() == first.namelist()
            assert all(again.read(n) == first.read(n) for n in again.namelist() if n.startswith("trl_maxmin/"))
