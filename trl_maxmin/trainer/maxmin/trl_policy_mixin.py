# SPDX-License-Identifier: Apache-2.0
"""MaxMin on top of TRL's GRPO and RLOO: rewards in, reference replies for calibration, raw rewards in the logs."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig
from transformers.trainer_utils import has_length
from trl.data_utils import is_conversational

from ..._compat import unwrap_model_for_generation, use_adapter
from ...data.tokenization import stop_tokens
from ...models.base import base_model
from ...models.loading import load_config, refuse_remote_code
from ...models.lora import freeze_reward_adapters
from ..common.generation_backends import sample_replies
from ..common.sampling import cut_at_stop, seeded
from ..common.trained import check_trained
from ..ppo.randomness import switch_off
from ..scoring.callables import RewardCallables
from ..scoring.reference_statistics import ReferenceStatistics, prompt_key
from ..scoring.sources import models_of
from .calibration import ReferenceReplies
from .host_evaluation import TOKEN_LOSSES, HostEvaluation, masked_std
from .host_policy import count_real_positions, kept_policy
from .maxmin_mixin import MaxMinMixin
from .welfare import check_welfare


# TRL's name of the copy of an adapter that was trained before.
TRL_REFERENCE_ADAPTER = "ref"


class TRLPolicyMixin(MaxMinMixin):
    """Put before TRL's `GRPOTrainer` or `RLOOTrainer`; of the algorithm only `_calculate_rewards` is touched.

    The constructor takes what the host's takes, and three things more: rewards may be a [`MixtureRewardModel`] or a
    dict by group (see [`RewardCallables`]), `welfare_function` is a rule of the user's own, and
    `reference_statistics` are those of an earlier run.

    Calibration happens when the rewards of the first rollout are known, before anything is learned from them.
    """

    _config_class: type
    _host_logs_component_rewards = True
    # Of the prompts that were tokenised last, until their rewards are asked for.
    _prompt_ids: list[list[int]] | None = None
    # Set while the host generates reference replies: what its seam saw.
    _recorded: list[tuple[list, list, list, torch.Tensor]] | None = None
    # Set while the host evaluates, and its last log-probabilities and entropies.
    _evaluation: HostEvaluation | None = None
    _last_pass: tuple | None = None
    # Whether the host takes the KL off the reward of a reply.
    _kl_in_reward = False

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        *,
        welfare_function: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reference_statistics: ReferenceStatistics | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else base_model(model).config.name_or_path or "policy"
            args = self._config_class(f"{name.rstrip('/').split('/')[-1]}-{self._name}")
        if not isinstance(args, self._config_class):
            raise TypeError(
                f"`args` is a {type(args).__name__}, but {type(self).__name__} needs a {self._config_class.__name__}: "
                "it has the same fields, and those that say whom the policy serves."
            )
        refuse_remote_code(getattr(args, "trust_remote_code", False), "`args`")
        rewards = None
        if reward_funcs is not None and reward_funcs != []:
            rewards = RewardCallables(reward_funcs, reward_processing_classes)
            check_welfare(args, rewards.names, rewards.mixing_weights, welfare_function is not None)
        elif not kwargs.get("environment_factory"):
            raise ValueError(
                "`reward_funcs` is empty; pass a `MixtureRewardModel`, or a list or a dict of one reward a group."
            )
        if isinstance(model, str):
            load_config(model, "`model`")
        elif isinstance(model, torch.nn.Module):
            freeze_reward_adapters(model)
        super().__init__(
            model=model,
            reward_funcs=[] if rewards is None else list(rewards.functions),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        self._stop_at_turns(train_dataset)
        for policy in filter(None, (self.accelerator.unwrap_model(self.model), self.ref_model)):
            count_real_positions(policy)
            if self.args.disable_dropout:
                switch_off(policy)
        mixing_weights = None
        if rewards is not None:
            rewards.bind(self._tokenizer, self.accelerator, getattr(args, "chat_template_kwargs", None))
            # An environment of TRL may have added a reward of its own behind ours.
            self.reward_func_names[: len(rewards.names)] = rewards.names
            mixing_weights = rewards.mixing_weights
        models = [model for shared in (rewards.shared if rewards else ()) for model in models_of(shared.source)]
        check_trained(args, self.accelerator.unwrap_model(self.model), self.ref_model, None, models, "`reward_funcs`")
        self._component_metrics: dict[str, dict[str, list[float]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        source = None if rewards is None else rewards.source
        self._init_maxmin(mixing_weights, welfare_function, reference_statistics, source)

    def _stop_at_turns(self, train_dataset: Any) -> None:
        """Tokens that end a reply: the policy's, and the tokenizer's. In a conversation the one that closes a turn
        ends it, too: reward training ends there, and so will whoever uses the policy, whose generation configuration
        gets it."""
        row = next(iter(train_dataset), None) if train_dataset is not None else None
        conversational = row is not None and is_conversational({"prompt": row.get("prompt", "")})
        policy = base_model(self.accelerator.unwrap_model(self.model))
        own = policy.generation_config.eos_token_id
        own = [] if own is None else [own] if isinstance(own, int) else list(own)
        eos = self._tokenizer.eos_token_id
        own = own if eos is None or eos in own else [eos, *own]
        self.stop_token_ids = stop_tokens(self._tokenizer, own or None, conversational)
        # TRL before 1.13 knows the tokenizer's EOS alone, and takes what ends otherwise for cut off.
        counts_all = hasattr(self, "eos_token_ids")
        if not counts_all and self.args.mask_truncated_completions and set(self.stop_token_ids) - {eos}:
            raise ValueError(
                f"`mask_truncated_completions` is set, and a reply may end with any of {self.stop_token_ids}, but "
                f"this release of TRL counts only replies that end with {eos} as finished and would leave the others "
                "out of the loss. Update TRL, or leave `mask_truncated_completions` out."
            )
        self.eos_token_ids = list(self.stop_token_ids)
        if hasattr(self, "generation_kwargs"):
            self.generation_kwargs["eos_token_id"] = list(self.stop_token_ids)
            self.generation_config.eos_token_id = list(self.stop_token_ids)
        if set(self.stop_token_ids) - {eos}:
            policy.generation_config.eos_token_id = list(self.stop_token_ids)

    # -- the seam -----------------------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list) -> tuple:
        tokenized = super()._tokenize_prompts(prompts)
        self._prompt_ids = tokenized[0]
        return tokenized

    def _generate_single_turn(self, prompt_ids: list, *args: Any, **kwargs: Any) -> Any:
        with kept_policy(self.accelerator.unwrap_model(self.model)):
            found = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        # RLOO's replies come alone, GRPO's with the log-probabilities of vLLM or `None`.
        alone = not isinstance(found, tuple)
        replies, logprobs = (found, None) if alone else found
        # Where the host stops at several tokens but cuts at the tokenizer's alone, padding follows the others.
        replies = [cut_at_stop(list(ids), self.stop_token_ids)[0] for ids in replies]
        if logprobs is not None:
            logprobs = [own[: len(ids)] for own, ids in zip(logprobs, replies, strict=True)]
        return replies if alone else (replies, logprobs)

    def _raw_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> torch.Tensor:
        """As the host, which hands rewards what it finds in the rows: the prompt's ids that the policy was given, and
        whether a reply finished, as PPO's rewards are told."""
        prompt_ids, self._prompt_ids = self._prompt_ids, None
        if prompt_ids is None or len(prompt_ids) != len(prompts):  # a `rollout_func` makes its own
            prompt_ids = super()._tokenize_prompts(prompts)[0]
        finished = [bool(ids) and ids[-1] in self.stop_token_ids for ids in completion_ids_list]
        inputs = [
            {**row, "prompt_ids": ids, "finished": done}
            for row, ids, done in zip(inputs, prompt_ids, finished, strict=True)
        ]
        return super()._raw_rewards(inputs, prompts, completions, completion_ids_list)

    def _calculate_rewards(
        self, inputs: list, prompts: list, completions: list, completion_ids_list: list
    ) -> torch.Tensor:
        if self._recorded is None:
            if self._evaluation is not None:
                # The pass before the rewards is the reference's.
                self._evaluation.reference = self._last_pass[0] if self.beta and self._last_pass else None
                finished = [cut_at_stop(ids[-1:], self.stop_token_ids)[1] for ids in completion_ids_list]
                self._evaluation.add_replies([len(ids) for ids in completion_ids_list], finished)
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards = self._raw_rewards(inputs, prompts, completions, completion_ids_list)
        self._recorded.append((inputs, prompts, completion_ids_list, rewards))
        return rewards

    # -- calibration --------------------------------------------------------------------------------------------------

    def _row_key(self, row: dict[str, Any]) -> str:
        prompt, images = row.get("prompt", ""), row.get("images") or [row.get("image")]
        seen = [hashlib.sha256(image.tobytes()).hexdigest() for image in images if hasattr(image, "tobytes")]
        return prompt_key([prompt, *seen] if seen else prompt)

    @property
    def _host_generates(self) -> bool:
        """Whether a reply is more than what a language model samples behind a prompt."""
        names = ("tools", "rollout_func", "environment_factories", "_is_vlm")
        return any(getattr(self, name, None) for name in names)

    @torch.no_grad()
    def _sample_reference(self, rows: list[dict[str, Any]]) -> ReferenceReplies:
        if self._host_generates:
            return self._record_reference(rows)
        prompts = [row["prompt"] for row in rows]
        prompt_ids = super()._tokenize_prompts(prompts)[0]
        with (
            self._reference_policy() as policy,
            unwrap_model_for_generation(
                policy, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as model,
            seeded(self.accelerator.device, self.args.seed, "calibration", self.accelerator.process_index),
            self.accelerator.autocast(),
        ):
            replies = sample_replies(
                model,
                prompt_ids,
                self._reference_generation_config(),
                self._tokenizer.pad_token_id,
                self.stop_token_ids,
                self.args.per_device_train_batch_size * self.args.steps_per_generation,
                self.args.generation_backend,
            )
        ids = [reply for reply, _ in replies]
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        if is_conversational({"prompt": prompts[0]}):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        finished = torch.tensor([ended for _, ended in replies])
        return ReferenceReplies(rows, prompts, texts, ids, finished)

    def _reference_generation_config(self) -> GenerationConfig:
        """How TRL samples training replies, whoever generates them (vLLM too)."""
        args = self.args
        settings = {
            "do_sample": True,
            "max_new_tokens": args.max_completion_length,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k,
            "min_p": args.min_p,
            "repetition_penalty": args.repetition_penalty,
        }
        return GenerationConfig(**settings | ({} if args.use_vllm else args.generation_kwargs or {}))

    @contextmanager
    def _reference_policy(self) -> Iterator[torch.nn.Module]:
        """The reference model, or the policy with its adapters set back."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        policy = self.accelerator.unwrap_model(self.model)
        if not isinstance(policy, PeftModel):
            self._require_start("a policy without a reference model (`beta=0`)")
            yield self.model_wrapped
            return
        with use_adapter(policy, TRL_REFERENCE_ADAPTER if TRL_REFERENCE_ADAPTER in policy.peft_config else None):
            yield self.model_wrapped

    def _require_start(self, what: str) -> None:
        if self.state.global_step > 0:
            raise ValueError(
                f"Utilities cannot be calibrated at step {self.state.global_step} for {what}: the reference policy "
                "is gone. Pass `reference_statistics` of the run's start (its checkpoints have them), or set "
                "`utility='raw'`."
            )

    def _record_reference(self, rows: list[dict[str, Any]]) -> ReferenceReplies:
        """Replies as the host makes them, tools, images and environments included; the policy is the reference."""
        self._require_start("a policy that calls tools, sees images or acts in an environment")
        training, logs, metrics = self.model.training, self._logs, self._metrics["eval"]
        pending = self._pending_metrics, self._pending_extra_logs
        # The host wants whole groups of replies; what fills up the last one is dropped below.
        group, count = self.num_generations_eval, len(rows)
        rows = rows + [rows[-1]] * (-count % group)
        size = self.args.per_device_train_batch_size * self.args.steps_per_generation
        size = max(size // group, 1) * group
        self._recorded, self._metrics["eval"] = [], defaultdict(list)
        self._logs = {
            name: defaultdict(list) if isinstance(value, defaultdict) else [] for name, value in logs.items()
        }
        self._pending_metrics, self._pending_extra_logs = defaultdict(list), defaultdict(list)
        self.model.eval()
        try:
            with seeded(self.accelerator.device, self.args.seed, "calibration", self.accelerator.process_index):
                for start in range(0, len(rows), size):
                    self._generate_and_score_completions([dict(row) for row in rows[start : start + size]])
            recorded = self._recorded
        finally:
            self._recorded, self._metrics["eval"], self._logs = None, metrics, logs
            self._pending_metrics, self._pending_extra_logs = pending
            self.model.train(training)
        ids = [reply for _, _, replies, _ in recorded for reply in replies][:count]
        local = [
            rewards[self.accelerator.process_index * len(prompts) :][: len(prompts)]
            for _, prompts, _, rewards in recorded
        ]
        return ReferenceReplies(
            inputs=rows[:count],
            prompts=[prompt for _, prompts, _, _ in recorded for prompt in prompts][:count],
            completions=ids,
            completion_ids=ids,
            finished=torch.tensor([cut_at_stop(reply[-1:], self.stop_token_ids)[1] for reply in ids]),
            rewards=torch.cat(local)[:count],
        )

    def _score_reference(self, replies: ReferenceReplies) -> torch.Tensor:
        if replies.rewards is not None:
            return replies.rewards
        pending = self._pending_metrics, self._pending_extra_logs
        self._pending_metrics, self._pending_extra_logs = defaultdict(list), defaultdict(list)
        size = self.args.per_device_train_batch_size * self.args.steps_per_generation
        rank, columns = self.accelerator.process_index, []
        try:
            for start in range(0, len(replies.inputs), size):
                rows = slice(start, start + size)
                parts = replies.inputs[rows], replies.prompts[rows], replies.completions[rows]
                gathered = self._raw_rewards(*parts, replies.completion_ids[rows])
                columns.append(gathered[rank * len(parts[0]) : (rank + 1) * len(parts[0])])
        finally:
            self._pending_metrics, self._pending_extra_logs = pending
        return torch.cat(columns)

    def _reference_parameters(self) -> list[tuple[str, torch.Tensor]]:
        if self.ref_model is not None:
            return list(self.accelerator.unwrap_model(self.ref_model).named_parameters())
        policy = self.accelerator.unwrap_model(self.model)
        named = list(policy.named_parameters())
        if not isinstance(policy, PeftModel):
            return named
        keep = f".{TRL_REFERENCE_ADAPTER}."
        return [(name, p) for name, p in named if "lora_" not in name or keep in name]

    # -- metrics ------------------------------------------------------------------------------------------------------

    def _log_welfare(self, mode: str, rewards: torch.Tensor, utilities: torch.Tensor, optimised: torch.Tensor) -> None:
        if self._evaluation is not None:
            self._evaluation.add_rewards(rewards=rewards, utilities=utilities, optimised=optimised)
            return
        super()._log_welfare(mode, rewards, utilities, optimised)
        values = rewards.detach().cpu().double()
        means, stds = values.nanmean(dim=0).tolist(), masked_std(values).nan_to_num(0.0).tolist()
        for name, mean, std in zip(self.component_names, means, stds, strict=True):
            if mean == mean:
                self._component_metrics[mode][f"rewards/{name}/mean"].append(mean)
                self._component_metrics[mode][f"rewards/{name}/std"].append(std)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the host's; `rewards/<component>/mean` and `/std` are those of the rewards, as in every MaxMin trainer,
        where TRL would log what it optimises."""
        mode = "train" if self.model.training else "eval"
        if self._metrics[mode]:
            self._metrics[mode].update(self._component_metrics[mode])
            self._component_metrics[mode].clear()
        super().log(logs, start_time)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As the host's; every metric is one of the whole set, see [`HostEvaluation`], and is named after it. Weights
        and random state stay as they are, and each evaluation draws from the same stream."""
        rows = len(dataloader.dataset) if has_length(dataloader.dataset) else math.inf
        self._evaluation = evaluation = HostEvaluation(
            self.accelerator,
            rows * self.num_generations_eval,
            self.num_generations_eval,
            token_loss=getattr(self, "loss_type", None) in TOKEN_LOSSES,
            kl_in_reward=self._kl_in_reward,
        )
        try:
            with seeded(self.accelerator.device, self.args.seed, "evaluation", self.accelerator.process_index):
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
            metrics = evaluation.of_batches(self._metrics["eval"]) | {"loss": evaluation.loss()}
            own_lengths = not self._host_generates
            metrics |= evaluation.metrics(self.reward_func_names, self.reward_weights, self.beta, own_lengths)
            metrics |= self.welfare.metrics(evaluation.column("utilities").nanmean(0))
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        finally:
            self._evaluation = self._last_pass = None
            self._metrics["eval"].clear()
        return output

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._evaluation is not None:
            self._last_pass = found
        return found

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """As the host's; in an evaluation rows that only fill up a batch count for nothing."""
        evaluation = self._evaluation
        if evaluation is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs, self._last_pass = evaluation.without_repetitions(inputs), None
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        evaluation.add_loss(loss.detach(), inputs, self._last_pass and self._last_pass[:2])
        return loss
