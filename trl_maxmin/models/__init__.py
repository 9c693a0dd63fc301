# SPDX-License-Identifier: Apache-2.0
"""The mixture of reward models and its configuration."""

from .configuration_mixture_reward import MixtureRewardModelConfig
from .modeling_mixture_reward import MixtureRewardModel
from .outputs import AnnotatorPosterior, MixtureRewardOutput


__all__ = ["AnnotatorPosterior", "MixtureRewardModel", "MixtureRewardModelConfig", "MixtureRewardOutput"]
