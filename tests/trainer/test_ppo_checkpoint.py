# SPDX-License-Identifier: Apache-2.0
"""Nothing random is a critic or a policy: folders of other runs, cut-off files, heads that are NaN or not there."""

import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import GPT2Model, LlamaConfig, LlamaForCausalLM

from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import SIZE, brevity, critic_model, gpt2, lora, sevens, weights


HEAD = "value_head.safetensors"
KINDS = {
    "head": (dict, HEAD),
    "policy": (dict, "model.safetensors"),
    "value_model": (lambda: {"value_model": critic_model(2)}, "value_model/model.safetensors"),
    "adapter": (lambda: {"peft_config": lora()}, "adapter_model.safetensors"),
    "critic_adapter": (
        lambda: {"peft_config": lora(), "critic_adapter": True},
        "value_model/trl_maxmin_critic/adapter_model.safetensors",
    ),
    "adapted_value_model": (
        lambda: {"peft_config": lora(), "value_model": critic_model(1)},
        "value_model/adapter/adapter_model.safetensors",
    ),
}


@pytest.fixture
def trained(make):
    def trained(**settings):
        trainer = make(max_steps=1, save_strategy="steps", save_steps=1, **settings)
        trainer.train()
        return f"{trainer.args.output_dir}/checkpoint-1"

    return trained


def change(file, edit):
    state = load_file(file)
    edit(state)
    save_file(state, file, {"format": "pt"})


def first(state):
    return sorted(state)[0]


def miss(state):
    state.pop(first(state))


def rename(state):
    state["of_another_model"] = state.pop(first(state))


def poison(state):
    state[first(state)].view(-1)[0] = float("nan")


def overflow(state):
    state[first(state)].view(-1)[-1] = float("inf")


def widen(state):
    name = first(state)
    state[name] = torch.cat([state[name]] * 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edit", [miss, rename, poison, overflow, widen], ids=lambda edit: edit.__name__)
def test_a_damaged_file_is_refused_by_name(make, trained, kind, edit):
    settings, name = KINDS[kind]
    folder = trained(**settings())
    key = first(load_file(f"{folder}/{name}"))
    change(f"{folder}/{name}", edit)
    with pytest.raises(ValueError) as error:
        make(max_steps=2, **settings()).train(resume_from_checkpoint=folder)
    assert f"{folder}/{name}" in str(error.value)
    assert ("of_another_model" if edit is rename else key) in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_by_name(make, trained, kind):
    settings, name = KINDS[kind]
    folder = trained(**settings())
    with open(f"{folder}/{name}", "r+b") as file:
        file.truncate(file.seek(0, 2) - 20)
    with pytest.raises(ValueError, match=name):
        make(max_steps=2, **settings()).train(resume_from_checkpoint=folder)


@pytest.mark.parametrize("kind", KINDS)
def test_an_intact_checkpoint_is_read_bit_by_bit(make, trained, kind):
    settings, name = KINDS[kind]
    folder = trained(**settings())
    resumed = make(max_steps=1, **settings())
    start = weights(resumed)
    resumed._load_from_checkpoint(folder)
    saved = load_file(f"{folder}/{name}")
    moved = [tensor for key, tensor in weights(resumed).items() if not torch.equal(tensor, start[key])]
    assert saved and moved
    for tensor in saved.values():
        assert any(torch.equal(tensor, other) for other in weights(resumed).values() if other.shape == tensor.shape)


class TestFoldersOfOtherRuns:
    def test_a_critic_of_another_number_of_rewards(self, make, trained):
        folder = trained(reward_model=[sevens, brevity])
        with pytest.raises(ValueError, match=r"value_head.safetensors.*weight \(3, 16\) instead of \(2, 16\)"):
            make(max_steps=2).train(resume_from_checkpoint=folder)

    def test_a_value_model_of_another_number_of_rewards(self, make, trained):
        folder = trained(reward_model=[sevens, brevity], value_model=critic_model(3))
        with pytest.raises(ValueError, match=r"value_model.*score.weight \(3, 8\) instead of \(2, 8\)"):
            make(max_steps=2, value_model=critic_model(2)).train(resume_from_checkpoint=folder)

    def test_an_adapter_of_another_rank(self, make, trained):
        folder = trained(peft_config=lora())
        other = lora()
        other.r = 4
        with pytest.raises(ValueError, match=r"adapter_model.safetensors.*lora_A.*\(2, 16\) instead of \(4, 16\)"):
            make(max_steps=2, peft_config=other).train(resume_from_checkpoint=folder)

    def test_an_adapter_on_other_layers(self, make, trained):
        folder = trained(peft_config=lora())
        other = lora()
        other.target_modules = {"c_attn", "c_proj"}
        with pytest.raises(ValueError, match="missing: .*c_proj"):
            make(max_steps=2, peft_config=other).train(resume_from_checkpoint=folder)

    def test_a_policy_of_another_depth(self, make, trained):
        folder = trained()
        with pytest.raises(ValueError, match=r"missing: .*h\.1\."):
            make(max_steps=2, model=gpt2(n_layer=2)).train(resume_from_checkpoint=folder)
        deeper = trained(model=gpt2(n_layer=2))
        with pytest.raises(ValueError, match=r"not part of it: .*h\.1\."):
            make(max_steps=2).train(resume_from_checkpoint=deeper)

    def test_a_policy_of_another_kind(self, make, trained):
        whole = trained()
        with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is missing.*peft_config"):
            make(max_steps=2, peft_config=lora()).train(resume_from_checkpoint=whole)
        adapter = trained(peft_config=lora())
        with pytest.raises(FileNotFoundError, match="config.json is missing"):
            make(max_steps=2).train(resume_from_checkpoint=adapter)

    def test_the_best_checkpoint_is_checked_too(self, make, trained):
        folder = trained()
        change(f"{folder}/{HEAD}", poison)
        trainer = make(max_steps=1)
        trainer.state.best_model_checkpoint = folder
        with pytest.raises(ValueError, match="NaN or infinite"):
            trainer._load_best_model()


def test_tied_weights_are_saved_once_and_read_as_two(make, trained):
    """The output layer of GPT-2 is its embedding: a key that the file lacks and nobody misses."""
    folder = trained()
    assert "lm_head.weight" not in load_file(f"{folder}/model.safetensors")
    resumed = make(max_steps=1)
    resumed._load_from_checkpoint(folder)
    policy = resumed.policy_model
    assert policy.lm_head.weight is policy.transformer.wte.weight
    assert torch.equal(policy.lm_head.weight, load_file(f"{folder}/model.safetensors")["transformer.wte.weight"])


def test_modules_that_are_trained_whole_are_those_of_the_adapter_in_use(make, trained):
    """`modules_to_save` is switched with the adapters: the reference has the embedding as it was."""
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["c_attn"], r=2, fan_in_fan_out=True, modules_to_save=["wpe"]
    )
    trainer = make(peft_config=config, critic_adapter=True, max_steps=2)
    trainer.train()
    rollout = trainer._rollout([{"prompt": "the film"}])
    ids = torch.tensor([rollout.prompt_ids[0] + rollout.completion_ids[0]])
    with torch.no_grad():
        logits = gpt2().eval()(ids).logits[0, len(rollout.prompt_ids[0]) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(rollout.completion_ids[0])[:, None])[:, 0]
    torch.testing.assert_close(rollout.ref_logprobs[0], expected, atol=1e-5, rtol=1e-5)
    moved = {n for n, p in trainer.policy_model.named_parameters() if p.requires_grad and "wpe" in n}
    assert {name.split(".")[-2] for name in moved} == {"default", "trl_maxmin_critic"}


class TestAPolicyByName:
    def folder(self, tmp_path, model=None, tokenizer=True):
        (gpt2() if model is None else model).save_pretrained(tmp_path / "policy")
        if tokenizer:
            build_word_tokenizer().save_pretrained(tmp_path / "policy")
        return str(tmp_path / "policy")

    @pytest.mark.parametrize("edit", [miss, poison, widen], ids=lambda edit: edit.__name__)
    def test_damaged_weights(self, make, tmp_path, edit):
        folder = self.folder(tmp_path)
        key = first(load_file(f"{folder}/model.safetensors"))
        change(f"{folder}/model.safetensors", edit)
        with pytest.raises(ValueError, match=f"`model`.*{folder}.*{key}"):
            make(model=folder)

    def test_a_model_of_another_kind(self, make, tmp_path):
        with pytest.raises(ValueError, match="`model`.*score"):
            make(model=self.folder(tmp_path, critic_model(1)))
        with pytest.raises(ValueError, match="`model`.*LlamaForCausalLM.*missing: .*model.layers.0"):
            folder = self.folder(tmp_path)
            shutil.copy(f"{folder}/model.safetensors", tmp_path / "kept")
            config = LlamaConfig(
                vocab_size=SIZE, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
            )
            LlamaForCausalLM(config).save_pretrained(folder)
            shutil.copy(tmp_path / "kept", f"{folder}/model.safetensors")
            make(model=folder)

    def test_no_tokenizer_is_said_before_the_weights_are_read(self, make, tmp_path, monkeypatch):
        folder = self.folder(tmp_path, tokenizer=False)
        monkeypatch.setattr(GPT2Model, "__init__", lambda *_: pytest.fail("a model was built"))
        with pytest.raises(ValueError, match=f"`processing_class`.*`model`.*{folder}"):
            make(model=folder, processing_class=None)

    def test_a_path_that_does_not_exist(self, make, tmp_path):
        with pytest.raises(ValueError, match=f"{tmp_path}/nowhere"):
            make(model=f"{tmp_path}/nowhere")
