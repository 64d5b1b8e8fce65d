"""Rewrites that turn elementwise products followed by a sum into contractions, which have fast kernels everywhere.

A sum over a channel of products of a query with summaries would, taken literally, make a value per (page, head,
channel). The rewrites here are identities of real arithmetic on finite values, for any program:

* sum_c x*y = dot(x, y), and a sum of sums is the sum of the sums.
* An expression E that is *homogeneous* in q, built from products q*a with +, -, maximum, minimum, abs and relu, equals
  q⁺*U - q⁻*W with q⁺ = relu(q), q⁻ = relu(-q): q*a has U = W = a, maximum(E, F) has maximum(U, U'), minimum(W, W'), and
  so on; hence sum_c E = dot(q⁺, U) - dot(q⁻, W). A channel contributes to one of the two products only, so that nothing
  cancels that did not cancel before.
* The minimum over an axis is never above the maximum over it, stored in whatever precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vortexlab.dsl.ir import FLOAT, INT, QUERY_STAGE, Node, Program, Static, Type, ordered

#: Ops whose result is no larger than their largest input.
_NO_GROWTH = {
    "neg",
    "abs",
    "relu",
    "maximum",
    "minimum",
    "split",
    "rename",
    "merge",
    "slice",
    "where",
    "float",
    "sigmoid",
    "tanh",
    "silu",
}
_GROWTH = {"add", "sub", "mul", "dot"}


@dataclass(frozen=True)
class _Split:
    """E = relu(q) * upper - relu(-q) * lower; indices of new nodes."""

    q: int
    upper: int
    lower: int


def contract(program: Program, static: Static, own_scales: bool = False) -> Program:
    """The same program, its sums of products written as contractions; dead nodes are dropped.

    `own_scales` tells that every summary is stored with a scale of its own, so that storage does not keep the order of
    two summaries. A `reuse` node receives the number that it had (`key`), which is the same in all layers. The result
    computes the same values up to the order of fp32 sums, and exactly the same ones where every product and sum is
    exact.
    """
    return _Rewriter(program, static, own_scales).run()


class _Rewriter:
    def __init__(self, program: Program, static: Static, own_scales: bool):
        self.program, self.own_scales = program, own_scales
        self.sizes = program.axis_sizes(static)
        self.nodes: list[Node] = []
        self.seen: dict[object, int] = {}
        self.new: dict[int, int] = {}

    def run(self) -> Program:
        for index in self.program.live():
            node = self.program.nodes[index]
            if node.op == "reuse":
                node = replace(node, attrs={**node.attrs, "key": index})
            found = self._contraction(index, node) if node.op == "reduce" and node.stage == QUERY_STAGE else None
            self.new[index] = self._copy(node) if found is None else found
        fields = {name: self.new[index] for name, index in self.program.live_fields().items()}
        return _without_dead(_renumbered(self.program, self.nodes, fields, self.new))

    def _copy(self, node: Node) -> int:
        inputs = tuple(self.new[i] for i in node.inputs)
        if node.op in ("maximum", "minimum"):
            return self._extreme(node.op, inputs[0], inputs[1], node)
        return self._add(replace(node, inputs=inputs))

    def _add(self, node: Node) -> int:
        attrs = tuple(sorted((key, type(value).__name__, value) for key, value in node.attrs.items()))
        key = (node.op, node.type, node.inputs, attrs, node.stage)
        if key not in self.seen:
            self.seen[key] = len(self.nodes)
            self.nodes.append(node)
        return self.seen[key]

    def _make(self, op: str, *inputs: int, like: Node) -> int:
        """An elementwise node of the query stage over new nodes."""
        axes = ordered({axis for i in inputs for axis in self.nodes[i].type.axes})
        return self._add(Node(op, Type(FLOAT, axes), inputs, {}, QUERY_STAGE, like.line, like.column))

    def _extreme(self, op: str, a: int, b: int, like: Node) -> int:
        """`maximum` or `minimum`, decided at once where one input can never exceed the other."""
        for low, high in ((a, b), (b, a)):
            if self.nodes[low].type == self.nodes[high].type and self._never_above(low, high):
                return high if op == "maximum" else low
        axes = ordered({axis for i in (a, b) for axis in self.nodes[i].type.axes})
        kind = INT if self.nodes[a].type.kind == self.nodes[b].type.kind == INT else FLOAT
        return self._add(Node(op, Type(kind, axes), (a, b), {}, like.stage, like.line, like.column))

    def _never_above(self, low: int, high: int) -> bool:
        """Whether both are the same, or the minimum and the maximum of one value over one axis."""
        a, b = self._definition(low), self._definition(high)
        if low == high:
            return True
        if self.own_scales and "field" in (self.nodes[low].op, self.nodes[high].op):
            return False
        if a.op != "reduce" or b.op != "reduce" or (a.attrs["how"], b.attrs["how"]) != ("min", "max"):
            return False
        return a.inputs == b.inputs and a.attrs["axis"] == b.attrs["axis"]

    def _definition(self, index: int) -> Node:
        node = self.nodes[index]
        if node.op == "field":
            return self.nodes[self.new[self.program.fields[str(node.attrs["name"])]]]
        return node

    # sums

    def _contraction(self, index: int, node: Node) -> int | None:
        how, axis = node.attrs["how"], str(node.attrs["axis"])
        if how not in ("sum", "mean") or axis == "page":
            return None
        total = self._sum(node.inputs[0], axis)
        if total is None or how == "sum":
            return total
        size = self.sizes[node.inputs[0]][axis]
        count = self._add(Node("const", Type(FLOAT), (), {"value": float(size)}, QUERY_STAGE, node.line, node.column))
        return self._make("div", total, count, like=node)

    def _sum(self, index: int, axis: str) -> int | None:
        """The sum over `axis` of an old node in terms of contractions, or None where there is nothing to gain."""
        node = self.program.nodes[index]
        if axis not in node.type.axes or node.type.kind != FLOAT:
            return None
        if node.op == "mul":
            a, b = node.inputs
            has = [axis in self.program.nodes[i].type.axes for i in (a, b)]
            if all(has):
                if any(self.program.nodes[i].type.kind != FLOAT for i in (a, b)):
                    return None
                return self._dot(self.new[a], self.new[b], axis, node)
            inner, factor = (a, b) if has[0] else (b, a)
            total = self._sum(inner, axis)
            return None if total is None else self._make("mul", total, self.new[factor], like=node)
        if node.op in ("add", "sub"):
            totals = [self._sum(i, axis) for i in node.inputs]
            if totals[0] is not None and totals[1] is not None:
                return self._make(node.op, totals[0], totals[1], like=node)
        if node.op == "neg":
            total = self._sum(node.inputs[0], axis)
            return None if total is None else self._make("neg", total, like=node)
        split = self._split(index, axis)
        if split is None or split.upper == split.lower:
            return None if split is None else self._dot(split.q, split.upper, axis, node)
        positive = self._make("relu", split.q, like=node)
        negative = self._make("relu", self._make("neg", split.q, like=node), like=node)
        up, down = self._dot(positive, split.upper, axis, node), self._dot(negative, split.lower, axis, node)
        return self._make("sub", up, down, like=node)

    def _dot(self, a: int, b: int, axis: str, like: Node) -> int:
        axes = ordered({x for i in (a, b) for x in self.nodes[i].type.axes} - {axis})
        return self._add(Node("dot", Type(FLOAT, axes), (a, b), {"axis": axis}, QUERY_STAGE, like.line, like.column))

    def _split(self, index: int, axis: str) -> _Split | None:
        """An old node as an expression homogeneous in something that has no page axis."""
        node = self.program.nodes[index]
        if axis not in node.type.axes:
            return None
        if node.op == "mul":
            return self._product(node, axis)
        parts = [self._split(i, axis) for i in node.inputs] if node.op in _PAIRS or node.op in _SINGLES else []
        if not parts or parts[0] is None:
            return None
        first = parts[0]

        def pair(op: str, a: int, b: int) -> int:
            return self._extreme(op, a, b, node) if op in ("maximum", "minimum") else self._make(op, a, b, like=node)

        def neg(a: int) -> int:
            return self._make("neg", a, like=node)

        if node.op in _PAIRS:
            second = parts[1]
            if second is None or second.q != first.q:
                return None
            if node.op == "sub":
                second = _Split(second.q, neg(second.upper), neg(second.lower))
            upper, lower = _PAIRS[node.op]
            return _Split(first.q, pair(upper, first.upper, second.upper), pair(lower, first.lower, second.lower))
        if node.op == "neg":
            return _Split(first.q, neg(first.upper), neg(first.lower))
        if node.op == "abs":
            return _Split(
                first.q, self._make("abs", first.upper, like=node), neg(self._make("abs", first.lower, like=node))
            )
        return _Split(
            first.q,
            self._make("relu", first.upper, like=node),
            neg(self._make("relu", neg(first.lower), like=node)),
        )

    def _product(self, node: Node, axis: str) -> _Split | None:
        for q, page in (node.inputs, node.inputs[::-1]):
            axes_q, axes_page = self.program.nodes[q].type.axes, self.program.nodes[page].type.axes
            if "page" in axes_q or axis not in axes_q or "page" not in axes_page or axis not in axes_page:
                continue
            # Splitting turns 0 * inf into NaN where the program had a finite number.
            if self._finite(q, True) and self._finite(page, True):
                return _Split(self.new[q], self.new[page], self.new[page])
        return None

    def _finite(self, index: int, growth: bool) -> bool:
        """Whether an old node is finite whenever keys, values and queries are of ordinary size."""
        node = self.program.nodes[index]
        if node.op in ("q", "k", "v", "ctx", "param"):
            return True
        if node.op == "const":
            return abs(float(node.attrs["value"])) < 1e30  # type: ignore[arg-type]
        if node.op == "field":
            # A sum may exceed what half precision holds.
            return self._finite(
                self.program.fields[str(node.attrs["name"])], self.program.summary_dtype in ("fp32", "bf16")
            )
        if node.op == "reduce":
            if node.attrs["axis"] == "page" or (not growth and node.attrs["how"] in ("sum", "norm")):
                return False
        elif node.op == "cast":
            growth = growth and node.attrs["dtype"] != "fp16"
        elif node.op not in _NO_GROWTH and not (growth and node.op in _GROWTH):
            return False
        return all(self._finite(i, growth) for i in node.inputs if self.program.nodes[i].type.kind == FLOAT)


#: What happens to (upper, lower) under an op of two homogeneous expressions; `sub` is an addition of the negation.
_PAIRS = {
    "maximum": ("maximum", "minimum"),
    "minimum": ("minimum", "maximum"),
    "add": ("add", "add"),
    "sub": ("add", "add"),
}
_SINGLES = ("neg", "abs", "relu")


def _without_dead(program: Program) -> Program:
    """Only the live nodes, in order."""
    live = program.live()
    place = {old: new for new, old in enumerate(live)}
    nodes = [replace(program.nodes[i], inputs=tuple(place[j] for j in program.nodes[i].inputs)) for i in live]
    fields = {name: place[index] for name, index in program.live_fields().items()}
    return _renumbered(program, nodes, fields, place)


def _renumbered(program: Program, nodes: list[Node], fields: dict[str, int], new: dict[int, int]) -> Program:
    """The program over other nodes; `new` is where its nodes are now."""
    return replace(
        program,
        nodes=tuple(nodes),
        fields=fields,
        output=new[program.output],
        result=None if program.result is None else new[program.result],
        pooled=None if program.pooled is None else new[program.pooled],
        writes={name: new[index] for name, index in program.live_memories().items()},
    )
