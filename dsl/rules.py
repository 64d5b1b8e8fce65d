"""The type rule of every op: what it takes, what it gives, and what to say when that is not so."""

from __future__ import annotations

from vortexlab.dsl.graph import Nodes, Value
from vortexlab.dsl.ir import BOOL, DTYPES, FLOAT, INT, SET, KnobRef, Type, ordered
from vortexlab.dsl.places import Named, Place
from vortexlab.dsl.sizes import Size


class Graph(Nodes):
    """Builds nodes; each method is the rule of one op or of one group of them. All raise `Finding`."""

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
                    hint="compare first",
                    expected="bool",
                )
            return self.add(op, x.type, (x,), place)
        self._numeric(op, x, place)
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
                hint=f'x.to("{DTYPES[0]}")',
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
                hint="compare first",
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
        made = self.add("where", Type(kind, axes), (c, a, b), place)
        return self.unary("float", made, place) if kind == INT and axes else made

    # ---- shape, reductions, contractions

    def split(self, x: Value, axis: Named, name: str, size: int | KnobRef, place: Place) -> Value:
        self._numeric("split", x, place)
        self._has_axis("split", x, axis)
        if axis.name not in ("token", "channel"):
            raise axis.place.error(
                "split-axis",
                f"{axis.name} cannot be split",
                expected="token or channel",
                found=axis.name,
                hint="only the tokens of a page and the channels of a head have runs",
            )
        self._fresh_axis(x, name, axis.place)
        before = self.sizes[x.index]
        sizes = {**before, axis.name: before[axis.name].split(size), name: Size(size)}
        return self.add(
            "split",
            Type(x.type.kind, ordered({*x.type.axes, name}), x.type.dtype),
            (x,),
            place,
            sizes,
            axis=axis.name,
            name=name,
            size=size,
        )

    def rename(self, x: Value, old: Named, new: str, place: Place) -> Value:
        self._numeric("rename", x, place)
        self._has_axis("rename", x, old)
        if old.name == "page":
            raise old.place.error(
                "rename-page",
                "page cannot be renamed",
                hint="scores keep their page axis",
                found="page",
                expected="another axis",
            )
        self._fresh_axis(x, new, old.place)
        sizes = {new if axis == old.name else axis: size for axis, size in self.sizes[x.index].items()}
        return self.add(
            "rename",
            Type(x.type.kind, ordered({*x.type.axes, new} - {old.name}), x.type.dtype),
            (x,),
            place,
            sizes,
            old=old.name,
            new=new,
        )

    def reduce(self, x: Value, how: str | KnobRef, axis: Named, place: Place) -> Value:
        self._numeric("a reduction", x, place)
        self._has_axis("a reduction", x, axis)
        axes = tuple(a for a in x.type.axes if a != axis.name)
        return self.add("reduce", Type(FLOAT, axes), (x,), place, how=how, axis=axis.name)

    def dot(self, a: Value, b: Value, axis: Named, place: Place) -> Value:
        for value in (a, b):
            self._numeric("dot", value, place)
            self._has_axis("dot", value, axis)
        if axis.name == "page":
            raise axis.place.error(
                "dot-page",
                "dot does not run over page",
                hint="write (a * b).sum(page)",
                found="page",
                expected="another axis",
            )
        axes = ordered({*a.type.axes, *b.type.axes} - {axis.name})
        return self.add("dot", Type(FLOAT, axes), (a, b), place, axis=axis.name)

    def softmax(self, x: Value, axis: Named, place: Place) -> Value:
        self._numeric("softmax", x, place)
        if axis.name != "page":
            raise axis.place.error(
                "softmax-axis", "softmax runs over page", found=axis.name, expected="page", hint="softmax(x, page)"
            )
        self._has_axis("softmax", x, axis)
        return self.add("softmax", Type(FLOAT, x.type.axes), (x,), place)

    def share(self, x: Value, how: str | KnobRef, place: Place) -> Value:
        if x.type.kind != FLOAT or x.type.axes != ("page",):
            raise place.error(
                "share-axes",
                "share takes a score with the axis page alone",
                found=str(x),
                hint="reduce the other axes first, for example with .max(head)",
                expected="float[page]",
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
            raise place.error(
                "count-not-int", f"{what} must be an int scalar", found=str(value), hint=hint, expected="int"
            )
        return value

    def number(self, value: Value, what: str, place: Place, axes: tuple[str, ...] = ()) -> Value:
        self._numeric(what, value, place)
        if not set(value.type.axes) <= set(axes):
            raise place.error(
                "not-scalar",
                f"{what} must be a scalar",
                found=str(value),
                hint="reduce it first, for example with .mean(page)",
                expected=" or ".join(["float", *(f"float[{axis}]" for axis in axes)]),
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
                expected="set",
            )
        return value

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
                found=op,
                expected="|, &, - or ~",
                hint="write a | b, a & b, a - b or ~a",
            )
        return self.add(names[op], Type(SET, ordered({*a.type.axes, *b.type.axes})), (a, b), place)
