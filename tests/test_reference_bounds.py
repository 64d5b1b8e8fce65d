"""Bounds on selection: never exceeded on random programs, and as tight as the programs people write allow."""

from __future__ import annotations

import math
import random

import pytest
import torch

from vortexlab.dsl import parse
from vortexlab.dsl.bounds import page_bound, scalar_bound, selector_bound
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Program, Static
from vortexlab.dsl.reference import decode_steps, run
from vortexlab.dsl.scalars import is_exact, pages_of, scalar_value
from vortexlab.dsl.testing import random_case, random_course, random_program

STATIC = Static(kv_heads=2, group=4, head_dim=16, scale=0.25, layer=1, layers=4)


def program_of(body: str, score: str = "dot(q, s.c, channel).max(head)", page: int = 16) -> Program:
    return parse(
        f"@program(page={page})\nclass P:\n    def summarize(k):\n        return dict(c=k.mean(token))\n"
        f"    def score(q, s, ctx):\n        return {score}\n    def select(score, ctx):\n        return {body}\n"
    ).bind()


@pytest.mark.parametrize(
    ("body", "length", "bound"),
    [
        ("topk(score, 64) | first(1) | last(2)", 1 << 20, 67),
        ("topk(score, 64) | first(1)", 1 << 20, 66),
        ("topk(score, 64)", 160, 10),
        ("everything()", 4096, 256),
        ("first(4) | last(8)", 4096, 12),
        ("first(4) - first(2)", 4096, 5),
        ("stride(8)", 4096, 33),
        ("topk(score, ctx.pages - ctx.pages // 2)", 4096, 132),
        ("topk(score, floor(sqrt(ctx.pages)))", 4096, 17),
        ("topk(score, where(ctx.layer < 2, 8, 100))", 4096, 9),
        ("topp(score, 0.9, max=20)", 4096, 21),
        ("topp(score, 0.9)", 4096, 256),
        ("above(score, 1.0, max=12, among=first(5))", 4096, 6),
        ("topk(score, floor(8 * sigmoid(score.mean(page))))", 4096, 9),
        ("topk(score, floor(clamp(score.max(page), 0.0, 20.0)))", 4096, 21),
        ("random(ctx.length // 100)", 4096, 41),
        ("~last(ctx.pages - 3) & first(7)", 4096, 8),
        ("where(ctx.length > 5000, everything(), last(3))", 4096, 3),
        ("topk(score, ctx.length % 10)", 4096, 10),
    ],
)
def test_bounds_are_tight(body: str, length: int, bound: int) -> None:
    assert page_bound(program_of(body), STATIC, length) == bound


def test_selector_bound_is_of_one_selector() -> None:
    program = program_of("topk(score, 5) | stride(4)")
    bounds = {node.op: selector_bound(program, i, STATIC, 640) for i, node in program if node.type.kind == SET}
    assert bounds == {"topk": 5, "stride": 10, "union": 15}
    with pytest.raises(VortexError, match="makes no set"):
        selector_bound(program, 0, STATIC, 640)
    with pytest.raises(VortexError, match="at least 1 token"):
        page_bound(program, STATIC, 0)


@pytest.mark.parametrize("start", range(0, 120, 30))
def test_no_random_program_exceeds_its_bound(start: int) -> None:
    longest = 300
    for seed in range(start, start + 30):
        case = random_case(seed, parse(random_program(random.Random(seed))), max_length=longest)
        bound = page_bound(case.program, case.static, longest)
        step = run(case.program, case.static, case.q, case.keys, case.values, keep_values=True)
        assert bound <= pages_of(longest, case.program.page_size)
        for selection in step.selections:
            assert all(len(pages) <= bound for lists in selection.lists for pages in lists), seed
            for values in selection.values:
                for index, node in case.program:
                    if node.type.kind == SET and index in values:
                        most = selector_bound(case.program, index, case.static, longest)
                        assert all(len(pages) <= most for pages in values[index]), (seed, index)


def test_no_random_program_of_the_whole_language_exceeds_its_bound() -> None:
    """Over steps and layers: sets that are remembered or reused were made at shorter lengths or in lower layers."""
    kept = 0
    for seed in range(60):
        program = parse(random_program(random.Random(seed), whole=True))
        course = random_course(seed, program, layers=2, steps=5, max_length=90, latent=True)
        case = course.case
        rows = [[x[:, 0] for x in course.q], [x[0] for x in course.keys], [x[0] for x in course.values]]
        found = decode_steps(case.program, case.static, torch.stack(rows[0], 1), rows[1], rows[2], keep_values=True)
        for layer, static in enumerate(course.statics):
            bound = page_bound(case.program, static, case.lengths[0])
            for selection in (step[layer] for step in found):
                assert all(len(pages) <= bound for lists in selection.lists for pages in lists), seed
                for values in selection.values:
                    for index, node in case.program:
                        if node.type.kind == SET and index in values:
                            most = selector_bound(case.program, index, static, case.lengths[0])
                            assert all(len(pages) <= most for pages in values[index]), (seed, index)
                            kept += node.op in ("memory", "reuse")
    assert kept > 100


def test_exact_scalars_stay_inside_their_intervals() -> None:
    longest, seen = 700, 0
    for seed in range(300):
        program = parse(random_program(random.Random(seed))).bind()
        for index in program.live():
            if program.nodes[index].stage == "page" or not is_exact(program, index):
                continue
            interval = scalar_bound(program, index, STATIC, longest)
            for length in random.Random(seed).sample(range(1, longest + 1), 12):
                value = float(scalar_value(program, index, STATIC, length))
                assert interval.nan if math.isnan(value) else interval.low <= value <= interval.high, (seed, index)
                seen += 1
    assert seen > 10_000
