# SPDX-License-Identifier: Apache-2.0
"""Who the groups are in the data: pairs, share, typical examples; never annotator ids."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ..data.columns import ANNOTATOR_COLUMN, prepare_preferences
from ..data.texts import distinct_texts, prompts_of, text_of
from ..reading import read_json


GROUP_FACTS_NAME = "groups.json"
PARTS = ("prompt", "chosen", "rejected")


def describe_groups(
    mixture: Any, preferences: Dataset, annotator_column: str = ANNOTATOR_COLUMN, num_examples: int = 3
) -> dict[str, dict[str, Any]]:
    """What the data say of each component's people.

    Annotators go to their most probable component. Typical are pairs of a component's own annotators that the
    component sees as they do and the other components least: the largest
    `d_k - mean over the others of d_j`, where `d` is the reward of the chosen minus that of the rejected reply.

    Args:
        mixture ([`MixtureRewardModel`]): with its tokenizer.
        preferences (`Dataset`): pairs, with an annotator column.
        annotator_column (`str`, *optional*, defaults to `"annotator_id"`): that column.
        num_examples (`int`, *optional*, defaults to 3): pairs of each component, each of another prompt; where
            prompts run short, each of other replies.

    Returns:
        `dict`: component -> `annotators`, `pairs` (numbers), `pair_share` (of all pairs) and `examples` (`prompt`,
        `chosen`, `rejected`). No annotator ids.

    Raises:
        ValueError: as [`MixtureRewardModel.assign`].
    """
    posterior = mixture.assign(preferences, annotator_column=annotator_column)
    of = dict(zip(posterior.annotator_ids, posterior.probabilities.argmax(-1).tolist(), strict=True))
    pairs = prepare_preferences(preferences, annotator_column)
    own = torch.tensor([of[annotator] for annotator in pairs[ANNOTATOR_COLUMN]])
    prompts = prompts_of(pairs)
    chosen, rejected = list(pairs["chosen"]), list(pairs["rejected"])
    replies, rows = distinct_texts(prompts, chosen, rejected)
    rewards = mixture.score([prompt for prompt, _ in replies], [reply for _, reply in replies]).cpu()
    margin = rewards[rows[:, 0]] - rewards[rows[:, 1]]
    facts = {}
    for k, name in enumerate(mixture.component_names):
        rows = (own == k).nonzero().flatten().tolist()
        facts[name] = {
            "annotators": sum(component == k for component in of.values()),
            "pairs": len(rows),
            "pair_share": len(rows) / len(pairs),
            "examples": typical_pairs(prompts, chosen, rejected, margin, rows, k, num_examples),
        }
    return facts


def typical_pairs(
    prompts: Sequence[Any],
    chosen: Sequence[Any],
    rejected: Sequence[Any],
    margin: torch.Tensor,
    rows: Sequence[int],
    k: int,
    num_examples: int = 3,
) -> list[dict[str, str]]:
    """The pairs of a component's own annotators that it sees as they do and the other components least.

    Args:
        prompts, chosen, rejected (`Sequence`): of N pairs, texts or messages.
        margin (`torch.Tensor` of shape `(N, K)`): reward of the chosen minus that of the rejected reply.
        rows (`Sequence[int]`): pairs of the component's annotators.
        k (`int`): number of the component.
        num_examples (`int`): as of [`describe_groups`].

    Returns:
        `list[dict]`: `prompt`, `chosen`, `rejected`, the most typical first.
    """
    others = [j for j in range(margin.shape[1]) if j != k]
    contrast = margin[:, k] - margin[:, others].mean(-1) if others else margin[:, k]
    ranked = ((prompts[row], chosen[row], rejected[row]) for row in sorted(rows, key=lambda r: -float(contrast[r])))
    return _varied([dict(zip(PARTS, map(text_of, pair), strict=True)) for pair in ranked], num_examples)


def _varied(examples: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """The first examples with distinct prompts; if prompts run short, then those with texts not shown yet."""
    shown: list[dict[str, str]] = []
    for parts in (PARTS[:1], PARTS[1:]):
        seen = {example[part] for example in shown for part in parts}
        for example in examples:
            texts = {example[part] for part in parts}
            if len(shown) < count and not texts & seen:
                shown.append(example)
                seen |= texts
    return shown


def write_group_facts(facts: Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write `groups.json` in a folder."""
    path = Path(folder) / GROUP_FACTS_NAME
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return path


def read_group_facts(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read `groups.json`.

    Raises:
        ValueError: it is not such a file.
    """
    facts = read_json(path)
    if not isinstance(facts, dict) or not all(isinstance(entry, dict) for entry in facts.values()):
        raise ValueError(f"{path} must hold an object for each group, as `trl-maxmin demo` writes it.")
    return facts
