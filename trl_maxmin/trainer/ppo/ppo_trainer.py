# SPDX-License-Identifier: Apache-2.0
"""PPO for language models on transformers' own training loop."""

from __future__ import annotations

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import set_seed
from peft import PeftConfig, PeftModel
from torch.utils.data import IterableDataset, RandomSampler, Sampler, SequentialSampler
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import has_length

from ..._compat import _BaseTrainer, unwrap_model_for_generation
from ...distributed import (
    accumulate,
    backward,
    gather_rows,
    keep_float32_outputs,
    local_slice,
    rows_per_rank,
    sum_over_ranks,
)
from ...functional.ppo import (
    combine_advantages,
    generalized_advantage_estimate,
    kl_estimate,
    masked_moments,
    moments_to_mean_var,
    place_terminal_rewards,
    policy_loss_terms,
    value_loss_terms,
    whiten,
)
from ...models.base import base_model, context_length
from ..common.sampling import resolve_stop_tokens, sample_completions, sampling_config, seeded, stream_seed
from ..scoring.sources import RewardBatch, build_reward_source
from .checkpoint import PolicyCheckpointMixin
from .completions import CompletionTableMixin
from .evaluation import ReplyEvaluationMixin
from .metrics import LOSS_STATISTICS, RolloutMetricsMixin
from .policy import PolicyWithCritic
from .ppo_config import PPOConfig
from .prompts import PromptReader, Row, rows_from_batch
from .rollout import Rollout
from .setup import (
    adapt_critic,
    build_reference,
    build_root,
    disable_dropout,
    load_policy,
    match_shards,
    place_reference,
    plan_steps,
    require,
)


# Columns that are the prompt itself; the others go to the reward functions.
PROMPT_COLUMNS = ("prompt", "input_ids", "attention_mask", "prompt_ids", "finished")


class PPOTrainer(PolicyCheckpointMixin, ReplyEvaluationMixin, RolloutMetricsMixin, CompletionTableMixin, _BaseTrainer):
    """Proximal policy optimisation of a language model, on `transformers.Trainer`.

    The trainer that TRL dropped in 1.13, with its constructor and its configuration, built anew: transformers' loop
    drives it, so callbacks, logging, checkpoints, resuming and evaluation are those of every other trainer. One step
    of the loop is one rollout: sample replies to the prompts of a batch, score them, estimate advantages, and make
    `num_ppo_epochs * num_mini_batches` optimizer steps, the last of which is the loop's own. Each stage is a method to
    override: `_rollout`, `_score`, `_aggregate`, `_advantages`, `_optimise`, `_ppo_loss`.

    Rewards are vectors of K components. `_calculate_rewards` returns them gathered from all ranks, `(N, K)`, and only
    then are `self.reward_weights` `(K,)` read: a subclass may set them in between. The critic predicts every component
    apart (and the KL penalty), so the weights may change at each rollout.

    Args:
        args ([`PPOConfig`]): training arguments.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): the policy's tokenizer; loaded with
            the policy by default. Its padding side does not matter, and it needs no pad token.
        model (`str`, [`~transformers.PreTrainedModel`] or `peft.PeftModel`): the policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*): reference of the KL penalty. Default: the policy as
            it is now (the bare model or a copy of the adapter where the policy is a `PeftModel`, a copy of the model
            otherwise).
        reward_model: a `MixtureRewardModel`, a sequence-classification model with one label, a callable, or a list of
            these.
        train_dataset: rows with `prompt` (text or messages) or `input_ids`; other columns go to the reward functions.
        value_model ([`~transformers.PreTrainedModel`], *optional*): a sequence-classification model as critic, with
            one label (for the weighted sum) or K + 1; with `peft_config` it gets such an adapter as well. Default: a
            head on the policy's trunk.
        data_collator (`Callable`, *optional*): makes batches of rows; by default rows are left as they are.
        eval_dataset (*optional*): as `train_dataset`; a dict of several is evaluated one by one.
        optimizers (`tuple`, *optional*): optimizer and scheduler.
        callbacks (`list`, *optional*): more callbacks.
        peft_config (`peft.PeftConfig`, *optional*): puts a new adapter on `model`.

    Raises:
        `ValueError`: a missing `model`, `reward_model` or `train_dataset`; `ref_model` being `model`; fewer prompts
            than a rollout takes; a prompt that leaves no room for the reply; sizes that do not divide; a critic or a
            number of weights that does not fit the K rewards.

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
        require(model=model, reward_model=reward_model, train_dataset=train_dataset)
        if ref_model is model:
            raise ValueError("`ref_model` is `model` itself; pass a copy, or `None` for the policy as it is now.")
        plan_steps(args, train_dataset)
        policy = load_policy(model, args, peft_config)
        tokenizer = processing_class or AutoTokenizer.from_pretrained(base_model(policy).config.name_or_path)
        self._tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self._read_prompt = PromptReader(
            self._tokenizer, args.max_prompt_length, args.response_length, context_length(policy)
        )
        self._check_data(train_dataset, eval_dataset)

        self.stop_token_ids = resolve_stop_tokens(args.stop_token, args.stop_token_id, policy, self._tokenizer)
        # Masks travel with the ids, so any id that the policy can embed serves as padding; scripts of TRL 1.12 add a
        # pad token to the tokenizer without resizing the model.
        padding = [self._tokenizer.pad_token_id, *self.stop_token_ids, 0]
        size = base_model(policy).get_input_embeddings().num_embeddings
        self.pad_token_id = next(token for token in padding if token is not None and token < size)
        self.generation_config = sampling_config(args.temperature, args.response_length, args.generation_kwargs)

        self.reward_source = self._build_reward_source(reward_model)
        self.reward_func_names = list(self.reward_source.names)
        self.reward_weights = self._initial_reward_weights(args)
        self.kl_coef = args.kl_coef
        value_model = adapt_critic(value_model, peft_config, args.seed)
        root, self.scalar_critic = build_root(policy, value_model, args, len(self.reward_func_names))
        self.reference, self._reference_adapter = build_reference(root, ref_model, peft_config, args)
        match_shards(root)
        disable_dropout(root)
        self._prompt_buffer: list[Row] = []
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._clock: tuple[float, int] | None = None

        use_cache = getattr(root.config, "use_cache", None)
        super().__init__(
            model=root,
            args=args,
            data_collator=data_collator or _leave_rows,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # Trainer switches the cache off in the configuration; the saved policy keeps what it came with.
        root.config.use_cache = use_cache
        keep_float32_outputs(self.accelerator)
        self.reward_source.to(self.accelerator.device)
        if self.reference is not None:
            self.reference = place_reference(self.reference, self.accelerator)
        # Ranks sample apart by streams of their own; this is for what reward functions draw.
        set_seed(args.seed, device_specific=True)
        if hasattr(policy, "add_model_tags"):
            policy.add_model_tags(self._tag_names)

    # ------------------------------------------------------------------------------------------------ construction
    def _check_data(self, train_dataset: Any, eval_dataset: Any) -> None:
        named = {"training set": train_dataset}
        if isinstance(eval_dataset, dict):
            named |= {f"evaluation set {name!r}": dataset for name, dataset in eval_dataset.items()}
        else:
            named["evaluation set"] = eval_dataset
        for name, dataset in named.items():
            if dataset is not None and has_length(dataset) and not isinstance(dataset, IterableDataset):
                self._read_prompt.check(dataset, name)

    def _build_reward_source(self, reward_model: Any) -> Any:
        return build_reward_source(reward_model, policy_tokenizer=self._tokenizer)

    def _initial_reward_weights(self, args: PPOConfig) -> torch.Tensor:
        names = self.reward_func_names
        weights = [1.0] * len(names) if args.reward_weights is None else args.reward_weights
        if len(weights) != len(names):
            raise ValueError(
                f"reward_weights has {len(weights)} entries, but there are {len(names)} rewards: {names}."
            )
        return torch.tensor(weights, dtype=torch.float32)

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

        Args:
            model (`torch.nn.Module`): the wrapped root module.
            inputs (`list[dict]` or `dict`): rows of one micro-batch.
            num_items_in_batch: unused; losses are divided by tokens of replies, which do not exist yet.

        Returns:
            `torch.Tensor`: loss, 0 while collecting.
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
        if self._sample_generation_is_due():
            self.generate_completions(sampling=True)

        rollout = self._rollout(rows)
        self._score(rollout)
        rewards, channel_weights = self._aggregate(rollout)
        self._advantages(rollout, rewards, channel_weights)
        loss = self._optimise(rollout)
        self._log_rollout(rollout)
        if self.args.log_completions:
            self._completions = self._completion_columns(rollout)
        return loss

    # ---------------------------------------------------------------------------------------------------- 1 rollout
    def _rollout(self, rows: list[Row]) -> Rollout:
        """Sample a reply to each prompt, and pass prompts and replies through policy, critic and reference."""
        rollout = self._sample(rows, "rollout", self.state.global_step)
        self._forward_rollout(rollout)
        return rollout

    def _sample(self, rows: list[Row], *stream: int | str) -> Rollout:
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
            replies = sample_completions(
                model,
                prompt_ids,
                self.generation_config,
                self.pad_token_id,
                self.stop_token_ids,
                self.args.local_rollout_forward_batch_size,
            )
        return Rollout.build(
            rows, prompt_ids, replies, self._tokenizer, self.pad_token_id, device=self.accelerator.device
        )

    @torch.no_grad()
    def _forward_rollout(self, rollout: Rollout) -> None:
        """Log-probabilities under policy and reference, values, entropy and KL."""
        size = self.args.local_rollout_forward_batch_size
        model = self.model_wrapped
        training = model.training
        model.eval()
        with self.accelerator.autocast():
            rollout.logprobs, rollout.entropy, rollout.values = rollout.map_rows(
                lambda batch: self._forward(model, batch, with_entropy=True), size
            )
            if self.reference is not None:
                results = rollout.map_rows(lambda batch: self._reference_forward(self.reference, batch), size)
            else:
                with self._root.reference_mode(self._reference_adapter):
                    results = rollout.map_rows(lambda batch: self._reference_forward(model, batch), size)
        model.train(training)
        rollout.ref_logprobs = results[0]
        rollout.kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, self.args.kl_estimator)

    def _reference_forward(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        return self._forward(model, batch, with_values=False)[:1]

    def _forward(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], **options: bool) -> tuple:
        names = ("input_ids", "attention_mask", "completion_mask", "completion_ids")
        inputs = {name: batch[name] for name in names}
        return model(**inputs, temperature=self.args.temperature, **options)

    @property
    def _root(self) -> PolicyWithCritic:
        return self.accelerator.unwrap_model(self.model)

    @property
    def policy_model(self) -> PreTrainedModel | PeftModel:
        """The policy without its critic."""
        return self._root.policy

    # ----------------------------------------------------------------------------------------------------- 2 rewards
    def _score(self, rollout: Rollout) -> None:
        """Rewards of all ranks through the seam, and this rank's rows back."""
        counts = rows_per_rank(self.accelerator, len(rollout))
        rewards_global = self._calculate_rewards(
            rollout.inputs, rollout.prompts, rollout.completions, rollout.completion_ids
        )
        rollout.scores = rewards_global[local_slice(self.accelerator, counts)].to(rollout.input_ids.device)
        if self._host_logs_component_rewards:
            for name, column in zip(self.reward_func_names, rewards_global.T, strict=True):
                self._metrics["train"][f"rewards/{name}/mean"].append(column.nanmean().item())

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
        """
        if inputs:
            rewards_local = self.reward_source(self._reward_batch(inputs, prompts, completions, completion_ids_list))
        else:
            rewards_local = torch.zeros(0, len(self.reward_func_names))
        return gather_rows(self.accelerator, rewards_local.to(self.accelerator.device, torch.float32))

    @staticmethod
    def _reward_batch(
        inputs: list[Row], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> RewardBatch:
        names = dict.fromkeys(name for row in inputs for name in row if name not in PROMPT_COLUMNS)
        return RewardBatch(
            prompts=prompts,
            completions=completions,
            prompt_ids=[row["prompt_ids"] for row in inputs],
            completion_ids=completion_ids_list,
            finished=[row["finished"] for row in inputs],
            columns={name: [row.get(name) for row in inputs] for name in names},
        )

    def _settle_scores(self, rollout: Rollout, weights: torch.Tensor) -> None:
        """Penalties, and rows that a component of weight could not score."""
        unscored = rollout.scores[:, weights != 0].isnan().any(1)
        if unscored.any():
            warnings.warn(
                f"{int(unscored.sum())} of {len(rollout)} replies have no score (NaN) and are left out of the loss.",
                stacklevel=2,
            )
        rollout.loss_mask &= ~unscored.unsqueeze(1)
        rollout.scores = rollout.scores.nan_to_num(nan=0.0)
        if self.args.missing_eos_penalty is not None:
            rollout.scores = rollout.scores - self.args.missing_eos_penalty * (~rollout.finished).unsqueeze(1)
        if self.args.mask_truncated_completions:
            rollout.loss_mask &= rollout.finished.unsqueeze(1)

    def _aggregate(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards per token and channel `(B, T, C)`, and what each channel counts `(C,)`."""
        weights = self.reward_weights.to(rollout.scores)
        self._settle_scores(rollout, weights)
        terminal = place_terminal_rewards(rollout.scores, rollout.completion_mask)
        if self.scalar_critic:
            rewards = (terminal @ weights - self.kl_coef * rollout.kl).unsqueeze(-1)
            channel_weights = torch.ones_like(weights[:1])
        else:
            rewards = torch.cat([terminal, -rollout.kl.unsqueeze(-1)], dim=-1)
            channel_weights = torch.cat([weights, weights.new_tensor([self.kl_coef])])
        if self.args.whiten_rewards:
            rewards = self._whiten_channels(rewards, channel_weights, rollout.loss_mask)
        return rewards, channel_weights

    def _whiten_channels(
        self, rewards: torch.Tensor, channel_weights: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Scale all channels by the deviation of their weighted sum, each around its own mean: the weighted sum of the
        result is the whitened weighted sum, whatever the number of channels."""
        _, var = self._global_mean_var(combine_advantages(rewards, channel_weights), mask)
        means = [self._global_mean_var(channel, mask)[0] for channel in rewards.unbind(-1)]
        channels = [whiten(c, mask, m, var, shift_mean=False) for c, m in zip(rewards.unbind(-1), means, strict=True)]
        return torch.stack(channels, dim=-1)

    def _global_mean_var(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return moments_to_mean_var(sum_over_ranks(self.accelerator, masked_moments(values, mask)))

    def _advantages(self, rollout: Rollout, rewards: torch.Tensor, channel_weights: torch.Tensor) -> None:
        """Advantages per channel, weighted, then whitened over all ranks; logs how much of the returns the critic
        foresaw."""
        advantages, rollout.returns = generalized_advantage_estimate(
            rewards, rollout.values, rollout.completion_mask, self.args.gamma, self.args.lam
        )
        combined = combine_advantages(advantages, channel_weights)
        mean, var = self._global_mean_var(combined, rollout.loss_mask)
        rollout.advantages = whiten(combined, rollout.loss_mask, mean, var)
        returns = combine_advantages(rollout.returns, channel_weights)
        _, spread = self._global_mean_var(returns, rollout.loss_mask)
        self._metrics["train"]["val/explained_variance"].append((1 - var / spread).item() if spread > 0 else math.nan)

    # ------------------------------------------------------------------------------------------------ 3 optimisation
    def _optimise(self, rollout: Rollout) -> torch.Tensor:
        """Optimizer steps on a rollout. The gradients of the last one are left for the loop to clip and apply."""
        plan = self._minibatches(len(rollout))
        counts = torch.stack([rollout.loss_mask[rows].sum() for rows in plan])
        tokens = sum_over_ranks(self.accelerator, counts).clamp(min=1)
        statistics = []
        for number, (rows, num_tokens) in enumerate(zip(plan, tokens.tolist(), strict=True)):
            statistics.append(self._backward_minibatch(rollout, rows, num_tokens))
            if number == len(plan) - 1 or self._beyond_target_kl(statistics[-1], num_tokens):
                break
            if self.args.max_grad_norm > 0:
                self.accelerator.clip_grad_norm_(self.model_wrapped.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            self.model_wrapped.zero_grad()
        means = sum_over_ranks(self.accelerator, torch.stack(statistics)) / tokens[: len(statistics), None]
        self._log_losses(means)
        return (means[:, 0] + self.args.vf_coef * means[:, 1]).mean()

    def _minibatches(self, num_rows: int) -> list[list[int]]:
        """Rows of each optimizer step: a new permutation for every epoch."""
        plan = []
        for epoch in range(self.args.num_ppo_epochs):
            names = (self.args.seed, "minibatches", self.state.global_step, epoch, self.accelerator.process_index)
            order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(stream_seed(*names)))
            plan.extend(rows.tolist() for rows in order.tensor_split(self.args.num_mini_batches))
        return plan

    def _backward_minibatch(self, rollout: Rollout, rows: list[int], num_tokens: int) -> torch.Tensor:
        """Gradients of one minibatch, summed over its micro-batches; sums of its statistics on this rank."""
        size = self.args.per_device_train_batch_size
        rows = rollout.by_length(rows)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        # DDP, FSDP and DeepSpeed average over ranks what we want the sum of.
        scale = self.accelerator.num_processes / num_tokens
        total = torch.zeros(len(LOSS_STATISTICS), device=self.accelerator.device)
        for part in parts:
            with accumulate(self.accelerator, self.model_wrapped, is_last=part is parts[-1]):
                batch = rollout.micro_batch(part)
                logprobs, _, values = self._forward(self.model_wrapped, batch)
                loss, statistics = self._ppo_loss(logprobs, values, batch)
                backward(self.accelerator, loss * scale)
            total += statistics
        return total

    def _ppo_loss(
        self, logprobs: torch.Tensor, values: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and [`LOSS_STATISTICS`] of a micro-batch, both summed over its tokens."""
        mask = batch["loss_mask"]
        policy_losses, policy_clipped = policy_loss_terms(
            logprobs, batch["logprobs"], batch["advantages"], mask, self.args.cliprange
        )
        value_losses, value_clipped = value_loss_terms(
            values, batch["values"], batch["returns"], mask, self.args.cliprange_value
        )
        loss = policy_losses.sum() + self.args.vf_coef * value_losses.sum()
        with torch.no_grad():
            change = (logprobs - batch["logprobs"])[mask]
            statistics = [policy_losses, value_losses, 0.5 * change.square(), policy_clipped]
            statistics += [value_clipped.float().mean(-1), change.exp()]
            return loss, torch.stack([terms.sum().float() for terms in statistics])

    def _beyond_target_kl(self, statistics: torch.Tensor, num_tokens: int) -> bool:
        if self.args.target_kl is None:
            return False
        approxkl = sum_over_ranks(self.accelerator, statistics)[LOSS_STATISTICS.index("policy/approxkl_avg")]
        return approxkl.item() / num_tokens > self.args.target_kl


def _leave_rows(rows: list[Row]) -> list[Row]:
    return rows
