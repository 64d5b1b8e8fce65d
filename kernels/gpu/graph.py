"""A bound program, lowered for code generation and scheduled into kernels.

Lowering drops dead code, decides set choices that are known at compile time, and writes softmax, mean and norm over
pages in terms of plain reductions over pages. A reduction over pages (and `share`, which crosses KV heads) is a
*barrier*: it needs the values of every page before any of its consumers can start. The schedule therefore is a
sequence of map kernels, parallel over pages, each followed by the finishing of the reductions it began, and at last
one selection kernel with one program per list, which carries out the reductions of its narrow inputs itself. What
depends on a choice (`member`) is computed there too.

Where a program makes its own attention output, the selection kernel writes several *listings*: the selected pages, the
pages of every attention with their log-weights, and the pages whose summaries are entries of a softmax, with theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Program, Static, ordered
from vortexlab.dsl.scalars import scalar_value
from vortexlab.kernels.compiled import is_plain, operands_of

EXACT_LEAVES = ("const", "ctx")
SELECTORS = ("everything", "first", "last", "stride", "random", "topk", "topp", "above")


@dataclass(frozen=True)
class Op:
    """One lowered operation. `sizes` are those of its axes other than page; `origin` its node in the program."""

    op: str
    kind: str
    axes: tuple[str, ...]
    inputs: tuple[int, ...]
    attrs: dict[str, Any]
    sizes: dict[str, int]
    dtype: str = "fp32"
    origin: int = -1
    line: int = 0


@dataclass(frozen=True)
class Listing:
    """What the selection kernel lists: the union of `sets` with the own page or, of pages whose summaries are so many
    `entries` of a softmax, the candidates among `sets` (all without one). `weight` is the log-weight of every page,
    which is written beside it."""

    sets: tuple[int, ...]
    weight: int | None = None
    entries: int = 0


@dataclass(frozen=True)
class Attention:
    """One attention operation: the numbers of its listings of tokens and of entries, whose keys and values are the
    named summaries."""

    tokens: int | None
    entries: int | None
    keys: str = ""
    values: str = ""


@dataclass
class Graph:
    """`exact` holds the scalars that follow from constants and the step's length alone: a number where it is one
    number for every layer and length, else the name (``pages`` or ``length``) of what its table is indexed by.

    `listings` are what the selection kernel writes, what is read in all first. `result` is the program's own attention
    output, made of `attentions` by operation; None is plain attention over the selected pages.
    """

    program: Program
    static: Static
    ops: list[Op] = field(default_factory=list)
    fields: dict[str, int] = field(default_factory=dict)
    listings: list[Listing] = field(default_factory=list)
    result: int | None = None
    attentions: dict[int, Attention] = field(default_factory=dict)
    exact: dict[int, int | float | bool | str] = field(default_factory=dict)

    @property
    def lists(self) -> int:
        """Lists of one KV head: one per query head where a set that is listed has a head axis."""
        return self.static.group if any(self._of_heads(listing) for listing in self.listings) else 1

    @property
    def reported(self) -> int:
        """How many of a KV head's lists differ in what is read."""
        return self.static.group if self._of_heads(self.listings[0]) else 1

    def _of_heads(self, listing: Listing) -> bool:
        return any("head" in self.ops[index].axes for index in listing.sets)

    def weights(self, listing: Listing) -> int:
        """Log-weights of one page in a listing: one, or one per query head of its lists."""
        assert listing.weight is not None
        return self.static.group if "head" in self.ops[listing.weight].axes and self.lists == 1 else 1

    def is_exact(self, index: int) -> bool:
        return index in self.exact

    def dependencies(self, index: int) -> tuple[int, ...]:
        return () if self.is_exact(index) else self.ops[index].inputs


def lower(program: Program, static: Static) -> Graph:
    """Raises `VortexError` when the program is not bound or a split does not divide."""
    if not program.is_bound:
        raise VortexError(f"program {program.name}: bind its knobs before generating kernels")
    return _Lowering(program, static).run()


class _Lowering:
    def __init__(self, program: Program, static: Static):
        self.program, self.static = program, static
        self.sizes = program.axis_sizes(static)
        self.graph = Graph(program, static)
        self.done: dict[int, int] = {}
        self.uses: dict[int, frozenset[str] | None] = {}

    def run(self) -> Graph:
        for index in self.program.live():
            self.done[index] = self._lower(index)
        graph, stack, seen = self.graph, [self.done[self.program.output]], set()
        self._list_sets()
        if graph.result is not None:
            stack.append(graph.result)
        while stack:
            index = stack.pop()
            if index in seen or graph.is_exact(index):
                continue
            seen.add(index)
            stack.extend(graph.ops[index].inputs)
            if graph.ops[index].op == "field":
                name = str(graph.ops[index].attrs["name"])
                graph.fields[name] = self.done[self.program.fields[name]]
                stack.append(graph.fields[name])
        return graph

    def _list_sets(self) -> None:
        """Collects what is listed, each once."""
        graph, program, listings = self.graph, self.program, self.graph.listings
        given: dict[int, dict[str, int]] = {}
        if not is_plain(program) and not self.static.prefill:
            graph.result = self.done[program.result]  # type: ignore[index]
            for index in program.live():
                if program.nodes[index].op == "attention":
                    new = self.done[index]
                    given[new] = operands_of(program.nodes[index], graph.ops[new].inputs)
        of_tokens = [item for item in given.values() if "pages" in item]
        read = tuple(dict.fromkeys((self.done[program.output], *(item["pages"] for item in of_tokens))))
        # Where one set is all that is read, its lists carry the weights of the first attention.
        first = of_tokens[0].get("log_weight") if of_tokens and len(read) == 1 else None
        listings.append(Listing(read, first))

        def number(listing: Listing) -> int:
            if listing not in listings:
                listings.append(listing)
            return listings.index(listing)

        for index, item in given.items():
            tokens = entries = None
            keys = values = ""
            if "pages" in item:
                tokens = number(Listing((item["pages"],), item.get("log_weight")))
            if "keys" in item:
                among = (item["among"],) if "among" in item else ()
                sizes = graph.ops[item["keys"]].sizes
                each = math.prod(size for axis, size in sizes.items() if axis != "channel")
                entries = number(Listing(among, item.get("entry_log_weight"), each))
                keys, values = (str(graph.ops[item[name]].attrs["name"]) for name in ("keys", "values"))
            graph.attentions[index] = Attention(tokens, entries, keys, values)

    def exact_uses(self, index: int) -> frozenset[str] | None:
        """What an exact scalar depends on, of {layer, pages, length}; None when the node is no exact scalar."""
        if index not in self.uses:
            node = self.program.nodes[index]
            result: frozenset[str] | None = None
            if not node.type.axes and node.type.kind != SET:
                if node.op in EXACT_LEAVES:
                    name = node.attrs.get("name")
                    result = frozenset({str(name)} if name in ("layer", "pages", "length") else ())
                elif node.inputs:
                    parts = [self.exact_uses(i) for i in node.inputs]
                    if all(part is not None for part in parts):
                        result = frozenset().union(*[part for part in parts if part is not None])
            self.uses[index] = result
        return self.uses[index]

    def is_settled(self, index: int) -> bool:
        """Whether an exact scalar is the same at every step of this layer."""
        uses = self.exact_uses(index)
        return uses is not None and uses <= {"layer"}

    def emit(
        self, op: str, like: Op, inputs: tuple[int, ...], axes: tuple[str, ...] | None = None, **attrs: Any
    ) -> int:
        axes = like.axes if axes is None else axes
        sizes = {axis: like.sizes[axis] for axis in axes if axis != "page"}
        self.graph.ops.append(Op(op, like.kind, axes, inputs, attrs, sizes, line=like.line))
        return len(self.graph.ops) - 1

    def _lower(self, index: int) -> int:
        node, ops = self.program.nodes[index], self.graph.ops
        uses = self.exact_uses(index)
        if uses is None and node.op == "where" and self.is_settled(node.inputs[0]):
            holds = scalar_value(self.program, node.inputs[0], self.static, None)
            kept = self.done[node.inputs[1 if holds else 2]]
            if ops[kept].axes == node.type.axes and ops[kept].kind == node.type.kind:
                return kept
        op = Op(
            node.op, node.type.kind, node.type.axes, (), dict(node.attrs), self.sizes[index], node.type.dtype, index,
            node.line,
        )  # fmt: skip
        if uses is not None:
            ops.append(op)
            new = len(ops) - 1
            if not uses:
                self.graph.exact[new] = scalar_value(self.program, index, self.static, 1)
            else:
                self.graph.exact[new] = "length" if "length" in uses else "pages"
            return new
        # Positions along an axis of a value do not depend on the value.
        inputs = () if node.op == "index" else tuple(self.done[i] for i in node.inputs)
        over_pages = node.op == "reduce" and node.attrs["axis"] == "page"
        if node.op == "softmax":
            x = ops[inputs[0]]
            rest = tuple(axis for axis in x.axes if axis != "page")
            top = self.emit("pagereduce", x, inputs, rest, how="max")
            power = self.emit("exp", x, (self.emit("sub", x, (inputs[0], top)),))
            return self.emit("div", x, (power, self.emit("pagereduce", x, (power,), rest, how="sum")))
        if node.op == "dot" and node.attrs["axis"] == "page":
            both = {axis: size for i in inputs for axis, size in ops[i].sizes.items()}
            axes = ordered({axis for i in inputs for axis in ops[i].axes})
            ops.append(Op("mul", op.kind, axes, inputs, {}, both, line=op.line))
            return self.emit("pagereduce", op, (len(ops) - 1,), how="sum")
        if over_pages:
            x = ops[inputs[0]]
            how = str(node.attrs["how"])
            if how == "norm":
                square = self.emit("mul", x, (inputs[0], inputs[0]))
                return self.emit("sqrt", op, (self.emit("pagereduce", op, (square,), how="sum"),))
            total = self.emit("pagereduce", op, inputs, how="sum" if how == "mean" else how)
            return self.emit("per_page", op, (total,)) if how == "mean" else total
        ops.append(Op(**{**op.__dict__, "inputs": inputs}))
        return len(ops) - 1


@dataclass
class MapKernel:
    """A kernel over pages: `stores` are values written per page, `partials` reductions over pages begun here."""

    stores: list[int]
    partials: list[int]


@dataclass
class Schedule:
    """The map kernels in order; the selection kernel follows. `available` are all values kept in buffers."""

    maps: list[MapKernel]
    available: set[int]


BARRIERS = ("pagereduce", "share")


def schedule(graph: Graph) -> Schedule:
    """Kernels in launch order; see the module's description."""
    ops = graph.ops
    available: set[int] = set()
    maps: list[MapKernel] = []
    chosen = of_choice(graph)

    def pending(index: int, memo: dict[int, set[int]]) -> set[int]:
        """Barriers below a value whose results are in no buffer yet. A `share` waits for its input's buffer; what
        depends on a choice is no map kernel's to compute."""
        if index in available or graph.is_exact(index) or index in chosen or ops[index].op == "attention":
            return set()
        if index not in memo:
            op = ops[index]
            below: set[int] = set()
            for i in op.inputs:
                below |= pending(i, memo)
            if op.op == "pagereduce" or (op.op == "share" and op.inputs[0] not in available):
                below = below | {index}
            memo[index] = below
        return memo[index]

    demands = _selection_inputs(graph)
    ends = [] if graph.result is None else [graph.result]
    for _ in range(len(ops) + 1):
        memo: dict[int, set[int]] = {}
        for i in range(len(ops)):
            pending(i, memo)
        stores: dict[int, None] = {}
        seen: set[int] = set()
        done = not any(pending(i, memo) for i in ends)
        if done and all(_finish(graph, i, available, memo, stores, seen, chosen) for i in demands):
            if stores:
                maps.append(MapKernel(list(stores), []))
                available.update(stores)
            return Schedule(maps, available)
        ready = sorted({b for i in (*demands, *ends) for b in pending(i, memo) if not pending(ops[b].inputs[0], memo)})
        partials = [b for b in ready if ops[b].op == "pagereduce"]
        shared = list(dict.fromkeys(ops[b].inputs[0] for b in ready if ops[b].op == "share"))
        maps.append(MapKernel(shared, partials))
        available.update(partials, shared)
    raise AssertionError("every round makes at least one barrier available")


def of_choice(graph: Graph) -> set[int]:
    """The numbers that depend on which pages a set holds."""
    found: set[int] = set()
    for index, op in enumerate(graph.ops):
        if op.op == "member" or (op.kind != SET and op.op != "attention" and any(i in found for i in op.inputs)):
            found.add(index)
    return found


def _selection_inputs(graph: Graph) -> list[int]:
    """The values that selectors (and choices between sets) of what is listed read, and log-weights, each once."""
    found: dict[int, None] = {}
    seen: set[int] = set()
    chosen = of_choice(graph)

    def visit(index: int) -> None:
        """A set, or a number that depends on one."""
        if index in seen:
            return
        seen.add(index)
        for i in graph.ops[index].inputs:
            if graph.ops[i].kind == SET:
                visit(i)
            elif not graph.is_exact(i):
                demand(i)

    def demand(index: int) -> None:
        found[index] = None
        if index in chosen:
            visit(index)

    for listing in graph.listings:
        for index in listing.sets:
            visit(index)
        if listing.weight is not None and not graph.is_exact(listing.weight):
            demand(listing.weight)
    return list(found)


def _finish(
    graph: Graph,
    index: int,
    available: set[int],
    pending: dict[int, set[int]],
    stores: dict[int, None],
    seen: set[int],
    chosen: set[int],
) -> bool:
    """Whether the selection kernel can compute a value if one more map kernel stores `stores` (which it extends).

    Values per page must be narrow there (no axes but page and head); values without a page axis are free.
    """
    op = graph.ops[index]
    if index in available or index in seen or graph.is_exact(index):
        return True
    seen.add(index)
    if "page" in op.axes and not set(op.axes) <= {"page", "head"}:
        return False
    if index not in chosen and not pending[index]:
        if "page" in op.axes and not _is_numbered(graph, index):
            stores[index] = None
        return True
    if op.op == "member":
        return True
    if op.op == "share":
        if pending.get(op.inputs[0]):
            return False
        stores[op.inputs[0]] = None
        return True
    return all(_finish(graph, i, available, pending, stores, seen, chosen) for i in op.inputs)


def _is_numbered(graph: Graph, index: int) -> bool:
    """Whether a value follows from the numbers of pages alone, and takes no load."""
    op = graph.ops[index]
    if graph.is_exact(index) or op.op == "index":
        return set(op.axes) <= {"page"}
    return bool(op.inputs) and op.op not in BARRIERS and all(_is_numbered(graph, i) for i in op.inputs)


def per_page_ops(graph: Graph) -> set[int]:
    """Operations that belong to the summaries."""
    found: set[int] = set()
    stack = list(graph.fields.values())
    while stack:
        index = stack.pop()
        if index not in found:
            found.add(index)
            stack.extend(graph.ops[index].inputs)
    return found
