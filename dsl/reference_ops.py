"""The reference meaning of every operation on tensors: named axes, one small tensor at a time.

A `Value` is a tensor with an axis name for each dimension. A value that has the axis ``page`` is kept as a plain
Python list with one `Value` (of the other axes) per candidate page, so an operation below never sees that axis;
what runs *over* pages takes the list (`reduce_pages`, `softmax_pages`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.dsl.ir import BOOL, FLOAT, INT, Node, ordered
from vortexlab.dsl.scalars import Scalar

#: Integers that come out of `floor` and `ceil` of a tensor stay within this magnitude (exact in fp32 and int32).
TENSOR_INT_LIMIT = 2**30

STORED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Value:
    """A tensor whose dimensions are named, in stored order."""

    tensor: Tensor
    axes: tuple[str, ...] = ()

    def along(self, axes: tuple[str, ...]) -> Tensor:
        """The tensor with one dimension for each of `axes`, of size 1 where the value lacks it."""
        if axes == self.axes:
            return self.tensor
        return self.tensor[tuple(slice(None) if axis in self.axes else None for axis in axes)]


#: What a node computes: a number known exactly, a tensor, or one tensor per candidate page.
Result = Scalar | Value | list[Value]


def as_value(result: Scalar | Value, dtype: torch.dtype) -> Value:
    """An exact scalar as a tensor: floats in the tensors' precision, ints and truth values in their own kinds."""
    if isinstance(result, Value):
        return result
    kinds = {bool: torch.bool, int: torch.int64, float: dtype}
    return Value(torch.tensor(result, dtype=kinds[type(result)]))


def of_kind(tensor: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    return tensor.to({FLOAT: dtype, INT: torch.int64, BOOL: torch.bool}[kind])


def rounded(tensor: Tensor, stored: torch.dtype) -> Tensor:
    """Rounded to nearest even in `stored` and read back. Program values are fp32, so fp32 comes first."""
    if stored == torch.float64:
        return tensor
    return tensor.to(torch.float32).to(stored).to(tensor.dtype)


def apply(node: Node, inputs: Sequence[Value], dtype: torch.dtype) -> Value:
    """One operation on values without the axis ``page``."""
    if node.op in _ELEMENTWISE:
        return _elementwise(node, inputs, dtype)
    if node.op == "cast":
        return Value(rounded(of_kind(inputs[0].tensor, FLOAT, dtype), STORED[str(node.attrs["dtype"])]), inputs[0].axes)
    if node.op == "split":
        return _split(inputs[0], str(node.attrs["axis"]), str(node.attrs["name"]), int(node.attrs["size"]))  # type: ignore[arg-type]
    if node.op == "rename":
        renamed = [str(node.attrs["new"]) if axis == node.attrs["old"] else axis for axis in inputs[0].axes]
        return _in_order(inputs[0].tensor, renamed)
    if node.op == "reduce":
        axis = inputs[0].axes.index(str(node.attrs["axis"]))
        left = tuple(name for name in inputs[0].axes if name != node.attrs["axis"])
        return Value(_reduce(inputs[0].tensor, str(node.attrs["how"]), axis, node.type.kind, dtype), left)
    if node.op == "dot":
        axes = ordered({*inputs[0].axes, *inputs[1].axes})
        a, b = (of_kind(value.along(axes), FLOAT, dtype) for value in inputs)
        left = tuple(name for name in axes if name != node.attrs["axis"])
        return Value((a * b).sum(axes.index(str(node.attrs["axis"]))), left)
    raise AssertionError(f"{node.op} is no operation on tensors")


def reduce_pages(node: Node, values: list[Value], dtype: torch.dtype, shape: Sequence[int], how: str) -> Value:
    """A reduction over the candidate pages; with none of them it gives the operation's neutral element.

    `shape`: sizes of the value's other axes, needed when there is no page.
    """
    kind = node.type.kind
    if not values:
        neutral = {
            "sum": 0, "mean": 0, "norm": 0,
            "max": {FLOAT: -torch.inf, INT: -TENSOR_INT_LIMIT, BOOL: False}[kind],
            "min": {FLOAT: torch.inf, INT: TENSOR_INT_LIMIT, BOOL: True}[kind],
        }[how]  # fmt: skip
        return Value(of_kind(torch.full(tuple(shape), neutral), kind, dtype), node.type.axes)
    return Value(_reduce(torch.stack([v.tensor for v in values]), how, 0, kind, dtype), values[0].axes)


def softmax_pages(values: list[Value], dtype: torch.dtype) -> list[Value]:
    """Softmax over the candidate pages, for every place of the other axes by itself."""
    if not values:
        return []
    mass = torch.softmax(torch.stack([of_kind(v.tensor, FLOAT, dtype) for v in values]), 0)
    return [Value(mass[page], v.axes) for page, v in enumerate(values)]


def combine(values: list[Value], how: str, dtype: torch.dtype) -> Value:
    """Sum, mean, max or min of equally shaped values (those of the KV heads)."""
    return Value(_reduce(torch.stack([v.tensor for v in values]), how, 0, FLOAT, dtype), values[0].axes)


def _reduce(tensor: Tensor, how: str, axis: int, kind: str, dtype: torch.dtype) -> Tensor:
    if how in ("mean", "norm"):
        tensor = of_kind(tensor, FLOAT, dtype)
        return tensor.mean(axis) if how == "mean" else (tensor * tensor).sum(axis).sqrt()
    tensor = of_kind(tensor, kind, dtype)
    if how == "sum":
        return tensor.sum(axis)
    return tensor.amax(axis) if how == "max" else tensor.amin(axis)


def _elementwise(node: Node, inputs: Sequence[Value], dtype: torch.dtype) -> Value:
    axes = ordered({axis for value in inputs for axis in value.axes})
    tensors = [value.along(axes) for value in inputs]
    if node.op == "where":
        chosen = [of_kind(t, node.type.kind, dtype) for t in tensors[1:]]
        result = torch.where(tensors[0], chosen[0], chosen[1])
    else:
        if node.type.kind != BOOL and node.op not in ("floor", "ceil"):
            tensors = [of_kind(t, node.type.kind, dtype) for t in tensors]
        result = _ELEMENTWISE[node.op](*tensors)
    return Value(of_kind(result, node.type.kind, dtype), axes)


def _split(value: Value, axis: str, name: str, count: int) -> Value:
    """Cuts an axis into `count` equal runs, in order: element i goes to run ``i // (size / count)``."""
    at = value.axes.index(axis)
    size = value.tensor.shape[at]
    return _in_order(
        value.tensor.unflatten(at, (count, size // count)), [*value.axes[:at], name, axis, *value.axes[at + 1 :]]
    )


def _in_order(tensor: Tensor, axes: Sequence[str]) -> Value:
    target = ordered(tuple(axes))
    return Value(tensor.permute([axes.index(axis) for axis in target]), target)


def _to_int(rounding: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def convert(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return rounding(x).nan_to_num(nan=0.0).clamp(-TENSOR_INT_LIMIT, TENSOR_INT_LIMIT)

    return convert


def _floordiv(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0, torch.div(a, torch.where(b == 0, 1, b), rounding_mode="floor"))


def _mod(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0, torch.remainder(a, torch.where(b == 0, 1, b)))


_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
    "floor": _to_int(torch.floor),
    "ceil": _to_int(torch.ceil),
    "float": lambda x: x,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floordiv": _floordiv,
    "mod": _mod,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "lt": torch.lt,
    "le": torch.le,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "where": torch.where,
}
