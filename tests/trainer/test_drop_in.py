# SPDX-License-Identifier: Apache-2.0
"""A script written for TRL 1.12's `trl.experimental.ppo` runs when only its import changes."""

import dataclasses
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM

import trl_maxmin
from tests.conftest import build_word_tokenizer
from tests.launcher import ROOT
from tests.trainer.ppo_helpers import PROMPTS, critic_model, gpt2, lora
from trl_maxmin.trainer.ppo.policy import PolicyWithCritic


IMPORT = "from trl.experimental.ppo import PPOConfig, PPOTrainer"

SCRIPT = (
    """
import sys

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser
from trl import ModelConfig, ScriptArguments, get_peft_config

"""
    + IMPORT
    + '''

if __name__ == "__main__":
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    value_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    reward_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)
    peft_config = get_peft_config(model_args)
    if peft_config is None:
        ref_policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)
    else:
        ref_policy = None

    dataset = load_dataset("json", data_files=script_args.dataset_name, split="train")
    eval_samples = 4
    train_dataset = dataset.select(range(len(dataset) - eval_samples))
    eval_dataset = dataset.select(range(len(dataset) - eval_samples, len(dataset)))

    def prepare_dataset(dataset, tokenizer):
        """Tokenized before training; the collator only pads."""

        def tokenize(element):
            return {"input_ids": tokenizer(element["prompt"], padding=False)["input_ids"]}

        return dataset.map(
            tokenize, batched=True, remove_columns=dataset.column_names, num_proc=training_args.dataset_num_proc
        )

    with PartialState().local_main_process_first():
        train_dataset = prepare_dataset(train_dataset, tokenizer)
        eval_dataset = prepare_dataset(eval_dataset, tokenizer)

    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        ref_model=ref_policy,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    trainer.generate_completions()
'''
)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the script with an import of one's choice; returns what its names stood for at the end."""
    tokenizer = build_word_tokenizer(pad_token=None)
    gpt2().save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    critic_model(1).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    Dataset.from_dict({"prompt": PROMPTS * 4}).to_json(tmp_path / "prompts.jsonl")

    def run(import_line, *more):
        (tmp_path / "script.py").write_text(SCRIPT.replace(IMPORT, import_line))
        arguments = f"""
            --dataset_name {tmp_path}/prompts.jsonl --output_dir {tmp_path}/out --model_name_or_path {tmp_path}/policy
            --sft_model_path {tmp_path}/policy --reward_model_path {tmp_path}/reward --learning_rate 1e-2
            --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --total_episodes 32 --num_ppo_epochs 2
            --num_mini_batches 2 --response_length 6 --stop_token eos --missing_eos_penalty 1.0 --kl_coef 0.1
            --local_rollout_forward_batch_size 8 --bf16 False --report_to none --logging_steps 1 --save_strategy no
        """.split()
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments, *more])
        names = runpy.run_path(str(tmp_path / "script.py"), run_name="__main__")
        return names, capsys.readouterr().out

    return run


OURS = {
    "PPOTrainer": "from trl_maxmin import PPOConfig, PPOTrainer",
    "MaxMinPPOTrainer": "from trl_maxmin import MaxMinPPOConfig as PPOConfig, MaxMinPPOTrainer as PPOTrainer",
}


@pytest.mark.parametrize("trainer", OURS)
def test_a_script_runs_with_only_its_import_changed(run, tmp_path, trainer):
    names, printed = run(OURS[trainer])
    assert type(names["trainer"]).__name__ == trainer
    assert names["trainer"].state.global_step == 4
    assert len(names["tokenizer"]) == 37 and names["policy"].get_input_embeddings().num_embeddings == 36
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not torch.equal(saved.transformer.wte.weight, gpt2().transformer.wte.weight)
    assert saved.generation_config.eos_token_id == 2, "the saved policy still stops"
    assert "objective/rlhf_reward" in printed and "model response" in printed


def test_the_same_with_an_adapter(run, tmp_path):
    names, _ = run(OURS["PPOTrainer"], "--use_peft", "--lora_target_modules", "c_attn", "c_proj", "--lora_r", "2")
    assert names["ref_policy"] is None and names["trainer"].reference is None
    assert list(PeftModel.from_pretrained(gpt2(), tmp_path / "out").peft_config) == ["default"]


def test_one_reward_is_the_same_run_in_both_trainers(run):
    first, _ = run(OURS["PPOTrainer"])
    second, _ = run(OURS["MaxMinPPOTrainer"])
    for a, b in zip(first["policy"].parameters(), second["policy"].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.seam
def test_the_script_is_one_of_trl_1_12(run):
    if importlib.util.find_spec("trl.experimental.ppo") is None:
        pytest.skip("this TRL has no PPO any more")
    names, printed = run(IMPORT)
    assert type(names["trainer"]).__module__ == "trl.experimental.ppo.ppo_trainer"
    assert "objective/rlhf_reward" in printed


@pytest.mark.seam
def test_every_field_of_the_old_configuration_is_accepted_and_in_the_table():
    table = (ROOT / "docs" / "migrating_from_trl_ppo.md").read_text()
    ours = {field.name for field in dataclasses.fields(trl_maxmin.PPOConfig)} | {"world_size"}
    if importlib.util.find_spec("trl.experimental.ppo") is None:
        rows = table.split("## Fields")[1].split("## New fields")[0].splitlines()
        old = {row.split("`")[1] for row in rows if row.startswith("| `")}
    else:
        module = importlib.import_module("trl.experimental.ppo.ppo_config")
        source = Path(module.__file__).read_text()
        old = {name for name in module.PPOConfig.__annotations__ if f"    {name}:" in source}
        assert len(old) > 30
        assert not {name for name in old if f"`{name}`" not in table}
    assert old <= ours


@pytest.mark.parametrize(
    "name", ["AutoModelForCausalLMWithValueHead", "AutoModelForSeq2SeqLMWithValueHead", "PreTrainedModelWrapper"]
)
def test_models_with_a_value_head_say_what_to_use_instead(name):
    with pytest.raises(ImportError, match=f"{name} is not part of trl_maxmin.*AutoModelForCausalLM.*value_model=None"):
        exec(f"from trl_maxmin import {name}")


class TestAccelerateConfigs:
    """What accelerate makes of the files; no launch."""

    folder = ROOT / "examples" / "accelerate_configs"

    @pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
    def test_accelerate_reads_them(self, name):
        from accelerate.commands.config.config_args import load_config_from_file

        config = load_config_from_file(str(self.folder / f"{name}.yaml"))
        assert config.num_processes == 8 and config.mixed_precision == "bf16"
        expected = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")
        assert config.distributed_type.value == expected

    def test_full_weights_are_saved(self):
        sharded = yaml.safe_load((self.folder / "fsdp2.yaml").read_text())["fsdp_config"]
        assert sharded["fsdp_version"] == 2 and sharded["fsdp_state_dict_type"] == "FULL_STATE_DICT"
        zero3 = yaml.safe_load((self.folder / "deepspeed_zero3.yaml").read_text())["deepspeed_config"]
        assert zero3["zero_stage"] == 3 and zero3["zero3_save_16bit_model"] is True

    def test_fsdp_finds_the_blocks_of_policy_and_critic(self):
        from peft import get_peft_model

        for policy in (gpt2(), get_peft_model(gpt2(), lora())):
            assert PolicyWithCritic(policy, 1, critic_model(1))._no_split_modules == ["GPT2Block"]
