# SPDX-License-Identifier: Apache-2.0
"""The root module of the PPO trainers: a policy and its critic behind one forward.

One root means one DDP, FSDP or DeepSpeed wrapper, one optimizer and one pass through the trunk for log-probabilities
and values together. Letters: B rows, P prompt tokens, T reply tokens, n real reply tokens, H hidden size, V
vocabulary, C channels of the critic.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from functools import partial

import torch
from accelerate.utils import gather
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ...functional.head_logprobs import head_logprobs, start_grad
from ...functional.logprobs import token_logprobs
from ...models.base import base_model
from ...models.heads import Float32Linear, compute_in_float32
from ...models.lora import active_adapter
from ..common.vocabulary_head import head_logits, plain_head_weight, sparse_embedding
from .policy_adapters import add_critic_adapter, checkpoint_contexts
from .roles import require_critic, require_language_model


# Logits that exist at the same time where no gradient keeps them: on a CPU those that stay in its last cache, 25 MB;
# on an accelerator 256 MB, enough to fill it.
CACHED_LOGITS, ACCELERATOR_LOGITS = 6_400_000, 64_000_000
# Logits of a head by blocks that wait for the backward pass, 512 MiB; more are computed again.
KEPT_LOGITS = 1 << 27


def use_class_forward(model: PreTrainedModel) -> None:
    """Take a forward off the instance that another trainer has put there.

    TRL's `SFTTrainer` replaces `forward` by a function that holds the method of the model it was given. A copy of that
    model (`copy.deepcopy`) keeps the function, and with it answers from the weights of the original: it would sample
    from one policy and train another.

    Args:
        model ([`~transformers.PreTrainedModel`]): changed in place. One that accelerate has spread over devices
            (`device_map`) needs its own forward and keeps it.
    """
    if not hasattr(model, "_hf_hook"):
        vars(model).pop("forward", None)


class PolicyWithCritic(nn.Module):
    """A causal language model together with a critic.

    Args:
        policy ([`~transformers.PreTrainedModel`] or `peft.PeftModel`):
            The causal language model to train. Adapters have to be layers (LoRA and its kin), not prompts.
        num_channels (`int`, defaults to `1`):
            C. With 0 and no `value_model` there is no critic (that is how a reference model is held).
        value_model ([`~transformers.PreTrainedModel`] or `peft.PeftModel`, *optional*):
            A sequence-classification model with C labels and a trunk of its own. By default the critic is
            a linear head on the policy's trunk.
        critic_detach (`bool`, defaults to `False`):
            Whether the head's gradient stops before the policy's trunk.
        critic_adapter (`bool`, defaults to `False`):
            Whether the head reads the states of a trunk with an adapter of its own, on the base of the policy, whose
            adapter then learns from the policy's loss alone. A second pass through the trunk.
        logits_chunk_size (`int`, defaults to `4096`):
            Tokens whose V logits exist at the same time. Several chunks are computed again in the backward pass, so
            that memory does not grow with the tokens; one chunk is kept (of a head by blocks 512 MiB at most).

    Raises:
        `ValueError`: a policy that is no decoder with a language-model head, a prompt-learning adapter, or a
            `value_model` with another number of labels or without a `score` layer.
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        num_channels: int = 1,
        value_model: PreTrainedModel | PeftModel | None = None,
        critic_detach: bool = False,
        logits_chunk_size: int = 4096,
        critic_adapter: bool = False,
    ) -> None:
        super().__init__()
        require_language_model(policy)
        use_class_forward(base_model(policy))
        self.policy = policy
        self.critic_detach = critic_detach
        self.logits_chunk_size = logits_chunk_size
        self._in_place = False
        self._checkpointing_kwargs: dict = {}
        self._inputs_require_grad = False
        self.critic_adapter = add_critic_adapter(policy) if critic_adapter else None
        self.value_model = value_model
        self.value_head = None
        if value_model is not None:
            require_critic(value_model)
            labels = base_model(value_model).config.num_labels
            if labels != num_channels:
                raise ValueError(
                    f"The value model has {labels} labels, but the critic needs {num_channels} (one per reward "
                    "component and one for the KL penalty), or 1 for the weighted sum."
                )
            compute_in_float32(base_model(value_model).score)
        elif num_channels:
            self.value_head = _value_head(base_model(policy).get_output_embeddings(), num_channels)

    @property
    def config(self):
        """The policy's configuration, where trainers look for it."""
        return self.policy.config

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The policy without its adapter wrapper (adapters are layers inside it)."""
        return base_model(self.policy)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        completion_mask: torch.Tensor,
        completion_ids: torch.Tensor,
        temperature: float = 1.0,
        with_entropy: bool = False,
        with_values: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Log-probabilities of the replies' tokens, and the value of the state before each of them.

        Args:
            input_ids (`torch.Tensor` of shape `(B, P + T)`): prompts, left padded, followed by replies, right padded.
            attention_mask (`torch.Tensor` of shape `(B, P + T)`): bool; `True` on real tokens.
            completion_mask (`torch.Tensor` of shape `(B, T)`): bool; `True` on the real tokens of the reply.
            completion_ids (`torch.Tensor` of shape `(B, T)`): the tokens of the reply, the end of `input_ids`.
            temperature (`float`): the logits are divided by it, as when sampling.
            with_entropy (`bool`): whether to compute the entropy, without gradient.
            with_values (`bool`): whether to ask the critic.

        Returns:
            `tuple`: log-probabilities `(B, T)` in nats, entropies `(B, T)` in nats or `None`, and values `(B, T, C)`
            (C = 0 where the critic is not asked); all float32, and 0 on padding.
        """
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask.long(),
            "position_ids": (attention_mask.long().cumsum(-1) - 1).clamp(min=0),
            "use_cache": False,
        }
        # The state before a token is read at the token that precedes it.
        states = slice(-completion_mask.shape[1] - 1, -1)
        with sparse_embedding(self.causal_lm, self._adds_in_place()):
            hidden = _trunk(self.causal_lm, arguments)[:, states][completion_mask]
        logprobs, entropy = self._token_logprobs(hidden, completion_ids[completion_mask], temperature, with_entropy)
        if with_values:
            values = self._token_values(hidden, arguments, states, completion_mask)
        else:
            values = hidden.new_zeros((hidden.shape[0], 0), dtype=torch.float32)
        return (
            _scatter(logprobs, completion_mask),
            _scatter(entropy, completion_mask) if with_entropy else None,
            _scatter(values, completion_mask),
        )

    def _token_logprobs(
        self, hidden: torch.Tensor, ids: torch.Tensor, temperature: float, with_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities `(n,)` of the tokens and entropies `(n,)`, from hidden states `(n, H)`, chunk by chunk."""
        size = self.logits_chunk_size
        weight = plain_head_weight(self.causal_lm)
        if weight is not None:
            keep, in_place = len(ids) <= min(size, KEPT_LOGITS // len(weight)), self._adds_in_place()
            if in_place:
                start_grad(weight)
            return head_logprobs(hidden, weight, ids, temperature, with_entropy, keep, in_place)
        if not torch.is_grad_enabled():
            logits = CACHED_LOGITS if hidden.device.type == "cpu" else ACCELERATOR_LOGITS
            size = min(size, max(logits // self.causal_lm.config.get_text_config().vocab_size, 64))
        count = max(-(-len(ids) // size), 1)
        if is_deepspeed_zero3_enabled():
            # The ranks gather the head together, for each chunk again.
            count = int(gather(torch.tensor([count], device=hidden.device)).max())
        pairs = zip(hidden.tensor_split(count), ids.tensor_split(count), strict=True)
        recompute = count > 1 and torch.is_grad_enabled()
        reentrant = self._checkpoints_are_reentrant
        logprobs, entropies = [], []
        for states, tokens in pairs:
            if recompute:
                result = checkpoint(self._chunk, states, tokens, temperature, with_entropy, use_reentrant=reentrant)
            else:
                result = self._chunk(states, tokens, temperature, with_entropy)
            logprobs.append(result[0])
            entropies.append(result[1])
        return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None

    def _chunk(
        self, states: torch.Tensor, tokens: torch.Tensor, temperature: float, with_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = head_logits(self.causal_lm, states)
        if temperature != 1.0:
            logits = logits.float() / temperature
        return token_logprobs(logits, tokens, with_entropy)

    def add_gradients_in_place(self) -> None:
        """From now on let a backward pass add the gradient of a head that [`plain_head_weight`] knows, and of the
        embedding tied to it, to the one that is there: of V x H numbers no second array is made. For one process: a
        wrapper that waits for gradients would not be told."""
        self._in_place = True

    def _adds_in_place(self) -> bool:
        if not self._in_place or not torch.is_grad_enabled():
            return False
        weight = plain_head_weight(self.causal_lm)
        return weight is not None and weight.requires_grad and weight.is_leaf

    def _token_values(
        self, hidden: torch.Tensor, arguments: dict, states: slice, completion_mask: torch.Tensor
    ) -> torch.Tensor:
        """Values `(n, C)`, in float32 whatever the precision of the trunk."""
        if self.value_model is not None:
            scorer = base_model(self.value_model)
            return scorer.score(_trunk(scorer, arguments)[:, states][completion_mask]).float()
        if self.value_head is None:
            return hidden.new_zeros((hidden.shape[0], 0), dtype=torch.float32)
        if self.critic_adapter is not None:
            with active_adapter(self.policy, self.critic_adapter):
                hidden = _trunk(self.causal_lm, arguments)[:, states][completion_mask]
        return self.value_head(hidden.detach() if self.critic_detach else hidden)

    def generate(self, *args, **kwargs):
        """The policy's `generate`; a wrapper that shards the root (FSDP2) hooks in here."""
        return self.causal_lm.generate(*args, **kwargs)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Recompute activations in the backward pass, in the policy and in a critic with its own trunk.

        Args:
            activation_checkpointing_kwargs (`dict`, *optional*): for `torch.utils.checkpoint.checkpoint`; those of the
                last call by default, non-reentrant at first. With an adapter under DeepSpeed ZeRO-3 they are always
                reentrant.
            kwargs: whatever else the installed transformers knows.
        """
        if activation_checkpointing_kwargs:
            self._checkpointing_kwargs = dict(activation_checkpointing_kwargs)
        settings = {"use_reentrant": False, **self._checkpointing_kwargs}
        models = [model for model in (self.policy, self.value_model) if model is not None]
        if self._checkpoints_are_reentrant:
            settings["use_reentrant"] = True
            self._require_input_grads(models)
        if self.critic_adapter is not None:
            if settings["use_reentrant"]:
                raise ValueError(
                    "critic_adapter=True needs non-reentrant checkpointing, which computes each layer again with the "
                    "adapter it ran with: leave `use_reentrant` out of `gradient_checkpointing_kwargs`."
                )
            settings["context_fn"] = partial(checkpoint_contexts, self.policy)
        for model in models:
            model = base_model(model)
            name = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else None
            name = name or "gradient_checkpointing"
            getattr(model, f"{name}_enable")(**{f"{name}_kwargs": settings}, **kwargs)

    @property
    def _checkpoints_are_reentrant(self) -> bool:
        """With an adapter under DeepSpeed ZeRO-3: recomputed otherwise, frozen weights, gathered in the forward pass
        alone, are found to have changed their shape."""
        adapted = isinstance(self.policy, PeftModel) or isinstance(self.value_model, PeftModel)
        return adapted and is_deepspeed_zero3_enabled()

    def _require_input_grads(self, models: list[PreTrainedModel | PeftModel]) -> None:
        """Reentrant checkpointing passes gradients on only where a layer's input has one; below an adapter all is
        frozen."""
        if self.critic_adapter is not None:
            raise ValueError(
                "DeepSpeed ZeRO-3 needs reentrant checkpointing of a policy with an adapter, and critic_adapter=True "
                "non-reentrant. Set gradient_checkpointing=False or critic_adapter=False, or use ZeRO-2."
            )
        if not self._inputs_require_grad:
            for model in models:
                base_model(model).enable_input_require_grads()
            self._inputs_require_grad = True

    def activation_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        for model in filter(None, (self.policy, self.value_model)):
            model = base_model(model)
            new_name = hasattr(model, "activation_checkpointing_disable")
            (model.activation_checkpointing_disable if new_name else model.gradient_checkpointing_disable)()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """The name of [`activation_checkpointing_enable`] in older transformers."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    gradient_checkpointing_disable = activation_checkpointing_disable

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the policy recomputes its activations."""
        return any(getattr(module, "gradient_checkpointing", False) is True for module in self.policy.modules())

    is_gradient_checkpointing = is_activation_checkpointing

    @property
    def _keys_to_ignore_on_save(self) -> list[str] | None:
        """What a saved policy leaves out because it is tied: transformers asks the trainer's model when it reloads."""
        head = self.causal_lm.get_output_embeddings()
        if head.weight is not self.causal_lm.get_input_embeddings().weight:
            return None
        return [f"{name}.weight" for name, module in self.causal_lm.named_modules() if module is head]

    @property
    def _no_split_modules(self) -> list[str]:
        """Blocks that FSDP shards one by one: accelerate asks the module it wraps."""
        models = [base_model(model) for model in (self.policy, self.value_model) if model is not None]
        return sorted({name for model in models for name in model._no_split_modules or ()})

    def tie_weights(self) -> None:
        """Tie the policy's embeddings again after a reload."""
        self.causal_lm.tie_weights()

    def reference_mode(self, adapter: str | None = None) -> AbstractContextManager[None]:
        """Turn the policy into its reference: adapters off, or another adapter on.

        Args:
            adapter (`str`, *optional*): the adapter of the reference; `None` switches adapters off.
        """
        return active_adapter(self.policy, adapter)


@torch.no_grad()
def check_head(model: PreTrainedModel | PeftModel, tolerance: float = 1e-2) -> None:
    """Compare [`head_logits`] with the model's own logits on four tokens, and see that no token reads a later one, so
    that an unknown family cannot train wrongly.

    Args:
        model ([`~transformers.PreTrainedModel`] or `peft.PeftModel`): a causal language model, not sharded.
        tolerance (`float`): largest difference of log-probabilities, in nats.

    Raises:
        `ValueError`: they differ, or the model is an encoder.
    """
    model = base_model(model)
    training = model.training
    model.eval()
    ids = torch.arange(4, device=model.get_input_embeddings().weight.device).unsqueeze(0)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    own = _own_logprobs(model, arguments)
    ours = head_logits(model, _trunk(model, arguments)[0]).float().log_softmax(-1)
    changed = _own_logprobs(model, arguments | {"input_ids": torch.cat([ids[:, :-1], ids[:, :1]], dim=1)})
    model.train(training)
    exact = 1e-5 if model.dtype == torch.float32 else tolerance
    if not torch.allclose(own[:-1], changed[:-1], atol=exact, rtol=exact, equal_nan=True):
        raise ValueError(
            f"{type(model).__name__} reads later tokens when it predicts a token: it is an encoder, and no policy can "
            "be made of it. Give a decoder-only language model; a family that has both modes needs `is_decoder=True` "
            "in its configuration."
        )
    if not torch.allclose(own, ours, atol=tolerance, rtol=tolerance, equal_nan=True):
        raise ValueError(
            f"{type(model).__name__} changes its logits behind the language-model head in a way that is not known "
            "here, so the log-probabilities would be wrong. Please report the model family."
        )


def _own_logprobs(model: PreTrainedModel, arguments: dict) -> torch.Tensor:
    known = inspect.signature(model.forward).parameters
    if "use_cache" not in known and not any(p.kind == p.VAR_KEYWORD for p in known.values()):
        arguments = {name: value for name, value in arguments.items() if name != "use_cache"}
    return model(**arguments).logits[0].float().log_softmax(-1)


def _value_head(lm_head: nn.Linear, num_channels: int) -> Float32Linear:
    """A float32 head that starts near zero and does not touch the global random state."""
    # Of the layer, not of its weight: under ZeRO-3 that is empty until it is used.
    width = lm_head.in_features
    head = nn.utils.skip_init(Float32Linear, width, num_channels, device=lm_head.weight.device, dtype=torch.float32)
    start = torch.randn((num_channels, width), generator=torch.Generator().manual_seed(0)) / (width + 1)
    with torch.no_grad():
        head.weight.copy_(start)
        head.bias.zero_()
    return head


def _trunk(model: PreTrainedModel, arguments: dict) -> torch.Tensor:
    """Last hidden states `(B, S, H)`: no list of all layers', no logits."""
    trunk = getattr(model, model.base_model_prefix)
    known = inspect.signature(trunk.forward).parameters
    if "position_ids" not in known:
        arguments = {name: value for name, value in arguments.items() if name != "position_ids"}
    return trunk(**arguments).last_hidden_state


def _scatter(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Entries `(n, ...)` of the real tokens back in their places `(B, T, ...)`, 0 elsewhere."""
    out = rows.new_zeros((*mask.shape, *rows.shape[1:]))
    return out.index_put((mask,), rows) if rows.requires_grad else out.index_put_((mask,), rows)
