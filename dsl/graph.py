"""Nodes under construction: equal ones are made once, and every one knows the lengths of its axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from vortexlab.dsl.ir import (
    BOOL,
    DYNAMIC_CTX,
    FLOAT,
    INT,
    PAGE_STAGE,
    QUERY_STAGE,
    SET,
    STATIC_CTX,
    Attr,
    KnobRef,
    Node,
    Type,
)  # fmt: skip
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.places import Named, Place
from vortexlab.dsl.sizes import MAX_AXES, MAX_LENGTH, Size

RESERVED_AXES = ("page", "head", "query", "token", "channel")

#: Why a value of a stage lacks an axis.
_ABSENT = {
    (PAGE_STAGE, "page"): "a summary sees one page; what looks at several stands in score",
    (PAGE_STAGE, "head"): "a summary knows no queries",
    (QUERY_STAGE, "query"): "the queries of a block become one in pool",
    (QUERY_STAGE, "token"): "keep token in a summary to have it here",
}


@dataclass(frozen=True)
class Value:
    """A node of the graph as the tracer passes it around."""

    index: int
    type: Type

    def __str__(self) -> str:
        return str(self.type)


class Nodes:
    """The nodes made so far; `sizes` holds the length of each node's axes, `stage` that of the next node.

    `lengths` are those of the axes that a program is given, and of a value's channels: as many as those of a key
    unless the program `is_latent`, that is speaks of a latent part.
    """

    def __init__(
        self, page: int | KnobRef = 16, block: int | KnobRef | None = None, is_latent: bool = False
    ) -> None:
        self.nodes: list[Node] = []
        self.sizes: list[Mapping[str, Size]] = []
        self.stage = QUERY_STAGE
        self.lengths = {
            "head": Size.of("head"), "query": Size.of(block or 1), "token": Size.of(page),
            "channel": Size.of("channel"), "value": Size.of("value" if is_latent else "channel"),
        }  # fmt: skip
        self._seen: dict[object, int] = {}

    def add(
        self,
        op: str,
        type_: Type,
        inputs: Sequence[Value],
        place: Place,
        sizes: Mapping[str, Size] | None = None,
        **attrs: Attr | KnobRef,
    ) -> Value:
        """`sizes` are those of a leaf or of an op that changes axes; elsewhere they follow from the inputs."""
        merged = dict(self._merged(inputs, place) if sizes is None else sizes)
        self._check_size([merged[axis] for axis in type_.axes if axis != "page"], type_, place)
        spelled = tuple((name, type(value), value) for name, value in sorted(attrs.items()))
        key = (op, type_, tuple(v.index for v in inputs), spelled, self.stage)
        if key not in self._seen:
            self._seen[key] = len(self.nodes)
            self.nodes.append(
                Node(op, type_, tuple(v.index for v in inputs), attrs, self.stage, place.line, place.column)
            )
            self.sizes.append({axis: merged[axis] for axis in type_.axes if axis != "page"})
        return Value(self._seen[key], type_)

    def _merged(self, inputs: Sequence[Value], place: Place, but: str = "") -> dict[str, Size]:
        """Lengths by axis; inputs must agree on all but one axis."""
        merged: dict[str, Size] = {}
        for value in inputs:
            for axis, size in self.sizes[value.index].items():
                if merged.setdefault(axis, size) != size and axis != but:
                    self._sizes_differ(axis, merged[axis], size, place)
        return merged

    @staticmethod
    def _check_size(sizes: Sequence[Size], type_: Type, place: Place) -> None:
        """No value is so large that its lengths, or its numbers for one page, could exhaust a machine."""
        tame = len(sizes) <= MAX_AXES and not any(size.is_unwieldy() for size in sizes)
        if tame and math.prod(size.number() or 1 for size in sizes) <= MAX_LENGTH:
            return
        raise place.error(
            "value-size",
            "the value becomes too large",
            found=str(type_),
            expected=f"at most {MAX_LENGTH} numbers for each page, head and channel, on at most {MAX_AXES} axes",
            hint="reduce an axis before the next one is made",
        )

    @staticmethod
    def _sizes_differ(axis: str, a: Size, b: Size, place: Place) -> NoReturn:
        hint = f"make them equally long, reduce {axis}, or rename it in one of them"
        if {a, b} == {Size.of("channel"), Size.of("value")}:
            hint = "keys may be wider than values: take runs of one length, for example x.slice(channel, 0, ctx.latent)"
        raise place.error(
            "axis-size",
            f"the axis {axis} has different lengths",
            found=f"{a} and {b}",
            expected="one length",
            hint=hint,
        )

    # ---- leaves

    def const(self, value: float | bool, place: Place) -> Value:
        kind = BOOL if isinstance(value, bool) else INT if isinstance(value, int) else FLOAT
        return self.add("const", Type(kind), (), place, value=value)

    def ctx(self, name: str, place: Place) -> Value:
        kind = STATIC_CTX.get(name) or DYNAMIC_CTX[name]
        if self.stage == PAGE_STAGE and (name in DYNAMIC_CTX or name == "prefill"):
            raise place.error(
                "summary-not-pure",
                f"a summary may not read ctx.{name}",
                hint="a summary is a function of its page's tokens alone; use ctx in score or select",
                found=f"ctx.{name}",
                expected=", ".join(f"ctx.{n}" for n in STATIC_CTX if n != "prefill"),
            )
        return self.add("ctx", Type(kind), (), place, name=name)

    # ---- checks

    def _not_set(self, op: str, x: Value, place: Place) -> None:
        if x.type.kind == SET:
            raise place.error(
                "set-and-number",
                f"{OPS[op].signature if op in OPS else op} takes numbers",
                found=str(x),
                hint="sets combine with |, &, - and ~; member(pages) is a truth value per page",
                expected="a number",
            )

    def _numeric(self, op: str, x: Value, place: Place) -> None:
        self._not_set(op, x, place)
        if x.type.kind == BOOL:
            raise place.error(
                "truth-and-number",
                f"{OPS[op].signature if op in OPS else op} takes numbers",
                found=str(x),
                hint="use float(x) or where(c, a, b)",
                expected="a number",
            )

    def _has_axis(self, op: str, x: Value, axis: Named) -> None:
        if axis.name not in x.type.axes:
            hint = f"it has the axes {', '.join(x.type.axes)}" if x.type.axes else "it is a scalar: leave the axis out"
            if (self.stage, axis.name) in _ABSENT:
                hint += "; " + _ABSENT[self.stage, axis.name]
            raise axis.place.error(
                "axis-missing",
                f"{op} over {axis.name}, but the value has no axis {axis.name}",
                found=str(x),
                expected=f"one of {', '.join(x.type.axes) or 'none (it is a scalar)'}",
                hint=hint,
            )

    def _fresh_axis(self, x: Value, name: str, place: Place) -> None:
        if name in x.type.axes or name in RESERVED_AXES:
            of_model = name not in x.type.axes
            raise place.error(
                "axis-taken",
                f"{name} is an axis of the model" if of_model else f"the axis name {name} is taken",
                found=str(x),
                hint="choose another name",
                expected="a new name",
            )
