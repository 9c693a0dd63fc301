# SPDX-License-Identifier: Apache-2.0
"""PPO for language models on transformers' own training loop."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, set_seed
from peft import PeftConfig, PeftModel
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, has_length

from ... import distributed
from ..._compat import _BaseTrainer, unwrap_model_for_generation
from ...functional import ppo
from ...models.base import base_model, context_length
from ...models.loading import load_tokenizer
from ...reading import read_json_object
from ..common.atomic_checkpoint import AtomicCheckpointMixin
from ..common.generation_backends import SampledReplies, sample_replies
from ..common.sampling import sampling_config, seeded
from ..common.vllm_sampler import VLLMSampler, check_vllm
from ..scoring.sources import RewardBatch, build_reward_source, models_of, refuse_infinite
from . import checkpoint, roles, setup
from .completions import completion_columns, show_completions, table_is_due
from .evaluation import EvaluationSums, own_batches
from .metrics import LOSS_STATISTICS, loss_metrics, rollout_metrics, sampling_metrics, take_means
from .old_scripts import ARGUMENTS, METHODS, knows_old_names
from .policy import PolicyWithCritic
from .ppo_config import PPOConfig
from .prompts import PromptReader, Row, has_messages, reward_batch, rows_from_batch
from .randomness import make_deterministic
from .rollout import Rollout, plan_minibatches
from .whitening import global_mean_var, whiten_channels


# What a checkpoint knows beside weights: the KL coefficient, which may have been adapted, and how long replies were.
STATE_FILE = "ppo_state.json"


@knows_old_names(ARGUMENTS, METHODS)
class PPOTrainer(AtomicCheckpointMixin, _BaseTrainer):
    """Proximal policy optimisation of a language model, on `transformers.Trainer`.

    The trainer that TRL dropped in 1.13, with its constructor and configuration: transformers' loop drives it, so
    callbacks, logging, checkpoints and resuming are those of every trainer. One step of the loop is one rollout with
    its update, `training_step`: `num_ppo_epochs * num_mini_batches` optimizer steps, the last of them the loop's own.
    Each stage is a method to override: `_rollout`, `_score`, `_aggregate`, `_advantages`, `_optimise`, `_ppo_loss`.

    Rewards are vectors of K components. `_calculate_rewards` returns them gathered from all ranks, `(N, K)`, and only
    then are `self.reward_weights` `(K,)` read: a subclass may set them in between. The critic predicts every component
    apart (and the KL penalty), so the weights may change at each rollout.

    Args:
        args ([`PPOConfig`]): training arguments.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): the policy's tokenizer; loaded with
            the policy by default. Its padding side does not matter, and it needs no pad token.
        model (`str`, [`~transformers.PreTrainedModel`] or `peft.PeftModel`): the policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*): reference of the KL penalty. Default: the policy as
            it is now (a copy, or of a `PeftModel` the bare model or a copy of the adapter).
        reward_model: a `MixtureRewardModel`, a sequence-classification model with one label, a callable, or a list of
            these.
        train_dataset: rows with `prompt` (text or messages) or `input_ids`; other columns go to the reward functions.
        value_model ([`~transformers.PreTrainedModel`], *optional*): a sequence-classification model as critic, with
            one label (for the weighted sum) or K + 1; with `peft_config` it gets such an adapter as well. Default: a
            head on the policy's trunk.
        eval_dataset (*optional*): as `train_dataset`; a dict of several is evaluated one by one.
        data_collator, optimizers, callbacks (*optional*): as in transformers; rows are left as they are by default.
        peft_config (`peft.PeftConfig`, *optional*): puts a new adapter on `model`.

    Raises:
        `ValueError`: a missing argument; a model that cannot play its part, that shares what is trained with another,
            that is not whole or has no tokenizer; nothing to train; fewer prompts than a rollout takes; a prompt that
            leaves no room for the reply; sizes that do not divide; a critic or a number of weights that does not fit
            the K rewards; a `scheduler` of DeepSpeed's own.
        `TypeError`: an argument of an older TRL; the message has its new name.

    References: Schulman et al. (arXiv 1707.06347); Ziegler et al. (arXiv 1909.08593).
    """

    _tag_names = ["trl", "ppo", "trl-maxmin"]
    _name = "PPO"
    _paper = {"title": "Fine-Tuning Language Models from Human Preferences", "id": "1909.08593"}

    # Whether `rewards/<component>/mean` is logged here; a mixin in front that logs them itself says `False`.
    _host_logs_component_rewards = True

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase | None = None,
        model: str | PreTrainedModel | PeftModel | None = None,
        ref_model: PreTrainedModel | None = None,
        reward_model: Any = None,
        train_dataset: Any = None,
        value_model: PreTrainedModel | PeftModel | None = None,
        data_collator: Callable | None = None,
        eval_dataset: Any = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        roles.check_kinds(processing_class, model, ref_model, value_model, reward_model, train_dataset)
        setup.plan_steps(args, train_dataset)
        if args.generation_backend == "vllm":
            check_vllm(args.vllm_kwargs)
        name = model if isinstance(model, str) else base_model(model).config.name_or_path
        tokenizer = processing_class or load_tokenizer(name, "`processing_class` (by default the one of `model`)")
        policy = setup.load_policy(model, args, peft_config)
        # The tokenizer of the policy, inside its processor where there is one.
        self._tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        # From a row of the data to the ids of its prompt.
        self._read_prompt = PromptReader(
            self._tokenizer,
            args.max_prompt_length,
            args.response_length,
            context_length(policy),
            args.chat_template_kwargs,
        )
        self._read_prompt.check(train_dataset, eval_dataset)
        # How replies are sampled, what ends one, and what fills up a batch.
        self.stop_token_ids = setup.stop_tokens_of(args, policy, self._tokenizer, has_messages(train_dataset))
        self.pad_token_id = setup.padding_token([self._tokenizer.pad_token_id, *self.stop_token_ids], policy)
        self.generation_config = sampling_config(args.temperature, args.response_length, args.generation_kwargs)
        # K rewards: where they come from, what they are called, what each counts `(K,)`, and what a nat of KL costs.
        self.reward_source = build_reward_source(reward_model, policy_tokenizer=self._tokenizer)
        self.reward_func_names = list(self.reward_source.names)
        self.reward_weights = setup.initial_weights(args.reward_weights, self.reward_func_names)
        self.kl_coef = args.kl_coef
        value_model = setup.adapt_critic(value_model, peft_config, args.seed)
        # Whether the critic predicts the weighted sum, or every reward and the KL penalty apart.
        root, self.scalar_critic = setup.build_root(policy, value_model, args, len(self.reward_func_names))
        known_tokens = len(self._tokenizer)
        setup.check_roles(root, ref_model, models_of(self.reward_source), known_tokens, args)
        # The reference: a module of its own, or `None` and the adapter (`None`: none) that the policy then has on.
        self.reference, self._reference_adapter = setup.build_reference(root, ref_model, peft_config, args)
        setup.match_shards(root)
        # The policy that samples has to be the one that is weighed.
        make_deterministic(root)
        # Prompts of the rollout that is being collected.
        self._prompt_buffer: list[Row] = []
        # What was measured since the last log, and the time and the step at which this run began.
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._clock: tuple[float, int] | None = None
        # Tokens of a reply, when some were sampled last: what `generation_backend="auto"` goes by.
        self._mean_length: float | None = None
        # The table that the next log shows.
        self._completions: dict[str, list] | None = None

        use_cache = getattr(root.config, "use_cache", None)
        super().__init__(
            model=root,
            args=args,
            data_collator=data_collator or list,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # Trainer switches the cache off in the configuration; the saved policy keeps what it came with.
        root.config.use_cache = use_cache
        setup.refuse_engine_scheduler(self.accelerator)
        setup.refuse_uneven_micro_batches(args, self.accelerator)
        distributed.keep_float32_outputs(self.accelerator)
        if self.accelerator.distributed_type == DistributedType.NO:
            root.add_gradients_in_place()
        self.reward_source.to(self.accelerator.device)
        if self.reference is not None:
            self.reference = setup.place_reference(self.reference, self.accelerator)
        # Ranks sample apart by streams of their own; this is for what reward functions draw.
        set_seed(args.seed, device_specific=True)
        if hasattr(policy, "add_model_tags"):
            policy.add_model_tags(self._tag_names)

    @property
    def _root(self) -> PolicyWithCritic:
        return self.accelerator.unwrap_model(self.model)

    @property
    def policy_model(self) -> PreTrainedModel | PeftModel:
        """The policy without its critic."""
        return self._root.policy

    # --------------------------------------------------------------------------------------------------- the loop
    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not has_length(dataset):
            return None
        # Whole rollouts only; which prompts sit out a pass changes with the pass.
        size = len(dataset) // self.args.batch_size * self.args.batch_size
        if getattr(self.args, "train_sampling_strategy", "random") == "sequential":
            return SequentialSampler(range(size))
        return RandomSampler(dataset, num_samples=size)

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Collect the prompts of a rollout; with the last of them, make the whole update but its last optimizer step.

        Returns the loss, 0 while collecting. `num_items_in_batch` is unused: losses are divided by tokens of replies,
        which do not exist yet.
        """
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        if self.current_gradient_accumulation_steps == self.args.gradient_accumulation_steps:
            # A stream that ends in the middle of a rollout leaves a shorter group, which is not trained on.
            self._prompt_buffer.extend(rows_from_batch(inputs))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        rows, self._prompt_buffer = self._prompt_buffer, []
        if self._clock is None or self._clock[1] > self.state.global_step:
            self._clock = (time.perf_counter(), self.state.global_step)
        if self.eval_dataset is not None and table_is_due(self.args, self.state.global_step):
            self.generate_completions(sampling=True)

        rollout = self._rollout(rows)  # 1: replies, and what policy, critic and reference make of them
        self._score(rollout)  # 2: rewards of all ranks, and then their weights
        rewards, channel_weights = self._aggregate(rollout)  # 3: rewards of every token and channel
        self._advantages(rollout, rewards, channel_weights)  # 4: GAE, weighted, whitened
        loss = self._optimise(rollout)  # 5: epochs of minibatches of micro-batches
        self._log_rollout(rollout)  # 6: metrics, and the KL coefficient of the next rollout
        return loss

    # ---------------------------------------------------------------------------------------------------- 1 rollout
    def _rollout(self, rows: list[Row]) -> Rollout:
        """Sample a reply to each prompt, and pass prompts and replies through policy, critic and reference."""
        rollout = self._sample(rows, "rollout", self.state.global_step)
        self._forward_rollout(rollout, keep_graph=self._is_first_update(rollout))
        return rollout

    def _is_first_update(self, rollout: Rollout) -> bool:
        """Whether the policy's forward of a rollout is that of the first update as well: all its rows in one
        micro-batch, and no wrapper that has to be told when gradients come."""
        alone = self.accelerator.distributed_type == DistributedType.NO and self.args.num_mini_batches == 1
        fits = len(rollout) <= self.args.local_rollout_forward_batch_size
        return alone and fits and len(self._micro_batches(rollout, range(len(rollout)))) == 1

    def _sample(self, rows: list[Row], *stream: int | str) -> Rollout:
        # The engine has the policy's weights and the settings of training.
        if self.args.generation_backend == "vllm" and stream[0] in ("rollout", "evaluation"):
            prompt_ids = [self._read_prompt(row) for row in rows]
            return self._build_rollout(rows, prompt_ids, self._vllm.sample(prompt_ids))
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        ) as model:
            return self._sample_from(model, rows, *stream)

    def _sample_from(self, model: torch.nn.Module, rows: list[Row], *stream: int | str) -> Rollout:
        prompt_ids = [self._read_prompt(row) for row in rows]
        with (
            seeded(self.accelerator.device, self.args.seed, *stream, self.accelerator.process_index),
            self.accelerator.autocast(),
        ):
            replies = sample_replies(
                model,
                prompt_ids,
                self.generation_config,
                self.pad_token_id,
                self.stop_token_ids,
                self.args.local_rollout_forward_batch_size,
                "auto" if self.args.generation_backend == "vllm" else self.args.generation_backend,
                self._mean_length,
            )
        if replies:
            self._mean_length = sum(len(ids) for ids, _ in replies) / len(replies)
        return self._build_rollout(rows, prompt_ids, replies)

    @cached_property
    def _vllm(self) -> VLLMSampler:
        return VLLMSampler(
            self.policy_model,
            self.accelerator,
            self._tokenizer,
            self.generation_config,
            self.stop_token_ids,
            self.args.vllm_kwargs,
        )

    def _build_rollout(self, rows: list[Row], prompt_ids: list[list[int]], replies: SampledReplies) -> Rollout:
        device = self.accelerator.device
        rollout = Rollout.build(rows, prompt_ids, replies, self._tokenizer, self.pad_token_id, device)
        rollout.note_sampler(getattr(replies, "logprobs", None))
        return rollout

    @torch.no_grad()
    def _forward_rollout(self, rollout: Rollout, keep_graph: bool = False) -> None:
        """Log-probabilities under policy and reference, values, entropy and KL; with `keep_graph` the first update
        goes on from the policy's forward."""
        size, model = self.args.local_rollout_forward_batch_size, self.model_wrapped
        training = model.training
        model.train(keep_graph)
        with self.accelerator.autocast():
            with torch.set_grad_enabled(keep_graph):
                forward = partial(self._forward, model, with_entropy=True)
                found = rollout.map_rows(forward, size, keep=keep_graph)
            rollout.logprobs, rollout.entropy, rollout.values = found
            model.eval()
            own = self.reference is not None
            with nullcontext() if own else self._root.reference_mode(self._reference_adapter):
                forward = partial(self._forward, self.reference if own else model, with_values=False)
                rollout.ref_logprobs = rollout.map_rows(forward, size)[0]
        model.train(training)
        rollout.kl = ppo.kl_estimate(rollout.logprobs, rollout.ref_logprobs, self.args.kl_estimator)

    def _forward(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], **options: bool) -> tuple:
        names = ("input_ids", "attention_mask", "completion_mask", "completion_ids")
        inputs = {name: batch[name] for name in names}
        return model(**inputs, temperature=self.args.temperature, **options)

    # ----------------------------------------------------------------------------------------------------- 2 rewards
    def _score(self, rollout: Rollout) -> None:
        """Rewards of all ranks through the seam, and this rank's rows back."""
        counts = distributed.rows_per_rank(self.accelerator, len(rollout))
        rewards_global = self._calculate_rewards(*rollout.replies)
        rollout.scores = rewards_global[distributed.local_slice(self.accelerator, counts)].to(rollout.input_ids.device)
        if self._host_logs_component_rewards:
            means = zip(self.reward_func_names, rewards_global.T, strict=True)
            self._note({f"rewards/{name}/mean": column.nanmean() for name, column in means})

    def _calculate_rewards(
        self, inputs: list[Row], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """Score replies: the seam, by the name and with the arguments it has in TRL's trainers.

        Args:
            inputs (`list[dict]`): this rank's rows, with `prompt_ids` (`list[int]`) and `finished` (`bool`) added.
            prompts, completions (`list`): text or messages.
            completion_ids_list (`list[list[int]]`): a reply ends with its stop token if it finished.

        Returns:
            `torch.Tensor` of shape `(N, K)`: float32, rows of all ranks in their order. NaN: not scored.

        Raises:
            `ValueError`: an infinite reward, on all ranks.
        """
        rewards_local = torch.zeros(0, len(self.reward_func_names))
        if inputs:
            rewards_local = self.reward_source(self._reward_batch(inputs, completions, completion_ids_list))
        rewards = distributed.gather_rows(self.accelerator, rewards_local.to(self.accelerator.device, torch.float32))
        refuse_infinite(rewards, self.reward_func_names)
        return rewards

    def _reward_batch(self, inputs: list[Row], completions: list, completion_ids_list: list[list[int]]) -> RewardBatch:
        return reward_batch(inputs, completions, completion_ids_list, self.args.chat_template_kwargs)

    # ------------------------------------------------------------------------------ 3 rewards per token and channel
    def _aggregate(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards per token and channel `(B, T, C)`, and what each channel counts `(C,)`."""
        weights = self.reward_weights.to(rollout.scores)
        rollout.settle_scores(weights, self.args.missing_eos_penalty, self.args.mask_truncated_completions)
        terminal = ppo.place_terminal_rewards(rollout.scores, rollout.completion_mask)
        if self.scalar_critic:
            rewards = (terminal @ weights - self.kl_coef * rollout.kl).unsqueeze(-1)
            channel_weights = torch.ones_like(weights[:1])
        else:
            rewards = torch.cat([terminal, -rollout.kl.unsqueeze(-1)], dim=-1)
            channel_weights = torch.cat([weights, weights.new_tensor([self.kl_coef])])
        if self.args.whiten_rewards:
            rewards = whiten_channels(self.accelerator, rewards, channel_weights, rollout.loss_mask)
        return rewards, channel_weights

    # ------------------------------------------------------------------------------------------------- 4 advantages
    def _advantages(self, rollout: Rollout, rewards: torch.Tensor, channel_weights: torch.Tensor) -> None:
        """Advantages per channel, weighted, then whitened over all ranks; logs how much of the returns the critic
        foresaw."""
        advantages, rollout.returns = ppo.generalized_advantage_estimate(
            rewards, rollout.values, rollout.completion_mask, self.args.gamma, self.args.lam
        )
        combined = ppo.combine_advantages(advantages, channel_weights)
        mean, var = global_mean_var(self.accelerator, combined, rollout.loss_mask)
        rollout.advantages = ppo.whiten(combined, rollout.loss_mask, mean, var)
        returns = ppo.combine_advantages(rollout.returns, channel_weights)
        _, spread = global_mean_var(self.accelerator, returns, rollout.loss_mask)
        self._note({"val/explained_variance": 1 - var / spread if spread > 0 else math.nan})

    # ----------------------------------------------------------------------------------------------- 5 optimisation
    def _optimise(self, rollout: Rollout) -> torch.Tensor:
        """Optimizer steps on a rollout. The gradients of the last one are left for the loop to clip and apply."""
        plan = plan_minibatches(len(rollout), self.args, self.state.global_step, self.accelerator.process_index)
        counts = torch.stack([rollout.loss_mask[rows].sum() for rows in plan])
        tokens = distributed.sum_over_ranks(self.accelerator, counts).clamp(min=1)
        statistics = []
        for number, (rows, num_tokens) in enumerate(zip(plan, tokens.tolist(), strict=True)):
            statistics.append(self._backward_minibatch(rollout, rows, num_tokens))
            if number == len(plan) - 1 or self._beyond_target_kl(statistics[-1], num_tokens):
                break
            if self.args.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.model_wrapped.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            self.model_wrapped.zero_grad()
        means = distributed.sum_over_ranks(self.accelerator, torch.stack(statistics)) / tokens[: len(statistics), None]
        self._note(loss_metrics(means))
        return (means[:, 0] + self.args.vf_coef * means[:, 1]).mean()

    def _backward_minibatch(self, rollout: Rollout, rows: list[int], num_tokens: int) -> torch.Tensor:
        """Gradients of one minibatch, summed over its micro-batches; sums of its statistics on this rank."""
        parts = self._micro_batches(rollout, rows)
        # DDP, FSDP and DeepSpeed average over ranks what we want the sum of.
        scale = self.accelerator.num_processes / num_tokens
        total = torch.zeros(len(LOSS_STATISTICS), device=self.accelerator.device)
        for part in parts:
            with distributed.accumulate(self.accelerator, self.model_wrapped, is_last=part is parts[-1]):
                batch = rollout.micro_batch(part)
                logprobs, _, values = rollout.take_outputs(part) or self._forward(self.model_wrapped, batch)
                loss, statistics = self._ppo_loss(logprobs, values, batch)
                distributed.backward(self.accelerator, loss * scale)
            total += statistics
        return total

    def _micro_batches(self, rollout: Rollout, rows: Sequence[int]) -> list[list[int]]:
        return rollout.micro_batches(rows, self.args.per_device_train_batch_size, self.args.max_tokens_per_micro_batch)

    def _ppo_loss(
        self, logprobs: torch.Tensor, values: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and [`LOSS_STATISTICS`] of a micro-batch, both summed over its tokens."""
        mask = batch["loss_mask"]
        policy_losses, policy_clipped = ppo.policy_loss_terms(
            logprobs, batch["logprobs"], batch["advantages"], mask, self.args.cliprange
        )
        value_losses, value_clipped = ppo.value_loss_terms(
            values, batch["values"], batch["returns"], mask, self.args.cliprange_value
        )
        if self.args.sampling_ratio_cap is not None and "sampler_logprobs" in batch:
            ratio = (batch["logprobs"] - batch["sampler_logprobs"]).exp().clamp(max=self.args.sampling_ratio_cap)
            policy_losses = policy_losses * ratio
        loss = policy_losses.sum() + self.args.vf_coef * value_losses.sum()
        with torch.no_grad():
            change = (logprobs - batch["logprobs"])[mask]
            statistics = [policy_losses, value_losses, 0.5 * change.square(), policy_clipped]
            statistics += [value_clipped.float().mean(-1), change.exp()]
            return loss, torch.stack([terms.sum().float() for terms in statistics])

    def _beyond_target_kl(self, statistics: torch.Tensor, num_tokens: int) -> bool:
        if self.args.target_kl is None:
            return False
        sums = dict(zip(LOSS_STATISTICS, distributed.sum_over_ranks(self.accelerator, statistics), strict=True))
        return sums["policy/approxkl_avg"].item() / num_tokens > self.args.target_kl

    # ------------------------------------------------------------------------------------------------------ 6 metrics
    def _note(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(float(value))

    def _log_rollout(self, rollout: Rollout) -> None:
        """Note what is known of a rollout; adapt the KL coefficient, where asked, to the KL just measured."""
        metrics = rollout_metrics(self.accelerator, rollout, self.reward_weights, self.kl_coef)
        metrics |= sampling_metrics(self.accelerator, rollout)
        episodes = self.args.batch_size * (self.state.global_step + 1)
        start, first_step = self._clock
        eps = (episodes - self.args.batch_size * first_step) / (time.perf_counter() - start)
        self._note(metrics | {"eps": eps, "episode": episodes, "lr": self._get_learning_rate()})
        if self.args.adaptive_kl:
            self.kl_coef = ppo.adaptive_kl_coef(
                self.kl_coef, metrics["objective/kl"], self.args.kl_target, self.args.kl_horizon, self.args.batch_size
            )
        if self.args.log_completions:
            self._completions = self._completion_columns(rollout)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in transformers, with the means of what was measured since the last log."""
        mode, prefix = ("train", "") if self.model.training else ("eval", "eval_")
        logs.update({prefix + name: value for name, value in take_means(self._metrics[mode]).items()})
        super().log(logs, start_time)
        if mode == "train" and self._completions is not None:
            self._show(self._completions)
            self._completions = None

    # ----------------------------------------------------------------------------------------- beside the updates
    _ready_policy = setup.ready_policy

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Sample one reply to each prompt and score it. Weights, random state and KL coefficient stay as they are.

        Returns metrics only, their names behind `metric_key_prefix`.
        """
        sums = EvaluationSums()
        with self._ready_policy():
            self.model.eval()
            batches = own_batches(dataloader, self.accelerator, self.args.eval_batch_size)
            for number, (rows, count) in enumerate(batches):
                # The same stream at every evaluation: two of them differ by the policy, not by the draw.
                rollout = self._sample(rows, "evaluation", number)
                self._forward_rollout(rollout)
                sums.add(rollout, count)
            rewards = self._calculate_rewards(*sums.replies)
        penalty = self.args.missing_eos_penalty or 0.0
        metrics = sums.metrics(self.accelerator, rewards, self.reward_weights, penalty)
        if self._host_logs_component_rewards:
            means = zip(self.reward_func_names, rewards.nanmean(0).tolist(), strict=True)
            metrics |= {f"rewards/{name}/mean": mean for name, mean in means}
        # What the seam measured belongs to this evaluation set.
        metrics |= take_means(self._metrics["eval"])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(rewards))

    @torch.no_grad()
    def generate_completions(self, sampling: bool = False) -> dict[str, list]:
        """The likeliest replies to the evaluation prompts and their scores: printed, and logged where W&B runs.

        Args:
            sampling (`bool`, defaults to `False`): whether one batch of prompts is enough.

        Returns:
            `dict[str, list]`: columns `"query"`, `"model response"`, `"score"` (the weighted sum), and one for each
            reward component where there are several. Empty without an evaluation set.
        """
        table: dict[str, list] = {}
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        likeliest = (self.args.generation_kwargs or {}) | {"do_sample": False}
        sampled = self.generation_config
        self.generation_config = sampling_config(self.args.temperature, self.args.response_length, likeliest)
        try:
            with self._ready_policy():
                for dataset in (d for d in datasets.values() if d is not None):
                    for batch in islice(self.get_eval_dataloader(dataset), 1 if sampling else None):
                        rollout = self._sample(rows_from_batch(batch), "completions")
                        for name, values in self._completion_columns(rollout).items():
                            table.setdefault(name, []).extend(values)
        finally:
            self.generation_config = sampled
        self._show(table)
        return table

    def _completion_columns(self, rollout: Rollout) -> dict[str, list]:
        # Where a table alone asks for scores they come past the seam, which is told of rollouts and evaluations only.
        scores = rollout.scores
        if scores is None:
            scores = self.reward_source(
                self._reward_batch(rollout.inputs, rollout.completions, rollout.completion_ids)
            )
        return completion_columns(self.accelerator, rollout, scores, self.reward_weights, self.reward_func_names)

    def _show(self, table: dict[str, list]) -> None:
        if table and self.is_world_process_zero():
            show_completions(table, self.state.global_step, self.args.report_to)

    # ----------------------------------------------------------------------------------------- saving and resuming
    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The policy as `from_pretrained` expects it, the critic beside it."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_policy(self._root, folder, state_dict)
        if self.args.save_critic or self._staging is not None:
            checkpoint.save_critic(self._root, folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, folder / "training_args.bin")
        (folder / STATE_FILE).write_text(json.dumps({"kl_coef": self.kl_coef, "mean_length": self._mean_length}))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # transformers copies the files it knows, and pushes the copies.
        if self._staging is None and self.args.save_critic and self.is_world_process_zero():
            checkpoint.copy_critic(Path(checkpoint_folder), Path(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        state_file = Path(resume_from_checkpoint) / STATE_FILE
        if state_file.exists():
            state = read_json_object(state_file)
            self.kl_coef, self._mean_length = state["kl_coef"], state.get("mean_length")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            checkpoint.load_policy_weights(self._root, resume_from_checkpoint)
            checkpoint.load_critic(self._root, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(os.fspath(self.state.best_model_checkpoint))
