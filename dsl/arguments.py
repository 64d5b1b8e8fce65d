"""Reads the arguments of the language's functions and methods: names of axes, words, numbers written out, knobs."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vortexlab.dsl.declarations import shown
from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import INT, KnobRef
from vortexlab.dsl.items import Axis, Text
from vortexlab.dsl.places import Named, Place, place_of
from vortexlab.dsl.words import FUNCTIONS, PARAMETERS, suggestion

if TYPE_CHECKING:
    from vortexlab.dsl.expressions import Expressions


@dataclass(frozen=True)
class Signature:
    """Required and optional arguments in order; those from number `positional` on are given by name only."""

    name: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    positional: int = 9
    owner: str = ""
    example: str = ""

    def __str__(self) -> str:
        arguments = [*self.required, *(f"{key}=..." for key in self.optional)]
        return f"{self.owner}{self.name}({', '.join(arguments)})"

    def bind(self, node: ast.Call, place: Place) -> dict[str, ast.expr]:
        """The arguments of a call by name."""
        known = (*self.required, *self.optional)
        if len(node.args) > min(self.positional, len(known)):
            extra = node.args[min(self.positional, len(known))]
            named = [f"{key}={shown(extra)}" for key in known[self.positional :]]
            raise place_of(extra).error(
                "argument-count",
                f"{self.name} has too many arguments",
                found=shown(extra),
                expected=str(self),
                hint=f"write {' or '.join(named)}" if named else "leave it out",
            )
        given = dict(zip(known, node.args, strict=False))
        for keyword in node.keywords:
            key = str(keyword.arg)
            if key not in known:
                raise place_of(keyword.value).error(
                    "unknown-argument",
                    f"{self.name} has no argument {key}",
                    found=f"{key}=",
                    expected=str(self),
                    hint=suggestion(key, known),
                )
            if key in given:
                raise place_of(keyword.value).error(
                    "argument-count",
                    f"{self.name} is given {key} twice",
                    found=f"{key}=",
                    expected=str(self),
                    hint="give it once",
                )
            given[key] = keyword.value
        missing = [key for key in self.required if key not in given]
        if missing:
            raise place.error(
                "argument-count",
                f"{self.name} lacks {missing[0]}",
                found=shown(node),
                expected=str(self),
                hint=f"write {self.example or self}",
            )
        return given


def read_axis(tracer: Expressions, node: ast.expr) -> Named:
    if isinstance(node, ast.Name) and not tracer.has(node.id) and node.id not in (*tracer.axes, *FUNCTIONS):
        raise place_of(node).error(
            "unknown-name", f"unknown axis {node.id}", found=node.id, expected="the name of an axis",
            hint=suggestion(node.id, tracer.axes),
        )  # fmt: skip
    item = tracer.item(node)
    if not isinstance(item, Axis):
        hint = "name the axis, for example x.mean(token); axes have names and no positions"
        if isinstance(item, Text):
            hint = "write the name of the axis without quotes"
        raise place_of(node).error(
            "axis-expected",
            "the name of an axis is expected here",
            found=shown(node),
            expected=", ".join(sorted(tracer.axes)),
            hint=hint,
        )
    return Named(item.name, place_of(node))


def new_axis(tracer: Expressions, name: str, place: Place) -> str:
    if tracer.has(name) or name in PARAMETERS or name in FUNCTIONS:
        raise place.error(
            "axis-taken",
            f"{name} is the name of a value or function",
            hint="choose another name for the axis",
            found=name,
            expected="a name of its own",
        )
    return name


def read_word(tracer: Expressions, node: ast.expr, allowed: tuple[str, ...]) -> str | KnobRef:
    """One of some texts, or a choice knob of them."""
    expected = ", ".join(f'"{name}"' for name in allowed)
    bare = isinstance(node, ast.Name) and not tracer.has(node.id) and node.id in allowed
    item = None if bare else tracer.item(node)
    if not isinstance(item, Text):
        raise place_of(node).error(
            "unknown-reduction",
            "a word in quotes, or a choice knob of them, is expected here",
            found=shown(node),
            expected=expected,
            hint=f'write "{shown(node)}" in quotes' if bare else f"write {expected.split(', ')[0]}",
        )
    offered = (item.value,) if isinstance(item.value, str) else tracer.knobs[item.value.name].choices
    wrong = [choice for choice in offered if choice not in allowed]
    if wrong:
        raise place_of(node).error(
            "unknown-reduction",
            "this is no reduction or order here",
            found=repr(wrong[0])[:40],
            expected=expected,
            hint=suggestion(str(wrong[0]), allowed),
        )
    return item.value


@dataclass(frozen=True)
class Whole:
    """A whole number or int knob, with the range that it spans."""

    number: int | KnobRef
    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" if self.high > self.low else str(self.low)


def read_whole(
    tracer: Expressions, node: ast.expr, what: str, low: int, high: int, code: str = "whole-number", hint: str = ""
) -> Whole:
    """A number of the program's own: written out, or an int knob, all of whose values lie in low..high."""
    value = tracer.value(node)
    made = tracer.graph.nodes[value.index]
    found: Whole | None = None
    if made.op == "const" and value.type.kind == INT:
        number = int(made.attrs["value"])  # type: ignore[arg-type]
        found = Whole(number, number, number)
    elif made.op == "knob" and value.type.kind == INT:
        knob = tracer.knobs[str(made.attrs["name"])]
        numbers = [n for n in (*knob.choices, knob.low, knob.high) if isinstance(n, int)]
        found = Whole(KnobRef(knob.name), min(numbers), max(numbers))
    if found is None:
        raise place_of(node).error(
            code,
            f"{what} is a whole number or an int knob",
            found=shown(node),
            expected=f"{low} to {high}",
            hint="write a number, or name a knob.int or a knob.choice of whole numbers",
        )
    if not low <= found.low <= found.high <= high:
        raise place_of(node).error(
            code,
            f"{what} is out of range",
            found=str(found),
            expected=f"{low} to {high}",
            hint=hint or "choose a number in the range",
        )
    return found


def read_number(tracer: Expressions, node: ast.expr | None) -> float | int | KnobRef:
    """A number written out, or a knob of numbers; 0.0 where it is left out."""
    if node is None:
        return 0.0
    value: Value = tracer.value(node)
    made = tracer.graph.nodes[value.index]
    if value.type.kind in (INT, "float"):
        if made.op == "const":
            return made.attrs["value"]  # type: ignore[return-value]
        if made.op == "knob":
            return KnobRef(str(made.attrs["name"]))
    raise place_of(node).error(
        "fill-value",
        "what stands beyond the ends is a number or a knob",
        found=shown(node),
        expected="fill=0.0",
        hint="write the number out; to fill with a computed value use where(index(page) < n, x, y)",
    )
