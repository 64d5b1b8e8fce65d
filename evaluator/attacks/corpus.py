"""All attacks on the evaluator in the order of the checklist, and how they are run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from vortexlab.evaluator.attacks import measurements, processes, qualities, texts
from vortexlab.evaluator.attacks.attack import Attack, Result, found

ATTACKS: tuple[Attack, ...] = (*texts.ATTACKS, *processes.ATTACKS, *measurements.ATTACKS, *qualities.ATTACKS)


def in_order(attacks: Sequence[Attack]) -> list[Attack]:
    """By line: A1 to A50, then S1 to S14."""
    return sorted(attacks, key=lambda attack: (attack.id[0], int(attack.id[1:])))


def run(attacks: Sequence[Attack]) -> Iterator[Result]:
    """Runs attacks one after the other. One range and one evaluator serve all that need them; both are closed at the
    end. What an attack raises is what it found: the evaluator may raise nothing."""
    with ExitStack() as open_while:
        if any(attack.kind == "process" or attack.id == "A41" for attack in attacks):
            open_while.enter_context(processes.shared(processes.Range()))
        if sum(attack.kind == "quality" for attack in attacks) > 1:
            open_while.enter_context(qualities.shared())
        for attack in attacks:
            began = time.monotonic()
            try:
                verdict, ways = found(attack, attack.run())
            except Exception as error:
                verdict, ways = f"accepted: {type(error).__name__}: {error}"[:200], 0
            yield Result(attack, verdict, ways, time.monotonic() - began)


def table(attacks: Sequence[Attack]) -> str:
    """The table of `docs/attacks.md`."""
    lines = ["| line | tries | expected | what stops it |", "|---|---|---|---|"]
    lines += [f"| {a.id} | {a.tries} | {a.expected} | {a.wall} |" for a in in_order(attacks)]
    return "\n".join(lines) + "\n"
