"""What a request carries from step to step, and a step from layer to layer (rule 8 of the language).

A `Memory` belongs to one layer and has a slot for every request: the step memories of the program, with the number of
pages that had a value when they were written, and the sets that `reuse(..., every=n)` keeps. The memories of all layers
share one `Carry`, which holds what the layers of the step under way have handed upwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Program, Static
from vortexlab.dsl.scalars import scalar_value


@dataclass
class Carry:
    """What the layers of one step hand on: layer memories and the sets of `reuse(..., layers=...)`.

    Both are by name or node, by the part of a prefill that is computed at a time, and by the layer that wrote them. A
    step is known by its phase and its rows' lengths: a step with others starts from nothing.
    """

    stamp: tuple[Any, ...] = ()
    values: dict[tuple[str, int], dict[int, Tensor]] = field(default_factory=dict)
    sets: dict[tuple[int, int], dict[int, Tensor]] = field(default_factory=dict)

    def enter(self, stamp: tuple[Any, ...]) -> None:
        if stamp != self.stamp:
            self.stamp = stamp
            self.values.clear()
            self.sets.clear()

    def put(self, name: str, part: int, layer: int, value: Tensor) -> None:
        """Keeps what this layer and the nearest below it wrote; nobody reads further down."""
        held = self.values.setdefault((name, part), {})
        held[layer] = value
        for old in sorted(held)[:-2]:
            del held[old]


class Memory:
    """The memory of `rows` requests in one layer; see `vortexlab.kernels.executor.Executor.new_memory`.

    `slots`: the slot of each row of the batch, or None where row i has slot i (a batch that has shrunk keeps its first
    rows). Set it when rows change places.
    """

    def __init__(self, program: Program, static: Static, rows: int, kv_heads: int, device: torch.device, carry: Carry):
        self.program, self.static, self.rows, self.kv_heads = program, static, rows, kv_heads
        self.device, self.carry = device, carry
        self.slots: list[int] | None = None
        sizes = program.axis_sizes(static)
        self._shapes = {
            name: [sizes[index][axis] for axis in program.nodes[index].type.axes if axis != "page"]
            for name, index in program.live_memories().items()
        }
        self._started = [False] * rows
        self._values: dict[str, Tensor] = {}
        self._written = {name: torch.zeros(rows, dtype=torch.int64, device=device) for name in program.live_memories()}
        self._sets: dict[int, Tensor] = {}

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Forgets the requests in these slots (all by default): their next step is their first."""
        for slot in range(self.rows) if rows is None else rows:
            self._started[slot] = False

    def slots_of(self, batch: int) -> list[int]:
        """The slot of each row of a batch. Raises `VortexError` when there are not as many."""
        slots = list(range(batch)) if self.slots is None else self.slots
        if len(slots) != batch or max(slots, default=-1) >= self.rows:
            raise VortexError(
                f"a memory of {self.rows} requests met a batch of {batch}; make one with a slot for every request, and "
                "set `slots` when rows change places"
            )
        return slots

    @contextmanager
    def only(self, rows: Sequence[int], batch: int) -> Iterator[None]:
        """Inside the block the batch is `rows` of a batch of `batch`."""
        before, slots = self.slots, self.slots_of(batch)
        self.slots = [slots[row] for row in rows]
        try:
            yield
        finally:
            self.slots = before

    def due(self, every: int, lengths: Sequence[int], slots: Sequence[int]) -> list[bool]:
        """For which rows something with this period is renewed: those at their first step or at a multiple of it."""
        return [
            not self._started[slot] or (length - 1) % every == 0 for slot, length in zip(slots, lengths, strict=True)
        ]

    # what a step begins with

    def blank(self, name: str, rows: int, pages: int) -> Tensor:
        """A memory that nothing was written to: its initial value, or the empty set."""
        item = self.program.memories[name]
        if item.type.kind == SET:
            return torch.zeros(rows, 1, 1, pages + 1, dtype=torch.bool, device=self.device)
        return torch.tensor(float(item.init), device=self.device).expand(rows, 1, pages, *self._shapes[name])

    def read(self, name: str, pages: int, slots: Sequence[int]) -> Tensor:
        """A step memory as it stands: [rows, kv_heads, pages, *axes], or a set [rows, kv_heads, lists, pages + 1]."""
        item, held = self.program.memories[name], self._values.get(name)
        if held is None:
            return self.blank(name, len(slots), pages)
        rows = torch.tensor(slots, device=self.device)
        fresh = torch.tensor([not self._started[slot] for slot in slots], device=self.device)
        if item.type.kind == SET:
            return _wide(held[rows], 3, pages + 1) & ~fresh[:, None, None, None]
        value = _wide(held[rows], 2, pages)
        written = torch.where(fresh, 0, self._written[name][rows])
        known = torch.arange(pages, device=self.device) < written[:, None]
        return torch.where(known.view(len(slots), 1, pages, *[1] * (value.dim() - 3)), value, item.init)

    def from_below(self, name: str, part: int, rows: int, pages: int) -> Tensor:
        """A layer memory: what the nearest layer below wrote in this step; its beginning where none has."""
        held = self.carry.values.get((name, part), {})
        below = [layer for layer in held if layer < self.static.layer]
        return held[max(below)] if below else self.blank(name, rows, pages)

    def nearest_set(self, key: int, part: int) -> Tensor:
        """The set of a `reuse(..., layers=...)` in the nearest layer below that computed it.

        Raises `VortexError` when none has in this step.
        """
        held = self.carry.sets.get((key, part), {})
        below = [layer for layer in held if layer < self.static.layer]
        if not below:
            raise VortexError(
                f"program {self.program.name}: layer {self.static.layer} reuses a set that no layer below it has "
                "computed in this step; run the layers in order, with memories that share one Carry"
            )
        return held[max(below)]

    def kept_set(self, key: int, pages: int, slots: Sequence[int]) -> Tensor:
        """The set of a `reuse(..., every=n)` at the last step that was due: [rows, kv_heads, lists, pages]."""
        held = self._sets.get(key)
        if held is None:
            return torch.zeros(len(slots), 1, 1, pages, dtype=torch.bool, device=self.device)
        return _wide(held[torch.tensor(slots, device=self.device)], 3, pages)

    # what it leaves behind

    def write(self, name: str, value: Tensor, own: Tensor, due: Sequence[bool], slots: Sequence[int]) -> None:
        """Takes on the rows of a step memory that are due; `own`: candidate pages of each row."""
        rows = [row for row, is_due in enumerate(due) if is_due]
        where = torch.tensor([slots[row] for row in rows], device=self.device)
        axis = 3 if self.program.memories[name].type.kind == SET else 2
        self._values[name] = self._stored(self._values.get(name), value, axis, rows, where)
        self._written[name][where] = own[rows]

    def keep(self, key: int, value: Tensor, due: Sequence[bool], slots: Sequence[int]) -> None:
        rows = [row for row, is_due in enumerate(due) if is_due]
        where = torch.tensor([slots[row] for row in rows], device=self.device)
        self._sets[key] = self._stored(self._sets.get(key), value, 3, rows, where)

    def advance(self, slots: Sequence[int]) -> None:
        """Ends a step: its rows have had their first one."""
        for slot in slots:
            self._started[slot] = True

    def _stored(self, held: Tensor | None, value: Tensor, axis: int, rows: list[int], where: Tensor) -> Tensor:
        """The storage with `value[rows]` in the slots `where`, made or enlarged as needed."""
        pages = value.shape[axis]
        if held is None:
            shape = [self.rows, self.kv_heads, *value.shape[2:]]
            shape[axis] = -(-pages // 64) * 64
            with torch.inference_mode(False):  # so that it may be written in either mode
                held = torch.zeros(shape, dtype=value.dtype, device=self.device)
        elif held.shape[axis] < pages:
            with torch.inference_mode(False):
                held = _wide(held, axis, 2 * pages).clone()
        value = value[rows] if value.shape[0] > 1 else value
        value = value.expand(len(rows), self.kv_heads, *value.shape[2:])
        held.narrow(axis, 0, pages)[where] = value
        if value.dtype == torch.bool:
            held.narrow(axis, pages, held.shape[axis] - pages)[where] = False
        return held


def _wide(x: Tensor, axis: int, size: int) -> Tensor:
    """The first `size` places along an axis; those that it lacks are 0."""
    have = x.shape[axis]
    if have >= size:
        return x.narrow(axis, 0, size)
    return pad(x, (0, 0) * (x.dim() - 1 - axis) + (0, size - have))


@dataclass
class Turn:
    """One layer's step against its memory: what is given to it, which nodes it need not compute, and what it leaves.

    `given`: values by node; `kept`: as in `Step`; `roots`: the nodes to compute for the memory's sake.
    """

    memory: Memory
    part: int
    slots: list[int]
    given: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[int, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    roots: list[int] = field(default_factory=list)
    _writes: list[tuple[str, int, list[bool]]] = field(default_factory=list)
    _keeps: list[tuple[int, int, list[bool]]] = field(default_factory=list)

    @staticmethod
    def begin(
        memory: Memory, static: Static, carried: Sequence[int], lengths: Sequence[int], pages: int, part: int = 0
    ) -> Turn:
        """What a step of these lengths, with `pages` candidate pages in its longest row, starts from.

        `carried`: the live `memory` and `reuse` nodes. In prefill (`static.prefill`) step memories are at their
        beginning and every set is due; nothing of either is kept. The caller has entered the step's `Carry`.
        """
        program, rows = memory.program, len(lengths)
        turn = Turn(memory, part, [] if static.prefill else memory.slots_of(rows))
        written: set[str] = set()
        for index in carried:
            node = program.nodes[index]
            if node.op == "reuse":
                turn._reuse(index, static, lengths, pages)
                continue
            name = str(node.attrs["name"])
            item, end = program.memories[name], program.writes[name]
            due = [True] * rows
            if item.scope == "layer":
                turn.given[index] = memory.from_below(name, part, rows, pages)
            elif static.prefill:
                turn.given[index] = memory.blank(name, rows, pages)
                continue
            else:
                turn.given[index] = memory.read(name, pages, turn.slots)
                due = memory.due(int(item.every), lengths, turn.slots)  # type: ignore[arg-type]
            if name not in written and any(due):
                written.add(name)
                turn.roots.append(end)
                turn._writes.append((name, end, due))
        return turn

    def _reuse(self, index: int, static: Static, lengths: Sequence[int], pages: int) -> None:
        memory = self.memory
        node = memory.program.nodes[index]
        key = int(node.attrs["key"])  # type: ignore[arg-type]
        due: list[bool] = []
        if node.attrs["over"] == "layers":
            if not scalar_value(memory.program, node.inputs[1], static, None):
                self.given[index] = memory.nearest_set(key, self.part)
                return
            self.kept[index] = (None, None)
        elif static.prefill:
            self.kept[index] = (None, None)
            return
        else:
            due = memory.due(int(node.attrs["every"]), lengths, self.slots)  # type: ignore[arg-type]
            if all(due):
                self.kept[index] = (None, None)
            else:
                before = memory.kept_set(key, pages + 1, self.slots)
                if not any(due):
                    self.given[index] = before
                    return
                self.kept[index] = (torch.tensor(due, device=memory.device), before)
        self.roots.append(index)
        self._keeps.append((key, index, due))

    def end(self, values: Mapping[int, Tensor], own: Tensor) -> None:
        """Hands on what the step has computed; `own`: candidate pages of each row."""
        memory = self.memory
        layer = memory.static.layer
        for name, index, due in self._writes:
            if memory.program.memories[name].scope == "layer":
                memory.carry.put(name, self.part, layer, values[index])
            else:
                memory.write(name, values[index], own, due, self.slots)
        for key, index, due in self._keeps:
            if due:
                memory.keep(key, values[index], due, self.slots)
            else:
                memory.carry.sets.setdefault((key, self.part), {})[layer] = values[index]
        memory.advance(self.slots)
