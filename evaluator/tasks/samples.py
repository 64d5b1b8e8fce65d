"""Samples for evaluation: a context and independent question turns, drawn from seeds."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.tasks.draws import SeededDraws
from vortexlab.evaluator.tasks.families import TASKS

SPLITS = ("search", "validation", "sealed")


@dataclass(frozen=True)
class Reference:
    """What a generated text is held against: `texts`, by a metric of `evaluator.tasks.scoring`.

    `tokens` are generated; what follows the end-of-text token, or `until`, does not count. `classes` are those of a
    classification.
    """

    metric: str
    texts: tuple[str, ...]
    tokens: int
    classes: tuple[str, ...] = ()
    until: str = ""


@dataclass(frozen=True)
class Turn:
    """One question about a context, as token ids, and what scores: the ids of the one right answer, or, where
    `reference` is given (and `answer` is empty), the text that the generated ids decode to."""

    question: list[int]
    answer: list[int]
    reference: Reference | None = None

    @property
    def generated(self) -> int:
        """Tokens that the model generates."""
        return self.reference.tokens if self.reference else len(self.answer)


@dataclass(frozen=True)
class Sample:
    """A context and its turns. ``length`` is the number of its tokens; samples of a user's data that are evaluated
    bear the length that they are timed at, the largest one asked for that is not above theirs.

    Turns are independent of each other: each continues the context alone. Answers are generated greedily.
    """

    task: str
    length: int
    index: int
    context: list[int]
    turns: list[Turn]


def sample_seed(task: str, length: int, index: int, seed: int, split: str) -> np.random.SeedSequence:
    """The seed of one sample; different tasks, lengths, splits, seeds and indices give independent streams."""
    if split not in SPLITS:
        raise VortexError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise VortexError(f"seed and index must not be negative, found {seed} and {index}")
    entropy = [SPLITS.index(split), zlib.crc32(task.encode()), length, seed]
    return np.random.SeedSequence(entropy, spawn_key=(index,))


def make_samples(task: str, length: int, count: int, seed: int = 0, split: str = "search") -> list[Sample]:
    """Samples 0 to ``count - 1`` of a task at a context length in tokens; ``count`` does not change
    sample ``i``.

    Raises :class:`VortexError` for an unknown task or split, or a length too short for the task.
    """
    family = TASKS.get(task)
    if family is None:
        raise VortexError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    if length < family.shortest:
        raise VortexError(f"task {task!r} needs a context of at least {family.shortest} tokens, found {length}")
    if count < 1:
        return []
    draws = SeededDraws([sample_seed(task, length, i, seed, split) for i in range(count)])
    episodes = family.build(draws, length, family.plan(length))
    rows = zip(episodes.context.tolist(), episodes.question.tolist(), episodes.answer.tolist(), strict=True)
    return [
        Sample(task, length, i, context, [Turn(*turn) for turn in zip(questions, answers, strict=True)])
        for i, (context, questions, answers) in enumerate(rows)
    ]
