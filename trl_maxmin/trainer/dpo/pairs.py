# SPDX-License-Identifier: Apache-2.0
"""Preferences as group-robust DPO reads them: checked, cut into pairs, tokenised as everywhere in this package."""

from __future__ import annotations

from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...data.columns import AS_TOKENS, VOTE_SHARE, as_dataset, without_ties
from ...data.rankings import is_ranked, prepare_either, rankings_to_pairs
from ...data.tokenization import asked, encode_prompt, encode_reply
from .maxmin_dpo_config import MaxMinDPOConfig


logger = get_logger(__name__)


def prepare_pairs(dataset: Any, args: MaxMinDPOConfig) -> Dataset:
    """Checked pairs with `annotator_id`; rankings are cut.

    Raises:
        TypeError, ValueError: as [`prepare_either`]; images; shares of votes.
    """
    if set(getattr(dataset, "column_names", None) or ()) & {"image", "images"}:
        raise ValueError("The data have images, of which `MaxMinDPOTrainer` knows nothing; use TRL's `DPOTrainer`.")
    dataset = as_dataset(dataset, "`chosen` and `rejected`, or `responses`")
    if VOTE_SHARE in dataset.column_names:
        raise ValueError(
            f"The data have `{VOTE_SHARE}`, which DPO does not read: every pair would count as a certain choice. "
            "Write a row for each vote, or remove the column if that is what you want."
        )
    if args.group_column is not None and args.annotator_column not in dataset.column_names:
        # Nobody has to be known where groups are; the check of the columns wants somebody.
        dataset = dataset.add_column(args.annotator_column, [f"pair-{row}" for row in range(len(dataset))])
    dataset = prepare_either(dataset, args.annotator_column)
    if is_ranked(dataset):
        rankings = len(dataset)
        dataset = rankings_to_pairs(dataset, args.ranking_pairs)
        logger.info(f"{rankings} rankings became {len(dataset)} pairs (`ranking_pairs={args.ranking_pairs!r}`).")
    if "margin" in dataset.column_names:
        logger.warning("The data have a `margin`, which DPO does not read; it is left out.")
    return dataset


def tokenize_pairs(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: MaxMinDPOConfig, name: str = "train"
) -> Dataset:
    """Pairs with `prompt_ids`, `chosen_ids` and `rejected_ids`, which TRL's collator joins.

    TRL joins texts and tokenises them, and what a chat template puts behind the end of a turn is trained on. Here the
    ids of a prompt are those that the policy will be given, and a reply ends with the token that stops it, as rewards,
    rollouts and evaluations have it.

    Args:
        dataset (`Dataset`): of [`prepare_pairs`].
        tokenizer: the policy's.
        args ([`MaxMinDPOConfig`]): lengths, and processes that tokenise.
        name (`str`): of the data, for messages.

    Raises:
        ValueError: every prompt is as long as `max_length`, or as [`encode_reply`].
    """
    questions = asked(dataset)

    def encode(row: dict[str, Any], number: int) -> dict[str, list[int]]:
        prompt, options = questions[number]
        chosen, rejected = (encode_reply(tokenizer, prompt, row[side], options=options) for side in _SIDES)
        if not prompt and not isinstance(row["chosen"], str):
            prompt = row["chosen"][:-1]
        # A text without a prompt: what both replies begin with, as in TRL.
        start = encode_prompt(tokenizer, prompt, options) if prompt else chosen[:-1]
        size = min(_common(start, chosen), _common(start, rejected[:-1]))
        return {"prompt_ids": chosen[:size], "chosen_ids": chosen[size:], "rejected_ids": rejected[size:]}

    dataset = dataset.map(encode, with_indices=True, num_proc=args.dataset_num_proc, desc=f"Tokenizing {name} dataset")
    dataset = without_ties(dataset, dataset["chosen_ids"][:], dataset["rejected_ids"][:], AS_TOKENS)
    if args.max_length is None or args.truncation_mode != "keep_start":
        return dataset
    keep = [row for row, ids in enumerate(dataset["prompt_ids"][:]) if len(ids) < args.max_length]
    if not keep:
        raise ValueError(
            f"Every prompt of the {name} data has max_length={args.max_length} tokens or more, which leaves none for "
            "a reply. Raise `max_length` (or set it to None)."
        )
    if len(keep) < len(dataset):
        logger.warning(
            f"{len(dataset) - len(keep)} of {len(dataset)} pairs of the {name} data were left out: their prompts "
            f"alone have max_length={args.max_length} tokens or more."
        )
    return dataset.select(keep)


_SIDES = ("chosen", "rejected")


def _common(first: list[int], second: list[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
