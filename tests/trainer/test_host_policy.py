# SPDX-License-Identifier: Apache-2.0
"""A policy is the same after TRL has sampled from it, and reads left-padded rows as it reads single ones."""

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import critic_model, gpt2, sevens
from tests.trainer.trl_helpers import build_trl_trainer, history, nines, save_base
from trl_maxmin import MixtureRewardModel
from trl_maxmin.trainer.maxmin.host_policy import count_real_positions, kept_policy


PAGED = {"num_blocks": 32, "page_size": 32, "max_batch_tokens": 64, "use_cuda_graph": False}
CONTINUOUS = {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": PAGED}
GENERATION = {
    "plain": {},
    "continuous batching": CONTINUOUS,
    "continuous batching, bf16": CONTINUOUS | {"bf16": True},
    "bf16": {"bf16": True},
    "dynamic cache": {"cache_implementation": "dynamic"},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"generation_kwargs": {"use_cache": False}},
    "filters": {"top_k": 3, "top_p": 0.9, "min_p": 0.01, "temperature": 0.7, "repetition_penalty": 1.1},
    "beams": {"generation_kwargs": {"num_beams": 2}},
    "dropout kept": {"disable_dropout": False},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "adapter": {"peft_config": LoraConfig(r=2, target_modules=["c_attn"])},
}
# Of two tokens the second is chosen by the checkpoint's settings, if they are heeded.
OWN_SETTINGS = {"no_repeat_ngram_size": 1, "suppress_tokens": [7, 9], "bad_words_ids": [[8]], "typical_p": 0.2}


def state(model):
    inner = getattr(model, "get_base_model", lambda: model)()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: (tensor.dtype, tensor.detach().clone()) for name, tensor in tensors.items()},
        "modes": [module.training for module in model.modules()],
        "attention": inner.config._attn_implementation,
        "generation": inner.generation_config.to_dict(),
        "random": (random.getstate(), np.random.get_state()[1].tolist()),
    }


def assert_same(found, expected):
    assert found["tensors"].keys() == expected["tensors"].keys()
    for name, (dtype, tensor) in expected["tensors"].items():
        assert found["tensors"][name][0] is dtype, name
        assert torch.equal(found["tensors"][name][1], tensor), name
    for name in ("modes", "attention", "generation", "random"):
        assert found[name] == expected[name], name


@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION)
def test_generation_leaves_the_policy_as_it_was(trl_class, options, trl_base, word_tokenizer, tmp_path):
    trainer = build_trl_trainer(trl_class, trl_base, word_tokenizer, tmp_path, **options)
    rows = [trainer.train_dataset[i] for i in range(8)]
    drawn = []
    for training in (True, False, True):
        trainer.model.train(training)
        before = state(trainer.model)
        torch.manual_seed(5)
        with torch.no_grad():
            trainer._generate_and_score_completions([dict(row) for row in rows])
        assert_same(state(trainer.model), before)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[2], "the same stream, and it goes on where sampling left it"


def test_a_cast_inside_is_undone_to_the_last_bit_after_an_error_too():
    model = gpt2()
    model.register_buffer("scale", torch.rand(3))
    before = state(model)
    with pytest.raises(RuntimeError, match="halfway"), kept_policy(model):
        model.to(torch.bfloat16).eval()
        raise RuntimeError("halfway")
    assert_same(state(model), before)


def test_what_the_checkpoint_says_of_generation_acts_nowhere(trl_class, trl_base, word_tokenizer, tmp_path):
    """Neither in training nor in calibration: equal replies with and without; the saved policy keeps its settings."""
    replies = []
    for settings in ({}, OWN_SETTINGS):
        model = AutoModelForCausalLM.from_pretrained(trl_base)
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        trainer = build_trl_trainer(trl_class, trl_base, word_tokenizer, tmp_path, model=model)
        seen = []
        host = trainer._raw_rewards
        trainer._raw_rewards = lambda *args, seen=seen, host=host: seen.append(args[3]) or host(*args)
        torch.manual_seed(0)
        trainer.train()
        replies.append(seen)
        assert all(getattr(trainer.model.generation_config, name) == value for name, value in settings.items())
    assert len(replies[0]) > 2, "calibration and training"
    assert replies[0] == replies[1]


# -- positions ------------------------------------------------------------------------------------------------------

SIZE = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = SIZE | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES = {
    "gpt2": SIZE | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "gpt_bigcode": SIZE | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "gpt_neo": SMALL
    | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]], "max_position_embeddings": 32},
    "opt": SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    "biogpt": SMALL | {"max_position_embeddings": 32},
    "xglm": SIZE | {"d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32},
    "gptj": SIZE | {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 32},
    "gpt_neox": SMALL,
    "llama": SMALL | {"num_key_value_heads": 1},
    "falcon": SMALL | {"alibi": True},
    "bloom": SIZE | {"hidden_size": 16, "n_layer": 2, "n_head": 2},
}


def logprobs_of_rows(trainer, model, rows, reply):
    """By TRL's own method, of prompts padded on the left and replies of equal length."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(model, ids, mask, reply)[0]


def test_left_padding_changes_no_probability_of_policy_and_reference(trl_class, trl_base, word_tokenizer, tmp_path):
    trainer = build_trl_trainer(trl_class, trl_base, word_tokenizer, tmp_path, temperature=0.9)
    rows = [[3, 4, 5, 6, 7, 8, 9, 10, 11], [7, 8, 9, 10], [9, 9, 10, 11, 12]]
    model = trainer.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "wpe" in name:  # positions that matter
                parameter.mul_(50)
    for policy in (model, trainer.ref_model):
        found = logprobs_of_rows(trainer, policy, rows, 3)
        for row, own in zip(rows, found, strict=True):
            logits = policy(input_ids=torch.tensor([row])).logits[0, :-1] / 0.9
            expected = logits.log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])[-3:, 0]
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "settings"), FAMILIES.items(), ids=FAMILIES)
def test_a_padded_row_reads_like_a_single_one(family, settings):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    count_real_positions(model)
    count_real_positions(model)
    row = [5, 6, 7, 8, 9]
    padded, mask = torch.tensor([[0, 0, 0, *row]]), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        single = model(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(
            model(input_ids=padded, attention_mask=mask).logits[0, 3:], single, atol=1e-4, rtol=0
        )
        # With a cache that somebody else drives, and in generation, which gives positions of its own.
        first = model(input_ids=padded[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
        if family != "bloom":
            last = model(input_ids=padded[:, -1:], attention_mask=mask, past_key_values=first.past_key_values)
            torch.testing.assert_close(last.logits[0, -1], single[-1], atol=1e-4, rtol=0)
        greedy = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": None}
        batch = model.generate(input_ids=padded, attention_mask=mask, **greedy)[0, 8:]
        assert batch.tolist() == model.generate(input_ids=torch.tensor([row]), **greedy)[0, 5:].tolist()


def test_positions_that_are_given_stay():
    model = gpt2().eval()
    count_real_positions(model)
    ids, positions = torch.tensor([[3, 4, 5]]), torch.tensor([[4, 5, 6]])
    seen = []
    model.transformer.register_forward_pre_hook(lambda m, a, k: seen.append(k["position_ids"]), with_kwargs=True)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
    assert torch.equal(seen[0], positions)


def test_step_0_has_no_kl_with_the_checkpoints_own_dropout(trl_class, word_tokenizer, tmp_path):
    folder = save_base(tmp_path / "base", word_tokenizer, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.attn_pdrop == 0.1
    trainer = build_trl_trainer(
        trl_class, folder, word_tokenizer, tmp_path / "run", model=model, max_steps=1, reward_funcs=[sevens, nines]
    )
    trainer.train()
    assert abs(history(trainer, "kl")[0]) < 1e-6


# -- who shares what ------------------------------------------------------------------------------------------------


def reward_on(trunk):
    """A reward model on a trunk that somebody else has, too."""
    reward = critic_model(1)
    reward.transformer = trunk
    return reward


def test_a_reward_on_what_is_trained_is_refused(trl_make, trl_base):
    policy = AutoModelForCausalLM.from_pretrained(trl_base)
    message = (
        r"\(the policy\) and `reward_funcs` \(GPT2For.*share the parameter 'transformer.*Load `reward_funcs` a sec"
    )
    with pytest.raises(ValueError, match=message):
        trl_make(model=policy, reward_funcs=[sevens, reward_on(policy.transformer)])
    mixture = MixtureRewardModel.from_base(policy, 2, "lora", processing_class=build_word_tokenizer())
    with pytest.raises(ValueError, match="No parameter of the policy is trainable.*mixture of adapters freezes"):
        trl_make(model=policy, reward_funcs=mixture)
    policy.requires_grad_(True)
    with pytest.raises(ValueError, match="`reward_funcs`.*share the parameter"):
        trl_make(model=policy, reward_funcs=[reward_on(policy.transformer)])


def test_a_reward_on_the_frozen_base_of_an_adapter_is_not(trl_make, trl_base):
    policy = AutoModelForCausalLM.from_pretrained(trl_base)
    mixture = MixtureRewardModel.from_base(policy, 2, "lora", processing_class=build_word_tokenizer())
    trainer = trl_make(model=policy, reward_funcs=mixture, peft_config=LoraConfig(r=2, target_modules=["c_attn"]))
    before = {name: p.detach().clone() for name, p in mixture.named_parameters()}
    trainer.train()
    moved = [name for name, p in mixture.named_parameters() if not torch.equal(p, before.get(name, p))]
    assert not [name for name in moved if ".default." not in name]


def test_half_precision_below_its_resolution_is_said(trl_make, trl_base):
    policy = AutoModelForCausalLM.from_pretrained(trl_base, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="weights are bfloat16 and learning_rate is 1e-06"):
        trl_make(model=policy, learning_rate=1e-6)
