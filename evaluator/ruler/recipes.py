"""What a family makes: a sample as text whose amount of filler is still open, and how it is fitted to a length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from vortexlab.evaluator.tasks.prompts import Encoder

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """The end of a prompt, the words that begin the answer, and the texts that an answer should hold."""

    text: str
    begun: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """One sample as text: the prompt up to where its questions part, and these; the first is RULER's own."""

    context: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Recipe:
    """`build(size)` makes a sample with `size` units of filler, from `least` to `most` (None: without end).

    Everything random was drawn before or is drawn from seeds that were, so equal sizes give equal samples.
    """

    build: Callable[[int], Draft]
    least: int
    most: int | None = None


class Growing(list[T]):
    """A list that draws its elements when they are asked for: its first n do not depend on how many follow."""

    def __init__(self, rng: Random, one: Callable[[Random], T]):
        super().__init__()
        self._rng, self._one = fork(rng), one

    def first(self, count: int) -> list[T]:
        """The first `count` elements, as a new list."""
        while len(self) < count:
            self.append(self._one(self._rng))
        return self[:count]


def fork(rng: Random) -> Random:
    """A generator of its own, seeded by another one."""
    return Random(rng.getrandbits(64))


def tokens_of(draft: Draft, encoder: Encoder, generated: int) -> int:
    """Tokens of the context, the longest question and its answer."""
    longest = max(len(encoder.question(item.text, item.begun)) for item in draft.questions)
    return len(encoder.context(draft.context)) + longest + generated


def fit(recipe: Recipe, encoder: Encoder, length: int, generated: int, guess: int | None = None) -> int | None:
    """The size at which context, question and answer fill `length` tokens and are never above it.

    The size fits and the next one does not, unless `most` is reached. None when not even `least` fits. `guess` is
    tried first: the size that another sample of the same family and length came to. Tokens grow almost evenly with
    size, so sizes are interpolated.
    """

    def tokens(size: int) -> int:
        return tokens_of(recipe.build(size), encoder, generated)

    low, below = recipe.least, tokens(recipe.least)
    if below > length:
        return None
    high: int | None = None  # a size that does not fit, of `above` tokens
    above, probe = 0, guess or 2 * recipe.least + 8
    while high is None:  # look for a size that does not fit
        probe = max(probe, low + 1) if recipe.most is None else min(max(probe, low + 1), recipe.most)
        found = tokens(probe)
        if found > length:
            high, above = probe, found
        else:
            if probe == recipe.most:
                return probe
            each = (found - below) / (probe - low)
            low, below = probe, found
            probe = min(low + max(2, int(1.02 * (length - found) / max(each, 0.05))), 16 * low + 64)
    tries = 0
    while high - low > 1:
        tries += 1
        step = (length - below) / (above - below) * (high - low)
        probe = min(max(low + round(step), low + 1), high - 1) if tries % 4 else (low + high) // 2
        found = tokens(probe)
        if found > length:
            high, above = probe, found
        else:
            low, below = probe, found
    return low
