# SPDX-License-Identifier: Apache-2.0
"""What EM has found: scores of pairs, posteriors of annotators, figures on held-out pairs."""

from __future__ import annotations

import torch
from datasets import Dataset

from ... import distributed
from ...functional.em import annotator_log_likelihood, log_responsibilities, predictive_log_likelihood
from ...functional.preference import fit_temperature, preference_log_likelihood
from ...models import AnnotatorPosterior
from .em_state import EMState


class EMResultsMixin:
    """Put before [`MixtureRewardTrainer`]'s other bases; its methods read the trainer's data, mixture and state.

    Attributes:
        em_state ([`EMState`]): responsibilities `(H, K)`, mixing weights `(K,)`.
    """

    em_state: EMState

    @staticmethod
    def _log_likelihood(dataset: Dataset, differences: torch.Tensor) -> torch.Tensor:
        margin = torch.tensor(dataset["margin"]) if "margin" in dataset.column_names else None
        return preference_log_likelihood(differences, torch.zeros_like(differences), margin)

    @torch.no_grad()
    def reward_differences(self, dataset: Dataset) -> torch.Tensor:
        """Reward of the chosen minus that of the rejected reply, in one batched forward for all components.

        Args:
            dataset (`Dataset`): as held in `train_dataset` or `eval_dataset`. Ranks share the work.

        Returns:
            `torch.Tensor` of shape `(N, K)`, Bradley-Terry log-odds, on the CPU.
        """
        model, training = self.mixture, self.mixture.training
        if not self.args.train_trunk:
            pairs = self.feature_pairs(dataset)
            rewards = model.rewards_from_features(pairs.features.unsqueeze(1).to(model.device)).float().cpu()
            return rewards[pairs.chosen] - rewards[pairs.rejected]
        model.eval()
        differences = torch.zeros(len(dataset), model.num_components, device=self.accelerator.device)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for number, batch in enumerate(self._batches(dataset)):
            if number % world == rank:
                chosen, rejected = model(batch["input_ids"], batch["attention_mask"]).rewards.float().chunk(2)
                differences[batch["pair_index"]] = chosen - rejected
        model.train(training)
        return distributed.sum_over_ranks(self.accelerator, differences).cpu()

    def _calibrate_temperatures(self) -> None:
        differences = self.reward_differences(self.eval_dataset).double()
        responsibilities = self._eval_responsibilities()
        margin = None
        if "margin" in self.eval_dataset.column_names:
            margin = torch.tensor(self.eval_dataset["margin"], dtype=torch.float64)
        self.mixture.scale_heads(
            [fit_temperature(d, w, margin) for d, w in zip(differences.T, responsibilities.T, strict=True)]
        )

    def _eval_responsibilities(self) -> torch.Tensor:
        """`(N, K)` posterior of the annotator of each held-out pair, from their training pairs only."""
        annotators = torch.tensor(self.eval_dataset["annotator_index"])
        responsibilities = self.em_state.responsibilities(annotators.clamp(min=0)).double()
        responsibilities[annotators < 0] = self.em_state.mixing_weights
        return responsibilities

    def heldout_log_likelihood(self) -> torch.Tensor:
        """Predictive log-likelihood of each held-out pair given its annotator's other pairs.

        Returns:
            `torch.Tensor` of shape `(N,)`, nats. Its mean compares numbers of components.

        Raises:
            ValueError: no pairs are held out.
        """
        if self.eval_dataset is None:
            raise ValueError("No pairs are held out. Give `eval_dataset` or set `heldout_fraction` above 0.")
        scores = self._log_likelihood(self.eval_dataset, self.reward_differences(self.eval_dataset).double())
        return predictive_log_likelihood(
            scores, self._eval_responsibilities().log(), torch.arange(len(self.eval_dataset))
        )

    def posterior(self) -> AnnotatorPosterior:
        """Which component describes each annotator, by all their pairs.

        Held-out pairs count here, as they may once everything is measured; `em_state.log_responsibilities` is what the
        training pairs alone say. All ranks have to call it: they share the held-out pairs.

        Returns:
            [`AnnotatorPosterior`]: `(H, K)`. Stays on this machine.
        """
        state = self.em_state
        scores, index = state.evidence()
        evidence, annotators = [scores.double()], [index]
        if self.eval_dataset is not None:
            known = torch.tensor(self.eval_dataset["annotator_index"])
            scores = self._log_likelihood(self.eval_dataset, self.reward_differences(self.eval_dataset).double())
            evidence.append(scores[known >= 0])
            annotators.append(known[known >= 0])
        index = torch.cat(annotators)
        sums = annotator_log_likelihood(torch.cat(evidence), index, len(self.annotators))
        log_resp = state.with_known(log_responsibilities(sums, state.mixing_weights.log()))
        counts = torch.bincount(index, minlength=len(self.annotators))
        return AnnotatorPosterior(self.annotators.annotator_ids, log_resp.exp(), counts)

    def assignments(self) -> dict[str | int, str]:
        """Component name of each annotator, by all their pairs. All ranks have to call it. Stays on this machine."""
        names = self.mixture.component_names
        best = self.posterior().probabilities.argmax(-1).tolist()
        return {annotator: names[k] for annotator, k in zip(self.annotators.annotator_ids, best, strict=True)}
