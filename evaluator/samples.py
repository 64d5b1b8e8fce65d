"""The samples of an evaluation, on the controller's side: expected answers never leave this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.tasks import TASKS, Sample, make_samples
from vortexlab.evaluator.verdict import Outcome

#: Longest question that the screen asks, in tokens.
SCREEN_QUESTION = 32


@dataclass(frozen=True)
class Suite:
    """All samples in a fixed order. A *fork* is a pair (sample, turn): one question of one context."""

    samples: tuple[Sample, ...]

    @cached_property
    def forks(self) -> list[tuple[int, int]]:
        return [(i, turn) for i, sample in enumerate(self.samples) for turn in range(len(sample.turns))]

    def contexts(self) -> list[dict[str, Any]]:
        """What the worker is told: tokens, questions, and how many tokens each answer has."""
        return [
            {
                "tokens": sample.context,
                "turns": [{"question": turn.question, "answer": len(turn.answer)} for turn in sample.turns],
            }
            for sample in self.samples
        ]

    def watched(self) -> list[int]:
        """Forks recorded for the fidelity gate: the first question of the first sample of every task and length."""
        seen: set[tuple[str, int]] = set()
        chosen = []
        for row, (i, turn) in enumerate(self.forks):
            key = (self.samples[i].task, self.samples[i].length)
            if turn == 0 and key not in seen:
                seen.add(key)
                chosen.append(row)
        return chosen

    def split(self, first: int) -> tuple[list[int], list[int]]:
        """Rows of `forks`: a few for the screen, and the others.

        The few are those of the first `first` samples of every task and length, without long questions, which cost
        as many steps as they have tokens.
        """
        counts: dict[tuple[str, int], int] = {}
        few = set()
        for i, sample in enumerate(self.samples):
            key = (sample.task, sample.length)
            counts[key] = counts.get(key, 0) + 1
            if counts[key] <= first:
                few.add(i)
        chosen = [row for row, (i, turn) in enumerate(self.forks) if i in few and self._is_short(i, turn)]
        chosen = chosen or [row for row, (i, _) in enumerate(self.forks) if i in few]
        return chosen, sorted(set(range(len(self.forks))) - set(chosen))

    def _is_short(self, sample: int, turn: int) -> bool:
        return len(self.samples[sample].turns[turn].question) <= SCREEN_QUESTION

    def right(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> dict[int, bool]:
        """Row of `forks` -> whether the answer is exactly the expected one."""
        result = {}
        for row, answer in zip(rows, answers, strict=True):
            i, turn = self.forks[row]
            result[row] = list(answer) == list(self.samples[i].turns[turn].answer)
        return result

    def outcomes(self, dense: dict[int, bool], sparse: dict[int, bool], tasks: Sequence[str]) -> tuple[Outcome, ...]:
        """One outcome per context of `tasks` that `sparse` has answers for."""
        rows: dict[int, list[int]] = {}
        for row in sorted(sparse):
            rows.setdefault(self.forks[row][0], []).append(row)
        return tuple(
            Outcome(
                sample.task,
                f"{sample.task}/{sample.length}/{sample.index}",
                sample.length,
                len(rows[i]),
                sum(dense[row] for row in rows[i]),
                sum(sparse[row] for row in rows[i]),
            )
            for i, sample in enumerate(self.samples)
            if i in rows and sample.task in tasks
        )


def make_suite(config: EvaluationConfig) -> Suite:
    """Draws the samples of a configuration. Raises `VortexError` for unknown tasks and lengths that are too short."""
    names = config.tasks or tuple(TASKS)
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise VortexError(f"unknown task {unknown[0]!r}; the tasks are {', '.join(TASKS)}")
    samples = []
    for length in config.lengths:
        for name in names:
            for sample in make_samples(name, length, config.contexts, seed=config.seed, split=config.split):
                samples.append(
                    Sample(sample.task, sample.length, sample.index, sample.context, sample.turns[: config.turns])
                )
    return Suite(tuple(samples))
