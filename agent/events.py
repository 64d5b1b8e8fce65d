"""The events of a campaign, as its record has them.

Kinds of event, in the order in which they appear:

* ``campaign_started`` {config, environment, versions}; ``campaign_resumed`` {config, versions} for every later session
* ``reserved`` {slot, key, model, tokens, money}: what a request to a language model may cost, before it is sent
* ``exchange`` {slot, key, request, text, error, tokens, ...}: that request, once it has ended
* ``proposer_failed`` {slot, proposer, reason, permanent}
* ``proposal`` {slot, arm, proposal, structure, hash}
* ``trial_started`` {slot, knobs, key}; again after a kill
* ``verdict`` {slot, fidelity, environment, verdict, ...}, at most one for a slot and one for a key
* ``request`` {slot, id, kind, program | trial | refused}: what people asked for before that slot, taken from the inbox
* ``note`` {text}, ``campaign_finished`` {reason}
* ``finals_opened`` {ids, evaluation, opening}, before a sealed context is made; ``final`` {id, opening, verdict}
* ``ablation`` {id, change, source, knobs, hash, verdict}: the program of trial `id` less a part; verdict None where the
  record holds one of that hash already
* ``oracles_begun`` {ids}: from here to the end of the session is no time of work
* ``oracle`` {id, hash, key, verdict, ...}: what the best choice of as many pages as that trial's would keep
* ``measured`` {key, verdict, environment, from_run}: what a damaged record had of a program whose trial it lost
  (`agent.rescue`); a trial with this key takes it and is not measured again

An event has `data`, which every fold reads, and may have a `detail`, compressed, which is read when somebody asks for
it: of a verdict the data hold the head, the detail the rest (`evaluator.verdict.split`). Files of older forms are read
as they are and brought to this form when they are written (`agent.migrations`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vortexlab.agent import encoding
from vortexlab.agent.naming import called
from vortexlab.dsl.errors import VortexError

KINDS = (
    "campaign_started", "campaign_resumed", "reserved", "exchange", "proposer_failed", "proposal", "trial_started",
    "verdict", "request", "note", "campaign_finished", "finals_opened", "final", "ablation", "oracles_begun",
    "oracle", "measured",
)  # fmt: skip
_NOTHING: Mapping[str, Any] = {}


def mend(folder: Path) -> str:
    """What to do about a damaged record."""
    return f"see what is left with `vortex doctor {called(folder)}`"


class Details(Protocol):
    """What the details of events are read from again."""

    def detail(self, seq: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Event:
    """`time` is seconds since the epoch, for display and time budgets only: no decision that must repeat reads it.

    `detail` is compressed JSON, or where that is read from when it is asked for, None where the event has none; `run`
    the folder of its campaign.
    """

    seq: int
    time: float
    kind: str
    data: Mapping[str, Any]
    detail: bytes | Details | None = None
    run: Path = field(default=Path(), compare=False)

    def details(self) -> dict[str, Any]:
        """The detail, read; empty where there is none. Raises `VortexError` when it is damaged."""
        return {} if self.detail is None else self._read(encoding.unpack)

    def parts(self, parts: encoding.Parts) -> dict[str, Any]:
        """Some of the detail, read; empty where there is none. Raises `VortexError` when it is damaged."""
        return {} if self.detail is None else self._read(parts.read)

    def _read(self, unpack: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        assert self.detail is not None
        packed = self.detail if isinstance(self.detail, bytes) else self.detail.detail(self.seq)
        try:
            return unpack(packed)
        except ValueError as error:
            line = f"the detail of event {self.seq}, of kind {self.kind}, is damaged ({error})"
            raise VortexError(f"run {self.run.name!r}: {line}; {mend(self.run)}") from error

    def without_data(self) -> Event:
        """Where the detail is, and no more, to keep it."""
        return Event(self.seq, self.time, self.kind, _NOTHING, self.detail, self.run)

    def whole(self) -> dict[str, Any]:
        """Data and detail as one: what the detail holds under a name of the data joins it there."""
        found = dict(self.data)
        for name, value in self.details().items():
            found[name] = {**(found.get(name) or {}), **value}
        return found


@dataclass(frozen=True)
class Mark:
    """How far a record goes: number and time of its last event."""

    seq: int
    time: float
