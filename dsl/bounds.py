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
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.intervals import (
    ANYTHING,
    BINARY,
    MONOTONE,
    TRUTH,
    Interval,
    corners,
    monotone,
    rounded,
    scaled,
    widened,
)
from vortexlab.dsl.ir import INT, SET, Node, Program, Static
from vortexlab.dsl.parameters import parameter
from vortexlab.dsl.reference_ops import TENSOR_INT_LIMIT
from vortexlab.dsl.scalars import is_exact, pages_of, scalar_value

#: How much longer than its shortest length a piece of the range may be.
_PIECE = 1.02


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
                interval = widened(interval, node)
            self.numbers[index] = interval
        return self.numbers[index]

    def _interval(self, index: int, node: Node) -> Interval:
        op = node.op
        if op in ("q", "k", "v", "field", "memory", "attention"):
            return ANYTHING
        if op == "member":
            return TRUTH
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
            return rounded(inputs[0], str(node.attrs["dtype"]))
        if op in MONOTONE:
            return monotone(op, inputs[0], node)
        return BINARY[op](*inputs) if op in BINARY else corners(op, inputs, node)

    def _learned(self, node: Node) -> Interval:
        """Within what the file holds for this layer, where there is one."""
        if self.program.parameters is None:
            return ANYTHING if node.type.kind != INT else Interval(-TENSOR_INT_LIMIT, TENSOR_INT_LIMIT)
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
        return Interval(min(x.low, scaled(x.low, count)), max(x.high, scaled(x.high, count)), x.nan)

    def _reduced(self, node: Node, inputs: list[Interval]) -> Interval:
        x, how = inputs[0], node.attrs.get("how")
        if node.op == "softmax":
            return Interval(0, 1, True)
        if node.op == "dot" or how in ("sum", "norm"):
            if node.op == "share" or (node.op == "reduce" and how == "sum" and node.attrs["axis"] == "page"):
                count = self.most_pages - 1 if node.op == "reduce" else self.static.kv_heads
                ends = (0.0, scaled(x.low, count), scaled(x.high, count))
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
