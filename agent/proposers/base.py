"""What a proposer is: it reads the campaign so far and hands back the text of one program.

Proposers never evaluate, never touch the store and never see a knob sampler. The campaign calls `propose` once for
a slot, checks what comes back (syntax, novelty), tunes its knobs and evaluates it. A proposer must be a pure
function of its arguments and its construction: same history, same `rng` state, same slot, same proposal. That is
what makes a resumed campaign continue exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Attr
from vortexlab.evaluator.verdict import interned


class ProposerError(VortexError):
    """The proposer could not deliver (endpoint down, budget spent, nothing parsed after all repairs).

    The campaign counts it against the proposer's circuit breaker and gives the slot to a typed mutation. With
    `permanent` the proposer is not asked again in this session (for example when its budget is spent).
    """

    def __init__(self, message: str, *, permanent: bool = False):
        super().__init__(message)
        self.permanent = permanent


@dataclass(frozen=True)
class Proposal:
    """One program to evaluate.

    `parents` are trial ids of the members it came from. `knobs` are values for its first evaluation; a knob that is
    left out takes its default. `operator` names the move within the proposer (for example ``swap-reduction``).
    `predicted_effect` is free JSON such as ``{"speedup": 1.4, "accuracy": -0.01}``. `label` is shown next to the
    name wherever the row is printed (``authored`` for replies a person wrote; empty for everything else).
    """

    source: str
    name: str
    proposer: str
    operator: str
    parents: tuple[str, ...] = ()
    hypothesis: str = ""
    predicted_effect: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Attr] = field(default_factory=dict)
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["parents"] = list(self.parents)
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Proposal:
        plain = {name: interned(value) for name, value in data.items()}
        plain["parents"] = tuple(map(interned, data["parents"]))
        plain["knobs"] = {interned(name): interned(value) for name, value in data.get("knobs", {}).items()}
        return Proposal(**plain)


@dataclass(frozen=True, slots=True)
class Member:
    """One evaluated trial as proposers see it, rejected ones included.

    `knobs` are the values it was evaluated with; `structure` is the hash with knobs and literals blanked. `status`
    is ``accepted``, ``rejected`` or ``error``; `gate` and `reason` say what stopped it. `speedup` and `accuracy` are
    point estimates relative to dense, None where not measured; `density` is tokens read / context tokens; `limits`:
    where time, bytes and accuracy go (`agent.reflection.limits`). `pinned`: people ask that it be built upon.
    """

    id: str
    name: str
    source: str
    knobs: Mapping[str, Attr]
    structure: str
    status: str
    gate: str | None
    reason: str
    speedup: float | None
    accuracy: float | None
    density: float | None
    on_frontier: bool
    parents: tuple[str, ...]
    operator: str
    proposer: str
    hypothesis: str
    predicted_effect: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    pinned: bool = False


#: Where a proposer reports each exchange with a language model, as soon as it ends; the campaign commits it before
#: going on. One JSON object: `key` (hash of the whole request), `slot`, `request`, `text` (the raw reply), `error`
#: (empty when it was answered), `tokens`, `label`, and whatever else the proposer wants to keep.
Record = Callable[[dict[str, Any]], object]


@runtime_checkable
class Proposer(Protocol):
    """`operators` are the arms that the campaign's bandit chooses among; a proposer without operators of its own
    has one, its name."""

    @property
    def name(self) -> str: ...

    @property
    def operators(self) -> tuple[str, ...]: ...

    def propose(
        self, history: Sequence[Member], rng: random.Random, slot: int, operator: str | None = None
    ) -> Proposal | None:
        """One proposal for this slot; None when there is nothing to propose this time.

        `history` holds every committed trial in slot order. `operator` is one of `operators`, or None to let the
        proposer choose; a proposer that cannot apply it to this history may use another and says so in the
        proposal. Raises `ProposerError`.
        """
        ...
