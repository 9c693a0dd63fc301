# SPDX-License-Identifier: Apache-2.0
"""Mixtures of every family with a sequence classifier: what a component says is what transformers says of it."""

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from tests.conftest import build_word_tokenizer
from tests.families import tiny, tiny_config
from trl_maxmin.models import MixtureRewardModel, MixtureRewardModelConfig
from trl_maxmin.models.families import REFUSED, check_family, get_family, get_linear, supported_families


HEADS = """
    arcee biogpt bloom deepseek_v2 deepseek_v3 doge exaone4 falcon gemma3_text glm glm4 gpt_bigcode gpt_neo gpt_neox
    gpt_oss gptj helium hunyuan_v1_dense jetmoe minimax ministral mixtral mpt nemotron olmo2 olmo3 openai-gpt opt
    persimmon phi phi3 phimoe qwen2_moe qwen3_5_text qwen3_moe qwen3_next seed_oss smollm3 stablelm starcoder2
    albert deberta deberta-v2 electra xlm-roberta
""".split()
ADAPTERS = """
    bloom deepseek_v3 falcon gemma3_text glm gpt_bigcode gpt_neox jetmoe mixtral mpt olmo2 openai-gpt opt phi phi3
    qwen3_5_text qwen3_moe stablelm starcoder2 deberta-v2 electra
""".split()
TEXTS = [[5, 9, 7, 3, 2], [8, 6, 2], [4, 4, 4, 4, 4, 4]]


def mixture_of(family, kind, folder=None):
    """Two components that differ, on a trunk in memory or on a saved one."""
    if family not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        pytest.skip("not in this transformers")
    tokenizer = build_word_tokenizer()
    base = tiny(family, AutoModel)
    if folder is not None:
        base.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    mixture = MixtureRewardModel.from_base(folder or base, 2, kind, processing_class=tokenizer).eval()
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        nn.init.normal_(get_linear(mixture.components[0]).weight)
    return mixture


def rewards_of(mixture):
    return mixture.score(prompt_ids=[[1]] * 3, completion_ids=TEXTS)


@torch.no_grad()
def column(model):
    """What a plain model says of each text alone."""
    return [model(input_ids=torch.tensor([[1, *text]])).logits.item() for text in TEXTS]


@pytest.mark.parametrize("family", HEADS)
def test_heads(tmp_path, family):
    mixture = mixture_of(family, "head")
    rewards = rewards_of(mixture)
    assert rewards.std(0).min() > 0 and (rewards[:, 0] - rewards[:, 1]).abs().min() > 0
    mixture.save_pretrained(tmp_path / "mixture")
    torch.testing.assert_close(rewards_of(MixtureRewardModel.from_pretrained(tmp_path / "mixture")), rewards)
    for k in range(2):
        mixture.save_component(k, tmp_path / f"component_{k}")
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"component_{k}").eval()
        assert column(plain) == pytest.approx(rewards[:, k].tolist(), abs=2e-4)


@pytest.mark.parametrize("family", ADAPTERS)
def test_adapters(tmp_path, family):
    """The base lies in a folder, as users have it; PEFT loads what one component saves."""
    mixture = mixture_of(family, "lora", tmp_path / "base")
    rewards = rewards_of(mixture)
    assert (rewards[:, 0] - rewards[:, 1]).abs().min() > 0
    mixture.save_pretrained(tmp_path / "mixture")
    torch.testing.assert_close(rewards_of(MixtureRewardModel.from_pretrained(tmp_path / "mixture")), rewards)
    mixture.save_component(1, tmp_path / "component")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    plain = PeftModel.from_pretrained(base, tmp_path / "component").eval()
    assert column(plain) == pytest.approx(rewards[:, 1].tolist(), abs=2e-4)
    assert column(mixture.component(1)) == pytest.approx(rewards[:, 1].tolist(), abs=2e-4)


@pytest.mark.parametrize("family", ["ctrl", "eurobert", "fnet", "modernbert-decoder", "mra", "t5", "xlnet"])
def test_what_cannot_work_is_refused_with_the_reason_and_the_list(family):
    with pytest.raises(ValueError, match=f"'{family}' are not supported: {REFUSED[family]}.*gpt_neox.*mixtral.*opt"):
        MixtureRewardModelConfig(base_config=tiny_config(family), component_type="lora")
    with pytest.raises(ValueError, match=REFUSED[family]):
        get_family(tiny_config(family))


def test_a_family_without_a_classifier():
    with pytest.raises(ValueError, match="'cohere' are not supported: transformers has no sequence classifier"):
        get_family(tiny_config("cohere"))


def test_the_list_holds_no_family_that_is_refused():
    assert len(supported_families()) > 60 and not set(supported_families()) & set(REFUSED)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("ctrl", "head comes before it pools"),
        ("fnet", "change with padding that is masked"),
        ("eurobert", "head comes before it pools"),
        ("modernbert-decoder", "head comes before it pools"),
    ],
)
def test_the_check_finds_them_without_being_told(monkeypatch, family, reason):
    """Those of a transformers to come are not in the list."""
    monkeypatch.delitem(REFUSED, family)
    with pytest.raises(ValueError, match=f"No mixture can be made of .*{reason}"):
        MixtureRewardModel.from_base(tiny(family, AutoModel), 2, "head")


def test_a_classifier_that_pools_elsewhere_is_found():
    mixture = mixture_of("gpt2", "head")
    classifier = mixture.components[0]
    forward = classifier.forward

    def first_token(input_ids, **kwargs):
        return forward(input_ids=input_ids[:, :1], attention_mask=torch.ones_like(input_ids[:, :1]))

    classifier.forward = first_token
    with pytest.raises(ValueError, match=r"GPT2ForSequenceClassification: it says -?\d.* is read as -?\d"):
        check_family(mixture)


def test_layers_of_unknown_names_have_to_be_named():
    with pytest.raises(ValueError, match="'squeezebert' has layers of other names.*target_modules"):
        MixtureRewardModel.from_base(tiny("squeezebert", AutoModel), 2, "lora")
