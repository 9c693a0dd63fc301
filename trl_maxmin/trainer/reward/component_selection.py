# SPDX-License-Identifier: Apache-2.0
"""How many components the data support: the numbers, the verdict in words, the table and the plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...functional.em import NumComponentsSelection, select_num_components


@dataclass(frozen=True)
class ComponentSelection:
    """The choice of K by cross-validation. Every dictionary has the candidate K as keys.

    Args:
        num_components (`int`): the smallest K within one standard error of the best.
        best (`int`): the K of highest predictive log-likelihood.
        log_likelihood (`dict[int, float]`): mean predictive log-likelihood of a pair, nats.
        difference (`dict[int, float]`): how much worse than the best, nats per pair.
        standard_error (`dict[int, float]`): of that paired difference, clustered by annotator.
        accuracy (`dict[int, float]`): share of pairs to whose chosen reply the annotator's posterior gives more than
            one half.
        num_pairs, num_annotators (`int`): what the numbers rest on: held-out pairs, and whose they are.
    """

    num_components: int
    best: int
    log_likelihood: dict[int, float]
    difference: dict[int, float]
    standard_error: dict[int, float]
    accuracy: dict[int, float]
    num_pairs: int
    num_annotators: int

    @classmethod
    def from_scores(cls, scores: dict[int, torch.Tensor], annotator_index: torch.Tensor) -> ComponentSelection:
        """Decide from the predictive log-likelihoods `(N,)` of the same held-out pairs under each K.

        NaN marks pairs that could not be held out ([`deal_folds`][trl_maxmin.functional.em_features.deal_folds]); they
        do not count.

        Raises:
            ValueError: pairs of fewer than two annotators have scores; else as [`select_num_components`].
        """
        scored = torch.stack([value.isfinite() for value in scores.values()]).all(0)
        if len(annotator_index[scored].unique()) < 2:
            raise ValueError(
                f"Of {len(scored)} pairs {int(scored.sum())} can be held out, of fewer than 2 annotators: nearly all "
                "consist of texts that the same annotator judges in other pairs too. Give num_components, or more "
                "texts for each annotator."
            )
        scores, annotator_index = {k: value[scored] for k, value in scores.items()}, annotator_index[scored]
        chosen: NumComponentsSelection = select_num_components(scores, annotator_index)
        accuracy = {k: (value.exp() > 0.5).double().mean().item() for k, value in scores.items()}
        return cls(
            chosen.num_components,
            chosen.best,
            chosen.mean,
            chosen.difference,
            chosen.standard_error,
            accuracy,
            len(annotator_index),
            len(annotator_index.unique()),
        )

    def verdict(self) -> str:
        """The choice in words.

        Example:

        >>> same = {1: 0.0, 2: 0.0}
        >>> ComponentSelection(1, 1, same, same, same, same, 90, 9).verdict()
        'K = 1: no evidence of groups in these data (K = 1 predicts held-out pairs best of K = 1, 2).'
        """
        tried = ", ".join(map(str, sorted(self.log_likelihood)))
        k, best = self.num_components, self.best
        if k == best:
            detail = f"K = {k} predicts held-out pairs best of K = {tried}"
        else:
            detail = (
                f"K = {best} gains {self.difference[k]:.4f} nats a pair, within one standard error "
                f"({self.standard_error[k]:.4f})"
            )
        if k == 1:
            return f"K = 1: no evidence of groups in these data ({detail})."
        lost = self.log_likelihood[k] - self.log_likelihood[min(self.log_likelihood)]
        gain = f"; {lost:+.4f} nats a pair against K = {min(self.log_likelihood)}"
        return f"K = {k}: the annotators are better described by {k} components than by fewer ({detail}{gain})."

    def rows(self) -> list[list[str]]:
        """The table: K, log-likelihood, difference to the best with its standard error, accuracy."""
        return [
            [
                f"{k}{' *' if k == self.num_components else ''}",
                f"{self.log_likelihood[k]:.4f}",
                f"{self.difference[k]:.4f} ± {self.standard_error[k]:.4f}",
                f"{self.accuracy[k]:.4f}",
            ]
            for k in sorted(self.log_likelihood)
        ]

    def save(self, folder: str | Path) -> None:
        """Write `selection.json` and `selection.png`; no annotator is named in either."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {**asdict(self), "verdict": self.verdict()}
        (folder / "selection.json").write_text(json.dumps(facts, indent=2) + "\n")
        self.plot(folder / "selection.png")

    def plot(self, path: str | Path) -> None:
        """Predictive log-likelihood over K; the bars are one standard error of the difference to the best."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        candidates = sorted(self.log_likelihood)
        values = [self.log_likelihood[k] for k in candidates]
        axes.errorbar(candidates, values, yerr=[self.standard_error[k] for k in candidates], marker="o", capsize=4)
        axes.axvline(self.num_components, linestyle=":", color="gray")
        axes.set_xticks(candidates)
        axes.set_xlabel("components K (dotted: chosen)")
        axes.set_ylabel("held-out log-likelihood [nats per pair]")
        axes.set_title(self.verdict().split(" (")[0], fontsize=9)
        figure.savefig(path, dpi=120)


def parse_candidates(text: str) -> list[int]:
    """Candidate K of `--select`.

    Raises:
        ValueError: not whole numbers of at least 1, separated by commas.

    Example:

    >>> parse_candidates("3,1,2")
    [1, 2, 3]
    """
    try:
        candidates = sorted({int(part) for part in str(text).split(",")})
    except ValueError:
        candidates = []
    if not candidates or candidates[0] < 1:
        raise ValueError(f"select must be whole numbers of at least 1, separated by commas ('1,2,3,4'), got {text!r}.")
    return candidates
