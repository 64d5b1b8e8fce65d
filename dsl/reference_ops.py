"""The reference meaning of every operation on tensors: named axes, one small tensor at a time.

A `Value` is a tensor with an axis name for each dimension. A value that has the axis ``page`` is kept as a plain
Python list with one `Value` (of the other axes) per candidate page, so an operation below never sees that axis;
what runs *over* pages takes the whole list (`reference_pages`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.dsl.ir import BOOL, FLOAT, FP8, INT, Node, Static, ordered, slice_bounds
from vortexlab.dsl.scalars import Scalar

#: Integers that come out of `floor` and `ceil` of a tensor stay within this magnitude (exact in fp32 and int32).
TENSOR_INT_LIMIT = 2**30

STORED = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip
#: The precisions that saturate.
SATURATING = tuple(STORED[name] for name in FP8)


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

    def size(self, axis: str) -> int:
        return self.tensor.shape[self.axes.index(axis)]


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
    """Rounded to nearest even in `stored` and read back. Program values are fp32, so fp32 comes first.

    The fp8 precisions saturate: beyond the largest finite number is that number; NaN stays NaN.
    """
    if stored == torch.float64:
        return tensor
    single = tensor.to(torch.float32)
    if stored in SATURATING:
        most = torch.finfo(stored).max
        single = single.clamp(-most, most)
    return single.to(stored).to(tensor.dtype)


def scaled(tensor: Tensor, stored: torch.dtype) -> Tensor:
    """Rule 10, fp8 summaries: one field of one page and KV head as it is read back.

    Stored is the saturating cast of x / scale, read back stored * scale.
    """
    single = tensor.to(torch.float32)
    scale = summary_scale(single, stored)
    return (rounded(single / scale, stored) * scale).to(tensor.dtype)


def summary_scale(single: Tensor, stored: torch.dtype) -> Tensor:
    """The one fp32 scale of a field of a page and KV head: the largest magnitude over the largest finite number of the
    precision, or 1 where that is no normal fp32 number (all zero, not finite)."""
    scale = single.abs().amax() / torch.finfo(stored).max
    return scale if torch.finfo(torch.float32).tiny <= scale < torch.inf else torch.ones_like(scale)


def summary(tensor: Tensor, stored: torch.dtype) -> Tensor:
    """A field of one page and KV head as selection reads it: rounded to the precision that it is stored in."""
    return scaled(tensor, stored) if stored in SATURATING else rounded(tensor, stored)


def apply(
    node: Node,
    inputs: Sequence[Value],
    dtype: torch.dtype,
    sizes: Mapping[str, int] | None = None,
    static: Static | None = None,
) -> Value:
    """One operation on values without the axis ``page``.

    `sizes` are those of the result's axes, `static` the layer; `index` and `slice` need them.
    """
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
        return Value(reduced(inputs[0].tensor, str(node.attrs["how"]), axis, node.type.kind, dtype), left)
    if node.op == "dot":
        axes = ordered({*inputs[0].axes, *inputs[1].axes})
        a, b = (of_kind(value.along(axes), FLOAT, dtype) for value in inputs)
        left = tuple(name for name in axes if name != node.attrs["axis"])
        return Value((a * b).sum(axes.index(str(node.attrs["axis"]))), left)
    if node.op in _ALONG:
        return _ALONG[node.op](node, inputs, dtype, str(node.attrs["axis"]))
    if node.op == "merge":
        return _merge(inputs[0], str(node.attrs["first"]), str(node.attrs["second"]), str(node.attrs["name"]))
    if node.op == "index":
        name = str(node.attrs["axis"])
        return Value(torch.arange(inputs[0].size(name) if inputs else (sizes or {})[name]), (name,))
    if node.op == "slice":
        assert static is not None
        name = str(node.attrs["axis"])
        start, stop = slice_bounds(node, inputs[0].size(name), static)
        return Value(inputs[0].tensor.narrow(inputs[0].axes.index(name), start, stop - start), inputs[0].axes)
    raise AssertionError(f"{node.op} is no operation on tensors")


def combine(values: list[Value], how: str, dtype: torch.dtype) -> Value:
    """Sum, mean, max or min of equally shaped values (those of the KV heads)."""
    return Value(reduced(torch.stack([v.tensor for v in values]), how, 0, FLOAT, dtype), values[0].axes)


def reduced(tensor: Tensor, how: str, axis: int, kind: str, dtype: torch.dtype) -> Tensor:
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


def _merge(value: Value, first: str, second: str, name: str) -> Value:
    """Two axes as one, the first the slower: the inverse of `split`."""
    rest = [axis for axis in value.axes if axis not in (first, second)]
    tensor = value.tensor.permute([value.axes.index(axis) for axis in (first, second, *rest)])
    return _in_order(tensor.flatten(0, 1), [name, *rest])


def _concat(node: Node, inputs: Sequence[Value], dtype: torch.dtype, axis: str) -> Value:
    """One after the other along an axis; the others broadcast."""
    axes = ordered({name for value in inputs for name in value.axes})
    parts = [of_kind(value.along(axes), node.type.kind, dtype) for value in inputs]
    at = axes.index(axis)
    shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    whole = [part.expand([*shape[:at], part.shape[at], *shape[at + 1 :]]) for part in parts]
    return Value(torch.cat(whole, at), axes)


def _gather(node: Node, inputs: Sequence[Value], dtype: torch.dtype, axis: str) -> Value:
    """out[...] = x[axis = i[...]]; an index that is none of 0..size-1 gives `fill`."""
    x, i = inputs
    size = x.size(axis)
    left = ordered({*x.axes, *i.axes} - ({axis} - set(i.axes)))
    # The axis that is read gets a name of its own: `i` may have an axis of that name too.
    source = Value(x.tensor.movedim(x.axes.index(axis), 0), ("*", *(name for name in x.axes if name != axis)))
    places = i.along(left)
    parts = [source.tensor[j] for j in range(size)]
    rest = source.axes[1:]
    result = filled(node, places.shape, dtype)
    for j, part in enumerate(parts):
        result = torch.where(places == j, of_kind(Value(part, rest).along(left), node.type.kind, dtype), result)
    return Value(result, left)


def _shift(node: Node, inputs: Sequence[Value], dtype: torch.dtype, axis: str) -> Value:
    """out[i] = x[i - by]; outside: `fill`."""
    parts = inputs[0].tensor.unbind(inputs[0].axes.index(axis))
    by = int(node.attrs["by"])  # type: ignore[arg-type]
    moved = [neighbour(node, parts, i - by, dtype) for i in range(len(parts))]
    return Value(torch.stack(moved, inputs[0].axes.index(axis)), inputs[0].axes)


def _window(node: Node, inputs: Sequence[Value], dtype: torch.dtype, axis: str) -> Value:
    """out[i, j] = x[i + j - size // 2]; outside: `fill`."""
    x, size = inputs[0], int(node.attrs["size"])  # type: ignore[arg-type]
    at = x.axes.index(axis)
    parts = x.tensor.unbind(at)
    rows = [
        torch.stack([neighbour(node, parts, i + j - size // 2, dtype) for j in range(size)]) for i in range(len(parts))
    ]
    rest = [name for name in x.axes if name != axis]
    return _in_order(torch.stack(rows), [axis, str(node.attrs["name"]), *rest])


def filled(node: Node, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What stands outside an axis: the node's `fill` in the node's kind."""
    return of_kind(torch.full(tuple(shape), float(node.attrs["fill"])), node.type.kind, dtype)  # type: ignore[arg-type]


def neighbour(node: Node, parts: Sequence[Tensor], place: int, dtype: torch.dtype) -> Tensor:
    """The part at a place of an axis, or what stands outside."""
    inside = 0 <= place < len(parts)
    return of_kind(parts[place], node.type.kind, dtype) if inside else filled(node, parts[0].shape, dtype)


def _scan(node: Node, inputs: Sequence[Value], dtype: torch.dtype, axis: str) -> Value:
    """The running sum, maximum or minimum, each place included, ascending."""
    at = inputs[0].axes.index(axis)
    how, total, sums = str(node.attrs["how"]), None, []
    for part in of_kind(inputs[0].tensor, node.type.kind, dtype).unbind(at):
        total = part if total is None else _RUNNING[how](total, part)
        sums.append(total)
    return Value(torch.stack(sums, at), inputs[0].axes)


def _sort(node: Node, inputs: Sequence[Value], dtype: torch.dtype, axis: str) -> Value:
    """The values along an axis in order, the largest first or the smallest."""
    at = inputs[0].axes.index(axis)
    ordered_values = torch.sort(inputs[0].tensor, dim=at, descending=node.attrs["how"] == "down").values
    return Value(ordered_values, inputs[0].axes)


def _argmax(node: Node, inputs: Sequence[Value], dtype: torch.dtype, axis: str) -> Value:
    """The first place of the largest value along an axis; 0 where one of them is NaN."""
    at = inputs[0].axes.index(axis)
    left = tuple(name for name in inputs[0].axes if name != axis)
    best, place = None, torch.zeros(())
    for number, part in enumerate(inputs[0].tensor.unbind(at)):
        if best is None:
            best, place = part, torch.zeros(part.shape, dtype=torch.int64)
        else:
            place = torch.where(part > best, number, place)
            best = torch.maximum(best, part)
    return Value(torch.where(torch.isnan(best.double()), 0, place), left)  # type: ignore[union-attr]


_RUNNING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add, "max": torch.maximum, "min": torch.minimum,
}  # fmt: skip
_Along = Callable[[Node, Sequence[Value], torch.dtype, str], Value]
#: Operations along one axis of the value, or that make one longer.
_ALONG: dict[str, _Along] = {
    "concat": _concat, "gather": _gather, "shift": _shift, "window": _window, "scan": _scan, "sort": _sort,
    "argmax": _argmax,
}  # fmt: skip


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
