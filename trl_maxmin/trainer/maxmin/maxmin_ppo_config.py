# SPDX-License-Identifier: Apache-2.0
"""Training arguments of [`MaxMinPPOTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass

from ..ppo.ppo_config import PPOConfig
from .maxmin_config import MaxMinConfigMixin


@dataclass
class MaxMinPPOConfig(MaxMinConfigMixin, PPOConfig):
    """
    Configuration of [`MaxMinPPOTrainer`]: the fields of [`PPOConfig`], and those of [`MaxMinConfigMixin`] that say
    whom the policy serves and on which scale groups are compared.

    Example:

    >>> MaxMinPPOConfig(output_dir="policy", welfare="softmin", welfare_temperature=0.5, report_to="none").welfare
    'softmin'
    """
