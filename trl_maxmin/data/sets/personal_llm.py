# SPDX-License-Identifier: Apache-2.0
"""PersonalLLM (`namkoong-lab/PersonalLLM`): eight replies a prompt, scored by ten reward models; users are planted.

Columns: `prompt`, `response_1` to `response_8`, and for each reply and model `response_1_gemma_2b`, ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .cells import Row, cells_of


MODELS = (
    "gemma_2b gemma_7b mistral_raft mistral_ray mistral_weqweasdas llama3_sfairx oasst_deberta_v3 beaver_7b "
    "oasst_pythia_7b oasst_pythia_1b"
).split()
_REPLIES = range(1, 9)
#: Of the symmetric Dirichlet distribution of a user's weights: small, so that most care for one or two models.
CONCENTRATION = 0.1


def read(
    rows: Iterable[Row], *, num_users: int = 100, choices_per_user: int = 40, seed: int = 0
) -> Iterator[dict[str, Any] | None]:
    """Users with weights over the reward models, drawn anew, each of whom ranks the replies to some prompts.

    Every model's scores are standardised over all replies, so that none decides by its scale; what a user ranks by is
    the weighted sum, without noise. The set's own paper draws users in the same way.

    Args:
        rows: as published; all are held.
        num_users (`int`): planted users.
        choices_per_user (`int`): prompts that each of them ranks, without repetition.
        seed (`int`): of weights and prompts.

    Yields:
        `dict`: `prompt`, `responses` (texts), `ranking`, `annotator_id` (`user-7`), `group` (the model of the largest
        weight).

    Raises:
        ValueError: fewer than one user or choice, or a row that is not of this set.
    """
    if num_users < 1 or choices_per_user < 1:
        raise ValueError(f"num_users={num_users} and choices_per_user={choices_per_user} must be at least 1.")
    prompts, replies, scores = [], [], []
    for cells in cells_of(rows, "PersonalLLM"):
        prompts.append(cells.text("prompt"))
        replies.append([cells.text(f"response_{i}") for i in _REPLIES])
        scores.append([[cells.number_of(f"response_{i}_{model}") for model in MODELS] for i in _REPLIES])
    if not prompts:
        return
    table = np.array(scores)
    spread = table.std((0, 1))
    table = (table - table.mean((0, 1))) / np.where(spread > 0, spread, 1.0)
    generator = np.random.default_rng(seed)
    for person in range(num_users):
        weights = generator.dirichlet([CONCENTRATION] * len(MODELS))
        for row in generator.permutation(len(prompts))[:choices_per_user]:
            utility = (table[row] @ weights).round(9)
            places = sorted(set(utility.tolist()), reverse=True)
            yield (
                None
                if len(places) < 2
                else {
                    "prompt": prompts[row],
                    "responses": replies[row],
                    "ranking": [places.index(value) + 1 for value in utility.tolist()],
                    "annotator_id": f"user-{person}",
                    "group": MODELS[int(weights.argmax())],
                }
            )
