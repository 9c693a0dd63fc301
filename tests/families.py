# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family that transformers has: small sizes where a configuration has a field for them."""

import inspect
import re

import torch
from transformers import AutoConfig, AutoModelForCausalLM


SIZES = {
    "vocab_size": 36,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "multi_query_group_num": 2,
    "head_dim": 8,
    "qk_rope_head_dim": 8,
    "rotary_dim": 4,
    "attention_types": [[["global", "local"], 1]],
    "full_attention_interval": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "d_head": 8,
    "num_hash_layers": 0,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "sliding_window": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
RANDOM = re.compile("drop|jitter|noise")


#: Families of reward components that are tested in depth.
DECODERS = ("gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("bert", "distilbert", "modernbert", "roberta")


def tiny_config(model_type, rate=0.0, **more):
    """A configuration of the family with small sizes and one rate for all that is random."""
    cls = type(AutoConfig.for_model(model_type))
    default = cls()
    known = set(vars(default)) | set(default.attribute_map) | set(inspect.signature(cls.__init__).parameters)
    settings = {name: value for name, value in SIZES.items() if name in known}
    settings |= {n: rate for n, v in vars(default).items() if RANDOM.search(n) and isinstance(v, float)}
    if "kv_lora_rank" in known:
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    # One layer of each of the first two kinds, where a family alternates.
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))[:2]
    if len(kinds) == 2:
        settings["layer_types"] = kinds
    return cls(**(settings | more))


def tiny(model_type, auto=AutoModelForCausalLM, seed=0, rate=0.0, **more):
    """A tiny model of the family with weights from a seed."""
    torch.manual_seed(seed)
    return auto.from_config(tiny_config(model_type, rate, **more))
