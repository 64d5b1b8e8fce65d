"""Rule 8: what a request carries from step to step and from layer to layer.

A `Store` holds what was written, for every KV head: the memories that the program declares, by name, and the sets
that `reuse` keeps, by node. A request has one `LayerMemory` per layer, which lives as long as the request, and one
`Carry` per step, which the layers hand upwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Memory, Node, Program, Static
from vortexlab.dsl.reference_ops import Value, of_kind
from vortexlab.dsl.scalars import scalar_value

#: A set of pages: one per KV head, or one per query head of that KV head.
PageSet = list[frozenset[int]]


@dataclass
class Store:
    """`memories[name, kv]`: a value per page, or a set. `kept[node, kv]`: the set of a `reuse`."""

    memories: dict[tuple[str, int], Any] = field(default_factory=dict)
    kept: dict[tuple[int, int], PageSet] = field(default_factory=dict)


@dataclass
class LayerMemory(Store):
    """What one layer of one request carries from step to step; `begun` once it has taken a step.

    `pages` are the summaries of complete pages by (KV head, page): they never change (page state).
    """

    begun: bool = False
    pages: dict[tuple[int, int], Any] = field(default_factory=dict)


@dataclass
class Carry(Store):
    """What the layers of one step, or of one block of prefill, hand upwards."""


def is_due(every: int, position: int, first: bool) -> bool:
    """Rule 8, every: at the request's first sparse step, and where its own position is a multiple of `every`."""
    return first or every <= 1 or position % every == 0


def candidates_of(chosen: PageSet, own: int) -> PageSet:
    """Rule 8, reuse: the own page is never part of what is kept."""
    return [pages & frozenset(range(own)) for pages in chosen]


def recalled(
    memory: Memory, written: dict[int, Value] | PageSet | None, own: int, sizes: Mapping[str, int], dtype: torch.dtype
) -> list[Value] | PageSet:
    """Rule 8, memory: what was written; pages that became candidates since then have the initial value.

    Before anything was written that is every page, and a set is empty. `sizes` are those of the axes beside ``page``.
    """
    if memory.type.kind == SET:
        return written if isinstance(written, list) else [frozenset[int]()] * sizes.get("head", 1)
    assert written is None or isinstance(written, dict)
    axes = tuple(axis for axis in memory.type.axes if axis != "page")
    fresh = Value(of_kind(torch.full([sizes[axis] for axis in axes], memory.init), memory.type.kind, dtype), axes)
    return [(written or {}).get(page, fresh) for page in range(own)]


def read(program: Program, node: Node, layer: LayerMemory, carry: Carry, kv: int) -> Any:
    """What a memory held before this step, or what the layer below wrote in it; None where nothing was written."""
    memory = program.memories[str(node.attrs["name"])]
    store: Store = layer if memory.scope == "step" else carry
    return store.memories.get((memory.name, kv))


def reused(
    program: Program, index: int, computed: PageSet, stores: tuple[LayerMemory, Carry], fresh: bool, kv: int, own: int
) -> PageSet:
    """Rule 8, reuse: the set computed now where it is `fresh`, else the one kept at the last due step or layer."""
    node = program.nodes[index]
    store: Store = stores[0] if node.attrs["over"] == "steps" else stores[1]
    if fresh:
        store.kept[index, kv] = candidates_of(computed, own)
    if (index, kv) not in store.kept:
        raise VortexError(
            f"program {program.name}, line {node.line}: no layer at or below this one computes the reused set; "
            "let the condition hold in layer 0 [reuse-before-write]"
        )
    return store.kept[index, kv]


def remember(
    program: Program, written: Mapping[tuple[str, int], Any], stores: tuple[LayerMemory, Carry], position: int
) -> None:
    """Rule 8, remember: at the end of a layer's step every memory takes on what was written, if it is due.

    `written[name, kv]`: a value per page or a set. What a layer hands upwards is always written.
    """
    layer, carry = stores
    for (name, kv), value in written.items():
        memory = program.memories[name]
        if memory.scope == "layer":
            carry.memories[name, kv] = value
        elif is_due(memory.every, position, not layer.begun):  # type: ignore[arg-type]
            layer.memories[name, kv] = value
    layer.begun = True


def check_reuse(program: Program, static: Static) -> None:
    """Raises `VortexError` when a set is reused in layer 0, below every layer that computes it."""
    lowest = replace(static, layer=0)
    for index in program.live():
        node = program.nodes[index]
        if node.op == "reuse" and node.attrs["over"] == "layers":
            reused(program, index, [], (LayerMemory(), Carry()), is_computed(program, node, lowest), 0, 0)


def is_computed(program: Program, node: Node, static: Static) -> bool:
    """Rule 8, reuse over layers: whether the condition, which is known at compile time, holds in this layer."""
    return bool(scalar_value(program, node.inputs[1], static, None))
