"""Exact scalars: one implementation for all executors, with an answer for everything."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Program, Static
from vortexlab.dsl.scalars import (
    INT_LIMIT,
    depends_on_length,
    is_exact,
    pages_of,
    round_to,
    scalar_function,
    scalar_value,
)
from vortexlab.dsl.testing import random_program

STATIC = Static(kv_heads=2, group=4, head_dim=80, scale=80**-0.5, layer=3, layers=28)


def program_of(expression: str) -> Program:
    return parse(f"@program(page=24)\nclass P:\n    def select(ctx):\n        return first({expression})\n").bind()


def value_of(expression: str, length: int = 1000) -> Any:
    program = program_of(expression)
    return scalar_value(program, program.nodes[program.output].inputs[0], STATIC, length)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("ctx.length + ctx.pages", 1042), ("ctx.page * ctx.layers - ctx.layer", 669), ("ctx.kv_heads * ctx.group", 8),
        ("floor(ctx.scale * ctx.scale * 800)", 10), ("ceil(0.1 * 30)", 3), ("floor(0.29 * 100)", 28),
        ("ctx.length // 7", 142), ("-ctx.length // 7", -143), ("-ctx.length % 7", 1), ("ctx.length % -7", -1),
        ("ctx.length // 0", 0), ("ctx.length % 0", 0), ("floor(1 / (ctx.length - 1000))", INT_LIMIT),
        ("floor(0 / (ctx.length - 1000))", 0), ("ceil(-1 / (ctx.length - 1000))", -INT_LIMIT),
        ("floor(log(-1.0))", 0), ("floor(exp(1000.0))", INT_LIMIT), ("floor(log(0.0))", -INT_LIMIT),
        ("ctx.length * 2000000000 * ctx.length * ctx.length", INT_LIMIT), ("floor(sqrt(ctx.length))", 31),
        ("where(ctx.length > 999, 3, 4)", 3), ("where((ctx.layer == 3) and not (ctx.pages < 2), 1, 2)", 1),
        ("max(2, min(ctx.pages, 9))", 9), ("abs(3 - ctx.length)", 997), ("floor(100 * sigmoid(0.0))", 50),
        ("floor(10 * silu(1.0))", 7), ("floor(10 * tanh(1.0))", 7), ("relu(-3)", 0), ("floor(float(7) / 2)", 3),
    ],
)  # fmt: skip
def test_values(expression: str, value: int) -> None:
    found = value_of(expression)
    assert found == value and type(found) is int


def test_length_and_pages_at_the_edges_of_pages() -> None:
    assert [value_of("ctx.pages", n) for n in (1, 23, 24, 25, 48, 49)] == [1, 1, 1, 2, 2, 3]
    assert [pages_of(n, 1) for n in (1, 2)] == [1, 2]


def test_what_is_exact() -> None:
    text = (
        "@program(page=8)\nclass P:\n    budget = knob.int(1, 9, default=4)\n    def summarize(k):\n"
        "        return dict(c=k.mean(token))\n    def score(q, s):\n        return dot(q, s.c, channel).max(head)\n"
        "    def select(score, ctx):\n        return topk(score, floor(score.mean(page)) + budget)"
        " | first(budget + ctx.pages // 4)\n"
    )
    program = parse(text).bind()
    exact = {node.op for i, node in program if is_exact(program, i)}
    assert exact == {"const", "ctx", "add", "floordiv"}
    assert not any(is_exact(program, i) for i, node in program if node.type.kind == SET or node.op == "floor")
    first = next(node for _, node in program if node.op == "first").inputs[0]
    assert depends_on_length(program, first) and scalar_value(program, first, STATIC, 64) == 6
    topk = next(node for _, node in program if node.op == "topk").inputs[1]
    assert not is_exact(program, topk)
    with pytest.raises(VortexError, match="no exact scalar"):
        scalar_value(program, topk, STATIC, 64)
    with pytest.raises(VortexError, match=r"ctx.pages is not known here"):
        scalar_value(program, first, STATIC, None)
    unbound = parse(text)
    knob = next(i for i, node in unbound if node.op == "knob")
    with pytest.raises(VortexError, match="bind the program first"):
        scalar_value(unbound, knob, STATIC, 64)


def test_nothing_that_a_random_program_computes_raises() -> None:
    seen = 0
    for seed in range(300):
        program = parse(random_program(random.Random(seed))).bind()
        for index in program.live():
            if program.nodes[index].stage == "query" and is_exact(program, index):
                for length in (1, 7, 4096, 10**6):
                    value = scalar_value(program, index, STATIC, length)
                    kind = {"int": int, "float": float, "bool": bool}[program.nodes[index].type.kind]
                    assert type(value) is kind
                    seen += 1
    assert seen > 10_000


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_rounding_equals_that_of_torch(dtype: str) -> None:
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    rng = random.Random(0)
    numbers = [rng.uniform(-1, 1) * 10.0 ** rng.randint(-45, 40) for _ in range(3000)]
    numbers += [0.0, -0.0, math.inf, -math.inf, 65504.0, 65519.99, 65520.0, 3.3895e38, 3.4e38, 3.5e38, 1 + 2**-8, 1e-8]
    numbers += [1 + 3 * 2**-8, 2**-133, 2**-134 * 1.5]
    for number in numbers:
        wanted = torch.tensor(number, dtype=torch.float64).float().to(kinds[dtype]).double().item()
        assert round_to(number, dtype) == wanted, number
    assert math.isnan(round_to(math.nan, dtype))


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "maximum", "minimum"])
def test_arithmetic_is_ieee(op: str) -> None:
    numpy_op = {"div": "divide", "mul": "multiply", "sub": "subtract"}.get(op, op)
    values = [0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324]
    with np.errstate(all="ignore"):
        for a in values:
            for b in values:
                wanted = float(getattr(np, numpy_op)(np.float64(a), np.float64(b)))
                found = scalar_function(op)(a, b)
                assert found == wanted or (math.isnan(found) and math.isnan(wanted)), (op, a, b)
