"""What the reference model is trained on and when: task mix, row lengths, learning rate."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vortexlab.evaluator.reference.batches import RECALL, Batch, batches

PEAK_RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.98), 0.01, 1.0
WARM_UP_STEPS, RESUMED_WARM_UP_STEPS = 200, 20
DECLINE = 0.3  # the last share of the time, in which the rate falls linearly
LOWEST = 0.01  # of the peak rate
TOKENS_PER_STEP = {"cuda": 65536, "cpu": 2048}
FEWEST_ROWS, TOKENS_PER_FEWEST_ROW = 8, 1024  # rows of a step, however long they are: one for so many tokens per step
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
QUESTION_ROOM = 128  # tokens that a row of 256 and more has beyond its nominal length, for questions and answers

MIX = {
    "needle": 0.05,
    "needles": 0.15,
    "keys": 0.14,
    "multivalue": 0.17,
    "numbered": 0.1,
    "multiquery": 0.13,
    "frequent": 0.07,
    "chain": 0.15,
    "late": 0.08,
}
START_MIX = {RECALL: 1.0}
SHORT_MIX = {RECALL: 0.2, **MIX}


@dataclass(frozen=True)
class Stage:
    """Rows of a nominal ``length`` (one drawn per step where there are several) for a ``share`` of the time."""

    lengths: tuple[int, ...]
    share: float
    mix: dict[str, float]


STAGES = (
    Stage((32,), 25, START_MIX),  # ends as soon as look-up is learned; nothing else can be before
    Stage((64,), 6, SHORT_MIX),
    Stage((128,), 9, SHORT_MIX),
    Stage((256,), 12, MIX),
    Stage((512,), 10, MIX),
    Stage((1024,), 10, MIX),
    Stage((2048,), 11, MIX),
    Stage((4096,), 10, MIX),
    Stage((8192,), 8, MIX),
    Stage((16384,), 9, MIX),
    Stage(LENGTHS, 15, MIX),
)


def measured_lengths(longest: int) -> tuple[int, ...]:
    """Context lengths that a model trained up to ``longest`` tokens is measured at."""
    return tuple(length for length in LENGTHS if length <= longest) or (longest,)


def stages_up_to(longest: int) -> tuple[Stage, ...]:
    """The curriculum for contexts of at most ``longest`` tokens; its last stage mixes the lengths that are measured."""
    single = tuple(stage for stage in STAGES[:-1] if stage.lengths[0] <= longest)
    return (*single, Stage(measured_lengths(longest), STAGES[-1].share, MIX))


def learning_rate(done: float, steps: int, resumed: bool) -> float:
    """The rate when a share ``done`` of the planned time is over, ``steps`` steps after the start of this piece."""
    warm = (steps + 1) / (RESUMED_WARM_UP_STEPS if resumed else WARM_UP_STEPS)
    return PEAK_RATE * min(1.0, warm, max(LOWEST, (1 - done) / DECLINE))


class Feed:
    """Batches of every row length, each from its own endless stream."""

    def __init__(self, generator: torch.Generator, rng: random.Random, tokens_per_step: int) -> None:
        self._generator, self._rng, self._tokens = generator, rng, tokens_per_step
        self._streams: dict[tuple[int, bool], Iterator[Batch]] = {}

    def next(self, stage: Stage) -> tuple[Batch, int]:
        """A batch of the stage, and the nominal length of its rows."""
        length = self._rng.choice(stage.lengths)
        key = (length, RECALL in stage.mix)
        if key not in self._streams:
            tokens = length + QUESTION_ROOM if length >= 256 else length
            fewest = max(1, min(FEWEST_ROWS, self._tokens // TOKENS_PER_FEWEST_ROW))
            rows = max(fewest, self._tokens // length)
            self._streams[key] = batches(stage.mix, tokens, rows, self._generator, self._rng)
        return next(self._streams[key]), length
