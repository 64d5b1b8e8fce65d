"""Verdicts as the record has them: the head at hand, the rest compressed until it is asked for.

A controller and a reader hold thousands of trials and decide by the heads; whole verdicts would take ten times the
memory and, to read them all, the time.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vortexlab.agent.encoding import Parts
from vortexlab.agent.events import Event
from vortexlab.evaluator.verdict import Head, Verdict, joined


class Recorded:
    """The verdict of an event. `verdict` is read when it is asked for and lives as long as somebody holds it."""

    __slots__ = ("_event", "_seen", "head")

    def __init__(self, event: Event):
        self.head = Head.from_json(event.data["verdict"])
        self._event = event.without_data()
        self._seen: weakref.ref[Verdict] | None = None

    @property
    def verdict(self) -> Verdict:
        """Raises `VortexError` when the record of it is damaged."""
        found = self._seen() if self._seen else None
        if found is None:
            found = Verdict.from_json(joined(self.head.to_json(), self._event.details()["verdict"]))
            self._seen = weakref.ref(found)
        return found

    def parts(self, parts: Parts) -> dict[str, Any]:
        """Some of what the head does not say, as JSON. Raises `VortexError` when the record is damaged."""
        return self._event.parts(parts)


class OfTrial:
    """The field `verdict` of a trial: takes a verdict, or one of the record, which it reads again for everybody who
    asks."""

    def __get__(self, trial: Any, owner: type) -> Verdict | None:
        if trial is None:
            return None  # the field's default
        found: Verdict | Recorded | None = trial.__dict__["_verdict"]
        return found.verdict if isinstance(found, Recorded) else found

    def __set__(self, trial: Any, value: Verdict | Recorded | None) -> None:
        trial.__dict__["_verdict"] = value


VERDICT = OfTrial()


def head_of(trial: Any) -> Head | None:
    """The head of a trial's verdict, without reading the rest."""
    found: Verdict | Recorded | None = trial.__dict__["_verdict"]
    return found.head if isinstance(found, Recorded) else Head.of(found) if found else None


def parts_of(trials: Iterable[Any], names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Of the verdict of every trial the fields `names` as JSON, without making verdicts of the record's text."""
    parts = Parts("verdict", names)
    for trial in trials:
        found: Verdict | Recorded = trial.__dict__["_verdict"]
        yield found.parts(parts) if isinstance(found, Recorded) else found.to_json()
