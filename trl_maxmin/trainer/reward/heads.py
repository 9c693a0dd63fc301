# SPDX-License-Identifier: Apache-2.0
"""The linear heads of a mixture: what they read, what they are set to, how sure they may be, what they are called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.logging import get_logger

from ...functional.em_features import fit_feature_mixture
from ...functional.feature_pairs import FeaturePairs
from ...functional.feature_rankings import FeatureRankings
from ...models import MixtureRewardModel
from ...models.families import get_linear


logger = get_logger(__name__)

#: Width of the nonlinear map of the heads, where nobody says otherwise.
KERNEL_FEATURES = 2048


def fit_feature_map(
    mixture: MixtureRewardModel,
    pairs: FeaturePairs | FeatureRankings,
    num_annotators: int,
    seed: int,
    choose: bool,
    **options: Any,
) -> None:
    """Fit the kernel features to the texts; where the choice is ours, keep them only if they predict better.

    All ranks hold the same features and come to the same result.

    Args:
        mixture ([`MixtureRewardModel`]): changed in place. Without a `feature_map` nothing happens.
        pairs ([`FeaturePairs`] or rankings): the training rows over what the map reads. Their texts may hold those of
            held-out rows: which texts exist says nothing about who prefers what.
        num_annotators (`int`): H.
        seed (`int`): of the frequencies and of the two fits that are compared.
        choose (`bool`): whether the map goes where heads without it predict pairs out of fold as well.
        **options: of [`fit_feature_mixture`].
    """
    if mixture.feature_map is None:
        return
    mixture.feature_map.fit(pairs.features, torch.Generator().manual_seed(seed))
    if not choose:
        return
    device = mixture.feature_map.center.device
    features = {"linear": pairs.features, "kernel": mixture.map_features(pairs.features.to(device)).cpu()}
    scores = {}
    for name, read in features.items():
        generator = torch.Generator().manual_seed(seed)
        one = fit_feature_mixture(replace(pairs, features=read), num_annotators, 1, generator=generator, **options)
        scores[name] = one.score
    if scores["linear"] >= scores["kernel"]:
        mixture.drop_feature_map()
    kept = "linear" if mixture.feature_map is None else f"on {mixture.config.kernel_features} kernel features"
    logger.info(
        f"Heads are {kept}: out of fold, one component predicts {scores['linear']:.4f} nats a pair with linear heads "
        f"and {scores['kernel']:.4f} with kernel features."
    )


@torch.no_grad()
def set_heads(mixture: MixtureRewardModel, weight: torch.Tensor) -> None:
    """Give the heads the weights `(K, D)` of linear rewards, Bradley-Terry log-odds."""
    one_trunk = len(mixture.components) == 1
    for k, row in enumerate(weight):
        linear = get_linear(mixture.components[0 if one_trunk else k])
        linear.weight[k if one_trunk else 0] = row.to(linear.weight)


def fit_temperatures(
    fit: Callable[[int, torch.Tensor], float],
    responsibilities: torch.Tensor,
    described: Sequence[int],
    names: Sequence[str],
) -> list[float]:
    """A temperature per component, from the held-out pairs of those whom it describes.

    Args:
        fit (`Callable`): temperature of component k for weights `(N,)` of the held-out pairs or rankings, such as
            [`ScoredPairs.temperature`].
        responsibilities (`torch.Tensor` of shape `(N, K)`): of their annotators, from their training pairs.
        described (`Sequence[int]`): components that describe somebody.
        names (`Sequence[str]`): K names, for the warning.

    Returns:
        `list[float]`: K temperatures. A component that describes nobody, or nobody with a held-out pair, cannot be
        calibrated: it gets 1, with a warning.
    """
    own = responsibilities >= responsibilities.amax(1, keepdim=True)
    fitted = [k for k in described if own[:, k].any()]
    if bare := [name for k, name in enumerate(names) if k not in fitted]:
        logger.warning(
            f"{', '.join(bare)} got the temperature 1: of the annotators whom it describes no pair is held out, so "
            "nothing says how sure its rewards may be. Collect more pairs of each of them, or fit fewer components."
        )
    return [fit(k, weights) if k in fitted else 1.0 for k, weights in enumerate(responsibilities.T)]


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
