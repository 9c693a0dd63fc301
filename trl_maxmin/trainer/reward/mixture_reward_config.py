# SPDX-License-Identifier: Apache-2.0
"""Training arguments of [`MixtureRewardTrainer`]."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from trl import RewardConfig

from ...data.columns import require_group_column
from ...models.configuration_mixture_reward import POOLINGS
from ..common.config_help import help_from_docstring
from ..common.host_defaults import settle_host_defaults
from .component_selection import parse_candidates


def _whole_number(value: int | str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"num_components must be 'auto' or a whole number of at least 1, got {value!r}.") from None


def _number(name: str, value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} must be 'auto' or a positive number, got {value!r}.") from None


logger = logging.getLogger(__name__)

EM_KINDS = ("soft", "hard")
E_STEP_SCORES = ("cached", "fresh")

# Fields of the host that a gradient loop reads: where there is none they have no effect.
_LOOP_FIELDS = (
    "max_steps num_train_epochs learning_rate lr_scheduler_type warmup_steps optim weight_decay max_grad_norm "
    "per_device_train_batch_size gradient_accumulation_steps center_rewards_coefficient eval_strategy "
    "load_best_model_at_end"
).split()


@help_from_docstring
@dataclass
class MixtureRewardConfig(RewardConfig):
    r"""
    Configuration of [`MixtureRewardTrainer`]. All of [`~trl.RewardConfig`]'s fields, and:

    Parameters:
        > Parameters that control the mixture

        num_components (`int` or `"auto"`, *optional*, defaults to `2`):
            K, when the trainer builds the mixture from a base model. A `MixtureRewardModel` brings its own. `"auto"`:
            chosen from `select` when training starts. Where the data cannot tell, 1, with a warning.
        select (`str`, *optional*):
            Candidate K, `"1,2,3,4"`, for `num_components="auto"`, which it implies. Each is cross-validated over each
            annotator's training pairs on the features of the frozen base, see [`choose_components`].
        component_type (`str`, *optional*, defaults to `"head"`):
            `"head"` (one trunk, K heads), `"lora"` (one frozen base, K adapters with heads) or `"full"` (K models),
            likewise.
        train_trunk (`bool`, *optional*, defaults to `True`):
            Whether the shared trunk of `"head"` components is trained. `False`: each distinct text is encoded once and
            the heads are fitted to the features without a gradient loop, in seconds. What speaks of that loop then has
            no effect: the fields below that say so are refused, and of the host's (learning rate, number of steps,
            `center_rewards_coefficient`, ...) the log names those that were set.
        pooling (`str`, *optional*, defaults to `"auto"`):
            What the heads read: `"auto"` as the family does it, `"mean"` over the tokens (better for a frozen
            encoder), `"mean_sqrt_len"` that mean times the square root of the number of tokens (where evidence adds
            up).
        kernel_features (`int`, *optional*):
            With `train_trunk=False`: number of random Fourier features of the pooled vector that the heads read, which
            makes the rewards nonlinear in it; even, 0 for none. Default with `pooling="mean"`: 2,048 or none,
            whichever predicts pairs out of fold better with one component; else 0, because components with kernel
            features cannot be exported as plain sequence classifiers.
        prior_scale (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            Standard deviation of a pair's Bradley-Terry log-odds under the prior on heads on frozen features: of a
            frozen trunk, of the starts and of the choice of K. `"auto"`: for each K the one that predicts pairs out of
            fold best, of texts that are new to their annotator.

        > Parameters that control the data

        annotator_column (`str`, *optional*, defaults to `"annotator_id"`):
            Column that names who gave the preference. Missing, each pair is its own annotator, with a warning.
        heldout_fraction (`float`, *optional*, defaults to `0.2`):
            Share of each annotator's pairs that neither trains nor assigns: temperatures are calibrated and accuracies
            reported on them. Not with an `eval_dataset`.
        group_column (`str`, *optional*):
            Column with the annotators' known groups, for all or (None elsewhere) some of them. Such an annotator
            belongs to the component of that name from the start; each candidate of `select` has to hold all groups.
            Without it a `group` column is only reported on.

        > Parameters that control EM

        em (`str`, *optional*, defaults to `"soft"`):
            `"soft"`: posterior over components, annealed. `"hard"`: the paper's Algorithm 2, each annotator goes to
            the component that explains them best, in every E-step after the starts, which are soft and annealed; with
            a frozen trunk in every E-step there is. Departs from the paper by default: an early hard split freezes.
        n_init (`int`, *optional*, defaults to `4`):
            Twice so many starts fit heads to the frozen trunk, pairs scored out of fold; the best continues, and its
            scores stay half of the evidence. `0`: no starts, annealing runs from random heads; not with a frozen
            trunk, and the choice of K takes two starts then.
        init_steps (`int`, *optional*):
            EM steps of each start. After a third of them the best three go on, under every prior. Default: 48. The
            choice of K takes 48.
        annealing_start (`float`, *optional*, defaults to `0.2`):
            First inverse temperature of the posterior in the training loop, in (0, 1]. The sum over an annotator's
            pairs grows with their number, so an unannealed posterior saturates at once. Not with a frozen trunk or
            `em="hard"`.
        annealing_steps (`int`, *optional*):
            Optimizer steps until the inverse temperature is 1. Default: a quarter of all steps. Likewise.
        e_step_interval (`int`, *optional*, defaults to `10`):
            Optimizer steps between E-steps. Not with a frozen trunk.
        e_step_scores (`str`, *optional*, defaults to `"cached"`):
            `"cached"`: use the scores that training has just computed, each from before the pair was trained on in its
            epoch, averaged with those of the start; such an E-step costs nothing. `"fresh"`: score all pairs again, in
            one batched forward for all components; a pair that was memorised then looks surer than it is. Not with a
            frozen trunk, where every score is out of fold.
        e_step_batch_size (`int`, *optional*):
            Pairs per forward where pairs are scored without training on them. Default: `per_device_eval_batch_size`,
            but at least 32: sorted by length, they are cheap.
        dirichlet_concentration (`float`, *optional*, defaults to `2.0`):
            Prior on the mixing weights, at least 1; above 1 an empty component can come back. Hard E-steps have none.
        calibrate_temperature (`bool`, *optional*, defaults to `True`):
            Whether each component is divided by a temperature fitted on held-out pairs after training. Before it, what
            was fitted is saved in `output_dir`, unless `save_strategy="no"`.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]: those of
    > [`~trl.RewardConfig`], but `bf16` stays off where the hardware has no bfloat16.

    Raises:
        ValueError: a value outside the ranges above, or one that other values leave without effect.
    """

    # `str`, because that is how the command line reads "auto"; numbers become `int` or `float` below.
    num_components: str = 2
    select: str | None = None
    component_type: str = field(default="head", metadata={"choices": ["head", "lora", "full"]})
    train_trunk: bool = True
    pooling: str = field(default="auto", metadata={"choices": list(POOLINGS)})
    kernel_features: int | None = None
    prior_scale: str = "auto"
    annotator_column: str = "annotator_id"
    heldout_fraction: float = 0.2
    group_column: str | None = None
    em: str = field(default="soft", metadata={"choices": ["soft", "hard"]})
    n_init: int = 4
    init_steps: int | None = None
    annealing_start: float = 0.2
    annealing_steps: int | None = None
    e_step_interval: int = 10
    e_step_scores: str = field(default="cached", metadata={"choices": ["cached", "fresh"]})
    e_step_batch_size: int | None = None
    dirichlet_concentration: float = 2.0
    calibrate_temperature: bool = True

    def __post_init__(self) -> None:
        settle_host_defaults(self)
        super().__post_init__()
        if self.select is not None:
            self.num_components = "auto"
        elif self.num_components == "auto":
            self.select = "1,2,3,4"
        if self.num_components != "auto":
            self.num_components = _whole_number(self.num_components)
        if self.prior_scale != "auto":
            self.prior_scale = _number("prior_scale", self.prior_scale)
        if self.kernel_features is None and (self.train_trunk or self.pooling != "mean"):
            self.kernel_features = 0
        if self.kernel_features and self.train_trunk:
            raise ValueError(
                f"kernel_features={self.kernel_features} is for heads on a frozen trunk. Add train_trunk=False "
                "(--train_trunk false), or leave it out."
            )
        require_group_column(self.group_column, self.annotator_column)
        checks = {
            "num_components": (self.num_components == "auto" or self.num_components >= 1, "'auto' or at least 1"),
            "select": (self.select is None or bool(parse_candidates(self.select)), "candidates"),
            "train_trunk": (
                self.train_trunk or self.component_type == "head",
                f"true with component_type={self.component_type!r}, whose trunk is not shared by heads alone",
            ),
            "pooling": (self.pooling in POOLINGS, f"one of {POOLINGS}"),
            "kernel_features": (
                self.kernel_features is None or (self.kernel_features >= 0 and self.kernel_features % 2 == 0),
                "an even number of at least 0",
            ),
            "prior_scale": (self.prior_scale == "auto" or self.prior_scale > 0, "'auto' or positive"),
            "em": (self.em in EM_KINDS, f"one of {EM_KINDS}"),
            "e_step_scores": (self.e_step_scores in E_STEP_SCORES, f"one of {E_STEP_SCORES}"),
            "heldout_fraction": (0 <= self.heldout_fraction < 1, "in [0, 1)"),
            "n_init": (self.n_init >= 0, "0 or more"),
            "init_steps": (self.init_steps is None or self.init_steps >= 1, "at least 1"),
            "annealing_start": (0 < self.annealing_start <= 1, "in (0, 1]"),
            "annealing_steps": (self.annealing_steps is None or self.annealing_steps >= 0, "0 or more"),
            "e_step_interval": (self.e_step_interval >= 1, "at least 1"),
            "e_step_batch_size": (self.e_step_batch_size is None or self.e_step_batch_size >= 1, "at least 1"),
            "dirichlet_concentration": (self.dirichlet_concentration >= 1, "at least 1"),
        }
        if self.e_step_batch_size is None:
            self.e_step_batch_size = max(self.per_device_eval_batch_size, 32)
        for name, (valid, allowed) in checks.items():
            if not valid:
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}.")
        self._require_effect()
        if self.init_steps is None:
            self.init_steps = 48

    def changed(self, *names: str) -> dict[str, Any]:
        """Those of the fields that have another value than by default."""
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(type(self), name)}

    def _require_effect(self) -> None:
        """What was set and would be dropped without a word is refused."""
        hard, no_starts = self.em == "hard", self.train_trunk and self.n_init == 0
        no_fits = no_starts and self.select is None
        annealing = ("annealing_start", "annealing_steps")
        dropped = [
            (not self.train_trunk, "train_trunk=False", (*annealing, "e_step_interval", "e_step_scores")),
            (
                not self.train_trunk and self.n_init == 0,
                "train_trunk=False, which begins with starts",
                ("n_init",),
            ),
            (hard, "em='hard'", annealing),
            (
                hard and (not self.train_trunk or no_fits),
                "em='hard' without starts",
                ("dirichlet_concentration",),
            ),
            (no_starts, "n_init=0", ("init_steps",)),
            (no_fits, "n_init=0 and a trained trunk", ("prior_scale",)),
        ]
        for applies, reason, names in dropped:
            if applies and (found := self.changed(*names)):
                settings = ", ".join(f"{name}={value!r}" for name, value in found.items())
                raise ValueError(f"{settings} would have no effect with {reason}. Leave it out, or change the latter.")
        if not self.train_trunk and (found := self.changed(*_LOOP_FIELDS)):
            logger.warning(
                f"With train_trunk=False heads are fitted without a gradient loop: no effect have {', '.join(found)}."
            )
