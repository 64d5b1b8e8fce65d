"""The numeric ops of the language on torch tensors.

A value is a tensor ``[x, y, *axes]``: two leading dimensions that the caller loops over in one call (requests and KV
heads in the query stage, KV heads and pages in the page stage; either may be 1 and broadcasts), then the node's named
axes in stored order. An exact scalar is a Python number, or a tensor ``[x, 1]`` where it differs by request.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.ir import BOOL, FLOAT, INT, Node, Program, Static
from vortexlab.kernels.precision import TORCH_DTYPES, cast
from vortexlab.kernels.torch_shapes import Kernel, Value, mover, shape_kernel

#: Integers computed from tensors saturate here, far beyond any count of pages or tokens.
INT_LIMIT = 2**30


def _whole(x: Tensor) -> Tensor:
    return torch.nan_to_num(x.double(), 0.0).clamp(-INT_LIMIT, INT_LIMIT).long()


def _integer(op: Callable[[Any, Any], Any]) -> Callable[[Value, Value], Tensor]:
    """`//` and `%` on ints: 0 where the divisor is 0, rounded and signed as Python does."""

    def divide(a: Value, b: Value) -> Tensor:
        a, b = _tensors(a, b)
        return torch.where(b == 0, 0, op(a, torch.where(b == 0, 1, b)))

    return divide


def _tensors(a: Value, b: Value) -> tuple[Tensor, Tensor]:
    device = a.device if isinstance(a, Tensor) else b.device  # type: ignore[union-attr]
    return torch.as_tensor(a, device=device), torch.as_tensor(b, device=device)


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
    "floor": lambda x: _whole(torch.floor(x)),
    "ceil": lambda x: _whole(torch.ceil(x)),
    "float": lambda x: x.float(),
    "not": torch.logical_not,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": _integer(operator.floordiv),
    "mod": _integer(operator.mod),
    "maximum": lambda a, b: torch.maximum(*_tensors(a, b)),
    "minimum": lambda a, b: torch.minimum(*_tensors(a, b)),
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": lambda a, b: torch.logical_and(*_tensors(a, b)),
    "or": lambda a, b: torch.logical_or(*_tensors(a, b)),
}


def operand_kind(program: Program, node: Node, source: int) -> str:
    """The kind that the number `source` takes part in the node's arithmetic as."""
    if node.op == "where" and source == node.inputs[0]:
        return BOOL
    kinds = {program.nodes[i].type.kind for i in node.inputs}
    if node.op in ("lt", "le", "eq", "ne"):
        return FLOAT if FLOAT in kinds else (INT if INT in kinds else BOOL)
    return node.type.kind


def as_kind(value: int | float | bool, kind: str) -> int | float | bool:
    if kind == FLOAT:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return bool(value) if kind == BOOL else int(value)


def aligner(have: tuple[str, ...], want: tuple[str, ...]) -> Callable[[Value], Value]:
    """Gives a value of axes `have` a dimension of size 1 for every axis of `want` that it lacks."""
    if have == want:
        return lambda x: x
    pattern = (slice(None), slice(None), *(slice(None) if axis in have else None for axis in want))
    return lambda x: x[pattern] if isinstance(x, Tensor) else x


def reduction(how: str, dim: int) -> Callable[[Tensor], Tensor]:
    if how == "sum":
        return lambda x: x.sum(dim)
    if how == "mean":
        return lambda x: x.mean(dim)
    if how == "max":
        return lambda x: x.amax(dim)
    if how == "min":
        return lambda x: x.amin(dim)
    return lambda x: (x * x).sum(dim).sqrt()


def contraction(a: tuple[str, ...], b: tuple[str, ...], axis: str, out: tuple[str, ...]) -> Kernel:
    """Sum over `axis` of the product of values with axes `a` and `b`.

    A matrix product when each side has axes of its own, or when nothing but the contracted axis is shared;
    otherwise products and a sum.
    """
    shared = [x for x in out if x in a and x in b]
    left = [x for x in out if x in a and x not in b]
    right = [x for x in out if x in b and x not in a]
    if (shared and not (left and right)) or not (left or right):
        union = (*out, axis)
        order_a, order_b = [[x for x in union if x in side] for side in (a, b)]
        move_a, move_b = mover(a, order_a), mover(b, order_b)
        fit_a, fit_b = aligner(tuple(order_a), union), aligner(tuple(order_b), union)

        def plain(inputs: Sequence[Value]) -> Tensor:
            return (fit_a(move_a(inputs[0])) * fit_b(move_b(inputs[1]))).sum(-1)  # type: ignore[union-attr]

        return plain

    move_a, move_b = mover(a, [*shared, *left, axis]), mover(b, [*shared, *right, axis])
    finish = mover((*shared, *left, *right), list(out))
    finish_swapped = mover((*shared, *right, *left), list(out))
    lead = 2 + len(shared)

    def product(inputs: Sequence[Value]) -> Tensor:
        x, y = move_a(inputs[0]), move_b(inputs[1])
        rows, columns = x.shape[lead:-1], y.shape[lead:-1]
        x = x.reshape(*x.shape[:lead], rows.numel(), x.shape[-1])
        y = y.reshape(*y.shape[:lead], columns.numel(), y.shape[-1])
        # The long operand goes first: CPU libraries stream it from memory twice as fast there.
        if columns.numel() > rows.numel():
            z = torch.matmul(y, x.transpose(-1, -2))
            return finish_swapped(z.reshape(*z.shape[:lead], *columns, *rows))
        z = torch.matmul(x, y.transpose(-1, -2))
        return finish(z.reshape(*z.shape[:lead], *rows, *columns))

    return product


def make_kernel(program: Program, index: int, sizes: Sequence[dict[str, int]], static: Static) -> Kernel:
    """The function that computes one elementwise, shape, reduction or contraction node from its inputs' values."""
    node = program.nodes[index]
    moved = shape_kernel(program, index, sizes, static)
    if moved is not None:
        return moved
    axes = [program.nodes[i].type.axes for i in node.inputs]
    if node.op == "cast":
        dtype = TORCH_DTYPES[str(node.attrs["dtype"])]
        return lambda inputs: cast(inputs[0], dtype).float()  # type: ignore[arg-type]
    if node.op == "reduce":
        reduce = reduction(str(node.attrs["how"]), 2 + axes[0].index(str(node.attrs["axis"])))
        if node.type.kind == FLOAT and program.nodes[node.inputs[0]].type.kind != FLOAT:
            return lambda inputs: reduce(inputs[0].float())  # type: ignore[union-attr]
        return lambda inputs: reduce(inputs[0])  # type: ignore[arg-type]
    if node.op == "dot":
        return contraction(axes[0], axes[1], str(node.attrs["axis"]), node.type.axes)
    if node.op in _UNARY:
        unary = _UNARY[node.op]
        return lambda inputs: unary(inputs[0])  # type: ignore[arg-type]
    fits = [aligner(have, node.type.axes) for have in axes]
    if node.op == "where":
        fit_c, fit_a, fit_b = fits

        def choose(inputs: Sequence[Value]) -> Tensor:
            condition = fit_c(inputs[0])
            a, b = fit_a(inputs[1]), fit_b(inputs[2])
            if not isinstance(condition, Tensor):
                condition = _tensors(condition, a if isinstance(a, Tensor) else b)[0]
            return torch.where(condition, a, b)

        return choose
    binary = _BINARY[node.op]
    fit_a, fit_b = fits
    return lambda inputs: binary(fit_a(inputs[0]), fit_b(inputs[1]))
