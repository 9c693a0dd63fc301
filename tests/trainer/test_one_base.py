# SPDX-License-Identifier: Apache-2.0
"""Policy, reference, critic and K rewards as adapters and heads on one base, through a MaxMin-PPO step."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tests.launcher import launch
from tests.trainer.ppo_helpers import build_ppo_trainer, gpt2
from tests.trainer.trl_helpers import save_base
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.trainer import MaxMinPPOConfig, MaxMinPPOTrainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", ["policy", "rewards"])
def test_a_step_moves_the_policy_and_nothing_else(tmp_path, word_tokenizer, first):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, fan_in_fan_out=True)
    base = gpt2()
    policy = get_peft_model(base, config) if first == "policy" else base
    mixture = MixtureRewardModel.from_base(base, 2, "lora", processing_class=word_tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if "maxmin_reward" in name and "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        mixture.components[0].score.weight.copy_(torch.randn(2, 16, generator=generator))
    heads = mixture.components[0].score.weight.detach().clone()
    texts = ["the film"] * 2, ["is great", "is dull and weak"]
    scores = mixture.score(*texts)
    trainer = build_ppo_trainer(
        tmp_path, word_tokenizer, MaxMinPPOTrainer, MaxMinPPOConfig, model=policy, ref_model=None,
        reward_model=mixture, max_steps=1, num_reference_completions=4,
        peft_config=None if first == "policy" else config,
    )  # fmt: skip
    policy = trainer.model.policy
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name and ".default." in name for name in trained)
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


SCRIPT = """
import json, sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import build_ppo_trainer
from tests.trainer.trl_helpers import build_trl_trainer
from transformers import AutoModelForCausalLM
from trl_maxmin import MaxMinGRPOTrainer, MixtureRewardModel
from trl_maxmin.trainer import MaxMinPPOConfig, MaxMinPPOTrainer

torch.set_num_threads(1)
out, kind, world, base = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
tokenizer = build_word_tokenizer()
torch.manual_seed(0)
adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], r=2, fan_in_fan_out=True)
policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base), adapter)
mixture = MixtureRewardModel.from_base(policy.get_base_model(), 2, "lora", processing_class=tokenizer)
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    for name, parameter in policy.named_parameters():
        if "maxmin_reward" in name and "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    mixture.components[0].score.weight.copy_(torch.randn(2, 16, generator=generator))
settings = {"max_steps": 3, "gradient_checkpointing": True, "use_cpu": True, "num_reference_completions": 4}
if kind == "ppo":
    trainer = build_ppo_trainer(
        out + "-run", tokenizer, MaxMinPPOTrainer, MaxMinPPOConfig, model=policy, ref_model=None, reward_model=mixture,
        per_device_train_batch_size=2, gradient_accumulation_steps=4 // world, generation_kwargs={"do_sample": False},
        **settings,
    )
else:
    trainer = build_trl_trainer(
        MaxMinGRPOTrainer, base, tokenizer, out + "-run", model=policy, reward_funcs=mixture,
        ddp_find_unused_parameters=False, **settings,
    )
before = {name: p.detach().clone() for name, p in policy.named_parameters()}
trainer.train()
moved = {name: p.flatten().tolist() for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
names = ("loss", "rewards/component_0/mean")
curves = {name: [entry[name] for entry in trainer.state.log_history if name in entry] for name in names}
result = {"type": type(trainer.model_wrapped).__name__, "moved": moved, "curves": curves}
Path(f"{out}.{trainer.args.process_index}").write_text(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_two_processes_train_the_policys_adapter_alone(tmp_path, word_tokenizer, kind):
    """DDP waits for a gradient of everything trainable; PPO with greedy replies is what one process makes of it."""
    base = str(save_base(tmp_path / "base", word_tokenizer))
    first, second = launch(SCRIPT, 2, tmp_path / "two" / "run", kind, "2", base)
    assert first["type"] == "DistributedDataParallel" and first["moved"] == second["moved"]
    assert first["moved"] and all("lora_" in name and ".default." in name for name in first["moved"])
    if kind == "ppo":
        (alone,) = launch(SCRIPT, 1, tmp_path / "one" / "run", kind, "1", base)
        assert alone["moved"].keys() == first["moved"].keys() and len(alone["curves"]["loss"]) == 3
        for name, values in alone["curves"].items():
            assert first["curves"][name] == pytest.approx(values, abs=1e-4), name
        for name, values in alone["moved"].items():
            assert first["moved"][name] == pytest.approx(values, abs=1e-3), name
