# SPDX-License-Identifier: Apache-2.0
"""What EM remembers between gradient steps, and the E-step that updates it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ...functional.em import (
    annotator_log_likelihood,
    assign_annotators,
    classification_log_likelihood,
    lower_bound,
    mixing_weights_of,
    posterior_entropy,
    with_known,
)


EM_STATE_NAME = "em_state.safetensors"


class EMState:
    """Responsibilities, mixing weights and the latest score of every training pair.

    Args:
        annotator_index (`torch.Tensor` of shape `(N,)`): annotator 0..H-1 of each pair.
        num_annotators (`int`): H.
        num_components (`int`): K.
        em (`str`): `"soft"` or `"hard"`.
        dirichlet_concentration (`float`): of the prior on the mixing weights (soft EM).
        known (`torch.Tensor` of shape `(H,)`, *optional*): component of each annotator where it is known, -1 where it
            is not. E-steps leave the known ones where they are.

    Attributes:
        log_responsibilities (`(H, K)`): log posterior of the component given the annotator's pairs.
        mixing_weights (`(K,)`): on the simplex.
        scores (`(N, K)`): log-likelihood of each pair under each component, nats; NaN = not scored yet.
        start_scores (`(N, K)` or `None`): the same from the start on the frozen trunk, out of fold.
        evidence_weight (`float`): of an annotator's pairs in their posterior, once EM has ended; E-steps have 1.
    """

    def __init__(
        self,
        annotator_index: torch.Tensor,
        num_annotators: int,
        num_components: int,
        em: str = "soft",
        dirichlet_concentration: float = 1.0,
        known: torch.Tensor | None = None,
    ) -> None:
        self.annotator_index = annotator_index
        self.num_annotators = num_annotators
        self.num_components = num_components
        self.em = em
        self.dirichlet_concentration = dirichlet_concentration
        uniform = torch.full((num_components,), 1 / num_components, dtype=torch.float64)
        self.mixing_weights = uniform
        self.known = known
        self.log_responsibilities = with_known(uniform.log().repeat(num_annotators, 1), known)
        self.scores = torch.full((len(annotator_index), num_components), float("nan"))
        self.start_scores: torch.Tensor | None = None
        self.evidence_weight = 1.0
        self.changed = 1.0
        self.bound = float("-inf")

    def responsibilities(self, annotator_index: torch.Tensor) -> torch.Tensor:
        """`(B, K)`: how much each component owns the pairs of these annotators; rows sum to 1."""
        return self.log_responsibilities.exp()[annotator_index.cpu()].float().to(annotator_index.device)

    def record(self, pair_index: torch.Tensor, log_likelihood: torch.Tensor) -> None:
        """Remember the scores of some pairs, `(B,)` and `(B, K)`; the latest counts."""
        self.scores[pair_index.cpu()] = log_likelihood.detach().float().cpu()

    def pair_scores(self) -> torch.Tensor:
        """`(N, K)`: what each training pair counts, nats; NaN where it has not been scored."""
        return self.scores if self.start_scores is None else (self.scores + self.start_scores) / 2

    def evidence(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-likelihoods `(M, K)` of the pairs that have been scored, and their annotators `(M,)`.

        With a start on the frozen trunk: the mean of its out-of-fold score and the latest one. From the second epoch
        on a trunk has met the pairs it scores, under the responsibilities it is asked about; the start never has.
        """
        scores = self.pair_scores()
        scored = ~scores.isnan().any(dim=-1)
        return (scores, self.annotator_index) if scored.all() else (scores[scored], self.annotator_index[scored])

    def weigh(self, weight: float) -> None:
        """Give the evidence another weight, once EM has ended: posteriors follow; hard assignments stay."""
        self.evidence_weight = weight
        if self.em == "hard" or weight == 1:
            return
        scores, annotators = self.evidence()
        sums = annotator_log_likelihood(scores, annotators, self.num_annotators)
        self.log_responsibilities = assign_annotators(sums, self.mixing_weights.log(), beta=weight, known=self.known)

    def e_step(self, beta: float = 1.0) -> dict[str, float]:
        """Assign annotators from the evidence.

        Args:
            beta (`float`): inverse temperature of the posterior (soft EM).

        Returns:
            `dict`: `lower_bound` and `posterior_entropy` in nats per annotator, `assignment_changes` as a share of
            annotators, `beta`.
        """
        scores, annotators = self.evidence()
        sums = annotator_log_likelihood(scores, annotators, self.num_annotators)
        before = self.log_responsibilities.argmax(-1)
        log_resp = assign_annotators(sums, self.mixing_weights.log(), self.em, beta, before, self.known)
        self.log_responsibilities, after = log_resp, log_resp.argmax(-1)
        self.mixing_weights = mixing_weights_of(log_resp, self.em, self.dirichlet_concentration)
        if self.em == "hard":
            bound = classification_log_likelihood(sums, after)
        else:
            bound = lower_bound(sums, self.mixing_weights.log(), beta, self.dirichlet_concentration)
        self.changed = (after != before).double().mean().item()
        self.bound = bound.item() / self.num_annotators
        return {
            "em/lower_bound": self.bound,
            "em/posterior_entropy": posterior_entropy(self.log_responsibilities).mean().item(),
            "em/assignment_changes": self.changed,
            "em/beta": beta,
        }

    def posterior(
        self, log_likelihood: torch.Tensor, annotator_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Soft posterior by the evidence and further pairs, under `evidence_weight`.

        Args:
            log_likelihood (`torch.Tensor` of shape `(M, K)`): of the further pairs, nats.
            annotator_index (`torch.Tensor` of shape `(M,)`): theirs; pairs of -1 do not count.

        Returns:
            `torch.Tensor` of shape `(H, K)`: probabilities, and `(H,)`: how many pairs they rest on.
        """
        scores, index = self.evidence()
        known = annotator_index >= 0
        index = torch.cat([index, annotator_index[known]])
        scores = torch.cat([scores.double(), log_likelihood[known].double()])
        sums = annotator_log_likelihood(scores, index, self.num_annotators)
        log_resp = assign_annotators(sums, self.mixing_weights.log(), beta=self.evidence_weight, known=self.known)
        return log_resp.exp(), torch.bincount(index, minlength=self.num_annotators)

    def annotators_of_components(self) -> list[int] | None:
        """How many annotators each component describes; None while anybody's posterior is flat, as before the first
        E-step, since it is not known then that a component describes nobody."""
        best = self._described()
        return None if best is None else torch.bincount(best, minlength=self.num_components).tolist()

    def pairs_of_components(self) -> list[int] | None:
        """How many training pairs these annotators gave; None likewise."""
        best = self._described()
        if best is None:
            return None
        return torch.bincount(best[self.annotator_index], minlength=self.num_components).tolist()

    def _described(self) -> torch.Tensor | None:
        log_resp = self.log_responsibilities
        if self.num_components > 1 and not (log_resp.amax(-1) > log_resp.amin(-1)).all():
            return None
        return log_resp.argmax(-1)

    def converged(self, tolerance: float = 0.02) -> bool:
        """Whether the last E-step moved at most this share of the annotators to another component."""
        return self.changed <= tolerance

    def save(self, folder: str | Path) -> None:
        """Write the state into a checkpoint folder (annotators by number, never by id)."""
        tensors = {
            "log_responsibilities": self.log_responsibilities,
            "mixing_weights": self.mixing_weights,
            "scores": self.scores,
            "progress": torch.tensor([self.changed, self.bound], dtype=torch.float64),
        }
        if self.start_scores is not None:
            tensors["start_scores"] = self.start_scores
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(Path(folder) / EM_STATE_NAME))

    def load(self, folder: str | Path) -> None:
        """Read what [`~EMState.save`] wrote.

        Raises:
            ValueError: a checkpoint of another trainer, of other data or of another K.
        """
        if not (Path(folder) / EM_STATE_NAME).is_file():
            raise ValueError(
                f"{folder} holds no {EM_STATE_NAME}, so it is no checkpoint of a mixture's training: who belongs "
                "where would be found anew and the heads in it be lost. Resume from a checkpoint of such a run, or "
                "give its mixture as `model` to train it further."
            )
        tensors = load_file(str(Path(folder) / EM_STATE_NAME))
        if tensors["scores"].shape != self.scores.shape:
            raise ValueError(
                f"The checkpoint holds {tuple(tensors['scores'].shape)} (pairs, components), this run has "
                f"{tuple(self.scores.shape)}. Resume with the data and the number of components it was started with."
            )
        self.log_responsibilities = tensors["log_responsibilities"]
        self.mixing_weights = tensors["mixing_weights"]
        self.scores = tensors["scores"]
        self.start_scores = tensors.get("start_scores")
        self.changed, self.bound = tensors["progress"].tolist()
