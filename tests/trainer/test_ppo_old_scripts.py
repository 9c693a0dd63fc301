# SPDX-License-Identifier: Apache-2.0
"""Scripts for TRL below 0.12 and for PPOv2 are told what to write; scripts for TRL 1.12 run as people wrote them."""

import copy
import dataclasses
import importlib
import importlib.util
import inspect
import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, DataCollatorWithPadding, TrainerCallback
from trl import ScriptArguments, TrlParser

import trl_maxmin
from tests.conftest import build_word_tokenizer
from tests.launcher import ROOT
from tests.trainer.ppo_helpers import PROMPTS, critic_model, gpt2, lora
from trl_maxmin import MaxMinPPOConfig, MaxMinPPOTrainer, PPOConfig, PPOTrainer
from trl_maxmin.trainer.ppo.old_scripts import ARGUMENTS, FIELDS, IMPORTS, METHODS


GUIDE = (ROOT / "docs" / "migrating_from_trl_ppo.md").read_text()

#: A line of a script for TRL below 0.12 (or PPOv2), and what the error has to name.
OLD = {
    "value head": (
        "from trl_maxmin import AutoModelForCausalLMWithValueHead",
        "AutoModelForCausalLM.*value_model=None",
    ),
    "seq2seq": ("from trl_maxmin import AutoModelForSeq2SeqLMWithValueHead", "encoder-decoders are not trained"),
    "reference": ("from trl_maxmin import PPOConfig, PPOTrainer, create_reference_model", "ref_model=None"),
    "v2 trainer": ("from trl_maxmin import PPOv2Trainer", "Use `PPOTrainer`"),
    "v2 configuration": ("from trl_maxmin import PPOv2Config", "Use `PPOConfig`"),
    "lengths": ("from trl_maxmin import LengthSampler", "response_length"),
    "sampling": ("from trl_maxmin import respond_to_batch", r"trainer.train\(\)"),
    "name": ("PPOConfig(model_name='gpt2', learning_rate=1.41e-5)", "no field 'model_name'.*`model=`"),
    "tracker": ("PPOConfig(log_with='wandb', batch_size=16)", "'log_with'.*report_to"),
    "epochs": ("PPOConfig(ppo_epochs=4, mini_batch_size=4, batch_size=16)", "'ppo_epochs'.*num_ppo_epochs"),
    "kl": ("PPOConfig(init_kl_coef=0.2, target=6, horizon=10000)", "'init_kl_coef'.*kl_coef"),
    "adaptive": ("PPOConfig(adap_kl_ctrl=False)", "'adap_kl_ctrl'.*adaptive_kl"),
    "steps": ("PPOConfig(steps=20000)", "'steps'.*total_episodes.*max_steps"),
    "scores": ("MaxMinPPOConfig(use_score_scaling=True, use_score_norm=True)", "'use_score_scaling'.*reward function"),
    "v2 fields": ("PPOConfig(non_eos_penalty=True, output_dir='x')", "'non_eos_penalty'.*missing_eos_penalty"),
    "reading": ("PPOConfig(output_dir='x').ppo_epochs", "'ppo_epochs'.*num_ppo_epochs"),
    "keywords": ("PPOTrainer(config=args, model=model, tokenizer=tokenizer, dataset=data)", "'config'.*`args=`"),
    "tokenizer": ("PPOTrainer(args=args, tokenizer=tokenizer, model=model)", "'tokenizer'.*processing_class"),
    "dataset": ("PPOTrainer(args, tokenizer, model, dataset=data)", "'dataset'.*train_dataset"),
    "positions": ("PPOTrainer(args, model, reference, tokenizer)", "`processing_class` is a GPT2LMHeadModel.*order"),
    "v2 keywords": (
        "PPOTrainer(args=args, processing_class=tokenizer, policy=model, ref_policy=reference)",
        "'policy'.*`model=`",
    ),
    "v2 reference": ("MaxMinPPOTrainer(args, tokenizer, model, ref_policy=reference)", "'ref_policy'.*`ref_model=`"),
    "optimizer": ("PPOTrainer(args, tokenizer, model, optimizer=None)", "'optimizer'.*`optimizers=`?"),
    "loop": ("trainer.step([1], [2], [0.5])", r"'step'.*trainer.train\(\)"),
    "generation": ("trainer.generate([1], max_new_tokens=4)", "'generate'.*policy_model.generate"),
    "statistics": ("trainer.log_stats({}, {}, [])", "'log_stats'.*report_to"),
    "batches": ("for batch in trainer.dataloader: pass", r"'dataloader'.*trainer.train\(\)"),
}


@pytest.mark.parametrize("case", OLD)
def test_old_scripts_get_a_remedy(tmp_path, make, case):
    line, message = OLD[case]
    names = {name: getattr(trl_maxmin, name) for name in ("PPOConfig", "PPOTrainer", "MaxMinPPOConfig")}
    names |= {"MaxMinPPOTrainer": MaxMinPPOTrainer, "args": PPOConfig(output_dir=str(tmp_path), report_to=[])}
    names |= {"model": gpt2(), "reference": gpt2(), "tokenizer": build_word_tokenizer(), "data": Dataset.from_dict({})}
    if "trainer." in line:
        names["trainer"] = make()
    with pytest.raises((ImportError, TypeError, AttributeError, ValueError), match=f"(?s){message}") as caught:
        exec(line, names)
    page, section = str(caught.value).split("See docs/")[-1].split("see docs/")[-1].split(', "')
    assert (ROOT / "docs" / page).is_file() and f"## {section.split(chr(34))[0]}" in GUIDE


def test_the_tables_and_the_guide_are_the_same():
    for table in (IMPORTS, ARGUMENTS, FIELDS, METHODS):
        assert not {name for name in table if f"`{name}`" not in GUIDE}


def test_no_old_name_is_one_of_ours():
    for config in (PPOConfig, MaxMinPPOConfig):
        assert not set(FIELDS) & {field.name for field in dataclasses.fields(config)}
    assert not set(ARGUMENTS) & set(inspect.signature(PPOTrainer.__init__).parameters)
    assert not [name for name in METHODS if hasattr(PPOTrainer, name)]


def test_configurations_are_copied_and_pickled(tmp_path):
    args = MaxMinPPOConfig(output_dir=str(tmp_path), report_to=[], num_ppo_epochs=3)
    torch.save(args, tmp_path / "args.bin")
    for other in (
        copy.deepcopy(args),
        dataclasses.replace(args),
        torch.load(tmp_path / "args.bin", weights_only=False),
    ):
        assert other.num_ppo_epochs == 3 and not hasattr(other, "no_such_field")


def test_sizes_that_are_given_and_follow_from_others_are_said(make):
    with pytest.warns(UserWarning, match="batch_size=128 was given, but it is 8: .*gradient_accumulation_steps=2"):
        make(batch_size=128)


def test_a_size_that_was_filled_in_is_not(make, recwarn):
    trainer = make(batch_size=8, mini_batch_size=8)
    PPOTrainer(trainer.args, model=gpt2(), reward_model=lambda prompts, completions, **_: [0.0] * len(prompts),
               processing_class=trainer.processing_class, train_dataset=trainer.train_dataset)  # fmt: skip
    assert not [w for w in recwarn if "was given" in str(w.message)]


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"), [(20, 1.0, 3), (20, 2.0, 5), (24, 1.0, 3), (24, 0.5, 2), (9, 3, 4)]
)
def test_episodes_are_counted_as_in_trl_1_12(make, rows, epochs, steps):
    """There: total_episodes = int(num_train_epochs * rows), and ceil(total_episodes / batch_size) updates."""
    data = Dataset.from_dict({"prompt": [PROMPTS[i % 6] for i in range(rows)]})
    args = {"max_steps": -1, "num_train_epochs": epochs, "num_ppo_epochs": 1}
    trainer = make(train_dataset=data, **args)
    trainer.train()
    assert trainer.state.global_step == trainer.args.num_total_batches == steps
    again = make(train_dataset=Dataset.from_dict({"prompt": PROMPTS * 8}), output_dir=trainer.args.output_dir, **args)
    assert again.args.max_steps == -(-int(epochs * 48) // 8)


def test_arguments_that_serve_a_second_trainer_are_planned_anew(make):
    args = make(max_steps=-1, num_train_epochs=1).args
    assert args.max_steps == 3
    data = Dataset.from_dict({"prompt": PROMPTS * 8})
    PPOTrainer(args, build_word_tokenizer(), gpt2(), reward_model=critic_model(1), train_dataset=data)
    assert args.max_steps == args.num_total_batches == 6


# ------------------------------------------------------------------------- scripts for 1.12, with the import changed
def tokenized(tokenizer, **kwargs):
    rows = [tokenizer(prompt, **kwargs) for prompt in PROMPTS * 2]
    return Dataset.from_list([{name: row[name] for name in ("input_ids", *kwargs.get("keep", ()))} for row in rows])


def config(folder, **kwargs):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "total_episodes": 8}
    settings |= {"response_length": 5, "num_ppo_epochs": 1, "learning_rate": 1e-2, "report_to": "none"}
    return PPOConfig(output_dir=str(folder), **(settings | {"bf16": False, "save_strategy": "no"} | kwargs))


def by_position(folder, tokenizer):
    reference = gpt2()
    roles = (tokenizer, gpt2(), reference, critic_model(1), tokenized(tokenizer), critic_model(1))
    return PPOTrainer(config(folder), *roles)


def filtered_by_length_with_an_adapter(folder, tokenizer):
    return filtered_by_length(folder, tokenizer, ref_model=None, peft_config=lora())


def filtered_by_length(folder, tokenizer, **roles):
    """As in the TL;DR example: lengths stay in the data, the evaluation set is sampled from as training goes on."""
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    data = Dataset.from_dict({"prompt": PROMPTS * 2}).map(
        lambda row: {"input_ids": (ids := tokenizer(row["prompt"])["input_ids"]), "lengths": len(ids)},
        remove_columns=["prompt"],
    )
    data = data.filter(lambda row: row["lengths"] <= 4)
    args = config(folder, stop_token="eos", missing_eos_penalty=1.0, eval_strategy="steps", eval_steps=1)
    roles = {"ref_model": gpt2()} | roles
    return PPOTrainer(
        args=args, processing_class=tokenizer, model=gpt2(), reward_model=critic_model(1), value_model=critic_model(1),
        train_dataset=data, eval_dataset=data.select(range(3)), **roles,
    )  # fmt: skip


def with_a_peft_config(folder, tokenizer):
    """As in the examples with `--use_peft`."""
    return PPOTrainer(
        args=config(folder), processing_class=tokenizer, model=gpt2(), ref_model=None, reward_model=critic_model(1),
        value_model=critic_model(1), train_dataset=tokenized(tokenizer), peft_config=lora(),
    )  # fmt: skip


def wrapped_by_hand(folder, tokenizer):
    policy = get_peft_model(gpt2(), lora())
    policy.print_trainable_parameters()
    return PPOTrainer(
        config(folder, model_adapter_name="default"), tokenizer, policy, None, critic_model(1), tokenized(tokenizer),
        critic_model(1),
    )  # fmt: skip


def two_adapters(folder, tokenizer):
    policy = get_peft_model(gpt2(), lora(), adapter_name="policy")
    policy.add_adapter("frozen", lora())
    args = config(folder, model_adapter_name="policy", ref_adapter_name="frozen")
    return PPOTrainer(args, tokenizer, policy, None, critic_model(1), tokenized(tokenizer), critic_model(1))


def reward_with_an_adapter(folder, tokenizer):
    adapter = LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn"], r=2, fan_in_fan_out=True)
    reward = get_peft_model(critic_model(1), adapter)
    return PPOTrainer(config(folder), tokenizer, gpt2(), gpt2(), reward, tokenized(tokenizer), critic_model(1))


class Rule(nn.Module):
    """A rule dressed as a reward model: the trunk passes the ids on as hidden states, `score` looks at them."""

    base_model_prefix = "trunk"

    def __init__(self):
        super().__init__()
        self.trunk = self.Trunk()

    class Trunk(nn.Module):
        def forward(self, input_ids, attention_mask, position_ids, return_dict, output_hidden_states, use_cache):
            return SimpleNamespace(hidden_states=(input_ids.unsqueeze(-1).float(),))

    def score(self, hidden_states):
        return (hidden_states == 7).float().cumsum(1)


def rule_as_a_module(folder, tokenizer):
    return PPOTrainer(config(folder), tokenizer, gpt2(), gpt2(), Rule(), tokenized(tokenizer), critic_model(1))


def padded_beforehand(folder, tokenizer):
    """Rows of one length in torch's format, padded on the left with EOS, and the collator that pads them again."""
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    rows = [dict(tokenizer(prompt, padding="max_length", max_length=8, truncation=True)) for prompt in PROMPTS * 2]
    data = Dataset.from_list(rows).with_format("torch")
    return PPOTrainer(
        args=config(folder), processing_class=tokenizer, model=gpt2(), ref_model=gpt2(), reward_model=critic_model(1),
        value_model=critic_model(1), train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 2


def own_optimizer_and_callbacks(folder, tokenizer):
    policy, critic = gpt2(), critic_model(1)
    optimizer = torch.optim.AdamW([*policy.parameters(), *critic.parameters()], lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return PPOTrainer(
        config(folder, total_episodes=40), tokenizer, policy, gpt2(), critic_model(1), tokenized(tokenizer), critic,
        optimizers=(optimizer, schedule), callbacks=[Stop()],
    )  # fmt: skip


def every_field(folder, tokenizer):
    args = config(
        folder, per_device_train_batch_size=4, total_episodes=16, num_mini_batches=1, whiten_rewards=True,
        local_rollout_forward_batch_size=2, num_sample_generations=0, temperature=0.9, kl_coef=0.1, kl_estimator="k3",
        stop_token_id=tokenizer.eos_token_id, cliprange=0.1, vf_coef=0.5, cliprange_value=0.1, gamma=0.99, lam=0.9,
        ds3_gather_for_generation=False, world_size=1, dataset_num_proc=1, sft_model_path="a", reward_model_path="b",
    )  # fmt: skip
    return PPOTrainer(args, tokenizer, gpt2(), None, critic_model(1), tokenized(tokenizer), critic_model(1))


def subclass(folder, tokenizer):
    """People change what is logged and saved."""

    class Louder(PPOTrainer):
        def log(self, logs, start_time=None):
            super().log({**logs, "louder": 1.0}, start_time)

        def save_model(self, output_dir=None, _internal_call=False):
            super().save_model(output_dir, _internal_call)

    return Louder(
        config(folder, logging_steps=1), tokenizer, gpt2(), copy.deepcopy(gpt2()), critic_model(1),
        tokenized(tokenizer), critic_model(1),
    )  # fmt: skip


def from_a_recipe(folder, tokenizer):
    """Trainer arguments from YAML by TRL's parser; epochs instead of episodes, half-precision models."""
    recipe = folder / "recipe.yaml"
    folder.mkdir()
    recipe.write_text(
        f"output_dir: {folder}\nnum_train_epochs: 1\nper_device_train_batch_size: 4\nresponse_length: 5\n"
        "num_ppo_epochs: 1\nlearning_rate: 0.01\nreport_to: none\nbf16: false\nsave_strategy: 'no'\ndataset_name: x\n"
    )
    _, args = TrlParser((ScriptArguments, PPOConfig)).parse_args_and_config(["--config", str(recipe)])
    models = (gpt2().to(torch.bfloat16), gpt2().to(torch.bfloat16), critic_model(1).to(torch.bfloat16))
    return PPOTrainer(args, tokenizer, *models, tokenized(tokenizer), critic_model(1).to(torch.bfloat16))


SHAPES = [
    by_position, filtered_by_length, filtered_by_length_with_an_adapter,
    with_a_peft_config, wrapped_by_hand, two_adapters, reward_with_an_adapter,
    rule_as_a_module, padded_beforehand, own_optimizer_and_callbacks, every_field, subclass, from_a_recipe,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_scripts_for_trl_1_12_run(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    tokenizer = build_word_tokenizer()
    trainer = shape(tmp_path / "out", tokenizer)
    before = [p.detach().clone() for p in trainer.policy_model.parameters() if p.requires_grad]
    trainer.train()
    after = [p for p in trainer.policy_model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert trainer.state.global_step == {"from_a_recipe": 3}.get(shape.__name__, 2)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    trainer.save_model(str(tmp_path / "saved"))
    trainer.generate_completions()
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    if "adapter_model.safetensors" not in files and not (tmp_path / "saved" / "policy").is_dir():
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


@pytest.mark.seam
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_they_are_scripts_for_trl_1_12(tmp_path, monkeypatch, shape):
    if importlib.util.find_spec("trl.experimental.ppo") is None:
        pytest.skip("this TRL has no PPO any more")
    theirs = importlib.import_module("trl.experimental.ppo")
    monkeypatch.setattr(sys, "argv", ["script.py"])
    monkeypatch.setitem(globals(), "PPOConfig", theirs.PPOConfig)
    monkeypatch.setitem(globals(), "PPOTrainer", theirs.PPOTrainer)
    trainer = shape(tmp_path / "out", build_word_tokenizer())
    trainer.train()
    assert isinstance(trainer, theirs.PPOTrainer)
    if shape is not own_optimizer_and_callbacks:  # there the loop never asks whether it should stop
        assert trainer.state.global_step == {"from_a_recipe": 3}.get(shape.__name__, 2)


def test_a_rule_as_a_module_scores_what_it_says(make):
    """Sevens up to the end of the reply, whatever the batch it is in."""
    trainer = make(reward_model=[Rule(), critic_model(1)])
    replies = [[7, 7, 2], [5, 7, 7, 7], [9, 2]]
    inputs = [{"prompt_ids": [4, 8], "prompt": "the film", "finished": ids[-1] == 2} for ids in replies]
    rewards = trainer._calculate_rewards(inputs, ["the film"] * 3, [""] * 3, replies)
    assert rewards[:, 0].tolist() == [2.0, 3.0, 0.0]
