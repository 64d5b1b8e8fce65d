"""Who goes on after the screen: asynchronous promotion by non-dominated rank.

As in asynchronous successive halving (Li et al., "A system for massively parallel hyperparameter tuning", MLSys 2020,
arXiv 1810.05934) a program is judged as soon as it arrives, against those that reached the screen before it; nobody
waits for a bracket to fill, and somewhat more than the share go on in the beginning. With two objectives a program's
place is that of its Pareto layer.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vortexlab.evaluator.fronts import non_dominated

Point = tuple[float, float]  # predicted speed-up, accuracy kept on the screen
#: Programs that all go on: with fewer before it a place says nothing, and the published seeds come first.
ALL_FIRST = 20


class Ladder:
    """The points so far; the best `share` of them go on."""

    def __init__(self, share: float):
        self.share = share
        self.points: list[Point] = []

    def stand(self, points: Iterable[Point]) -> None:
        """From now on these came before, in this order, wherever they were reached."""
        self.points = list(points)

    def judge(self, speed: float, kept: float) -> str:
        """Adds the point; why it does not go on, or nothing. Of the points, its better Pareto layers must hold less
        than `share`."""
        self.points.append((speed, kept))
        count = len(self.points)
        if count <= ALL_FIRST or self.share >= 1:
            return ""
        ahead = self._ahead((speed, kept))
        if ahead < self.share * count:
            return ""
        return (
            f"behind {ahead} of {count} programs on the screen (predicted speed-up {speed:.2f}, keeps about {kept:.2f} "
            f"there); the better {self.share:.0%} go on"
        )

    def _ahead(self, point: Point) -> int:
        """How many points lie in better Pareto layers."""
        rest, ahead = np.array(self.points), 0
        while True:
            front = non_dominated(rest[:, 0], rest[:, 1])
            if (rest[front] == point).all(1).any():
                return ahead
            ahead, rest = ahead + int(front.sum()), rest[~front]
