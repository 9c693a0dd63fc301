# SPDX-License-Identifier: Apache-2.0
"""DPO for the worst-off group."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import DPOTrainer

from ...distributed import gather_evaluated, sum_over_ranks
from ...functional.group_loss import group_sums, row_factors, small_group_offset
from ...models.base import base_model
from ...models.loading import load_config, refuse_remote_code
from ...models.lora import freeze_reward_adapters
from ..common.atomic_checkpoint import AtomicCheckpointMixin
from ..common.trained import check_trained
from ..maxmin.welfare import Welfare, WelfareState, check_welfare, groups_with_evidence
from .groups import RESPONSIBILITIES, Assignments, groups_of
from .maxmin_dpo_config import MaxMinDPOConfig
from .pairs import prepare_pairs, tokenize_pairs
from .row_losses import alone, replay, row_of, rows_multiplied


#: What is summed of each group's rows: by the names in TRL's metrics where TRL computes it.
LOSS, ACCURACY, MARGIN, COUNT = range(4)
#: What TRL's loss writes or reads of the trainer, and must not while it is asked of single rows.
TRL_STATE = ("accelerator", "aux_loss_enabled", "_metrics", "_total_train_tokens")


class MaxMinDPOTrainer(AtomicCheckpointMixin, DPOTrainer):
    r"""
    Trains one policy for the worst-off group from preferences alone: `min_pi max_k L_k(pi)`, with `L_k` the mean DPO
    loss of the pairs of group k, by TRL's DPO. No reward model is asked, and nothing is sampled.

    The loss of a batch is `sum_k w_k L_k`, estimated by rows that count `sum_k r_k w_k / s_k` each: r are a row's
    responsibilities, s the groups' shares of the data. After every optimizer step the losses of the groups, over all
    ranks and micro-batches, become the weights of the next step by the welfare rule; within a step they stay. With one
    group, or `welfare="mixing"`, this is TRL's DPO.

    Source: Algorithm 1 of [Group Robust Preference Optimization in Reward-free
    RLHF](https://arxiv.org/abs/2405.20304). Departs from the paper: weights move on the losses of the step before,
    averaged over `welfare_window` steps; a group may be a component that EM found, with posteriors; other welfare
    rules are offered beside its multiplicative one.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): the policy.
        ref_model (`PreTrainedModel`, *optional*): the reference; as in TRL, the policy's start by default.
        args ([`MaxMinDPOConfig`], *optional*): training arguments.
        train_dataset (`Dataset`): preferences as [`MixtureRewardTrainer`] takes them, rankings included, with the
            column of `args.group_column`, or with annotators.
        eval_dataset (`Dataset` or a dict of them, *optional*): likewise.
        assignments (*optional*): instead of `args.group_column`: a [`MixtureRewardModel`] or its folder, a JSON file
            of `trl-maxmin assign` or `reward`, or a dict from annotators to components.
        welfare_function (`Callable`, *optional*): a rule of your own, utilities `(K,)` (minus the losses) to weights
            `(K,)`, in place of `args.welfare`; its result is projected on the simplex.
        **kwargs: the other arguments of TRL's `DPOTrainer`.

    Attributes:
        welfare ([`Welfare`]): the rule at work.
        welfare_state ([`WelfareState`]): weights and averages, saved in every checkpoint.
        group_names (`list[str]`): K names.
        group_pairs (`torch.Tensor` of shape `(K,)`): float64, pairs of each group, responsibilities added up.

    Raises:
        ValueError: groups that are not known (see [`groups_of`]), data that are no preferences, a floor above 1 / K,
            `"regret"` without `best_utilities`, `"nash"` or `"pmean"` without `disagreement_point`; what TRL refuses.
        TypeError: `args` of another class.

    Metrics beside TRL's, over all ranks since the last log, and with `eval_` in an evaluation:

    | name | meaning |
    |---|---|
    | `maxmin/loss/<group>` | mean loss `L_k` |
    | `maxmin/accuracy/<group>` | share of pairs whose chosen reply has the larger implicit reward |
    | `maxmin/margin/<group>` | mean difference of the implicit rewards |
    | `maxmin/pairs/<group>` | pairs that this stands on |
    | `maxmin/utility/<group>` | minus loss and offset |
    | `maxmin/weight/<group>` | the weight in use |
    | `maxmin/worst_utility`, `maxmin/gap` | of the utilities |

    Example:

    ```python
    trainer = MaxMinDPOTrainer(
        model="Qwen/Qwen3-0.6B",
        args=MaxMinDPOConfig(output_dir="policy"),
        train_dataset=preferences,
        assignments="mixture",
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "dpo", "trl-maxmin", "maxmin-rlhf"]
    _name = "MaxMin-DPO"
    _paper = {"title": "Group Robust Preference Optimization in Reward-free RLHF", "id": "2405.20304"}

    def __init__(
        self,
        model: Any,
        ref_model: PreTrainedModel | None = None,
        args: MaxMinDPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        *,
        assignments: Assignments | None = None,
        welfare_function: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else base_model(model).config.name_or_path or "policy"
            args = MaxMinDPOConfig(f"{name.rstrip('/').split('/')[-1]}-{self._name}")
        if not isinstance(args, MaxMinDPOConfig):
            raise TypeError(
                f"`args` is a {type(args).__name__}, but MaxMinDPOTrainer needs a MaxMinDPOConfig: it has the same "
                "fields, and those that say whom the policy serves."
            )
        # 1. What cannot work, before weights are loaded.
        refuse_remote_code(args.trust_remote_code, "`args`")
        if train_dataset is None:
            raise ValueError("`train_dataset` is required: preferences with `chosen`, `rejected`, or rankings.")
        pairs = prepare_pairs(train_dataset, args)
        self._groups = groups_of(pairs, args, assignments)
        self._all_shares = self._groups.of(pairs).mean(0).tolist()  # of who is only evaluated, and not assigned
        rows = self._groups.rows(pairs)
        self._shares = torch.tensor(rows[RESPONSIBILITIES][:]).double().mean(0)
        _check(args, self.group_names, self._shares, welfare_function is not None)
        people = None
        if args.component is None and args.annotator_column in (train_dataset.column_names or ()):
            people = self._groups.annotators(pairs)
        self.reward_component = args.component
        if isinstance(model, str):
            load_config(model, "`model`")
        elif isinstance(model, torch.nn.Module):
            freeze_reward_adapters(model)
        # 2. The trainer of TRL, which calls `_prepare_dataset`.
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=rows,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        self.data_collator = CollatorWithResponsibilities(self.data_collator)
        check_trained(args, self.accelerator.unwrap_model(self.model), self.ref_model, None, [])
        # 3. The groups, of the rows that TRL kept.
        told = torch.tensor(self.train_dataset[RESPONSIBILITIES][:], dtype=torch.float64)
        self.group_pairs, self._shares = told.sum(0), told.mean(0)
        self._offset = small_group_offset(self.group_pairs, args.small_group_offset)
        self.welfare = Welfare(args, self.group_names, self._shares, welfare_function, self._with_evidence(people))
        self._step_sums = self._no_sums()
        self._log_sums = {"train": self._no_sums(), "eval": self._no_sums()}

    @property
    def group_names(self) -> list[str]:
        """K names, in the order of the weights."""
        return self._groups.served

    @property
    def welfare_state(self) -> WelfareState:
        """Weights and averages, saved in every checkpoint."""
        return self.welfare.state

    def _with_evidence(self, people: list[int] | None) -> torch.Tensor | None:
        pairs = [round(count) for count in self.group_pairs.tolist()]
        counted = SimpleNamespace(names=self.group_names, num_annotators=people, num_pairs=pairs, counts_missing=False)
        enough, there = groups_with_evidence(self.args, counted), self._shares > 0
        return enough & there if (enough & there).any() else there

    def _no_sums(self) -> torch.Tensor:
        return torch.zeros(len(self.group_names), COUNT + 1, dtype=torch.float64)

    # -- data ---------------------------------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if RESPONSIBILITIES not in (dataset.column_names or ()):  # of an evaluation
            dataset = self._groups.rows(prepare_pairs(dataset, args), self._all_shares)
        if "prompt_ids" in dataset.column_names:
            return dataset
        return tokenize_pairs(dataset, self._tokenizer, args, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if RESPONSIBILITIES not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, RESPONSIBILITIES]

    def compute_ref_log_probs(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
        """As TRL's, which hands the model whatever a batch has."""
        return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != RESPONSIBILITIES})

    # -- the loss -----------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, of which each row counts as its groups do."""
        inputs = dict(inputs)
        told = inputs.pop(RESPONSIBILITIES)
        if not self.precompute_ref_logps:
            references = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), references, strict=True))
        factors = row_factors(told, self.welfare.weights, self._shares)
        with self._references_given():
            with rows_multiplied(model, factors) as passed:
                found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            rows = self._rows_alone(inputs, passed[0])
        self._note(rows, told)
        loss = found[0] if return_outputs else found
        self._require_rows_of(loss, rows)
        loss = loss + ((factors - 1.0) * rows[:, LOSS]).mean()
        return (loss, found[1]) if return_outputs else loss

    @contextmanager
    def _references_given(self) -> Iterator[None]:
        """TRL reads the reference's log-probabilities from the batch."""
        before, self.precompute_ref_logps = self.precompute_ref_logps, True
        try:
            yield
        finally:
            self.precompute_ref_logps = before

    @torch.no_grad()
    def _rows_alone(self, inputs: dict[str, torch.Tensor], outputs: Any) -> torch.Tensor:
        """`(B, 3)`: loss, accuracy and margin of each pair, by TRL's loss of that pair alone."""
        mode, size, rows = "train" if self.model.training else "eval", len(inputs["input_ids"]) // 2, []
        kept = {name: getattr(self, name) for name in TRL_STATE}
        try:
            self.accelerator, self.aux_loss_enabled = alone(self.accelerator), False
            for row in range(size):
                self._metrics = {mode: defaultdict(list)}
                loss = super().compute_loss(replay(outputs, row, size), row_of(inputs, row, size))
                known = [self._metrics[mode][f"rewards/{name}"][0] for name in ("accuracies", "margins")]
                rows.append(torch.cat([loss.float().view(1), loss.new_tensor(known, dtype=torch.float)]))
        finally:
            for name, value in kept.items():
                setattr(self, name, value)
        return torch.stack(rows)

    def _require_rows_of(self, loss: torch.Tensor, rows: torch.Tensor) -> None:
        """A release of TRL that computes otherwise must not train in silence on something else.

        "sft" is a mean over the tokens of a batch; a loss of routers is no pair's.
        """
        if self.aux_loss_enabled or "sft" in self.loss_types:
            return
        plain = rows[:, LOSS].mean()
        if not torch.isclose(plain, loss.detach().float(), rtol=1e-2, atol=1e-3, equal_nan=True):
            raise RuntimeError(
                f"TRL's loss of a batch is {loss.item():.6g}, and that of its pairs {plain.item():.6g}: this release "
                "of TRL computes it in a way that MaxMinDPOTrainer does not know. Install a release that this "
                "package supports."
            )

    # -- from losses to weights ---------------------------------------------------------------------------------------

    def _note(self, rows: torch.Tensor, told: torch.Tensor) -> None:
        """Keep what a micro-batch of training, or a batch of an evaluation, says of the groups."""
        if self.model.training:
            self._step_sums += group_sums(rows, told).cpu()
            return
        size = rows.shape[1]
        everybody = gather_evaluated(self.accelerator, torch.cat([rows, told.to(rows)], dim=1))
        self._log_sums["eval"] += group_sums(everybody[:, :size], everybody[:, size:]).cpu()

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """As TRL's; the last micro-batch of an optimizer step decides the weights of the next."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            sums = sum_over_ranks(self.accelerator, self._step_sums)
            self._step_sums = self._no_sums()
            self._log_sums["train"] += sums
            self.welfare.update(self._with_absent(self._utilities(sums)))
        return loss

    def _utilities(self, sums: torch.Tensor) -> torch.Tensor:
        """`(K,)`: minus loss and offset; NaN for a group without rows."""
        return -(sums[:, LOSS] / sums[:, COUNT]) - self._offset

    def _with_absent(self, utilities: torch.Tensor) -> torch.Tensor:
        """A group of which this step had no rows keeps its average, or has that of the others before it was seen."""
        utilities = torch.where(utilities.isnan(), self.welfare_state.utility_average, utilities)
        return torch.where(utilities.isnan() & (self._shares > 0), utilities.nanmean(), utilities)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's, with what is known of each group since the last log."""
        if self.model.training and self._log_sums["train"][:, COUNT].sum() > 0:
            known = self._group_metrics(self._log_sums["train"])
            self._metrics["train"].update({name: [value] for name, value in known.items()})
            self._log_sums["train"] = self._no_sums()
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As TRL's, with what is known of each group of this set."""
        self._log_sums["eval"] = self._no_sums()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        known = self._group_metrics(self._log_sums["eval"])
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in known.items()})
        return output

    def _group_metrics(self, sums: torch.Tensor) -> dict[str, float]:
        metrics = self.welfare.metrics(self._utilities(sums))
        for column, name in ((LOSS, "loss"), (ACCURACY, "accuracy"), (MARGIN, "margin")):
            means = (sums[:, column] / sums[:, COUNT]).tolist()
            named = zip(self.group_names, means, strict=True)
            metrics |= {f"maxmin/{name}/{group}": mean for group, mean in named if not math.isnan(mean)}
        counts = zip(self.group_names, sums[:, COUNT].tolist(), strict=True)
        return metrics | {f"maxmin/pairs/{group}": count for group, count in counts}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_run_state(self, folder: Path) -> None:
        super()._save_run_state(folder)
        self.welfare.save(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.welfare.load(checkpoint)


class CollatorWithResponsibilities:
    """TRL's collator, whose batch also says of which group each pair is: `responsibilities` `(B, K)`.

    Args:
        collator (`Callable`): makes a batch of the other columns.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a list of examples into one batch."""
        return {**self.collator(examples), RESPONSIBILITIES: torch.tensor([e[RESPONSIBILITIES] for e in examples])}


def _check(args: MaxMinDPOConfig, names: list[str], shares: torch.Tensor, has_function: bool) -> None:
    check_welfare(args, names, shares, has_function)
    if has_function:
        return
    if args.welfare in ("nash", "pmean") and args.disagreement_point is None:
        raise ValueError(
            f"`welfare` is {args.welfare!r}, which counts gains, and the utility of a group is minus its loss: give "
            f"`disagreement_point`, for 'sigmoid' -0.6931 (minus log 2, the reference's) for each of {names}."
        )
    if args.welfare == "regret" and args.best_utilities is None:
        raise ValueError(
            "`welfare` is 'regret', and nobody says how small the loss of each group could be: give "
            f"`best_utilities`, minus the loss that each of {names} ends with (`maxmin/loss/<group>`) when DPO trains "
            "on its pairs alone."
        )
