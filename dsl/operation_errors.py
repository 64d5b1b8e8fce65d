"""How far fp32 arithmetic may take one operation's value from the reference, from how far its inputs may be.

The bounds are first order in the unit roundoff and per operation (Higham, Accuracy and Stability of Numerical
Algorithms, ch. 3). A discontinuous step (rounding to storage, `floor`, comparisons, the place of a maximum) is
evaluated at both ends of the bound; what could come out as anything has an infinite bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vortexlab.dsl import reference_ops as ops
from vortexlab.dsl.ir import INT, Node, Static, ordered
from vortexlab.dsl.reference_ops import Value

UNIT = 2.0**-24
LARGEST = torch.finfo(torch.float32).max
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Bounded:
    """A value of the reference (float64) and the bound on an executor's distance from it, both of axes `axes`.

    `error` is 0 where the executor must have the very same number and infinite where it may have any. Truth values
    are 0 and 1, and open where the error is 1. Values of the page stage have a leading axis ``page``.
    """

    value: Tensor
    error: Tensor
    axes: tuple[str, ...] = ()

    def along(self, axes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        return Value(self.value, self.axes).along(axes), Value(self.error, self.axes).along(axes)


def gap(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|, 0 between equal infinities and between NaNs."""
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)


def finish(value: Tensor, error: Tensor) -> Tensor:
    """Unknown bounds become infinite; a finite number that fp32 cannot hold may come out as anything."""
    error = torch.where(error.isnan(), math.inf, error)
    over = value.isfinite() & (value.abs() + error > LARGEST)
    return torch.where(over, math.inf, error)


def _times(size: Tensor, error: Tensor) -> Tensor:
    """|size| * error, where a zero error stays zero beside an infinite size."""
    return torch.where(error == 0, 0.0, size.abs() * error)


def monotone(function: Callable[[Tensor], Tensor], x: Tensor, e: Tensor) -> Tensor:
    """How far an increasing function's value may move when its argument moves by at most `e`."""
    y = function(x)
    moved = torch.maximum(gap(function(x + e), y), gap(function(x - e), y))
    return torch.where(e == 0, 0.0, torch.where(y.isnan(), math.inf, moved))


def rounding(dtype: str) -> Callable[[Tensor], Tensor]:
    stored = torch.float64 if dtype == "fp64" else ops.STORED[dtype]
    return lambda x: ops.rounded(x, stored)


def _rounded_once(value: Tensor, error: Tensor, units: float = 1.0) -> Tensor:
    """Adds the rounding of one operation whose exact result fp32 need not hold."""
    held = value.float().double() == value
    return torch.where((error == 0) & held, 0.0, error + units * UNIT * value.abs() + SMALLEST)


def _finite(x: Tensor) -> Tensor:
    return x.abs().nan_to_num(posinf=0.0)


_SPREAD: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    # increasing functions: the function, and what its evaluation in fp32 adds at argument x and value y
    "exp": (torch.exp, lambda x, y: (4 + _finite(x)) * UNIT * y),
    "log": (lambda x: torch.log(x.clamp(min=0)), lambda x, y: 4 * UNIT * y.abs() + 8 * UNIT),
    "sqrt": (lambda x: torch.sqrt(x.clamp(min=0)), lambda x, y: 4 * UNIT * y),
    "sigmoid": (torch.sigmoid, lambda x, y: (8 + _finite(x)) * UNIT * y),
    "tanh": (torch.tanh, lambda x, y: torch.full_like(y, 8 * UNIT)),
}


def operation_error(node: Node, inputs: list[Bounded], known: Bounded, static: Static) -> Tensor:
    """The bound of a node's value from those of its inputs."""
    op, value = node.op, known.value
    if op == "index":
        return torch.zeros_like(value)
    if op in _MOVES:
        return moved_error(node, inputs, value, static)
    if op in ("gather", "scan", "sort", "argmax"):
        return _ALONG[op](node, inputs, known)
    if op == "reduce":
        axis = inputs[0].axes.index(str(node.attrs["axis"]))
        return reduce_error(str(node.attrs["how"]), inputs[0], axis, value)
    if op in ("lt", "le", "eq", "ne", "sub") and node.inputs[0] == node.inputs[1] and inputs[0].value.isfinite().all():
        return torch.zeros_like(value)
    if op == "dot":
        axes = ordered({*inputs[0].axes, *inputs[1].axes})
        (a, ea), (b, eb) = inputs[0].along(axes), inputs[1].along(axes)
        terms = Bounded(a * b, _product_error(a, ea, b, eb), axes)
        return reduce_error("sum", terms, axes.index(str(node.attrs["axis"])), value, products=True)
    if op == "softmax":
        return _softmax_error(inputs[0], value)
    aligned = [item.along(known.axes) for item in inputs]
    x, e = aligned[0]
    if op in _SPREAD:
        function, own = _SPREAD[op]
        error = monotone(function, x, e) + torch.where(value.isfinite(), own(x, value), 0.0) + SMALLEST
        error = torch.where(value.isinf() & (e == 0), 0.0, error)
        return torch.where((value == 0) & (e == 0) & (op == "sqrt"), 0.0, error)
    if op in ("neg", "abs", "relu", "float"):
        return e
    if op in ("floor", "ceil"):
        return monotone(torch.floor if op == "floor" else torch.ceil, x, e)
    if op == "cast":
        return monotone(rounding(str(node.attrs["dtype"])), x, e)
    if op == "silu":
        return 1.1 * e + (8 + x.abs()) * UNIT * value.abs() + SMALLEST
    if op == "not":
        return e
    return _binary_error(node, aligned, value)


def _product_error(a: Tensor, ea: Tensor, b: Tensor, eb: Tensor) -> Tensor:
    return _times(a, eb) + _times(b, ea) + _times(ea, eb)


def _binary_error(node: Node, inputs: list[tuple[Tensor, Tensor]], value: Tensor) -> Tensor:
    op = node.op
    (a, ea), (b, eb) = inputs[0], inputs[1]
    if op == "where":
        (x, ex), (y, ey) = inputs[1], inputs[2]
        both = torch.maximum(torch.maximum(ex, ey), gap(x, y) + torch.maximum(ex, ey))
        return torch.where(ea > 0, both, torch.where(a != 0, ex, ey)).expand_as(value)
    if op in ("lt", "le", "eq", "ne"):
        reach = ea + eb
        return ((reach > 0) & ~(gap(a, b) > reach)).double()
    if op in ("and", "or"):
        decides = 0.0 if op == "and" else 1.0
        decided = ((a == decides) & (ea == 0)) | ((b == decides) & (eb == 0))
        return (~decided & ((ea > 0) | (eb > 0))).double()
    if op in ("maximum", "minimum"):
        low, high = ((a, ea), (b, eb)) if op == "minimum" else ((-a, ea), (-b, eb))
        first = low[0] + low[1] <= high[0] - high[1]
        second = high[0] + high[1] <= low[0] - low[1]
        return torch.where(first, ea, torch.where(second, eb, torch.maximum(ea, eb)))
    if op in ("floordiv", "mod"):
        return torch.where((ea > 0) | (eb > 0), math.inf, 0.0)
    if op in ("add", "sub"):
        error = ea + eb
    elif op == "mul":
        error = _product_error(a, ea, b, eb)
    else:
        assert op == "div"
        return _quotient_error(a, ea, b, eb, value)
    if node.type.kind == INT:
        return error
    error = torch.where(value.isfinite(), _rounded_once(value, error), error)
    return torch.where(~value.isfinite() & (ea == 0) & (eb == 0), 0.0, error)


def _quotient_error(a: Tensor, ea: Tensor, b: Tensor, eb: Tensor, value: Tensor) -> Tensor:
    exact = (ea == 0) & (eb == 0)
    power = torch.frexp(b.abs()).mantissa == 0.5
    same = exact & ((power & (value.float().double() == value)) | (a == 0) | (b == 0))
    error = (ea + _times(value, eb)) / (b.abs() - eb).clamp(min=0) + 4 * UNIT * value.abs() + SMALLEST
    return torch.where(same, 0.0, torch.where(b.abs() <= eb, math.inf, error))


def exact_sum(terms: Bounded, axis: int) -> Tensor:
    """Where adding the terms is exact in fp32 in any order: all are multiples of 2^-24 of a power of two that their
    absolute sum stays under."""
    total = terms.value.abs().sum(axis, keepdim=True)
    exponent = torch.frexp(total).exponent
    scaled = torch.ldexp(terms.value, 24 - exponent)
    return ((scaled == scaled.round()) & (terms.error == 0)).all(axis) & total.squeeze(axis).isfinite()


def _overflowing(size: Tensor, error: Tensor) -> Tensor:
    """`error`, infinite where terms of the absolute sum `size` may leave the range of fp32 on the way to their sum."""
    return torch.where(size.isfinite() & (size > LARGEST), math.inf, error)


def reduce_error(how: str, terms: Bounded, axis: int, value: Tensor, *, products: bool = False) -> Tensor:
    """The bound of a reduction over dimension `axis`; `products` when each term is a product rounded by itself."""
    x, e = terms.value, terms.error
    n = x.shape[axis]
    if n == 0:
        return torch.zeros_like(value)
    if how in ("max", "min"):
        best = (lambda t: t.amax(axis)) if how == "max" else (lambda t: t.amin(axis))
        return torch.maximum(gap(best(x + e), value), gap(best(x - e), value))
    if how == "norm":
        squares = Bounded(x * x, 2 * _times(x, e) + _times(e, e), terms.axes)
        total = squares.value.sum(axis)
        error = reduce_error("sum", squares, axis, total, products=True)
        root = monotone(lambda t: torch.sqrt(t.clamp(min=0)), total, error) + 4 * UNIT * value + SMALLEST
        return torch.where((total == 0) & (error == 0), 0.0, root)
    exact = exact_sum(terms, axis)
    size = (x.abs() + e).sum(axis)
    spread = e.sum(axis) + (n + 1 + products) * UNIT * size + SMALLEST
    spread = torch.where(value.isinf() & (e == 0).all(axis), 0.0, _overflowing(size, spread))
    if how == "sum":
        return torch.where(exact, 0.0, spread)
    exact &= (value == 0) | (((n & (n - 1)) == 0) & (value.float().double() == value))
    return torch.where(exact, 0.0, spread / n + 2 * UNIT * value.abs() + SMALLEST)


def _softmax_error(x: Bounded, value: Tensor) -> Tensor:
    if value.shape[0] == 0:
        return torch.zeros_like(value)
    reach = torch.where(x.value == -math.inf, 0.0, x.error)
    distance = (x.value.amax(0, keepdim=True) - x.value).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    worst = (reach + UNIT * (x.value.abs().nan_to_num(posinf=0.0) + distance + 4)).amax(0, keepdim=True)
    return value * (torch.expm1(2 * worst) + (value.shape[0] + 16) * UNIT) + SMALLEST


#: Operations that bring numbers to other places and leave them as they are.
_MOVES = ("split", "rename", "merge", "slice", "concat", "shift", "window")


def moved_error(node: Node, inputs: Sequence[Bounded], value: Tensor, static: Static) -> Tensor:
    """Errors move with their numbers; what is filled in is known, as far as fp32 holds it."""
    if value.numel() == 0:
        return torch.zeros_like(value)
    errors = [Value(item.error, item.axes) for item in inputs]
    if "fill" not in node.attrs:
        return ops.apply(_of_floats(node), errors, torch.float64, static=static).tensor
    fill = torch.tensor(float(node.attrs["fill"]), dtype=torch.float64)  # type: ignore[arg-type]
    marked = _of_floats(node, fill=float(gap(fill, fill.float().double())))
    return ops.apply(marked, errors, torch.float64, static=static).tensor


def _of_floats(node: Node, **attrs: float) -> Node:
    """The node on errors, which are floats whatever the values are."""
    return replace(node, type=replace(node.type, kind="float"), attrs={**node.attrs, **attrs})


def _gather_error(node: Node, inputs: Sequence[Bounded], known: Bounded) -> Tensor:
    """That of what is read; where the index is open, any place of the axis or none may be."""
    x, i = inputs
    value = known.value
    if value.numel() == 0 or x.value.numel() == 0:
        return torch.zeros_like(value)
    at = x.axes.index(str(node.attrs["axis"]))
    fill = torch.tensor(float(node.attrs["fill"]), dtype=torch.float64)  # type: ignore[arg-type]
    marked = _of_floats(node, fill=float(gap(fill, fill.float().double())))
    exact = ops.apply(marked, [Value(x.error, x.axes), Value(i.value.long(), i.axes)], torch.float64).tensor
    rest = tuple(axis for axis in x.axes if axis != node.attrs["axis"])
    worst = gap(fill, value)
    for j in range(x.value.shape[at]):
        part, error = (Value(t.select(at, j), rest).along(known.axes) for t in (x.value, x.error))
        worst = torch.maximum(worst, gap(part, value) + error)
    return torch.where(Value(i.error, i.axes).along(known.axes) > 0, worst, exact)


def _scan_error(node: Node, inputs: Sequence[Bounded], known: Bounded) -> Tensor:
    x, e, value = inputs[0].value, inputs[0].error, known.value
    at = inputs[0].axes.index(str(node.attrs["axis"]))
    if value.numel() == 0:
        return torch.zeros_like(value)
    if node.attrs["how"] == "sum":
        size = (x.abs() + e).cumsum(at)
        spread = _overflowing(size, e.cumsum(at) + (x.shape[at] + 1) * UNIT * size + SMALLEST)
        return torch.where(exact_sum(inputs[0], at).unsqueeze(at), 0.0, spread)
    run = (lambda t: t.cummax(at).values) if node.attrs["how"] == "max" else (lambda t: t.cummin(at).values)
    return torch.maximum(gap(run(x + e), value), gap(run(x - e), value))


def _sort_error(node: Node, inputs: Sequence[Bounded], known: Bounded) -> Tensor:
    """The n-th largest of numbers that each move by at most e lies between those of x - e and x + e."""
    x, e = inputs[0].value, inputs[0].error
    at = inputs[0].axes.index(str(node.attrs["axis"]))
    ends = [torch.sort(t, dim=at, descending=node.attrs["how"] == "down").values for t in (x + e, x - e)]
    return torch.maximum(gap(ends[0], known.value), gap(ends[1], known.value))


def _argmax_error(node: Node, inputs: Sequence[Bounded], known: Bounded) -> Tensor:
    """The farthest place that may be the first largest."""
    at = inputs[0].axes.index(str(node.attrs["axis"]))
    parts = [(x - e, x + e) for x, e in zip(inputs[0].value.unbind(at), inputs[0].error.unbind(at), strict=True)]
    worst = torch.zeros_like(known.value)
    for j, (_, high) in enumerate(parts):
        possible = torch.ones_like(high, dtype=torch.bool)
        for i, (low, _) in enumerate(parts):
            if i != j:
                possible &= (high > low) if i < j else (high >= low)
        worst = torch.where(possible, torch.maximum(worst, (known.value - j).abs()), worst)
    return worst


_ALONG: dict[str, Callable[[Node, Sequence[Bounded], Bounded], Tensor]] = {
    "gather": _gather_error, "scan": _scan_error, "sort": _sort_error, "argmax": _argmax_error,
}  # fmt: skip


def stored_error(x: Bounded, dtype: str, lead: int) -> Tensor:
    """The bound of a summary that is stored in a precision; `lead` dimensions in front count pages.

    In fp8 the scale moves with the largest number, and the grid with it: two roundings of numbers that are at most e
    apart are at most e and one step of the grid apart. What is known exactly is stored exactly.
    """
    if dtype not in _GRID:
        return monotone(rounding(dtype), x.value, x.error)
    step, least = _GRID[dtype]
    size = x.value.abs() + x.error
    whole = size.flatten(lead).amax(1) if size.dim() > lead else size
    scale = (whole / torch.finfo(ops.STORED[dtype]).max).view(*whole.shape, *[1] * (size.dim() - lead))
    spread = x.error + size * step + scale * least + torch.where(scale < 2 * SMALLEST, size, 0.0)
    exact = (x.error == 0).flatten(lead).all(1) if size.dim() > lead else x.error == 0
    return torch.where(exact.view(*exact.shape, *[1] * (size.dim() - lead)), 0.0, spread)


#: A step between neighbours relative to the number, and the least step relative to the scale.
_GRID = {"fp8_e4m3": (2.0**-3, 2.0**-9), "fp8_e5m2": (2.0**-2, 2.0**-16)}
