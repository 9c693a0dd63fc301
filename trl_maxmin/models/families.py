# SPDX-License-Identifier: Apache-2.0
"""Model families whose sequence-classification head can serve as a reward component.

One row per family: where the last linear layer sits, and which token it reads. The mixture needs both: the linear
layer because component *k* is its row *k*, the pooling because a decoder's reward must be read at the last *attended*
token, never at the last token that happens to differ from the pad id.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Family:
    """How one model family turns hidden states into labels.

    Args:
        linear (`str`):
            Path of the last linear layer inside the sequence-classification model; its rows are the components.
        is_decoder (`bool`):
            Whether the reward is read at the last attended token (`True`) or by the family's own encoder pooling.
        lora_targets (`tuple[str]`):
            Linear layers that `"lora"` components adapt by default: the queries and values of the attention, as PEFT
            has them (its table lacks some of these families).
    """

    linear: str
    is_decoder: bool
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")


_DECODER = Family("score", is_decoder=True)

#: Families with tests. Others are refused, with this list in the message.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("score", is_decoder=True, lora_targets=("c_attn",)),
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "mistral": _DECODER,
    "gemma": _DECODER,
    "gemma2": _DECODER,
    "gemma3_text": _DECODER,
    "bert": Family("classifier", is_decoder=False, lora_targets=("query", "value")),
    "distilbert": Family("classifier", is_decoder=False, lora_targets=("q_lin", "v_lin")),
    "modernbert": Family("classifier", is_decoder=False, lora_targets=("Wqkv",)),
    "roberta": Family("classifier.out_proj", is_decoder=False, lora_targets=("query", "value")),
}


#: Weights that a mixture makes new, or has in a file of its own: what stands outside the trunk, and BERT's pooler,
#: which a checkpoint of a language model lacks.
NEW_WEIGHTS = r"^(score|classifier|pre_classifier|head)\.|(^|\.)pooler\."


def get_family(model_type: str) -> Family:
    """Row of the table for a `model_type`.

    Args:
        model_type (`str`): `config.model_type` of the base model.

    Returns:
        `Family`: where its head is and how it pools.

    Raises:
        ValueError: for a family that has no tests here; the message lists those that have.

    Example:

    >>> get_family("gpt2").linear
    'score'
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"Reward components on a base model of type {model_type!r} are not supported. Supported families: "
            f"{', '.join(sorted(FAMILIES))}. Choose a base model of one of these."
        )
    return FAMILIES[model_type]


def get_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer of a sequence-classification model of a known family (`out_features` = labels)."""
    return model.get_submodule(get_family(model.config.model_type).linear)
