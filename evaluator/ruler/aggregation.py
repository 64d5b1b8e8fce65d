"""Aggregation: the most common words of a numbered list, and the most frequent words of a coded text."""

from __future__ import annotations

import math
import string
from random import Random

from vortexlab.evaluator.ruler.recipes import Draft, Question, Recipe, fork
from vortexlab.evaluator.ruler.words import all_words

COMMON_GENERATED, FREQUENT_GENERATED = 120, 50
COMMON = 10
#: Below this many tokens the words of a list are repeated less.
SHORT = 4096
#: Other words and repeats (common, other) of the solved example and of the list itself, at short lengths and at others.
_EXAMPLE = {True: (20, 3, 1), False: (40, 10, 3)}
_REPEATS = {True: (6, 1), False: (30, 3)}
_LETTERS, _ALPHA, _ZETA = 6, 2.0, math.pi**2 / 6  # zeta(2)
_TOKENS_PER_CODED_WORD = 50
_DOTS = "..."


def common_words(rng: Random, length: int) -> Recipe:
    """Ten words that occur ten times as often as the others (six times at short lengths), after a solved example.

    The size is the number of different words. There is an end to them, so very long contexts are not filled.
    """
    short = length < SHORT
    words, sizes = all_words(), _EXAMPLE[short]
    example = _list(fork(rng).sample(words, sizes[0]), *sizes[1:], rng.getrandbits(64))
    solved = f"{example.context}{_said(example.questions[0])}\n"
    chosen = fork(rng).sample(words, len(words))
    order = rng.getrandbits(64)

    def build(size: int) -> Draft:
        found = _list(chosen[:size], *_REPEATS[short], order)
        return Draft(solved + found.context, found.questions)

    return Recipe(build, COMMON + 1, len(words))


def _list(words: list[str], common: int, other: int, seed: int) -> Draft:
    listed = words[:COMMON] * common + words[COMMON:] * other
    Random(seed).shuffle(listed)
    return Draft(
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n" + _numbered(listed),
        (
            Question(
                "\nQuestion: What are the 10 most common words in the above list?",
                "Answer: The top 10 words that appear most often in the list are:",
                tuple(words[:COMMON]),
            ),
        ),
    )


def _numbered(words: list[str] | tuple[str, ...]) -> str:
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, 1))


def _said(question: Question) -> str:
    return f"{question.text} {question.begun}{_numbered(question.answers)}"


def frequent_words(rng: Random, length: int) -> Recipe:
    """Coded words whose frequencies fall with the square of their rank; the first rank is dots, the next three count.

    The size is the number of words that the frequencies are shares of.
    """
    vocabulary = [_DOTS]
    while len(vocabulary) < max(length // _TOKENS_PER_CODED_WORD, 5):
        word = "".join(rng.choices(string.ascii_lowercase, k=_LETTERS))
        if word not in vocabulary:
            vocabulary.append(word)
    order = rng.getrandbits(64)
    question = Question(
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
        "appeared words in the above coded text?",
        "Answer: According to the coded text above, the three most frequently appeared words are:",
        tuple(vocabulary[1:4]),
    )

    def build(size: int) -> Draft:
        counts = [int(size * rank**-_ALPHA / _ZETA) for rank in range(1, len(vocabulary) + 1)]
        text = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
        Random(order).shuffle(text)
        return Draft(
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
            "appeared coded words. " + " ".join(text),
            (question,),
        )

    return Recipe(build, least=60)  # the three are told from the fourth
