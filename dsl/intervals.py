"""Arithmetic on intervals: every value that a number may have, from those that its operands may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from vortexlab.dsl.ir import BOOL, FP8, INT, Node
from vortexlab.dsl.reference_ops import TENSOR_INT_LIMIT
from vortexlab.dsl.scalars import INT_LIMIT, scalar_function


@dataclass(frozen=True)
class Interval:
    """Every value that a number may have: within `low`..`high`, or NaN if `nan`."""

    low: float
    high: float
    nan: bool = False

    def hull(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high), self.nan or other.nan)

    @property
    def is_point(self) -> bool:
        return self.low == self.high and not self.nan


ANYTHING = Interval(-math.inf, math.inf, True)
TRUTH = Interval(0, 1)


def widened(x: Interval, node: Node) -> Interval:
    """Leaves room for fp32 rounding in numbers that tensors decide, and for what the reference saturates."""
    if node.type.kind == BOOL:
        return x
    if node.type.kind == INT and node.op in ("floor", "ceil"):
        return Interval(max(x.low, -TENSOR_INT_LIMIT), min(x.high, TENSOR_INT_LIMIT), x.nan)
    if node.type.kind == INT:
        return x
    return Interval(x.low - abs(x.low) * 1e-5 if math.isfinite(x.low) else x.low,
                    x.high + abs(x.high) * 1e-5 if math.isfinite(x.high) else x.high, x.nan)  # fmt: skip


def rounded(x: Interval, dtype: str) -> Interval:
    """Rounding to fewer bits moves a number by less than one part in 128, or past the largest finite one."""
    if dtype in FP8:
        # Rounding to three bits moves a number by less than one part in 8; the ends are where it saturates.
        most = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}[dtype]
        low, high = x.low - abs(x.low) / 8 - 0.01, x.high + abs(x.high) / 8 + 0.01
        return Interval(max(-most, min(most, low)), max(-most, min(most, high)), x.nan)
    largest = 65000.0 if dtype == "fp16" else 3e38
    low = -math.inf if x.low < -largest else x.low - abs(x.low) / 128 - 1e-7
    high = math.inf if x.high > largest else x.high + abs(x.high) / 128 + 1e-7
    return Interval(low, high, x.nan)


def scaled(end: float, count: int) -> float:
    return 0.0 if count == 0 else end * count


MONOTONE = ("neg", "exp", "log", "sqrt", "relu", "sigmoid", "tanh", "floor", "ceil", "not")


def monotone(op: str, x: Interval, node: Node) -> Interval:
    """A function that only rises or only falls: its values at the ends."""
    function = scalar_function(op)
    if op in ("floor", "ceil"):
        low, high = float(function(x.low)), float(function(x.high))
        # NaN counts as 0.
        return Interval(min(low, 0), max(high, 0)) if x.nan else Interval(low, high)
    if op in ("log", "sqrt"):
        low = function(max(x.low, 0.0))
        high = function(max(x.high, 0.0))
        return _outward(float(low), float(high), x.nan or x.low < 0)
    ends = [float(function(x.low)), float(function(x.high))]
    nan = x.nan and op != "not"
    if op in ("neg", "relu", "not"):
        return Interval(min(ends), max(ends), nan)
    return _outward(min(ends), max(ends), nan)


def _outward(low: float, high: float, nan: bool) -> Interval:
    """Transcendental functions of the C library may be off by a unit in the last place."""
    return Interval(math.nextafter(low, -math.inf), math.nextafter(high, math.inf), nan)


def corners(op: str, inputs: list[Interval], node: Node) -> Interval:
    """Arithmetic whose extremes are at the ends of its operands."""
    a, b = inputs
    function = scalar_function(op)
    nan = a.nan or b.nan
    if op == "div" and b.low <= 0 <= b.high:
        return Interval(-math.inf, math.inf, True)
    found = []
    for x in (a.low, a.high):
        for y in (b.low, b.high):
            value = _product(x, y) if op == "mul" else float(function(x, y))
            if math.isnan(value):
                nan = True
                found += [-math.inf, math.inf]
            else:
                found.append(value)
    if op == "mul" and _unbounded(a, b):
        nan = True
    low, high = min(found), max(found)
    if node.type.kind == INT:
        low, high = max(low, -INT_LIMIT), min(high, INT_LIMIT)
    return Interval(low, high, nan)


def _product(x: float, y: float) -> float:
    """0 times an unbounded end is 0: the end is a limit that finite numbers stay under."""
    return 0.0 if x == 0 or y == 0 else x * y


def _unbounded(a: Interval, b: Interval) -> bool:
    """Whether 0 may meet an infinity."""
    return any(x.low <= 0 <= x.high and (math.isinf(y.low) or math.isinf(y.high)) for x, y in ((a, b), (b, a)))


def _floordiv(a: Interval, b: Interval) -> Interval:
    parts = []
    for low, high in ((b.low, min(b.high, -1)), (max(b.low, 1), b.high)):
        if low <= high:
            parts += [_floored(x, y) for x in (a.low, a.high) for y in (low, high)]
    if b.low <= 0 <= b.high:
        parts.append(0.0)
    return Interval(min(parts), max(parts))


def _floored(x: float, y: float) -> float:
    if math.isinf(x) or math.isinf(y):
        return math.copysign(math.inf, x) * math.copysign(1, y) if math.isinf(x) else (0.0 if x * y >= 0 else -1.0)
    return float(int(x) // int(y))


def _mod(a: Interval, b: Interval) -> Interval:
    if a.is_point and b.is_point and math.isfinite(a.low) and math.isfinite(b.low):
        value = float(int(a.low) % int(b.low)) if b.low else 0.0
        return Interval(value, value)
    high = max(0.0, b.high - 1)
    if a.low >= 0 and b.low > a.high:
        return a
    return Interval(min(0.0, b.low + 1), min(high, a.high) if a.low >= 0 and b.low >= 0 else high)


def _absolute(x: Interval) -> Interval:
    ends = (abs(x.low), abs(x.high))
    return Interval(0.0 if x.low <= 0 <= x.high else min(ends), max(ends), x.nan)


def _silu(x: Interval) -> Interval:
    function = scalar_function("silu")
    # The minimum, about -0.2785, lies near -1.28; silu rises above it and falls below.
    ends = [0.0 if math.isinf(end) and end < 0 else float(function(end)) for end in (x.low, x.high)]
    if x.low <= -1.27 and x.high >= -1.29:
        ends.append(-0.27847)
    return _outward(min(ends), max(ends), x.nan or x.low == -math.inf)


def _where(c: Interval, a: Interval, b: Interval) -> Interval:
    if c.is_point:
        return a if c.low else b
    return a.hull(b)


_Relation = Callable[[Interval, Interval], bool]


def _compare(holds: _Relation, fails: _Relation) -> Callable[[Interval, Interval], Interval]:
    def compare(a: Interval, b: Interval) -> Interval:
        if not (a.nan or b.nan):
            if holds(a, b):
                return Interval(1, 1)
            if fails(a, b):
                return Interval(0, 0)
        return TRUTH

    return compare


def _same(a: Interval, b: Interval) -> bool:
    return a.is_point and b.is_point and a.low == b.low


def _apart(a: Interval, b: Interval) -> bool:
    return a.high < b.low or b.high < a.low


BINARY: dict[str, Callable[..., Interval]] = {
    "abs": _absolute,
    "silu": _silu,
    "where": _where,
    "floordiv": _floordiv,
    "mod": _mod,
    "maximum": lambda a, b: Interval(max(a.low, b.low), max(a.high, b.high), a.nan or b.nan),
    "minimum": lambda a, b: Interval(min(a.low, b.low), min(a.high, b.high), a.nan or b.nan),
    "lt": _compare(lambda a, b: a.high < b.low, lambda a, b: a.low >= b.high),
    "le": _compare(lambda a, b: a.high <= b.low, lambda a, b: a.low > b.high),
    "eq": _compare(_same, _apart),
    "ne": _compare(_apart, _same),
    "and": lambda a, b: Interval(min(a.low, b.low), min(a.high, b.high)),
    "or": lambda a, b: Interval(max(a.low, b.low), max(a.high, b.high)),
}
