# SPDX-License-Identifier: Apache-2.0
"""The training arguments that MaxMin adds to a policy trainer's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...functional.group_floor import MIN_GROUP_ANNOTATORS, MIN_GROUP_PAIRS, MIN_GROUP_SHARE
from ...functional.welfare import REGRET_RULES, WELFARE_RULES
from ..common.config_help import help_from_docstring
from ..common.generation_backends import check_backend
from ..common.host_defaults import settle_host_defaults
from ..scoring.reference_statistics import UTILITY_KINDS


# "sample_min" changes the reward, not the weights, so it is no welfare rule; a user chooses it in the same place.
WELFARE_CHOICES = (*WELFARE_RULES, "sample_min")
OSCILLATION_CHOICES = ("warn", "stop", "ignore")
STEP_SCHEDULES = ("constant", "inverse_sqrt")


def resolve_utility(utility: str | None, num_components: int) -> str:
    """The utility to use: as asked, else `"zscore"` for several components and `"raw"` for one.

    Args:
        utility (`str`, *optional*): `"zscore"`, `"win_rate"`, `"raw"` or None.
        num_components (`int`): K.

    Returns:
        `str`

    Example:

    ```python
    >>> resolve_utility(None, 2), resolve_utility(None, 1), resolve_utility("win_rate", 1)
    ('zscore', 'raw', 'win_rate')

    ```
    """
    if utility is not None:
        return utility
    # One component with raw rewards is conventional RLHF exactly.
    return "zscore" if num_components > 1 else "raw"


@help_from_docstring
@dataclass
class WelfareConfigMixin:
    """Fields that say whose utility counts, of every trainer that weighs groups.

    > Parameters that control whom the policy serves

    Args:
        welfare (`str`, *optional*, defaults to `"maxmin"`):
            How group utilities become weights: `"maxmin"`, `"softmin"`, `"mirror"`, `"utilitarian"`, `"mixing"`,
            `"nash"`, `"pmean"`, `"gini"`, `"leximin"`, `"regret"`; or `"sample_min"`, the per-sample minimum, which is
            a different objective. See docs/welfare.md.
        welfare_temperature (`float`, *optional*, defaults to 1.0):
            Temperature tau of `"softmin"`, in units of utility.
        welfare_step_size (`float`, *optional*, defaults to 0.1):
            Step size eta of `"mirror"`.
        welfare_step_schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, or `"inverse_sqrt"`: eta divided by the square root of the number of the rollout, so that
            the weights come to rest.
        welfare_window (`int`, *optional*, defaults to 1):
            Group utilities are averaged exponentially over about this many rollouts before they decide; 1 is no
            averaging.
        welfare_floor (`float`, *optional*, defaults to 0.0):
            Smallest weight of a component, in `[0, 1 / K]`.
        min_group_annotators (`int`, *optional*, defaults to 10):
            People whom a component of a mixture has to describe before it may be the worst-off group, or
            `min_group_share` of all, whichever is less. Those below stay in the mixture and in the logs, and have
            weight 0 under every rule but `"mixing"`. 1: everybody may.
        min_group_share (`float`, *optional*, defaults to 0.05):
            Share of the annotators that is enough where they are few, in [0, 1].
        min_group_pairs (`int`, *optional*, defaults to 30):
            Training pairs that a component has to stand on, likewise. 0: any number.
        disagreement_point (`list[float]`, *optional*):
            K utilities without an agreement, for `"nash"` and `"pmean"`. Default: 0, which under `"zscore"` is the
            reference policy's.
        welfare_power (`float`, *optional*, defaults to -1.0):
            Power p of `"pmean"`, at most 1: 0 is `"nash"`, 1 is `"utilitarian"`.
        welfare_order_weights (`list[float]`, *optional*):
            K weights of `"gini"`, from the worst-off place to the best-off one, not increasing. Default: those of the
            Gini coefficient, 2K - 1, ..., 3, 1.
        leximin_delta (`float`, *optional*, defaults to 0.05):
            Share of the spread of utilities below which `"leximin"` takes two as equal, in (0, 1].
        regret_rule (`str`, *optional*, defaults to `"maxmin"`):
            The rule that `"regret"` gives `U - U*` instead of `U`: `"maxmin"`, `"softmin"`, `"mirror"`, `"gini"` or
            `"leximin"`.
        best_utilities (`list[float]`, *optional*):
            K utilities U* for `"regret"`, of each group under its own best policy, in the order of the components and
            on the scale of `utility`. Default: those of the best of the reference replies to each prompt.
    """

    welfare: str = "maxmin"
    welfare_temperature: float = 1.0
    welfare_step_size: float = 0.1
    welfare_step_schedule: str = "constant"
    welfare_window: int = 1
    welfare_floor: float = 0.0
    min_group_annotators: int = MIN_GROUP_ANNOTATORS
    min_group_share: float = MIN_GROUP_SHARE
    min_group_pairs: int = MIN_GROUP_PAIRS
    disagreement_point: list[float] | None = None
    welfare_power: float = -1.0
    welfare_order_weights: list[float] | None = None
    leximin_delta: float = 0.05
    regret_rule: str = "maxmin"
    best_utilities: list[float] | None = None

    # Rules that the trainer offers; "sample_min" needs rewards of single replies.
    _welfare_choices = WELFARE_CHOICES

    def __post_init__(self) -> None:
        self._validate_maxmin()
        host = getattr(super(), "__post_init__", None)
        if host is not None:
            settle_host_defaults(self)
            host()

    def _validate_maxmin(self) -> None:
        """Refuse values that no number of components could make sense of.

        Raises:
            `ValueError`: Naming the field, the value and what is allowed.
        """
        named = (
            ("welfare", self._welfare_choices),
            ("welfare_step_schedule", STEP_SCHEDULES),
            ("regret_rule", REGRET_RULES),
        )
        for name, choices in named:
            self._require_choice(name, choices)
        infinity = float("inf")
        self._require(
            ("welfare_temperature", 0.0 < self.welfare_temperature < infinity, "finite and positive"),
            ("welfare_step_size", 0.0 < self.welfare_step_size < infinity, "finite and positive"),
            ("welfare_window", self.welfare_window >= 1, "at least 1 (no averaging)"),
            ("welfare_floor", 0.0 <= self.welfare_floor <= 1.0, "in [0, 1 / K]"),
            ("min_group_annotators", self.min_group_annotators >= 1, "at least 1"),
            ("min_group_share", 0.0 <= self.min_group_share <= 1.0, "in [0, 1]"),
            ("min_group_pairs", self.min_group_pairs >= 0, "at least 0"),
            ("welfare_power", -infinity < self.welfare_power <= 1.0, "finite and at most 1"),
            ("leximin_delta", 0.0 < self.leximin_delta <= 1.0, "in (0, 1]"),
        )

    def _require_choice(self, name: str, choices: Sequence[str]) -> None:
        if getattr(self, name) not in choices:
            allowed = ", ".join(map(repr, choices))
            raise ValueError(f"`{name}` is {getattr(self, name)!r}, which is unknown; choose one of {allowed}.")

    def _require(self, *rules: tuple[str, bool, str]) -> None:
        for name, holds, allowed in rules:
            if not holds:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be {allowed}.")


@help_from_docstring
@dataclass
class MaxMinConfigMixin(WelfareConfigMixin):
    """Fields that a MaxMin trainer's configuration has beside those of its host: those of [`WelfareConfigMixin`], and

    > Parameters that control what happens when weights go in circles

    Args:
        oscillation (`str`, *optional*, defaults to `"warn"`):
            What to do when `"maxmin"` goes in circles, that is when the worst-off group alternates while the worst
            utility stalls: `"warn"` (once), `"stop"` the training, or `"ignore"`.
        oscillation_window (`int`, *optional*, defaults to 20):
            Number of rollouts over which that is looked at; at least 4.

    > Parameters that control the utility

    Args:
        utility (`str`, *optional*):
            `"zscore"`, `"win_rate"` or `"raw"`. Default: `"zscore"` for several components, `"raw"` for one.
        num_reference_completions (`int`, *optional*, defaults to 8):
            Replies of the reference policy per prompt that utilities are measured against; at least 4.
        max_calibration_prompts (`int`, *optional*, defaults to 1024):
            Number of distinct prompts that get reference replies.
        generation_backend (`str`, *optional*, defaults to `"generate"`):
            Who samples them (and the rollouts of PPO): `"generate"`, `"continuous_batching"` of transformers, or
            `"auto"`, which chooses by device and sizes. For rollouts of GRPO and RLOO TRL has options of its own.
    """

    utility: str | None = None
    num_reference_completions: int = 8
    max_calibration_prompts: int = 1024
    generation_backend: str = "generate"
    oscillation: str = "warn"
    oscillation_window: int = 20

    def _validate_maxmin(self) -> None:
        super()._validate_maxmin()
        self._require_choice("oscillation", OSCILLATION_CHOICES)
        if self.utility is not None and self.utility not in UTILITY_KINDS:
            allowed = ", ".join(map(repr, UTILITY_KINDS))
            raise ValueError(f"`utility` is {self.utility!r}, which is unknown; choose one of {allowed}, or None.")
        if self.generation_backend != "vllm" or hasattr(self, "use_vllm"):  # PPO has it; TRL's own come by `use_vllm`
            check_backend(self.generation_backend)
        if getattr(self, "reward_weights", None) is not None:
            raise ValueError(
                f"`reward_weights` is {self.reward_weights}, but a MaxMin trainer decides the weights by `welfare`; "
                "leave it out, or use the host trainer for fixed weights."
            )
        self._require(
            ("num_reference_completions", self.num_reference_completions >= 4, "at least 4, to estimate a spread"),
            ("max_calibration_prompts", self.max_calibration_prompts >= 1, "at least 1"),
            ("oscillation_window", self.oscillation_window >= 4, "at least 4, to see a trend"),
        )
