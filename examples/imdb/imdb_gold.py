# SPDX-License-Identifier: Apache-2.0
"""The annotators' hidden wishes, conciseness and positive sentiment, and the pairs they compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from datasets import Dataset
from imdb_data import Reviews, pieces
from imdb_policy import Replies
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline


GROUPS = ("concise", "positive")
# Standard deviations of the gold utility: a preference then agrees with the gold order about 89 % of the time.
BRADLEY_TERRY_TEMPERATURE = 0.25
# The longest openings that the policy writes have about so many words.
ORACLE_WORDS = 30


@dataclass(frozen=True)
class SentimentOracle:
    """Probability that a text is positive, by a classifier of words and word pairs; the policy never sees it.

    Args:
        classifier (`Pipeline`): fitted on pieces of labelled training reviews, as long as what the policy writes.
        accuracy (`float`): on openings of test reviews.
    """

    classifier: Pipeline
    accuracy: float

    @classmethod
    def fit(cls, reviews: Reviews) -> SentimentOracle:
        """Fit on the training split, measure on the test split."""
        classifier = make_pipeline(
            # Not normalised to length 1: evidence adds up, so that two words of praise are surer than one.
            TfidfVectorizer(ngram_range=(1, 2), min_df=5, sublinear_tf=True, norm=None, token_pattern=r"[a-z']+"),
            LogisticRegression(C=0.001, max_iter=500),
        )
        classifier.fit(*_labelled_pieces(reviews.train, reviews.train_labels, 3))
        return cls(classifier, float(classifier.score(*_labelled_pieces(reviews.test, reviews.test_labels, 1))))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities `(N,)`."""
        return self.classifier.predict_proba(list(texts))[:, 1]


def _labelled_pieces(texts: Sequence[str], labels: Sequence[int], count: int) -> tuple[list[str], list[int]]:
    """The first pieces of reviews, each with the label of its review."""
    found = [(piece, y) for text, y in zip(texts, labels, strict=True) for piece in pieces(text, ORACLE_WORDS, count)]
    return [piece for piece, _ in found], [y for _, y in found]


@dataclass(frozen=True)
class GoldUtilities:
    """What each group wants, known to the annotators and to the evaluation only.

    Args:
        oracle ([`SentimentOracle`]): of the minority.
        limit (`int`): length limit of a reply, in tokens.
    """

    oracle: SentimentOracle
    limit: int

    def __call__(self, group: str, prompts: Sequence[str], replies: Replies) -> np.ndarray:
        """Utilities `(N,)`: 1 - tokens of the reply / limit, or the probability that prompt and reply are positive."""
        if group == "concise":
            return 1 - np.asarray(replies.lengths) / self.limit
        return self.oracle([prompt + text for prompt, text in zip(prompts, replies.texts, strict=True)])

    def reward_functions(self, eos_token_id: int, noise: dict[str, float]) -> list[Callable[..., list[float]]]:
        """The utilities as TRL reward functions, for max-min on gold: the ceiling. Bradley-Terry log-odds, as learned
        rewards have them: a utility over its `noise`, see [`gold_noise`]."""

        def utility(group: str, prompts: list[str], completions: list[str], ids: list[list[int]]) -> list[float]:
            lengths = [len(tokens) - (tokens[-1:] == [eos_token_id]) for tokens in ids]
            values = self(group, prompts, Replies(completions, lengths, [True] * len(ids)))
            return (values / noise[group]).tolist()

        def concise(prompts, completions, completion_ids, **kwargs) -> list[float]:
            return utility("concise", prompts, completions, completion_ids)

        def positive(prompts, completions, completion_ids, **kwargs) -> list[float]:
            return utility("positive", prompts, completions, completion_ids)

        return [concise, positive]


def annotator_groups(count: int, minority_share: float, rng: np.random.Generator) -> list[str]:
    """Planted group of each annotator, in random order."""
    minority = round(count * minority_share)
    return rng.permutation([GROUPS[1]] * minority + [GROUPS[0]] * (count - minority)).tolist()


def compare(
    prompts: Sequence[str],
    replies: Replies,
    utilities: dict[str, np.ndarray],
    groups: Sequence[str],
    pairs_per_annotator: int,
    rng: np.random.Generator,
) -> Dataset:
    """Let annotators compare replies to the same prompt.

    An annotator of group g prefers a to b with probability `sigmoid((u_g(a) - u_g(b)) / (s_g * temperature))`, where
    s_g is the spread of the utility within prompts: every group is equally sure of itself.

    Args:
        prompts (`Sequence[str]`): N prompts, one a reply; equal ones belong together.
        replies ([`Replies`]): N replies. Those cut at the length limit are not shown to annotators.
        utilities (`dict[str, np.ndarray]`): group -> gold utilities `(N,)`.
        groups (`Sequence[str]`): planted group of each annotator.
        pairs_per_annotator (`int`): pairs each of them compares.
        rng (`np.random.Generator`): chooses pairs and the noise.

    Returns:
        `Dataset` with `prompt`, `chosen`, `rejected`, `annotator_id`, and for evaluation only `group` and
        `gold_agrees` (whether the noise left the gold order as it was).
    """
    by_prompt = _rows_by_prompt(prompts, replies)
    texts = replies.texts
    pairs = [pair for rows in by_prompt for pair in combinations(rows, 2) if texts[pair[0]] != texts[pair[1]]]
    if not pairs:
        raise ValueError(
            "No prompt has two different finished replies. Raise `max_new_tokens` or train the policy longer."
        )
    noise = gold_noise(prompts, replies, utilities)
    table = []
    for number, group in enumerate(groups):
        for index in np.resize(rng.permutation(len(pairs)), pairs_per_annotator):
            first, second = rng.permutation(pairs[index])
            log_odds = (utilities[group][first] - utilities[group][second]) / noise[group]
            # A logistic draw below the log-odds has probability sigmoid(log_odds).
            wins = rng.logistic() < log_odds
            chosen, rejected = (first, second) if wins else (second, first)
            table.append(
                {
                    "prompt": prompts[chosen],
                    "chosen": texts[chosen],
                    "rejected": texts[rejected],
                    "annotator_id": f"annotator_{number:02d}",
                    "group": group,
                    "gold_agrees": bool(wins == (log_odds > 0)),
                }
            )
    return Dataset.from_list([table[index] for index in rng.permutation(len(table))])


def gold_noise(prompts: Sequence[str], replies: Replies, utilities: dict[str, np.ndarray]) -> dict[str, float]:
    """Gold utility that is worth one unit of log-odds to each group."""
    rows = _rows_by_prompt(prompts, replies)
    return {group: BRADLEY_TERRY_TEMPERATURE * spread_within(values, rows) for group, values in utilities.items()}


def spread_within(utility: np.ndarray, rows_of_prompts: Sequence[Sequence[int]]) -> float:
    """Standard deviation of a utility within prompts: the spread between prompts is no matter of the replies."""
    groups = [utility[list(rows)] for rows in rows_of_prompts if len(rows) > 1]
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in groups)
    return (squares / sum(len(values) - 1 for values in groups)) ** 0.5 or 1.0


def _rows_by_prompt(prompts: Sequence[str], replies: Replies) -> list[list[int]]:
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        if replies.finished[row]:
            rows.setdefault(prompt, []).append(row)
    return list(rows.values())
