# SPDX-License-Identifier: Apache-2.0
"""Policy, reference, critic and K rewards as adapters and heads on one base, through a MaxMin-PPO step."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tests.trainer.ppo_helpers import build_ppo_trainer, gpt2
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.trainer import MaxMinPPOConfig, MaxMinPPOTrainer


@pytest.mark.filterwarnings("ignore")
def test_a_step_moves_the_policy_and_nothing_else(tmp_path, word_tokenizer):
    policy = get_peft_model(gpt2(), LoraConfig(task_type="CAUSAL_LM", r=2, fan_in_fan_out=True))
    mixture = MixtureRewardModel.from_base(policy.get_base_model(), 2, "lora", processing_class=word_tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if "maxmin_reward" in name and "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        mixture.components[0].score.weight.copy_(torch.randn(2, 16, generator=generator))
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    heads = mixture.components[0].score.weight.detach().clone()
    texts = ["the film"] * 2, ["is great", "is dull and weak"]
    scores = mixture.score(*texts)
    trainer = build_ppo_trainer(
        tmp_path, word_tokenizer, MaxMinPPOTrainer, MaxMinPPOConfig, model=policy, ref_model=None,
        reward_model=mixture, max_steps=1, num_reference_completions=4,
    )  # fmt: skip
    trainer.train()
    after = dict(policy.named_parameters())
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved and all("lora_" in name and "maxmin_reward" not in name for name in moved)
    assert torch.equal(mixture.components[0].score.weight, heads)
    torch.testing.assert_close(mixture.score(*texts), scores)
    base = {p.data_ptr() for n, p in policy.named_parameters() if "lora_" not in n}
    assert all(p.data_ptr() in base for n, p in mixture.trunk.named_parameters() if "lora_" not in n)
    trainer.save_model(str(tmp_path / "policy"))
    saved = load_file(tmp_path / "policy" / "adapter_model.safetensors")
    assert saved and not any("maxmin_reward" in name for name in saved), "the policy's file holds the policy alone"
