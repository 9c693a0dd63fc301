# SPDX-License-Identifier: Apache-2.0
"""The mathematics: pure functions on tensors. No Trainer, no Hub, no collective, no global random state."""

from .em import (
    NumComponentsSelection,
    annealed_beta,
    annotator_log_likelihood,
    classification_log_likelihood,
    hard_assignment,
    log_responsibilities,
    lower_bound,
    posterior_entropy,
    predictive_log_likelihood,
    select_num_components,
    update_mixing_weights,
)
from .logprobs import token_logprobs
from .ordered_welfare import gini_weights, leximin_weights, minus_regret, pmean_weights
from .oscillation import switching_stalls
from .preference import fit_temperature, preference_accuracy, preference_log_likelihood
from .ranking import RankedChoices, fit_ranking_temperature, ranking_log_likelihood
from .simplex import apply_weight_floor, project_to_simplex
from .utility import win_rate_utility, within_prompt_scale, zscore_utility
from .welfare import (
    WELFARE_RULES,
    maxmin_weights,
    mirror_weights,
    mixing_weights_rule,
    nash_weights,
    sample_min,
    softmin_weights,
    utilitarian_weights,
    welfare_weights,
)


__all__ = [
    "WELFARE_RULES",
    "NumComponentsSelection",
    "RankedChoices",
    "annealed_beta",
    "annotator_log_likelihood",
    "apply_weight_floor",
    "classification_log_likelihood",
    "fit_ranking_temperature",
    "fit_temperature",
    "gini_weights",
    "hard_assignment",
    "leximin_weights",
    "log_responsibilities",
    "lower_bound",
    "maxmin_weights",
    "minus_regret",
    "mirror_weights",
    "mixing_weights_rule",
    "nash_weights",
    "pmean_weights",
    "posterior_entropy",
    "predictive_log_likelihood",
    "preference_accuracy",
    "preference_log_likelihood",
    "project_to_simplex",
    "ranking_log_likelihood",
    "sample_min",
    "select_num_components",
    "softmin_weights",
    "switching_stalls",
    "token_logprobs",
    "update_mixing_weights",
    "utilitarian_weights",
    "welfare_weights",
    "win_rate_utility",
    "within_prompt_scale",
    "zscore_utility",
]
