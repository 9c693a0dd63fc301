# SPDX-License-Identifier: Apache-2.0
"""Preference pairs with annotators as a reward trainer reads them: tokenised, filtered, numbered, batched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..._compat import DataCollatorForPreference
from ...data.columns import ANNOTATOR_COLUMN, AnnotatorIndex, prepare_preferences
from ...data.tokenization import encode_reply
from .mixture_reward_config import MixtureRewardConfig


logger = get_logger(__name__)

_COLUMNS = ["chosen_ids", "rejected_ids", "margin", "annotator_index", "pair_index"]


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


class AnnotatedPreferencesMixin:
    """Put before TRL's reward trainer: its data sets carry the number of each pair and of its annotator.

    Attributes:
        annotators ([`AnnotatorIndex`]): numbers of the annotators. Not saved with the model.
    """

    annotators: AnnotatorIndex

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: MixtureRewardConfig,
        dataset_name: str,
    ) -> Dataset:
        if "pair_index" in dataset.column_names:
            return dataset
        # The constructor has renamed the column already; data given to `evaluate` have not been seen yet.
        renamed = args.annotator_column not in dataset.column_names
        dataset = prepare_preferences(dataset, ANNOTATOR_COLUMN if renamed else args.annotator_column)
        unknown = set(dataset[ANNOTATOR_COLUMN]) - set(self.annotators.annotator_ids)
        if unknown:
            logger.warning(
                f"{len(unknown)} annotators of the {dataset_name} data gave no training pairs; their pairs are "
                "scored with the mixing weights as posterior."
            )

        # Many people judge the same texts; messages are keys by their text form.
        encoded: dict[str, list[int]] = {}

        def encode(prompt: Any, reply: Any) -> list[int]:
            key = repr((prompt, reply))
            if key not in encoded:
                encoded[key] = encode_reply(processing_class, prompt, reply)
            return encoded[key]

        def tokenize(example: dict[str, Any]) -> dict[str, list[int]]:
            prompt = example.get("prompt") or ""
            return {f"{side}_ids": encode(prompt, example[side]) for side in ("chosen", "rejected")}

        dataset = dataset.map(tokenize, num_proc=args.dataset_num_proc, desc=f"Tokenizing {dataset_name} dataset")
        dataset = self._filter_by_length(dataset, args, dataset_name)
        lookup = {annotator: number for number, annotator in enumerate(self.annotators.annotator_ids)}
        numbers = [lookup.get(annotator, -1) for annotator in dataset[ANNOTATOR_COLUMN]]
        dataset = dataset.add_column("annotator_index", numbers)
        return dataset.add_column("pair_index", list(range(len(dataset))))

    def _filter_by_length(self, dataset: Dataset, args: MixtureRewardConfig, dataset_name: str) -> Dataset:
        # The base's own context is a limit too, whatever `max_length` says (1,024 by default).
        limit = min(filter(None, (args.max_length, self._context_length)), default=None)
        if limit is None:
            return dataset
        lengths = zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
        keep = [i for i, (a, b) in enumerate(lengths) if max(len(a), len(b)) <= limit]
        if not keep:
            raise ValueError(
                f"Every pair of the {dataset_name} data is longer than max_length={limit} tokens. Raise "
                "`max_length` (or set it to None), or choose a base model that reads more."
            )
        kept = dataset.select(keep) if len(keep) < len(dataset) else dataset
        lost = set(dataset[ANNOTATOR_COLUMN]) - set(kept[ANNOTATOR_COLUMN])
        if len(kept) < len(dataset):
            logger.warning(
                f"{len(dataset) - len(kept)} of {len(dataset)} pairs of the {dataset_name} data are longer than "
                f"max_length={limit} tokens and were left out; {len(lost)} annotators lost all their pairs."
            )
        if dataset_name == "train":
            self.annotators = AnnotatorIndex.from_values(kept[ANNOTATOR_COLUMN])
        return kept

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(_COLUMNS)

    def _batches(self, dataset: Dataset) -> Iterator[dict[str, torch.Tensor]]:
        """Batches sorted by length, on the device."""
        size = self.args.e_step_batch_size
        lengths = [max(len(a), len(b)) for a, b in zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)]
        order = sorted(range(len(dataset)), key=lengths.__getitem__)
        columns = [name for name in _COLUMNS if name in dataset.column_names]
        rows = dataset.select_columns(columns)
        for start in range(0, len(order), size):
            batch = self.data_collator([rows[i] for i in order[start : start + size]])
            yield {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
