"""Building typed nodes: the one place where the type rules of the ops stand."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vortexlab.dsl.errors import Diagnostic
from vortexlab.dsl.ir import (
    BOOL,
    DTYPES,
    DYNAMIC_CTX,
    FLOAT,
    INT,
    PAGE_STAGE,
    QUERY_STAGE,
    REDUCTIONS,
    SET,
    STATIC_CTX,
    Attr,
    KnobRef,
    Node,
    Type,
    ordered,
)
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.sizes import Size

RESERVED_AXES = ("page", "head", "token", "channel")


class Finding(Exception):
    """One diagnostic on its way to the parser, which collects them."""

    def __init__(self, diagnostic: Diagnostic):
        super().__init__(str(diagnostic))
        self.diagnostic = diagnostic


@dataclass(frozen=True)
class Place:
    line: int
    column: int

    def error(self, code: str, message: str, *, found: str = "", expected: str = "", hint: str = "") -> Finding:
        return Finding(Diagnostic(code, message, self.line, self.column, found, expected, hint))


def place_of(node: ast.AST) -> Place:
    return Place(getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1)


@dataclass(frozen=True)
class Value:
    """A node of the graph as the tracer passes it around."""

    index: int
    type: Type

    def __str__(self) -> str:
        return str(self.type)


class Graph:
    """Nodes under construction. Equal nodes are made once; `sizes` holds the length of each node's axes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.sizes: list[Mapping[str, Size]] = []
        self.stage = QUERY_STAGE
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
        spelled = tuple((name, type(value), value) for name, value in sorted(attrs.items()))
        key = (op, type_, tuple(v.index for v in inputs), spelled, self.stage)
        if key not in self._seen:
            self._seen[key] = len(self.nodes)
            self.nodes.append(
                Node(op, type_, tuple(v.index for v in inputs), attrs, self.stage, place.line, place.column)
            )
            self.sizes.append({axis: merged[axis] for axis in type_.axes if axis != "page"})
        return Value(self._seen[key], type_)

    def _merged(self, inputs: Sequence[Value], place: Place) -> dict[str, Size]:
        merged: dict[str, Size] = {}
        for value in inputs:
            for axis, size in self.sizes[value.index].items():
                if merged.setdefault(axis, size) != size:
                    raise place.error(
                        "axis-size",
                        f"the axis {axis} has different lengths",
                        found=f"{merged[axis]} and {size}",
                        expected="one length",
                        hint=f"reduce {axis}, or rename one of them",
                    )
        return merged

    # ---- leaves

    def const(self, value: float | bool, place: Place) -> Value:
        kind = BOOL if isinstance(value, bool) else INT if isinstance(value, int) else FLOAT
        return self.add("const", Type(kind), (), place, value=value)

    def ctx(self, name: str, place: Place) -> Value:
        kind = STATIC_CTX.get(name) or DYNAMIC_CTX[name]
        if self.stage == PAGE_STAGE and name in DYNAMIC_CTX:
            raise place.error(
                "summary-not-pure",
                f"a summary may not read ctx.{name}",
                hint="a summary is a function of its page's tokens alone; use ctx in score or select",
            )
        return self.add("ctx", Type(kind), (), place, name=name)

    # ---- elementwise

    def unary(self, op: str, x: Value, place: Place) -> Value:
        self._not_set(op, x, place)
        if op in ("floor", "ceil"):
            if x.type.axes:
                raise place.error(
                    "count-not-scalar",
                    f"{op} takes a scalar",
                    found=str(x),
                    hint="reduce it first, for example with .mean(page)",
                )
            return x if x.type.kind == INT else self.add(op, Type(INT), (x,), place)
        if op == "float":
            return x if x.type.kind == FLOAT else self.add(op, Type(FLOAT, x.type.axes), (x,), place)
        if op == "not":
            if x.type.kind != BOOL:
                raise place.error("not-a-truth-value", "`not` takes a truth value", found=str(x), hint="compare first")
            return self.add(op, x.type, (x,), place)
        self._numeric(op, x, place)
        kind = x.type.kind if op in ("neg", "abs", "relu") else FLOAT
        return self.add(op, Type(kind, x.type.axes), (x,), place)

    def cast(self, x: Value, dtype: str, place: Place) -> Value:
        if dtype not in DTYPES:
            raise place.error("unknown-dtype", f"unknown precision {dtype!r}", expected=", ".join(DTYPES))
        if x.type.kind != FLOAT:
            raise place.error("cast-kind", "only floats are cast", found=str(x), hint="use float(x)")
        return self.add("cast", Type(FLOAT, x.type.axes, dtype), (x,), place, dtype=dtype)

    def binary(self, op: str, a: Value, b: Value, place: Place) -> Value:
        if SET in (a.type.kind, b.type.kind):
            return self._set_algebra(op, a, b, place)
        for value in (a, b):
            self._numeric(op, value, place)
        axes = ordered({*a.type.axes, *b.type.axes})
        kind = INT if a.type.kind == b.type.kind == INT else FLOAT
        if op in ("floordiv", "mod") and kind != INT:
            raise place.error(
                "integer-only",
                f"`{'//' if op == 'floordiv' else '%'}` works on ints",
                found=f"{a} and {b}",
                hint="use floor(a / b)",
            )
        if op == "div":
            kind = FLOAT
        return self.add(op, Type(kind, axes), (a, b), place)

    def compare(self, op: str, a: Value, b: Value, place: Place) -> Value:
        for value in (a, b):
            self._numeric(op, value, place)
        return self.add(op, Type(BOOL, ordered({*a.type.axes, *b.type.axes})), (a, b), place)

    def logic(self, op: str, a: Value, b: Value, place: Place) -> Value:
        for value in (a, b):
            if value.type.kind != BOOL:
                hint = "between page sets use | and &" if value.type.kind == SET else "compare first, for example x > 0"
                raise place.error("not-a-truth-value", f"`{op}` takes truth values", found=str(value), hint=hint)
        return self.add(op, Type(BOOL, ordered({*a.type.axes, *b.type.axes})), (a, b), place)

    def where(self, c: Value, a: Value, b: Value, place: Place) -> Value:
        if c.type.kind != BOOL:
            raise place.error(
                "not-a-truth-value", "where takes a truth value first", found=str(c), hint="compare first"
            )
        if SET in (a.type.kind, b.type.kind):
            if a.type.kind != b.type.kind:
                raise place.error(
                    "set-and-number", "where chooses between two sets or two numbers", found=f"{a} and {b}"
                )
            if c.type.axes:
                raise place.error(
                    "set-condition",
                    "between sets the condition must be a scalar",
                    found=str(c),
                    hint="use above(score, threshold, max=n) to choose page by page",
                )
            return self.add("where", Type(SET, ordered({*a.type.axes, *b.type.axes})), (c, a, b), place)
        axes = ordered({*c.type.axes, *a.type.axes, *b.type.axes})
        kinds = {a.type.kind, b.type.kind}
        if kinds == {BOOL}:
            kind = BOOL
        elif BOOL in kinds:
            raise place.error(
                "truth-and-number",
                "where chooses between values of one kind",
                found=f"{a} and {b}",
                hint="use float(x) on the truth value",
            )
        else:
            kind = INT if kinds == {INT} else FLOAT
        made = self.add("where", Type(kind, axes), (c, a, b), place)
        return self.unary("float", made, place) if kind == INT and axes else made

    # ---- shape, reductions, contractions

    def split(self, x: Value, axis: str, name: str, size: int | KnobRef, place: Place) -> Value:
        self._numeric("split", x, place)
        self._has_axis("split", x, axis, place)
        if axis not in ("token", "channel"):
            raise place.error("split-axis", f"{axis} cannot be split", expected="token or channel")
        self._fresh_axis(x, name, place)
        before = self.sizes[x.index]
        sizes = {**before, axis: before[axis].split(size), name: Size(size)}
        return self.add(
            "split",
            Type(x.type.kind, ordered({*x.type.axes, name}), x.type.dtype),
            (x,),
            place,
            sizes,
            axis=axis,
            name=name,
            size=size,
        )

    def rename(self, x: Value, old: str, new: str, place: Place) -> Value:
        self._numeric("rename", x, place)
        self._has_axis("rename", x, old, place)
        if old == "page":
            raise place.error("rename-page", "page cannot be renamed", hint="scores keep their page axis")
        self._fresh_axis(x, new, place)
        sizes = {new if axis == old else axis: size for axis, size in self.sizes[x.index].items()}
        return self.add(
            "rename",
            Type(x.type.kind, ordered({*x.type.axes, new} - {old}), x.type.dtype),
            (x,),
            place,
            sizes,
            old=old,
            new=new,
        )

    def reduce(self, x: Value, how: str | KnobRef, axis: str, place: Place) -> Value:
        if isinstance(how, str) and how not in REDUCTIONS:
            raise place.error("unknown-reduction", f"unknown reduction {how!r}", expected=", ".join(REDUCTIONS))
        self._numeric("a reduction", x, place)
        self._has_axis("a reduction", x, axis, place)
        axes = tuple(a for a in x.type.axes if a != axis)
        return self.add("reduce", Type(FLOAT, axes), (x,), place, how=how, axis=axis)

    def dot(self, a: Value, b: Value, axis: str, place: Place) -> Value:
        for value in (a, b):
            self._numeric("dot", value, place)
            self._has_axis("dot", value, axis, place)
        if axis == "page":
            raise place.error("dot-page", "dot does not run over page", hint="write (a * b).sum(page)")
        return self.add("dot", Type(FLOAT, ordered({*a.type.axes, *b.type.axes} - {axis})), (a, b), place, axis=axis)

    def softmax(self, x: Value, axis: str, place: Place) -> Value:
        self._numeric("softmax", x, place)
        if axis != "page":
            raise place.error("softmax-axis", "softmax runs over page", found=axis, expected="page")
        self._has_axis("softmax", x, "page", place)
        return self.add("softmax", Type(FLOAT, x.type.axes), (x,), place)

    def share(self, x: Value, how: str | KnobRef, place: Place) -> Value:
        if isinstance(how, str) and how not in ("sum", "max", "mean"):
            raise place.error("unknown-reduction", f"share cannot use {how!r}", expected="sum, max or mean")
        if x.type.kind != FLOAT or x.type.axes != ("page",):
            raise place.error(
                "share-axes",
                "share takes a score with the axis page alone",
                found=str(x),
                hint="reduce the other axes first, for example with .max(head)",
            )
        return self.add("share", x.type, (x,), place, how=how)

    # ---- sets

    def count(self, value: Value, what: str, place: Place) -> Value:
        if value.type.kind != INT or value.type.axes:
            hint = (
                "use floor(x) or ceil(x)"
                if value.type.kind == FLOAT and not value.type.axes
                else "reduce it to a scalar"
            )
            raise place.error("count-not-int", f"{what} must be an int scalar", found=str(value), hint=hint)
        return value

    def number(self, value: Value, what: str, place: Place, axes: tuple[str, ...] = ()) -> Value:
        self._numeric(what, value, place)
        if not set(value.type.axes) <= set(axes):
            raise place.error(
                "not-scalar",
                f"{what} must be a scalar",
                found=str(value),
                hint="reduce it first, for example with .mean(page)",
            )
        return self.unary("float", value, place)

    def score(self, op: str, x: Value, place: Place) -> Value:
        self._numeric(op, x, place)
        if x.type.axes not in (("page",), ("page", "head")):
            extra = [axis for axis in x.type.axes if axis not in ("page", "head")]
            hint = (
                f"reduce {extra[0]}, for example with .max({extra[0]})" if extra else "a score has one value per page"
            )
            raise place.error(
                "score-axes",
                f"{op} takes one score per page, or per query head and page",
                found=str(x),
                expected="float[page] or float[page, head]",
                hint=hint,
            )
        return self.unary("float", x, place)

    def scored(self, op: str, inputs: tuple[Value, ...], place: Place) -> Value:
        """topk, topp or above: one list per query head where the score or `among` has one."""
        axes = {axis for value in inputs for axis in value.type.axes if axis == "head"}
        return self.add(op, Type(SET, ordered(axes)), inputs, place)

    def page_set(self, value: Value, what: str, place: Place) -> Value:
        if value.type.kind != SET:
            raise place.error(
                "not-a-set",
                f"{what} must be a set of pages",
                found=str(value),
                hint="make one with topk(score, n), first(n), last(n), ...",
            )
        return value

    def _set_algebra(self, op: str, a: Value, b: Value, place: Place) -> Value:
        names = {"or": "union", "and": "intersect", "sub": "difference"}
        if a.type.kind != b.type.kind:
            raise place.error("set-and-number", "a set of pages is combined with sets only", found=f"{a} and {b}")
        if op not in names and op not in names.values():
            raise place.error("set-operator", "sets combine with |, &, - and ~", found=op)
        return self.add(names.get(op, op), Type(SET, ordered({*a.type.axes, *b.type.axes})), (a, b), place)

    # ---- checks

    def _not_set(self, op: str, x: Value, place: Place) -> None:
        if x.type.kind == SET:
            raise place.error(
                "set-and-number", f"{op} takes numbers", found=str(x), hint="sets combine with |, &, - and ~"
            )

    def _numeric(self, op: str, x: Value, place: Place) -> None:
        self._not_set(OPS[op].signature if op in OPS else op, x, place)
        if x.type.kind == BOOL:
            raise place.error(
                "truth-and-number", f"{op} takes numbers", found=str(x), hint="use float(x) or where(c, a, b)"
            )

    def _has_axis(self, op: str, x: Value, axis: str, place: Place) -> None:
        if axis not in x.type.axes:
            raise place.error(
                "axis-missing",
                f"{op} over {axis}, but the value has no axis {axis}",
                found=str(x),
                expected=f"one of {', '.join(x.type.axes) or 'none (it is a scalar)'}",
            )

    def _fresh_axis(self, x: Value, name: str, place: Place) -> None:
        if name in x.type.axes or name in RESERVED_AXES:
            raise place.error("axis-taken", f"the axis name {name} is taken", found=str(x), hint="choose another name")
