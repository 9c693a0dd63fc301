# SPDX-License-Identifier: Apache-2.0
"""LoRA components that were fitted on a quantised base are scored on it, and a warning says where they are not."""

import json
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from tests.rounding import METHOD, RoundingConfig, RoundingQuantizer, is_rounded, rounded
from trl_maxmin.models import MixtureRewardModel


IDS = torch.tensor([[1, 5, 9, 7, 3, 2], [1, 8, 6, 2, 0, 0]])
MASK = (IDS != 0).long()
STEP = 0.05


@pytest.fixture
def base(tmp_path, word_tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def fitted(base, folder, **options):
    """A mixture whose adapters and heads do something, saved; and what it says of two texts."""
    mixture = MixtureRewardModel.from_base(base, 2, "lora", **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    mixture.save_pretrained(folder)
    return score(mixture)


@torch.no_grad()
def score(mixture):
    return mixture(IDS, MASK).rewards


def test_a_mixture_is_scored_on_the_base_it_was_fitted_on(base, tmp_path):
    expected = fitted(base, tmp_path / "mixture", quantization_config=RoundingConfig(STEP))
    config = json.loads((tmp_path / "mixture" / "config.json").read_text())
    assert config["base_quantization"] == {"quant_method": METHOD, "step": STEP}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixture = MixtureRewardModel.from_pretrained(tmp_path / "mixture")
    torch.testing.assert_close(score(mixture), expected)
    # By hand: the plain base with rounded matrices is the same, and without rounding it is another base.
    with pytest.warns(UserWarning, match="fitted on a base"):
        mixture = MixtureRewardModel.from_pretrained(tmp_path / "mixture", quantization_config=None)
    assert (score(mixture) - expected).abs().min() > 1e-3
    with torch.no_grad():
        for name, parameter in mixture.trunk.named_parameters():
            if is_rounded(name) and "lora_" not in name:
                parameter.copy_(rounded(parameter, STEP))
    torch.testing.assert_close(score(mixture), expected)


@pytest.mark.parametrize("other", [None, RoundingConfig(2 * STEP)])
def test_another_base_is_warned_of(base, tmp_path, other):
    fitted(base, tmp_path / "mixture", quantization_config=RoundingConfig(STEP))
    with pytest.warns(UserWarning) as caught:
        MixtureRewardModel.from_pretrained(tmp_path / "mixture", quantization_config=other)
    (message,) = [str(w.message) for w in caught if "fitted on a base" in str(w.message)]
    assert f"fitted on a base (quant_method '{METHOD}'" in message and "Leave `quantization_config` out" in message
    assert ("loaded without quantisation" if other is None else f"step={2 * STEP}") in message


def test_a_quantised_base_under_adapters_of_a_whole_one(base, tmp_path):
    plain = fitted(base, tmp_path / "mixture")
    assert json.loads((tmp_path / "mixture" / "config.json").read_text())["base_quantization"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(score(MixtureRewardModel.from_pretrained(tmp_path / "mixture")), plain)
    with pytest.warns(UserWarning, match="fitted on a base without quantisation"):
        MixtureRewardModel.from_pretrained(tmp_path / "mixture", quantization_config=RoundingConfig(STEP))


def test_a_library_that_is_missing_is_named_and_the_base_loaded_whole(base, tmp_path, monkeypatch):
    fitted(base, tmp_path / "mixture", quantization_config=RoundingConfig(STEP))
    monkeypatch.setattr(RoundingQuantizer, "installed", False)
    with pytest.warns(UserWarning, match="a library is missing .*pip install rounding-library"):
        mixture = MixtureRewardModel.from_pretrained(tmp_path / "mixture")
    assert not getattr(mixture.components[0], "is_quantized", False)


def test_four_bits(base, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install bitsandbytes)")
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    expected = fitted(base, tmp_path / "mixture", quantization_config=four, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mixture = MixtureRewardModel.from_pretrained(tmp_path / "mixture")
    layer = mixture.trunk.layers[0].self_attn.q_proj.base_layer
    assert isinstance(layer, bitsandbytes.nn.Linear4bit) and layer.weight.quant_type == "nf4"
    torch.testing.assert_close(score(mixture), expected)
    with pytest.warns(UserWarning, match="fitted on a base in 4 bits .* loaded without quantisation"):
        whole = MixtureRewardModel.from_pretrained(tmp_path / "mixture", quantization_config=None)
    assert (score(whole) - expected).abs().max() > 1e-3
