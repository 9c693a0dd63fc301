# SPDX-License-Identifier: Apache-2.0
"""Models as sources of rewards: a mixture, or a sequence classifier with one label."""

from __future__ import annotations

import warnings

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.tokenization import encode_reply, same_vocabulary
from ...models.base import base_model, place
from ...models.modeling_mixture_reward import MixtureRewardModel
from ...models.scoring import pool_last_token, position_ids_from_mask, score_sequences
from ...models.shards import make_whole
from .batch import RewardBatch, RewardSource


class MixtureReward(RewardSource):
    """The components of a mixture in one pass, a column each.

    A component that describes no annotator (`config.component_annotators`) has no column, and a warning names it: the
    worst-off group must be a group of people.

    Args:
        mixture ([`MixtureRewardModel`]):
            The mixture.
        policy_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer. Ids are passed on as they are where both vocabularies agree (and where nothing is
            known about either); otherwise the text is tokenised again.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The mixture's tokenizer, if not its own.
        batch_size (`int`, *optional*, defaults to 64):
            Replies per forward.

    Attributes:
        components (`list[int]`): the mixture's component behind each column.
        reads_ids (`bool`): whether ids of the policy mean the same to the mixture; otherwise it reads text.
    """

    def __init__(
        self,
        mixture: MixtureRewardModel,
        policy_tokenizer: PreTrainedTokenizerBase | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        batch_size: int = 64,
    ) -> None:
        self.mixture = mixture
        self.policy_tokenizer = policy_tokenizer
        self.processing_class = processing_class or mixture.processing_class
        self.batch_size = batch_size
        self.components = mixture.described_components
        self.names = [mixture.component_names[k] for k in self.components]
        self.mixing_weights = mixture.mixing_weights[self.components]
        counts = (mixture.config.component_annotators, mixture.config.component_pairs)
        self.num_annotators, self.num_pairs = (
            None if count is None else [count[k] for k in self.components] for count in counts
        )
        self.counts_missing = None in counts
        if len(self.components) < mixture.num_components:
            empty = ", ".join(sorted(set(mixture.component_names) - set(self.names)))
            warnings.warn(
                f"{empty} of the mixture describes no annotator and is left out: the policy serves {len(self.names)} "
                f"of {mixture.num_components} components. Fit the mixture with num_components={len(self.names)}, or "
                "set `config.component_annotators` to None to count every component.",
                stacklevel=2,
            )
            self.mixing_weights = self.mixing_weights / self.mixing_weights.sum()
        # An encoder frames its text with special tokens that ids of a policy do not have.
        frames = self.processing_class is not None and not mixture.family.is_decoder
        self.reads_ids = not frames and same_vocabulary(policy_tokenizer, self.processing_class)

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        """Score the replies, see [`RewardSource`]."""
        tokenizer = self.processing_class or self.policy_tokenizer
        if self.reads_ids and batch.has_ids:
            rewards = self.mixture.score(
                prompt_ids=batch.prompt_ids,
                completion_ids=batch.completions_as_trained(tokenizer),
                batch_size=self.batch_size,
            )
        else:
            prompts, completions, finished = batch.as_text(self.policy_tokenizer)
            rewards = self.mixture.score(
                prompts,
                completions,
                finished=finished,
                processing_class=tokenizer,
                chat_options=batch.options(),
                batch_size=self.batch_size,
            )
        return rewards[:, self.components]

    def to(self, device: torch.device | str) -> MixtureReward:
        """See [`RewardSource`]."""
        make_whole(self.mixture)
        place(self.mixture, device)
        return self


class SequenceClassificationReward(RewardSource):
    """One plain reward model: a sequence classifier with a single label.

    A decoder's reward is read at the last token of the reply. Its own forward would look for the last token that is
    not the pad token instead, and read one token early wherever the tokenizer pads with EOS.

    Args:
        model (`PreTrainedModel`, `peft.PeftModel` or `nn.Module`):
            A model with one label: a decoder with a `score` layer, or an encoder; with or without an adapter. Or any
            module as TRL 1.12 took it: a trunk under the name in `base_model_prefix`, whose output has
            `hidden_states`, and `score`, a layer or a method that is given the last of them, `(B, T, H)`.
        policy_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The model's tokenizer. Without one the model is taken to share the policy's vocabulary;
            [`build_reward_source`] never leaves it out.
        name (`str`, *optional*):
            Name of the column. Default: last part of the name that the model was loaded by, or `"reward"`.
        batch_size (`int`, *optional*, defaults to 64):
            Replies per forward; they are sorted by length first.

    Raises:
        `ValueError`: More than one label, an encoder-decoder model, virtual tokens (prompt learning), or (when called)
            a sequence that the model cannot read: empty, longer than its context, or with ids beyond its vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | nn.Module,
        policy_tokenizer: PreTrainedTokenizerBase | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        name: str | None = None,
        batch_size: int = 64,
    ) -> None:
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"The reward model has an adapter of type {model.active_peft_config.peft_type}, which puts virtual "
                "tokens before the text. Use an adapter made of layers, such as LoRA, or wrap the model in a function."
            )
        # The adapter's layers are inside the model.
        model = base_model(model)
        config = getattr(model, "config", None)
        labels = config.num_labels if isinstance(model, PreTrainedModel) else getattr(model.score, "out_features", 1)
        if labels != 1:
            raise ValueError(
                f"{type(model).__name__} has {labels} labels, but a reward model has 1. For several "
                "rewards pass a `MixtureRewardModel`, or a list of one-label models or functions."
            )
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"{type(model).__name__} is an encoder-decoder model, which pools at an EOS that a truncated reply "
                "does not have. Use a decoder or an encoder, or wrap the model in a reward function."
            )
        self.model = model
        self.policy_tokenizer = policy_tokenizer
        self.processing_class = processing_class
        self.batch_size = batch_size
        self.names = [name or str(getattr(config, "name_or_path", None) or "reward").rstrip("/").split("/")[-1]]
        # An encoder frames its text with special tokens that ids of a policy do not have.
        frames = processing_class is not None and not hasattr(model, "score")
        self.reads_ids = not frames and same_vocabulary(policy_tokenizer, processing_class)

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        """Score the replies, see [`RewardSource`]."""
        tokenizer = self.processing_class or self.policy_tokenizer
        if self.reads_ids and batch.has_ids:
            replies = batch.completions_as_trained(tokenizer)
            sequences = [[*p, *c] for p, c in zip(batch.prompt_ids, replies, strict=True)]
        elif tokenizer is None:
            raise ValueError(
                f"{type(self.model).__name__} was given text but no tokenizer; pass the reward model as a pair "
                "`(model, tokenizer)`."
            )
        else:
            rows = zip(*batch.as_text(self.policy_tokenizer), batch.options(), strict=True)
            sequences = [encode_reply(tokenizer, *row) for row in rows]
        return score_sequences(self.model, self._forward, sequences, 1, self.batch_size)

    def to(self, device: torch.device | str) -> SequenceClassificationReward:
        """See [`RewardSource`]."""
        make_whole(self.model)
        place(self.model, device)
        return self

    def _forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if not isinstance(self.model, PreTrainedModel):
            return self._forward_as_in_trl(inputs)
        head = getattr(self.model, "score", None)
        if head is None:
            return self.model(**inputs).logits[:, :1]
        # Padding is on the right: the default positions are those of the real tokens.
        hidden = getattr(self.model, self.model.base_model_prefix)(**inputs, use_cache=False).last_hidden_state
        pooled = pool_last_token(hidden, attention_mask)
        return head(pooled.to(next(head.parameters()).dtype))

    def _forward_as_in_trl(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """By the arguments that TRL 1.12 calls trunk and `score` with: neither knows more."""
        trunk = getattr(self.model, self.model.base_model_prefix)
        position_ids = position_ids_from_mask(inputs["attention_mask"])
        options = {"return_dict": True, "output_hidden_states": True, "use_cache": False}
        hidden = trunk(**inputs, position_ids=position_ids, **options).hidden_states[-1]
        scores = torch.as_tensor(self.model.score(hidden)).reshape(*inputs["input_ids"].shape, -1)
        return pool_last_token(scores, inputs["attention_mask"])[:, :1]


def is_scorer(model: object) -> bool:
    """Whether something can be a [`SequenceClassificationReward`]: a model of transformers, with or without an
    adapter, or a module with `base_model_prefix`, that trunk, and `score`."""
    if isinstance(model, PreTrainedModel | PeftModel):
        return True
    return isinstance(model, nn.Module) and hasattr(model, "score") and hasattr(model, "base_model_prefix")
