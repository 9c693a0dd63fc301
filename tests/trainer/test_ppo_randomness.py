# SPDX-License-Identifier: Apache-2.0
"""Nothing random between a rollout and its update: the first ratio of every family is 1."""

import pytest
import torch
from torch.nn import functional as F
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families import tiny
from tests.trainer.ppo_helpers import critic_model, gpt2
from trl_maxmin import PPOTrainer
from trl_maxmin.trainer.ppo.policy import PolicyWithCritic
from trl_maxmin.trainer.ppo.randomness import make_deterministic


TRAINED = """
    afmoe apertus arcee aria_text biogpt bitnet bloom codegen cohere cohere2 ctrl cwm deepseek_v2 deepseek_v3 doge
    ernie4_5 ernie4_5_moe exaone4 falcon falcon_mamba flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2
    gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe helium jetmoe lfm2 llama mamba ministral mistral
    mixtral mpt nanochat nemotron olmo olmo2 olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
    qwen3_5_text qwen3_moe qwen3_next seed_oss smollm3 stablelm starcoder2 vaultgemma xglm
""".split()

ENCODERS = "bert big_bird camembert electra ernie megatron-bert roberta roformer xlm xlm-roberta".split()

#: Families of the causal-language-model table that are not in the tests above, and why.
LEFT_OUT = {
    "an encoder-decoder, whose decoder alone is no policy": "bart bigbird_pegasus blenderbot marian mbart mvp pegasus",
    "its language-model head is more than a matrix: refused by `check_head`": "inkling_text modernbert-decoder",
    "attends to the whole prompt: refused by `check_head`": "bert-generation cpmant data2vec-text",
    "speech, images or music beside the text": "emu3 fuyu gemma3 gemma3n gemma4 git got_ocr2 mllama musicgen whisper",
    "its smallest configuration is too large for a test": "blt falcon_h1 gemma4_text longcat_flash",
    "its configuration has no sizes that fit each other here": "bamba dbrx mamba2 xlnet xlstm zamba zamba2",
    "it refuses dropout itself": "diffllama",
}


class FirstRatio(PPOTrainer):
    """Keeps how far the log-probabilities and values of the first micro-batch are from those of the rollout."""

    def _ppo_loss(self, logprobs, values, batch):
        mask = batch["loss_mask"]
        changes = [(logprobs - batch["logprobs"])[mask], (values - batch["values"])[mask]]
        self.__dict__.setdefault("first", [change.abs().max().item() for change in changes])
        return super()._ppo_loss(logprobs, values, batch)


def first_ratio(make, **kwargs):
    """Largest |log ratio| and change of a value on the first minibatch, in training mode."""
    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "num_ppo_epochs": 1}
    trainer = make(FirstRatio, max_steps=1, **settings, **kwargs)
    trainer.train()
    assert trainer.model.training
    return trainer.first


@pytest.mark.parametrize("family", TRAINED)
def test_the_first_ratio_is_one(make, family):
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip("not in this transformers")
    model = tiny(family, rate=0.3)
    ids = torch.arange(4, 14).unsqueeze(0)
    model.train()
    assert family in NOTHING_RANDOM or not torch.equal(model(ids).logits, model(ids).logits), "the test has no teeth"
    log_ratio, value = first_ratio(make, model=model)
    assert log_ratio < 1e-5 and value < 1e-5


#: Families that have no rate at all.
NOTHING_RANDOM = {"ernie4_5", "ernie4_5_moe", "falcon_mamba", "lfm2", "mamba", "mpt"}


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_are_refused(make, family):
    with pytest.raises(ValueError, match="reads later tokens.*decoder-only"):
        make(model=tiny(family))


def test_no_family_is_forgotten():
    """Those that a new transformers brings are named by the failure; put each in one of the tables."""
    listed = {name for names in LEFT_OUT.values() for name in names.split()}
    assert not listed & {*TRAINED, *ENCODERS}
    assert len(TRAINED) >= 40


@pytest.mark.parametrize("critic", ["opt", "falcon", "biogpt", "gpt_bigcode", "mixtral"])
def test_a_critic_of_its_own_has_nothing_random_either(make, critic):
    from transformers import AutoModelForSequenceClassification

    value_model = tiny(critic, AutoModelForSequenceClassification, rate=0.3, num_labels=1)
    assert max(first_ratio(make, value_model=value_model)) < 1e-5


def add_noise(model, rate):
    """Dropout with a rate that no attribute of the module holds."""
    block = model.transformer.h[0].mlp
    plain = block.forward
    block.forward = lambda states: F.dropout(plain(states), rate(), block.training)
    return model


def test_a_rate_in_the_configuration_is_set_to_zero(make):
    model = gpt2()
    model.config.mlp_dropout = 0.3
    add_noise(model, lambda: model.config.mlp_dropout)
    assert max(first_ratio(make, model=model)) < 1e-5
    assert model.config.mlp_dropout == 0.0


def test_what_cannot_be_switched_off_is_named(make):
    with pytest.raises(ValueError, match=r"training mode.*first in policy.transformer.h.0.mlp.*would not be 1"):
        make(model=add_noise(gpt2(), lambda: 0.1))
    critic = add_noise(critic_model(1), lambda: 0.1)
    with pytest.raises(ValueError, match=r"first in value_model.transformer.h.0.mlp"):
        make(value_model=critic)


def test_the_random_state_is_not_touched():
    root = PolicyWithCritic(tiny("opt", rate=0.3), 1)
    torch.manual_seed(5)
    make_deterministic(root)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
