# SPDX-License-Identifier: Apache-2.0
"""A mixture of which one component is kept scores as that component did."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trl_maxmin.models import MixtureRewardModel


@pytest.mark.parametrize("kind", ["head", "lora", "full"])
@pytest.mark.parametrize("keep", [0, "c"])
def test_the_column_stays(kind, keep, word_tokenizer, tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(word_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    mixture = MixtureRewardModel.from_base(str(tmp_path / "base"), 3, kind, component_names=["a", "b", "c"])
    with torch.no_grad():
        for parameter in mixture.parameters():
            if parameter.requires_grad:  # the base of adapters is saved by its name
                parameter.add_(0.05 * torch.randn_like(parameter))
    mixture.config.component_annotators, mixture.config.component_pairs = [5, 0, 7], [50, 0, 70]
    mixture.config.reward_scale, mixture.config.evidence_weight = [1.0, 2.0, 3.0], 0.4
    ids, index = torch.tensor([[5, 6, 7], [8, 9, 10]]), {0: 0, "c": 2}[keep]
    before = mixture.eval()(ids).rewards
    mixture.keep_component(keep)
    torch.testing.assert_close(mixture(ids).rewards, before[:, [index]])
    assert mixture.component_names == [["a", "b", "c"][index]] and mixture.num_components == 1
    assert mixture.config.reward_scale == [[1.0, 2.0, 3.0][index]] and mixture.config.mixing_weights == [1.0]
    assert mixture.config.component_annotators == [[5, 0, 7][index]] and mixture.config.evidence_weight == 0.4
    mixture.save_pretrained(tmp_path / "one")
    again = MixtureRewardModel.from_pretrained(tmp_path / "one").eval()
    torch.testing.assert_close(again(ids).rewards, before[:, [index]])


def test_what_cannot_be_kept_is_named(word_tokenizer):
    base = GPT2LMHeadModel(GPT2Config(vocab_size=len(word_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32))
    mixture = MixtureRewardModel.from_base(base, 2, component_names=["a", "b"], processing_class=word_tokenizer)
    with pytest.raises(ValueError, match="no component 'c'"):
        mixture.keep_component("c")
    mixture.config.component_annotators = [4, 0]
    with pytest.raises(ValueError, match="'b' describes no annotator; choose of a"):
        mixture.keep_component("b")
