"""Type rules of what works element by element, and of the algebra of sets."""

from __future__ import annotations

from vortexlab.dsl.graph import Nodes, Value
from vortexlab.dsl.ir import BOOL, DTYPES, FLOAT, INT, SET, Type, ordered
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.places import Place
from vortexlab.dsl.words import precision_hint


class Elementwise(Nodes):
    """Operands are matched by the names of their axes. All rules raise `Finding`."""

    def unary(self, op: str, x: Value, place: Place) -> Value:
        if op != "not":
            self._not_set("+x" if op == "pos" else op, x, place)
        if op in ("floor", "ceil"):
            if x.type.axes:
                raise place.error(
                    "count-not-scalar",
                    f"{op} takes a scalar",
                    found=str(x),
                    hint=f"reduce it first, for example with .mean({x.type.axes[-1]}); it makes counts of scalars",
                    expected="a scalar",
                )
            return x if x.type.kind == INT else self.add(op, Type(INT), (x,), place)
        if op == "float":
            return x if x.type.kind == FLOAT else self.add(op, Type(FLOAT, x.type.axes), (x,), place)
        if op == "not":
            if x.type.kind != BOOL:
                raise place.error(
                    "not-a-truth-value",
                    "`not` takes a truth value",
                    found=str(x),
                    hint="the pages outside a set are ~a" if x.type.kind == SET else "compare first, for example x > 0",
                    expected="bool",
                )
            return self.add(op, x.type, (x,), place)
        self._numeric("+x" if op == "pos" else op, x, place)
        if op == "pos":
            return x
        kind = x.type.kind if op in ("neg", "abs", "relu") else FLOAT
        return self.add(op, Type(kind, x.type.axes), (x,), place)

    def cast(self, x: Value, dtype: str, place: Place) -> Value:
        if dtype not in DTYPES:
            raise place.error(
                "unknown-dtype",
                f"unknown precision {dtype!r}",
                expected=", ".join(DTYPES),
                found=repr(dtype)[:40],
                hint=precision_hint(dtype, DTYPES),
            )
        if x.type.kind != FLOAT:
            raise place.error("cast-kind", "only floats are cast", found=str(x), hint="use float(x)", expected="float")
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
                expected="int and int",
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
                raise place.error(
                    "not-a-truth-value",
                    f"`{op}` takes truth values",
                    found=str(value),
                    hint=hint,
                    expected="bool and bool",
                )
        return self.add(op, Type(BOOL, ordered({*a.type.axes, *b.type.axes})), (a, b), place)

    def where(self, c: Value, a: Value, b: Value, place: Place) -> Value:
        if c.type.kind != BOOL:
            raise place.error(
                "not-a-truth-value",
                "where takes a truth value first",
                found=str(c),
                hint="which candidates a set holds is member(pages)"
                if c.type.kind == SET
                else "compare first, for example x > 0",
                expected="bool",
            )
        if SET in (a.type.kind, b.type.kind):
            if a.type.kind != b.type.kind:
                raise place.error(
                    "set-and-number",
                    "where chooses between two sets or two numbers",
                    found=f"{a} and {b}",
                    expected="two sets or two numbers",
                    hint="make a set of the number: first(n), topk(score, n), ...",
                )
            if c.type.axes:
                raise place.error(
                    "set-condition",
                    "between sets the condition must be a scalar",
                    found=str(c),
                    hint="use above(score, threshold, max=n) to choose page by page",
                    expected="bool",
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
                expected="two numbers or two truth values",
            )
        else:
            kind = INT if kinds == {INT} else FLOAT
        return self.add("where", Type(kind, axes), (c, a, b), place)

    def _set_algebra(self, op: str, a: Value, b: Value, place: Place) -> Value:
        names = {"or": "union", "and": "intersect", "sub": "difference"}
        if a.type.kind != b.type.kind:
            raise place.error(
                "set-and-number",
                "a set of pages is combined with sets only",
                found=f"{a} and {b}",
                expected="two sets or two numbers",
                hint="sets combine with |, &, - and ~",
            )
        if op not in names:
            raise place.error(
                "set-operator",
                "sets combine with |, &, - and ~",
                found=OPS[op].signature,
                expected="|, &, - or ~",
                hint="write a | b, a & b, a - b or ~a",
            )
        return self.add(names[op], Type(SET, ordered({*a.type.axes, *b.type.axes})), (a, b), place)
