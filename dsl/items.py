"""What an expression may stand for while a program is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import BOOL, FLOAT, INT, Knob, KnobRef, Type
from vortexlab.dsl.places import Place
from vortexlab.dsl.rules import Graph


class Poisoned(Exception):
    """An expression uses something whose own error is reported already."""


@dataclass(frozen=True)
class Axis:
    name: str


@dataclass(frozen=True)
class Text:
    """A text, or a choice knob of texts: allowed only where a reduction or a precision is named."""

    value: str | KnobRef


@dataclass(frozen=True)
class Record:
    """`s`, `score` or `ctx`: something with named members; None where its making failed."""

    what: str
    members: Mapping[str, Callable[[Place], Value]] | None


@dataclass(frozen=True)
class Deferred:
    """A name whose node is made when it is used: a knob, a constant, `k`, `v` or `q`."""

    make: Callable[[Place], Value | Text]


Item = Value | Axis | Text | Record
Returned = Item | dict[str, Value]


def knob_item(graph: Graph, knob: Knob, place: Place) -> Value | Text:
    """A knob where a value stands: a scalar, or a text when it chooses among texts."""
    if isinstance(knob.default, str):
        return Text(KnobRef(knob.name))
    kind = BOOL if knob.kind == "bool" else FLOAT if isinstance(knob.default, float) else INT
    return graph.add("knob", Type(kind), (), place, name=knob.name)
