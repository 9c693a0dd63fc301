# SPDX-License-Identifier: Apache-2.0
"""The memory estimate: parameters counted as they are, one base against K, and what does not fit."""

import pytest
from transformers import GPT2LMHeadModel, LlamaConfig

from trl_maxmin.cli import main
from trl_maxmin.cli.estimate import EstimateArguments, count_parameters, estimate_memory


#: The shape of a 7B Llama.
SEVEN_B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}


def by_name(**kwargs):
    arguments = EstimateArguments(model="m", **kwargs)
    return {item.name: item for item in estimate_memory(arguments, LlamaConfig(**SEVEN_B, vocab_size=32000))}


def test_seven_billion_are_counted_without_being_made():
    parameters, per_rank = count_parameters(LlamaConfig(**SEVEN_B, vocab_size=32000))
    assert parameters == 6_738_415_616  # as published for Llama 2 7B
    assert per_rank == 32 * 2 * (4096 + 4096)


def test_one_base_serves_all_components():
    sizes = by_name(num_components=4)
    one, many = sizes["scoring: one base, K adapters or heads"], sizes["scoring: K models"]
    assert one.weights < 1.02 * 2 * 6_738_415_616
    assert many.weights == pytest.approx(4 * 2 * 6_738_415_616)
    one_base = sizes["MaxMin-PPO, one base for all"]
    assert one_base.total < 25e9 < sizes["rewards, head, trained trunk"].total
    # What `trl-maxmin ppo` does: the same adapters, and the base once more.
    apart = sizes["MaxMin-PPO, a base for policy and reference, one for K adapters"]
    assert apart.total - one_base.total == pytest.approx(2 * 6_738_415_616)


def test_four_bits_and_checkpointing_make_it_smaller():
    full, small = by_name(), by_name(dtype="int4")
    assert small["rewards, lora"].weights < 0.4 * full["rewards, lora"].weights
    assert by_name(gradient_checkpointing=False)["rewards, lora"].activations > 5 * full["rewards, lora"].activations


def test_command(tmp_path, capsys):
    from transformers import GPT2Config

    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)).save_pretrained(
        tmp_path
    )
    assert main(["estimate", "--model", str(tmp_path), "--num_components", "3"]) == 0
    assert "one base for all" in capsys.readouterr().out
    assert main(["estimate"]) == 2
    assert "--model is required" in capsys.readouterr().err
    assert main(["estimate", "--model", str(tmp_path), "--batch_size", "0"]) == 2
    assert "--batch_size must be positive, got 0" in capsys.readouterr().err
