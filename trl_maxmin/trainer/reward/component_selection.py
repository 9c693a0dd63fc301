# SPDX-License-Identifier: Apache-2.0
"""How many components the data support: the numbers, the verdict in words, the table and the plot."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...functional.num_components import RELEVANT_GAIN, Choice, needed


@dataclass(frozen=True)
class ComponentSelection(Choice):
    """The choice of K by cross-validation: a [`~trl_maxmin.functional.num_components.Choice`] with its words."""

    @classmethod
    def of(cls, choice: Choice) -> ComponentSelection:
        """The same numbers."""
        return cls(**{field.name: getattr(choice, field.name) for field in fields(Choice)})

    def verdict(self) -> str:
        """The choice in words."""
        if self.verdict_kind == "groups":
            answer = f"the annotators are better described by {self.num_components} components than by fewer"
        elif self.verdict_kind == "one":
            answer = "one reward suffices"
        else:
            answer = "these data cannot tell one reward from several, and the smallest K that was asked for is used"
        return f"{self.worse_than_a_coin()}K = {self.num_components}: {answer}. {self.evidence()}"

    def worse_than_a_coin(self) -> str:
        """What has to be said before anything else: a sentence with a space behind it, empty where it is not so."""
        if self.log_likelihood[self.best] >= self.chance:
            return ""
        return (
            f"Of new {self.unit}s even the best, K = {self.best}, predicts less than {self._coin} does: "
            f"{self.log_likelihood[self.best]:.4f} nats against {self.chance:.4f}. "
        )

    @property
    def _coin(self) -> str:
        return "a coin" if self.unit == "pair" else "chance"

    def evidence(self) -> str:
        """Why, and what would decide where nothing is decided."""
        parts = []
        several = [k for k in self.gain if k > 1]
        if not several:
            tried = ", ".join(map(str, sorted(self.log_likelihood)))
            return " ".join([*parts, f"Of K = {tried} the best predicts {self.log_likelihood[self.best]:.4f} nats."])
        told = self.num_components if self.verdict_kind == "groups" else max(several, key=lambda k: self.gain[k])
        parts.append(
            f"K = {told} {'gains' if self.gain[told] >= 0 else 'loses'} {abs(self.gain[told]):.4f} nats per held-out "
            f"{self.unit} against K = 1 (standard error {self.gain_error[told]:.4f})."
        )
        if self.simulated:
            least = min(gain for gain, _ in self.simulated.values())
            parts.append(
                f"Simulated groups worth {RELEVANT_GAIN:g} nats a {self.unit} would have gained {least:.4f} or more "
                "here."
            )
        if self.verdict_kind == "cannot_tell":
            parts.append(self._needed())
        return " ".join(parts)

    def _needed(self) -> str:
        if self.log_likelihood[1] - 2 * self.coin_error <= self.chance and not self.simulated:
            start = (
                f"One reward predicts new {self.unit}s no better than {self._coin}, so it cannot be said to suffice. "
            )
        else:
            start = ""
        what, factor = needed(self)
        if factor <= 1:
            return f"{start}More {self.unit}s for each text, or features of a larger model, would decide it."
        if math.isinf(factor):
            return f"{start}Far more {self.unit}s of each annotator would be needed."
        what = f"{self.unit}s" if what == "pairs" else what
        people = f", {math.ceil(factor * self.num_annotators)} or more," if what == "annotators" else ""
        return f"{start}About {factor:.1f} times as many {what}{people} would decide it."

    def prior_of(self, num_components: int) -> float | None:
        """The prior scale in the middle of those that the folds chose for a K."""
        chosen = sorted(self.prior_scale.get(num_components, []))
        return chosen[len(chosen) // 2] if chosen else None

    def by_candidate(self) -> dict[str, dict[str, float]]:
        """K -> its numbers, for records and tables."""
        names = {"mean": self.log_likelihood, "difference": self.difference, "standard_error": self.standard_error}
        names |= {"gain": self.gain, "gain_error": self.gain_error}
        found = {str(k): {n: of[k] for n, of in names.items() if k in of} for k in sorted(self.log_likelihood)}
        for k in found:
            if (prior := self.prior_of(int(k))) is not None:
                found[k]["prior_scale"] = prior
        return found

    def facts(self) -> dict[str, Any]:
        """For the run record."""
        by_name: dict[str, dict[str, float]] = {}
        for k, numbers in self.by_candidate().items():
            for name, value in numbers.items():
                by_name.setdefault(name, {})[k] = value
        return by_name | {
            "best": self.best,
            "num_pairs": self.num_pairs,
            "num_annotators": self.num_annotators,
            "verdict_kind": self.verdict_kind,
            "verdict": self.verdict(),
        }

    def rows(self) -> list[list[str]]:
        """The table: K, log-likelihood, difference to the best with its standard error, accuracy, priors chosen."""
        return [
            [
                f"{k}{' *' if k == self.num_components else ''}",
                f"{self.log_likelihood[k]:.4f}",
                f"{self.difference[k]:.4f} ± {self.standard_error[k]:.4f}",
                f"{self.accuracy[k]:.4f}",
                " ".join(f"{scale:g}" for scale in sorted(set(self.prior_scale.get(k, [])))),
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
        axes.set_ylabel(f"held-out log-likelihood [nats per {self.unit}]")
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
