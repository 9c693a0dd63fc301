# SPDX-License-Identifier: Apache-2.0
"""Training arguments of [`MaxMinRLOOTrainer`]."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from trl import RLOOConfig

from .maxmin_config import MaxMinConfigMixin


@dataclass
class MaxMinRLOOConfig(MaxMinConfigMixin, RLOOConfig):
    """
    Configuration of [`MaxMinRLOOTrainer`]: the fields of TRL's `RLOOConfig`, with its defaults (`beta=0.05`,
    advantages not normalised), and those of [`MaxMinConfigMixin`] that say whom the policy serves and on which scale
    groups are compared.

    Example:

    >>> MaxMinRLOOConfig(output_dir="policy", welfare="softmin", report_to="none", use_cpu=True).beta
    0.05
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta == 0.0:
            warnings.warn(
                "`beta` is 0: without a KL term the policy may drift arbitrarily far for the worst-off group, and "
                "hard switching does not come to rest; use the default, or `welfare='mirror'`.",
                stacklevel=3,
            )
