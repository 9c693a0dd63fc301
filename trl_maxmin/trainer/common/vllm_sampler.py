# SPDX-License-Identifier: Apache-2.0
"""vLLM as sampler of a policy that is trained here: its weights are sent before each rollout, by TRL's own engine."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ... import _compat
from ...models.base import base_model
from .generation_backends import SampledReplies
from .sampling import cut_at_stop


#: What TRL's engine is given by the policy and the trainer's own settings.
_OURS = ("model", "accelerator", "processing_class", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_OURS += ("max_completion_length", "logprobs", "generation_kwargs", "structured_outputs_regex", "trust_remote_code")


def check_vllm(options: dict[str, Any] | None) -> None:
    """Refuse what cannot work before a model loads.

    Args:
        options (`dict`, *optional*): the user's settings of TRL's `VLLMGeneration`.

    Raises:
        `ValueError`: vLLM is not installed, or an option that follows from the trainer's own settings.
    """
    if taken := sorted(set(options or {}) & set(_OURS)):
        raise ValueError(
            f"vllm_kwargs has {taken}, which follow from the policy and from temperature, response_length and "
            "generation_kwargs. Set those."
        )
    if importlib.util.find_spec("vllm") is None and not _compat.vllm_generation().is_vllm_available():
        raise ValueError("generation_backend='vllm' needs vLLM: pip install 'trl-maxmin[vllm]'.")


class VLLMSampler:
    """Samples replies of a policy by vLLM, beside the trainer (`mode="colocate"`) or by its server (`mode="server"`).

    Args:
        policy ([`~transformers.PreTrainedModel`] or `peft.PeftModel`): the policy that is trained. Of an adapter the
            merged weights are sent; other adapters on its base, such as those of rewards, stay here.
        accelerator ([`~accelerate.Accelerator`]): the trainer's.
        tokenizer: the policy's.
        config ([`~transformers.GenerationConfig`]): see [`sampling_config`].
        stop_token_ids (`list[int]`): tokens that end a reply.
        options (`dict`, *optional*): further settings of TRL's `VLLMGeneration`, such as `mode`, `server_base_url`,
            `gpu_memory_utilization`, `tensor_parallel_size`, `enable_sleep_mode`.
    """

    def __init__(
        self,
        policy: nn.Module,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        config: GenerationConfig,
        stop_token_ids: Sequence[int],
        options: dict[str, Any] | None = None,
    ) -> None:
        self._policy, self._stops = policy, list(stop_token_ids)
        with _loadable(base_model(policy), tokenizer, accelerator):
            self._engine = _compat.vllm_generation().VLLMGeneration(
                policy,
                accelerator,
                tokenizer,
                temperature=config.temperature if config.do_sample else 0.0,
                top_p=1.0 if config.top_p is None else config.top_p,
                top_k=config.top_k or 0,
                min_p=config.min_p or 0.0,
                repetition_penalty=config.repetition_penalty or 1.0,
                max_completion_length=config.max_new_tokens,
                logprobs=0,
                # What ends a reply is decided here, not by the checkpoint's configuration.
                generation_kwargs={"stop_token_ids": self._stops, "ignore_eos": True},
                **(options or {}),
            )

    @torch.no_grad()
    def sample(self, prompt_ids: Sequence[Sequence[int]]) -> SampledReplies:
        """Send the weights as they are now, and sample one reply to each prompt. All ranks call it."""
        with _exact_weights(self._policy):
            self._engine.sync_weights()
        found = self._engine.generate([list(ids) for ids in prompt_ids], None, 1)
        replies = [cut_at_stop(list(ids), self._stops) for ids in found[1]]
        if found[2] is None:
            return SampledReplies(replies)
        # One entry a token, of which the first is the token's own.
        logprobs = [[entry[0] for entry in own[: len(ids)]] for own, (ids, _) in zip(found[2], replies, strict=True)]
        return SampledReplies(replies, logprobs)


@contextmanager
def _loadable(model: nn.Module, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> Iterator[None]:
    """vLLM loads a model by its name: one that was made in memory, or changed since it was loaded, lies in a folder
    while the engine starts. The weights come later anyway."""
    name = model.name_or_path
    with tempfile.TemporaryDirectory(prefix="policy-") as folder:
        if not Path(name, "config.json").is_file():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            model.name_or_path = folder
        try:
            yield
        finally:
            model.name_or_path = name
            accelerator.wait_for_everyone()


@contextmanager
def _exact_weights(policy: nn.Module) -> Iterator[None]:
    """TRL merges an adapter into its base and takes it out again, which leaves the base rounded: every rollout would
    move weights that are frozen."""
    layers = [m for m in policy.modules() if isinstance(m, BaseTunerLayer)] if isinstance(policy, PeftModel) else []
    kept = [(p, p.detach().clone()) for layer in layers for p in layer.get_base_layer().parameters(recurse=False)]
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data.copy_(data)
