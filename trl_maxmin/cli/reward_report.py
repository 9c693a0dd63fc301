# SPDX-License-Identifier: Apache-2.0
"""What `trl-maxmin reward` ends with: how good each component is, whom it describes, and what they prefer."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset

from ..data.texts import prompts_of
from ..space.groups import PARTS, typical_pairs
from ..trainer import MixtureRewardTrainer
from ..trainer.reward.scored_rows import ScoredPairs, ScoredRankings
from .io import print_table


#: Held-out pairs below which an accuracy says little: its standard error is above 0.09.
FEW_PAIRS = 30
_WIDTH = 90


def clustered_mean(values: torch.Tensor, clusters: torch.Tensor) -> tuple[float, float]:
    """Mean and its standard error, where values of one annotator are not independent.

    Args:
        values (`torch.Tensor` of shape `(N,)`): numbers.
        clusters (`torch.Tensor` of shape `(N,)`): whose they are.

    Example:

    >>> mean, error = clustered_mean(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1]))
    >>> mean, round(error, 3)
    (0.5, 0.5)
    """
    values = values.double()
    sums = torch.zeros(int(clusters.max()) + 1, dtype=torch.float64).index_add(0, clusters, values - values.mean())
    people = len(clusters.unique())
    # The usual factor for few clusters; one annotator has no spread to others.
    factor = people / (people - 1) if people > 1 else float("nan")
    return values.mean().item(), (factor * sums.square().sum()).sqrt().item() / len(values)


def print_report(trainer: MixtureRewardTrainer) -> None:
    """Tables, caveats and typical pairs or rankings. All ranks have to call it: they share the scoring; what only
    the main process prints goes to its standard output.

    Args:
        trainer ([`MixtureRewardTrainer`]): trained.
    """
    heldout = trainer.eval_dataset is not None
    data = trainer.eval_dataset if heldout else trainer.train_dataset
    scored = trainer.scored(data)
    unit = "rankings" if isinstance(scored, ScoredRankings) else "pairs"
    if not trainer.accelerator.is_main_process:
        return
    mixture, state = trainer.mixture, trainer.em_state
    names, shares = mixture.component_names, state.mixing_weights.tolist()
    best = state.log_responsibilities.argmax(-1).cpu()
    people = torch.tensor(data["annotator_index"])
    own = torch.where(people >= 0, best[people.clamp(min=0)], -1)
    fit = trainer.row_log_likelihood(scored, data)
    right, tau = scored.accuracy, scored.tau
    rows, notes = [], []
    for k, name in enumerate(names):
        of_k = own == k
        row = [name, f"{shares[k]:.2f}", str(int((best == k).sum())), str(int(of_k.sum())) if heldout else "-"]
        if heldout and of_k.any():
            accuracy, error = clustered_mean(right[of_k, k], people[of_k])
            row += [f"{accuracy:.2f} ± {error:.2f}", f"{fit[of_k, k].mean():.3f}"]
            row += [] if tau is None else [f"{tau[of_k, k].mean():.2f}"]
        else:
            row += ["-", "-"] if tau is None else ["-", "-", "-"]
        rows.append(row)
        if k not in mixture.described_components:
            notes.append(f"{name} describes no annotator; a policy is not trained for it.")
        elif heldout and of_k.sum() < FEW_PAIRS:
            notes.append(f"{name} has {int(of_k.sum())} held-out {unit}: too few to say how good it is.")
    print_table(
        f"Components, on held-out {unit} of the annotators that their other {unit} give to each (± standard error)",
        ["component", "share", "annotators", unit, "accuracy", "log-likelihood"]
        if tau is None
        else ["component", "share", "annotators", unit, "top-1", "log-likelihood", "Kendall's tau"],
        rows,
    )
    if heldout:
        print(_overall(trainer, scored, fit, people, unit))
    else:
        notes.append(f"No {unit} are held out, so nothing says how good the components are (--heldout_fraction).")
    if trainer.final_facts.get("converged") is False:
        notes.append("EM has not come to rest: shares and annotators may still change (--max_steps, --n_init).")
    for note in notes:
        print(f"note: {note}")
    prompts, (chosen, rejected), contrast = prompts_of(data), _ends(scored, data), scored.contrast.double()
    for k in mixture.described_components if len(names) > 1 else ():
        of_k = (own == k).nonzero().flatten().tolist()
        print(f"\n{names[k]}: typical {'held-out ' if heldout else ''}{unit} of its annotators")
        for pair in typical_pairs(prompts, chosen, rejected, contrast, of_k, k):
            for part in PARTS:
                print(f"  {part + ':':<10}{_short(pair[part])}")
            print()


def _overall(
    trainer: MixtureRewardTrainer,
    scored: ScoredPairs | ScoredRankings,
    fit: torch.Tensor,
    people: torch.Tensor,
    unit: str,
) -> str:
    """How well held-out rows are predicted by the posterior of who gave them, beside what chance would reach."""
    right, tau = scored.of_mixture(trainer.log_posterior_of(people), fit)
    accuracy, error = clustered_mean(right, people + 1)
    predictive = trainer.predictive_log_likelihood(fit).mean()
    coin = scored.by_chance()
    found = f"accuracy {accuracy:.4f} ± {error:.4f}"
    if tau is not None:
        agreement, spread = clustered_mean(tau, people + 1)
        found = f"top-1 {found}, Kendall's tau {agreement:.4f} ± {spread:.4f}"
    chance = f"{coin[0]:.4g}, {coin[1]:.4f}" if tau is None else f"{coin[0]:.4g}, 0, {coin[1]:.4f}"
    return f"on {len(people)} held-out {unit}: {found}, log-likelihood {predictive:.4f} (chance: {chance})"


def _ends(scored: ScoredPairs | ScoredRankings, data: Dataset) -> tuple[list[Any], list[Any]]:
    """The preferred and the other reply of each row: of rankings the first and the last."""
    if isinstance(scored, ScoredPairs):
        return list(data["chosen"]), list(data["rejected"])
    sides = ([own[at] for own, at in zip(data["responses"], side.tolist(), strict=True)] for side in scored.ends())
    best, last = sides
    return best, last


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
