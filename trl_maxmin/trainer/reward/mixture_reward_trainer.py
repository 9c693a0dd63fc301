# SPDX-License-Identifier: Apache-2.0
"""EM for a mixture of reward models, on top of TRL's reward trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftConfig
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import SaveStrategy, TrainOutput
from trl import RewardTrainer

from ... import distributed
from ...data.columns import (
    ANNOTATOR_COLUMN,
    VOTE_SHARE,
    AnnotatorIndex,
    known_groups,
    split_by_annotator,
    split_by_text,
)
from ...data.texts import number_values
from ...functional.em import annealed_beta
from ...functional.em_features import LinearMixture, fit_feature_mixture, fit_rewards
from ...functional.feature_pairs import FeaturePairs
from ...functional.feature_rankings import FeatureRankings
from ...functional.num_components import choose_components
from ...functional.preference import preference_accuracy, preference_log_likelihood
from ...functional.ranking import RankedChoices
from ...models import AnnotatorPosterior, MixtureRewardModel, MixtureRewardModelConfig
from ...models.base import context_length, place
from ..common.atomic_checkpoint import AtomicCheckpointMixin
from ..common.recording import component_heldout, reward_facts
from .annotated_preferences import (
    COLUMNS,
    DataCollatorForAnnotatedPreference,
    DataCollatorForAnnotatedRankings,
    choices_among,
    is_ranked,
    number_rows,
    numbers_of,
    prepare_rows,
    replies_of,
    require_embedded_tokens,
    score_pairs,
    score_rankings,
    tokenize_rows,
    within_length,
)
from .component_selection import ComponentSelection, parse_candidates
from .em_state import EMState
from .heads import fit_feature_map, fit_temperatures, set_heads
from .mixture_reward_config import MixtureRewardConfig
from .scored_rows import ScoredPairs, ScoredRankings
from .setup import build_mixture, require_effect, require_whole_weights
from .sureness import MIN_NEW_PAIRS, say_how_sure, scored_on_new_texts, scores_of_new_people, weigh_evidence
from .text_features import TextFeatures


logger = get_logger(__name__)

#: Standard deviation of a pair's log-odds under the prior, where nothing was fitted that could have chosen one.
PRIOR_WITHOUT_FIT = 3.0


class MixtureRewardTrainer(AtomicCheckpointMixin, RewardTrainer):
    r"""
    Learns K reward components from preferences with annotator ids, by EM over annotators.

    The E-step assigns whole annotators, never single pairs; the M-step is TRL's reward loss weighted by
    responsibility, by gradient steps in the one `train()` loop of transformers. Pairs are scored by the pass that is
    about to train on them, so that memorised pairs do not mislead the E-step.

    Source: Algorithm 2 of [MaxMin-RLHF](https://arxiv.org/abs/2402.08925). Departs from the paper: responsibilities
    are soft and annealed by default (`em="hard"` is the paper's), components share a trunk by default
    (`component_type="full"` is the paper's), many starts on the frozen trunk come first and the best of them goes on,
    its out-of-fold scores remaining half of the evidence, and an annotator's held-out pairs never take part in
    assigning them.

    Args:
        model ([`MixtureRewardModel`], `PreTrainedModel` or `str`): the mixture, or a base model for it.
        args ([`MixtureRewardConfig`], *optional*): training arguments.
        train_dataset (`Dataset`): `prompt`, `chosen`, `rejected` (text or messages), `annotator_id`, optionally
            `group` and `margin`, or `chosen_probability` without annotators; or rankings, with `responses` and
            `ranking` or `choice` instead of `chosen` and `rejected`. Rankings of two are trained as the pairs that
            they are; where the text says pairs, it holds for rankings as well.
        eval_dataset (`Dataset`, *optional*): other pairs of the same annotators. Without it `args.heldout_fraction` of
            each annotator's pairs are held out.
        processing_class (`PreTrainedTokenizerBase`, *optional*): tokenizer; defaults to the model's own.
        callbacks (`list[TrainerCallback]`, *optional*): as in transformers.
        optimizers (`tuple`, *optional*): as in transformers.
        peft_config (`LoraConfig`, *optional*): of the adapters, with `component_type="lora"`.

    Attributes:
        annotators ([`AnnotatorIndex`]): numbers of the annotators. Not saved with the model.
        em_state ([`EMState`]): responsibilities `(H, K)`, mixing weights `(K,)`.
        em_history (`list[dict]`): what each E-step gave: `step`, `em/lower_bound`, ...
        selection ([`ComponentSelection`] or `None`): the choice of K, where it was left to the data.
        final_facts (`dict`): what is known once training has ended: whether EM came to rest, held-out accuracies.

    Raises:
        ValueError: bad data (see [`prepare_preferences`]), more components than annotators, tokens that the base does
            not embed, nothing left after the length filter, settings that would have no effect, weights divided among
            the ranks (DeepSpeed ZeRO-3, FSDP).

    Example:

    ```python
    trainer = MixtureRewardTrainer(
        model="Qwen/Qwen3-0.6B",
        args=MixtureRewardConfig(num_components=2, output_dir="mixture"),
        train_dataset=load_dataset("json", data_files="preferences.jsonl", split="train"),
    )
    trainer.train()
    trainer.assignments()  # {annotator: component name}
    ```
    """

    _tag_names = ["trl", "reward-trainer", "trl-maxmin", "mixture-reward"]
    _name = "Mixture Reward"

    def __init__(
        self,
        model: MixtureRewardModel | PreTrainedModel | str,
        args: MixtureRewardConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        args = args if args is not None else MixtureRewardConfig("mixture-reward")
        if train_dataset is None:
            raise ValueError(
                "`train_dataset` is required: preference pairs with `chosen`, `rejected`, `annotator_id`, or rankings "
                "with `responses`, `ranking`, `annotator_id`."
            )
        # 1. What cannot work, or would be dropped, before any data are read or weights loaded.
        require_whole_weights(args)
        require_effect(args, model, eval_dataset)
        given = isinstance(model, MixtureRewardModel)
        # Candidate K where the data are to choose; the trainer starts with the largest of them.
        self._candidates = parse_candidates(args.select) if args.num_components == "auto" else None
        if given:
            num_components = model.num_components
        else:
            num_components = max(self._candidates) if self._candidates else args.num_components

        # 2. The data: checked, with groups that are known, and a part held out.
        train_dataset = prepare_rows(train_dataset, args.annotator_column, num_components)
        self._ranked = is_ranked(train_dataset)
        fewest = min(self._candidates) if self._candidates else num_components
        groups = known_groups(train_dataset, args.group_column, fewest)
        if eval_dataset is None:
            # A trained trunk knows the texts it was trained on; heads are refitted without them.
            split = split_by_text if args.train_trunk and args.calibrate_temperature else split_by_annotator
            train_dataset, eval_dataset = split(train_dataset, args.heldout_fraction, args.seed)
        else:
            eval_dataset = prepare_rows(eval_dataset, args.annotator_column, ranked=self._ranked)
        self.annotators = AnnotatorIndex.from_values(train_dataset[ANNOTATOR_COLUMN][:])

        # 3. The mixture.
        # Tokens that the base knows, before any are added to fit the tokenizer.
        embedded = 0 if isinstance(model, str) else model.get_input_embeddings().num_embeddings
        mixture = build_mixture(model, args, num_components, processing_class, peft_config)
        if isinstance(model, str):
            revision = (args.model_init_kwargs or {}).get("revision")
            base = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
            embedded = base.get_text_config().vocab_size
            args = copy.copy(args)
            args.model_init_kwargs = None  # they were for `build_mixture`; the caller's own stay as they are
        if groups:
            names = list(dict.fromkeys(groups.values()))
            rest = [f"component_{k}" for k in range(len(names), num_components)]
            mixture.config.component_names = names + rest

        # 4. The trainer of TRL, which calls `_prepare_dataset`.
        self._checked = True  # what `_prepare_dataset` gets until step 5 has passed `prepare_rows`
        self._context_length = context_length(mixture.config.base_config)  # a limit beside `max_length`
        self._num_embeddings = embedded
        collator = DataCollatorForAnnotatedRankings if self._ranked else DataCollatorForAnnotatedPreference
        super().__init__(
            model=mixture,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=mixture.processing_class,
            data_collator=collator(
                pad_token_id=mixture.processing_class.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of
            ),
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # 5. What EM keeps. It scores pairs before the loop of transformers begins, and between its steps.
        self._checked = False
        place(mixture, self.accelerator.device)
        self._features = TextFeatures(
            mixture, self.processing_class.pad_token_id, args.e_step_batch_size, self.accelerator
        )
        # Whether kernel features may go where linear heads do as well. A mixture that is given keeps the heads it has.
        self._choose_heads = args.kernel_features is None and not given
        self._known = None  # (H,): component of each annotator whose group is known, else -1
        if groups:
            number = {name: k for k, name in enumerate(mixture.component_names)}
            known = [number[groups[a]] if a in groups else -1 for a in self.annotators.annotator_ids]
            self._known = torch.tensor(known)
        self.selection: ComponentSelection | None = None
        self.em_history: list[dict[str, float]] = []
        self.fit_facts: dict[str, Any] = {}  # what the fit on features chose: the prior, and how its starts ended
        self._calibrated_on_new_texts = True  # or a temperature holds for known texts as well
        self.final_facts: dict[str, Any] = {}  # for the run record, once training has ended
        self.em_state = self._new_em_state()
        self._last_e_step: int | None = None  # the global step that the last E-step came before
        self._loss_scale: float | None = (
            None  # of a pair's loss in the present optimizer step, see `get_batch_samples`
        )
        # Metric -> [weighted sum, weight] since the last log: a mean of micro-batches' means would depend on them.
        self._sums: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self._counted: set[int] = set()  # pairs of the evaluation at work

    @property
    def mixture(self) -> MixtureRewardModel:
        """The model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    def _new_em_state(self) -> EMState:
        return EMState(
            torch.tensor(self.train_dataset["annotator_index"][:]),
            len(self.annotators),
            self.mixture.num_components,
            em=self.args.em,
            dirichlet_concentration=self.args.dirichlet_concentration,
            known=self._known,
        )

    # -- data ---------------------------------------------------------------------------------------------------------

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: MixtureRewardConfig,
        dataset_name: str,
    ) -> Dataset:
        if "pair_index" in dataset.column_names:
            return dataset
        if not self._checked:  # given to `evaluate`
            dataset = prepare_rows(dataset, args.annotator_column, ranked=self._ranked)
        dataset = tokenize_rows(dataset, processing_class, args.dataset_num_proc, dataset_name)
        require_embedded_tokens(dataset, processing_class, self._num_embeddings)
        limit = min(filter(None, (args.max_length, self._context_length)), default=None)
        dataset = within_length(dataset, limit, dataset_name)
        if dataset_name == "train":
            self.annotators = AnnotatorIndex.from_values(dataset[ANNOTATOR_COLUMN][:])
        return number_rows(dataset, self.annotators, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(COLUMNS)

    def feature_pairs(self, dataset: Dataset) -> FeaturePairs | FeatureRankings:
        """Pairs or rankings of a prepared data set over what heads read of its distinct texts, on the trunk as it is.

        Each text is encoded once for as long as the trunk stays as it is.

        Args:
            dataset (`Dataset`): as held in `train_dataset` or `eval_dataset`.

        Returns:
            [`FeaturePairs`] or [`FeatureRankings`] on the CPU. Annotators without training pairs have the index -1.
        """
        pairs = self._vector_pairs(dataset)
        features = self.mixture.map_features(pairs.features.to(self.accelerator.device)).cpu()
        return replace(pairs, features=features)

    def choose_feature_map(self) -> None:
        """Fit the kernel features of the heads to the texts, where there are some; where that is left to the trainer,
        only where they predict better. All ranks have to call it, before K is chosen."""
        pairs, seed = self._vector_pairs(self.train_dataset), self.args.seed
        fit_feature_map(self.mixture, pairs, len(self.annotators), seed, self._choose_heads, **self._fit_options())
        self._choose_heads = False

    def _vector_pairs(self, dataset: Dataset) -> FeaturePairs | FeatureRankings:
        """Likewise, before the nonlinear map of the heads where there is one."""
        if is_ranked(dataset):
            choices = choices_among(dataset, lambda texts: self._features.rows(texts)[0].tolist())
            return FeatureRankings(self._features.vectors, choices)
        chosen, rejected = self._features.rows(dataset["chosen_ids"][:], dataset["rejected_ids"][:])
        annotators = torch.tensor(dataset["annotator_index"][:])
        return FeaturePairs(self._features.vectors, chosen, rejected, annotators, *numbers_of(dataset))

    def share_features(self, other: MixtureRewardTrainer) -> None:
        """Take over what another run has encoded with the same base, pooling and tokenizer.

        Args:
            other ([`MixtureRewardTrainer`]): a trainer that has encoded its texts.

        Raises:
            ValueError: a trunk of other weights, as after training it, or another pooling.
        """
        self._features.share(other._features)

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; `True` resumes from the latest complete checkpoint of `args.output_dir`.

        Raises:
            ValueError: nothing to resume, a checkpoint of another trainer or of other data, or a frozen trunk.
        """
        if resume_from_checkpoint and not self.args.train_trunk:
            raise ValueError(
                f"resume_from_checkpoint={resume_from_checkpoint!r}: heads on a frozen trunk are fitted in one go, so "
                "there is nothing to resume. Leave it out."
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """EM from its start to its end; the loop of transformers is its M-steps, with E-steps in `training_step`."""
        self._last_e_step = None
        resume = kwargs.get("resume_from_checkpoint")
        if resume:
            self.em_state.load(resume)
            return self._train_trunk(*args, **kwargs)
        # What a mixture that was given had been calibrated to says nothing of the rewards that it will have.
        self.mixture.config.temperatures = [1.0] * self.mixture.num_components
        self.mixture.config.evidence_weight = 1.0
        self._calibrated_on_new_texts = True
        if not self.args.train_trunk:
            self.choose_feature_map()
        if self._candidates is not None:
            self._set_num_components(self.select_num_components(self._candidates).num_components)
        if not self.args.train_trunk:
            return self._train_heads()
        if self.mixture.num_components > 1 and self.args.n_init > 0:
            self._initialise()
        return self._train_trunk(*args, **kwargs)

    def _train_trunk(self, *args: Any, **kwargs: Any) -> TrainOutput:
        output = super()._inner_training_loop(*args, **kwargs)
        if self.mixture.num_components > 1:
            self.em_state.e_step(1.0)
            if not self.em_state.converged():
                logger.warning(
                    f"EM has not come to rest: the last E-step moved {self.em_state.changed:.0%} of the annotators to "
                    "another component. Train longer (max_steps), raise n_init, or try fewer components."
                )
        self._finish()
        return output

    def _train_heads(self) -> TrainOutput:
        """EM with the trunk frozen, without a gradient loop."""
        self.mixture.freeze_trunk()
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        fitted = self._fit_heads(num_steps=self.args.init_steps)
        self.em_history.append({"step": 0, "em/lower_bound": self.em_state.bound, "em/beta": 1.0})
        self._finish()
        metrics = {"train_loss": -fitted.score, "log_likelihood": fitted.score}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(0, -fitted.score, metrics)

    @property
    def _prior_scale(self) -> float:
        """Of the heads on the frozen trunk."""
        given = PRIOR_WITHOUT_FIT if self.args.prior_scale == "auto" else self.args.prior_scale
        return self.fit_facts.get("chosen_prior_scale", given)

    def _set_num_components(self, count: int) -> None:
        self.mixture.keep_components(count)
        self._candidates = None
        self.em_state = self._new_em_state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        if self._candidates is not None:
            # The interrupted run had chosen K already; weights of another K would not fit.
            config = MixtureRewardModelConfig.from_pretrained(resume_from_checkpoint)
            self._set_num_components(config.num_components)
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    # -- on the frozen trunk ------------------------------------------------------------------------------------------

    def _fit_options(self) -> dict[str, Any]:
        """What every fit on features takes from the arguments; hard E-steps only where no others follow."""
        args = self.args
        em = "soft" if args.train_trunk else args.em
        return {"prior_scale": args.prior_scale, "dirichlet_concentration": args.dirichlet_concentration, "em": em}

    def select_num_components(self, candidates: list[int]) -> ComponentSelection:
        """Cross-validate every candidate K on the training pairs, on the features of the trunk as it is.

        Args:
            candidates (`list[int]`): values of K.

        Returns:
            [`ComponentSelection`]; also kept as `self.selection`.

        Raises:
            ValueError: fewer annotators than the largest K, or than two.
        """
        if max(candidates) > len(self.annotators):
            raise ValueError(
                f"select={candidates} asks for up to {max(candidates)} components, but there are "
                f"{len(self.annotators)} annotators. Give smaller candidates."
            )
        pairs = self.feature_pairs(self.train_dataset)
        options = self._fit_options() | {"seed": self.args.seed, "num_init": 2 * max(self.args.n_init, 1)}
        choice = choose_components(pairs, len(self.annotators), candidates, known=self._known, **options)
        self.selection = ComponentSelection.of(choice)
        told = logger.warning if choice.verdict_kind == "cannot_tell" else logger.info
        told(self.selection.verdict())
        return self.selection

    def _fit_heads(self, num_steps: int) -> LinearMixture:
        """EM with the trunk frozen: heads, responsibilities and mixing weights."""
        state = self.em_state
        fitted = fit_feature_mixture(
            self.feature_pairs(self.train_dataset),
            len(self.annotators),
            self.mixture.num_components,
            generator=torch.Generator().manual_seed(self.args.seed),
            num_init=2 * max(self.args.n_init, 1),
            num_steps=num_steps,
            known=state.known,
            **self._fit_options(),
        )
        set_heads(self.mixture, fitted.weight)
        state.log_responsibilities, state.mixing_weights = fitted.log_responsibilities, fitted.mixing_weights
        state.record(torch.arange(len(fitted.scores)), fitted.scores)
        state.changed = 0.0
        self.fit_facts = {
            "chosen_prior_scale": fitted.prior_scale,
            "num_starts": fitted.num_starts,
            "num_partitions": fitted.num_partitions,
        }
        state.bound = fitted.score * len(fitted.scores) / len(self.annotators)
        return fitted

    def _initialise(self) -> None:
        """Starts on the frozen trunk; the best gives the first responsibilities, their heads and lasting evidence."""
        start = self._fit_heads(num_steps=self.args.init_steps)
        pairs, state = self.feature_pairs(self.train_dataset), self.em_state
        responsibilities = state.log_responsibilities.exp()[pairs.annotator_index]
        # With a wider prior than the start's: training goes on from here, and a small head holds it up.
        set_heads(self.mixture, fit_rewards(pairs, responsibilities))
        if self.args.e_step_scores == "cached":
            state.start_scores = start.scores.float()
        logger.info(f"Best of the starts: {start.score:.4f} nats a pair, out of fold.")

    # -- M-step -------------------------------------------------------------------------------------------------------

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        """The micro-batches of one optimizer step, whose loss is the mean over all pairs in them, on all ranks."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        count = torch.tensor(float(sum(len(batch["pair_index"]) for batch in batches)), device=self.accelerator.device)
        total = distributed.sum_over_ranks(self.accelerator, count).item()
        # transformers divides by the number of micro-batches, and gradients are averaged over the ranks.
        self._loss_scale = len(batches) * self.accelerator.num_processes / max(total, 1.0)
        return batches, num_items

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's reward loss, each component's part weighted by its responsibility for the annotator (the M-step)."""
        mode = "train" if self.model.training else "eval"
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        responsibilities = self._responsibilities(inputs["annotator_index"])
        read = _read_rankings if "responses" in inputs else _read_pairs
        log_likelihood, accuracy, of_mixture, twice_mean = read(output.rewards.float(), inputs, responsibilities)
        losses = -(responsibilities * log_likelihood).sum(-1)
        if self.args.center_rewards_coefficient is not None:
            losses = losses + self.args.center_rewards_coefficient * (twice_mean**2).mean(-1)
        scaled = mode == "train" and self._loss_scale is not None
        loss = losses.sum() * self._loss_scale if scaled else losses.mean()
        with torch.no_grad():
            packed = [log_likelihood, accuracy, responsibilities, of_mixture, losses.unsqueeze(-1)]
            packed = distributed.gather_rows(self.accelerator, torch.cat(packed, dim=-1))
            pairs = distributed.gather_rows(self.accelerator, inputs["pair_index"])
            if mode == "train":
                self.em_state.record(pairs, packed[:, : log_likelihood.shape[-1]])
            else:
                packed = packed[self._not_counted(pairs.tolist())]
            self._count(mode, packed)
        return (loss, output) if return_outputs else loss

    def _responsibilities(self, annotators: torch.Tensor) -> torch.Tensor:
        """`(B, K)` posterior, from their training pairs, of annotators by number; of who gave none (-1), the mixing
        weights."""
        known = self.em_state.responsibilities(annotators.clamp(min=0))
        return torch.where((annotators >= 0).unsqueeze(1), known, self.em_state.mixing_weights.to(known))

    def _not_counted(self, pairs: list[int]) -> list[int]:
        """Which rows of a batch the evaluation has not had: pairs from its beginning fill up the last batches, so that
        all ranks have as many."""
        first = {pair: row for row, pair in reversed(list(enumerate(pairs))) if pair not in self._counted}
        self._counted.update(first)
        return sorted(first.values())

    def _count(self, mode: str, packed: torch.Tensor) -> None:
        log_likelihood, accuracy, responsibilities = packed[:, :-3].chunk(3, dim=-1)
        predictive = (responsibilities.log() + log_likelihood).logsumexp(-1)
        sums = {"predictive_log_likelihood": predictive.sum(), "accuracy": packed[:, -3].sum()}
        if self._ranked:
            sums["kendall_tau"] = packed[:, -2].sum()
        if mode == "eval":
            sums["loss"] = packed[:, -1].sum()
        weights = dict.fromkeys(sums, torch.tensor(float(len(predictive))))
        for k, name in enumerate(self.mixture.component_names):
            sums[f"accuracy/{name}"] = (responsibilities[:, k] * accuracy[:, k]).sum()
            weights[f"accuracy/{name}"] = responsibilities[:, k].sum()
        for name, value in sums.items():
            entry = self._sums[mode].setdefault(name, [0.0, 0.0])
            entry[0] += value.item()
            entry[1] += weights[name].item()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL; what was measured on pairs is a mean over all pairs since the last log."""
        mode = "train" if self.model.training else "eval"
        self._metrics[mode].update({name: [mean] for name, mean in self._take_means(mode).items()})
        super().log(logs, start_time)

    def _take_means(self, mode: str) -> dict[str, float]:
        sums = dict(self._sums[mode])
        self._sums[mode].clear()
        return {name: total / weight for name, (total, weight) in sums.items() if weight > 0}

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As in transformers; every metric, the loss among them, is a mean over the pairs of the set, whatever its
        batches and ranks, and is named after the set."""
        self._sums["eval"].clear()
        self._counted.clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        means = self._take_means("eval")
        output.metrics.update({f"{metric_key_prefix}_{name}": mean for name, mean in means.items()})
        return output

    # -- E-step -------------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A part of the M-step; every `e_step_interval` optimizer steps an E-step comes before the first part."""
        step = self.state.global_step
        if step % self.args.e_step_interval == 0 and step != self._last_e_step:
            self._last_e_step = step
            self._e_step()
        return super().training_step(*args, **kwargs)

    def _e_step(self) -> None:
        if self.mixture.num_components == 1:
            return
        if self.args.e_step_scores == "fresh":
            scores = self._log_likelihood(self.train_dataset)
            self.em_state.record(torch.arange(len(scores)), scores)
        if self.em_state.scores.isnan().all():
            return
        result = self.em_state.e_step(self._beta())
        weights = self.em_state.mixing_weights.tolist()
        names = self.mixture.component_names
        result |= {f"em/mixing_weight/{name}": w for name, w in zip(names, weights, strict=True)}
        self.em_history.append({"step": self.state.global_step, **result})
        for name, value in result.items():
            self._metrics["train"][name].append(value)

    def _beta(self) -> float:
        steps = self.args.annealing_steps
        if steps is None:
            steps = max(self.state.max_steps // 4, 1)
        return annealed_beta(self.state.global_step, steps, self.args.annealing_start)

    # -- results ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Say whom EM found; save it; then calibrate and measure on held-out pairs, which cannot cost the fit."""
        mixture = self.mixture
        self._describe_components()
        found = len(mixture.described_components)
        if found < mixture.num_components:
            empty = [n for k, n in enumerate(mixture.component_names) if k not in mixture.described_components]
            logger.warning(
                f"{', '.join(empty)} describes no annotator: these preferences support {found} of "
                f"{mixture.num_components} components. A policy is trained for those that describe somebody; fit with "
                f"num_components={found} to be rid of the others."
            )
        self.final_facts = {"converged": self.em_state.converged() if mixture.num_components > 1 else None}
        saves = self.args.save_strategy != SaveStrategy.NO
        if saves:
            self.save_model(_internal_call=True)  # no push: the calibrated one follows
        measures = {
            "weight of the evidence": self._weigh_evidence,
            "calibration": self._calibrate_temperatures,
            "held-out figures": self._measure,
        }
        for title, measure in measures.items():
            try:
                measure()
            except Exception as error:
                # Broad on purpose: whatever it is, what was fitted matters more.
                logger.warning(
                    f"The {title} failed ({type(error).__name__}: {error}). The mixture is as it was fitted"
                    f"{f', and saved in {self.args.output_dir}' if saves else ''}; it can be used without.",
                    exc_info=True,
                )
        if saves:
            self.save_model(_internal_call=True)

    def _weigh_evidence(self) -> None:
        """How much each pair of an annotator says about who they are; posteriors follow."""
        if self.mixture.num_components == 1:
            return
        state, seed = self.em_state, self.args.seed
        if self.args.train_trunk:
            scores, texts = state.pair_scores(), self._text_numbers()
        else:
            pairs = self.feature_pairs(self.train_dataset)
            responsibilities = state.log_responsibilities.exp()[pairs.annotator_index]
            scores = scores_of_new_people(pairs, responsibilities, self._prior_scale, seed)
            texts = pairs.sides.unbind(1)
        found = weigh_evidence(scores, texts, state.annotator_index, state.mixing_weights, seed)
        say_how_sure(found)
        weight = found.weight if found else 1.0
        state.weigh(weight)
        self.mixture.config.evidence_weight = self.final_facts["evidence_weight"] = weight
        self.final_facts["assignment_calibration"] = found.to_dict() if found else None
        self._describe_components()

    def _text_numbers(self) -> tuple[torch.Tensor, ...]:
        """Numbers of the texts of each training row, `(N,)` a side; -1 where a ranking has fewer."""
        data = self.train_dataset
        if is_ranked(data):
            return choices_among(data, number_values).responses.unbind(1)
        both = torch.tensor(number_values(map(tuple, [*data["chosen_ids"], *data["rejected_ids"]])))
        return both.chunk(2)

    def _calibrate_temperatures(self) -> None:
        """Temperatures from pairs of texts that the rewards do not know."""
        if not self.args.calibrate_temperature:
            return
        scored: ScoredPairs | ScoredRankings | None = None
        if not self.args.train_trunk:
            pairs = self.feature_pairs(self.train_dataset)
            responsibilities = self.em_state.log_responsibilities.exp()[pairs.annotator_index]
            scored, rows = scored_on_new_texts(pairs, responsibilities, self._prior_scale, self.args.seed)
        elif self.eval_dataset is not None:
            responsibilities, known = self._eval_responsibilities(), self._known_texts(self.eval_dataset)
            rows = ~known.any(1)
            if int(rows.sum()) < MIN_NEW_PAIRS:
                rows = ~known.all(1)
            if not rows.any():
                rows, self._calibrated_on_new_texts = torch.ones(len(known), dtype=torch.bool), False
                logger.warning(
                    "All texts of the held-out pairs stand in training pairs as well, so temperatures say how sure "
                    "rewards may be of texts that they know, which is surer than of replies that nobody judged. Give "
                    "an eval_dataset of other texts."
                )
            scored = self.scored(self.eval_dataset).select(rows)
        if scored is None or not len(scored):
            logger.warning(
                "No pairs of texts that the rewards do not know are held out, so the temperatures of the components "
                "stay 1 and nothing says how sure their rewards may be. Set heldout_fraction, give an eval_dataset, "
                "or calibrate_temperature=False."
            )
            return
        temperatures = fit_temperatures(
            scored.temperature,
            responsibilities[rows].double(),
            self.mixture.described_components,
            self.mixture.component_names,
        )
        self.mixture.scale_heads(temperatures)

    def _measure(self) -> None:
        if self.eval_dataset is not None:
            scored = self.scored(self.eval_dataset)
            self.final_facts |= component_heldout(self, scored.accuracy, scored.tau)

    def _known_texts(self, dataset: Dataset) -> torch.Tensor:
        """`(N, 2)`: whether the chosen and the rejected text of each pair stand in training pairs; of rankings
        `(N, n)`, the first reply's where there are fewer."""
        known = {tuple(ids) for own in replies_of(self.train_dataset) for ids in own}
        found = [[tuple(ids) in known for ids in own] for own in replies_of(dataset)]
        width = max(map(len, found))
        return torch.tensor([own + own[:1] * (width - len(own)) for own in found])

    def _describe_components(self) -> None:
        """Into the mixture's configuration: whom EM found, as numbers."""
        self.mixture.config.mixing_weights = self.em_state.mixing_weights.tolist()
        self.mixture.config.component_annotators = self.em_state.annotators_of_components()
        self.mixture.config.component_pairs = self.em_state.pairs_of_components()

    @torch.no_grad()
    def reward_differences(self, dataset: Dataset) -> torch.Tensor:
        """Reward of the chosen minus that of the rejected reply, in one batched forward for all components.

        Args:
            dataset (`Dataset`): as held in `train_dataset` or `eval_dataset`. Ranks share the work.

        Returns:
            `torch.Tensor` of shape `(N, K)`, Bradley-Terry log-odds, on the CPU.

        Raises:
            ValueError: rankings.
        """
        if is_ranked(dataset):
            raise ValueError("Rankings have no chosen and rejected reply. Use `scored(dataset).rewards`.")
        model = self.mixture
        if not self.args.train_trunk:
            pairs = self.feature_pairs(dataset)
            rewards = model.rewards_from_features(pairs.features.unsqueeze(1).to(model.device)).float().cpu()
            return rewards[pairs.chosen] - rewards[pairs.rejected]
        return score_pairs(model, dataset, self.data_collator, self.args.e_step_batch_size, self.accelerator)

    @torch.no_grad()
    def scored(self, dataset: Dataset) -> ScoredPairs | ScoredRankings:
        """What the rewards say of pairs or rankings; each distinct reply of rankings is scored once.

        Args:
            dataset (`Dataset`): as held in `train_dataset` or `eval_dataset`. Ranks share the work.
        """
        if not is_ranked(dataset):
            return ScoredPairs(self.reward_differences(dataset), *numbers_of(dataset))
        if self.args.train_trunk:
            size, pad_token_id = self.args.e_step_batch_size, self.processing_class.pad_token_id
            return ScoredRankings(*score_rankings(self.mixture, dataset, pad_token_id, size, self.accelerator))
        pairs = self.feature_pairs(dataset)
        features = pairs.features.unsqueeze(1).to(self.mixture.device)
        return ScoredRankings(self.mixture.rewards_from_features(features).float().cpu(), pairs.choices)

    def _log_likelihood(self, dataset: Dataset) -> torch.Tensor:
        """`(N, K)` of a prepared data set's pairs, nats, float64."""
        return self.row_log_likelihood(self.scored(dataset), dataset)

    def row_log_likelihood(
        self, scored: ScoredPairs | ScoredRankings, dataset: Dataset, as_fitted: bool = False
    ) -> torch.Tensor:
        """Log-likelihood of pairs or rankings. A temperature says how sure a reward may be of a text that it does not
        know; where all texts of a row are those of training rows, rewards are as sure as they were fitted.

        Args:
            scored ([`ScoredPairs`] or [`ScoredRankings`]): from [`~MixtureRewardTrainer.scored`].
            dataset (`Dataset`): theirs.
            as_fitted (`bool`): of all texts, as where they are evidence of who somebody is.

        Returns:
            `torch.Tensor` of shape `(N, K)`, nats, float64.
        """
        temperatures = torch.tensor(self.mixture.config.temperatures, dtype=torch.float64)
        if as_fitted:
            return scored.log_likelihood(temperatures)
        if self._calibrated_on_new_texts and (temperatures != 1).any():
            known = self._known_texts(dataset).all(1, keepdim=True)
            return torch.where(known, scored.log_likelihood(temperatures), scored.log_likelihood())
        return scored.log_likelihood()

    def _eval_responsibilities(self) -> torch.Tensor:
        """`(N, K)` posterior of the annotator of each held-out pair, from their training pairs only."""
        return self._responsibilities(torch.tensor(self.eval_dataset["annotator_index"][:])).double()

    def heldout_log_likelihood(self) -> torch.Tensor:
        """Predictive log-likelihood of each held-out pair given its annotator's other pairs.

        Returns:
            `torch.Tensor` of shape `(N,)`, nats. Its mean compares numbers of components.

        Raises:
            ValueError: no pairs are held out.
        """
        if self.eval_dataset is None:
            raise ValueError("No pairs are held out. Give `eval_dataset` or set `heldout_fraction` above 0.")
        return self.predictive_log_likelihood(self._log_likelihood(self.eval_dataset))

    def predictive_log_likelihood(self, scores: torch.Tensor) -> torch.Tensor:
        """`(N,)` of the held-out pairs, given what each component says of them: `(N, K)`, nats."""
        return (self._eval_responsibilities().log() + scores).logsumexp(-1)

    def log_posterior_of(self, annotators: torch.Tensor) -> torch.Tensor:
        """`(N, K)`, float64, by the training pairs, of annotators by number; of those who gave none (-1), the mixing
        weights."""
        return self._responsibilities(annotators).double().log()

    def posterior(self) -> AnnotatorPosterior:
        """Which component describes each annotator, by all their pairs.

        Held-out pairs count here, as they may once everything is measured; `em_state.log_responsibilities` is what the
        training pairs alone say. All ranks have to call it: they share the held-out pairs.

        Returns:
            [`AnnotatorPosterior`]: `(H, K)`. Stays on this machine.
        """
        scores, people = torch.zeros(0, self.em_state.num_components), torch.zeros(0, dtype=torch.long)
        if self.eval_dataset is not None:
            scored = self.scored(self.eval_dataset)
            scores = self.row_log_likelihood(scored, self.eval_dataset, as_fitted=True)
            people = torch.tensor(self.eval_dataset["annotator_index"][:])
        return AnnotatorPosterior(self.annotators.annotator_ids, *self.em_state.posterior(scores, people))

    def assignments(self) -> dict[str | int, str]:
        """Component name of each annotator, by all their pairs. All ranks have to call it. Stays on this machine."""
        names = self.mixture.component_names
        best = self.posterior().probabilities.argmax(-1).tolist()
        return {annotator: names[k] for annotator, k in zip(self.annotators.annotator_ids, best, strict=True)}

    # -- on disk ------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._describe_components()
        super()._save_checkpoint(model, trial)

    def _save_run_state(self, folder: Path) -> None:
        super()._save_run_state(folder)
        self.em_state.save(folder)

    def _record_facts(self) -> tuple[str, dict[str, Any]]:
        return "reward", reward_facts(self)


def _read_pairs(
    rewards: torch.Tensor, inputs: dict[str, Any], responsibilities: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a batch: log-likelihood and accuracy of each component, `(B, K)`, accuracy and Kendall's tau of the
    annotators' mixtures, `(B, 2)` (tau of rankings only), and twice the mean reward of the replies, `(B, K)`."""
    chosen, rejected = rewards.chunk(2)
    log_likelihood = preference_log_likelihood(chosen, rejected, inputs.get("margin"), inputs.get(VOTE_SHARE))
    # The annotator's own mixture of opinions predicts the chosen reply where its probability is above one half.
    of_chosen = preference_log_likelihood(chosen.detach(), rejected.detach(), inputs.get("margin"))
    predictive = (responsibilities.log() + of_chosen).logsumexp(-1, keepdim=True)
    right = (predictive.exp() > 0.5).to(rewards)
    of_mixture = torch.cat([right, torch.zeros_like(right)], dim=1)
    return log_likelihood, preference_accuracy(chosen.detach(), rejected.detach()), of_mixture, chosen + rejected


def _read_rankings(
    rewards: torch.Tensor, inputs: dict[str, Any], responsibilities: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As [`_read_pairs`], for rankings over the batch's distinct replies."""
    choices = RankedChoices(inputs["responses"], inputs["ranks"], inputs["annotator_index"], inputs.get("margin"))
    there = (choices.responses >= 0).to(rewards).unsqueeze(2)
    mean = (rewards[choices.responses.clamp(min=0)] * there).sum(1) / there.sum(1)
    chance, own = choices.blended(rewards.detach(), responsibilities.log())
    of_mixture = torch.cat([own.top_accuracy(chance), own.kendall_tau(chance)], dim=1)
    return choices.log_likelihood(rewards), choices.top_accuracy(rewards.detach()), of_mixture, 2 * mean
