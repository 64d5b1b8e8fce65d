"""How far an executor in fp32 may lie from the reference, computed and not guessed.

Beside every value of a reference run goes a bound on what correct fp32 arithmetic may make of it: any order of
summation, fused multiply-adds, a mean as a product with 1/n, a few units in the last place for division, roots and
transcendental functions (`operation_errors`). Where every operation is exact in fp32 (small integers, dyadic
fractions) the bound is 0.

`judge` turns the bounds of scores and numbers into what a correct executor must and may select: a page may differ
from the reference only where its score, or the mass before it, lies within these bounds of the cut. What is
remembered is remembered with its bounds, so that the next step is judged by what a correct executor may remember.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.dsl.bounds import read_sets
from vortexlab.dsl.ir import FLOAT, PAGE_STAGE, POOL_STAGE, SET, Node, Program, Static
from vortexlab.dsl.operation_errors import UNIT, Bounded, finish, gap, operation_error, reduce_error, stored_error
from vortexlab.dsl.reference import Lists, Selection
from vortexlab.dsl.reference_attention import Operands
from vortexlab.dsl.reference_memory import Carry, LayerMemory, is_computed, is_due, remember
from vortexlab.dsl.reference_ops import Value
from vortexlab.dsl.reference_prefill import per_query
from vortexlab.dsl.reference_sets import list_of_head, own_page
from vortexlab.dsl.reference_step import Found
from vortexlab.dsl.scalars import is_exact
from vortexlab.dsl.selection_bounds import PageMask, Uncertain, open_set

_NAMES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8_e4m3", torch.float8_e5m2: "fp8_e5m2",
}  # fmt: skip
#: What a correct executor must and may read: [kv head][list] -> (pages, pages).
Open = list[list[tuple[frozenset[int], frozenset[int]]]]


@dataclass
class Judged:
    """`open`: what must and may be read. `numbers[kv][node]`, `sets[kv][node]`: every live node with its bounds.

    `output` [query heads]: how far the program's own attention output may lie off; None without `attend`.
    """

    open: Open
    numbers: list[dict[int, Bounded]]
    sets: list[dict[int, list[PageMask]]]
    output: Tensor | None = None


def open_pages(
    program: Program, static: Static, selection: Selection, length: int, cache_dtype: torch.dtype
) -> Open:
    """What a correct executor selects at a request's first step: [kv head][list] -> (pages it must, it may read).

    `selection` is that of `reference.select_one` with ``keep_values=True``, in float64.
    """
    return judge(program, static, selection.values, length, cache_dtype).open


def error_bounds(
    program: Program, static: Static, selection: Selection, length: int, cache_dtype: torch.dtype
) -> list[dict[int, Bounded]]:
    """For each KV head, every live number of a request's first step with its bound, by node; as in `open_pages`."""
    return judge(program, static, selection.values, length, cache_dtype).numbers


def judge(
    program: Program,
    static: Static,
    values: Sequence[Mapping[int, Found]],
    length: int,
    cache_dtype: torch.dtype,
    *,
    memory: LayerMemory | None = None,
    carry: Carry | None = None,
    own: range | None = None,
    tokens: tuple[Tensor, Tensor, Tensor] | None = None,
    block: Judged | None = None,
) -> Judged:
    """Judges one step of one request in one layer by the reference's `values[kv][node]` of it.

    `memory` and `carry` are this layer's and this step's, kept for judging alone, and are brought up to date: they
    hold bounds where the reference's hold values. `own`: the pages that are always read. With `tokens`, the
    query [query heads, channel] and the keys and values [KV heads, tokens, channel] that attention sees, the output is
    judged too. `block`: what was found of a prefill block, when one of its queries is judged; its sets, and all that
    does not depend on the query, are taken from there.
    """
    page = own_page(length, program.page_size)
    own = own or range(page, page + 1)
    step = _Judge(program, static, values, length, page, own, cache_dtype, memory or LayerMemory(), carry or Carry())
    step.tokens = tokens
    if block is None:
        step.run([index for index in program.live() if program.nodes[index].stage != POOL_STAGE])
    else:
        step.sets = block.sets
        step.numbers = [dict(numbers) for numbers in block.numbers]
        step.run(per_query(program))
    result = []
    for kv in range(static.kv_heads):
        masks = [step.sets[kv][index] for index in read_sets(program)]
        per_list = []
        for head in range(max(len(lists) for lists in masks)):
            parts = [lists[list_of_head(head, lists)] for lists in masks]
            must, may = (
                frozenset(own).union(*(mask.nonzero()[:, 0].tolist() for mask in side))
                for side in ([p.must for p in parts], [p.may for p in parts])
            )
            per_list.append((must, may))
        result.append(per_list)
    remember(program, step.written(), (step.memory, step.carry), length - 1)
    return Judged(result, step.numbers, step.sets, step.output())


@dataclass
class _Judge:
    program: Program
    static: Static
    values: Sequence[Mapping[int, Found]]
    length: int
    own: int
    always: range
    cache_dtype: torch.dtype
    memory: LayerMemory
    carry: Carry
    tokens: tuple[Tensor, Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        self.sizes = self.program.axis_sizes(self.static)
        self.numbers: list[dict[int, Bounded]] = [{} for _ in range(self.static.kv_heads)]
        self.sets: list[dict[int, list[PageMask]]] = [{} for _ in range(self.static.kv_heads)]

    def run(self, nodes: list[int]) -> None:
        # Summaries first: the query stage reads them.
        for index in sorted(nodes, key=lambda i: (self.program.nodes[i].stage != PAGE_STAGE, i)):
            node = self.program.nodes[index]
            for kv in range(self.static.kv_heads):
                if node.type.kind == SET:
                    self.sets[kv][index] = self.open(index, node, kv)
                else:
                    self.numbers[kv][index] = self.bounded(index, node, kv)

    # --- numbers

    def bounded(self, index: int, node: Node, kv: int) -> Bounded:
        leaf = not node.inputs or is_exact(self.program, index)
        known = stacked(node, self.values[kv].get(index, []), list(self.sizes[index].values()), leaf)
        error = known.error if leaf and node.op not in ("field", "memory") else self.error(node, kv, known)
        return Bounded(known.value, finish(known.value, error), known.axes)

    def error(self, node: Node, kv: int, known: Bounded) -> Tensor:
        numbers = self.numbers[kv]
        if node.op == "field":
            source = numbers[self.program.fields[str(node.attrs["name"])]]
            kind = self.program.summary_dtype
            return stored_error(source, _NAMES[self.cache_dtype] if kind == "kv" else kind, 1)
        if node.op == "share":
            heads = [self.numbers[other][node.inputs[0]] for other in range(self.static.kv_heads)]
            across = Bounded(torch.stack([x.value for x in heads]), torch.stack([x.error for x in heads]))
            return reduce_error(str(node.attrs["how"]), across, 0, known.value)
        if node.op == "memory":
            return self.remembered(node, kv, known)
        if node.op == "member":
            masks = self.sets[kv][node.inputs[0]]
            open_ = torch.stack([(mask.may & ~mask.must)[: self.own] for mask in masks], 1).double()
            return open_ if "head" in node.type.axes else open_[:, 0]
        if node.op == "attention":
            return self.attention_error(node, kv, known)
        return operation_error(node, [numbers[i] for i in node.inputs], known, self.static)

    def remembered(self, node: Node, kv: int, known: Bounded) -> Tensor:
        """What was written keeps its bound; a page that has the initial value has that of its rounding."""
        store = self.memory if self.program.memories[str(node.attrs["name"])].scope == "step" else self.carry
        written = store.memories.get((str(node.attrs["name"]), kv))
        error = known.error.clone()
        if written is not None:
            count = min(written.error.shape[0], error.shape[0])
            error[:count] = written.error[:count]
        return error

    # --- sets

    def open(self, index: int, node: Node, kv: int) -> list[PageMask]:
        if node.op == "memory":
            store = self.memory if self.program.memories[str(node.attrs["name"])].scope == "step" else self.carry
            masks = store.memories.get((str(node.attrs["name"]), kv))
            none = torch.zeros(0, dtype=torch.bool)
            return [self._longer(mask) for mask in masks] if masks else [
                self._longer(PageMask(none, none)) for _ in range(self.static.group if node.type.axes else 1)
            ]
        if node.op == "reuse":
            return self.reused(index, node, kv)
        per_list = []
        for head in range(self.static.group) if node.type.axes else range(1):
            operands: list[PageMask | Uncertain] = []
            for source in node.inputs:
                if self.program.nodes[source].type.kind == SET:
                    operands.append(self.sets[kv][source][list_of_head(head, self.sets[kv][source])])
                else:
                    operands.append(self._of_head(self.numbers[kv][source], head))
            per_list.append(open_set(self.program, self.static, node, operands, kv, self.length))
        return per_list

    def reused(self, index: int, node: Node, kv: int) -> list[PageMask]:
        over_steps = node.attrs["over"] == "steps"
        store = self.memory if over_steps else self.carry
        if over_steps:
            fresh = is_due(int(node.attrs["every"]), self.length - 1, not self.memory.begun)  # type: ignore[arg-type]
        else:
            fresh = is_computed(self.program, node, self.static)
        if fresh:
            free = [PageMask(mask.must[: self.own], mask.may[: self.own]) for mask in self.sets[kv][node.inputs[0]]]
            store.kept[index, kv] = free  # type: ignore[assignment]
        return [self._longer(mask) for mask in store.kept[index, kv]]  # type: ignore[arg-type]

    def _longer(self, mask: PageMask) -> PageMask:
        """A set of fewer pages as one of the pages that there are now."""
        more = torch.zeros(self.own + 1 - mask.must.shape[0], dtype=torch.bool)
        return PageMask(torch.cat([mask.must, more]), torch.cat([mask.may, more]))

    def _of_head(self, item: Bounded, head: int) -> Uncertain:
        if "head" in item.axes:
            at = item.axes.index("head")
            return Uncertain(item.value.select(at, head), item.error.select(at, head))
        return Uncertain(item.value, item.error)

    def written(self) -> dict[tuple[str, int], object]:
        result: dict[tuple[str, int], object] = {}
        for name, index in self.program.live_memories().items():
            for kv in range(self.static.kv_heads):
                is_set = self.program.memories[name].type.kind == SET
                result[name, kv] = self.sets[kv][index] if is_set else self.numbers[kv][index]
        return result

    # --- attention

    def output(self) -> Tensor | None:
        if self.program.result is None or self.tokens is None:
            return None
        rows = [numbers[self.program.result] for numbers in self.numbers]
        return torch.cat([item.along(("head", "channel"))[1].expand(self.static.group, -1).amax(1) for item in rows])

    def attention_error(self, node: Node, kv: int, known: Bounded) -> Tensor:
        """One bound per query head; infinite where a set that is read is open, or the tokens are not known."""
        error = torch.full_like(known.value, math.inf)
        if self.tokens is None:
            return error
        q, k, v = self.tokens
        given = Operands.of(node, node.inputs)  # here: the nodes that are given
        for head in range(self.static.group):
            part = self._attended(given, kv, head, k[kv], v[kv])
            if part is not None:
                error[head] = _softmax_bound(self.static, q[kv * self.static.group + head], part)
        return error

    def _attended(self, given: Operands, kv: int, head: int, k: Tensor, v: Tensor) -> _Attended | None:
        """Everything that one query head attends to; None where that is open."""
        page, width = self.program.page_size, self.own
        rows: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]] = []

        def weights(index: object) -> tuple[Tensor, Tensor, tuple[str, ...]]:
            if index is None:
                return torch.zeros(width).double(), torch.zeros(width).double(), ("page",)
            item = self.numbers[kv][index]  # type: ignore[index]
            of_head = self._of_head(item, head)
            return of_head.value, of_head.error, tuple(axis for axis in item.axes if axis != "head")

        if given.pages is not None:
            masks = self.sets[kv][given.pages]  # type: ignore[index]
            mask = masks[list_of_head(head, masks)]
            if not torch.equal(mask.must[:width], mask.may[:width]):
                return None
            value, spread, _ = weights(given.log_weight)
            for p in sorted({*mask.must[:width].nonzero()[:, 0].tolist(), *self.always}):
                span = slice(p * page, (p + 1) * page)
                w, e = (value[p], spread[p]) if p < width else (torch.tensor(0.0), torch.tensor(0.0))
                zero = torch.zeros_like(k[span])
                rows.append((k[span], zero, v[span], torch.zeros_like(v[span]), w, e))
        if given.keys is not None:
            chosen = torch.ones(width, dtype=torch.bool)
            if given.among is not None:
                masks = self.sets[kv][given.among]  # type: ignore[index]
                mask = masks[list_of_head(head, masks)]
                if not torch.equal(mask.must[:width], mask.may[:width]):
                    return None
                chosen = mask.must[:width]
            keys, values = self.numbers[kv][given.keys], self.numbers[kv][given.values]  # type: ignore[index]
            value, spread, axes = weights(given.entry_log_weight)
            made = tuple(axis for axis in keys.axes if axis != "channel")
            shape = [*keys.value.shape[:-1]]
            value, spread = (Value(t, axes).along(made).expand(shape) for t in (value, spread))
            for p in chosen.nonzero()[:, 0].tolist():
                flat = [t[p].reshape(-1, t.shape[-1]) for t in (keys.value, keys.error, values.value, values.error)]
                rows.append((flat[0], flat[1], flat[2], flat[3], value[p].reshape(-1), spread[p].reshape(-1)))
        if not rows:
            none, empty = k.new_zeros(0), (k.new_zeros(0, k.shape[1]), v.new_zeros(0, v.shape[1]))
            return _Attended(empty[0], empty[0], empty[1], empty[1], none, none)
        wide = [(*row[:4], *(t.expand(row[0].shape[0]) for t in row[4:])) for row in rows]
        return _Attended(*(torch.cat(column) for column in zip(*wide, strict=True)))


@dataclass(frozen=True)
class _Attended:
    """Keys, values and log-weights that a query meets, each with its bound: [place, channel] and [place]."""

    k: Tensor
    ek: Tensor
    v: Tensor
    ev: Tensor
    w: Tensor
    ew: Tensor


def _softmax_bound(static: Static, q: Tensor, met: _Attended) -> Tensor:
    """Largest admissible error of one query head's attention over `met`.

    The logits' rounding (growing with the square root of the width) moves every weight by its exponential; the rest
    is rounding of the weighted sum.
    """
    live = met.w > -math.inf
    if not live.any():
        return torch.tensor(0.0 if not met.ew.any() else math.inf, dtype=torch.float64)
    k, ek, v, ev, w, ew = (t[live] for t in (met.k, met.ek, met.v, met.ev, met.w, met.ew))
    if bool((met.ew[~live] > 0).any()):
        return torch.tensor(math.inf, dtype=torch.float64)
    logits = static.scale * (k @ q) + w
    size = abs(static.scale) * (k.abs() @ q.abs())
    shift = (math.sqrt(k.shape[1]) + 8) * UNIT * size + 4 * UNIT * (logits.max() - logits)
    shift = shift + abs(static.scale) * (ek @ q.abs()) + ew + 2 * UNIT * w.abs()
    weight = torch.softmax(logits, 0)
    # A weight may take over all others when its logit moves far; min keeps the bound at "any convex mix".
    moved = torch.expm1(2 * shift.max()).clamp(max=2.0)
    reach = (weight[:, None] * v.abs()).sum(0).max()
    if not moved < 2.0:
        reach, moved = v.abs().max(), torch.tensor(2.0, dtype=torch.float64)
    return reach * (moved + (math.sqrt(v.shape[0]) + 16) * UNIT) + ev.max()


def attention_tolerance(
    page: int, static: Static, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], lists: list[list[Lists]]
) -> Tensor:
    """Largest admissible |executor - reference| of attention under the same lists, per row: [batch, query_heads].

    Shapes as in `reference.attend`, in float64.
    """
    bound = torch.empty(q.shape[:2], dtype=torch.float64)
    for b, (k, v) in enumerate(zip(keys, values, strict=True)):
        for head in range(q.shape[1]):
            kv = head // static.group
            pages = lists[b][kv][list_of_head(head % static.group, lists[b][kv])]
            tokens = [t for p in pages for t in range(p * page, min((p + 1) * page, k.shape[1]))]
            part = (k[kv, tokens], v[kv, tokens])
            none = k.new_zeros(len(tokens))
            met = _Attended(part[0], torch.zeros_like(part[0]), part[1], torch.zeros_like(part[1]), none, none)
            bound[b, head] = _softmax_bound(static, q[b, head], met)
    return bound


def stacked(node: Node, result: object, shape: list[int], leaf: bool) -> Bounded:
    """A reference result as one tensor, pages in front; leaves and exact scalars with what fp32 makes of them."""
    axes = node.type.axes
    if isinstance(result, list):
        axes = axes if "page" in axes else ("page", *axes)
        tensors = [item.tensor.double() for item in result]
        value = torch.stack(tensors) if tensors else torch.zeros(0, *shape, dtype=torch.float64)
    elif isinstance(result, Value):
        value = result.tensor.double()
    else:
        value = torch.tensor(float(result), dtype=torch.float64)  # type: ignore[arg-type]
    rounded = node.type.kind == FLOAT and leaf
    return Bounded(value, gap(value, value.float().double()) if rounded else torch.zeros_like(value), axes)
