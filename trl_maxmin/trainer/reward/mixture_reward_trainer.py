# SPDX-License-Identifier: Apache-2.0
"""EM for a mixture of reward models, on top of TRL's reward trainer."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import RewardTrainer

from ... import distributed
from ...data.columns import ANNOTATOR_COLUMN, AnnotatorIndex, known_groups, prepare_preferences, split_by_annotator
from ...functional.em import (
    annealed_beta,
)
from ...functional.em_linear import fit_linear_rewards
from ...functional.preference import preference_accuracy, preference_log_likelihood
from ...models import MixtureRewardModel, MixtureRewardModelConfig
from ...models.base import context_length, place
from ...models.families import get_linear
from ..common.atomic_checkpoint import AtomicCheckpointMixin
from ..common.recording import component_heldout, reward_facts
from .annotated_preferences import AnnotatedPreferencesMixin, DataCollatorForAnnotatedPreference
from .component_selection import parse_candidates
from .em_results import EMResultsMixin
from .em_state import EM_STATE_NAME, EMState
from .frozen_trunk import KERNEL_FEATURES, FrozenTrunkMixin
from .mixture_reward_config import MixtureRewardConfig


logger = get_logger(__name__)


class MixtureRewardTrainer(
    AnnotatedPreferencesMixin, EMResultsMixin, FrozenTrunkMixin, AtomicCheckpointMixin, RewardTrainer
):
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
            `group` and `margin`.
        eval_dataset (`Dataset`, *optional*): other pairs of the same annotators. Without it `args.heldout_fraction` of
            each annotator's pairs are held out.
        processing_class (`PreTrainedTokenizerBase`, *optional*): tokenizer; defaults to the model's own.
        callbacks (`list[TrainerCallback]`, *optional*): as in transformers.
        optimizers (`tuple`, *optional*): as in transformers.
        peft_config (`LoraConfig`, *optional*): of the adapters, with `component_type="lora"`.

    Attributes:
        annotators ([`AnnotatorIndex`]): numbers of the annotators. Not saved with the model.
        em_state ([`EMState`]): responsibilities `(H, K)`, mixing weights `(K,)`.

    Raises:
        ValueError: bad data (see [`prepare_preferences`]), more components than annotators, nothing left after the
            length filter, weights divided among the ranks (DeepSpeed ZeRO-3, FSDP).

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
                "`train_dataset` is required: preference pairs with `chosen`, `rejected`, `annotator_id`."
            )
        refuse_shards(args)
        # The trainer's own K; where the data are to choose, it starts with the largest candidate.
        self._candidates = None
        if isinstance(model, MixtureRewardModel):
            num_components = model.num_components
        elif args.num_components == "auto":
            self._candidates = parse_candidates(args.select)
            num_components = max(self._candidates)
        else:
            num_components = args.num_components
        train_dataset = prepare_preferences(train_dataset, args.annotator_column, num_components)
        groups = known_groups(train_dataset, args.group_column, num_components)
        if eval_dataset is None:
            train_dataset, eval_dataset = split_by_annotator(train_dataset, args.heldout_fraction, args.seed)
        else:
            eval_dataset = prepare_preferences(eval_dataset, args.annotator_column)
        self.annotators = AnnotatorIndex.from_values(train_dataset[ANNOTATOR_COLUMN])
        given = model
        model = self._build_mixture(model, args, num_components, processing_class, peft_config)
        if groups:
            names = list(dict.fromkeys(groups.values()))
            rest = [f"component_{k}" for k in range(len(names), num_components)]
            model.config.component_names = names + rest
        self._context_length = context_length(model.config.base_config)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=model.processing_class,
            data_collator=DataCollatorForAnnotatedPreference(pad_token_id=model.processing_class.pad_token_id),
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # EM scores pairs before the loop of transformers begins, and between its steps.
        place(model, self.accelerator.device)
        # A mixture that is given keeps the heads it has.
        self._choose_heads = args.kernel_features is None and model is not given
        self._known = None
        if groups:
            number = {name: k for k, name in enumerate(model.component_names)}
            known = [number[groups[a]] if a in groups else -1 for a in self.annotators.annotator_ids]
            self._known = torch.tensor(known)
        self.em_history: list[dict[str, float]] = []
        self.final_facts: dict[str, Any] = {}  # for the run record, once training has ended
        self.em_state = self._new_em_state()

    def _new_em_state(self) -> EMState:
        return EMState(
            torch.tensor(self.train_dataset["annotator_index"]),
            len(self.annotators),
            self.mixture.num_components,
            em=self.args.em,
            dirichlet_concentration=self.args.dirichlet_concentration,
            known=self._known,
        )

    @staticmethod
    def _build_mixture(
        model: MixtureRewardModel | PreTrainedModel | str,
        args: MixtureRewardConfig,
        num_components: int,
        processing_class: PreTrainedTokenizerBase | None,
        peft_config: PeftConfig | None = None,
    ) -> MixtureRewardModel:
        if peft_config is not None and (isinstance(model, MixtureRewardModel) or args.component_type != "lora"):
            raise ValueError(
                "`peft_config` is for components that this trainer builds with component_type='lora'; here "
                f"component_type={args.component_type!r} and the model is a {type(model).__name__}. Leave it out."
            )
        if not isinstance(model, MixtureRewardModel):
            # The new heads come from the global generator; the design wants them from the seed alone.
            with torch.random.fork_rng():
                torch.manual_seed(args.seed)
                kwargs = args.model_init_kwargs or {} if isinstance(model, str) else {}
                model = MixtureRewardModel.from_base(
                    model,
                    num_components,
                    args.component_type,
                    processing_class=processing_class,
                    pooling=args.pooling,
                    kernel_features=KERNEL_FEATURES if args.kernel_features is None else args.kernel_features,
                    peft_config=peft_config,
                    **kwargs,
                )
            args.model_init_kwargs = None
        elif processing_class is not None:
            model.attach_tokenizer(processing_class)
        if model.processing_class is None:
            raise ValueError("The mixture has no tokenizer. Pass `processing_class`.")
        return model

    # -- EM -----------------------------------------------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        resume = kwargs.get("resume_from_checkpoint")
        if not self.args.train_trunk:
            self._prepare_heads()
        if resume and os.path.isfile(os.path.join(resume, EM_STATE_NAME)):
            self.em_state.load(resume)
        elif self._candidates is not None:
            self._set_num_components(self.select_num_components(self._candidates).num_components)
        if not self.args.train_trunk:
            return self._train_frozen()
        if resume and os.path.isfile(os.path.join(resume, EM_STATE_NAME)):
            pass
        elif self.mixture.num_components > 1 and self.args.n_init > 0:
            self._initialise()
        output = super()._inner_training_loop(*args, **kwargs)
        self._finish()
        return output

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

    @property
    def mixture(self) -> MixtureRewardModel:
        """The model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    def _initialise(self) -> None:
        """Starts on the frozen trunk; the best gives the first responsibilities, their heads and lasting evidence."""
        start = self._fit_heads(num_steps=self.args.init_steps)
        pairs, state = self.feature_pairs(self.train_dataset), self.em_state
        margin = torch.zeros(len(pairs)) if pairs.margin is None else pairs.margin
        responsibilities = state.log_responsibilities.exp()[pairs.annotator_index]
        differences = pairs.features[pairs.chosen] - pairs.features[pairs.rejected]
        # With a wider prior than the start's: training goes on from here, and a small head holds it up.
        self._set_heads(fit_linear_rewards(differences, responsibilities, margin))
        if self.args.e_step_scores == "cached":
            state.start_scores = start.scores.float()
        logger.info(f"Best of the starts: {start.score:.4f} nats a pair, out of fold.")

    @torch.no_grad()
    def _set_heads(self, weight: torch.Tensor) -> None:
        for k, row in enumerate(weight):
            one_trunk = len(self.mixture.components) == 1
            linear = get_linear(self.mixture.components[0 if one_trunk else k])
            linear.weight[k if one_trunk else 0] = row.to(linear.weight)

    def _beta(self) -> float:
        steps = self.args.annealing_steps
        if steps is None:
            steps = max(self.state.max_steps // 4, 1)
        return annealed_beta(self.state.global_step, steps, self.args.annealing_start)

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
        chosen, rejected = output.rewards.float().chunk(2)
        log_likelihood = preference_log_likelihood(chosen, rejected, inputs.get("margin"))
        annotators = inputs["annotator_index"]
        responsibilities = self.em_state.responsibilities(annotators.clamp(min=0))
        unknown = annotators < 0
        responsibilities[unknown] = self.em_state.mixing_weights.to(responsibilities)
        loss = -(responsibilities * log_likelihood).sum(-1).mean()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * ((chosen + rejected) ** 2).mean()
        with torch.no_grad():
            packed = torch.cat([log_likelihood, preference_accuracy(chosen, rejected), responsibilities], dim=-1)
            packed = distributed.gather_rows(self.accelerator, packed)
            pairs = distributed.gather_rows(self.accelerator, inputs["pair_index"])
            self._log_batch(mode, pairs, *packed.chunk(3, dim=-1))
        return (loss, output) if return_outputs else loss

    def _log_batch(
        self,
        mode: str,
        pair_index: torch.Tensor,
        log_likelihood: torch.Tensor,
        accuracy: torch.Tensor,
        responsibilities: torch.Tensor,
    ) -> None:
        metrics = self._metrics[mode]
        if mode == "train":
            self.em_state.record(pair_index, log_likelihood)
        predictive = (responsibilities.log() + log_likelihood).logsumexp(-1)
        metrics["predictive_log_likelihood"].append(predictive.mean().item())
        # The annotator's own mixture of opinions predicts the chosen reply where its probability is above one half.
        metrics["accuracy"].append((predictive.exp() > 0.5).float().mean().item())
        for k, name in enumerate(self.mixture.component_names):
            share = responsibilities[:, k]
            if share.sum() > 0:
                value = (share * accuracy[:, k]).sum() / share.sum()
                metrics[f"accuracy/{name}"].append(value.item())

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A gradient step of the M-step; every `e_step_interval` steps an E-step comes first."""
        interval = self.args.e_step_interval
        if self.state.global_step % interval == 0 and self.accelerator.sync_gradients:
            self._e_step()
        return super().training_step(*args, **kwargs)

    def _e_step(self) -> None:
        if self.mixture.num_components == 1:
            return
        if self.args.e_step_scores == "fresh":
            self._score_all_pairs()
        if self.em_state.scores.isnan().all():
            return
        result = self.em_state.e_step(self._beta())
        weights = self.em_state.mixing_weights.tolist()
        names = self.mixture.component_names
        result |= {f"em/mixing_weight/{name}": w for name, w in zip(names, weights, strict=True)}
        self.em_history.append({"step": self.state.global_step, **result})
        for name, value in result.items():
            self._metrics["train"][name].append(value)

    def _score_all_pairs(self) -> None:
        log_likelihood = self._log_likelihood(self.train_dataset, self.reward_differences(self.train_dataset))
        self.em_state.record(torch.arange(len(log_likelihood)), log_likelihood)

    # -- results ------------------------------------------------------------------------------------------------------

    def _finish(self, last_e_step: bool = True) -> None:
        """Last E-step, temperatures, mixing weights; then say whether EM came to rest."""
        mixture = self.mixture
        if last_e_step and mixture.num_components > 1:
            self.em_state.e_step(1.0)
            if not self.em_state.converged():
                logger.warning(
                    f"EM has not come to rest: the last E-step moved {self.em_state.changed:.0%} of the annotators to "
                    "another component. Train longer (max_steps), raise n_init, or try fewer components."
                )
        if self.args.calibrate_temperature and self.eval_dataset is not None:
            self._calibrate_temperatures()
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
        if self.eval_dataset is not None:
            self.final_facts |= component_heldout(self, self.reward_differences(self.eval_dataset))

    def _describe_components(self) -> None:
        """Into the mixture's configuration: whom EM found, as numbers. While anybody's posterior is flat, as before
        the first E-step, it is not known that a component describes nobody."""
        state = self.em_state
        self.mixture.config.mixing_weights = state.mixing_weights.tolist()
        log_resp = state.log_responsibilities
        counts = torch.bincount(log_resp.argmax(-1), minlength=state.num_components)
        known = state.num_components == 1 or bool((log_resp.amax(-1) > log_resp.amin(-1)).all())
        self.mixture.config.component_annotators = counts.tolist() if known else None

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._describe_components()
        super()._save_checkpoint(model, trial)

    def _save_run_state(self, folder: Path) -> None:
        super()._save_run_state(folder)
        self.em_state.save(folder)

    def _record_facts(self) -> tuple[str, dict[str, Any]]:
        return "reward", reward_facts(self)


def refuse_shards(args: MixtureRewardConfig) -> None:
    """EM scores pairs whenever it needs to, each rank its own share: weights have to be whole on every rank.

    Args:
        args ([`MixtureRewardConfig`]): training arguments.

    Raises:
        ValueError: DeepSpeed ZeRO-3 or FSDP.
    """
    if is_deepspeed_zero3_enabled():
        strategy = "DeepSpeed ZeRO-3"
    elif args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        strategy = "FSDP"
    else:
        return
    raise ValueError(
        f"{strategy} divides the weights among the ranks, but a mixture of rewards is trained whole on each: ranks "
        "score different numbers of pairs. Use DDP (`--accelerate_config multi_gpu`) or ZeRO-2. Where the base does "
        "not fit one GPU, train adapters on a base in 4 bits: component_type='lora' with --load_in_4bit."
    )


def rename_components(model: MixtureRewardModel, names: list[str]) -> MixtureRewardModel:
    """Give components names that mean something, once somebody has looked at them.

    Args:
        model ([`MixtureRewardModel`]): changed in place.
        names (`list[str]`): K distinct names.

    Returns:
        [`MixtureRewardModel`]: the same model.

    Raises:
        ValueError: wrong number of names, or names that repeat.
    """
    config = copy.deepcopy(model.config)
    config.component_names = list(names)
    config._check()
    model.config.component_names = list(names)
    return model
