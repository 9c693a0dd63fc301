# SPDX-License-Identifier: Apache-2.0
"""On a trunk that is not moving: encode each distinct text once, choose K, fit the heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from transformers.trainer_utils import TrainOutput

from ... import distributed
from ...functional.em_features import FeaturePairs, cross_validated_scores, fit_feature_mixture
from ...functional.em_linear import LinearMixture
from ...models.scoring import pad_sequences
from .component_selection import ComponentSelection


logger = get_logger(__name__)

#: Width of the nonlinear map of the heads, where nobody says otherwise.
KERNEL_FEATURES = 2048


class FrozenTrunkMixin:
    """Put before [`MixtureRewardTrainer`]'s other bases; its methods read the trainer's data and mixture.

    Attributes:
        selection ([`ComponentSelection`] or `None`): the choice of K, where it was left to the data.
    """

    selection: ComponentSelection | None = None

    def feature_pairs(self, dataset: Dataset) -> FeaturePairs:
        """Pairs of a prepared data set over the features of its distinct texts; each text is encoded once in a run.

        Args:
            dataset (`Dataset`): as held in `train_dataset` or `eval_dataset`.

        Returns:
            [`FeaturePairs`] on the CPU. Annotators without training pairs have the index -1.
        """
        sides = []
        for side in ("chosen_ids", "rejected_ids"):
            sides.append([self._text_row(tuple(ids)) for ids in dataset[side]])
        self._encode_new_texts()
        margin = torch.tensor(dataset["margin"]) if "margin" in dataset.column_names else None
        annotators = torch.tensor(dataset["annotator_index"])
        features = self.mixture.map_features(self._text_features.to(self.accelerator.device)).cpu()
        return FeaturePairs(features, torch.tensor(sides[0]), torch.tensor(sides[1]), annotators, margin)

    def _prepare_heads(self) -> None:
        """Fit the kernel features to the training texts; where the choice is ours, keep them if they predict better.

        All ranks hold the same features and come to the same result.
        """
        mixture = self.mixture
        if mixture.feature_map is None:
            return
        self.feature_pairs(self.train_dataset)
        # Held-out texts may have been encoded before; which texts exist says nothing about who prefers what.
        mixture.feature_map.fit(self._text_features, torch.Generator().manual_seed(self.args.seed))
        if not self._choose_heads:
            return
        scores = {}
        for name, features in (("kernel", None), ("linear", self._text_features)):
            pairs = self.feature_pairs(self.train_dataset)
            pairs = pairs if features is None else replace(pairs, features=features)
            generator = torch.Generator().manual_seed(self.args.seed)
            fitted = fit_feature_mixture(pairs, len(self.annotators), 1, generator=generator, **self._fit_options())
            scores[name] = fitted.score
        if scores["linear"] >= scores["kernel"]:
            mixture.drop_feature_map()
        kept = "linear" if mixture.feature_map is None else f"on {mixture.config.kernel_features} kernel features"
        self._choose_heads = False
        logger.info(
            f"Heads are {kept}: out of fold, one component predicts {scores['linear']:.4f} nats a pair with linear "
            f"heads and {scores['kernel']:.4f} with kernel features."
        )

    def share_features(self, other: FrozenTrunkMixin) -> None:
        """Take over what another run has encoded with the same base, pooling and tokenizer.

        Args:
            other ([`MixtureRewardTrainer`]): a trainer that has encoded its texts.
        """
        self._text_rows, self._text_features = dict(other._text_rows), other._text_features

    def _text_row(self, ids: tuple[int, ...]) -> int:
        rows = self.__dict__.setdefault("_text_rows", {})
        return rows.setdefault(ids, len(rows))

    @torch.no_grad()
    def _encode_new_texts(self) -> None:
        rows = self.__dict__.setdefault("_text_rows", {})
        known = self.__dict__.get("_text_features", torch.zeros(0))
        new = list(rows)[len(known) :]
        if not new:
            return
        mixture, size = self.mixture, self.args.e_step_batch_size
        training = mixture.training
        mixture.eval()
        order = sorted(range(len(new)), key=lambda row: len(new[row]))
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        encoded = None
        for number, start in enumerate(range(0, len(order), size)):
            part = order[start : start + size]
            # The first batch tells every rank how wide the features are.
            if number and number % world != rank:
                continue
            ids, mask = pad_sequences([new[row] for row in part], self.processing_class.pad_token_id)
            device = self.accelerator.device
            features = mixture.trunk_features(ids.to(device), mask.to(device)).float()
            if encoded is None:
                encoded = torch.zeros(len(new), features.shape[-1], device=device)
            if number % world == rank:
                encoded[torch.tensor(part, device=device)] = features
        mixture.train(training)
        encoded = distributed.sum_over_ranks(self.accelerator, encoded).cpu()
        self._text_features = torch.cat([known, encoded]) if len(known) else encoded

    def _fit_options(self) -> dict[str, Any]:
        args = self.args
        return {"prior_scale": args.prior_scale, "dirichlet_concentration": args.dirichlet_concentration}

    def select_num_components(self, candidates: list[int]) -> ComponentSelection:
        """Cross-validate every candidate K on the training pairs, on the features of the trunk as it is.

        Args:
            candidates (`list[int]`): values of K.

        Returns:
            [`ComponentSelection`]; also kept as `self.selection`.

        Raises:
            ValueError: fewer annotators than the largest K, or than two.
        """
        if max(candidates) > len(self.annotators):
            raise ValueError(
                f"select={candidates} asks for up to {max(candidates)} components, but there are "
                f"{len(self.annotators)} annotators. Give smaller candidates."
            )
        pairs = self.feature_pairs(self.train_dataset)
        scores = {
            k: cross_validated_scores(
                pairs,
                len(self.annotators),
                k,
                seed=self.args.seed,
                num_init=3 * max(self.args.n_init, 1),
                **self._fit_options(),
            )
            for k in candidates
        }
        self.selection = ComponentSelection.from_scores(scores, pairs.annotator_index)
        logger.info(self.selection.verdict())
        return self.selection

    def _fit_heads(self, **options: Any) -> LinearMixture:
        """EM with the trunk frozen: heads, responsibilities and mixing weights, without a gradient loop.

        `options` are further ones of [`fit_feature_mixture`].
        """
        fitted = fit_feature_mixture(
            self.feature_pairs(self.train_dataset),
            len(self.annotators),
            self.mixture.num_components,
            generator=torch.Generator().manual_seed(self.args.seed),
            num_init=3 * max(self.args.n_init, 1),
            known=self.em_state.known,
            **self._fit_options(),
            **options,
        )
        self._set_heads(fitted.weight)
        state = self.em_state
        state.log_responsibilities, state.mixing_weights = fitted.log_responsibilities, fitted.mixing_weights
        state.record(torch.arange(len(fitted.scores)), fitted.scores)
        state.changed = 0.0
        state.bound = fitted.score * len(fitted.scores) / len(self.annotators)
        return fitted

    def _train_frozen(self) -> TrainOutput:
        self.mixture.freeze_trunk()
        fitted = self._fit_heads()
        self.em_history.append({"step": 0, "em/lower_bound": self.em_state.bound, "em/beta": 1.0})
        self._finish(last_e_step=False)
        metrics = {"train_loss": -fitted.score, "log_likelihood": fitted.score}
        self.state.log_history.append({"step": 0, **metrics})
        return TrainOutput(0, -fitted.score, metrics)
