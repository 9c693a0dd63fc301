# SPDX-License-Identifier: Apache-2.0
"""Random Fourier features against the Gaussian kernel of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from transformers import GPT2Config

from trl_maxmin.models import MixtureRewardModel, MixtureRewardModelConfig
from trl_maxmin.models.feature_map import RandomFourierFeatures


def vectors(count=40, width=6):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0)) * 3 + 7


def test_inner_products_are_the_kernel_with_the_median_as_bandwidth():
    x = vectors()
    features = RandomFourierFeatures(6, 20_000).fit(x, torch.Generator().manual_seed(0))(x)
    squared = np.square(x.numpy()[:, None] - x.numpy()[None]).sum(-1)
    kernel = rbf_kernel(x.numpy(), gamma=1 / np.median(squared[np.triu_indices(40, 1)]))
    np.testing.assert_allclose((features @ features.T).numpy(), kernel, atol=0.03)


def test_autocast_changes_nothing():
    mapping = RandomFourierFeatures(6, 64).fit(vectors(), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        features = mapping(vectors())
    assert features.dtype == torch.float32 and torch.equal(features, mapping(vectors()))


def test_the_generator_decides():
    maps = [RandomFourierFeatures(6, 8).fit(vectors(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(maps[0].frequencies, maps[1].frequencies)
    assert not torch.equal(maps[0].frequencies, maps[2].frequencies)


def test_texts_that_are_all_the_same():
    with pytest.raises(ValueError, match="features of all 3 texts are the same.*kernel_features=0"):
        RandomFourierFeatures(2, 8).fit(torch.ones(3, 2))


def test_heads_read_the_features():
    base = GPT2Config(vocab_size=20, n_layer=1, n_head=1, n_embd=8, n_positions=16, pad_token_id=0)
    model = MixtureRewardModel(MixtureRewardModelConfig(base_config=base, num_components=3, kernel_features=10)).eval()
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    assert model.features(ids).shape == (2, 1, 10) and model.trunk_features(ids).shape == (2, 8)
    expected = model.feature_map(model.trunk_features(ids)) @ model.components[0].score.weight.T
    torch.testing.assert_close(model(ids).rewards, expected)
    model.keep_components(2)
    torch.testing.assert_close(model(ids).rewards, expected[:, :2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_features": 3}, "even number from 0 to 1,048,576, got 3"),
        ({"kernel_features": -2}, "even number from 0 to 1,048,576, got -2"),
        ({"kernel_features": 8, "component_type": "full"}, "needs component_type='head'.*got 'full'"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        MixtureRewardModelConfig(**settings)
