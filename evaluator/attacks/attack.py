"""What an attack is, and the words for what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

REFUSED = "refused at parse"
LIMITED = "limited"
NO_GAIN = "no gain"


def lost(kind: str) -> str:
    return f"worker lost: {kind}"


def rejected(gate: str) -> str:
    return f"rejected at {gate}"


@dataclass(frozen=True)
class Attack:
    """`id`: line of the checklist (A1 to A50, and S1 to S14 for those on sparse attention). `run` tries it in every way
    it knows and returns what became of each: `expected`, or else it was not stopped as it should be.

    `expected` is ``refused at parse``, ``rejected at GATE``, ``worker lost: KIND`` (one evaluation is), ``limited``
    (tried, and got nowhere), or ``no gain`` (taken for what it is: its numbers say so). `wall`: what stops it.
    """

    id: str
    kind: str
    tries: str
    expected: str
    wall: str
    run: Callable[[], Iterable[tuple[str, str]]]


@dataclass(frozen=True)
class Result:
    """What was `found`; `ways`: number of variants; `stopped`: whether each of them ended as expected."""

    attack: Attack
    found: str
    ways: int
    seconds: float

    @property
    def stopped(self) -> bool:
        return self.found == self.attack.expected


def found(attack: Attack, ways: Iterable[tuple[str, str]]) -> tuple[str, int]:
    """The expected verdict where every way of the attack got it, else the first that did not; and how many ways.

    An attack without a way is not stopped: nothing was tried.
    """
    count, deviating = 0, ""
    for way, verdict in ways:
        count += 1
        if verdict != attack.expected and not deviating:
            deviating = f"{verdict} ({way})"
    return deviating or (attack.expected if count else "nothing was tried"), count
