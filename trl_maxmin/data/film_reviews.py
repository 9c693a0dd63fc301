# SPDX-License-Identifier: Apache-2.0
"""The language of the embedded world: its vocabulary, the gold utilities of a reply and the grammar of the writers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .texts import text_of


GENRES = ("crime", "horror", "war", "love", "space", "family", "music", "history")
NOUNS = ("robots", "pirates", "ghosts", "dogs", "spies", "cowboys", "monks", "dancers", "twins", "sharks")
POSITIVE_WORDS = ("superb", "great", "lovely", "fresh", "clever", "moving")
NEGATIVE_WORDS = ("awful", "dull", "weak", "silly", "messy", "cold")
INTENSIFIERS = ("very", "truly")
ACTING_WORDS = ("acting", "cast", "hero")
OTHER_SUBJECTS = ("plot", "music", "ending")
SINGULAR_VERBS = ("is", "feels")
PLURAL_VERBS = ("are", "feel")
FUNCTION_WORDS = ("film", "with", "about", "and", "but", "the", ":")
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")

# dict.fromkeys: "music" is both a genre and a subject, and must have one id.
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *(*SPECIAL_TOKENS, *FUNCTION_WORDS, *SINGULAR_VERBS, *PLURAL_VERBS, *INTENSIFIERS),
            *(*POSITIVE_WORDS, *NEGATIVE_WORDS, *ACTING_WORDS, *OTHER_SUBJECTS, *GENRES, *NOUNS),
        )
    )
)

MAX_COMPLETION_LENGTH = 24
"""Longest reply of this world, in tokens with the end-of-sequence token; the writers stop at 22 words or before."""

PRAISE_SCALE = 8
"""Net praise at which the utility `positive` reaches its bound."""


# --- gold utilities: known functions of a reply's words -------------------------------------------------------------


def _concise(words: Sequence[str], finished: bool) -> float:
    # A reply that was cut off had not come to its end: it is as long as a reply can be.
    return max(0.0, 1.0 - len(words) / MAX_COMPLETION_LENGTH) if finished else 0.0


def _net_praise(words: Sequence[str]) -> int:
    total, before = 0, ""
    for word in words:
        sign = (word in POSITIVE_WORDS) - (word in NEGATIVE_WORDS)
        total += sign * (2 if before in INTENSIFIERS else 1)
        before = word
    return total


def _positive(words: Sequence[str], finished: bool) -> float:
    return max(-1.0, min(1.0, _net_praise(words) / PRAISE_SCALE))


def _acting(words: Sequence[str], finished: bool) -> float:
    return min(1.0, sum(word in ACTING_WORDS for word in words) / 4)


def _plain(words: Sequence[str], finished: bool) -> float:
    return max(0.0, 1.0 - sum(word in INTENSIFIERS for word in words) / 4)


GOLD_UTILITIES: dict[str, Callable[[Sequence[str], bool], float]] = {
    "concise": _concise,
    "positive": _positive,
    "acting": _acting,
    "plain": _plain,
}
"""Group name -> utility of a reply: `concise` in [0, 1], `positive` in [-1, 1], `acting` and `plain` in [0, 1]."""


# --- the writers ----------------------------------------------------------------------------------------------------

# Chosen once, with trial runs on prompts of another split than the one `FilmReviewWorld` makes, so that the three
# facts in the module's docstring hold with a margin.
_LIKES = 0.8  # share of writers who like the film
_PRAISE_IF_LIKED, _PRAISE_IF_NOT = 0.92, 0.45  # how often a judgement is praise, at the start of a review
_LENGTH_IF_LIKED, _LENGTH_IF_NOT = (9.0, 16.0), (8.5, 11.0)  # words after which a writer adds no further clause
_ONE_CLAUSE = 0.005  # share of writers who stop after one clause
_DRIFT = 0.1  # how far the frequency of praise may move with each clause
_INTENSE = 0.1  # share of judging words with an intensifier
_TWO_JUDGEMENTS = 0.15  # share of clauses without a verb that judge with two words: `fresh lovely music`
_NEUTRAL = 0.2  # share of later clauses that only say what the film is about


class Uniforms:
    """Uniform numbers drawn in blocks: numpy is slow at handing out single ones, and a grammar takes many."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.block: list[float] = []

    def __call__(self) -> float:
        """The next number in [0, 1)."""
        if not self.block:
            self.block = self.rng.random(4096).tolist()
        return self.block.pop()

    def pick(self, options: Sequence[str]) -> str:
        """One of the options, all equally likely."""
        return options[int(self() * len(options))]


def _judge(draw: Uniforms, praise: float) -> tuple[list[str], bool]:
    is_praise = draw() < praise
    words = [draw.pick(POSITIVE_WORDS if is_praise else NEGATIVE_WORDS)]
    if draw() < _INTENSE:
        words.insert(0, draw.pick(INTENSIFIERS))
    return words, is_praise


def _write_judgement(draw: Uniforms, praise: float, nouns: Sequence[str], opening: bool) -> tuple[list[str], bool]:
    """A judging clause (`superb film about robots`, `the cast feels very dull`) and whether it ends in praise."""
    judgement, is_praise = _judge(draw, praise)
    subject = draw.pick((*ACTING_WORDS, *OTHER_SUBJECTS, *nouns))
    kind = draw()
    if 0.3 <= kind < 0.8 and not opening:
        verb = draw.pick(PLURAL_VERBS if subject in nouns else SINGULAR_VERBS)
        return ["the", subject, verb, *judgement], is_praise
    if draw() < _TWO_JUDGEMENTS:
        more, is_praise = _judge(draw, praise)
        judgement += more
    if opening and kind < 0.4:
        return [*judgement, "film"] + (["about", draw.pick(nouns)] if draw() < 0.3 else []), is_praise
    if kind < 0.8:
        return [*judgement, subject], is_praise
    return [*judgement, subject, "with", draw.pick([noun for noun in nouns if noun != subject])], is_praise


def write_review(draw: Uniforms, prompt: str) -> str:
    """A review of the film in the prompt `<genre> film with <noun> and <noun> :`, without the end-of-sequence token.

    Whether the writer likes the film decides how often a judgement is praise and how long the review gets; the
    frequency of praise then drifts from clause to clause.
    """
    words = prompt.split()
    nouns = (words[-4], words[-2])
    likes = draw() < _LIKES
    praise = _PRAISE_IF_LIKED if likes else _PRAISE_IF_NOT
    shortest, longest = _LENGTH_IF_LIKED if likes else _LENGTH_IF_NOT
    enough = 1.0 if draw() < _ONE_CLAUSE else shortest + (longest - shortest) * (draw() + draw()) / 2
    review, was_praise = _write_judgement(draw, praise, nouns, opening=True)
    joined = True
    while len(review) < enough:
        praise = min(0.97, max(0.05, praise + _DRIFT * (2 * draw() - 1)))
        if draw() < _NEUTRAL:
            review += ["the", draw.pick(("film", "plot")), "is", "about"]
            review += [nouns[0], "and", nouns[1]] if draw() < 0.5 else [draw.pick(nouns)]
            joined = False
            continue
        clause, is_praise = _write_judgement(draw, praise, nouns, opening=False)
        if joined and is_praise != was_praise:
            review.append("but")
        elif joined and draw() < 0.5:
            review.append("and")
        review += clause
        was_praise, joined = is_praise, True
    return " ".join(review)


def split_words(completion: Any) -> list[str]:
    """The words of a reply given as text or as TRL's list of messages."""
    return text_of(completion).split()
