"""Ops that move, order or number the elements of an axis, on values laid out as `vortexlab.kernels.torch_ops` says.

Each of them works on any axis. Over `page` the caller hides the columns that are no candidates first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.ir import Node, Program, Static, slice_bounds

Value = Tensor | int | float | bool
Kernel = Callable[[Sequence[Value]], Tensor]
_LEAD = 2


def mover(have: Sequence[str], want: Sequence[str]) -> Callable[[Any], Tensor]:
    """Puts the axes `have` of a value in the order `want`."""
    order = [0, 1, *(_LEAD + list(have).index(axis) for axis in want)]
    if order == list(range(len(order))):
        return lambda x: x
    return lambda x: x.permute(order)


def shifted(x: Tensor, dim: int, by: int, fill: float) -> Tensor:
    """out[i] = x[i - by] along `dim`; outside, `fill`."""
    size = x.shape[dim]
    by = max(-size, min(size, by))
    gap = list(x.shape)
    gap[dim] = abs(by)
    outside = x.new_full(gap, fill)
    if by >= 0:
        return torch.cat([outside, x.narrow(dim, 0, size - by)], dim)
    return torch.cat([x.narrow(dim, -by, size + by), outside], dim)


def windows(x: Tensor, dim: int, size: int, fill: float) -> Tensor:
    """A new last dimension of `size`: out[i, j] = x[i + j - size // 2] along `dim`; outside, `fill`."""
    before, after = list(x.shape), list(x.shape)
    before[dim], after[dim] = size // 2, size - 1 - size // 2
    return torch.cat([x.new_full(before, fill), x, x.new_full(after, fill)], dim).unfold(dim, size, 1)


def running(x: Tensor, dim: int, how: str) -> Tensor:
    if how == "sum":
        return x.cumsum(dim)
    return x.cummax(dim).values if how == "max" else x.cummin(dim).values


def largest_at(x: Tensor, dim: int) -> Tensor:
    """Where the first of the largest elements along `dim` stands; 0 where one of them is NaN."""
    found = x.argmax(dim)
    return torch.where(x.isnan().any(dim), 0, found) if x.is_floating_point() else found


def _gather(node: Node, axes: Sequence[tuple[str, ...]]) -> Kernel:
    """out[...] = x[axis = i[...]], elements of i outside the axis giving `fill`."""
    of_x, of_i = axes
    axis, fill = str(node.attrs["axis"]), float(node.attrs["fill"])  # type: ignore[arg-type]
    shared = [a for a in of_x if a in of_i and a != axis]
    rest = [a for a in of_x if a not in of_i and a != axis]
    own = [a for a in of_i if a not in shared]
    move_x, move_i = mover(of_x, [*shared, *rest, axis]), mover(of_i, [*shared, *own])
    finish = mover([*shared, *rest, *own], node.type.axes)

    def gather(inputs: Sequence[Value]) -> Tensor:
        x = move_x(inputs[0])
        i = inputs[1] if isinstance(inputs[1], Tensor) else torch.tensor([[inputs[1]]], device=x.device)
        i = move_i(i).long()
        many = _LEAD + len(shared)
        lead = torch.broadcast_shapes(x.shape[:many], i.shape[:many])
        sizes, of_own = x.shape[many:-1], i.shape[many:]
        x = x.expand(*lead, *x.shape[many:]).reshape(*lead, sizes.numel(), x.shape[-1])
        i = i.expand(*lead, *of_own).reshape(*lead, 1, of_own.numel())
        inside = (i >= 0) & (i < x.shape[-1])
        place = torch.where(inside, i, 0).expand(*lead, sizes.numel(), of_own.numel())
        outside = x.new_full((), fill)
        found = torch.where(inside, x.gather(-1, place), outside)
        return finish(found.reshape(*lead, *sizes, *of_own))

    return gather


def _concat(node: Node, axes: Sequence[tuple[str, ...]]) -> Kernel:
    axis = str(node.attrs["axis"])
    dim = _LEAD + node.type.axes.index(axis)
    fits = [
        (slice(None), slice(None), *(slice(None) if name in have else None for name in node.type.axes)) for have in axes
    ]

    def concat(inputs: Sequence[Value]) -> Tensor:
        parts = [x[fit] for x, fit in zip(inputs, fits, strict=True)]  # type: ignore[index]
        shapes = [[1 if at == dim else size for at, size in enumerate(part.shape)] for part in parts]
        common = list(torch.broadcast_shapes(*shapes))
        return torch.cat([p.expand(*common[:dim], p.shape[dim], *common[dim + 1 :]) for p in parts], dim)

    return concat


def shape_kernel(program: Program, index: int, sizes: Sequence[dict[str, int]], static: Static) -> Kernel | None:
    """The function that computes node `index` from its inputs' values, or None where the op is not one of these.

    `sizes`: those of every node's axes other than ``page``.
    """
    node = program.nodes[index]
    axes = [program.nodes[i].type.axes for i in node.inputs]
    attrs: dict[str, Any] = dict(node.attrs)
    op = node.op
    if op == "gather":
        return _gather(node, axes)
    if op == "concat":
        return _concat(node, axes)
    if op == "split":
        axis, name = attrs["axis"], attrs["name"]
        dim, parts = _LEAD + axes[0].index(axis), (sizes[index][name], sizes[index][axis])
        move = mover([y for x in axes[0] for y in ((name, axis) if x == axis else (x,))], node.type.axes)
        return lambda inputs: move(inputs[0].unflatten(dim, parts))  # type: ignore[union-attr]
    if op == "rename":
        move = mover([attrs["new"] if x == attrs["old"] else x for x in axes[0]], node.type.axes)
        return lambda inputs: move(inputs[0])
    if op == "merge":
        first, second, name = attrs["first"], attrs["second"], attrs["name"]
        left = [x for x in axes[0] if x not in (first, second)]
        gathered, finish = mover(axes[0], [*left, first, second]), mover([*left, name], node.type.axes)
        return lambda inputs: finish(gathered(inputs[0]).flatten(-2))
    if op not in ("slice", "shift", "window", "scan", "sort", "argmax"):
        return None
    axis = attrs["axis"]
    dim = _LEAD + axes[0].index(axis)
    if op == "slice":
        start, stop = slice_bounds(node, sizes[node.inputs[0]][axis], static)
        return lambda inputs: inputs[0].narrow(dim, start, stop - start)  # type: ignore[union-attr]
    if op == "shift":
        return lambda inputs: shifted(inputs[0], dim, attrs["by"], attrs["fill"])  # type: ignore[arg-type]
    if op == "window":
        place = mover([*axes[0], attrs["name"]], node.type.axes)
        return lambda inputs: place(windows(inputs[0], dim, attrs["size"], attrs["fill"]))  # type: ignore[arg-type]
    if op == "scan":
        return lambda inputs: running(inputs[0].float(), dim, attrs["how"])  # type: ignore[union-attr]
    if op == "sort":
        down = attrs["how"] == "down"
        return lambda inputs: inputs[0].sort(dim, descending=down).values  # type: ignore[union-attr]
    return lambda inputs: largest_at(inputs[0], dim)  # type: ignore[arg-type]
