# SPDX-License-Identifier: Apache-2.0
"""Training arguments of [`MixtureRewardTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardConfig


EM_KINDS = ("soft", "hard")
E_STEP_SCORES = ("cached", "fresh")


@dataclass
class MixtureRewardConfig(RewardConfig):
    r"""
    Configuration of [`MixtureRewardTrainer`]. All of [`~trl.RewardConfig`]'s fields, and:

    Parameters:
        > Parameters that control the mixture

        num_components (`int`, *optional*, defaults to `2`):
            K, when the trainer builds the mixture from a base model. A `MixtureRewardModel` brings its own.
        component_type (`str`, *optional*, defaults to `"head"`):
            `"head"` (one trunk, K heads), `"lora"` (one frozen base, K adapters with heads) or `"full"` (K models),
            likewise.

        > Parameters that control the data

        annotator_column (`str`, *optional*, defaults to `"annotator_id"`):
            Column that names who gave the preference. Missing, each pair is its own annotator, with a warning.
        heldout_fraction (`float`, *optional*, defaults to `0.2`):
            Share of each annotator's pairs that neither trains nor assigns: restarts are compared, temperatures
            calibrated and accuracies reported on them. Used only when no `eval_dataset` is given.

        > Parameters that control EM

        em (`str`, *optional*, defaults to `"soft"`):
            `"soft"`: posterior over components, annealed. `"hard"`: the paper's Algorithm 2, each annotator goes to
            the component that explains them best. Departs from the paper by default: a hard split made early freezes.
        n_init (`int`, *optional*, defaults to `4`):
            Number of short starts; the best on held-out pairs continues. They train the heads on the frozen trunk.
            `0`: no starts, annealing runs from random heads.
        init_steps (`int`, *optional*, defaults to `40`):
            EM steps of each short start, the first half annealed.
        annealing_start (`float`, *optional*, defaults to `0.2`):
            First inverse temperature of the posterior in the training loop, in (0, 1]. The sum over an annotator's
            pairs grows with their number, so an unannealed posterior saturates at once.
        annealing_steps (`int`, *optional*):
            Optimizer steps until the inverse temperature is 1. Default: a quarter of all steps.
        e_step_interval (`int`, *optional*, defaults to `10`):
            Optimizer steps between E-steps.
        e_step_scores (`str`, *optional*, defaults to `"cached"`):
            `"cached"`: use the scores that training has just computed, each from before the pair was trained on in its
            epoch; such an E-step costs nothing. `"fresh"`: score all pairs again, in one batched forward for all
            components; a pair that was memorised then looks surer than it is.
        dirichlet_concentration (`float`, *optional*, defaults to `2.0`):
            Prior on the mixing weights, at least 1; above 1 an empty component can come back.
        calibrate_temperature (`bool`, *optional*, defaults to `True`):
            Whether each component is divided by a temperature fitted on held-out pairs after training.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]: those of
    > [`~trl.RewardConfig`], but `bf16` stays off where the hardware has no bfloat16.

    Raises:
        ValueError: a value outside the ranges above.
    """

    num_components: int = field(default=2, metadata={"help": "K, when the mixture is built from a base model."})
    component_type: str = field(
        default="head",
        metadata={
            "help": "'head' (one trunk, K heads), 'lora' (one frozen base, K adapters) or 'full' (K models).",
            "choices": ["head", "lora", "full"],
        },
    )
    annotator_column: str = field(
        default="annotator_id", metadata={"help": "Column that names who gave the preference."}
    )
    heldout_fraction: float = field(
        default=0.2,
        metadata={
            "help": "Share of each annotator's pairs that neither trains nor assigns (without an eval_dataset)."
        },
    )
    em: str = field(
        default="soft",
        metadata={"help": "'soft' (annealed posterior) or 'hard' (Algorithm 2).", "choices": ["soft", "hard"]},
    )
    n_init: int = field(default=4, metadata={"help": "Short starts; the best on held-out pairs continues."})
    init_steps: int = field(default=40, metadata={"help": "EM steps of each short start."})
    annealing_start: float = field(
        default=0.2, metadata={"help": "First inverse temperature of the posterior, in (0, 1]."}
    )
    annealing_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps until it is 1. Default: a quarter of all steps."}
    )
    e_step_interval: int = field(default=10, metadata={"help": "Optimizer steps between E-steps."})
    e_step_scores: str = field(
        default="cached",
        metadata={
            "help": "'cached' (scores computed in training, free) or 'fresh' (score all pairs again).",
            "choices": ["cached", "fresh"],
        },
    )
    dirichlet_concentration: float = field(default=2.0, metadata={"help": "Prior on the mixing weights, at least 1."})
    calibrate_temperature: bool = field(
        default=True, metadata={"help": "Fit a temperature per component on held-out pairs after training."}
    )

    def __post_init__(self) -> None:
        # TRL's default asks for bfloat16 and refuses to start where the hardware has none.
        if self.bf16 is None and (self.use_cpu or not is_torch_bf16_gpu_available()):
            self.bf16 = False
        super().__post_init__()
        checks = {
            "num_components": (self.num_components >= 1, "at least 1"),
            "em": (self.em in EM_KINDS, f"one of {EM_KINDS}"),
            "e_step_scores": (self.e_step_scores in E_STEP_SCORES, f"one of {E_STEP_SCORES}"),
            "heldout_fraction": (0 <= self.heldout_fraction < 1, "in [0, 1)"),
            "n_init": (self.n_init >= 0, "0 or more"),
            "init_steps": (self.init_steps >= 1, "at least 1"),
            "annealing_start": (0 < self.annealing_start <= 1, "in (0, 1]"),
            "e_step_interval": (self.e_step_interval >= 1, "at least 1"),
            "dirichlet_concentration": (self.dirichlet_concentration >= 1, "at least 1"),
        }
        for name, (valid, allowed) in checks.items():
            if not valid:
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}.")
