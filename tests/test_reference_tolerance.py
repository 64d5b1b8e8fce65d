"""Error bounds hold for the reference run in fp32, are 0 where fp32 is exact, and are small where it is not."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from vortexlab.dsl import parse
from vortexlab.dsl.ir import SET, Node, Static
from vortexlab.dsl.operation_errors import Bounded, reduce_error
from vortexlab.dsl.reference import Request, Selection, attend, run, select_one
from vortexlab.dsl.reference_memory import Carry, LayerMemory
from vortexlab.dsl.reference_ops import Value
from vortexlab.dsl.testing import FP8_DTYPES, Case, random_case, random_course, random_program
from vortexlab.dsl.tolerance import attention_tolerance, error_bounds, judge, open_pages


def both(case: Case, row: int) -> tuple[list[dict[int, Bounded]], Selection]:
    """The bounds of one request's float64 run, and its fp32 run."""
    dtype = case.keys[0].dtype
    double, single = (
        select_one(
            case.program, case.static, case.q[row].to(kind), case.keys[row].to(kind), case.values[row].to(kind),
            cache_dtype=dtype, keep_values=True,
        )
        for kind in (torch.float64, torch.float32)
    )  # fmt: skip
    return error_bounds(case.program, case.static, double, case.lengths[row], dtype), single


def tensor_of(result: Any) -> torch.Tensor:
    if isinstance(result, list):
        return torch.stack([item.tensor for item in result]).double()
    return (result.tensor if isinstance(result, Value) else torch.tensor(result)).double()


def test_the_fp32_run_stays_within_the_bounds() -> None:
    numbers = exact = 0
    for seed in range(120):
        case = random_case(seed, parse(random_program(random.Random(seed))), max_length=90)
        bounds, single = both(case, 0)
        for kv, values in enumerate(single.values):
            for index, bound in bounds[kv].items():
                if case.program.nodes[index].type.kind == SET or values.get(index, []) == []:
                    continue
                found = tensor_of(values[index])
                distance = (found - bound.value).abs()
                same = (found == bound.value) | (found.isnan() & bound.value.isnan())
                wrong = ~same & ~(distance <= bound.error)
                # Where the bound is open, anything may come out.
                wrong &= bound.error.isfinite()
                assert not wrong.any(), (seed, index, case.program.nodes[index].op, distance.max())
                numbers += found.numel()
                exact += int((bound.error == 0).sum())
    assert numbers > 1_000_000 and exact > numbers / 2


def test_the_reference_lies_within_what_it_allows() -> None:
    """Also where half precision overflows."""
    kinds = ("huge", "outliers", "normal", "integers")
    for seed in [*range(30), 738]:
        program = parse(random_program(random.Random(seed)))
        case = random_case(seed, program, max_length=120, kinds=kinds, dtypes=(torch.float16,))
        step = run(case.program, case.static, case.q, case.keys, case.values, keep_values=True)
        for selection, length in zip(step.selections, case.lengths, strict=True):
            allowed = open_pages(case.program, case.static, selection, length, torch.float16)
            for lists, bounds in zip(selection.lists, allowed, strict=True):
                for pages, (must, may) in zip(lists, bounds, strict=True):
                    assert selection.nan or must <= set(pages) <= may, (seed, pages, sorted(must), sorted(may))


def outside(node: Node, found: Any, bound: Bounded) -> bool:
    """Whether a run in fp32 left the bound; where that is infinite, anything may come out."""
    number = tensor_of(found)
    same = (number == bound.value) | (number.isnan() & bound.value.isnan())
    return bool((~same & ~((number - bound.value).abs() <= bound.error) & bound.error.isfinite()).any())


def test_runs_in_fp32_stay_within_the_bounds_over_steps_and_layers() -> None:
    """The whole language: memories, reuse, parameters, attention, fp8; what is remembered carries its bound along."""
    judged = sure = outputs = 0
    for seed in range(30):
        program = parse(random_program(random.Random(seed), whole=True))
        course = random_course(seed, program, latent=True, max_length=70, steps=3,
                               dtypes=(torch.float32, torch.bfloat16, *FP8_DTYPES))  # fmt: skip
        bound, statics, dtype = course.case.program, course.statics, course.case.keys[0].dtype
        runs = [Request(bound, statics[0]) for _ in range(2)]
        memories = [LayerMemory() for _ in statics]
        for s in range(course.steps):
            seen = course.case.lengths[0] - (course.steps - 1 - s)
            q = [x[s, 0] for x in course.q]
            k, v = ([x[0][:, :seen] for x in part] for part in (course.keys, course.values))
            exact, single = (
                run.step([x.to(kind) for x in q], [x.to(kind) for x in k], [x.to(kind) for x in v], cache_dtype=dtype,
                         keep_values=True)
                for run, kind in zip(runs, (torch.float64, torch.float32), strict=True)
            )  # fmt: skip
            carry = Carry()
            for layer, static in enumerate(statics):
                tokens = (q[layer].double(), k[layer].double(), v[layer].double())
                found = judge(bound, static, exact[layer].values, seen, dtype, memory=memories[layer], carry=carry,
                              tokens=tokens)  # fmt: skip
                for kv, values in enumerate(single[layer].values):
                    for index, known in found.numbers[kv].items():
                        if values.get(index, []) != []:
                            node = bound.nodes[index]
                            assert not outside(node, values[index], known), (seed, s, layer, index, node.op)
                    for pages, wanted, (must, may) in zip(
                        single[layer].lists[kv], exact[layer].lists[kv], found.open[kv], strict=True
                    ):
                        assert exact[layer].nan or must <= set(pages) <= may, (seed, s, layer, kv)
                        assert exact[layer].nan or must <= set(wanted) <= may, (seed, s, layer, kv)
                        judged, sure = judged + 1, sure + (must == may)
                outputs += int(found.output is not None and bool(found.output.isfinite().all()))
    assert sure > 0.8 * judged > 200 and outputs > 15


LINEAR = """
@program(page=16, summaries="fp32")
class Linear:
    def summarize(k, v):
        return dict(mean=k.mean(token), spread=v.max(token) - v.min(token))

    def score(q, s):
        return dot(q, s.mean, channel).max(head) + s.spread.sum(channel)

    def select(score):
        return topk(score, 3)
"""


def test_bounds_are_zero_on_dyadic_inputs_and_small_on_real_ones() -> None:
    program = parse(LINEAR).bind()
    static = Static(kv_heads=1, group=4, head_dim=64, scale=0.125)
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-8, 9, (4, 64), generator=generator).double() / 4
    k, v = torch.randint(-8, 9, (2, 1, 100, 64), generator=generator).double() / 4
    selection = select_one(program, static, q, k, v, cache_dtype=torch.float32, keep_values=True)
    bounds = error_bounds(program, static, selection, k.shape[1], torch.float32)[0]
    assert all(not bound.error.any() for bound in bounds.values())
    q, k, v = (torch.randn(x.shape, generator=generator).double() for x in (q, k, v))
    q, k, v = (x.float().double() for x in (q, k, v))
    selection = select_one(program, static, q, k, v, cache_dtype=torch.float32, keep_values=True)
    bounds = error_bounds(program, static, selection, k.shape[1], torch.float32)[0]
    score = bounds[program.nodes[program.output].inputs[0]]
    assert score.error.min() > 0 and score.error.max() < 1e-4 * score.value.abs().max()


def test_a_decision_on_the_edge_is_open_and_one_off_it_is_not() -> None:
    text = LINEAR.replace("s.mean, channel).max(head)", "s.mean, channel).max(head) * 0.1").replace(
        "topk(score, 3)", "where(score.max(page) > 0.1, first(4), last(1))"
    )
    program = parse(text).bind()
    static = Static(kv_heads=1, group=1, head_dim=8, scale=1.0)
    for key, open_ in ((1.0, True), (1.001, False), (0.999, False)):
        k = torch.zeros(1, 33, 8, dtype=torch.float64)
        k[..., 0] = key
        q = torch.zeros(1, 8, dtype=torch.float64)
        q[0, 0] = 1
        selection = select_one(program, static, q, k, torch.zeros_like(k), cache_dtype=torch.float32, keep_values=True)
        bounds = error_bounds(program, static, selection, k.shape[1], torch.float32)[0]
        condition = next(i for i, node in program if node.op == "lt")
        assert bool(bounds[condition].error) is open_


def test_attention_bound_holds_and_is_small() -> None:
    static = Static(kv_heads=2, group=2, head_dim=64, scale=0.125)
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(1, 4, 64, generator=generator)
    keys, values = ([torch.randn(2, 200, 64, generator=generator)] for _ in range(2))
    lists = [[[(0, 3, 12)], [(12,)]]]
    wide = [[x.double() for x in part] for part in (keys, values)]
    exact = attend(16, static, q.double(), *wide, lists)
    error = (attend(16, static, q, keys, values, lists).double() - exact).abs().amax(-1)
    bound = attention_tolerance(16, static, q.double(), *wide, lists)
    assert (error <= bound).all() and bound.max() < 1e-3 * exact.square().mean().sqrt()


@pytest.mark.parametrize(
    ("how", "terms", "is_open"),
    [
        ("sum", [3e38, -3e38, 1.0], True),
        ("sum", [1e38, -1e38, 1.0], False),
        ("mean", [3e38, -3e38, 1.0], True),
        ("norm", [1e20, 0.0], True),
        ("norm", [1e18, 0.0], False),
        ("max", [3e38, 3e38], False),
    ],
)
def test_what_leaves_fp32_on_the_way_to_a_sum_may_come_out_as_anything(
    how: str, terms: list[float], is_open: bool
) -> None:
    x = torch.tensor(terms, dtype=torch.float64)
    value = {"sum": x.sum(), "mean": x.mean(), "norm": x.norm(), "max": x.amax()}[how]
    error = reduce_error(how, Bounded(x, 1e-9 * x.abs()), 0, value)
    assert bool(error.isinf()) == is_open
