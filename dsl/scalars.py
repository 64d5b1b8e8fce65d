"""Exact evaluation of the scalars that depend on constants and `ctx` alone.

Budgets, strides and layer conditions must be the same in every executor, so they are never computed in a tensor's
precision: ints are Python ints, floats are float64, and this module is the one implementation. The value of such a
scalar is a function of the layer (`Static`) and of one request's length.

Where arithmetic has no answer the answer is fixed here: ``a // 0`` and ``a % 0`` are 0, ``a / 0`` follows IEEE 754,
``log`` and ``sqrt`` give NaN below 0, `floor` and `ceil` of NaN are 0, and ints saturate at ``INT_LIMIT`` so that no
program can make numbers that take memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import DYNAMIC_CTX, FLOAT, INT, SET, Node, Program, Static

Scalar = int | float | bool

#: Bits of mantissa, exponent of the smallest normal number, largest finite number.
_FP8 = {"fp8_e4m3": (3, -6, 448.0), "fp8_e5m2": (2, -14, 57344.0)}
#: Largest magnitude of an exact integer; float64 holds every integer up to it.
INT_LIMIT = 2**53


def is_exact(program: Program, index: int) -> bool:
    """Whether node `index` is a scalar that depends on constants and `ctx` alone."""
    return all(
        program.nodes[i].type.kind != SET and not program.nodes[i].type.axes and program.nodes[i].op in _EXACT_OPS
        for i in _needed(program, index)
    )


def scalar_value(program: Program, index: int, static: Static, length: int | None) -> Scalar:
    """The value of an exact scalar of a bound program for a request of `length` tokens (the query's own included).

    `length` may be None where the scalar does not depend on it (page stage, layer conditions). Raises `VortexError`
    when the node is no exact scalar, or needs a length and there is none.
    """
    if not is_exact(program, index):
        raise VortexError(f"program {program.name}: node {index} ({program.nodes[index].op}) is no exact scalar")
    values: dict[int, Scalar] = {}
    for i in _needed(program, index):
        node = program.nodes[i]
        values[i] = _evaluate(program, node, [values[j] for j in node.inputs], static, length)
    return values[index]


def depends_on_length(program: Program, index: int) -> bool:
    """Whether an exact scalar reads `ctx.length`, `ctx.pages` or `ctx.position` (else it is one number per layer)."""
    return any(
        program.nodes[i].op == "ctx" and program.nodes[i].attrs["name"] in DYNAMIC_CTX for i in _needed(program, index)
    )


def scalar_function(op: str) -> Callable[..., Scalar]:
    """The exact meaning of an elementwise operation on Python numbers; floats give floats, ints give ints."""
    return _EXACT_OPS[op]


def pages_of(length: int, page: int) -> int:
    """Pages that a request of `length` tokens occupies; the last one is the own page."""
    return (length - 1) // page + 1


def clamp_int(value: int) -> int:
    return max(-INT_LIMIT, min(INT_LIMIT, value))


def round_to(value: float, dtype: str) -> float:
    """`value` rounded to nearest even; beyond the largest finite number it is infinite, in fp8 that number."""
    if dtype in _FP8:
        return _round_fp8(value, *_FP8[dtype])
    if not math.isfinite(value):
        return value
    if dtype == "fp16":
        # The largest finite half is 65504; from 65520 upwards the nearest even would be 65536.
        return math.copysign(math.inf, value) if abs(value) >= 65520 else _through("e", value)
    if dtype == "fp32":
        return math.copysign(math.inf, value) if abs(value) >= 2.0**128 - 2.0**103 else _through("f", value)
    if dtype != "bf16":
        raise VortexError(f"unknown precision {dtype!r}; choose fp32, bf16, fp16, fp8_e4m3 or fp8_e5m2")
    # Programs hold fp32 values, so bf16 is the upper half of the fp32 pattern, rounded to nearest even.
    single = round_to(value, "fp32")
    if not math.isfinite(single):
        return single
    bits = struct.unpack("<I", struct.pack("<f", single))[0]
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _round_fp8(value: float, bits: int, least: int, largest: float) -> float:
    """Saturating: `bits` of mantissa, the smallest normal number 2^least, the largest finite number."""
    if math.isnan(value):
        return value
    value = max(-largest, min(largest, round_to(value, "fp32")))
    exponent = max(math.frexp(value)[1] - 1, least) - bits
    return math.copysign(math.ldexp(round(math.ldexp(value, -exponent)), exponent), value)


def _through(code: str, value: float) -> float:
    return float(struct.unpack("<" + code, struct.pack("<" + code, value))[0])


def _needed(program: Program, index: int) -> list[int]:
    seen: set[int] = set()
    stack = [index]
    while stack:
        i = stack.pop()
        if i not in seen:
            seen.add(i)
            stack.extend(program.nodes[i].inputs)
    return sorted(seen)


def _evaluate(program: Program, node: Node, inputs: list[Scalar], static: Static, length: int | None) -> Scalar:
    if node.op == "const":
        value = node.attrs["value"]
        assert isinstance(value, (int, float))
        return value
    if node.op == "knob":
        raise VortexError(f"program {program.name}: knob {node.attrs['name']} has no value; bind the program first")
    if node.op == "ctx":
        name = str(node.attrs["name"])
        if name not in DYNAMIC_CTX:
            return static.value(name, program.page_size)
        if length is None:
            raise VortexError(f"program {program.name}, line {node.line}: ctx.{name} is not known here")
        return {"length": length, "position": length - 1, "pages": pages_of(length, program.page_size)}[name]
    if node.op == "cast":
        return round_to(float(inputs[0]), str(node.attrs["dtype"]))
    if node.type.kind == FLOAT and node.op != "where":
        inputs = [float(value) for value in inputs]
    result = _EXACT_OPS[node.op](*inputs)
    if node.type.kind == INT:
        return clamp_int(int(result))
    return float(result) if node.type.kind == FLOAT else bool(result)


def _divide(a: float, b: float) -> float:
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _log(x: float) -> float:
    if x == 0:
        return -math.inf
    return math.nan if x < 0 else math.log(x)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _multiply(a: Scalar, b: Scalar) -> Scalar:
    return a * b


def _larger(a: Scalar, b: Scalar) -> Scalar:
    return math.nan if a != a or b != b else max(a, b)


def _smaller(a: Scalar, b: Scalar) -> Scalar:
    return math.nan if a != a or b != b else min(a, b)


def _to_int(rounding: Callable[[float], int]) -> Callable[[float], int]:
    def convert(x: float) -> int:
        if math.isnan(x):
            return 0
        return (INT_LIMIT if x > 0 else -INT_LIMIT) if math.isinf(x) else rounding(x)

    return convert


_EXACT_OPS: dict[str, Callable[..., Scalar]] = {
    "const": lambda: 0,  # leaves and casts need more than their inputs: see `_evaluate`
    "knob": lambda: 0,
    "ctx": lambda: 0,
    "cast": lambda x: x,
    "neg": lambda x: -x,
    "abs": abs,
    "exp": _exp,
    "log": _log,
    "sqrt": lambda x: math.nan if x < 0 else math.sqrt(x),
    "relu": lambda x: _larger(x, 0.0),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": math.tanh,
    "floor": _to_int(math.floor),
    "ceil": _to_int(math.ceil),
    "float": float,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": _multiply,
    "div": _divide,
    "floordiv": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "maximum": _larger,
    "minimum": _smaller,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": lambda a: not a,
    "where": lambda c, a, b: a if c else b,
}
