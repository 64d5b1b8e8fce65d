"""How far an executor in fp32 may lie from the reference, computed and not guessed.

Beside every value of a reference run goes a bound on what correct fp32 arithmetic may make of it: any order of
summation, fused multiply-adds, a mean as a product with 1/n, a few units in the last place for division, roots and
transcendental functions. Where every operation is exact in fp32 (small integers, dyadic fractions) the bound is 0. A
discontinuous step (rounding to storage, `floor`, comparisons) is evaluated at both ends of the bound.

`open_pages` turns the bounds of scores and numbers into what a correct executor must and may select: a page may
differ from the reference only where its score, or the mass before it, lies within these bounds of the cut.
The bounds are first order in the unit roundoff and per operation (Higham, Accuracy and Stability of Numerical
Algorithms, ch. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.dsl import reference_ops as ops
from vortexlab.dsl.ir import FLOAT, INT, PAGE_STAGE, SET, Node, Program, Static, ordered
from vortexlab.dsl.reference import Lists, Selection
from vortexlab.dsl.reference_ops import Value
from vortexlab.dsl.reference_sets import list_of_head, own_page
from vortexlab.dsl.scalars import is_exact
from vortexlab.dsl.selection_bounds import PageMask, Uncertain, open_set

UNIT = 2.0**-24
LARGEST = torch.finfo(torch.float32).max
SMALLEST = torch.finfo(torch.float32).tiny
_NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


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


def open_pages(
    program: Program, static: Static, selection: Selection, length: int, cache_dtype: torch.dtype
) -> list[list[tuple[frozenset[int], frozenset[int]]]]:
    """What a correct executor selects: [kv head][list] -> (pages it must read, pages it may read).

    `selection` is that of `reference.select_one` with ``keep_values=True``, in float64.
    """
    own = own_page(length, program.page_size)
    numbers = error_bounds(program, static, selection, cache_dtype)
    result = []
    for kv in range(static.kv_heads):
        sets: dict[int, list[PageMask]] = {}
        for index in program.live():
            if program.nodes[index].type.kind == SET:
                sets[index] = _open_set(program, static, program.nodes[index], numbers[kv], sets, kv, length)
        per_list = []
        for mask in sets[program.output]:
            must, may = ({own, *part.nonzero()[:, 0].tolist()} for part in (mask.must, mask.may))
            per_list.append((frozenset(must), frozenset(may)))
        result.append(per_list)
    return result


def error_bounds(
    program: Program, static: Static, selection: Selection, cache_dtype: torch.dtype
) -> list[dict[int, Bounded]]:
    """For each KV head, every live number of a reference run with its bound, by node.

    `selection` is that of `reference.select_one` with ``keep_values=True``, in float64.
    """
    sizes = program.axis_sizes(static)
    numbers: list[dict[int, Bounded]] = [{} for _ in selection.values]
    # Summaries first: the query stage reads them.
    for index in sorted(program.live(), key=lambda i: (program.nodes[i].stage != PAGE_STAGE, i)):
        node = program.nodes[index]
        if node.type.kind == SET:
            continue
        leaf = not node.inputs or is_exact(program, index)
        for kv, values in enumerate(selection.values):
            known = _stacked(node, values.get(index, []), list(sizes[index].values()), leaf)
            if node.op == "field":
                source = numbers[kv][program.fields[str(node.attrs["name"])]]
                stored = _NAMES[cache_dtype] if program.summary_dtype == "kv" else program.summary_dtype
                error = _monotone(_rounding(stored), source.value, source.error)
            elif node.op == "share":
                heads = [of_head[node.inputs[0]] for of_head in numbers]
                across = Bounded(torch.stack([x.value for x in heads]), torch.stack([x.error for x in heads]))
                error = _reduce_error(str(node.attrs["how"]), across, 0, known.value)
            else:
                error = known.error if leaf else _error(node, [numbers[kv][i] for i in node.inputs], known)
            numbers[kv][index] = Bounded(known.value, _finish(known.value, error), known.axes)
    return numbers


def attention_tolerance(
    page: int, static: Static, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], lists: list[list[Lists]]
) -> Tensor:
    """Largest admissible |executor - reference| of attention under the same lists, per row: [batch, query_heads].

    The logits' rounding (growing with the square root of the width) moves every weight by its exponential; the rest
    is rounding of the weighted sum. Shapes as in `reference.attend`, in float64.
    """
    bound = torch.empty(q.shape[:2], dtype=torch.float64)
    for b, (k, v) in enumerate(zip(keys, values, strict=True)):
        for head in range(q.shape[1]):
            kv = head // static.group
            pages = lists[b][kv][list_of_head(head % static.group, lists[b][kv])]
            tokens = [t for p in pages for t in range(p * page, min((p + 1) * page, k.shape[1]))]
            logits = static.scale * (k[kv, tokens] @ q[b, head])
            size = abs(static.scale) * (k[kv, tokens].abs() @ q[b, head].abs())
            shift = (math.sqrt(k.shape[2]) + 8) * UNIT * size + 4 * UNIT * (logits.max() - logits)
            weight = torch.softmax(logits, 0)
            # A weight may take over all others when its logit moves far; min keeps the bound at "any convex mix".
            moved = torch.expm1(2 * shift.max()).clamp(max=2.0)
            reach = (weight[:, None] * v[kv, tokens].abs()).sum(0).max()
            if moved >= 2.0:
                reach = v[kv, tokens].abs().max()
            bound[b, head] = reach * (moved + (math.sqrt(len(tokens)) + 16) * UNIT)
    return bound


def _stacked(node: Node, result: object, shape: list[int], leaf: bool) -> Bounded:
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
    return Bounded(value, _gap(value, value.float().double()) if rounded else torch.zeros_like(value), axes)


def _gap(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|, 0 between equal infinities and between NaNs."""
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)


def _finish(value: Tensor, error: Tensor) -> Tensor:
    """Unknown bounds become infinite; a finite number that fp32 cannot hold may come out as anything."""
    error = torch.where(error.isnan(), math.inf, error)
    over = value.isfinite() & (value.abs() + error > LARGEST)
    return torch.where(over, math.inf, error)


def _times(size: Tensor, error: Tensor) -> Tensor:
    """|size| * error, where a zero error stays zero beside an infinite size."""
    return torch.where(error == 0, 0.0, size.abs() * error)


def _monotone(function: Callable[[Tensor], Tensor], x: Tensor, e: Tensor) -> Tensor:
    """How far an increasing function's value may move when its argument moves by at most `e`."""
    y = function(x)
    moved = torch.maximum(_gap(function(x + e), y), _gap(function(x - e), y))
    return torch.where(e == 0, 0.0, torch.where(y.isnan(), math.inf, moved))


def _rounding(dtype: str) -> Callable[[Tensor], Tensor]:
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


def _error(node: Node, inputs: list[Bounded], known: Bounded) -> Tensor:
    """The bound of a node's value from those of its inputs."""
    op, value = node.op, known.value
    if op in ("split", "rename"):
        return ops.apply(node, [Value(inputs[0].error, inputs[0].axes)], torch.float64).tensor
    if op == "reduce":
        axis = inputs[0].axes.index(str(node.attrs["axis"]))
        return _reduce_error(str(node.attrs["how"]), inputs[0], axis, value)
    if op in ("lt", "le", "eq", "ne", "sub") and node.inputs[0] == node.inputs[1] and inputs[0].value.isfinite().all():
        return torch.zeros_like(value)
    if op == "dot":
        axes = ordered({*inputs[0].axes, *inputs[1].axes})
        (a, ea), (b, eb) = inputs[0].along(axes), inputs[1].along(axes)
        terms = Bounded(a * b, _product_error(a, ea, b, eb), axes)
        return _reduce_error("sum", terms, axes.index(str(node.attrs["axis"])), value, products=True)
    if op == "softmax":
        return _softmax_error(inputs[0], value)
    aligned = [item.along(known.axes) for item in inputs]
    x, e = aligned[0]
    if op in _SPREAD:
        function, own = _SPREAD[op]
        error = _monotone(function, x, e) + torch.where(value.isfinite(), own(x, value), 0.0) + SMALLEST
        error = torch.where(value.isinf() & (e == 0), 0.0, error)
        return torch.where((value == 0) & (e == 0) & (op == "sqrt"), 0.0, error)
    if op in ("neg", "abs", "relu", "float"):
        return e
    if op in ("floor", "ceil"):
        return _monotone(torch.floor if op == "floor" else torch.ceil, x, e)
    if op == "cast":
        return _monotone(_rounding(str(node.attrs["dtype"])), x, e)
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
        both = torch.maximum(torch.maximum(ex, ey), _gap(x, y) + torch.maximum(ex, ey))
        return torch.where(ea > 0, both, torch.where(a != 0, ex, ey)).expand_as(value)
    if op in ("lt", "le", "eq", "ne"):
        reach = ea + eb
        return ((reach > 0) & ~(_gap(a, b) > reach)).double()
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


def _exact_sum(terms: Bounded, axis: int) -> Tensor:
    """Where adding the terms is exact in fp32 in any order: all are multiples of 2^-24 of a power of two that their
    absolute sum stays under."""
    total = terms.value.abs().sum(axis, keepdim=True)
    exponent = torch.frexp(total).exponent
    scaled = torch.ldexp(terms.value, 24 - exponent)
    return ((scaled == scaled.round()) & (terms.error == 0)).all(axis) & total.squeeze(axis).isfinite()


def _reduce_error(how: str, terms: Bounded, axis: int, value: Tensor, *, products: bool = False) -> Tensor:
    """The bound of a reduction over dimension `axis`; `products` when each term is a product rounded by itself."""
    x, e = terms.value, terms.error
    n = x.shape[axis]
    if n == 0:
        return torch.zeros_like(value)
    if how in ("max", "min"):
        best = (lambda t: t.amax(axis)) if how == "max" else (lambda t: t.amin(axis))
        return torch.maximum(_gap(best(x + e), value), _gap(best(x - e), value))
    if how == "norm":
        squares = Bounded(x * x, 2 * _times(x, e) + _times(e, e), terms.axes)
        total = squares.value.sum(axis)
        error = _reduce_error("sum", squares, axis, total, products=True)
        root = _monotone(lambda t: torch.sqrt(t.clamp(min=0)), total, error) + 4 * UNIT * value + SMALLEST
        return torch.where((total == 0) & (error == 0), 0.0, root)
    exact = _exact_sum(terms, axis)
    spread = e.sum(axis) + (n + 1 + products) * UNIT * (x.abs() + e).sum(axis) + SMALLEST
    spread = torch.where(value.isinf() & (e == 0).all(axis), 0.0, spread)
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


def _open_set(
    program: Program,
    static: Static,
    node: Node,
    numbers: dict[int, Bounded],
    sets: dict[int, list[PageMask]],
    kv: int,
    length: int,
) -> list[PageMask]:
    """The node's set for every list that its type asks for."""

    def number(index: int, head: int) -> Uncertain:
        item = numbers[index]
        if "head" in item.axes:
            at = item.axes.index("head")
            return Uncertain(item.value.select(at, head), item.error.select(at, head))
        return Uncertain(item.value, item.error)

    result = []
    for head in range(static.group) if node.type.axes else range(1):
        operands: list[PageMask | Uncertain] = []
        for index in node.inputs:
            if program.nodes[index].type.kind == SET:
                operands.append(sets[index][list_of_head(head, sets[index])])
            else:
                operands.append(number(index, head))
        result.append(open_set(program, static, node, operands, kv, length))
    return result
