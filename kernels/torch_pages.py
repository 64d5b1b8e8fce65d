"""Ops over the candidate pages of a batch whose rows have different numbers of them.

A paged value is ``[rows, kv_heads, pages, *axes]``; columns past a row's candidates hold anything, and none of it may
reach a result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vortexlab.dsl.ir import BOOL, FLOAT, INT, Node
from vortexlab.kernels.torch_ops import INT_LIMIT
from vortexlab.kernels.torch_shapes import Kernel, Value


def masked(value: Tensor, live: Tensor, fill: float) -> Tensor:
    """`value` with `fill` in the columns that are no candidates of their row; `live`: bool [rows, 1, pages]."""
    live = live.view(*live.shape, *[1] * (value.dim() - 3))
    return torch.where(live, value, value.new_full((), fill))


def across_pages(
    node: Node, value: Tensor, others: Sequence[Value], kind: str, live: Tensor, heads: int, kernel: Kernel | None
) -> Tensor:
    """One op over the pages of `value`, a value of `kind`; `others` are the op's further inputs.

    `live`: bool [rows, 1, pages]; `kernel`: the op along an axis that is all there.
    """
    op = node.op
    if op == "softmax":
        return masked(value.float(), live, float("-inf")).softmax(2)
    if op == "share":
        return _share(value.expand(value.shape[0], heads, *value.shape[2:]), str(node.attrs["how"]))
    if op == "reduce":
        return _reduce(value, live, str(node.attrs["how"]), node.type.kind)
    assert kernel is not None
    if op == "scan":  # runs upwards, so that what lies behind the candidates comes too late to matter
        return kernel([value])
    if op in ("sort", "argmax"):
        down = op == "argmax" or node.attrs["how"] == "down"
        return kernel([masked(value, live, _end(kind, not down))])
    return kernel([masked(value, live, float(node.attrs["fill"])), *others])  # type: ignore[arg-type]


def _end(kind: str, high: bool) -> float:
    """What stands behind every number of a kind when the larger come last (`high`), or when they come first."""
    if kind == BOOL:
        return float(high)
    size = float(2**52) if kind == INT else float("inf")
    return size if high else -size


def _share(value: Tensor, how: str) -> Tensor:
    if how == "max":
        return value.amax(1, keepdim=True)
    return value.sum(1, keepdim=True) if how == "sum" else value.mean(1, keepdim=True)


def _reduce(value: Tensor, live: Tensor, how: str, kind: str) -> Tensor:
    if kind == FLOAT:
        value = value.float()
    if how in ("max", "min"):
        none = {BOOL: 0.0 if how == "max" else 1.0, INT: float(INT_LIMIT)}.get(kind, float("inf"))
        value = masked(value, live, -none if how == "max" else none)
        return value.amax(2) if how == "max" else value.amin(2)
    value = masked(value, live, 0.0)
    if how == "norm":
        return (value * value).sum(2).sqrt()
    total = value.sum(2)
    if how == "mean":
        total = total / live.sum(2).clamp(min=1).view(-1, *[1] * (total.dim() - 1))
    return total
