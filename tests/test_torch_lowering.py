"""Contractions and sweeps: what the lowering makes of a program, and that it means the same."""

from __future__ import annotations

import pytest
import torch

from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parser import parse
from vortexlab.kernels import compiled as executor_module
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.lowering import contract
from vortexlab.kernels.plan import Sweep, is_wide, make_plan
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.kernels.torch_step import SWEEP_BYTES

STATIC = Static(kv_heads=2, group=4, head_dim=16, scale=0.25)
HEADER = "from vortexlab.dsl import *\n\n\n@program(page=4{options})\nclass P:\n"


def program(score: str, summaries: str = "lo=k.min(token), hi=k.max(token)", options: str = "") -> Program:
    methods = [
        f"    def summarize(k, v):\n        return dict({summaries})",
        f"    def score(q, s, ctx):\n        return {score}",
        "    def select(score):\n        return topk(score, 3)",
    ]
    return parse(HEADER.format(options=options) + "\n\n".join(methods) + "\n").bind()


def ops(score: str, **more: str) -> list[str]:
    return [node.op for _, node in contract(program(score, **more), STATIC) if node.stage == "query"]


def wide(score: str, **more: str) -> list[str]:
    """Ops that make a value with more than a number per page and head, other than reading a summary."""
    nodes = contract(program(score, **more), STATIC).nodes
    return [node.op for node in nodes if is_wide(node) and node.op != "field"]


CONTRACTED = {
    "(q * s.lo).sum(channel).max(head)": 1,
    "(q * s.lo).mean(channel).max(head)": 1,
    "(q * ctx.scale * s.lo).sum(channel).max(head)": 1,
    "(q * s.lo + q * s.hi).sum(channel).max(head)": 2,
    "(-(q * s.lo) - q * s.hi).sum(channel).max(head)": 2,
    "(q * s.lo * ctx.scale).sum(channel).max(head)": 1,
    "maximum(q * s.lo, q * s.hi).sum(channel).max(head)": 2,
    "minimum(s.hi * q, q * s.lo).sum(channel).max(head)": 2,
    "abs(q * s.lo).sum(channel).max(head)": 2,
    "relu(q * s.lo - q * s.hi).sum(channel).max(head)": 2,
    "maximum(maximum(q * s.lo, q * s.hi), -(q * s.lo)).sum(channel).max(head)": 2,
    "(maximum(q * s.lo, q * s.hi) * 2.0).sum(channel).max(head)": 2,
    "maximum(q.mean(head) * s.lo, q.mean(head) * s.hi).sum(channel)": 2,
    "(maximum(q * s.lo, q * s.hi) + q * s.lo).sum(channel).max(head)": 3,
}


@pytest.mark.parametrize("score", CONTRACTED)
def test_sums_of_products_become_contractions(score: str) -> None:
    made = ops(score)
    assert made.count("dot") == CONTRACTED[score]
    assert "reduce" not in made[: made.index("dot")] or "mean(head)" in score


@pytest.mark.parametrize("score", CONTRACTED)
def test_no_value_per_page_head_and_channel_remains(score: str) -> None:
    for node in contract(program(score), STATIC).nodes:
        assert not {"page", "head", "channel"} <= set(node.type.axes)


def test_the_minimum_is_known_to_be_below_the_maximum() -> None:
    assert "maximum" not in ops("maximum(q * s.lo, q * s.hi).sum(channel).max(head)")
    assert wide("maximum(q * s.lo, q * s.hi).sum(channel).max(head)") == []
    # Nothing is known of other pairs.
    others = "lo=k.min(token), hi=v.max(token)"
    assert ops("maximum(q * s.lo, q * s.hi).sum(channel).max(head)", summaries=others).count("maximum") == 1
    assert wide("minimum(s.lo, s.hi).sum(channel)", summaries="lo=k.mean(token), hi=k.max(token)") == ["minimum"]


def test_what_might_be_infinite_is_not_split() -> None:
    score = "maximum(q * s.lo, q * s.hi).sum(channel).max(head)"
    assert "dot" not in ops(score, summaries="lo=log(abs(k)).min(token), hi=k.max(token)")
    growing = "lo=k.sum(token), hi=(k * k).sum(token)"
    assert "dot" not in ops(score, summaries=growing)
    assert ops(score, summaries=growing, options=', summaries="fp32"').count("dot") == 2


def test_unrelated_sums_are_left_alone() -> None:
    for score in ("exp(q * s.lo).sum(channel).max(head)", "maximum(q * s.lo, s.hi).sum(channel).max(head)",
                  "maximum(q * s.lo, (q + 1.0) * s.hi).sum(channel).max(head)", "s.lo.sum(channel)",
                  "(q * s.lo).max(channel).max(head)", "(q * s.lo).to('bf16').sum(channel).max(head)"):  # fmt: skip
        assert "dot" not in ops(score)


def cache_of(lengths: list[int], exact: bool, seed: int) -> tuple[PagedKV, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        numbers = torch.randn(*shape, generator=generator)
        return (numbers * 3).round() if exact else numbers

    shape = [(STATIC.kv_heads, n, STATIC.head_dim) for n in lengths]
    cache = PagedKV.from_dense([draw(*s) for s in shape], [draw(*s) for s in shape], 4, shuffle_seed=seed)
    return cache, draw(len(lengths), STATIC.kv_heads * STATIC.group, STATIC.head_dim)


@pytest.mark.parametrize("score", [*CONTRACTED, "exp(q * s.lo).sum(channel).max(head)"])
def test_contracted_programs_select_the_same_pages(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contracted = TorchExecutor(program(score), STATIC)
    monkeypatch.setattr(executor_module, "contract", lambda program, static, own_scales: program)
    literal = TorchExecutor(program(score), STATIC)
    for seed in range(3):
        cache, q = cache_of([33, 7, 64], exact=True, seed=seed)
        found = []
        for executor in (contracted, literal):
            state = executor.new_state(cache)
            executor.summarize(state, cache)
            found.append(executor.select(q, state, cache).to_list())
        assert found[0] == found[1]


def test_a_sweep_covers_every_output_that_is_ready() -> None:
    bound = program("maximum(q, s.lo).sum(channel).max(head) + maximum(q, s.hi).sum(channel).max(head)")
    plan = make_plan(bound)
    sweeps = [step for step in plan.steps if isinstance(step, Sweep)]
    assert len(sweeps) == 1 and len(sweeps[0].outputs) == 2
    after = program("maximum(q, s.lo - s.lo.mean(page)).sum(channel).max(head)")
    sweeps = [step for step in make_plan(after).steps if isinstance(step, Sweep)]
    assert len(sweeps) == 2  # the mean over pages has to be known first


@pytest.mark.parametrize("budget", [1 << 8, 1 << 12, 1 << 30])
def test_the_size_of_a_sweep_changes_nothing(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = program("maximum(q, s.lo - s.hi.mean(page)).sum(channel).max(head) * softmax(s.lo, page).max(channel)")
    cache, q = cache_of([70, 3, 41, 64], exact=False, seed=1)

    def lists() -> list[list[list[list[int]]]]:
        executor = TorchExecutor(bound, STATIC)
        state = executor.new_state(cache)
        executor.summarize(state, cache)
        return executor.select(q, state, cache).to_list()

    wanted = lists()
    monkeypatch.setitem(SWEEP_BYTES, "cpu", budget)
    assert lists() == wanted
