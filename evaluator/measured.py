"""What comparisons of programs need of their verdicts, as arrays: thousands are drawn, ranked and tested at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vortexlab.evaluator.verdict import Estimate, Verdict

#: Of one program: speed-up, accuracy kept, its outcomes as JSON, its paired ratios by length.
Row = tuple[Estimate | None, Estimate | None, Sequence[Sequence[Any]], Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Measured:
    """The programs, of those given, that have both objectives and outcomes; `index`: which these are.

    `tasks`, `lengths`: [contexts], over all contexts that any of them was asked, sorted by task, length and name.
    `answers`, `dense`, `sparse`: [programs, contexts], no answers where a program was not asked. `speed`, `accuracy`:
    [programs, 3], value and ends of the interval. `samples`: the paired ratios of each program. `alike`: places of
    programs that were asked the same.
    """

    index: np.ndarray
    tasks: np.ndarray
    lengths: np.ndarray
    answers: np.ndarray
    dense: np.ndarray
    sparse: np.ndarray
    speed: np.ndarray
    accuracy: np.ndarray
    samples: tuple[Mapping[str, Sequence[float]], ...]
    alike: tuple[np.ndarray, ...]

    @staticmethod
    def of(verdicts: Sequence[Verdict]) -> Measured:
        return Measured.from_rows(
            (v.speedup, v.accuracy, [outcome.to_json() for outcome in v.outcomes], v.speed_samples) for v in verdicts
        )

    @staticmethod
    def from_rows(rows: Iterable[Row]) -> Measured:
        index: list[int] = []
        speed, accuracy, samples = [], [], []
        asked: dict[tuple[tuple[Any, ...], ...], list[tuple[int, tuple[float, ...]]]] = {}
        for i, (fast, kept, outcomes, ratios) in enumerate(rows):
            if fast is None or kept is None or not outcomes:
                continue
            task, context, length, answers, dense, sparse = zip(*outcomes, strict=True)
            asked.setdefault((task, length, context, answers, dense), []).append((len(index), sparse))
            index.append(i)
            speed.append((fast.value, fast.low, fast.high))
            accuracy.append((kept.value, kept.low, kept.high))
            samples.append(ratios)
        keys = sorted({key for task, length, context, *_ in asked for key in zip(task, length, context, strict=True)})
        place = {key: n for n, key in enumerate(keys)}
        table, alike = np.zeros((3, len(index), len(keys))), []
        for (task, length, context, answers, dense), found in asked.items():
            columns = np.array([place[key] for key in zip(task, length, context, strict=True)])
            members = np.array([n for n, _ in found])
            cells = np.ix_(members, columns)
            table[0][cells], table[1][cells], table[2][cells] = answers, dense, [sparse for _, sparse in found]
            alike.append(members)
        return Measured(
            np.array(index, int), np.array([key[0] for key in keys]),
            np.array([key[1] for key in keys], int), table[0], table[1], table[2],
            np.reshape(np.array(speed), (-1, 3)), np.reshape(np.array(accuracy), (-1, 3)), tuple(samples), tuple(alike),
        )  # fmt: skip
