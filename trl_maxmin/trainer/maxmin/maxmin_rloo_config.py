# SPDX-License-Identifier: Apache-2.0
"""Training arguments of [`MaxMinRLOOTrainer`]."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from trl import RLOOConfig

from ..common.config_help import help_from_docstring
from .maxmin_config import MaxMinConfigMixin


@help_from_docstring
@dataclass
class MaxMinRLOOConfig(MaxMinConfigMixin, RLOOConfig):
    """
    Configuration of [`MaxMinRLOOTrainer`]: the fields of TRL's `RLOOConfig`, with its defaults (`beta=0.05`,
    advantages not normalised) but for one, and those of [`MaxMinConfigMixin`] that say whom the policy serves and on
    which scale groups are compared.

    > Parameters whose defaults differ from TRL's

    Args:
        disable_dropout (`bool`, *optional*, defaults to `True`):
            TRL's default is `False`. Dropout makes a policy differ from its reference before anything is learned:
            GPT-2's usual rates alone are a KL of 0.6 nats a token at step 0.

    Example:

    >>> MaxMinRLOOConfig(output_dir="policy", welfare="softmin", report_to="none", use_cpu=True).beta
    0.05
    """

    disable_dropout: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta == 0.0:
            warnings.warn(
                "`beta` is 0: without a KL term the policy may drift arbitrarily far for the worst-off group, and "
                "hard switching does not come to rest; use the default, or `welfare='mirror'`.",
                stacklevel=3,
            )
