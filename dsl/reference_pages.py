"""The reference meaning of operations over the candidate pages: one `Value` per page goes in, the whole list at once.

Stacking the list makes ``page`` an axis like any other, first in stored order, so that what runs along an axis means
the same here as in `reference_ops`; only what there is to say about no page at all is said here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from vortexlab.dsl import reference_ops as ops
from vortexlab.dsl.ir import BOOL, FLOAT, INT, Node
from vortexlab.dsl.reference_ops import TENSOR_INT_LIMIT, Result, Value, as_value, of_kind, reduced
from vortexlab.dsl.scalars import Scalar

#: Operations that see all candidate pages at once when their axis is ``page``.
OVER_PAGES = ("softmax", "reduce", "index", "gather", "shift", "window", "scan", "sort", "argmax")


def is_over_pages(node: Node) -> bool:
    return node.op in OVER_PAGES and node.attrs.get("axis", "page") == "page"


def apply_over_pages(
    node: Node, inputs: Sequence[Result], dtype: torch.dtype, pages: int, sizes: Mapping[str, int]
) -> Value | list[Value]:
    """One operation over the `pages` candidate pages; `sizes` are those of the result's other axes."""
    if node.op == "index":
        return [Value(torch.tensor(page)) for page in range(pages)]
    if node.op == "softmax":
        return softmax_pages(_listed(inputs[0]), dtype)
    if node.op == "reduce":
        return reduce_pages(node, _listed(inputs[0]), dtype, list(sizes.values()), str(node.attrs["how"]))
    if node.op == "gather":
        return _gather_pages(node, _listed(inputs[0]), inputs[1], dtype, sizes)
    values = _listed(inputs[0])
    if node.op == "argmax":
        if not values:
            return Value(torch.zeros(tuple(sizes.values()), dtype=torch.int64), node.type.axes)
        return ops.apply(node, [_stacked(values)], dtype)
    return _by_page(ops.apply(node, [_stacked(values)], dtype)) if values else []


def _listed(result: Result) -> list[Value]:
    assert isinstance(result, list)
    return result


def _stacked(values: list[Value]) -> Value:
    return Value(torch.stack([value.tensor for value in values]), ("page", *values[0].axes))


def _by_page(value: Value) -> list[Value]:
    assert value.axes[0] == "page"
    return [Value(part, value.axes[1:]) for part in value.tensor.unbind(0)]


def _gather_pages(
    node: Node, values: list[Value], places: Result, dtype: torch.dtype, sizes: Mapping[str, int]
) -> Value | list[Value]:
    """Reads pages by number; a number that is no candidate page gives `fill`."""

    def one(item: Scalar | Value) -> Value:
        if values:
            return ops.apply(node, [_stacked(values), as_value(item, dtype)], dtype)
        axes = tuple(sizes)
        return Value(ops.filled(node, list(sizes.values()), dtype), axes)

    if isinstance(places, list):
        return [one(item) for item in places]
    return one(places)


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
    return Value(reduced(torch.stack([v.tensor for v in values]), how, 0, kind, dtype), values[0].axes)


def softmax_pages(values: list[Value], dtype: torch.dtype) -> list[Value]:
    """Softmax over the candidate pages, for every place of the other axes by itself."""
    if not values:
        return []
    mass = torch.softmax(torch.stack([of_kind(v.tensor, FLOAT, dtype) for v in values]), 0)
    return [Value(mass[page], v.axes) for page, v in enumerate(values)]
