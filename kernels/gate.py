"""The dense gate: from which context on a program's step is no slower than dense attention (rule 12 of the language).

It is outside a program's meaning. The host looks at batch and lengths and runs one of two steps; summaries are kept up
in both. What proves a program (numerics, fidelity, accuracy, the self-test of a package) runs without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from vortexlab.dsl.errors import VortexError

#: Without these a table of ratios says nothing.
CONDITIONS = ("program_hash", "device", "dtype", "geometry", "versions", "seed")


@dataclass(frozen=True)
class Ratio:
    """The time of the fastest dense step over that of the program's, with its interval, at one batch and context."""

    batch: int
    context: int
    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("batch", "context"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise VortexError(f"a gate's {name} is a whole number from 1, found {number!r}")
        numbers = (self.low, self.value, self.high)
        plain = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers)
        if not plain or not 0 < self.low <= self.value <= self.high:
            raise VortexError(
                f"a gate's ratio has 0 < low <= value <= high, found {', '.join(map(repr, numbers))} at batch "
                f"{self.batch}, context {self.context}"
            )


@dataclass(frozen=True)
class Gate:
    """Measured ratios and the break-even contexts that follow from them.

    `conditions` hold what `CONDITIONS` names. Raises `VortexError` without ratios, for two of the same batch and
    context, and for conditions that lack something.
    """

    ratios: tuple[Ratio, ...]
    conditions: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.ratios:
            raise VortexError("a gate needs at least one measured batch and context")
        seen = set()
        for item in self.ratios:
            if (item.batch, item.context) in seen:
                raise VortexError(f"a gate has batch {item.batch}, context {item.context} twice; measure each once")
            seen.add((item.batch, item.context))
        missing = [name for name in CONDITIONS if name not in self.conditions]
        if missing:
            raise VortexError(f"a gate names the conditions of its measurement; this one lacks {', '.join(missing)}")

    @staticmethod
    def of(rows: Iterable[Mapping[str, Any]], conditions: Mapping[str, Any]) -> Gate:
        """The gate of measured rows, as `vortex bench` gives them: `batch`, `context` and `speedup` with its interval.

        Raises `VortexError` for a row whose timed output was wrong.
        """
        ratios = []
        for row in rows:
            if row["speedup"] is None:
                raise VortexError(
                    f"no gate at batch {row['batch']}, context {row['context']}: {row['failure'] or 'not measured'}"
                )
            found = {name: float(row["speedup"][name]) for name in ("value", "low", "high")}
            ratios.append(Ratio(row["batch"], row["context"], **found))
        return Gate(tuple(sorted(ratios, key=lambda item: (item.batch, item.context))), dict(conditions))

    @cached_property
    def opens(self) -> dict[int, int | None]:
        """Measured batch -> the least measured context from which the program is no slower, there and at every longer
        one; None: never. The lower end of the interval counts, so that noise opens nothing."""
        found: dict[int, int | None] = {}
        for batch in sorted({item.batch for item in self.ratios}):
            found[batch] = None
            row = [item for item in self.ratios if item.batch == batch]
            for item in sorted(row, key=lambda item: item.context, reverse=True):
                if item.low < 1:
                    break
                found[batch] = item.context
        return found

    def is_sparse(self, batch: int, context: int) -> bool:
        """Whether a step of `batch` requests, the longest of `context` tokens, runs the program.

        The row of the largest measured batch that is not above `batch` decides; below all of them the step is dense.
        """
        least = self.opens.get(max((size for size in self.opens if size <= batch), default=0))
        return least is not None and context >= least

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `opens` is there to be read, and follows from `ratios`."""
        return {
            "opens": [{"batch": batch, "context": least} for batch, least in self.opens.items()],
            "ratios": [asdict(item) for item in self.ratios],
            "conditions": dict(self.conditions),
        }

    @staticmethod
    def from_json(data: Any) -> Gate:
        """Raises `VortexError` for what is not of the form of `to_json`, or where `opens` does not follow."""
        try:
            gate = Gate(tuple(Ratio(**item) for item in data["ratios"]), dict(data["conditions"]))
            opens = [dict(item) for item in data["opens"]]
        except (KeyError, TypeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise VortexError(f"this is no gate ({type(error).__name__}: {line}); measure it again") from None
        if opens != gate.to_json()["opens"]:
            raise VortexError("a gate's break-even contexts are not those of its ratios; measure it again")
        return gate
