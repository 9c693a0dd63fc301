# SPDX-License-Identifier: Apache-2.0
"""What a mixture has to know of a model family, found out from its sequence-classification model.

Two things: where the last linear layer sits, because component *k* is its row *k*, and which token it reads, because a
decoder's reward must be read at the last *attended* token, never at the last token that happens to differ from the pad
id. [`check_family`] compares what was found with what the model itself says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSIFIERS
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .shards import whole_weights


#: Queries and values of the attention, whatever a family calls them: what `"lora"` components adapt by default.
ATTENTION = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("q_b_proj", "kv_b_proj"),
    ("q_proj", "kv_b_proj"),
    ("q_proj", "kv_proj"),
    ("kv_proj",),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
    ("Wqkv",),
    ("in_proj",),
)

_REASONS = {
    "an encoder-decoder pools at an EOS that a truncated reply does not have": (
        "bart bigbird_pegasus led mbart mt5 mvp plbart t5 t5gemma t5gemma2 umt5"
    ),
    "it takes tokens for padding by their id": "mra",
    "it reads padding that is masked": "fnet xlnet",
    "its head comes before it pools": "ctrl eurobert modernbert-decoder",
    "its labels are not rows of a linear layer above a trunk": "funnel perceiver reformer",
    "it reads characters, not tokens": "canine",
    "it needs boxes or images beside the text; take the language model in it": (
        "gemma3 gemma4 layoutlmv2 layoutlmv3 lilt modernvbert qwen3_5 tapas ultravbert"
    ),
    "its quantised layers have no plain embedding": "ibert",
    "it needs a language to be set": "xmod",
}

#: Families with a sequence classifier of which no mixture can be made, and why.
REFUSED = {name: reason for reason, names in _REASONS.items() for name in names.split()}


@dataclass(frozen=True)
class Family:
    """How one model family turns hidden states into labels.

    Args:
        linear (`str`):
            Path of the last linear layer inside the sequence-classification model; its rows are the components.
        is_decoder (`bool`):
            Whether the reward is read at the last attended token (`True`) or by the family's own encoder pooling.
        fan_in_fan_out (`bool`):
            Whether its layers keep their weights transposed (GPT-2), as LoRA has to know.
    """

    linear: str
    is_decoder: bool
    fan_in_fan_out: bool = False


_FOUND: dict[type[PreTrainedConfig], Family] = {}


def supported_families() -> list[str]:
    """Model types whose sequence classifiers can be the components of a mixture."""
    return sorted({config.model_type for config in CLASSIFIERS} - set(REFUSED))


def get_family(config: PreTrainedConfig) -> Family:
    """What a mixture has to know of the family of a configuration.

    Args:
        config ([`~transformers.PreTrainedConfig`]): of the base model.

    Returns:
        `Family`: where its head is and how it pools.

    Raises:
        ValueError: a family without a sequence classifier, or one of which no mixture can be made; the message has
            the reason and lists those that can.

    Example:

    >>> from transformers import GPT2Config
    >>> get_family(GPT2Config()).linear
    'score'
    """
    kind = type(config)
    if kind not in CLASSIFIERS or config.model_type in REFUSED:
        reason = REFUSED.get(config.model_type, "transformers has no sequence classifier of it")
        raise ValueError(
            f"Reward components on a base model of type {config.model_type!r} are not supported: {reason}. Supported "
            f"families: {', '.join(supported_families())}. Choose a base model of one of these."
        )
    if kind not in _FOUND:
        _FOUND[kind] = family_of(_without_weights(config))
    return _FOUND[kind]


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    # DeepSpeed ZeRO-3, which divides what is built, has nothing to divide.
    with whole_weights(), torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def lora_targets(config: PreTrainedConfig) -> tuple[str, ...]:
    """Layers that `"lora"` components adapt by default: the queries and values of the attention.

    Args:
        config ([`~transformers.PreTrainedConfig`]): of the base model; some families have other layers in other sizes.

    Returns:
        `tuple[str]`: last parts of their names.

    Raises:
        ValueError: an unsupported family, or layers of names that are not known here.

    Example:

    >>> from transformers import GPT2Config
    >>> lora_targets(GPT2Config())
    ('c_attn',)
    """
    get_family(config)
    layers = _without_weights(config).named_modules()
    names = {name.rpartition(".")[2] for name, module in layers if isinstance(module, nn.Linear | Conv1D)}
    targets = next((known for known in ATTENTION if names >= set(known)), None)
    if targets is None:
        raise ValueError(
            f"The attention of {config.model_type!r} has layers of other names than those that are known here. Name "
            "the layers to adapt: `peft_config=LoraConfig(target_modules=[...])`."
        )
    return targets


def family_of(model: PreTrainedModel) -> Family:
    """Look at a sequence-classification model.

    Raises:
        ValueError: its labels are not rows of a linear layer above a trunk.
    """
    prefix = f"{model.base_model_prefix}."
    heads = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(prefix) and module.out_features == model.num_labels
    ]
    if not heads or not hasattr(model, model.base_model_prefix):
        raise ValueError(
            f"The labels of {type(model).__name__} are not rows of a linear layer above its trunk, so no mixture can "
            f"be made of it. Supported families: {', '.join(supported_families())}."
        )
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    return Family(heads[-1], is_decoder=heads[-1] == "score", fan_in_fan_out=transposed)


def get_linear(model: PreTrainedModel) -> nn.Linear:
    """The last linear layer of a sequence-classification model (`out_features` = labels)."""
    return model.get_submodule(get_family(model.config).linear)


#: What a checkpoint of a language model lacks inside the trunk of BERT and its kin.
POOLER = r"(^|\.)pooler\."


def new_weights(config: PreTrainedConfig) -> str:
    """Regular expression of the weights that a mixture makes new, or has in a file of its own: what stands outside the
    trunk of the classifier, and the [`POOLER`]."""
    return rf"^(?!{CLASSIFIERS[type(config)].base_model_prefix}\.)|{POOLER}"


@torch.no_grad()
def check_family(mixture: Any, tolerance: float = 1e-3) -> None:
    """Compare the rewards of a new mixture with what its first classifier says itself, on a few tokens, so that an
    unknown family cannot be read wrongly.

    Args:
        mixture ([`MixtureRewardModel`]): whole, with `pooling="auto"`.
        tolerance (`float`): largest difference of rewards, absolute and relative; at least 0.05 in half precision.

    Raises:
        ValueError: they differ, or change with padding that is masked, or do not change with the last token.
    """
    classifier = mixture.components[0]
    size, pad = classifier.get_input_embeddings().num_embeddings, classifier.config.get_text_config().pad_token_id
    pad = pad if pad is not None and 0 <= pad < size else 0
    # The last of five tokens has the pad id: it counts where the mask says that it is real, and only there.
    tokens = [token for token in range(size) if token != pad][-4:]
    ids = torch.tensor([[*tokens, pad]], device=mixture.device)
    mask, short = torch.ones_like(ids), ids[:, :4]
    masked = mask.clone()
    masked[:, -1] = 0
    modes = [(module, module.training) for module in mixture.modules()]
    mixture.eval()
    plain, padded, longer = (mixture(*given).rewards[0] for given in ((short,), (ids, masked), (ids, mask)))
    host = classifier(input_ids=short, attention_mask=mask[:, :4]).logits[0].float()
    for module, training in modes:
        module.training = training
    if plain.ndim != host.ndim:
        raise ValueError(
            f"No mixture can be made of {type(classifier).__name__}: its head comes before it pools. Supported "
            f"families: {', '.join(supported_families())}."
        )
    if mixture.dtype in (torch.float16, torch.bfloat16):
        tolerance = max(tolerance, 5e-2)
    same = {"atol": tolerance, "rtol": tolerance}
    wrong = None
    if not torch.allclose(plain[0], host[0], **same):
        wrong = f"it says {host[0].item():.4f} of a text that is read as {plain[0].item():.4f} here"
    elif not torch.allclose(plain, padded, **same):
        wrong = "its rewards change with padding that is masked"
    elif torch.equal(plain, longer):
        wrong = "it takes a token for padding by its id"
    if wrong:
        raise ValueError(
            f"No mixture can be made of {type(classifier).__name__}: {wrong}. Supported families: "
            f"{', '.join(supported_families())}."
        )
