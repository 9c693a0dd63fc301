# SPDX-License-Identifier: Apache-2.0
"""Numbers and names that no configuration has are refused before they take memory or time."""

import time

import pytest
from transformers import GPT2Config

from tests.families import DECODERS, ENCODERS, tiny_config
from trl_maxmin import MixtureRewardModelConfig
from trl_maxmin.models.limits import (
    MAX_COMPONENTS,
    require_component_names,
    require_enough_weights,
    require_sane_numbers,
)


BASE = GPT2Config(vocab_size=20, n_layer=1, n_head=1, n_embd=8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_components": 10**12}, "num_components must be a whole number from 1 to 1,000, got 1000000000000"),
        ({"num_components": MAX_COMPONENTS + 1}, "from 1 to 1,000, got 1001"),
        ({"num_components": 0}, "from 1 to 1,000, got 0"),
        ({"num_components": 2.5}, "got 2.5"),
        ({"num_components": "2"}, "got '2'"),
        ({"kernel_features": 2**40}, "kernel_features must be an even number from 0 to 1,048,576"),
        ({"kernel_features": 2.0}, "kernel_features must be an even number"),
        ({"component_names": ["a"]}, "component_names has 1 entries, but there are 2"),
        ({"component_names": 7}, "component_names has 7 entries|component_names"),
        ({"component_names": ["a", "a"]}, "must be distinct"),
        ({"component_names": ["a", 3]}, "component_names: '3' is no text"),
        ({"component_names": ["a", " "]}, "is no text"),
        ({"component_names": ["a", "../b"]}, r"'\.\./b' has '/'"),
        ({"component_names": ["a", "b\\c"]}, "has '/'"),
        ({"component_names": ["a", ".."]}, "only dots"),
        ({"component_names": ["a", "b\nc"]}, "control characters"),
        ({"component_names": ["a", "b\u202ec"]}, r"'b\\u202ec' has"),
        ({"component_names": ["a", "b" * 81]}, "has 81 characters"),
        ({"temperatures": [1.0, float("nan")]}, "temperatures must hold finite numbers"),
        ({"reward_scale": [1.0, float("inf")]}, "reward_scale must hold finite numbers"),
        ({"reward_shift": ["x", 0.0]}, "reward_shift must hold finite numbers"),
        ({"mixing_weights": {"a": 1}}, "mixing_weights has"),
    ],
)
def test_a_mixture_that_is_refused(changes, words):
    start = time.monotonic()
    with pytest.raises(ValueError, match=words):
        MixtureRewardModelConfig(base_config=BASE, **{"num_components": 2, **changes})
    assert time.monotonic() - start < 2


def test_names_that_are_taken():
    names = ["likes films, long", "kurz & knapp", "日本", "a.b", "[1]*"]
    assert MixtureRewardModelConfig(base_config=BASE, num_components=5, component_names=names).component_names == names
    require_component_names(names)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n_layer": 10**7}, "n_layer is 10000000; allowed is -1 to 1,000"),
        ({"text_config": {"num_hidden_layers": 1001}}, "text_config.num_hidden_layers is 1001"),
        ({"vocab_size": -1}, "vocab_size is -1; allowed is 1 to 16,777,216"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"n_positions": 10**9}, "n_positions is 1000000000"),
        ({"num_labels": 10**12}, "num_labels is 1000000000000"),
        ({"seed": 10**400}, "seed is 1000.*no setting is that large"),
        ({"layers": [{"n_head": 10**6}]}, "layers.n_head is 1000000"),
        ({"depths": [2, 10**6]}, "depths is 1000000"),
    ],
)
def test_numbers_that_are_refused(config, words):
    with pytest.raises(ValueError, match=f"config.json: {words}"):
        require_sane_numbers(config, "config.json")


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS, "deberta-v2", "mixtral", "t5", "mamba"])
def test_configurations_of_real_families_are_taken(family):
    from transformers import AutoConfig

    require_sane_numbers(AutoConfig.for_model(family).to_dict(), family)
    require_sane_numbers(tiny_config(family).to_dict(), family)


def test_layers_beside_too_few_weights():
    require_enough_weights({"n_layer": 12}, 20, "config.json")
    with pytest.raises(ValueError, match=r"config.json describes 900 layers \(base.n_layer\), beside 16 weights"):
        require_enough_weights({"base": {"n_layer": 900}}, 16, "config.json")
