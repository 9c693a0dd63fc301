# SPDX-License-Identifier: Apache-2.0
"""`trainer.push_to_hub()` and the pushes of checkpoints, with the trainers' own files on disk."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM

from tests.trainer.ppo_helpers import build_ppo_trainer, gpt2, lora
from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer, MixtureRewardConfig, MixtureRewardModel, MixtureRewardTrainer
from trl_maxmin.hub import HubError
from trl_maxmin.run_record import RunRecord


def ppo(tmp_path, tokenizer, **kwargs):
    settings = {"model": gpt2(), "max_steps": 1, "num_reference_completions": 4} | kwargs
    return build_ppo_trainer(tmp_path / "aligned", tokenizer, MaxMinPPOTrainer, MaxMinPPOConfig, **settings)


def preferences():
    rows = [
        {"prompt": "review of a film :", "chosen": c, "rejected": r, "annotator_id": f"secret-{h}"}
        for h in range(4)
        for c, r in (("superb", "dull"), ("lovely film", "awful"), ("great", "weak plot"))
    ]
    return Dataset.from_list(rows)


def mixture_trainer(tmp_path, tokenizer, **kwargs):
    args = MixtureRewardConfig(
        output_dir=str(tmp_path / "rewards"), max_steps=2, per_device_train_batch_size=4, report_to=[], n_init=1,
        init_steps=2, e_step_interval=1, heldout_fraction=0.34, use_cpu=True, disable_tqdm=True, logging_steps=1,
        save_strategy="no", gradient_checkpointing=False, **kwargs,
    )  # fmt: skip
    return MixtureRewardTrainer(gpt2(), args, train_dataset=preferences(), processing_class=tokenizer)


def repo(hub, name):
    return hub.store.repos["model", f"me/{name}"].commit("main").files


def card(hub, name):
    return yaml.safe_load(repo(hub, name)["README.md"].data.decode().split("---\n")[1])


def test_a_policy(hub, tmp_path, word_tokenizer):
    trainer = ppo(tmp_path, word_tokenizer, hub_model_id="me/aligned", hub_private_repo=True)
    trainer.train()
    published = trainer.push_to_hub(license="mit", dataset_name="films.jsonl", tags="films")
    assert published.status == "created" and hub.store.repos["model", "me/aligned"].private
    assert (tmp_path / "aligned" / "training_args.bin").exists()
    assert set(repo(hub, "aligned")) == {
        ".gitattributes", "README.md", "run_record.json", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    data = card(hub, "aligned")
    assert data["library_name"] == "transformers" and data["license"] == "mit" and "films" in data["tags"]
    record = RunRecord.from_dict(json.loads(repo(hub, "aligned")["run_record.json"].data))
    assert record.policy["algorithm"] == "MaxMin-PPO" and record.policy["dataset"]["name"] == "films.jsonl"
    assert record.policy["welfare"]["rule"] == "maxmin" and "maxmin/worst_utility" in record.policy["curves"]
    assert "conventional RLHF" in repo(hub, "aligned")["README.md"].data.decode()
    assert trainer.push_to_hub(license="mit", dataset_name="films.jsonl", tags="films").status == "unchanged"


def test_an_adapter(hub, tmp_path, word_tokenizer):
    """TRL calls a pushed adapter a model of transformers, PEFT forgets its base: ours must not."""
    gpt2().push_to_hub("me/base")
    base = AutoModelForCausalLM.from_pretrained("me/base")
    trainer = ppo(tmp_path, word_tokenizer, model=base, peft_config=lora(), hub_model_id="me/adapter")
    trainer.train()
    trainer.push_to_hub()
    assert {"adapter_model.safetensors", "adapter_config.json"} < set(repo(hub, "adapter"))
    assert not {"model.safetensors", "training_args.bin"} & set(repo(hub, "adapter"))
    data = card(hub, "adapter")
    assert (data["library_name"], data["base_model"], data["base_model_relation"]) == ("peft", "me/base", "adapter")
    assert json.loads(repo(hub, "adapter")["adapter_config.json"].data)["base_model_name_or_path"] == "me/base"
    assert "LoRA adapter" in (tmp_path / "aligned" / "README.md").read_text()


def test_an_adapter_of_a_folder(hub, tmp_path, word_tokenizer):
    gpt2().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trainer = ppo(tmp_path, word_tokenizer, model=base, peft_config=lora(), hub_model_id="me/adapter")
    with pytest.raises(ValueError, match="adapter of .*base', which is not on the Hub.*--base_model"):
        trainer.push_to_hub()
    assert (tmp_path / "aligned" / "adapter_model.safetensors").exists() and not hub.store.repos
    trainer.push_to_hub(base_model="org/base")
    assert card(hub, "adapter")["base_model"] == "org/base"
    assert json.loads(repo(hub, "adapter")["adapter_config.json"].data)["base_model_name_or_path"] == "org/base"
    assert str(tmp_path) not in str([blob.data for blob in repo(hub, "adapter").values() if not blob.lfs])


def test_a_mixture(hub, tmp_path, word_tokenizer):
    trainer = mixture_trainer(tmp_path, word_tokenizer, hub_model_id="me/mixture")
    trainer.train()
    trainer.push_to_hub(dataset_name="films")
    loaded = MixtureRewardModel.from_pretrained("me/mixture")
    assert loaded.component_names == trainer.mixture.component_names and loaded.processing_class is not None
    assert card(hub, "mixture")["library_name"] == "trl-maxmin"
    record = RunRecord.from_dict(json.loads(repo(hub, "mixture")["run_record.json"].data))
    assert sum(record.reward["component_annotators"].values()) == 4
    assert sum(record.reward["component_pairs"].values()) == len(trainer.train_dataset) == 8
    assert sum(record.reward["component_heldout_pairs"].values()) == len(trainer.eval_dataset) == 4
    assert all(0 <= value <= 1 for value in record.reward["component_heldout_accuracy"].values())
    everything = b"".join(blob.data for blob in repo(hub, "mixture").values())
    assert b"secret-" not in everything, "annotator ids stay here"


def test_a_bare_name_goes_to_the_user(hub, tmp_path, word_tokenizer):
    trainer = ppo(tmp_path, word_tokenizer)
    assert trainer.push_to_hub().plan.repo_id == "me/aligned"


def test_in_the_background(hub, tmp_path, word_tokenizer):
    future = ppo(tmp_path, word_tokenizer, hub_model_id="me/later").push_to_hub(blocking=False)
    assert future.result().status == "created"


class TestFailures:
    def test_the_model_is_on_disk_and_the_message_continues(self, hub, tmp_path, word_tokenizer):
        trainer = ppo(tmp_path, word_tokenizer, hub_model_id="me/aligned")
        hub.inject(503, path="/commit/")
        with pytest.raises(HubError, match="503.*To continue: trl-maxmin push .*aligned --repo_id me/aligned --exact"):
            trainer.push_to_hub()
        AutoModelForCausalLM.from_pretrained(tmp_path / "aligned")
        hub.heal()
        assert trainer.push_to_hub().status == "updated"

    def test_a_broken_card_costs_no_run(self, hub, tmp_path, word_tokenizer, monkeypatch, caplog):
        trainer = ppo(tmp_path, word_tokenizer, save_strategy="steps", save_steps=1)
        monkeypatch.setattr(trainer, "write_run_record", lambda *_: 1 / 0)
        with caplog.at_level(logging.WARNING):
            trainer.create_model_card()
        assert "The model card was not written (ZeroDivisionError" in caplog.text
        trainer.train()
        assert (tmp_path / "aligned" / "checkpoint-1" / "model.safetensors").exists()

    def test_no_repository_no_start(self, hub, tmp_path, word_tokenizer):
        hub.inject(401, path="/repos/create")
        with pytest.raises(HubError, match="Creating the repository of the run: 401.*hf auth login"):
            ppo(tmp_path, word_tokenizer, hub_model_id="me/aligned", push_to_hub=True)


class TestCheckpoints:
    def run(self, hub, tmp_path, tokenizer, **kwargs):
        settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "push_to_hub": True} | kwargs
        trainer = ppo(tmp_path, tokenizer, hub_model_id="me/run", hub_always_push=True, **settings)
        trainer.train()
        return trainer

    def test_each_is_one_commit(self, hub, tmp_path, word_tokenizer):
        trainer = self.run(hub, tmp_path, word_tokenizer, save_total_limit=1)
        trainer.push_in_progress.wait_until_done()
        titles = [commit.title for commit in HfApi().list_repo_commits("me/run")][::-1]
        assert titles == ["initial commit", *(f"Training in progress, step {step}" for step in (1, 2, 3))]
        names = set(repo(hub, "run"))
        assert {"model.safetensors", "README.md"} < names and "training_args.bin" not in names
        assert not any("/" in name or name.endswith((".bin", ".pt", ".pth")) for name in names)
        assert not list((tmp_path / "aligned" / "_push").iterdir()), "nothing is left behind"

    @pytest.mark.parametrize("fault", [503, "drop"])
    def test_a_failed_one_does_not_stop_training(self, hub, tmp_path, word_tokenizer, fault, caplog):
        hub.inject(fault, path="/commit/", lasting=True)
        with caplog.at_level(logging.WARNING):
            trainer = self.run(hub, tmp_path, word_tokenizer)
            trainer.push_in_progress.wait_until_done()
        assert trainer.state.global_step == 3 and "was not pushed" in caplog.text
        for step in (1, 2, 3):
            assert (tmp_path / "aligned" / f"checkpoint-{step}" / "model.safetensors").exists()
        hub.heal()
        trainer.save_model()
        assert "model.safetensors" in repo(hub, "run")

    def test_optimizer_states_stay_here(self, hub, tmp_path, word_tokenizer, caplog):
        with caplog.at_level(logging.WARNING):
            trainer = self.run(hub, tmp_path, word_tokenizer, hub_strategy="checkpoint", max_steps=2)
            trainer.push_in_progress.wait_until_done()
        assert caplog.text.count("would upload optimizer states, which are pickles") == 1
        assert not any("checkpoint" in name or name.endswith(".pt") for name in repo(hub, "run"))

    def test_a_checkpoint_without_weights_is_reported(self, hub, tmp_path, word_tokenizer, caplog):
        trainer = ppo(tmp_path, word_tokenizer, hub_model_id="me/run", push_to_hub=True)
        empty = Path(tmp_path / "checkpoint-7")
        empty.mkdir()
        with caplog.at_level(logging.WARNING):
            trainer._push_from_checkpoint(str(empty))
        assert "was not pushed" in caplog.text and "no weights" in caplog.text
        shutil.rmtree(empty)


def test_curves_of_an_earlier_run_are_replaced(tmp_path, word_tokenizer):
    RunRecord().update("policy", curves={"old": [[1, 2.0]]}).save(tmp_path / "aligned")
    trainer = ppo(tmp_path, word_tokenizer)
    trainer.train()
    assert "old" not in trainer.write_run_record().policy["curves"]
    assert trainer.write_run_record().seed == 42
