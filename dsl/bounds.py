"""How many pages a program may select, known before anything runs.

Buffers under a CUDA graph are static, so every selector needs a bound that holds for all lengths up to a maximum.
Scalars are followed as intervals: exact ones by the arithmetic of `scalars`, those that tensors decide by what their
last operations leave open (a sigmoid is within 0..1, a clamp within its ends). The range of lengths is cut into pieces
that are bounded one by one, which keeps expressions like ``ctx.pages - ctx.pages // 2`` tight.

What is remembered was written at an earlier length, in this layer or in one below: a set by the bound of what writes
it over all lengths up to this one. Memories that read themselves or each other are bounded by the pages there are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import BOOL, FP8, INT, SET, Node, Program, Static
from vortexlab.dsl.parameters import parameter
from vortexlab.dsl.reference_ops import TENSOR_INT_LIMIT
from vortexlab.dsl.scalars import INT_LIMIT, is_exact, pages_of, scalar_function, scalar_value

#: How much longer than its shortest length a piece of the range may be.
_PIECE = 1.02


@dataclass(frozen=True)
class Interval:
    """Every value that a number may have: within `low`..`high`, or NaN if `nan`."""

    low: float
    high: float
    nan: bool = False

    def hull(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high), self.nan or other.nan)

    @property
    def is_point(self) -> bool:
        return self.low == self.high and not self.nan


_ANYTHING = Interval(-math.inf, math.inf, True)
_TRUTH = Interval(0, 1)


@dataclass(frozen=True)
class _Size:
    """How many of the pages 0..own a set holds at least and at most, and whether the own page is surely among them."""

    least: int
    most: int
    own: bool = False


def page_bound(program: Program, static: Static, max_length: int) -> int:
    """The most pages that any list of a bound program holds, the own page included, for lengths 1..`max_length`.

    A list is the selected set with every set that the program's attention reads.
    """
    sets = read_sets(program)
    most = 0
    history: _History = {}
    for piece in _pieces(program, max_length):
        here = _Piece(program, static, *piece, history)
        size = here.size(sets[0])
        for index in sets[1:]:
            size = here.algebra("union", size, here.size(index))
        most = max(most, min(size.most + (not size.own), pages_of(piece[1], program.page_size)))
        here.pass_on()
    return most


def read_sets(program: Program) -> list[int]:
    """The nodes of the sets whose tokens are read: the selected one first, then those of `attend`, each once."""
    found = [program.output]
    for index in program.live():
        node = program.nodes[index]
        if node.op == "attention" and "pages" in str(node.attrs["parts"]).split() and node.inputs[0] not in found:
            found.append(node.inputs[0])
    return found


def selector_bound(program: Program, index: int, static: Static, max_length: int) -> int:
    """The most pages that the set of node `index` holds for lengths 1..`max_length`.

    Raises `VortexError` when the node makes no set.
    """
    if program.nodes[index].type.kind != SET:
        raise VortexError(f"program {program.name}: node {index} ({program.nodes[index].op}) makes no set of pages")
    most = 0
    history: _History = {}
    for piece in _pieces(program, max_length):
        here = _Piece(program, static, *piece, history)
        most = max(most, here.size(index).most)
        here.pass_on()
    return most


def scalar_bound(program: Program, index: int, static: Static, max_length: int) -> Interval:
    """Every value that a node without ``page`` sets may take for lengths 1..`max_length`."""
    found: Interval | None = None
    for piece in _pieces(program, max_length):
        interval = _Piece(program, static, *piece, {}).number(index)
        found = interval if found is None else found.hull(interval)
    assert found is not None
    return found


def _pieces(program: Program, max_length: int) -> Iterator[tuple[int, int]]:
    """Cuts 1..max_length into pieces of lengths; short pages' worth of lengths stay together."""
    if max_length < 1:
        raise VortexError(f"the maximal length must be at least 1 token, found {max_length}")
    low, page = 1, program.page_size
    while low <= max_length:
        high = max(pages_of(low, page) * page, math.floor(low * _PIECE))
        yield low, min(high, max_length)
        low = high + 1


#: The most pages that each set which something keeps has had at smaller lengths, by layer and node.
_History = dict[tuple[int, int], int]


class _Piece:
    """A program's numbers and sets over the lengths `low`..`high`; `history` is that of the lengths before."""

    def __init__(self, program: Program, static: Static, low: int, high: int, history: _History):
        self.program, self.static, self.low, self.high = program, static, low, high
        self.history = history
        self.numbers: dict[int, Interval] = {}
        self.sizes: dict[int, _Size] = {}
        self._open: set[int] = set()
        self._below: dict[int, _Piece] = {}
        self.least_pages, self.most_pages = (pages_of(n, program.page_size) for n in (low, high))

    # --- numbers

    def number(self, index: int) -> Interval:
        if index not in self.numbers:
            node = self.program.nodes[index]
            interval = self._interval(index, node)
            if not is_exact(self.program, index):
                interval = _widened(interval, node)
            self.numbers[index] = interval
        return self.numbers[index]

    def _interval(self, index: int, node: Node) -> Interval:
        op = node.op
        if op in ("q", "k", "v", "field", "memory", "attention"):
            return _ANYTHING
        if op == "member":
            return _TRUTH
        if op == "param":
            return self._learned(node)
        if op in ("index", "argmax"):
            return Interval(0, self._places(index, node) - 1)
        if op == "const":
            value = float(node.attrs["value"])  # type: ignore[arg-type]
            return Interval(value, value)
        if op == "ctx":
            name = str(node.attrs["name"])
            if name == "length":
                return Interval(self.low, self.high)
            if name == "pages":
                return Interval(self.least_pages, self.most_pages)
            if name == "position":
                return Interval(self.low - 1, self.high - 1)
            value = float(self.static.value(name, self.program.page_size))
            return Interval(value, value)
        inputs = [self.number(i) for i in node.inputs]
        if op in ("reduce", "share", "dot", "softmax"):
            return self._reduced(node, inputs)
        if op in ("split", "rename", "float", "merge", "slice", "sort"):
            return inputs[0]
        if op == "concat":
            return inputs[0].hull(inputs[1])
        if op in ("gather", "shift", "window"):
            fill = float(node.attrs["fill"])  # type: ignore[arg-type]
            return inputs[0].hull(Interval(fill, fill))
        if op == "scan":
            return self._running(node, inputs[0])
        if op == "cast":
            return _cast(inputs[0], str(node.attrs["dtype"]))
        if op in _MONOTONE:
            return _monotone(op, inputs[0], node)
        return _BINARY[op](*inputs) if op in _BINARY else _corners(op, inputs, node)

    def _learned(self, node: Node) -> Interval:
        """Within what the file holds for this layer, where there is one."""
        if self.program.parameters is None:
            return _ANYTHING if node.type.kind != INT else Interval(-TENSOR_INT_LIMIT, TENSOR_INT_LIMIT)
        name = str(node.attrs["name"])
        heads = range(self.static.kv_heads if self.program.params[name].per_kv_head else 1)
        rows = [parameter(self.program, name, self.static, kv) for kv in heads]
        return Interval(min(float(row.min()) for row in rows), max(float(row.max()) for row in rows))

    def _places(self, index: int, node: Node) -> int:
        """How many places the axis of an index has at most; 1 where there is none."""
        axis = node.attrs["axis"]
        if axis == "page":
            return max(1, self.most_pages - 1)
        if node.op == "index" and not node.inputs:
            return self.axes[index][str(axis)]
        return self.axes[node.inputs[0]][str(axis)]

    @functools.cached_property
    def axes(self) -> list[dict[str, int]]:
        return self.program.axis_sizes(self.static)

    def _running(self, node: Node, x: Interval) -> Interval:
        if node.attrs["how"] != "sum":
            return x
        axis = str(node.attrs["axis"])
        count = self.most_pages - 1 if axis == "page" else self.axes[node.inputs[0]][axis]
        return Interval(min(x.low, _scaled(x.low, count)), max(x.high, _scaled(x.high, count)), x.nan)

    def _reduced(self, node: Node, inputs: list[Interval]) -> Interval:
        x, how = inputs[0], node.attrs.get("how")
        if node.op == "softmax":
            return Interval(0, 1, True)
        if node.op == "dot" or how in ("sum", "norm"):
            if node.op == "share" or (node.op == "reduce" and how == "sum" and node.attrs["axis"] == "page"):
                count = self.most_pages - 1 if node.op == "reduce" else self.static.kv_heads
                ends = (0.0, _scaled(x.low, count), _scaled(x.high, count))
                return Interval(min(ends), max(ends), x.nan)
            if how == "norm":
                return Interval(0, math.inf, True)
            low = 0.0 if all(i.low >= 0 for i in inputs) else -math.inf
            return Interval(low, math.inf, True)
        if node.op == "reduce" and node.attrs["axis"] == "page":
            # Without a candidate the mean is 0, the maximum -inf, the minimum +inf.
            empty = {"mean": 0.0, "max": -math.inf, "min": math.inf}[str(how)]
            return x.hull(Interval(empty, empty)) if self.least_pages == 1 else x
        return x

    # --- sets

    def size(self, index: int) -> _Size:
        if index not in self.sizes:
            if index in self._open:
                return _Size(0, self.most_pages)  # a memory that is made of itself
            self._open.add(index)
            self.sizes[index] = self._size(self.program.nodes[index])
            self._open.discard(index)
        return self.sizes[index]

    def pass_on(self) -> None:
        """Hands what is kept at these lengths to the larger ones."""
        for index in self._kept():
            key = (self.static.layer, index)
            self.history[key] = max(self.history.get(key, 0), self.size(index).most)
        for piece in self._below.values():
            piece.pass_on()

    def _kept(self) -> list[int]:
        """The nodes whose sets are read at later steps or in higher layers."""
        nodes = self.program.nodes
        kept = [nodes[i].inputs[0] for i in self.program.live() if nodes[i].op == "reuse"]
        return [*kept, *(i for i in self.program.live_memories().values() if nodes[i].type.kind == SET)]

    def _remembered(self, node: Node) -> _Size:
        """What an earlier step left, or a lower layer."""
        if node.op == "memory":
            memory = self.program.memories[str(node.attrs["name"])]
            writer = self.program.writes[memory.name]
            layer = self.static.layer - 1 if memory.scope == "layer" else self.static.layer
        else:
            writer, layer = node.inputs[0], self.static.layer
            while node.attrs["over"] == "layers" and layer >= 0 and not self._computed_in(node, layer):
                layer -= 1
        if layer < 0:
            return _Size(0, 0 if node.op == "memory" else self.most_pages)
        piece = self if layer == self.static.layer else self._in_layer(layer)
        most = max(piece.history.get((layer, writer), 0), piece.size(writer).most)
        return _Size(0, min(most, self.most_pages))

    def _computed_in(self, node: Node, layer: int) -> bool:
        return bool(scalar_value(self.program, node.inputs[1], replace(self.static, layer=layer), None))

    def _in_layer(self, layer: int) -> _Piece:
        if layer not in self._below:
            static = replace(self.static, layer=layer)
            self._below[layer] = _Piece(self.program, static, self.low, self.high, self.history)
        return self._below[layer]

    def _count(self, index: int) -> tuple[int, int]:
        """A count between 0 and the pages there are."""
        x = self.number(index)
        low, high = (min(max(0.0, end), float(self.most_pages)) for end in (x.low, x.high))
        return int(low), int(high)

    def _size(self, node: Node) -> _Size:
        pages, least = self.most_pages, self.least_pages
        if node.op == "everything":
            return _Size(least, pages, True)
        if node.op in ("first", "last"):
            low, high = self._count(node.inputs[0])
            return _Size(min(low, least), min(high, pages), node.op == "last" and low >= 1)
        if node.op == "stride":
            low, high = (max(1, n) for n in self._count(node.inputs[0]))
            return _Size(least // high, -(-pages // low), high == 1)
        if node.op == "where":
            condition = self.number(node.inputs[0])
            a, b = (self.size(i) for i in node.inputs[1:])
            if condition.is_point:
                return a if condition.low else b
            return _Size(min(a.least, b.least), max(a.most, b.most), a.own and b.own)
        if node.op in ("union", "intersect", "difference", "complement"):
            sets = [self.size(i) for i in node.inputs]
            return self.algebra(node.op, sets[0], sets[-1])
        if node.op in ("memory", "reuse"):
            return self._remembered(node)
        count = {"random": 0, "topk": 1, "topp": 3, "above": 2}[node.op]
        _, most = self._count(node.inputs[count])
        among = [self.size(i).most for i in node.inputs[count + 1 :]]
        return _Size(0, min([most, pages - 1, *among]))

    def algebra(self, op: str, a: _Size, b: _Size) -> _Size:
        pages, least = self.most_pages, self.least_pages
        if op == "union":
            return _Size(max(a.least, b.least), min(pages, a.most + b.most), a.own or b.own)
        if op == "intersect":
            return _Size(max(0, a.least + b.least - pages), min(a.most, b.most), a.own and b.own)
        if op == "difference":
            return _Size(max(0, a.least - b.most), a.most)
        return _Size(max(0, least - a.most), pages - a.least)


def _widened(x: Interval, node: Node) -> Interval:
    """Leaves room for fp32 rounding in numbers that tensors decide, and for what the reference saturates."""
    if node.type.kind == BOOL:
        return x
    if node.type.kind == INT and node.op in ("floor", "ceil"):
        return Interval(max(x.low, -TENSOR_INT_LIMIT), min(x.high, TENSOR_INT_LIMIT), x.nan)
    if node.type.kind == INT:
        return x
    return Interval(x.low - abs(x.low) * 1e-5 if math.isfinite(x.low) else x.low,
                    x.high + abs(x.high) * 1e-5 if math.isfinite(x.high) else x.high, x.nan)  # fmt: skip


def _cast(x: Interval, dtype: str) -> Interval:
    """Rounding to fewer bits moves a number by less than one part in 128, or past the largest finite one."""
    if dtype in FP8:
        # Rounding to three bits moves a number by less than one part in 8; the ends are where it saturates.
        most = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}[dtype]
        low, high = x.low - abs(x.low) / 8 - 0.01, x.high + abs(x.high) / 8 + 0.01
        return Interval(max(-most, min(most, low)), max(-most, min(most, high)), x.nan)
    largest = 65000.0 if dtype == "fp16" else 3e38
    low = -math.inf if x.low < -largest else x.low - abs(x.low) / 128 - 1e-7
    high = math.inf if x.high > largest else x.high + abs(x.high) / 128 + 1e-7
    return Interval(low, high, x.nan)


def _scaled(end: float, count: int) -> float:
    return 0.0 if count == 0 else end * count


_MONOTONE = ("neg", "exp", "log", "sqrt", "relu", "sigmoid", "tanh", "floor", "ceil", "not")


def _monotone(op: str, x: Interval, node: Node) -> Interval:
    """A function that only rises or only falls: its values at the ends."""
    function = scalar_function(op)
    if op in ("floor", "ceil"):
        low, high = float(function(x.low)), float(function(x.high))
        # NaN counts as 0.
        return Interval(min(low, 0), max(high, 0)) if x.nan else Interval(low, high)
    if op in ("log", "sqrt"):
        low = function(max(x.low, 0.0))
        high = function(max(x.high, 0.0))
        return _outward(float(low), float(high), x.nan or x.low < 0)
    ends = [float(function(x.low)), float(function(x.high))]
    nan = x.nan and op != "not"
    if op in ("neg", "relu", "not"):
        return Interval(min(ends), max(ends), nan)
    return _outward(min(ends), max(ends), nan)


def _outward(low: float, high: float, nan: bool) -> Interval:
    """Transcendental functions of the C library may be off by a unit in the last place."""
    return Interval(math.nextafter(low, -math.inf), math.nextafter(high, math.inf), nan)


def _corners(op: str, inputs: list[Interval], node: Node) -> Interval:
    """Arithmetic whose extremes are at the ends of its operands."""
    a, b = inputs
    function = scalar_function(op)
    nan = a.nan or b.nan
    if op == "div" and b.low <= 0 <= b.high:
        return Interval(-math.inf, math.inf, True)
    found = []
    for x in (a.low, a.high):
        for y in (b.low, b.high):
            value = _product(x, y) if op == "mul" else float(function(x, y))
            if math.isnan(value):
                nan = True
                found += [-math.inf, math.inf]
            else:
                found.append(value)
    if op == "mul" and _unbounded(a, b):
        nan = True
    low, high = min(found), max(found)
    if node.type.kind == INT:
        low, high = max(low, -INT_LIMIT), min(high, INT_LIMIT)
    return Interval(low, high, nan)


def _product(x: float, y: float) -> float:
    """0 times an unbounded end is 0: the end is a limit that finite numbers stay under."""
    return 0.0 if x == 0 or y == 0 else x * y


def _unbounded(a: Interval, b: Interval) -> bool:
    """Whether 0 may meet an infinity."""
    return any(x.low <= 0 <= x.high and (math.isinf(y.low) or math.isinf(y.high)) for x, y in ((a, b), (b, a)))


def _floordiv(a: Interval, b: Interval) -> Interval:
    parts = []
    for low, high in ((b.low, min(b.high, -1)), (max(b.low, 1), b.high)):
        if low <= high:
            parts += [_floored(x, y) for x in (a.low, a.high) for y in (low, high)]
    if b.low <= 0 <= b.high:
        parts.append(0.0)
    return Interval(min(parts), max(parts))


def _floored(x: float, y: float) -> float:
    if math.isinf(x) or math.isinf(y):
        return math.copysign(math.inf, x) * math.copysign(1, y) if math.isinf(x) else (0.0 if x * y >= 0 else -1.0)
    return float(int(x) // int(y))


def _mod(a: Interval, b: Interval) -> Interval:
    if a.is_point and b.is_point and math.isfinite(a.low) and math.isfinite(b.low):
        value = float(int(a.low) % int(b.low)) if b.low else 0.0
        return Interval(value, value)
    high = max(0.0, b.high - 1)
    if a.low >= 0 and b.low > a.high:
        return a
    return Interval(min(0.0, b.low + 1), min(high, a.high) if a.low >= 0 and b.low >= 0 else high)


def _absolute(x: Interval) -> Interval:
    ends = (abs(x.low), abs(x.high))
    return Interval(0.0 if x.low <= 0 <= x.high else min(ends), max(ends), x.nan)


def _silu(x: Interval) -> Interval:
    function = scalar_function("silu")
    # The minimum, about -0.2785, lies near -1.28; silu rises above it and falls below.
    ends = [0.0 if math.isinf(end) and end < 0 else float(function(end)) for end in (x.low, x.high)]
    if x.low <= -1.27 and x.high >= -1.29:
        ends.append(-0.27847)
    return _outward(min(ends), max(ends), x.nan or x.low == -math.inf)


def _where(c: Interval, a: Interval, b: Interval) -> Interval:
    if c.is_point:
        return a if c.low else b
    return a.hull(b)


_Relation = Callable[[Interval, Interval], bool]


def _compare(holds: _Relation, fails: _Relation) -> Callable[[Interval, Interval], Interval]:
    def compare(a: Interval, b: Interval) -> Interval:
        if not (a.nan or b.nan):
            if holds(a, b):
                return Interval(1, 1)
            if fails(a, b):
                return Interval(0, 0)
        return _TRUTH

    return compare


def _same(a: Interval, b: Interval) -> bool:
    return a.is_point and b.is_point and a.low == b.low


def _apart(a: Interval, b: Interval) -> bool:
    return a.high < b.low or b.high < a.low


_BINARY: dict[str, Callable[..., Interval]] = {
    "abs": _absolute,
    "silu": _silu,
    "where": _where,
    "floordiv": _floordiv,
    "mod": _mod,
    "maximum": lambda a, b: Interval(max(a.low, b.low), max(a.high, b.high), a.nan or b.nan),
    "minimum": lambda a, b: Interval(min(a.low, b.low), min(a.high, b.high), a.nan or b.nan),
    "lt": _compare(lambda a, b: a.high < b.low, lambda a, b: a.low >= b.high),
    "le": _compare(lambda a, b: a.high <= b.low, lambda a, b: a.low > b.high),
    "eq": _compare(_same, _apart),
    "ne": _compare(_apart, _same),
    "and": lambda a, b: Interval(min(a.low, b.low), min(a.high, b.high)),
    "or": lambda a, b: Interval(max(a.low, b.low), max(a.high, b.high)),
}
