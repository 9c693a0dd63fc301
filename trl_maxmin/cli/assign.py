# SPDX-License-Identifier: Apache-2.0
"""`trl-maxmin assign`: which component describes people who were not in the training data."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from trl import ScriptArguments

from ..data.columns import ANNOTATOR_COLUMN, AnnotatorIndex
from ..data.rankings import is_ranked, prepare_either
from ..data.texts import distinct_texts, prompts_of
from ..evaluation.new_annotators import CURVE_SIZES, assignment_curve
from ..functional.em import annotator_log_likelihood, log_responsibilities
from ..functional.ranking import RankedChoices
from ..models import AnnotatorPosterior, MixtureRewardModel
from ..models.base import pick_device, place
from ..models.text_interface import scored_rankings
from .io import print_table, read_dataset
from .loading import require_model
from .output_folder import require_writable
from .parser import CommandParser, UsageError


logger = logging.getLogger(__name__)


@dataclass
class AssignArguments(ScriptArguments):
    """Options of `trl-maxmin assign`.

    Args:
        reward_model (`str`): folder or Hub id of a mixture.
        output_file (`str`): where the posteriors go; this machine only.
        annotator_column (`str`): the column that names the annotator.
        curve (`bool`): also report accuracy against the number of pairs seen.
        batch_size (`int`): sequences per forward.
        seed (`int`): of the order of pairs in the curve.
    """

    reward_model: str | None = field(default=None, metadata={"help": "Folder or Hub id of a mixture."})
    output_file: str = field(
        default="annotators.json", metadata={"help": "Posterior of each annotator. Stays on this machine."}
    )
    annotator_column: str = field(default=ANNOTATOR_COLUMN, metadata={"help": "Column that names the annotator."})
    curve: bool = field(
        default=False, metadata={"help": "Report accuracy on further pairs after 0, 1, 2, 4, 8, 16 pairs of a person."}
    )
    batch_size: int = field(default=64, metadata={"help": "Sequences per forward."})
    seed: int = field(default=0, metadata={"help": "Order of each person's pairs in the curve."})


def run(argv: Sequence[str]) -> None:
    """Assign annotators and write their posteriors.

    Args:
        argv (`Sequence[str]`): options of [`AssignArguments`].

    Raises:
        ValueError: no mixture named, another model or a broken one, or data that cannot be read as preferences.
    """
    (arguments,) = CommandParser(
        (AssignArguments,),
        prog="trl-maxmin assign",
        description="Say which component describes annotators who were not in the training data.",
    ).parse_args_and_config(list(argv))
    if not arguments.reward_model:
        raise UsageError(
            "--reward_model is required: the folder or Hub id of a mixture (`trl-maxmin reward` saves one)."
        )
    rows, _ = read_dataset(arguments, [arguments.annotator_column])
    rows = prepare_either(rows, arguments.annotator_column)
    ranked = is_ranked(rows)
    require_model(arguments.reward_model, "--reward_model")
    if Path(arguments.output_file).is_dir():
        raise ValueError(f"--output_file {arguments.output_file} is a folder. Name a file, such as annotators.json.")
    require_writable(Path(arguments.output_file).parent, "--output_file: the folder")
    mixture = MixtureRewardModel.from_pretrained(arguments.reward_model, argument="--reward_model")
    place(mixture, pick_device())
    evidence = mixture.preference_evidence(rows, batch_size=arguments.batch_size)
    weight = mixture.config.evidence_weight
    index = AnnotatorIndex.from_values(rows[ANNOTATOR_COLUMN])
    people = torch.tensor(index.encode(rows[ANNOTATOR_COLUMN]))
    sums = annotator_log_likelihood(evidence, people, len(index))
    posterior = AnnotatorPosterior(
        index.annotator_ids,
        log_responsibilities(sums, mixture.mixing_weights.log(), weight).exp(),
        torch.bincount(people, minlength=len(index)),
    )
    write_posterior(posterior, mixture.component_names, arguments.output_file)
    best, probability = posterior.best, posterior.probabilities
    print_table(
        f"{len(index)} annotators, {len(rows)} {'rankings' if ranked else 'pairs'}, each counting {weight:.2g}",
        ["component", "annotators", "mean posterior"],
        [
            [name, str(int((best == k).sum())), f"{probability[:, k].mean():.3f}"]
            for k, name in enumerate(mixture.component_names)
        ],
    )
    sure = (probability.max(-1).values >= 0.9).double().mean()
    print(f"assigned with a posterior of at least 0.9: {sure:.0%}; mean entropy {posterior.entropy.mean():.3f} nats")
    if arguments.curve:
        if ranked:
            scored = scored_rankings(mixture, rows, batch_size=arguments.batch_size)
            texts = scored[1].responses
        else:
            scored = None
            texts = torch.from_numpy(distinct_texts(prompts_of(rows), rows["chosen"], rows["rejected"])[1])
        print_curve(evidence, people, mixture.mixing_weights, arguments.seed, texts, weight, scored)
    print(f"wrote {arguments.output_file} (it names annotators: keep it on this machine)")


def write_posterior(posterior: AnnotatorPosterior, names: list[str], path: str | Path) -> None:
    """JSON: annotator -> component, its probability, all probabilities, entropy in nats, number of pairs."""
    columns = zip(
        posterior.annotator_ids, posterior.probabilities.tolist(), posterior.entropy.tolist(), posterior.num_pairs,
        strict=True,
    )  # fmt: skip
    result = {}
    for annotator, probabilities, entropy, count in columns:
        best = max(range(len(names)), key=probabilities.__getitem__)
        result[str(annotator)] = {
            "component": names[best],
            "probability": round(probabilities[best], 6),
            "probabilities": {name: round(p, 6) for name, p in zip(names, probabilities, strict=True)},
            "entropy_nats": round(entropy, 6),
            "num_pairs": int(count),
        }
    Path(path).write_text(json.dumps(result, indent=2) + "\n")


def print_curve(
    log_likelihood: torch.Tensor,
    people: torch.Tensor,
    weights: torch.Tensor,
    seed: int,
    texts: torch.Tensor,
    evidence_weight: float = 1.0,
    rankings: tuple[torch.Tensor, RankedChoices] | None = None,
) -> None:
    """The curve of accuracy against pairs seen, for the sizes that leave two people pairs of other texts to judge; of
    rankings likewise, by top-1 and Kendall's tau."""
    unit = "pairs" if rankings is None else "rankings"
    generator = torch.Generator().manual_seed(seed)
    for end in range(len(CURVE_SIZES), 0, -1):
        try:
            points = assignment_curve(
                log_likelihood,
                people,
                weights,
                generator=generator,
                sizes=CURVE_SIZES[:end],
                texts=texts,
                evidence_weight=evidence_weight,
                rankings=rankings,
            )
            break
        except ValueError:
            if end == 1:
                raise
    print_table(
        f"Accuracy on further {unit} ({points[0].num_annotators} annotators, {points[0].num_pairs} {unit})",
        [f"{unit} seen", "accuracy" if rankings is None else "top-1", "log-likelihood", "entropy (nats)"]
        + ([] if rankings is None else ["Kendall's tau"]),
        [
            [
                str(p.num_seen),
                f"{p.accuracy:.4f} ± {p.standard_error:.4f}",
                f"{p.log_likelihood:.4f}",
                f"{p.entropy:.3f}",
                *([] if p.tau is None else [f"{p.tau:.4f}"]),
            ]
            for p in points
        ],
    )
