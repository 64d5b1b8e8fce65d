"""Decisions that may be taken after any number of answers: tests by betting, on paired differences.

A bettor starts with one unit and stakes a share of the capital on every observation; under the null hypothesis no
strategy that looks only at the past gains on the average, so the capital reaches 1/level with probability `level` at
most, whenever one looks and stops (Ville's inequality). Stakes are those of aGRAPA in Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", JRSS-B 86 (2024), arXiv 2010.09686. numpy only.

One observation is one *context*, since the answers to a context are not independent. Before each context its cell (task
and length) is drawn at random, so that every observation has the mean over cells as its mean, whatever came before.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vortexlab.evaluator.verdict import Outcome

#: Error of each one-sided decision.
LEVEL = 0.025
NON_INFERIOR, INFERIOR, UNDECIDED = "non-inferior", "inferior", "undecided"
#: Largest stake as a share of the one that may lose everything.
_MOST = 0.95


class Wager:
    """Tests that a mean is not above 0, for observations of at least `low` (below 0) and a bounded upper end.

    `p` is valid at every moment: under the hypothesis it is ever below x with probability x at most.
    """

    def __init__(self, low: float):
        if not low < 0:
            raise ValueError(f"observations must be able to lie below 0, found a least value of {low}")
        self._most = _MOST / -low
        self._count, self._mean, self._spread = 1, 0.0, 0.25  # one imagined observation keeps the first stakes small
        self._log, self._best = 0.0, 0.0

    def see(self, value: float) -> None:
        variance = self._spread / self._count
        stake = min(max(self._mean / (variance + self._mean**2), 0.0), self._most)
        self._log += math.log1p(stake * value)
        self._best = max(self._best, self._log)
        self._count += 1
        off = value - self._mean
        self._mean += off / self._count
        self._spread += off * (value - self._mean)

    @property
    def p(self) -> float:
        return math.exp(-self._best)


@dataclass(frozen=True)
class Decision:
    """Whether a program keeps dense accuracy but for `margin`, the mean over cells of sparse - dense score.

    `decision` is `NON_INFERIOR` (the difference is above -margin), `INFERIOR` (below) or `UNDECIDED`; either claim is
    wrong with probability `LEVEL` at most, however often the data was looked at. `p` belongs to the claim that is
    nearer; `contexts` were counted.
    """

    margin: float
    decision: str
    p: float
    contexts: int

    def to_json(self) -> dict[str, object]:
        return dict(self.__dict__)


def drawn_order(cells: Sequence[Hashable], seed: int) -> list[int]:
    """The order in which contexts count, as places in `cells`, the cell of every context.

    Each time a cell is drawn, all alike, and its next context taken. It ends when the drawn cell has none left, so a
    part of the contexts, about a fifth, does not count in sequential decisions.
    """
    queues: dict[Hashable, list[int]] = {}
    for place, cell in enumerate(cells):
        queues.setdefault(cell, []).append(place)
    names = sorted(queues, key=repr)
    rng, order = np.random.default_rng([seed, len(cells)]), list[int]()
    taken = dict.fromkeys(names, 0)
    while names:
        cell = names[int(rng.integers(len(names)))]
        if taken[cell] == len(queues[cell]):
            break
        order.append(queues[cell][taken[cell]])
        taken[cell] += 1
    return order


def non_inferiority(outcomes: Iterable[Outcome], margin: float) -> Decision:
    """The decision on `outcomes`, in the order in which their contexts were drawn (`drawn_order`)."""
    above, below, count = Wager(margin - 1), Wager(-1 - margin), 0
    for item in outcomes:
        value = (item.sparse - item.dense) / item.answers + margin
        above.see(value)
        below.see(-value)
        count += 1
    decision = UNDECIDED
    if above.p <= LEVEL:
        decision = NON_INFERIOR
    if below.p <= LEVEL and below.p < above.p:
        decision = INFERIOR
    return Decision(margin, decision, min(above.p, below.p), count)


def keeps_less(outcomes: Iterable[Outcome], share: float) -> float:
    """Valid at every moment: the probability at most of seeing this if the program keeps `share` of dense accuracy.

    Small, it says that the sparse score, mean over cells, is below `share` times the dense one. Order as above.
    """
    if not share > 0:
        return 1.0
    wager = Wager(-1.0)
    for item in outcomes:
        wager.see((share * item.dense - item.sparse) / item.answers)
    return wager.p
