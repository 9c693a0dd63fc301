# SPDX-License-Identifier: Apache-2.0
"""LoRA components against plain PEFT: the same scores, one base, gradients that checkpointing does not change."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, LlamaConfig

from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.models.lora import active_adapter, resolve_lora_config


IDS = torch.tensor([[1, 5, 9, 7, 3, 2], [1, 8, 6, 2, 0, 0]])
MASK = (IDS != 0).long()


def llama(layers=2):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def randomise(model, part="lora_B"):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and part in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.fixture
def base_folder(tmp_path, word_tokenizer):
    llama().save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_component_folder_is_what_plain_peft_loads(base_folder, tmp_path):
    mixture = MixtureRewardModel.from_base(base_folder, 3, "lora", ["a", "b", "c"]).eval()
    randomise(mixture)
    rewards = mixture(IDS, MASK).rewards
    assert (rewards[:, 0] - rewards[:, 1]).abs().min() > 1e-3, "the components must differ"
    for k, name in enumerate("abc"):
        mixture.save_component(name, tmp_path / name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == base_folder and config["task_type"] == "SEQ_CLS"
        base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1, pad_token_id=0)
        plain = PeftModel.from_pretrained(base, tmp_path / name).eval()
        with torch.no_grad():
            logits = plain(input_ids=IDS, attention_mask=MASK).logits
        torch.testing.assert_close(logits[:, 0], rewards[:, k], atol=1e-5, rtol=1e-5)


def test_saved_mixture_refers_to_its_base_and_loads_again(base_folder, tmp_path):
    mixture = MixtureRewardModel.from_base(base_folder, 2, "lora").eval()
    randomise(mixture)
    mixture.save_pretrained(tmp_path / "mixture")
    assert not (tmp_path / "mixture" / "base").exists()
    size = (tmp_path / "mixture" / "model.safetensors").stat().st_size
    assert size < sum(p.numel() * 4 for p in mixture.trunk.parameters()), "the base must not be saved again"
    loaded = MixtureRewardModel.from_pretrained(tmp_path / "mixture")
    torch.testing.assert_close(loaded(IDS, MASK).rewards, mixture(IDS, MASK).rewards, atol=1e-6, rtol=1e-6)
    assert loaded.processing_class is not None and loaded.config.base_model_name_or_path == base_folder


def test_a_half_precision_base_keeps_full_precision_adapters(base_folder, tmp_path):
    mixture = MixtureRewardModel.from_base(base_folder, 2, "lora", dtype=torch.bfloat16).eval()
    randomise(mixture)
    assert mixture.trunk.embed_tokens.weight.dtype == torch.bfloat16
    assert {p.dtype for p in mixture.parameters() if p.requires_grad} == {torch.float32}
    mixture.save_pretrained(tmp_path / "mixture")
    loaded = MixtureRewardModel.from_pretrained(tmp_path / "mixture")
    assert loaded.trunk.embed_tokens.weight.dtype == torch.bfloat16
    torch.testing.assert_close(loaded(IDS, MASK).rewards, mixture(IDS, MASK).rewards)


def test_only_adapters_and_heads_are_trained():
    mixture = MixtureRewardModel.from_base(llama(), 2, "lora")
    trained = {name for name, parameter in mixture.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name or name.endswith("score.weight") for name in trained)
    mixture(IDS, MASK).rewards[:, 1].sum().backward()
    for name, parameter in mixture.named_parameters():
        if "maxmin_reward_0" in name:
            assert parameter.grad is None or not parameter.grad.any(), (
                "component 1 says nothing about the adapter of component 0"
            )
    assert any(p.grad is not None for n, p in mixture.named_parameters() if "lora_B.maxmin_reward_1" in n)


def test_checkpointing_recomputes_each_layer_under_its_own_adapter():
    """The backward pass comes after all K forwards; with the wrong adapter gradients would differ."""
    gradients = []
    for checkpointing in (False, True):
        mixture = MixtureRewardModel.from_base(llama(), 3, "lora", peft_config=LoraConfig(lora_dropout=0.0)).train()
        with torch.no_grad():
            mixture.components[0].score.weight.fill_(0.1)
        randomise(mixture)
        if checkpointing:
            mixture.gradient_checkpointing_enable({"use_reentrant": False})
        rewards = mixture(IDS, MASK).rewards
        (rewards * torch.tensor([1.0, 2.0, -3.0])).sum().backward()
        gradients.append({n: p.grad for n, p in mixture.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 6
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_policy_and_rewards_share_one_base():
    """The policy's adapter, its reference and K rewards: every weight of the base is the same tensor."""
    policy = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    randomise(policy)
    before = policy(IDS, attention_mask=MASK).logits
    mixture = MixtureRewardModel.from_base(policy.get_base_model(), 2, "lora").eval()
    randomise(mixture, "maxmin_reward")
    base = {p.data_ptr() for n, p in policy.named_parameters() if "lora_" not in n}
    assert all(p.data_ptr() in base for n, p in mixture.trunk.named_parameters() if "lora_" not in n)
    rewards = mixture(IDS, MASK).rewards
    torch.testing.assert_close(policy(IDS, attention_mask=MASK).logits, before)
    with policy.disable_adapter():
        torch.testing.assert_close(mixture(IDS, MASK).rewards, rewards)
        reference = policy(IDS, attention_mask=MASK).logits
    torch.testing.assert_close(reference, llama()(IDS, attention_mask=MASK).logits)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad and "maxmin_reward" not in n}
    assert trained and all("lora_" in name for name in trained), "the policy still trains what it trained before"
    policy(IDS, attention_mask=MASK).logits.sum().backward()
    assert all(p.grad is None for n, p in policy.named_parameters() if "maxmin_reward" in n)


def test_trunk_features_are_those_of_the_base_alone():
    mixture = MixtureRewardModel.from_base(llama(), 2, "lora")
    before = mixture.trunk_features(IDS, MASK)
    randomise(mixture)
    torch.testing.assert_close(mixture.trunk_features(IDS, MASK), before)
    with active_adapter(mixture.trunk, 1):
        assert not torch.allclose(mixture._pooled(mixture.components[0], IDS, MASK), before)


def test_a_base_without_a_name_is_saved_beside_the_components(tmp_path):
    mixture = MixtureRewardModel.from_base(llama(), 2, "lora").eval()
    randomise(mixture)
    mixture.save_pretrained(tmp_path / "mixture")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mixture" / "base")
    assert plain.config.num_labels == 1 and not any("lora" in name for name, _ in plain.named_parameters())
    mixture.save_component(0, tmp_path / "one", base_model_name_or_path="org/base")
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"


class TestErrors:
    def test_other_peft_methods(self):
        with pytest.raises(ValueError, match="LoraConfig, got PromptTuningConfig"):
            resolve_lora_config(PromptTuningConfig(num_virtual_tokens=2), "gpt2")

    def test_lora_with_biases(self):
        with pytest.raises(ValueError, match="bias='none'"):
            resolve_lora_config(LoraConfig(bias="all"), "gpt2")

    def test_no_base_of_their_own(self, tmp_path):
        config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=0)
        mixture = MixtureRewardModel.from_base(AutoModelForCausalLM.from_config(config), 2)
        with pytest.raises(ValueError, match="'head' have no base"):
            mixture.save_base(tmp_path)

    @pytest.mark.parametrize("pooling", ["mean", "mean_sqrt_len"])
    def test_mean_pooling_is_not_exported(self, tmp_path, pooling):
        mixture = MixtureRewardModel.from_base(llama(), 2, pooling=pooling)
        assert not mixture.exports_components
        for call in (lambda: mixture.component(0), lambda: mixture.save_component(0, tmp_path)):
            with pytest.raises(ValueError, match=f"pooling='{pooling}', kernel_features=0 cannot be exported"):
                call()

    def test_unknown_pooling(self):
        with pytest.raises(ValueError, match="pooling 'max'.*'auto', 'mean', 'mean_sqrt_len'"):
            MixtureRewardModel.from_base(llama(), 2, pooling="max")


# Four tokens are real: their sum over 4, and over the root of 4.
@pytest.mark.parametrize("pooling, divisor", [("mean", 4), ("mean_sqrt_len", 2)])
def test_mean_pooling_is_over_real_tokens(pooling, divisor):
    mixture = MixtureRewardModel.from_base(llama(), 2, pooling=pooling).eval()
    hidden = mixture.trunk(IDS[1:, :4]).last_hidden_state.sum(1) / divisor
    torch.testing.assert_close(mixture.features(IDS, MASK)[1:, 0], hidden, atol=1e-5, rtol=1e-4)
