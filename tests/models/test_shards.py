# SPDX-License-Identifier: Apache-2.0
"""What is whole under DeepSpeed ZeRO-3, as far as that can be seen without DeepSpeed (the rest: `make deepspeed`)."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from trl_maxmin import MixtureRewardModel
from trl_maxmin.models.base import place
from trl_maxmin.models.shards import is_in_shards, whole_weights


class Zero3:
    """What transformers asks of a DeepSpeed configuration."""

    def is_zero3(self):
        return True


@pytest.fixture
def zero3():
    config = Zero3()
    set_hf_deepspeed_config(config)
    yield config
    unset_hf_deepspeed_config()


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_layer=1, n_head=2, n_embd=8, n_positions=16))


@pytest.mark.seam
def test_nothing_is_loaded_in_shards_inside_and_everything_again_behind(zero3):
    assert is_deepspeed_zero3_enabled()
    with pytest.raises(KeyError), whole_weights():
        assert not is_deepspeed_zero3_enabled()
        raise KeyError
    assert is_deepspeed_zero3_enabled()


def test_without_deepspeed_nothing_is_switched():
    with whole_weights():
        assert not is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()


@pytest.mark.parametrize("kind", ["head", "lora", "full"])
def test_a_mixture_is_built_and_loaded_whole(zero3, tmp_path, kind, monkeypatch, word_tokenizer):
    """Loading in shards would need DeepSpeed; what loads is asked whether it would."""
    seen = []
    unset_hf_deepspeed_config()
    gpt2().save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    set_hf_deepspeed_config(zero3)
    original = MixtureRewardModel.__init__

    def init(self, *args, **kwargs):
        seen.append(is_deepspeed_zero3_enabled())
        original(self, *args, **kwargs)

    monkeypatch.setattr(MixtureRewardModel, "__init__", init)
    MixtureRewardModel.from_base(str(tmp_path / "base"), 2, kind).save_pretrained(tmp_path / "m")
    MixtureRewardModel.from_pretrained(tmp_path / "m")
    assert seen == [False, False] and is_deepspeed_zero3_enabled()


def test_a_base_in_shards_is_refused():
    base = gpt2()
    base.lm_head.weight.ds_id = 0  # DeepSpeed's mark
    assert is_in_shards(base)
    with pytest.raises(ValueError, match="GPT2LMHeadModel was loaded in shards.*name or folder"):
        MixtureRewardModel.from_base(base, 2, "lora")


def test_quantised_and_dispatched_models_stay_where_they_are():
    for name, value in (("is_quantized", True), ("hf_device_map", {"": "cpu"})):
        model = torch.nn.ModuleList([gpt2()])
        setattr(model[0], name, value)
        place(model, torch.device("meta"))
        assert {p.device.type for p in model.parameters()} == {"cpu"}
    model = torch.nn.ModuleList([gpt2()])
    place(model, torch.device("meta"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
