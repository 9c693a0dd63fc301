# SPDX-License-Identifier: Apache-2.0
"""Pairs and rankings with annotators as a reward trainer reads them: tokenised, filtered, numbered, batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ... import distributed
from ..._compat import DataCollatorForPreference
from ...data.columns import ANNOTATOR_COLUMN, AS_TOKENS, VOTE_SHARE, AnnotatorIndex, without_ties
from ...data.rankings import choices_of, pairs_to_rankings, prepare_either, rankings_to_pairs
from ...data.texts import distinct_replies, number_values
from ...data.tokenization import asked, encode_reply
from ...functional.ranking import UNRANKED, RankedChoices
from ...models import MixtureRewardModel
from ...models.scoring import pad_sequences


logger = get_logger(__name__)

#: What training reads of a prepared data set.
COLUMNS = ["chosen_ids", "rejected_ids", "response_ids", "ranking", "margin", VOTE_SHARE]
COLUMNS += ["annotator_index", "pair_index"]


@dataclass
class DataCollatorForAnnotatedPreference(DataCollatorForPreference):
    """TRL's preference collator, which also carries who gave the pair and its number.

    The batch holds the chosen sequences in its first half and the rejected ones in its second, so that one forward
    scores both:

    ```python
    {'input_ids': (2B, T), 'attention_mask': (2B, T), 'annotator_index': (B,), 'pair_index': (B,), 'margin': (B,),
     'chosen_probability': (B,)}
    ```

    The last two where the data have them.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a list of examples into one batch."""
        batch = super().torch_call(examples)
        for name in ("annotator_index", "pair_index", *({VOTE_SHARE} & examples[0].keys())):
            batch[name] = torch.tensor([example[name] for example in examples])
        return batch


@dataclass
class DataCollatorForAnnotatedRankings:
    """Rankings of one batch over its distinct replies, so that one forward scores each of them once.

    ```python
    {'input_ids': (M, T), 'attention_mask': (M, T), 'responses': (B, n), 'ranks': (B, n), 'annotator_index': (B,),
     'pair_index': (B,), 'margin': (B,)}
    ```

    `responses` are rows of `input_ids`, -1 where a ranking has fewer than n replies.

    Args:
        pad_token_id (`int`): fills short replies, on the right.
        pad_to_multiple_of (`int`, *optional*): of T.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad a list of examples into one batch."""
        numbers: dict[tuple[int, ...], int] = {}
        rows = [number_values(map(tuple, example["response_ids"]), numbers) for example in examples]
        ids, mask = pad_sequences(list(numbers), self.pad_token_id)
        short = -ids.shape[1] % (self.pad_to_multiple_of or 1)
        ranks = [[UNRANKED if rank is None else rank for rank in example["ranking"]] for example in examples]
        batch = {
            "input_ids": torch.nn.functional.pad(ids, (0, short), value=self.pad_token_id),
            "attention_mask": torch.nn.functional.pad(mask, (0, short)),
            "responses": _rectangle(rows, -1),
            "ranks": _rectangle(ranks, UNRANKED),
        }
        for name in ("annotator_index", "pair_index"):
            batch[name] = torch.tensor([example[name] for example in examples])
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float)
        return batch


def _rectangle(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def prepare_rows(
    dataset: Dataset, annotator_column: str, num_components: int | None = None, ranked: bool | None = None
) -> Dataset:
    """Pairs or rankings, checked; rankings of two become the pairs that they are.

    Args:
        dataset, annotator_column, num_components: as of [`prepare_either`].
        ranked (`bool`, *optional*): whether the training rows are rankings of more than two; other rows follow them.

    Raises:
        ValueError: rankings of more than two beside training pairs, or as [`prepare_either`].
    """
    dataset = prepare_either(dataset, annotator_column, num_components)
    if not is_ranked(dataset):
        return pairs_to_rankings(dataset) if ranked else dataset
    most = max(map(len, dataset["responses"][:]))
    if ranked is False and most > 2:
        raise ValueError(
            f"The training data are pairs, and these rows rank up to {most} replies. Cut them into pairs "
            "(`trl-maxmin convert rankings --input FILE --as_pairs all --output pairs.jsonl`), or train on rankings."
        )
    return rankings_to_pairs(dataset) if most == 2 and not ranked else dataset


def is_ranked(dataset: Dataset) -> bool:
    """Whether prepared rows are rankings."""
    return "responses" in dataset.column_names


def replies_of(dataset: Dataset) -> list[Sequence[list[int]]]:
    """Token ids of the replies of each row of [`tokenize_rows`]."""
    if is_ranked(dataset):
        return dataset["response_ids"][:]
    return list(zip(dataset["chosen_ids"][:], dataset["rejected_ids"][:], strict=True))


def choices_among(dataset: Dataset, number: Callable[[list[tuple[int, ...]]], list[int]]) -> RankedChoices:
    """Prepared rankings over a table of texts.

    Args:
        dataset (`Dataset`): of [`number_rows`].
        number (`Callable`): gives texts, as token ids, their rows in the table. It is called once: with all first
            replies, then all second ones, as pairs are read, so that equal rows have equal numbers.
    """
    replies = replies_of(dataset)
    width = max(map(len, replies))
    at = [(row, side) for side in range(width) for row, own in enumerate(replies) if side < len(own)]
    responses = torch.full((len(replies), width), -1)
    found = number([tuple(replies[row][side]) for row, side in at])
    responses[tuple(torch.tensor(at).T)] = torch.tensor(found)
    return choices_of(dataset, responses, dataset["annotator_index"][:])


def tokenize_rows(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int | None = None, name: str = "train"
) -> Dataset:
    """Add the ids of prompt and reply, `chosen_ids` and `rejected_ids`, or `response_ids`; each distinct text is
    tokenised once. Rows whose replies are all the same as tokens are left out.

    Args:
        dataset (`Dataset`): of [`prepare_rows`].
        tokenizer: of the reward components.
        num_proc (`int`, *optional*): processes that tokenise.
        name (`str`): of the data, for the progress bar.
    """
    ranked = is_ranked(dataset)
    replies = dataset["responses"][:] if ranked else zip(dataset["chosen"][:], dataset["rejected"][:], strict=True)
    texts, rows = distinct_replies(asked(dataset), list(replies))

    def encode(example: dict[str, int]) -> dict[str, list[int]]:
        (prompt, options), reply = texts[example["text"]]
        return {"ids": encode_reply(tokenizer, prompt, reply, options=options)}

    numbers = Dataset.from_dict({"text": list(range(len(texts)))})
    ids = list(numbers.map(encode, num_proc=num_proc, desc=f"Tokenizing {name} dataset")["ids"])
    if ranked:
        dataset = dataset.add_column("response_ids", [[ids[row] for row in own if row >= 0] for own in rows.tolist()])
        # The first reply, and one that differs from it where there is one.
        sides = [(own[0], next((o for o in own if o != own[0]), own[0])) for own in dataset["response_ids"][:]]
        first, other = map(list, zip(*sides, strict=True))
        return without_ties(dataset, first, other, AS_TOKENS)
    for side, column in zip(("chosen", "rejected"), rows.T.tolist(), strict=True):
        dataset = dataset.add_column(f"{side}_ids", [ids[row] for row in column])
    return without_ties(dataset, dataset["chosen_ids"][:], dataset["rejected_ids"][:], AS_TOKENS)


def require_embedded_tokens(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Refuse tokens that the base has never embedded: it would have no vector for them, or a random one.

    Args:
        dataset (`Dataset`): of [`tokenize_rows`].
        tokenizer: that it was tokenised with.
        num_embeddings (`int`): of the base, as it was given.

    Raises:
        ValueError: such a token; it is named with its id, its row and the size of the embedding.
    """
    for row, replies in enumerate(replies_of(dataset)):
        for ids in replies:
            if max(ids, default=0) >= num_embeddings:
                token = max(ids)
                raise ValueError(
                    f"Row {row} uses the token {tokenizer.convert_ids_to_tokens(token)!r} with id {token}, but the "
                    f"base embeds {num_embeddings} tokens: ids 0 to {num_embeddings - 1}. Give the tokenizer of the "
                    "base, or teach the base the new tokens first: `model.resize_token_embeddings(len(tokenizer))`, "
                    "then pass that model."
                )


def within_length(dataset: Dataset, limit: int | None, name: str) -> Dataset:
    """The rows of which no reply is longer than `limit` tokens; a warning says what is lost.

    Raises:
        ValueError: every pair is longer.
    """
    if limit is None:
        return dataset
    keep = [row for row, replies in enumerate(replies_of(dataset)) if max(map(len, replies)) <= limit]
    if len(keep) == len(dataset):
        return dataset
    unit = "ranking" if is_ranked(dataset) else "pair"
    if not keep:
        raise ValueError(
            f"Every {unit} of the {name} data is longer than max_length={limit} tokens. Raise `max_length` (or set it "
            "to None), or choose a base model that reads more."
        )
    kept = dataset.select(keep)
    lost = set(dataset[ANNOTATOR_COLUMN][:]) - set(kept[ANNOTATOR_COLUMN][:])
    logger.warning(
        f"{len(dataset) - len(kept)} of {len(dataset)} {unit}s of the {name} data are longer than max_length={limit} "
        f"tokens and were left out; {len(lost)} annotators lost all their {unit}s."
    )
    return kept


def number_rows(dataset: Dataset, annotators: AnnotatorIndex, name: str) -> Dataset:
    """Add `annotator_index`, -1 for who gave no training pairs, and `pair_index`."""
    lookup = {annotator: number for number, annotator in enumerate(annotators.annotator_ids)}
    numbers = [lookup.get(annotator, -1) for annotator in dataset[ANNOTATOR_COLUMN][:]]
    if unknown := len({a for a, number in zip(dataset[ANNOTATOR_COLUMN][:], numbers, strict=True) if number < 0}):
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
        dataset (`Dataset`): of [`number_rows`].
        collator, batch_size: of a forward; pairs are sorted by length.
        accelerator ([`~accelerate.Accelerator`]): the trainer's.
    """
    training = model.training
    model.eval()
    differences = torch.zeros(len(dataset), model.num_components, device=accelerator.device)
    lengths = [max(len(a), len(b)) for a, b in zip(dataset["chosen_ids"][:], dataset["rejected_ids"][:], strict=True)]
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


@torch.no_grad()
def score_rankings(
    model: MixtureRewardModel, dataset: Dataset, pad_token_id: int, batch_size: int, accelerator: Accelerator
) -> tuple[torch.Tensor, RankedChoices]:
    """Rewards of the distinct replies of rankings, `(M, K)` on the CPU, and the rankings of them; processes share it.

    Args:
        model ([`MixtureRewardModel`]): left in the mode it was in.
        dataset (`Dataset`): of [`number_rows`].
        pad_token_id, batch_size: of a forward; replies are sorted by length.
        accelerator ([`~accelerate.Accelerator`]): the trainer's.
    """
    numbers: dict[tuple[int, ...], int] = {}
    choices = choices_among(dataset, lambda texts: number_values(texts, numbers))
    texts = list(numbers)
    training = model.training
    model.eval()
    rewards = torch.zeros(len(texts), model.num_components, device=accelerator.device)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    first, stride = accelerator.process_index * batch_size, accelerator.num_processes * batch_size
    for start in range(first, len(order), stride):
        part = order[start : start + batch_size]
        ids, mask = pad_sequences([texts[row] for row in part], pad_token_id)
        found = model(ids.to(accelerator.device), mask.to(accelerator.device)).rewards.float()
        rewards[torch.tensor(part, device=accelerator.device)] = found
    model.train(training)
    return distributed.sum_over_ranks(accelerator, rewards).cpu(), choices


def numbers_of(dataset: Dataset) -> list[torch.Tensor | None]:
    """Margins, Bradley-Terry log-odds, and shares of votes, `(N,)` each, float64; None where the data have none."""
    return [
        torch.tensor(dataset[name][:], dtype=torch.float64) if name in dataset.column_names else None
        for name in ("margin", VOTE_SHARE)
    ]
