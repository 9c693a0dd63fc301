# SPDX-License-Identifier: Apache-2.0
"""Preference pairs with annotators as a reward trainer reads them: tokenised, filtered, numbered, batched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ... import distributed
from ..._compat import DataCollatorForPreference
from ...data.columns import ANNOTATOR_COLUMN, AnnotatorIndex
from ...data.texts import distinct_texts
from ...data.tokenization import asked, encode_reply
from ...models import MixtureRewardModel


logger = get_logger(__name__)

#: What training reads of a prepared data set.
COLUMNS = ["chosen_ids", "rejected_ids", "margin", "annotator_index", "pair_index"]


@dataclass
class DataCollatorForAnnotatedPreference(DataCollatorForPreference):
    """TRL's preference collator, which also carries who gave the pair and its number.

    The batch holds the chosen sequences in its first half and the rejected ones in its second, so that one forward
    scores both:

    ```python
    {'input_ids': (2B, T), 'attention_mask': (2B, T), 'annotator_index': (B,), 'pair_index': (B,), 'margin': (B,)}
    ```
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a list of examples into one batch."""
        batch = super().torch_call(examples)
        for name in ("annotator_index", "pair_index"):
            batch[name] = torch.tensor([example[name] for example in examples])
        return batch


def tokenize_pairs(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int | None = None, name: str = "train"
) -> Dataset:
    """Add the ids of prompt and reply, `chosen_ids` and `rejected_ids`; each distinct text is tokenised once.

    Args:
        dataset (`Dataset`): of [`prepare_preferences`].
        tokenizer: of the reward components.
        num_proc (`int`, *optional*): processes that tokenise.
        name (`str`): of the data, for the progress bar.
    """
    texts, rows = distinct_texts(asked(dataset), dataset["chosen"], dataset["rejected"])

    def encode(example: dict[str, int]) -> dict[str, list[int]]:
        (prompt, options), reply = texts[example["text"]]
        return {"ids": encode_reply(tokenizer, prompt, reply, options=options)}

    numbers = Dataset.from_dict({"text": list(range(len(texts)))})
    ids = list(numbers.map(encode, num_proc=num_proc, desc=f"Tokenizing {name} dataset")["ids"])
    for side, column in zip(("chosen", "rejected"), rows.T.tolist(), strict=True):
        dataset = dataset.add_column(f"{side}_ids", [ids[row] for row in column])
    return dataset


def require_embedded_tokens(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Refuse tokens that the base has never embedded: it would have no vector for them, or a random one.

    Args:
        dataset (`Dataset`): of [`tokenize_pairs`].
        tokenizer: that it was tokenised with.
        num_embeddings (`int`): of the base, as it was given.

    Raises:
        ValueError: such a token; it is named with its id, its row and the size of the embedding.
    """
    for side in ("chosen_ids", "rejected_ids"):
        for row, ids in enumerate(dataset[side]):
            if max(ids, default=0) >= num_embeddings:
                token = max(ids)
                raise ValueError(
                    f"Row {row} uses the token {tokenizer.convert_ids_to_tokens(token)!r} with id {token}, but the "
                    f"base embeds {num_embeddings} tokens: ids 0 to {num_embeddings - 1}. Give the tokenizer of the "
                    "base, or teach the base the new tokens first: `model.resize_token_embeddings(len(tokenizer))`, "
                    "then pass that model."
                )


def within_length(dataset: Dataset, limit: int | None, name: str) -> Dataset:
    """The pairs of which neither side is longer than `limit` tokens; a warning says what is lost.

    Raises:
        ValueError: every pair is longer.
    """
    if limit is None:
        return dataset
    lengths = zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
    keep = [row for row, (a, b) in enumerate(lengths) if max(len(a), len(b)) <= limit]
    if len(keep) == len(dataset):
        return dataset
    if not keep:
        raise ValueError(
            f"Every pair of the {name} data is longer than max_length={limit} tokens. Raise `max_length` (or set it "
            "to None), or choose a base model that reads more."
        )
    kept = dataset.select(keep)
    lost = set(dataset[ANNOTATOR_COLUMN]) - set(kept[ANNOTATOR_COLUMN])
    logger.warning(
        f"{len(dataset) - len(kept)} of {len(dataset)} pairs of the {name} data are longer than max_length={limit} "
        f"tokens and were left out; {len(lost)} annotators lost all their pairs."
    )
    return kept


def number_pairs(dataset: Dataset, annotators: AnnotatorIndex, name: str) -> Dataset:
    """Add `annotator_index`, -1 for who gave no training pairs, and `pair_index`."""
    lookup = {annotator: number for number, annotator in enumerate(annotators.annotator_ids)}
    numbers = [lookup.get(annotator, -1) for annotator in dataset[ANNOTATOR_COLUMN]]
    if unknown := len({a for a, number in zip(dataset[ANNOTATOR_COLUMN], numbers, strict=True) if number < 0}):
        logger.warning(
            f"{unknown} annotators of the {name} data gave no training pairs; their pairs are scored with the mixing "
            "weights as posterior."
        )
    dataset = dataset.add_column("annotator_index", numbers)
    return dataset.add_column("pair_index", list(range(len(dataset))))


@torch.no_grad()
def score_pairs(
    model: MixtureRewardModel,
    dataset: Dataset,
    collator: DataCollatorForAnnotatedPreference,
    batch_size: int,
    accelerator: Accelerator,
) -> torch.Tensor:
    """Reward of the chosen minus that of the rejected reply, `(N, K)` on the CPU; ranks share the work.

    Args:
        model ([`MixtureRewardModel`]): left in the mode it was in.
        dataset (`Dataset`): of [`number_pairs`].
        collator, batch_size: of a forward; pairs are sorted by length.
        accelerator ([`~accelerate.Accelerator`]): the trainer's.
    """
    training = model.training
    model.eval()
    differences = torch.zeros(len(dataset), model.num_components, device=accelerator.device)
    lengths = [max(len(a), len(b)) for a, b in zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)]
    order = sorted(range(len(dataset)), key=lengths.__getitem__)
    rows = dataset.select_columns([name for name in COLUMNS if name in dataset.column_names])
    first, stride = accelerator.process_index * batch_size, accelerator.num_processes * batch_size
    for start in range(first, len(order), stride):
        batch = collator([rows[i] for i in order[start : start + batch_size]])
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        chosen, rejected = model(batch["input_ids"], batch["attention_mask"]).rewards.float().chunk(2)
        differences[batch["pair_index"]] = chosen - rejected
    model.train(training)
    return distributed.sum_over_ranks(accelerator, differences).cpu()


def margins_of(dataset: Dataset) -> torch.Tensor | None:
    """`(N,)` Bradley-Terry log-odds, float64; None where the data have no margins."""
    return torch.tensor(dataset["margin"], dtype=torch.float64) if "margin" in dataset.column_names else None
