"""What the gates lost: a known share of what the screen rejects is measured in full all the same.

From these programs follows, without bias, how many members of the frontier were thrown away (Horvitz and Thompson 1952:
each audited program stands for 1 / share of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vortexlab.agent.pareto import Point, frontier
from vortexlab.agent.trials import Trial
from vortexlab.evaluator.statistics import rank_correlation, wilson_upper
from vortexlab.evaluator.verdict import GATES, REJECTED

#: Gates that reject what is wrong rather than what looks bad: there is nothing to lose by them.
CORRECTNESS = ("parse", "numerics", "compile", "fidelity", "speed")


@dataclass(frozen=True)
class Audit:
    """One gate. `reached` and `rejected` programs; of those rejected `audited` were measured in full and `found` of
    these would be on the frontier. `lost` estimates how many of all the rejected would be, `lost_high` bounds it (95 %,
    Wilson); both are None where nothing was audited, and 0 for gates that check correctness alone.

    `agreement` is Spearman's correlation of accuracy kept on the screen and in full, over all programs that have both
    (None for other gates and below three programs).
    """

    gate: str
    reached: int
    rejected: int
    audited: int
    found: int
    lost: float | None
    lost_high: float | None
    agreement: float | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def audits(trials: Sequence[Trial]) -> list[Audit]:
    """One row for every gate that a program reached, in order."""
    rows = []
    points = [trial.point for trial in trials if trial.point is not None]
    front = [points[index] for index in frontier(points)]
    for gate in GATES:
        reached = [t for t in trials if t.head is not None and gate in t.head.reached]
        if not reached:
            continue
        rejected = [t for t in reached if t.head and t.head.status == REJECTED and t.head.gate == gate]
        audited = [t for t in rejected if t.head and t.head.speedup and t.head.accuracy]
        found = sum(_would_lead(trial, front) for trial in audited)
        lost: float | None = None
        high: float | None = None
        if gate in CORRECTNESS or not rejected:
            lost = high = 0.0
        elif audited:
            lost = len(rejected) * found / len(audited)
            unseen = len(rejected) - len(audited)
            high = min(float(len(rejected)), found + unseen * wilson_upper(found, len(audited)))
        rows.append(
            Audit(gate, len(reached), len(rejected), len(audited), found, lost, high, _agreement(reached, gate))
        )
    return rows


def _would_lead(trial: Trial, front: Sequence[Point]) -> bool:
    """Whether an audited program would be on the frontier beside all accepted ones, of which `front` leads."""
    assert trial.head and trial.head.speedup and trial.head.accuracy
    mine = (trial.head.speedup.value, trial.head.accuracy.value)
    return 0 in frontier([mine, *front])


def _agreement(reached: Sequence[Trial], gate: str) -> float | None:
    if gate != "screen":
        return None
    pairs = [
        (head.screened[1], head.accuracy.value)
        for head in (trial.head for trial in reached if trial.in_full)
        if head is not None and head.screened is not None and head.accuracy is not None
    ]
    if len(pairs) < 3:
        return None
    first, second = np.array(pairs).T
    return rank_correlation(first, second)
