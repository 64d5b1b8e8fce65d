"""The Pareto frontier of two objectives, both larger-is-better: speed-up and accuracy kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vortexlab.evaluator.fronts import non_dominated

Point = tuple[float, float]


def frontier(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other point dominates, fastest first. Of equal points the first one stands, where
    `non_dominated` keeps all: a program that another one equals adds nothing to a frontier."""
    if not points:
        return []
    speed, kept = np.array(points, float).T
    on = np.flatnonzero(non_dominated(speed, kept))
    _, first = np.unique(-speed[on], return_index=True)  # on a frontier, points of one speed are equal
    found: list[int] = on[first].tolist()
    return found


def layers(points: Sequence[Point]) -> list[int]:
    """Non-dominated rank of each point: 1 on the frontier, 2 on that of what is left without it, and so on.

    Of equal points all have the rank of the best of them.
    """
    depths: list[float] = []  # of each layer so far, less the accuracy of its last point: ascending
    rank: dict[Point, int] = {}
    for point in sorted(set(points), reverse=True):  # the fastest first, of equally fast ones the most accurate
        layer = bisect_right(depths, -point[1])
        rank[point] = layer + 1
        depths[layer : layer + 1] = [-point[1]]
    return [rank[point] for point in points]


def hypervolume(points: Sequence[Point]) -> float:
    """Area dominated by the points above the reference (0, 0): speed-up 0, nothing kept."""
    area, covered = 0.0, 0.0
    for index in frontier(points):
        speed, kept = points[index]
        if speed > 0 and kept > covered:
            area += speed * (kept - covered)
            covered = kept
    return area


@dataclass
class Curve:
    """A value that is told again and again, kept as at most `MOST` samples at equal distances and the last one.

    Where a sample more would pass that, every other one goes, so the cost of a value does not grow with their number.
    """

    MOST = 64
    samples: list[float] = field(default_factory=list)
    last: float = 0.0
    told: int = 0
    _stride: int = 1

    def add(self, value: float) -> None:
        self.last = value
        if self.told % self._stride == 0:
            if len(self.samples) == self.MOST:
                del self.samples[1::2]
                self._stride *= 2
            self.samples.append(value)
        self.told += 1

    def drawn(self) -> list[float]:
        """The samples, the oldest first; the last is the newest value."""
        return [*self.samples[:-1], self.last] if self.samples else []
