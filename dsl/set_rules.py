"""Type rules of selectors and of what they choose by."""

from __future__ import annotations

from vortexlab.dsl.axis_rules import AxisRules
from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import BOOL, DYNAMIC_CTX, FLOAT, INT, QUERY_STAGE, SET, KnobRef, Type, ordered
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.places import Place


def set_hint(type_: Type) -> str:
    """How to make a set of something that is none."""
    if "page" in type_.axes:
        return "choose pages by a score: topk(score, n), or above(score, 0.0, max=n) for a comparison"
    return "make one with topk(score, n), first(n), last(n), ..."


class SetRules(AxisRules):
    """Sets have one list per KV head, or one per query head. All rules raise `Finding`."""

    def selecting(self, name: str, place: Place) -> None:
        """Sets belong to the steps of a request."""
        if self.stage != QUERY_STAGE:
            where, makes = ("summarize", "a float made of k or v") if self.stage == "page" else (
                "pool", "one query for the block: float[head, channel]")
            raise place.error(
                f"selector-in-{'summary' if where == 'summarize' else 'pool'}",
                f"{name} selects pages, which {where} cannot",
                found=f"{name}()",
                hint="move it to select",
                expected=makes,
            )

    def count(self, value: Value, what: str, place: Place, text: str) -> Value:
        """A number of pages; `text` is how the program writes it."""
        if value.type.kind != INT or value.type.axes:
            if value.type.kind not in (INT, FLOAT):
                hint = "write the number of pages, or compute it"
            elif value.type.axes:
                hint = f"reduce it to a scalar: floor(x.sum({', '.join(value.type.axes)}))"
            else:
                hint = f"write floor({text})"
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
                hint=f"reduce it first, for example with .mean({value.type.axes[0]})",
                expected=" or ".join(["float", *(f"float[{axis}]" for axis in axes)]),
            )
        return self.unary("float", value, place)

    def score(self, op: str, x: Value, place: Place) -> Value:
        if x.type.kind == SET:
            raise place.error(
                "set-and-number",
                f"{op} chooses by a score",
                found=str(x),
                expected="float[page] or float[page, head]",
                hint=f"give it a score, and the set that it chooses from as among=: {OPS[op].signature}",
            )
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
                hint=set_hint(value.type),
                expected="set",
            )
        return value

    def member(self, pages: Value, place: Place) -> Value:
        return self.add("member", Type(BOOL, ordered({"page", *pages.type.axes})), (pages,), place, self.lengths)

    def reuse_steps(self, pages: Value, every: int | KnobRef, place: Place) -> Value:
        return self.add("reuse", pages.type, (pages,), place, every=every, over="steps")

    def reuse_layers(self, pages: Value, condition: Value, place: Place) -> Value:
        return self.add("reuse", pages.type, (pages, condition), place, over="layers")

    def is_compile_time(self, value: Value) -> bool:
        """Whether a value is a scalar of constants, knobs and facts about the layer."""
        stack, seen = [value.index], set()
        while stack:
            index = stack.pop()
            node = self.nodes[index]
            static = node.op in ("const", "knob") or (node.op == "ctx" and node.attrs["name"] not in DYNAMIC_CTX)
            if node.type.axes or node.type.kind == SET or not (static or node.inputs):
                return False
            seen.add(index)
            stack.extend(i for i in node.inputs if i not in seen)
        return True
