"""Type rules of what makes, cuts, orders and removes axes."""

from __future__ import annotations

from collections.abc import Mapping

from vortexlab.dsl.elementwise import Elementwise
from vortexlab.dsl.graph import RESERVED_AXES, Value
from vortexlab.dsl.ir import FLOAT, INT, PAGE_STAGE, POOL_STAGE, QUERY_STAGE, KnobRef, Type, ordered
from vortexlab.dsl.places import Named, Place
from vortexlab.dsl.sizes import Size

#: Axes that a value of each stage may have without a program's doing.
STAGE_AXES = {
    PAGE_STAGE: ("token", "channel"),
    POOL_STAGE: ("head", "query", "channel"),
    QUERY_STAGE: ("page", "head", "token", "channel"),
}
Fill = float | int | KnobRef
Bound = int | str | KnobRef | None


class AxisRules(Elementwise):
    """An op over `page` works on the candidate pages, whichever step it is. All rules raise `Finding`."""

    # ---- shape

    def split(self, x: Value, axis: Named, name: str, size: int | KnobRef, place: Place) -> Value:
        self._numeric("split", x, place)
        self._has_axis("split", x, axis)
        if axis.name in ("page", "head", "query"):
            raise axis.place.error(
                "split-axis",
                f"{axis.name} cannot be split",
                expected="token, channel or an axis that the program makes",
                found=axis.name,
                hint=f"leave it whole, or reduce it with .max({axis.name})",
            )
        self._fresh_axis(x, name, axis.place)
        before = self.sizes[x.index]
        sizes = {**before, axis.name: before[axis.name].split(size), name: Size.of(size)}
        axes = ordered({*x.type.axes, name})
        return self._shaped("split", x, axes, sizes, place, axis=axis.name, name=name, size=size)

    def rename(self, x: Value, old: Named, new: str, place: Place) -> Value:
        self._numeric("rename", x, place)
        self._has_axis("rename", x, old)
        if old.name == "page":
            raise old.place.error(
                "rename-page",
                "page cannot be renamed",
                hint="leave it out: scores keep their page axis",
                found="page",
                expected="another axis",
            )
        self._fresh_axis(x, new, old.place)
        sizes = {new if axis == old.name else axis: size for axis, size in self.sizes[x.index].items()}
        axes = ordered({*x.type.axes, new} - {old.name})
        return self._shaped("rename", x, axes, sizes, place, old=old.name, new=new)

    def merge(self, x: Value, first: Named, second: Named, into: Named, place: Place) -> Value:
        self._numeric("merge", x, place)
        for axis in (first, second):
            self._has_axis("merge", x, axis)
            self._not_page("merge", axis)
        if first.name == second.name:
            raise second.place.error(
                "axis-taken",
                f"merge makes one axis of two, and {first.name} is given twice",
                found=f"merge({first.name}, {second.name})",
                expected="two different axes",
                hint="name the slower axis first: x.merge(part, token, into=tokens)",
            )
        if into.name not in (first.name, second.name):
            self._fresh_axis(x, into.name, into.place)
        before = self.sizes[x.index]
        sizes = {**before, into.name: before[first.name] * before[second.name]}
        axes = ordered(({*x.type.axes} - {first.name, second.name}) | {into.name})
        return self._shaped("merge", x, axes, sizes, place, first=first.name, second=second.name, name=into.name)

    def slice(self, x: Value, axis: Named, start: Bound, stop: Bound, length: Size, place: Place) -> Value:
        """`length` is what lies between the bounds."""
        self._numeric("slice", x, place)
        self._has_axis("slice", x, axis)
        self._not_page("slice", axis)
        sizes = {**self.sizes[x.index], axis.name: length}
        return self._shaped("slice", x, x.type.axes, sizes, place, axis=axis.name, start=start, stop=stop)

    def concat(self, a: Value, b: Value, axis: Named, place: Place) -> Value:
        for value in (a, b):
            self._numeric("concat", value, place)
            self._has_axis("concat", value, axis)
        self._not_page("concat", axis)
        if a.type.kind != b.type.kind:
            a, b = self.unary("float", a, place), self.unary("float", b, place)
        sizes = dict(self._merged((a, b), place, but=axis.name))
        sizes[axis.name] = self.sizes[a.index][axis.name] + self.sizes[b.index][axis.name]
        dtype = a.type.dtype if a.type.dtype == b.type.dtype else "fp32"
        type_ = Type(a.type.kind, ordered({*a.type.axes, *b.type.axes}), dtype)
        return self.add("concat", type_, (a, b), place, sizes, axis=axis.name)

    def window(self, x: Value, axis: Named, name: str, size: int | KnobRef, fill: Fill, place: Place) -> Value:
        x, fill = self._filled("window", x, fill, place)
        self._has_axis("window", x, axis)
        self._fresh_axis(x, name, axis.place)
        sizes = {**self.sizes[x.index], name: Size.of(size)}
        type_ = Type(x.type.kind, ordered({*x.type.axes, name}))
        return self.add("window", type_, (x,), place, sizes, axis=axis.name, name=name, size=size, fill=fill)

    def shift(self, x: Value, axis: Named, by: int | KnobRef, fill: Fill, place: Place) -> Value:
        x, fill = self._filled("shift", x, fill, place)
        self._has_axis("shift", x, axis)
        return self.add("shift", Type(x.type.kind, x.type.axes), (x,), place, axis=axis.name, by=by, fill=fill)

    def gather(self, x: Value, axis: Named, i: Value, fill: Fill, place: Place) -> Value:
        x, fill = self._filled("take", x, fill, place)
        self._has_axis("take", x, axis)
        self._not_set("take", i, place)
        if i.type.kind != INT:
            raise place.error(
                "index-not-int",
                "take reads at int positions",
                found=str(i),
                expected="int, for example x.argmax(axis), x.index(axis), an int parameter or floor of a scalar",
                hint="positions are counted, not computed in floats: use //, %, +, - and where on ints",
            )
        kept = {name: size for name, size in self.sizes[x.index].items() if name != axis.name}
        sizes = {**self.sizes[i.index], **kept}
        for name in kept:
            if self.sizes[i.index].get(name, kept[name]) != kept[name]:
                self._sizes_differ(name, kept[name], self.sizes[i.index][name], place)
        axes = ordered(({*x.type.axes} - {axis.name}) | {*i.type.axes})
        return self.add("gather", Type(x.type.kind, axes), (x, i), place, sizes, axis=axis.name, fill=fill)

    def _filled(self, op: str, x: Value, fill: Fill, place: Place) -> tuple[Value, Fill]:
        """`x` and what stands beyond its ends in one kind."""
        self._numeric(op, x, place)
        if isinstance(fill, KnobRef):
            return self.unary("float", x, place), fill
        if x.type.kind == INT and isinstance(fill, float) and fill.is_integer():
            return x, int(fill)
        if isinstance(fill, int) and x.type.kind == INT:
            return x, fill
        return self.unary("float", x, place), float(fill)

    # ---- along an axis

    def scan(self, x: Value, how: str, axis: Named, place: Place) -> Value:
        self._numeric(f"cum{how}", x, place)
        self._has_axis(f"cum{how}", x, axis)
        return self.add("scan", Type(FLOAT, x.type.axes), (x,), place, how=how, axis=axis.name)

    def sort(self, x: Value, axis: Named, how: str | KnobRef, place: Place) -> Value:
        self._numeric("sort", x, place)
        self._has_axis("sort", x, axis)
        return self.add("sort", x.type, (x,), place, axis=axis.name, how=how)

    def argmax(self, x: Value, axis: Named, place: Place) -> Value:
        self._numeric("argmax", x, place)
        self._has_axis("argmax", x, axis)
        axes = tuple(name for name in x.type.axes if name != axis.name)
        return self.add("argmax", Type(INT, axes), (x,), place, axis=axis.name)

    def index(self, axis: Named, x: Value | None, place: Place) -> Value:
        """Positions along an axis of `x`, or along one that values of this stage have."""
        if x is not None:
            self._not_set("index", x, place)
            self._has_axis("index", x, axis)
            return self.add("index", Type(INT, (axis.name,)), (x,), place, axis=axis.name)
        allowed = STAGE_AXES[self.stage]
        if axis.name not in allowed:
            own = axis.name not in RESERVED_AXES
            where = {PAGE_STAGE: "summarize", POOL_STAGE: "pool"}.get(self.stage, "score")
            raise axis.place.error(
                "index-axis",
                f"index({axis.name}) has no length here",
                found=axis.name,
                expected=f"one of {', '.join(allowed)}",
                hint=f"write x.index({axis.name}) with a value x that has the axis"
                if own
                else f"values in {where} have no axis {axis.name}"
                + ("; the number of a page is read in score" if axis.name == "page" else ""),
            )
        sizes = {} if axis.name == "page" else {axis.name: self.lengths[axis.name]}
        return self.add("index", Type(INT, (axis.name,)), (), place, sizes, axis=axis.name)

    # ---- reductions, contractions

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

    # ---- helpers

    def _shaped(
        self,
        op: str,
        x: Value,
        axes: tuple[str, ...],
        sizes: Mapping[str, Size],
        place: Place,
        **attrs: int | str | KnobRef | None,
    ) -> Value:
        """An op that moves values about and leaves them as they are."""
        return self.add(op, Type(x.type.kind, axes, x.type.dtype), (x,), place, sizes, **attrs)

    def _not_page(self, op: str, axis: Named) -> None:
        if axis.name == "page":
            raise axis.place.error(
                "page-axis",
                f"{op} does not work on page, whose length changes with every step",
                found="page",
                expected="another axis",
                hint="use take, shift, window or where(index(page) < n, x, 0.0) over pages",
            )
