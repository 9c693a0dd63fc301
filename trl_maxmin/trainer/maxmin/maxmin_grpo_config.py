# SPDX-License-Identifier: Apache-2.0
"""Training arguments of [`MaxMinGRPOTrainer`]."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from trl import GRPOConfig

from ..common.config_help import help_from_docstring
from .maxmin_config import MaxMinConfigMixin


@help_from_docstring
@dataclass
class MaxMinGRPOConfig(MaxMinConfigMixin, GRPOConfig):
    """
    Configuration of [`MaxMinGRPOTrainer`]: the fields of TRL's `GRPOConfig`, and those of [`MaxMinConfigMixin`] that
    say whom the policy serves and on which scale groups are compared.

    > Parameters whose defaults differ from TRL's

    Args:
        beta (`float`, *optional*, defaults to `0.04`):
            Coefficient of the KL to the reference policy; TRL's default is 0. The objective has a KL term, and hard
            switching between groups only comes to rest with one. The value is that of the GRPO paper
            (arXiv 2402.03300).
        scale_rewards (`str` or `bool`, *optional*, defaults to `"none"`):
            TRL's default divides by the spread within each group of replies, which undoes the calibration: a group
            for which nothing is at stake on a prompt would count as much as one for which everything is.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            TRL's default is `False`. Dropout makes a policy differ from its reference before anything is learned:
            GPT-2's usual rates alone are a KL of 0.6 nats a token at step 0.

    Raises:
        `ValueError`: `multi_objective_aggregation="normalize_then_sum"`, which standardises each component by itself,
            so that the weights no longer mean what the welfare rule decided.

    Example:

    >>> config = MaxMinGRPOConfig(output_dir="policy", welfare="mirror", report_to="none", use_cpu=True)
    >>> config.beta, config.scale_rewards
    (0.04, 'none')
    """

    beta: float = 0.04
    scale_rewards: str = "none"
    disable_dropout: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_objective_aggregation == "normalize_then_sum":
            raise ValueError(
                "`multi_objective_aggregation` is 'normalize_then_sum', which standardises every component by itself "
                "before the weights apply, so that they would no longer mean what the welfare rule decided; use "
                "'sum_then_normalize' (the default)."
            )
        if self.scale_rewards != "none":
            warnings.warn(
                f"`scale_rewards` is {self.scale_rewards!r}: dividing by a standard deviation undoes the calibration "
                "of the utilities; use 'none' unless you know why not.",
                stacklevel=3,
            )
        if self.beta == 0.0:
            warnings.warn(
                "`beta` is 0: without a KL term the policy may drift arbitrarily far for the worst-off group, and "
                "hard switching does not come to rest; use the default, or `welfare='mirror'`.",
                stacklevel=3,
            )
