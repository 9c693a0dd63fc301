# SPDX-License-Identifier: Apache-2.0
"""Public sets that say who gave which judgement, brought to this package's columns: one file a set, and this list.

A reader is a function of rows as they are published. It yields pairs or rankings (`docs/data.md`), and None for each
judgement that expresses no preference. Nothing is downloaded here: `trl-maxmin convert` loads, reads and writes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import (
    arena,
    argilla,
    collective_alignment,
    community_alignment,
    helpsteer,
    label_studio,
    multipref,
    own,
    personal_llm,
    plural,
    prism,
    ratings,
    summarize_from_feedback,
)


@dataclass(frozen=True)
class PublicSet:
    """A set, where it is, and how its rows are read.

    Args:
        read (`Callable`): rows -> pairs or rankings, None for what expresses no preference.
        about (`str`): what it holds, in a few words.
        hub_id (`str`, *optional*): on the Hub; without one a file has to be given.
        config (`str`, *optional*): of the Hub's set.
        split (`str`): of the Hub's set.
        revision (`str`, *optional*): of the Hub's set.
    """

    read: Callable[..., Iterator[dict[str, Any] | None]]
    about: str
    hub_id: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Name and default of what the reader can be told; `inspect.Parameter.empty` where it has to be.

        Example:

        >>> SETS["multipref"].options
        {'question': 'overall_pref'}
        """
        named = inspect.signature(self.read).parameters.values()
        return {option.name: option.default for option in named if option.kind is option.KEYWORD_ONLY}


#: Name for the command -> set. What each is good for, with licences: `docs/data.md`.
SETS: dict[str, PublicSet] = {
    "community_alignment": PublicSet(
        community_alignment.read,
        "best of four, up to four turns",
        "facebook/community-alignment-dataset",
        split="filtered",
    ),
    "collective_alignment": PublicSet(
        collective_alignment.read,
        "rankings of four with ties, for oneself or for the world",
        "openai/collective-alignment-1",
        "comparisons",
    ),
    "prism": PublicSet(prism.read, "scored replies of conversations", "HannahRoseKirk/prism-alignment", "utterances"),
    "arena": PublicSet(arena.read, "votes between two models", "lmarena-ai/arena-human-preference-100k"),
    "mt_bench": PublicSet(
        arena.read_mt_bench, "experts' votes between two models", "lmsys/mt_bench_human_judgments", split="human"
    ),
    "summarize_from_feedback": PublicSet(
        summarize_from_feedback.read,
        "workers' choices between two summaries",
        "openai/summarize_from_feedback",
        "comparisons",
        revision="refs/convert/parquet",
    ),
    "plural": PublicSet(plural.read, "synthetic pairs by country", "agdhruv/plural-alignment"),
    "personal_llm": PublicSet(personal_llm.read, "planted users over ten reward models", "namkoong-lab/PersonalLLM"),
    "multipref": PublicSet(multipref.read, "pairs judged by four workers each", "allenai/multipref"),
    "helpsteer3": PublicSet(
        helpsteer.read, "pairs with several judgements, nobody named", "nvidia/HelpSteer3", "preference"
    ),
    "dices": PublicSet(ratings.read_dices, "safety judgements of conversations"),
    "argilla": PublicSet(argilla.read, "an export: ranking, label or rating questions"),
    "label_studio": PublicSet(label_studio.read, "an export with a pairwise tag"),
    "ratings": PublicSet(ratings.read, "any table of annotator_id, text, score"),
    "rankings": PublicSet(own.read, "rows with these columns already, to check or cut"),
}
